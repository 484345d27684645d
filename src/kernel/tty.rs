//! Terminals: pty pairs of a devpts instance of one's own, window sizes, raw mode.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::sys::termios::{self, LocalFlags, SetArg, SpecialCharacterIndices, Termios};

use super::{failed, fs};
use crate::error::Result;

/// include/uapi/asm-generic/ioctls.h: opens the slave of a master without a path (ioctl_tty(2)).
const TIOCGPTPEER: libc::c_ulong = 0x5441;

/// A window size in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WindowSize {
    pub rows: u16,
    pub columns: u16,
}

/// A pty pair.
#[derive(Debug)]
pub(crate) struct Pty {
    pub master: OwnedFd,
    pub slave: OwnedFd,
    /// The slave's name in its devpts: `0`, `1`, ….
    pub name: String,
}

/// Opens a new pair in the devpts mounted at `devpts` (pts(4)) and unlocks it. Neither end becomes a controlling
/// terminal.
pub(crate) fn open_pty(devpts: BorrowedFd<'_>) -> Result<Pty> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master = nix::fcntl::openat(devpts, "ptmx", flags, Mode::empty()).map_err(|e| failed("open ptmx", e))?;
    let (unlock, mut number): (libc::c_int, libc::c_uint) = (0, 0);
    // SAFETY: each ioctl takes a pointer to an int that is live for the call (ioctl_tty(2)).
    #[expect(unsafe_code, reason = "nix's ptsname and unlockpt want a descriptor type of their own")]
    unsafe {
        Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock))
            .and_then(|_| Errno::result(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &raw mut number)))
    }
    .map_err(|e| failed("unlock the pty", e))?;
    // SAFETY: TIOCGPTPEER takes open flags and returns a descriptor that nobody else owns.
    #[expect(unsafe_code, reason = "nix has no TIOCGPTPEER")]
    let slave = unsafe {
        let fd = libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags.bits());
        Errno::result(fd).map(|fd| OwnedFd::from_raw_fd(fd))
    }
    .map_err(|e| failed("open the pty's slave", e))?;
    Ok(Pty { master, slave, name: number.to_string() })
}

/// TIOCSCTTY: `terminal` becomes the controlling terminal of this session leader, which has none.
pub(crate) fn set_controlling_terminal(terminal: BorrowedFd<'_>) -> Result<()> {
    // SAFETY: TIOCSCTTY takes an integer.
    #[expect(unsafe_code, reason = "nix has no TIOCSCTTY")]
    let result = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) };
    Errno::result(result).map(drop).map_err(|e| failed("set the controlling terminal", e))
}

/// TIOCGWINSZ; `None` when `fd` is not a terminal.
pub(crate) fn window_size(fd: BorrowedFd<'_>) -> Option<WindowSize> {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is that of a live struct winsize.
    #[expect(unsafe_code, reason = "nix has no TIOCGWINSZ")]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (result == 0).then_some(WindowSize { rows: size.ws_row, columns: size.ws_col })
}

/// TIOCSWINSZ; on a master the foreground process group behind the slave gets SIGWINCH.
pub(crate) fn set_window_size(fd: BorrowedFd<'_>, size: WindowSize) -> Result<()> {
    let size = libc::winsize { ws_row: size.rows, ws_col: size.columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: the pointer is that of a live struct winsize.
    #[expect(unsafe_code, reason = "nix has no TIOCSWINSZ")]
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result).map(drop).map_err(|e| failed("set the window size", e))
}

/// isatty(3).
pub(crate) fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}

/// A terminal's settings: termios(3).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings(libc::termios);

/// tcgetattr(3).
pub(crate) fn settings(fd: BorrowedFd<'_>) -> Result<Settings> {
    let found = termios::tcgetattr(fd).map_err(|e| failed("read the terminal's settings", e))?;
    Ok(Settings(found.into()))
}

/// tcsetattr(3) with TCSADRAIN: output written so far is shown under the old settings, input is kept.
pub(crate) fn set_settings(fd: BorrowedFd<'_>, settings: &Settings) -> Result<()> {
    termios::tcsetattr(fd, SetArg::TCSADRAIN, &Termios::from(settings.0))
        .map_err(|e| failed("change the terminal's settings", e))
}

/// cfmakeraw(3) of a copy.
pub(crate) fn raw(settings: &Settings) -> Settings {
    let mut raw = Termios::from(settings.0);
    termios::cfmakeraw(&mut raw);
    Settings(raw.into())
}

/// A copy with ECHO off and ECHONL on: of what is typed only the line's end is shown (termios(3)).
pub(crate) fn without_echo(settings: &Settings) -> Settings {
    let mut hidden = *settings;
    hidden.0.c_lflag = hidden.0.c_lflag & !libc::ECHO | libc::ECHONL;
    hidden
}

/// The character that means end of file to readers behind `master`, if its line discipline reads lines (termios(3),
/// "Canonical and noncanonical mode"; a master shows its slave's settings, ioctl_tty(2)).
pub(crate) fn end_of_file_character(master: BorrowedFd<'_>) -> Option<u8> {
    let settings = termios::tcgetattr(master).ok()?;
    let canonical = settings.local_flags.contains(LocalFlags::ICANON);
    canonical.then(|| settings.control_chars[SpecialCharacterIndices::VEOF as usize])
}

/// A second open file description of the terminal behind `fd`, so that O_NONBLOCK on it is nobody else's.
pub(crate) fn reopen_nonblocking(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OFlag::O_WRONLY | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    nix::fcntl::open(&fs::path_of(fd), flags, Mode::empty()).map_err(|e| failed("reopen the terminal", e))
}

/// fcntl(2) O_NONBLOCK.
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> Result<()> {
    let fail = |e| failed("make the pty non-blocking", e);
    let flags = nix::fcntl::fcntl(fd.as_fd(), nix::fcntl::FcntlArg::F_GETFL).map_err(fail)?;
    let flags = OFlag::from_bits_truncate(flags) | OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFL(flags)).map(drop).map_err(fail)
}

/// Standard input (0), output (1) or error (2).
pub(crate) fn stdio(number: i32) -> BorrowedFd<'static> {
    // SAFETY: 0, 1 and 2 are open for the life of the process: Rust's runtime opens those that were not.
    #[expect(unsafe_code, reason = "a number becomes a descriptor")]
    unsafe {
        BorrowedFd::borrow_raw(number)
    }
}

/// dup(2) of standard input (0), output (1) or error (2), close-on-exec.
pub(crate) fn duplicate(number: i32) -> Result<OwnedFd> {
    stdio(number).try_clone_to_owned().map_err(Into::into)
}

/// What came of moving bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transfer {
    /// Some were moved.
    Moved,
    /// None can be moved now.
    Later,
    /// None will ever be moved again: the end of the file, or the other side is gone.
    End,
}

/// read(2) of what is there, at most 16 KiB, appended to `buffer`. EIO is how a master says that nobody has its slave
/// open (pty(7)), and how a terminal says that it has hung up.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> Result<Transfer> {
    let mut bytes = [0; 16 * 1024];
    match nix::unistd::read(fd, &mut bytes) {
        Ok(0) | Err(Errno::EIO) => Ok(Transfer::End),
        Ok(n) => {
            buffer.extend_from_slice(&bytes[..n]);
            Ok(Transfer::Moved)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Transfer::Later),
        Err(e) => Err(failed("read", e)),
    }
}

/// write(2) of at most `most` bytes from the front of `buffer`, which lose their place in it.
pub(crate) fn write(fd: BorrowedFd<'_>, buffer: &mut Vec<u8>, most: usize) -> Result<Transfer> {
    match nix::unistd::write(fd, &buffer[..buffer.len().min(most)]) {
        Ok(n) => {
            buffer.drain(..n);
            Ok(Transfer::Moved)
        }
        Err(Errno::EAGAIN | Errno::EINTR) => Ok(Transfer::Later),
        Err(Errno::EPIPE | Errno::EIO | Errno::ECONNRESET) => Ok(Transfer::End),
        Err(e) => Err(failed("write", e)),
    }
}
