//! A program under ptrace(2): every system call by which it changes something outside itself is counted, and at one of
//! them it is killed, before the call does anything.
//!
//! - Counted are all threads and forked children of the program, in one order, the one in which they come by. A process
//!   that executes another program is followed to its end, but not counted any more: the command of a container,
//!   mkfs.btrfs.
//! - A kill is a SIGKILL of the first process, as the OOM killer's or a person's. Whoever else was about to do the Nth
//!   call waits until that process is gone, and then goes on as it would.
//! - Or the SIGKILL is for the process that is about to do that call: a monitor, a container's command before its exec.
//! - Another signal than SIGKILL is sent at that call, too, and the run goes on, counted to its end.
//! - A run is over when no process of it is left. It has a limit: what still lives then is killed, named, and a failure.
//! - The tracer is a thread of its own, and a thread sees only the children and tracees that are its own
//!   (wait(2), __WNOTHREAD): nothing that another test started is ever waited for or killed.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, gettid};

use crate::changes;

/// No run takes longer: what lives on is a hang, or a process that nothing ends.
const LIMIT: Duration = Duration::from_secs(120);

/// A system call that changes something, as it is about to be made.
#[derive(Debug, Clone)]
pub struct Call {
    /// Its number in the order of the run, from 1.
    pub number: u64,
    /// As in syscalls(2).
    pub name: &'static str,
    /// The path, or what is known of the file, that it is about.
    about: String,
    /// The first process makes it, not a child.
    first: bool,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Call { number, name, about, first } = self;
        write!(f, "#{number} {name}{}{about}", if about.is_empty() { "" } else { " " })?;
        write!(f, "{}", if *first { "" } else { " (child)" })
    }
}

/// A run that is over.
#[derive(Debug)]
pub struct Traced {
    /// How it exited, as a shell gives it; 137 where it was killed.
    pub status: i32,
    /// The calls that changed something, up to the one at which it was killed.
    pub calls: Vec<Call>,
    /// It was killed, at the last of those.
    pub killed: bool,
}

/// What comes at the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blow {
    /// A signal for the first process.
    First(Signal),
    /// A SIGKILL for the process that was about to make the call, first or not.
    Caller,
}

/// Runs it to its end, or to the first changing call that `kills` says. An error says which processes were alive at the
/// limit.
pub fn run(command: Command, kills: impl Fn(&Call) -> bool + Send) -> Result<Traced, String> {
    run_within(LIMIT, Blow::First(Signal::SIGKILL), command, kills)
}

/// [`run`] with another blow.
pub fn run_dealing(blow: Blow, command: Command, at: impl Fn(&Call) -> bool + Send) -> Result<Traced, String> {
    run_within(LIMIT, blow, command, at)
}

/// [`run_dealing`] with a limit of the caller's.
pub fn run_within(
    limit: Duration,
    blow: Blow,
    command: Command,
    kills: impl Fn(&Call) -> bool + Send,
) -> Result<Traced, String> {
    let what = format!("{command:?}");
    let (ours, theirs) = mpsc::channel();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let ended = mpsc::Sender::clone(&ours);
            ours.send(Some(gettid())).expect("the test waits");
            let traced = trace(command, blow, &kills);
            ended.send(None).expect("the test waits");
            traced
        });
        let tracer = theirs.recv().ok().flatten().expect("the tracer's id");
        let late = theirs.recv_timeout(limit).is_err().then(|| tracees_of(tracer));
        for (pid, _) in late.iter().flatten() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        let traced = thread.join().expect("the tracer");
        match late {
            None => Ok(traced),
            Some(alive) => {
                let alive: Vec<_> = alive.into_iter().map(|(pid, about)| format!("{pid} {about}")).collect();
                Err(format!("alive after {limit:?}: {}: {what}", alive.join(", ")))
            }
        }
    })
}

/// For [`run`]: the first call of this name.
pub fn first(name: &str) -> impl Fn(&Call) -> bool {
    move |call| call.name == name
}

/// The processes that a thread traces, each with its name and where in the kernel it is.
fn tracees_of(tracer: Pid) -> Vec<(Pid, String)> {
    let traced = format!("TracerPid:\t{tracer}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").expect("read /proc").flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        let read = |file| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        if read("status").lines().any(|line| line == traced) {
            found.push((Pid::from_raw(pid), format!("{} ({})", read("comm").trim(), read("wchan"))));
        }
    }
    found
}

/// The tracer's state.
struct Tracer<'a> {
    first: Pid,
    /// The file that a process executes while it is counted.
    program: (u64, u64),
    /// Every thread that is traced, and whether it is counted.
    threads: BTreeMap<Pid, bool>,
    calls: Vec<Call>,
    blow: Blow,
    kills: &'a dyn Fn(&Call) -> bool,
    killed: bool,
    /// Who was about to do the call at which the kill came.
    held: Option<Pid>,
}

fn trace(mut command: Command, blow: Blow, kills: &dyn Fn(&Call) -> bool) -> Traced {
    // SAFETY: ptrace(2) is a bare system call, and allocates nothing between fork and exec.
    #[expect(unsafe_code, reason = "PTRACE_TRACEME is the child's to call, before its exec")]
    unsafe {
        command.pre_exec(|| Ok(ptrace::traceme()?));
    }
    #[expect(clippy::zombie_processes, reason = "the loop below waits for every process there is")]
    let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let first = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
    // ptrace(2), PTRACE_TRACEME: a successful execve sends it a SIGTRAP.
    let stopped = waitpid(first, Some(WaitPidFlag::__WALL)).expect("wait for the exec");
    assert_eq!(stopped, WaitStatus::Stopped(first, Signal::SIGTRAP), "no stop at exec");
    let follow = Options::PTRACE_O_TRACECLONE | Options::PTRACE_O_TRACEFORK | Options::PTRACE_O_TRACEVFORK;
    let options = follow | Options::PTRACE_O_TRACEEXEC | Options::PTRACE_O_TRACESYSGOOD | Options::PTRACE_O_EXITKILL;
    ptrace::setoptions(first, options).expect("set the options of the trace");

    let program = executed_by(first).expect("the program");
    let threads = BTreeMap::from([(first, true)]);
    let mut tracer = Tracer { first, program, threads, calls: Vec::new(), blow, kills, killed: false, held: None };
    tracer.resume(first, None);
    let mut status = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD)) {
            Err(Errno::ECHILD) => break,
            Err(e) => panic!("wait for a tracee: {e}"),
            Ok(WaitStatus::Exited(pid, code)) => status = tracer.ended(pid, code).or(status),
            Ok(WaitStatus::Signaled(pid, signal, _)) => status = tracer.ended(pid, 128 + signal as i32).or(status),
            Ok(WaitStatus::PtraceSyscall(pid)) => tracer.at_call(pid),
            Ok(WaitStatus::PtraceEvent(pid, _, event)) => {
                if event == ptrace::Event::PTRACE_EVENT_EXEC as i32 {
                    tracer.meet(pid);
                }
                tracer.resume(pid, None);
            }
            // A new tracee stops before its first instruction; that is no signal that somebody sent.
            Ok(WaitStatus::Stopped(pid, Signal::SIGSTOP)) if !tracer.threads.contains_key(&pid) => {
                tracer.meet(pid);
                tracer.resume(pid, None);
            }
            Ok(WaitStatus::Stopped(pid, signal)) => tracer.resume(pid, Some(signal)),
            Ok(other) => panic!("not asked for: {other:?}"),
        }
    }
    let Tracer { calls, killed, .. } = tracer;
    Traced { status: status.expect("the first process was waited for"), calls, killed }
}

impl Tracer<'_> {
    /// A new thread, or one with a new program.
    fn meet(&mut self, pid: Pid) {
        self.threads.insert(pid, executed_by(pid) == Some(self.program));
    }

    fn resume(&self, pid: Pid, signal: Option<Signal>) {
        let counted = !self.killed && self.threads.get(&pid) == Some(&true);
        let resumed = if counted { ptrace::syscall(pid, signal) } else { ptrace::cont(pid, signal) };
        // ptrace(2): whoever is killed leaves its stop, whatever its tracer does.
        assert!(matches!(resumed, Ok(()) | Err(Errno::ESRCH)), "resume {pid}: {resumed:?}");
    }

    /// It is gone; its status, where it is the first process's.
    fn ended(&mut self, pid: Pid, status: i32) -> Option<i32> {
        self.threads.remove(&pid);
        if pid != self.first {
            return None;
        }
        if let Some(held) = self.held.take() {
            self.resume(held, None);
        }
        Some(status)
    }

    /// It enters a system call, or leaves one.
    fn at_call(&mut self, pid: Pid) {
        let changes =
            if self.killed { None } else { entered(pid).and_then(|(number, args)| changes::of(pid, number, args)) };
        if let Some((name, about)) = changes {
            let number = self.calls.len() as u64 + 1;
            let call = Call { number, name, about, first: process_of(pid) == Some(self.first) };
            let kills = (self.kills)(&call);
            self.calls.push(call);
            match self.blow {
                Blow::First(Signal::SIGKILL) if kills => {
                    // It may have ended, and a monitor goes on.
                    match kill(self.first, Signal::SIGKILL) {
                        Err(Errno::ESRCH) => return self.resume(pid, None),
                        sent => sent.expect("kill the first process"),
                    }
                    self.killed = true;
                    self.held = Some(pid);
                    return;
                }
                Blow::First(signal) if kills => {
                    // It may have ended by itself.
                    let sent = kill(self.first, signal);
                    assert!(matches!(sent, Ok(()) | Err(Errno::ESRCH)), "send {signal}: {sent:?}");
                }
                Blow::Caller if kills => {
                    self.killed = true;
                    kill(process_of(pid).expect("a process"), Signal::SIGKILL).expect("kill who makes the call");
                    return;
                }
                _ => {}
            }
        }
        self.resume(pid, None);
    }
}

/// The device and inode of the file that a process executes.
fn executed_by(pid: Pid) -> Option<(u64, u64)> {
    std::fs::metadata(format!("/proc/{pid}/exe")).ok().map(|file| (file.dev(), file.ino()))
}

/// The process that a thread belongs to.
fn process_of(thread: Pid) -> Option<Pid> {
    let status = std::fs::read_to_string(format!("/proc/{thread}/status")).ok()?;
    let tgid = status.lines().find_map(|line| line.strip_prefix("Tgid:"))?;
    tgid.trim().parse().ok().map(Pid::from_raw)
}

/// The number and arguments of the system call that it enters; `None` when it leaves one, or is dead.
fn entered(pid: Pid) -> Option<(i64, [u64; 6])> {
    let info = ptrace::syscall_info(pid).ok()?;
    if info.op != libc::PTRACE_SYSCALL_INFO_ENTRY {
        return None;
    }
    // SAFETY: ptrace(2), PTRACE_GET_SYSCALL_INFO: at an entry the kernel fills in `entry`.
    #[expect(unsafe_code, reason = "ptrace_syscall_info is a union")]
    let entry = unsafe { info.u.entry };
    Some((i64::try_from(entry.nr).ok()?, entry.args))
}
