//! Whether a container is well: a command in it tells (podman-healthcheck(1)).
//!
//! Its [monitor](super::monitor) runs the verb that a person can run, again and again, as a process of its own: a check
//! that hangs holds up nobody else. What came of the last ones is kept where what runs is noted, and ends with that.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::State;
use super::exec::{Exec, enter_found};
use super::stop::kill_process;
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::process::{self, Polled};
use crate::kernel::tty::{self, Transfer};
use crate::kernel::{fs, signal};
use crate::sandbox::{self, HealthCheck, Streams, Supervised};
use crate::store::{Running, Store};

/// docker's image specification 1.2, "Healthcheck": what 0, or nothing, means.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const RETRIES: u32 = 3;

/// What is kept of the output of a check, in bytes, and of how many checks, as docker keeps it.
const MOST_OUTPUT: usize = 4096;
const MOST_CHECKS: usize = 5;

/// What a person asks of a health check. `None` means: as the image says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HealthOptions {
    /// There is to be none.
    pub none: bool,
    /// The command and its arguments.
    pub args: Option<Vec<String>>,
    /// From one check to the next.
    pub interval: Option<Duration>,
    /// A check that takes longer has failed.
    pub timeout: Option<Duration>,
    /// So long after the start a failure says nothing.
    pub start_period: Option<Duration>,
    /// So many failures in a row mean that it is not well.
    pub retries: Option<u32>,
    /// It is killed then.
    pub kills: bool,
}

/// docker's image specification 1.2, "Healthcheck": durations in nanoseconds.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Declared {
    test: Option<Vec<String>>,
    interval: u64,
    timeout: u64,
    start_period: u64,
    retries: u32,
}

/// What people and the image say together.
pub(super) fn decide(options: &HealthOptions, image: Option<&serde_json::Value>) -> Result<Option<HealthCheck>> {
    if options.none {
        return Ok(None);
    }
    let declared = image.filter(|value| !value.is_null()).map(Declared::deserialize).transpose().map_err(|e| {
        let error = Error::new(Kind::Invalid, format!("the image's health check: {e}"));
        error.with_hint("--no-healthcheck does without")
    })?;
    let declared = declared.unwrap_or_default();
    let test: Vec<&str> = declared.test.iter().flatten().map(String::as_str).collect();
    let of_image = match test.as_slice() {
        ["CMD", args @ ..] if !args.is_empty() => Some(args.iter().map(ToString::to_string).collect()),
        ["CMD-SHELL", line] => Some(in_shell(line)),
        // NONE, or nothing, or what only a newer docker knows.
        _ => None,
    };
    let Some(args) = options.args.clone().or(of_image) else { return Ok(None) };
    let or = |nanoseconds, default| if nanoseconds == 0 { default } else { Duration::from_nanos(nanoseconds) };
    Ok(Some(HealthCheck {
        args,
        interval: options.interval.unwrap_or(or(declared.interval, INTERVAL)),
        timeout: options.timeout.unwrap_or(or(declared.timeout, TIMEOUT)),
        start_period: options.start_period.unwrap_or(Duration::from_nanos(declared.start_period)),
        retries: options.retries.unwrap_or(if declared.retries == 0 { RETRIES } else { declared.retries }),
        kills: options.kills,
    }))
}

/// The command that runs a line in the container's shell.
pub fn in_shell(line: &str) -> Vec<String> {
    ["/bin/sh", "-c", line].map(str::to_string).to_vec()
}

/// docker's words for how a container is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Condition {
    /// It has not been well yet, nor failed too often.
    #[default]
    Starting,
    /// The last check that says something said so.
    Healthy,
    /// Too many checks failed, one after the other.
    Unhealthy,
}

impl Condition {
    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            Condition::Starting => "starting",
            Condition::Healthy => "healthy",
            Condition::Unhealthy => "unhealthy",
        }
    }
}

/// How a running container is, and what came of the last checks.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Health {
    /// In a word.
    pub condition: Condition,
    /// How many checks in a row have failed.
    pub streak: u32,
    /// The last ones, oldest first.
    pub checks: Vec<Checked>,
}

/// What came of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// When it began.
    pub begun: Timestamp,
    /// When it ended.
    pub ended: Timestamp,
    /// The command's exit status; -1 when it took too long.
    pub status: i32,
    /// The beginning of what it wrote.
    pub output: String,
}

impl Health {
    /// How a container that was started at `started` is after another check.
    fn after(mut self, check: &HealthCheck, started: Timestamp, checked: Checked) -> Health {
        let period = SignedDuration::try_from(check.start_period).unwrap_or(SignedDuration::MAX);
        let settling = self.condition == Condition::Starting && checked.begun.duration_since(started) < period;
        if checked.status == 0 {
            self.streak = 0;
            self.condition = Condition::Healthy;
        } else if !settling {
            self.streak = self.streak.saturating_add(1);
            if self.streak >= check.retries {
                self.condition = Condition::Unhealthy;
            }
        }
        self.checks.push(checked);
        self.checks.drain(..self.checks.len().saturating_sub(MOST_CHECKS));
        self
    }
}

/// Runs a container's health check once. Returns what came of it, and how the container is after it.
///
/// # Errors
/// A container that does not run, is paused, or has no check ([`Kind::Invalid`]).
pub fn check_health(store: &Store, text: &str) -> Result<(Checked, Health)> {
    let doing = || format!("check the health of container {text}");
    let container = super::find(store, text)?;
    let invalid = |message: &str| Error::new(Kind::Invalid, message);
    let check = container.spec.health.as_ref().ok_or_else(|| {
        invalid("it has no health check").with_hint("its image can declare one, or `create --health-cmd`")
    });
    let check = check.context(doing)?;
    let running = match &container.state {
        State::Running(_) if container.paused => return Err(invalid("it is paused")).context(doing),
        State::Running(running) => running,
        _ => return Err(invalid("it does not run")).context(doing),
    };
    let checked = probe(store, &container, check, running).context(doing)?;
    let after = |before: Option<Health>| before.unwrap_or_default().after(check, running.started, checked.clone());
    let health = store.note_health(&container.id, after).context(doing)?;
    if check.kills && health.condition == Condition::Unhealthy {
        kill_process(store, &container.id, running).context(doing)?;
    }
    Ok((checked, health))
}

fn probe(store: &Store, container: &super::Container, check: &HealthCheck, running: &Running) -> Result<Checked> {
    let exec = Exec { args: check.args.clone(), ..Exec::default() };
    let begun = Timestamp::now();
    let (output, childs) = process::pipe()?;
    tty::set_nonblocking(output.as_fd())?;
    let streams = Streams { input: None, error: fs::duplicate(childs.as_fd())?, output: childs };
    let entered = enter_found(store, &container.id, &container.spec, running, &exec, false, Some(streams), None);
    let (status, output) = match entered {
        Ok(entered) => watch(entered, output.as_fd(), check.timeout)?,
        Err(e) if matches!(e.kind(), Kind::CommandNotFound | Kind::NotExecutable) => {
            (i32::from(e.exit_status()), e.to_string())
        }
        Err(e) => return Err(e),
    };
    Ok(Checked { begun, ended: Timestamp::now(), status, output })
}

/// The command's exit status and the beginning of its output. One that takes too long is killed.
fn watch(entered: sandbox::Running, output: std::os::fd::BorrowedFd<'_>, timeout: Duration) -> Result<(i32, String)> {
    let mut sandbox = Supervised::new(entered);
    let end = Instant::now() + timeout;
    let mut text = Vec::new();
    let mut open = true;
    while !sandbox.has_ended() {
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok((-1, format!("the health check took longer than {timeout:?}")));
        }
        let [process, signals, memory, pids] = sandbox.wants();
        let written = open.then_some((output, Polled::READ));
        // Rounded up, so that the last of it is not waited for in a loop.
        let pause = u16::try_from(left.as_millis() + 1).unwrap_or(u16::MAX);
        let ready = process::poll([process, signals, memory, pids, written], Some(pause))?;
        let [of_sandbox @ .., written] = ready;
        if written.any() {
            open = read(output, &mut text)? != Transfer::End;
        }
        while let Some(number) = sandbox.next_signal()? {
            sandbox.signal(if signal::is_termination(number) { signal::SIGKILL } else { number })?;
        }
        sandbox.run(of_sandbox)?;
    }
    // Something that it left behind may have the pipe still, and write to it for ever.
    while text.len() < MOST_OUTPUT && read(output, &mut text)? == Transfer::Moved {}
    Ok((i32::from(sandbox.exit().code()), String::from_utf8_lossy(&text).into_owned()))
}

/// Everything is read, and the beginning of it is kept.
fn read(output: std::os::fd::BorrowedFd<'_>, text: &mut Vec<u8>) -> Result<Transfer> {
    let transfer = tty::read(output, text)?;
    text.truncate(MOST_OUTPUT);
    Ok(transfer)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn image_and_flags_together() {
        let none = HealthOptions::default();
        let image = json!({ "Test": ["CMD-SHELL", "curl localhost"], "Interval": 5_000_000_000_u64, "Retries": 2 });
        let check = decide(&none, Some(&image)).expect("valid").expect("one");
        assert_eq!(check.args, ["/bin/sh", "-c", "curl localhost"]);
        assert_eq!((check.interval, check.timeout, check.retries), (Duration::from_secs(5), TIMEOUT, 2));
        let flags = HealthOptions { timeout: Some(Duration::from_secs(1)), retries: Some(7), ..none.clone() };
        let check = decide(&flags, Some(&image)).expect("valid").expect("one");
        assert_eq!((check.interval, check.timeout, check.retries), (Duration::from_secs(5), Duration::from_secs(1), 7));
        assert!(decide(&flags, None).expect("valid").is_none(), "there is nothing to run");
        for (test, args) in [
            (json!({ "Test": ["CMD", "true"] }), Some(vec!["true".to_string()])),
            (json!({ "Test": ["NONE"] }), None),
            (json!({ "Test": [] }), None),
            (json!({ "Test": ["CMD"] }), None),
            (json!(null), None),
            (json!({}), None),
        ] {
            assert_eq!(decide(&none, Some(&test)).expect("valid").map(|check| check.args), args, "{test}");
        }
        let bad = json!({ "Test": "true" });
        assert!(decide(&none, Some(&bad)).expect_err("no list").to_string().contains("the image's health check"));
        assert!(decide(&HealthOptions { none: true, ..none }, Some(&bad)).expect("not looked at").is_none());
    }

    #[test]
    fn a_condition_follows_from_checks() {
        let check = HealthCheck {
            args: vec!["true".to_string()],
            interval: INTERVAL,
            timeout: TIMEOUT,
            start_period: Duration::from_secs(60),
            retries: 2,
            kills: false,
        };
        let started = Timestamp::from_second(1000).expect("a time");
        let mut health = Health::default();
        for (second, status, condition, streak) in [
            (10, 1, Condition::Starting, 0),
            (59, 1, Condition::Starting, 0),
            (60, 1, Condition::Starting, 1),
            (90, -1, Condition::Unhealthy, 2),
            (120, 0, Condition::Healthy, 0),
            (150, 1, Condition::Healthy, 1),
            (180, 1, Condition::Unhealthy, 2),
        ] {
            let at = Timestamp::from_second(1000 + second).expect("a time");
            health = health.after(&check, started, Checked { begun: at, ended: at, status, output: String::new() });
            assert_eq!((health.condition, health.streak), (condition, streak), "at {second}");
        }
        assert_eq!(health.checks.len(), MOST_CHECKS);
        // Once it was well, a failure counts, however early.
        let at = Timestamp::from_second(1001).expect("a time");
        let well = Health { condition: Condition::Healthy, ..Health::default() };
        let health = well.after(&check, started, Checked { begun: at, ended: at, status: 1, output: String::new() });
        assert_eq!(health.streak, 1);
    }
}
