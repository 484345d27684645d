//! The binary under test: run with a store of the test's choice, its output captured, its failures readable.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// No command of a test takes longer; one that hangs is killed and fails its test.
const LIMIT: Duration = Duration::from_secs(300);

/// Runs `tupper --root ROOT …`.
#[derive(Clone)]
pub struct Tupper {
    root: PathBuf,
    environment: Vec<(OsString, OsString)>,
    /// The network namespace that it runs in, if that is not the test's.
    host: Option<PathBuf>,
}

/// What a finished command left: its status and output.
#[derive(Debug)]
pub struct Done {
    command: String,
    /// The exit status; 128 + N when signal N ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Tupper {
    pub fn new(root: impl Into<PathBuf>) -> Tupper {
        // What is made ready for the next would be seen as left behind.
        let environment = [("TUPPER_NETWORK", "none"), ("TUPPER_POOL", "off"), ("TUPPER_PULL", "never")];
        let environment = environment.map(|(name, value)| (name.into(), value.into())).to_vec();
        Tupper { root: root.into(), environment, host: None }
    }

    /// Where its store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The same with a variable set.
    pub fn with_env(mut self, name: &str, value: impl Into<OsString>) -> Tupper {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// The same on a host with a network of its own, and with the network that containers have by default.
    pub fn on_host(mut self, namespace: impl Into<PathBuf>) -> Tupper {
        self.environment.retain(|(name, _)| name != "TUPPER_NETWORK");
        self.host = Some(namespace.into());
        self
    }

    /// The command itself: the words of `line`, then `more` as it is.
    pub fn command(&self, line: &str, more: &[&str]) -> Command {
        let binary = env!("CARGO_BIN_EXE_tupper");
        let mut command = match &self.host {
            None => Command::new(binary),
            Some(namespace) => {
                let mut command = Command::new("nsenter");
                command.arg(format!("--net={}", namespace.display())).arg(binary);
                command
            }
        };
        command.arg("--root").arg(&self.root).args(line.split_whitespace()).args(more).stdin(Stdio::null());
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"TUPPER_")) {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs the words of `line`.
    pub fn run(&self, line: &str) -> Done {
        finish(self.command(line, &[]))
    }

    /// Runs the words of `line` and then `more`, which may hold spaces.
    pub fn run_with(&self, line: &str, more: &[&str]) -> Done {
        finish(self.command(line, more))
    }

    /// Runs it with a file as standard input.
    pub fn run_reading(&self, line: &str, input: File) -> Done {
        let mut command = self.command(line, &[]);
        command.stdin(input);
        finish(command)
    }

    /// What it printed, trimmed; it has to succeed.
    pub fn ok(&self, line: &str) -> String {
        self.run(line).ok()
    }

    /// [`Tupper::ok`] with arguments that hold spaces.
    pub fn ok_with(&self, line: &str, more: &[&str]) -> String {
        self.run_with(line, more).ok()
    }

    /// What it printed as lines.
    pub fn lines(&self, line: &str) -> Vec<String> {
        self.ok(line).lines().map(str::to_string).collect()
    }

    /// What it printed as JSON.
    pub fn json(&self, line: &str) -> serde_json::Value {
        let text = self.ok(line);
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{line}: {e}: {text}"))
    }

    /// The process that runs a container.
    pub fn monitor(&self, container: &str) -> nix::unistd::Pid {
        let first = self.json(&format!("inspect {container}"))[0]["State"]["Pid"].as_i64().expect("a pid");
        let status = std::fs::read_to_string(format!("/proc/{first}/status")).expect("a running container");
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).expect("a parent");
        nix::unistd::Pid::from_raw(parent.trim().parse().expect("a number"))
    }

    /// The error line of a run that has to fail with this status.
    pub fn fails(&self, status: i32, line: &str) -> String {
        self.run(line).fails(status)
    }
}

impl Done {
    /// What a command left that ran beside the test, its output in files.
    pub fn of(command: String, status: i32, out: File, err: File) -> Done {
        Done { command, status, stdout: read(out), stderr: read(err) }
    }

    /// What it printed, trimmed; it has to have succeeded.
    pub fn ok(self) -> String {
        assert_eq!(self.status, 0, "failed: {self}");
        self.stdout.trim_end().to_string()
    }

    /// It has to have failed with this status and in the form that every error has: one line `tupper: error: …`, at most one
    /// more, `hint: …`, and nothing on standard output. Returns both lines.
    pub fn fails(self, status: i32) -> String {
        assert_eq!(self.status, status, "another status: {self}");
        assert_eq!(self.stdout, "", "output of a failed command: {self}");
        let lines: Vec<&str> = self.stderr.lines().collect();
        let form = match lines[..] {
            [error] => error.starts_with("tupper: error: "),
            [error, hint] => error.starts_with("tupper: error: ") && hint.starts_with("hint: "),
            _ => false,
        };
        assert!(form, "not one error line and perhaps a hint: {self}");
        self.stderr.trim_end().to_string()
    }

    /// It has to have ended with this status, whatever it printed.
    #[track_caller]
    pub fn status(self, status: i32) -> Done {
        assert_eq!(self.status, status, "another status: {self}");
        self
    }
}

impl std::fmt::Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Done { command, status, stdout, stderr } = self;
        write!(f, "{command}\n  status {status}\n--- stdout\n{stdout}--- stderr\n{stderr}---")
    }
}

/// Runs it to its end. Its output goes to files: what it leaves running cannot keep the test waiting at a pipe.
pub fn finish(mut command: Command) -> Done {
    let (out, err) = (tempfile::tempfile().expect("a file"), tempfile::tempfile().expect("a file"));
    command.stdout(out.try_clone().expect("dup")).stderr(err.try_clone().expect("dup"));
    let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let status = wait(child, &format!("{command:?}"));
    Done::of(format!("{command:?}"), status, out, err)
}

/// Waits for a child, at most [`LIMIT`]; its status as a shell gives it.
pub fn wait(mut child: Child, what: &str) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    let end = Instant::now() + LIMIT;
    loop {
        if let Some(status) = child.try_wait().expect("wait for a child") {
            return status.code().unwrap_or_else(|| 128 + status.signal().expect("ended by a signal"));
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("still running after {LIMIT:?}: {what}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn read(mut file: File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("read the output");
    String::from_utf8_lossy(&bytes).into_owned()
}
