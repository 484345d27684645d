//! A terminal of the test's own: a command on it, what is typed, what appears, its size.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::termios::{self, Termios};

use super::command;
use super::sh;

const LIMIT: Duration = Duration::from_secs(120);

/// A command whose standard streams and controlling terminal are one pty.
pub struct Pty {
    master: File,
    slave: OwnedFd,
    child: Option<Child>,
    seen: String,
    /// Up to where [`Pty::expect`] has matched.
    matched: usize,
}

impl Pty {
    /// Starts the command on a new terminal of 24 lines and 80 columns.
    pub fn spawn(command: &Command) -> Pty {
        let size = nix::pty::Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).expect("a pty");
        // setsid(1) makes the terminal the controlling one of a session of its own, without a line of unsafe here.
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        session.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?)))).env("TERM", "xterm");
        let dup = || pty.slave.try_clone().expect("dup");
        let child = session.stdin(dup()).stdout(dup()).stderr(dup()).spawn().expect("setsid");
        Pty { master: pty.master.into(), slave: pty.slave, child: Some(child), seen: String::new(), matched: 0 }
    }

    /// The terminal's settings now.
    pub fn settings(&self) -> Termios {
        termios::tcgetattr(&self.slave).expect("tcgetattr")
    }

    pub fn send(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("type");
    }

    /// Waits until `text` appears after what was last expected; returns what came before it.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.seen[self.matched..].find(text) {
                let before = self.seen[self.matched..self.matched + at].to_string();
                self.matched += at + text.len();
                return before;
            }
            assert!(Instant::now() < end, "{text:?} did not appear in: {:?}", &self.seen[self.matched..]);
            self.read_some();
        }
    }

    /// Changes the terminal's size; the kernel tells its foreground processes.
    pub fn resize(&self, rows: u16, columns: u16) {
        let tty = nix::unistd::ttyname(&self.slave).expect("ttyname");
        sh("stty", &["-F", tty.to_str().expect("plain"), "rows", &rows.to_string(), "cols", &columns.to_string()]);
    }

    /// The process that was started on the terminal.
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("not yet waited for").id()
    }

    /// Waits for the command's end; its status and everything that appeared.
    pub fn wait(&mut self) -> (i32, String) {
        let status = command::wait(self.child.take().expect("waited for once"), "a command on a pty");
        while self.read_some() {}
        (status, self.seen.clone())
    }

    /// Reads what is there within a moment; false when nothing came.
    fn read_some(&mut self) -> bool {
        let mut ready = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
        if nix::poll::poll(&mut ready, PollTimeout::from(50u8)).expect("poll") == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        // EIO: the other end is closed everywhere (tty_ioctl, drivers/tty/pty.c).
        let read = self.master.read(&mut bytes).unwrap_or(0);
        self.seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
        read > 0
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // setsid --wait is the parent of the command, whose terminal goes away with this value: SIGHUP ends it.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
