//! Against a real kernel, as root. A test that lacks what it needs fails; none skips.

mod sandbox;
