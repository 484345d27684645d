//! What the new process and its parent tell each other before it becomes the command: that it wants its root, the
//! root, its terminal, or why it failed.
//!
//! One message each over a sequenced-packet socket that closes at exec, so that its end means success.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::error::{Error, Kind, Result};
use crate::kernel::socket;

const FAILED: u8 = b'E';
const TERMINAL: u8 = b'T';
const WANTS_ROOT: u8 = b'W';
const ROOT: u8 = b'R';

/// A message from the new process.
#[derive(Debug)]
pub(super) enum Report {
    /// It is ready for its root.
    WantsRoot,
    /// The other end of its terminal.
    Terminal(OwnedFd),
    /// Why it is not the command.
    Failed(Error),
}

/// Sends why the process failed. When even that fails the parent sees the process end.
pub(super) fn send_failure(socket: BorrowedFd<'_>, error: &Error) {
    let mut message = vec![FAILED];
    message.extend(error.to_bytes());
    if let Err(e) = socket::send(socket, &message, &[]) {
        log::warn!("report a failure: {e}");
    }
}

/// Asks a parent for the root that waits for that.
pub(super) fn ask_for_root(socket: BorrowedFd<'_>) -> Result<()> {
    socket::send(socket, &[WANTS_ROOT], &[])
}

/// Waits for the root, and the filesystems that the host has made for it; `None` when the parent is gone or gave up.
pub(super) fn receive_root(socket: BorrowedFd<'_>) -> Result<Option<(OwnedFd, Vec<OwnedFd>)>> {
    let Some((message, descriptors)) = socket::receive(socket)? else { return Ok(None) };
    let mut descriptors = descriptors.into_iter();
    match descriptors.next() {
        Some(root) if message == [ROOT] => Ok(Some((root, descriptors.collect()))),
        _ => Err(Error::new(Kind::Io, "an answer that makes no sense")),
    }
}

/// Sends the root, and filesystems for it, to the new process. One that has ended since is no error: why it did is
/// on its way. Whatever else fails is one, since the new process waits.
pub(super) fn send_root(socket: BorrowedFd<'_>, mounts: &[BorrowedFd<'_>]) -> Result<()> {
    match socket::send(socket, &[ROOT], mounts) {
        Err(e) if !socket::is_closed(&e) => Err(e.wrap("give the new process its root")),
        _ => Ok(()),
    }
}

/// Sends the master of the terminal.
pub(super) fn send_terminal(socket: BorrowedFd<'_>, master: BorrowedFd<'_>) -> Result<()> {
    socket::send(socket, &[TERMINAL], &[master])
}

/// The next report; `None` once the command runs, or the process ended without a word.
pub(super) fn receive(socket: BorrowedFd<'_>) -> Result<Option<Report>> {
    let Some((message, descriptors)) = socket::receive(socket)? else { return Ok(None) };
    match (message.as_slice(), descriptors.into_iter().next()) {
        ([WANTS_ROOT], None) => Ok(Some(Report::WantsRoot)),
        ([TERMINAL], Some(master)) => Ok(Some(Report::Terminal(master))),
        ([FAILED, error @ ..], _) => Ok(Some(Report::Failed(Error::from_bytes(error)))),
        _ => Err(Error::new(Kind::Io, "start the container: a report that makes no sense")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn failures_and_descriptors_arrive() {
        let (ours, theirs) = socket::pair().expect("a pair");
        send_failure(theirs.as_fd(), &Error::new(Kind::CommandNotFound, "run x: not found"));
        send_terminal(theirs.as_fd(), theirs.as_fd()).expect("sent");
        drop(theirs);
        match receive(ours.as_fd()).expect("received") {
            Some(Report::Failed(e)) => {
                assert_eq!((e.kind(), e.to_string().as_str()), (Kind::CommandNotFound, "run x: not found"));
            }
            other => panic!("not a failure: {other:?}"),
        }
        let held = receive(ours.as_fd()).expect("received");
        assert!(matches!(held, Some(Report::Terminal(_))), "{held:?}");
        drop(held);
        assert!(receive(ours.as_fd()).expect("the end").is_none());
    }

    #[test]
    fn who_gives_a_root_learns_whether_somebody_waits_for_it_in_vain() {
        let (ours, theirs) = socket::pair().expect("a pair");
        // unix(7): more than 253 descriptors in one message are refused.
        let error = send_root(ours.as_fd(), &[ours.as_fd(); 254]).expect_err("it was not sent");
        assert!(error.to_string().contains("invalid argument"), "{error}");
        drop(theirs);
        send_root(ours.as_fd(), &[ours.as_fd()]).expect("nobody waits");
    }
}
