//! The `tupper` binary.
fn main() {}
