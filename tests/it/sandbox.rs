//! The sandbox on a real kernel: what a command inside sees, and that nothing outside notices.
//!
//! `start` needs a process with one thread, which a test harness is not. So each test forks: the child, which has only
//! the forking thread, supervises the sandbox and tells by a pipe how it went.

mod devices;
mod harness;
mod hostile;
mod limits;
mod posture;
mod process;
mod terminal;
