//! `tupper healthcheck`, and the flags of run and create that say what it does.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand, ValueEnum};
use jiff::SignedDuration;
use serde_json::{Value, json};
use tupper::container::{self, Health, HealthOptions};
use tupper::sandbox::HealthCheck;

use super::output;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run a container's health check once: the status is 0 if it passes, else 1
    Run(Run),
}

#[derive(Debug, Args)]
pub(super) struct Run {
    /// A running container, by name or id
    #[arg(value_name = "CONTAINER")]
    container: String,
}

impl Verb {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let Verb::Run(verb) = self;
        let (checked, _) = container::check_health(&super::open_existing(root)?, &verb.container)?;
        if checked.status == 0 {
            return Ok(ExitCode::SUCCESS);
        }
        output::line("unhealthy")?;
        Ok(ExitCode::FAILURE)
    }
}

/// podman-run(1), `--health-cmd` and those beside it.
#[derive(Debug, Default, Args)]
pub(super) struct HealthFlags {
    /// Tell by this command whether it is well: a line for its shell, or a JSON array; none: do not
    #[arg(long, value_name = "COMMAND", conflicts_with = "no_healthcheck")]
    health_cmd: Option<String>,
    /// From one check to the next, as 90s or 1m30s [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_interval: Option<Duration>,
    /// A check that takes longer has failed [default: the image's, or 30s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_timeout: Option<Duration>,
    /// So long after the start a failure says nothing [default: the image's, or 0s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    health_start_period: Option<Duration>,
    /// So many failures in a row mean that it is not well [default: the image's, or 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    health_retries: Option<u32>,
    /// What becomes of it when it is not well; --restart starts one again that was killed
    #[arg(long, value_name = "ACTION", default_value = "none")]
    health_on_failure: Action,
    /// Run no health check, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
enum Action {
    /// Nothing.
    #[default]
    None,
    /// It is killed.
    Kill,
}

impl HealthFlags {
    pub(super) fn options(&self) -> Result<HealthOptions> {
        let command = self.health_cmd.as_deref();
        let none = self.no_healthcheck || command == Some("none");
        let words = |line: &str| -> Result<Vec<String>> {
            if !line.trim_start().starts_with('[') {
                return Ok(container::in_shell(line));
            }
            let words: Vec<String> = serde_json::from_str(line)?;
            let Some(first) = words.first() else { bail!("no command") };
            Ok(if first == "CMD" { words[1..].to_vec() } else { words })
        };
        let args = command.filter(|_| !none).map(words).transpose().map_err(|e| anyhow!("--health-cmd: {e}"))?;
        if args.as_ref().is_some_and(|args| args.first().is_none_or(String::is_empty)) {
            bail!("--health-cmd: no command");
        }
        Ok(HealthOptions {
            none,
            args,
            interval: self.health_interval,
            timeout: self.health_timeout,
            start_period: self.health_start_period,
            retries: self.health_retries,
            kills: self.health_on_failure == Action::Kill,
        })
    }
}

/// A time from one moment to another.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let found: SignedDuration = text.parse().map_err(|_| anyhow!("not a time like 30s or 1m30s"))?;
    Duration::try_from(found).map_err(|_| anyhow!("less than nothing"))
}

/// podman-inspect(1), `.State.Health`.
pub(super) fn state(health: &Health) -> Value {
    let check = |check: &container::Checked| {
        json!({
            "Start": check.begun.to_string(),
            "End": check.ended.to_string(),
            "ExitCode": check.status,
            "Output": check.output,
        })
    };
    json!({
        "Status": health.condition.as_str(),
        "FailingStreak": health.streak,
        "Log": health.checks.iter().map(check).collect::<Vec<_>>(),
    })
}

/// podman-inspect(1), `.Config.Healthcheck`: nanoseconds.
pub(super) fn config(check: &HealthCheck) -> Value {
    let words: Vec<&str> = ["CMD"].into_iter().chain(check.args.iter().map(String::as_str)).collect();
    json!({
        "Test": words,
        "Interval": nanoseconds(check.interval),
        "Timeout": nanoseconds(check.timeout),
        "StartPeriod": nanoseconds(check.start_period),
        "Retries": check.retries,
        "OnFailure": if check.kills { "kill" } else { "none" },
    })
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_and_times_as_podman_takes_them() {
        let args = |text: &str| HealthFlags { health_cmd: Some(text.to_string()), ..HealthFlags::default() }.options();
        assert_eq!(args("curl -f x || exit 1").expect("a line").args.expect("one")[2], "curl -f x || exit 1");
        assert_eq!(args(r#"["CMD", "true"]"#).expect("words").args.expect("one"), ["true"]);
        assert_eq!(args(r#"["true", "x"]"#).expect("words").args.expect("one"), ["true", "x"]);
        let none = args("none").expect("none");
        assert!(none.none && none.args.is_none());
        for wrong in ["[", "[]", "[1]", r#"["CMD"]"#, r#"[""]"#] {
            args(wrong).expect_err(wrong);
        }
        assert_eq!(duration("1m30s").expect("a time"), Duration::from_secs(90));
        for wrong in ["", "30", "-1s", "a"] {
            duration(wrong).expect_err(wrong);
        }
    }
}
