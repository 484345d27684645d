//! A wait for a lock: silent while it is short, and then with the name of whoever holds it.

use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::command::{self, Done, finish};
use crate::support::store::Store;
use crate::support::{busybox, eventually, sh};

/// flock(1) on a directory of the store, until it is dropped.
struct Holder {
    child: Child,
    until_closed: Option<ChildStdin>,
}

impl Holder {
    fn new(store: &Store, shelf: &str, how: &str) -> Holder {
        let mut flock = Command::new("flock");
        flock.arg(how).arg(store.root().join("fs").join(shelf)).args(["sh", "-c", "echo held; read _"]);
        let mut child = flock.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("flock of util-linux");
        let mut said = [0; 5];
        std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut said).expect("it says that it has it");
        Holder { until_closed: child.stdin.take(), child }
    }

    fn release(mut self) {
        self.end();
    }

    /// `flock … (pid N)` as a waiting command names it, with the command line as far as it is shown.
    fn is_named_in(&self, text: &str) -> bool {
        text.contains("flock ") && text.contains(&format!("(pid {})", self.child.id()))
    }

    fn end(&mut self) {
        self.until_closed = None;
        let _ = self.child.wait();
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.end();
    }
}

/// A command that waits, and what it says meanwhile.
struct Waiting {
    child: Child,
    stderr: tempfile::NamedTempFile,
}

impl Waiting {
    fn spawn(mut command: Command) -> Waiting {
        let stderr = tempfile::NamedTempFile::new().expect("a file");
        let child = command.stdout(Stdio::null()).stderr(stderr.reopen().expect("open it again")).spawn();
        Waiting { child: child.expect("spawn"), stderr }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.stderr.path()).expect("read what it says")
    }

    /// What it says once it says something.
    fn speaks(&self) -> String {
        eventually("a word on what it waits for", Duration::from_secs(120), || self.said().ends_with('\n'));
        self.said()
    }

    /// Its status, and all that it said.
    fn end(self) -> (i32, String) {
        let Waiting { child, stderr } = self;
        let status = command::wait(child, "a command that waited for a lock");
        (status, std::fs::read_to_string(stderr.path()).expect("read what it said"))
    }
}

#[test]
fn a_long_wait_names_what_is_waited_for_and_who_holds_it() {
    let store = Store::new();
    let holder = Holder::new(&store, "images", "--exclusive");
    let began = Instant::now();
    let waiting = Waiting::spawn(store.command("image tag busybox other", &[]));
    let said = waiting.speaks();
    assert!(began.elapsed() >= Duration::from_secs(2), "too early: {said}");
    assert!(said.starts_with("tupper: waiting for the lock of images: held by flock --exclusive "), "{said}");
    assert!(holder.is_named_in(&said), "pid {}: {said}", holder.child.id());
    holder.release();
    assert_eq!(waiting.end(), (0, said), "said once, and done when the lock is free");
    assert!(store.ok("image ls").contains("other"));
}

#[test]
fn a_short_wait_says_nothing() {
    let store = Store::new();
    let holder = Holder::new(&store, "images", "--exclusive");
    let waiting = Waiting::spawn(store.command("image tag busybox other", &[]));
    let inode = std::os::unix::fs::MetadataExt::ino(&store.root().join("fs/images").metadata().expect("stat"));
    eventually("it waits", Duration::from_secs(120), || {
        let table = std::fs::read_to_string("/proc/locks").expect("read the locks");
        table.lines().any(|line| {
            line.contains(&format!("-> FLOCK  ADVISORY  WRITE {} ", waiting.child.id()))
                && line.contains(&format!(":{inode} "))
        })
    });
    holder.release();
    assert_eq!(waiting.end(), (0, String::new()));
}

#[test]
fn all_who_share_it_are_counted() {
    let store = Store::new();
    let holders = [(); 2].map(|()| Holder::new(&store, "images", "--shared"));
    let waiting = Waiting::spawn(store.command("image tag busybox other", &[]));
    let said = waiting.speaks();
    assert!(holders.iter().all(|holder| holder.is_named_in(&said)), "both: {said}");
    let third = Holder::new(&store, "images", "--shared");
    let another = Waiting::spawn(store.command("image tag busybox third", &[]));
    assert!(another.speaks().trim_end().ends_with(" and 2 others"), "{}", another.said());
    drop((holders, third));
    assert_eq!((waiting.end().0, another.end().0), (0, 0));
}

#[test]
fn a_run_that_was_stopped_is_named_by_who_wants_its_container() {
    let store = Store::new();
    let run = Waiting::spawn(store.command("run --name web busybox sleep 1000", &[]));
    eventually("it runs", Duration::from_secs(120), || store.ok("ps").contains("web"));
    let supervisor = store.monitor("web");
    kill(supervisor, Signal::SIGSTOP).expect("stop it");
    let waiting = Waiting::spawn(store.command("rm --force web", &[]));
    let said = waiting.speaks();
    kill(supervisor, Signal::SIGCONT).expect("let it go on");
    let begin = "tupper: waiting for the lock of container ";
    assert!(said.starts_with(begin) && said.contains(": held by tupper monitor "), "{said}");
    assert!(said.contains(&format!("(pid {supervisor})")), "{said}");
    assert_eq!((waiting.end().0, run.end().0), (0, 137));
    assert_eq!(store.ok("ps --all --quiet"), "");
}

#[test]
fn a_holder_in_another_pid_namespace_is_not_named() {
    let store = Store::new();
    let holder = Holder::new(&store, "images", "--exclusive");
    let mut unshare = Command::new("unshare");
    let command = store.command("image tag busybox other", &[]);
    unshare.args(["--pid", "--fork", "--mount-proc"]).arg(command.get_program()).args(command.get_args());
    let waiting = Waiting::spawn(unshare);
    let said = waiting.speaks();
    assert_eq!(said, "tupper: waiting for the lock of images: held by a process that cannot be seen from here\n");
    holder.release();
    assert_eq!(waiting.end(), (0, said));
}

#[test]
fn the_heir_of_a_lock_is_named_when_its_taker_has_ended() {
    let store = Store::new();
    let images = store.root().join("fs/images");
    // flock(1) of a descriptor takes the lock and ends; the shell that opened it keeps it.
    let script = "exec 9<\"$0\"; flock 9; echo $$; read _";
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).arg(images).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut heir = shell.spawn().expect("a shell");
    let mut line = String::new();
    let mut out = std::io::BufReader::new(heir.stdout.take().expect("piped"));
    std::io::BufRead::read_line(&mut out, &mut line).expect("it says that it has it");
    let waiting = Waiting::spawn(store.command("image tag busybox other", &[]));
    let said = waiting.speaks();
    assert!(said.contains("held by sh -c exec 9<") && said.contains(&format!("(pid {})", heir.id())), "{said}");
    drop(heir.stdin.take());
    heir.wait().expect("wait for the shell");
    assert_eq!(waiting.end().0, 0);
}

#[test]
fn an_import_that_waits_gives_up_when_it_is_interrupted() {
    let store = Store::new();
    let holder = Holder::new(&store, "images", "--exclusive");
    let image = busybox();
    let waiting = Waiting::spawn(store.command("image import --name other", &[image.to_str().expect("plain")]));
    let said = waiting.speaks();
    kill(Pid::from_raw(i32::try_from(waiting.child.id()).expect("a pid")), Signal::SIGINT).expect("interrupt it");
    let (status, all) = waiting.end();
    assert_eq!(status, 130, "{all}");
    assert!(all[said.len()..].starts_with("tupper: error: ") && all.contains("interrupted by signal 2"), "{all}");
    holder.release();
    assert_eq!(sh("ls", &["-A", store.root().join("fs/staging").to_str().expect("plain")]), "");
    let done: Done = finish(store.command("image tag busybox other", &[]));
    done.ok();
}
