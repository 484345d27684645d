//! Signals: masks, queues, dispositions, and sending them.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::failed;
use crate::error::Result;

/// signal(7).
pub(crate) const SIGCHLD: i32 = libc::SIGCHLD;
/// signal(7).
pub(crate) const SIGKILL: i32 = libc::SIGKILL;
/// signal(7).
pub(crate) const SIGTERM: i32 = libc::SIGTERM;
/// signal(7).
pub(crate) const SIGWINCH: i32 = libc::SIGWINCH;

static CAUGHT: AtomicI32 = AtomicI32::new(0);

extern "C" fn note(signal: libc::c_int) {
    // Signal-safe: one store (signal-safety(7)).
    CAUGHT.store(signal, Ordering::Relaxed);
}

/// From now on HUP, INT and TERM are noted, once each; a second one ends the process as it always did.
pub(crate) fn note_termination() -> Result<()> {
    handle_termination(SigHandler::Handler(note))
}

/// They end the process again, as by default.
pub(crate) fn forget_termination() -> Result<()> {
    handle_termination(SigHandler::SigDfl)
}

fn handle_termination(handler: SigHandler) -> Result<()> {
    let action = SigAction::new(handler, SaFlags::SA_RESETHAND, SigSet::empty());
    for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM] {
        // SAFETY: the handler, if there is one, only stores to an atomic, and replaces none of this program's.
        #[expect(unsafe_code, reason = "installing a signal handler")]
        unsafe { sigaction(signal, &action) }.map_err(|e| failed("catch a signal", e))?;
    }
    Ok(())
}

/// The signal that was noted last, if there was one.
pub(crate) fn noted_termination() -> Option<i32> {
    Some(CAUGHT.load(Ordering::Relaxed)).filter(|signal| *signal != 0)
}

/// The number of the signal of this name without its `SIG`, as this architecture numbers it; the other names of signal(7),
/// too.
pub(crate) fn number(name: &str) -> Option<i32> {
    match name {
        "IOT" => Some(libc::SIGIOT),
        "POLL" => Some(libc::SIGPOLL),
        "CLD" => Some(libc::SIGCHLD),
        name => format!("SIG{name}").parse::<Signal>().ok().map(|signal| signal as i32),
    }
}

/// The first and the last real-time signal, as libc counts them for programs: signal(7).
pub(crate) fn real_time() -> (i32, i32) {
    (libc::SIGRTMIN(), libc::SIGRTMAX())
}

/// pidfd_send_signal(2); a process that has ended already is no error.
pub(crate) fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    // SAFETY: a null siginfo means that of kill(2) (pidfd_send_signal(2)); the rest are integers.
    #[expect(unsafe_code, reason = "nix has no pidfd_send_signal")]
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, 0usize, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(e) => Err(failed(format_args!("send signal {signal}"), e)),
    }
}

/// kill(2) of a child that has not been reaped, so that the number cannot be another's; errors say it has ended.
pub(crate) fn signal_child(pid: i32, signal: i32) {
    // SAFETY: integers only.
    #[expect(unsafe_code, reason = "nix's Signal has no real-time signals")]
    unsafe {
        libc::kill(pid, signal);
    }
}

/// The signals that a supervisor hands on, and WINCH. Those of job control (TSTP, TTIN, TTOU, CONT) stay with the shell
/// that the supervisor runs in.
const FORWARDED: [Signal; 8] = [
    Signal::SIGHUP,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGTERM,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGALRM,
    Signal::SIGWINCH,
];

/// A thread's signal mask.
pub(crate) type SignalMask = SigSet;

/// Blocks the signals that a supervisor hands on, and returns the mask that was.
pub(crate) fn block_forwarded() -> Result<SignalMask> {
    let set: SigSet = FORWARDED.into_iter().collect();
    set.thread_swap_mask(SigmaskHow::SIG_BLOCK).map_err(|e| failed("block signals", e))
}

/// signalfd(2) of the signals that a supervisor hands on, which must be blocked.
pub(crate) fn forwarded_queue() -> Result<SignalQueue> {
    let set: SigSet = FORWARDED.into_iter().collect();
    let queue = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
    queue.map(SignalQueue).map_err(|e| failed("signalfd", e))
}

/// Signals that have arrived.
#[derive(Debug)]
pub(crate) struct SignalQueue(SignalFd);

impl SignalQueue {
    /// The next one, if there is one.
    pub(crate) fn next(&self) -> Result<Option<i32>> {
        let signal = self.0.read_signal().map_err(|e| failed("read a signal", e))?;
        Ok(signal.and_then(|info| i32::try_from(info.ssi_signo).ok()))
    }
}

impl AsFd for SignalQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// INT or TERM: somebody wants the process to end.
pub(crate) fn is_termination(signal: i32) -> bool {
    signal == libc::SIGINT || signal == libc::SIGTERM
}

/// Blocks every signal.
pub(crate) fn block_all() -> Result<()> {
    SigSet::all().thread_set_mask().map_err(|e| failed("block signals", e))
}

/// Makes `mask` the signal mask.
pub(crate) fn set_mask(mask: &SignalMask) -> Result<()> {
    mask.thread_set_mask().map_err(|e| failed("set the signal mask", e))
}

/// sigwaitinfo(2) for any signal; all must be blocked.
pub(crate) fn wait_for_signal() -> i32 {
    loop {
        let set = SigSet::all();
        // SAFETY: the set is live; a null siginfo is allowed (sigwaitinfo(2)).
        #[expect(unsafe_code, reason = "nix's Signal has no real-time signals")]
        let signal = unsafe { libc::sigwaitinfo(set.as_ref(), std::ptr::null_mut()) };
        if signal > 0 {
            return signal;
        }
    }
}

/// Every signal back to its default disposition and an empty mask: execve(2) keeps what is ignored or blocked.
pub(crate) fn default_signals() -> Result<()> {
    // Room for the kernel's struct sigaction of any architecture (include/linux/signal_types.h), all of it zero:
    // SIG_DFL, no flags, an empty mask of eight bytes.
    let action = [0u64; 8];
    for number in 1..=64 {
        // SAFETY: the action is live and larger than what is read; nothing is written. KILL and STOP answer EINVAL,
        // which is as good.
        #[expect(unsafe_code, reason = "libc's sigaction keeps two real-time signals to itself")]
        unsafe {
            libc::syscall(libc::SYS_rt_sigaction, number, action.as_ptr(), std::ptr::null_mut::<u64>(), 8usize);
        }
    }
    set_mask(&SigSet::empty())
}
