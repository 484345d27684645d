//! Tests against a real kernel: they want root and a btrfs, and fail without.

mod hostile;
mod layer;
mod scratch;
