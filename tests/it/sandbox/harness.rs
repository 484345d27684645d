//! A busybox root, a forked supervisor, and what came of it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::symlink;
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use tupper::error::Result;
use tupper::rootfs::Rootfs;
use tupper::sandbox::{self, Exit, Facts, Maps, Plan, Spec, Status};

/// A root filesystem of busybox alone, without a single mount point in it.
pub struct Root {
    pub dir: tempfile::TempDir,
    /// Plan as if the host had no other cgroup hierarchy than the unified one.
    pub unified_only: bool,
}

impl Root {
    pub fn new() -> Root {
        assert!(nix::unistd::geteuid().is_root(), "these tests need root");
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
        let root = Root { dir, unified_only: false };
        let busybox = fs::read("/bin/busybox").expect("/bin/busybox of the package busybox-static");
        fs::create_dir(root.path("bin")).expect("mkdir bin");
        fs::create_dir(root.path("etc")).expect("mkdir etc");
        root.write("bin/busybox", &busybox);
        let list = std::process::Command::new("/bin/busybox").arg("--list").output().expect("busybox --list");
        for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
            symlink("busybox", root.path("bin").join(applet)).expect("symlink");
        }
        root.write("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n");
        root.write("etc/group", b"root:x:0:\nwww:x:34:\nlog:x:4:web\n");
        root
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Writes an executable file.
    pub fn write(&self, below: &str, bytes: &[u8]) {
        fs::write(self.path(below), bytes).expect("write");
        fs::set_permissions(self.path(below), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    }

    pub fn open(&self) -> Rootfs {
        let dir = File::open(self.dir.path()).expect("the root").into();
        Rootfs { dir, path: self.dir.path().to_path_buf(), read_only: false }
    }

    /// Runs a shell script to its end.
    pub fn sh(&self, script: &str) -> Outcome {
        self.run(shell(script))
    }

    pub fn run(&self, spec: Spec) -> Outcome {
        self.spawn(spec).finish()
    }

    /// Starts a supervisor with standard input from /dev/null, output and errors to pipes.
    pub fn spawn(&self, spec: Spec) -> Supervisor {
        self.spawn_on(spec, None)
    }

    /// Starts a supervisor; with `stdio` that is its standard input and output.
    pub fn spawn_on(&self, spec: Spec, stdio: Option<OwnedFd>) -> Supervisor {
        let id = unique_id();
        let (stdout, childs_stdout) = nix::unistd::pipe().expect("pipe");
        let (stderr, childs_stderr) = nix::unistd::pipe().expect("pipe");
        let (report, childs_report) = nix::unistd::pipe().expect("pipe");
        let null = File::open("/dev/null").expect("/dev/null");
        let rootfs = self.open();
        // SAFETY: the child has one thread, allocates with a malloc that glibc makes usable after fork, takes no lock
        // that another thread could hold, and leaves by _exit.
        #[expect(unsafe_code, reason = "the library needs a process with one thread")]
        match unsafe { nix::unistd::fork() }.expect("fork") {
            ForkResult::Child => {
                drop((stdout, stderr, report));
                let _ = std::panic::catch_unwind(AssertUnwindSafe(|| {
                    match &stdio {
                        None => {
                            nix::unistd::dup2_stdin(&null).expect("dup2");
                            nix::unistd::dup2_stdout(&childs_stdout).expect("dup2");
                        }
                        Some(terminal) => {
                            nix::unistd::dup2_stdin(terminal).expect("dup2");
                            nix::unistd::dup2_stdout(terminal).expect("dup2");
                        }
                    }
                    nix::unistd::dup2_stderr(&childs_stderr).expect("dup2");
                    drop((childs_stdout, childs_stderr, stdio));
                    close_all_but(&[childs_report.as_raw_fd(), rootfs.dir.as_raw_fd()]);
                    let exit = supervise(&spec, rootfs, &id, self.unified_only, &childs_report);
                    let mut report = File::from(childs_report);
                    report.write_all(format!("end {}\n", encode(&exit)).as_bytes()).expect("report");
                }));
                exit_now()
            }
            ForkResult::Parent { child } => {
                drop((childs_stdout, childs_stderr, childs_report, stdio));
                Supervisor { pid: child, id, stdout: stdout.into(), stderr: stderr.into(), report: report.into() }
            }
        }
    }
}

pub fn shell(script: &str) -> Spec {
    Spec {
        args: ["/bin/sh", "-c", script].map(String::from).to_vec(),
        env: vec!["PATH=/bin".into()],
        hostname: "box".into(),
        ..Spec::default()
    }
}

/// The first user and group of the host that are a sandbox's.
pub const FIRST_ID: u32 = 1 << 30;

fn leased() -> Maps {
    Maps::range(FIRST_ID, FIRST_ID)
}

/// The plan that a spec leads to on this host.
pub fn plan_of(root: &Root, spec: &Spec) -> Plan {
    let facts = Facts::gather(spec, &root.open(), "planned", Some(&leased()), None, None).expect("facts");
    sandbox::plan(spec, &facts).expect("a plan")
}

fn supervise(spec: &Spec, rootfs: Rootfs, id: &str, unified_only: bool, report: &OwnedFd) -> Result<Exit> {
    let mut facts = Facts::gather(spec, &rootfs, id, Some(&leased()), None, None)?;
    if unified_only {
        facts.hierarchies.retain(|h| h.unified);
    }
    let plan = sandbox::plan(spec, &facts)?;
    let running = sandbox::start(&plan, None, None, |_| Ok(rootfs), None)?;
    nix::unistd::write(report, format!("pid {}\n", running.pid()).as_bytes()).expect("report");
    running.supervise()
}

fn encode(exit: &Result<Exit>) -> String {
    match exit {
        Ok(exit @ Exit { status: Status::Code(code), .. }) => format!("code {code} {}", limits_reached(exit)),
        Ok(exit @ Exit { status: Status::Signal(signal), .. }) => format!("signal {signal} {}", limits_reached(exit)),
        Err(e) => format!("error {} {:?} {e}", e.exit_status().max(125), e.kind()),
    }
}

fn limits_reached(exit: &Exit) -> String {
    format!("{}{}", exit.oom_killed, if exit.pids_limited { " pids" } else { "" })
}

/// The forked child has the descriptors of every test that runs: a socket that its test closes would stay open.
fn close_all_but(kept: &[RawFd]) {
    let open: Vec<RawFd> = fs::read_dir("/proc/self/fd")
        .expect("descriptors")
        .filter_map(|entry| entry.expect("an entry").file_name().to_str()?.parse().ok())
        .collect();
    for fd in open.into_iter().filter(|fd| *fd > 2 && !kept.contains(fd)) {
        // SAFETY: their owners are in frames that this process never returns to.
        #[expect(unsafe_code, reason = "descriptors by number")]
        unsafe {
            libc::close(fd);
        }
    }
}

fn exit_now() -> ! {
    // SAFETY: _exit touches no memory.
    #[expect(unsafe_code, reason = "a forked test must not run the harness's exit handlers")]
    unsafe {
        libc::_exit(0)
    }
}

fn unique_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// A running supervisor.
pub struct Supervisor {
    pub pid: Pid,
    pub id: String,
    pub stdout: File,
    pub stderr: File,
    pub report: File,
}

/// What came of a sandbox.
#[derive(Debug)]
pub struct Outcome {
    pub stdout: String,
    pub stderr: String,
    /// `code N OOM`, `signal N OOM`, each with ` pids` behind it where the limit of processes was reached, or `error STATUS KIND TEXT`.
    pub end: String,
}

impl Outcome {
    /// Standard output of a command that succeeded.
    pub fn output(&self) -> &str {
        assert_eq!(self.end, "code 0 false", "{self:#?}");
        self.stdout.trim_end()
    }

    pub fn lines(&self) -> Vec<&str> {
        self.output().lines().collect()
    }
}

impl Supervisor {
    pub fn signal(&self, signal: Signal) {
        kill(self.pid, signal).expect("kill");
    }

    /// Until it has taken the signal: of one kind, no two can be pending (signal(7)).
    pub fn signal_and_wait(&self, signal: Signal) {
        self.signal(signal);
        eventually("it takes the signal", || {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).expect("a process");
            let masks = status.lines().filter(|line| line.starts_with("SigPnd:") || line.starts_with("ShdPnd:"));
            masks.filter_map(|line| line.split_whitespace().nth(1)).all(|mask| mask.bytes().all(|digit| digit == b'0'))
        });
    }

    /// The process id of PID 1 on the host, once the command runs.
    pub fn container_pid(&mut self) -> i32 {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.report.read(&mut byte).expect("report") == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        let line = String::from_utf8(line).expect("utf-8");
        line.strip_prefix("pid ").unwrap_or_else(|| panic!("no pid: {line:?}")).parse().expect("a pid")
    }

    /// Reads standard output until `text` was in it.
    pub fn wait_for(&mut self, text: &str) {
        wait_for(&mut self.stdout, text);
    }

    /// Waits for the end, and for everything to be gone with it.
    pub fn finish(mut self) -> Outcome {
        let (mut stdout, mut stderr, mut report) = (Vec::new(), Vec::new(), String::new());
        std::thread::scope(|s| {
            s.spawn(|| self.stderr.read_to_end(&mut stderr).expect("stderr"));
            s.spawn(|| self.stdout.read_to_end(&mut stdout).expect("stdout"));
            self.report.read_to_string(&mut report).expect("report");
        });
        let status = waitpid(self.pid, None).expect("waitpid");
        assert!(matches!(status, WaitStatus::Exited(..)), "{status:?}");
        assert_eq!(cgroups_of(&self.id), Vec::<PathBuf>::new(), "cgroups are left");
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let end = report.lines().find_map(|l| l.strip_prefix("end ")).unwrap_or_default().to_string();
        Outcome { stdout: text(stdout), stderr: text(stderr), end }
    }
}

/// Reads until `text` was seen; fails after a while.
pub fn wait_for(file: &mut File, text: &str) -> String {
    let mut seen = Vec::new();
    let mut byte = [0];
    // Looked at after each byte: it can only be at the end.
    while !seen.ends_with(text.as_bytes()) {
        assert!(
            file.read(&mut byte).expect("read") == 1,
            "the end before {text:?}: {:?}",
            String::from_utf8_lossy(&seen)
        );
        seen.push(byte[0]);
    }
    String::from_utf8_lossy(&seen).into_owned()
}

/// Until `condition` holds; fails after two minutes.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "not within two minutes: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The sandbox's cgroups, in whichever hierarchy.
pub fn cgroups_of(id: &str) -> Vec<PathBuf> {
    let base = Path::new("/sys/fs/cgroup");
    let mut parents = vec![base.to_path_buf()];
    parents.extend(fs::read_dir(base).expect("cgroups").map(|e| e.expect("an entry").path()));
    parents.into_iter().map(|p| p.join("tupper").join(id)).filter(|p| p.exists()).collect()
}
