//! Runs commands for all threads at once, knows what runs, and says so when nothing moves any more.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io::{Read, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::Kills;
use crate::random::Random;
use crate::support::command::Tupper;
use crate::support::sh;
use crate::support::store::Store;

/// A command that takes longer waits for something that does not come.
const STUCK: Duration = Duration::from_secs(300);

pub struct Runner<'a> {
    store: &'a Store,
    pub kills: Kills,
    /// How many commands the workers have still to run.
    left: AtomicUsize,
    /// No more commands: all were run, or something is wrong.
    pub stop: AtomicBool,
    /// How many objects without a name of ours may be there because who made them was killed before it could tell.
    pub untold: AtomicUsize,
    running: Mutex<BTreeMap<u32, (String, Instant)>>,
    stuck: AtomicBool,
    /// How often each verb ended in which way, and how long it took at the longest.
    counts: Mutex<BTreeMap<String, (usize, Duration)>>,
    began: Instant,
}

/// Why a command may fail: what the manual says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// What it names is not there.
    Missing,
    /// The name is another's.
    Taken,
    /// What it names is in use.
    Busy,
}

/// How a command ended.
#[derive(Debug)]
pub struct Ended {
    pub command: String,
    /// 128 + N when signal N ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
    /// It was ended by the test before it had ended by itself.
    pub killed: bool,
}

impl Ended {
    /// What it printed; it has to have succeeded.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.status, 0, "{self}");
        self.stdout.trim_end()
    }

    /// The ids that it printed, one a line.
    #[track_caller]
    pub fn ids(&self) -> Vec<String> {
        let ids: Vec<String> = self.ok().lines().map(str::to_string).collect();
        assert!(ids.iter().all(|id| is_id(id)), "ids: {self}");
        ids
    }

    /// Why it failed, in the words of its one error line; the test fails if it is no reason that a command may have.
    #[track_caller]
    pub fn refused(&self) -> Refused {
        assert!(matches!(self.status, 1 | 125), "{self}");
        let mut reasons = self.stderr.lines().filter_map(|line| line.strip_prefix("tupper: error: ")).map(reason);
        reasons.next().flatten().unwrap_or_else(|| panic!("no reason to fail: {self}"))
    }
}

fn reason(error: &str) -> Option<Refused> {
    let holds = |parts: &[&str]| parts.iter().any(|part| error.contains(part));
    match () {
        () if holds(&[": taken by "]) => Some(Refused::Taken),
        () if holds(&["it is running", "running already", ": lock: ", "used by container", "has several names"]) => {
            Some(Refused::Busy)
        }
        () if holds(&[": no such ", "is gone"]) => Some(Refused::Missing),
        () => None,
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ended { command, status, stdout, stderr, .. } = self;
        write!(f, "{command}\n  status {status}\n--- stdout\n{stdout}--- stderr\n{stderr}---")
    }
}

pub fn is_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit() && !b.is_ascii_uppercase())
}

/// A command that runs; dropped, it is killed.
pub struct Running<'a> {
    runner: &'a Runner<'a>,
    child: Child,
    command: String,
    out: fs::File,
    err: fs::File,
    began: Instant,
}

impl Running<'_> {
    pub fn kill(&mut self) {
        let _ = self.child.kill();
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().expect("look for a child").is_some()
    }

    fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().expect("wait for a child");
        locked(&self.runner.running).remove(&self.child.id());
        status.code().unwrap_or_else(|| 128 + status.signal().expect("ended by a signal"))
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.kill();
        self.wait();
    }
}

impl<'a> Runner<'a> {
    pub fn new(store: &'a Store, commands: usize, kills: Kills) -> Runner<'a> {
        Runner {
            store,
            kills,
            left: AtomicUsize::new(commands),
            stop: AtomicBool::new(false),
            untold: AtomicUsize::new(0),
            running: Mutex::default(),
            stuck: AtomicBool::new(false),
            counts: Mutex::default(),
            began: Instant::now(),
        }
    }

    pub fn tupper(&self) -> &Tupper {
        self.store
    }

    /// Whether the calling worker may run one more command.
    pub fn next(&self) -> bool {
        let one_less = |left: usize| left.checked_sub(1);
        !self.stop.load(Ordering::Acquire)
            && self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less).is_ok()
    }

    /// Runs the words of `line` and then `more`, to the end.
    pub fn run(&'a self, line: &str, more: &[&str]) -> Ended {
        let running = self.start(line, more);
        self.end(running, false)
    }

    /// The same for a worker, whose commands may be killed at any moment of their lives.
    pub fn try_run(&'a self, random: &mut Random, line: &str, more: &[&str]) -> Ended {
        let mut running = self.start(line, more);
        let kill = self.kills == Kills::Some && random.percent(30);
        if kill {
            // Most commands take a few milliseconds when nobody else runs, and some hundred in this crowd.
            let wait = Duration::from_micros(random.next() % (1 << (10 + random.below(9))));
            std::thread::sleep(wait);
            running.kill();
        }
        self.end(running, kill)
    }

    pub fn start(&'a self, line: &str, more: &[&str]) -> Running<'a> {
        let mut command: Command = self.tupper().command(line, more);
        let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("dup")).stderr(err.try_clone().expect("dup"));
        let began = Instant::now();
        let child = command.spawn().expect("spawn tupper");
        let command = [&[line], more].concat().join(" ");
        locked(&self.running).insert(child.id(), (command.clone(), began));
        Running { runner: self, child, command, out, err, began }
    }

    /// Waits for it; `killed` says that it was to be killed.
    pub fn end(&self, mut running: Running<'_>, killed: bool) -> Ended {
        let status = running.wait();
        let killed = killed && status == 137;
        let (stdout, stderr) = (read(&mut running.out), read(&mut running.err));
        let ended = Ended { command: running.command.clone(), status, stdout, stderr, killed };
        self.listen(&ended);
        let verb: Vec<&str> = ended.command.split(' ').filter(|word| !word.starts_with('-')).take(2).collect();
        let verb = match verb[..] {
            [noun @ ("image" | "snapshot" | "store"), verb] => format!("{noun} {verb}"),
            [verb, ..] => verb.to_string(),
            [] => String::new(),
        };
        let how = match ended.status {
            _ if ended.killed => " killed",
            0 => "",
            _ => " failed",
        };
        let mut counts = locked(&self.counts);
        let (count, longest) = counts.entry(format!("{verb}{how}")).or_default();
        (*count, *longest) = (*count + 1, running.began.elapsed().max(*longest));
        ended
    }

    /// On standard error a command says why it failed, that it waits, or that it removed what is left of others.
    fn listen(&self, ended: &Ended) {
        let swept = |line: &str| {
            self.kills == Kills::Some && line.starts_with("tupper: removed what a command left that was killed: ")
        };
        let failed = |line: &str| line.starts_with("tupper: error: ") || line.starts_with("hint: ");
        let expected = |line: &str| {
            line.starts_with("tupper: waiting for the lock of ") || swept(line) || ended.status != 0 && failed(line)
        };
        assert!(ended.stderr.lines().all(expected), "{ended}");
    }

    /// Runs a thread's work; when that fails, all stop.
    pub fn guard(&self, work: impl FnOnce()) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            self.stop.store(true, Ordering::Release);
            resume_unwind(panic);
        }
    }

    /// Until all stop: if a command gets nowhere, prints what everybody is doing and ends them.
    #[expect(clippy::print_stderr, reason = "shown when the test fails")]
    pub fn watch(&self) {
        loop {
            std::thread::sleep(Duration::from_millis(50));
            let stuck = locked(&self.running).values().find(|(_, began)| began.elapsed() > STUCK).cloned();
            if let Some((command, _)) = stuck {
                self.stop.store(true, Ordering::Release);
                // At once: the others fail, too, when their commands are ended.
                eprintln!("after {STUCK:?} still running: {command}\n{}", self.scene());
                self.stuck.store(true, Ordering::Release);
                for pid in locked(&self.running).keys() {
                    let pid = nix::unistd::Pid::from_raw(i32::try_from(*pid).expect("a pid"));
                    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                }
                return;
            }
            if self.stop.load(Ordering::Acquire) && locked(&self.running).is_empty() {
                return;
            }
        }
    }

    /// Who runs, where each of its threads is in the kernel, and who holds and awaits which lock.
    fn scene(&self) -> String {
        let mut text = String::new();
        for (pid, (command, began)) in locked(&self.running).iter() {
            text += &format!("{pid} for {:?}: {command}\n", began.elapsed());
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                let file = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
                text +=
                    &format!("  task {}: {} {}\n", task.path().display(), file("wchan"), file("syscall").trim_end());
                text.extend(file("stack").lines().map(|line| format!("    {line}\n")));
            }
        }
        let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
        let top = self.store.root().join("fs");
        let inodes = sh("find", &[top.to_str().expect("plain"), "-maxdepth", "2", "-printf", "%i %p\\n"]);
        let held = |line: &&str| line.split(' ').next().is_some_and(|inode| locks.contains(&format!(":{inode} ")));
        text += &locks;
        text.extend(inodes.lines().filter(held).map(|line| format!("{line}\n")));
        text
    }

    /// Fails the test if commands got nowhere.
    pub fn assert_unharmed(&self) {
        assert!(!self.stuck.load(Ordering::Acquire), "a command got nowhere: see above");
    }

    pub fn summary(&self) -> String {
        let counts = locked(&self.counts);
        let lines =
            counts.iter().map(|(verb, (count, longest))| format!("\n{count:8} {verb}, the longest {longest:.1?}"));
        format!("{:.1?}{}", self.began.elapsed(), lines.collect::<String>())
    }
}

fn read(file: &mut fs::File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read the output");
    String::from_utf8_lossy(&bytes).into_owned()
}

pub fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
