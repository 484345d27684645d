//! PID 1 of a sandbox with `init`: hands signals on to the command, reaps what is orphaned, ends as the command does.
//!
//! It runs no code of the root and cannot be read from inside (prctl(2), PR_SET_DUMPABLE), so /proc/1/exe is no way to
//! the host's binary; what /proc/1/cmdline would show of the person's command line is erased.

use std::os::fd::BorrowedFd;

use crate::error::Result;
use crate::kernel::process::{self, Ended};
use crate::kernel::signal;

/// Splits the process: returns in the child, which is to become the command; the parent stays behind as init.
pub(super) fn fork(null: BorrowedFd<'_>) -> Result<()> {
    process::set_undumpable()?;
    // Whatever arrives from here on waits until init asks for it.
    signal::block_all()?;
    match process::fork()? {
        None => Ok(()),
        Some(command) => run(command, null),
    }
}

fn run(command: i32, null: BorrowedFd<'_>) -> ! {
    process::set_name(c"init");
    process::clear_command_line();
    // The command's output ends when the command closes it, not when init does.
    for number in 0..=2 {
        if process::replace_stdio(null, number).is_err() {
            process::exit_now(125);
        }
    }
    if process::close_descriptors_but(&[]).is_err() {
        process::exit_now(125);
    }
    loop {
        match signal::wait_for_signal() {
            signal::SIGCHLD => reap(command),
            other => signal::signal_child(command, other),
        }
    }
}

/// Reaps everything that has ended; ends when the command has. The kernel kills what is left (pid_namespaces(7)).
fn reap(command: i32) {
    while let Some((pid, ended)) = process::reap() {
        if pid == command {
            process::exit_now(status(ended));
        }
    }
}

fn status(ended: Ended) -> u8 {
    match ended {
        Ended::Exited(status) => status,
        Ended::Signaled(signal) => 128u8.saturating_add(u8::try_from(signal).unwrap_or(127)),
    }
}
