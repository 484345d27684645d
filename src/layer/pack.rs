//! The canonical archive of a directory: the same tree gives the same bytes.
