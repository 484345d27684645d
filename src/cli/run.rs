//! `tupper run`, `create` and `shell`: one set of flags.

use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use tupper::container::{self, Options};
use tupper::error::{Error, Kind};
use tupper::image;
use tupper::name::ObjectName;
use tupper::sandbox::{self, Exit, LogDriver, Restart, Users};
use tupper::snapshot::{Keep, TIME_TO_LIVE};
use tupper::store::Store;

use super::attach::{Attaching, parted};
use super::flags::{Devices, Environment, Notes};
use super::mounts::Mounts;
use super::output;
use super::registry::Pulling;
use super::resources::{Manager, Resources};

/// The flags of run and create that say what the container is.
#[derive(Debug, Args)]
struct Flags {
    /// Give the command a terminal
    #[arg(long, short)]
    tty: bool,
    /// Let the command read standard input
    #[arg(long, short)]
    interactive: bool,
    /// Remove the container when its command ends; =on-success: what a failed one changed goes to the trash
    #[arg(
        long,
        value_name = "always|on-success",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        hide_possible_values = true
    )]
    rm: Option<Rm>,
    #[command(flatten)]
    after: After,
    #[command(flatten)]
    keeping: Keeping,
    #[command(flatten)]
    notes: Notes,
    /// The container's name
    #[arg(long)]
    name: Option<ObjectName>,
    #[command(flatten)]
    inside: Inside,
}

/// When a throwaway container leaves nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rm {
    /// Whatever its command's status is.
    Always,
    /// When that is 0.
    OnSuccess,
}

/// What becomes of what a throwaway container did.
#[derive(Debug, Default, Args)]
struct After {
    /// Keep what it did as a snapshot of this name
    #[arg(long, value_name = "NAME")]
    keep: Option<ObjectName>,
    /// How long --rm=on-success keeps what a failed one changed in the trash [default: 1h]
    #[arg(long, value_name = "DURATION", value_parser = super::health::duration)]
    ttl: Option<Duration>,
}

impl After {
    fn keep(self, rm: Option<Rm>) -> Result<Option<Keep>> {
        match (self.keep, rm) {
            (Some(_), None) => bail!("--keep goes with --rm: what stays is kept as it is"),
            (Some(_), Some(Rm::OnSuccess)) => bail!("--keep and --rm=on-success: one or the other"),
            _ if self.ttl.is_some() && rm != Some(Rm::OnSuccess) => bail!("--ttl goes with --rm=on-success"),
            (Some(name), Some(Rm::Always)) => Ok(Some(Keep::As(name))),
            (None, Some(Rm::OnSuccess)) => Ok(Some(Keep::IfFailed(self.ttl.unwrap_or(TIME_TO_LIVE)))),
            (None, _) => Ok(None),
        }
    }
}

/// What becomes of a container that stays.
#[derive(Debug, Default, Args)]
struct Keeping {
    /// Start the command again when it has ended
    #[arg(long, value_name = "no|on-failure[:N]|always|unless-stopped", value_parser = restart)]
    restart: Option<Restart>,
    /// Keep the output in a file, or not at all
    #[arg(long, value_name = "k8s-file|none", value_parser = ["k8s-file", "json-file", "none"], hide_possible_values = true)]
    log_driver: Option<String>,
    /// max-size=SIZE: the size at which a new file begins; the one before is kept [default: max-size=16m]
    #[arg(long, value_name = "K=V", value_parser = max_size)]
    log_opt: Option<u64>,
    #[command(flatten)]
    health: super::health::HealthFlags,
}

impl Keeping {
    fn log(&self) -> LogDriver {
        match self.log_driver.as_deref() {
            Some("none") => LogDriver::None,
            _ => LogDriver::K8sFile { max_size: self.log_opt.unwrap_or(LogDriver::MAX_SIZE) },
        }
    }
}

/// The flags that shell has, too.
#[derive(Debug, Args)]
struct Inside {
    #[command(flatten)]
    environment: Environment,
    #[command(flatten)]
    devices: Devices,
    /// The working directory inside
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Who runs the command
    #[arg(long, short, value_name = "NAME|UID[:GROUP|GID]")]
    user: Option<String>,
    /// The host name inside
    #[arg(long)]
    hostname: Option<String>,
    #[command(flatten)]
    mounts: Mounts,
    /// The root is read-only inside
    #[arg(long)]
    read_only: bool,
    /// Run a PID 1 that forwards signals and reaps, and the command below it
    #[arg(long)]
    init: bool,
    /// For --rm and shell: take a snapshot that is ready, have others made for the next, and do not wait for the tree to go
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        env = "TUPPER_POOL",
        hide_default_value = true,
        hide_env = true,
        hide_possible_values = true
    )]
    pool: Pool,
    #[command(flatten)]
    networking: super::networking::Networking,
    #[command(flatten)]
    users: super::users::UserFlags,
    /// Who makes the container's cgroup: tupper, or systemd as a scope in machine.slice
    #[arg(long, value_name = "cgroupfs|systemd", value_enum, default_value_t, hide_possible_values = true)]
    cgroup_manager: Manager,
    #[command(flatten)]
    security: super::security::SecurityFlags,
    #[command(flatten)]
    resources: Resources,
    /// Limit of what it may take of the disk, such as 10g, where simple quotas of btrfs are on
    #[arg(long, value_name = "SIZE", value_parser = bytes, help_heading = "Limits")]
    size_limit: Option<u64>,
}

/// Whether ready snapshots are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Pool {
    On,
    Off,
}

/// How steps are explained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Explain {
    /// Print each step as it is done.
    #[value(hide = true)]
    Run,
    /// Print the steps, and do nothing.
    Only,
}

#[derive(Debug, Args)]
struct Explaining {
    /// Print each step as it is done, with the command a person would type for it; =only: do nothing
    #[arg(long, value_name = "only", num_args = 0..=1, require_equals = true, default_missing_value = "run", hide_possible_values = true)]
    explain: Option<Explain>,
}

/// What to run where.
#[derive(Debug, Args)]
struct Command {
    /// Replace the image's entrypoint: a program, or a JSON list
    #[arg(long, value_name = "PROGRAM", value_parser = entrypoint)]
    entrypoint: Option<Entrypoint>,
    /// An image, a snapshot or a container, by name or id; or a subvolume beside the store, by its path: /srv/root, ./root
    #[arg(value_name = "IMAGE|SNAPSHOT")]
    source: String,
    /// The command and its arguments, instead of the image's
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

#[derive(Debug, Clone)]
struct Entrypoint(Vec<String>);

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper run --rm -it debian:12 bash")]
pub(super) struct Run {
    /// Leave it running in the background, and print its id
    #[arg(long, short)]
    detach: bool,
    /// Work in the snapshot itself, not in one made of it; it is in use for as long, and no container is there to be seen
    #[arg(long, conflicts_with_all = ["detach", "name", "keep", "ttl", "cidfile", "restart", "size_limit"])]
    in_place: bool,
    #[command(flatten)]
    attaching: Attaching,
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    explaining: Explaining,
    #[command(flatten)]
    command: Command,
    #[command(flatten)]
    pulling: Pulling,
}

impl Run {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let mut create = create(self.flags, self.command)?;
        if create.keep.is_some() && self.detach {
            bail!("--keep and --rm=on-success are for a container in the foreground");
        }
        if self.in_place {
            if create.keep.is_some() {
                bail!("--in-place and --rm=on-success: what it changes is in the snapshot already");
            }
            (create.in_place, create.auto_remove) = (true, true);
        }
        let throwaway = create.auto_remove && !self.detach;
        if throwaway || self.explaining.explain == Some(Explain::Only) {
            return run(root, create, self.pulling, self.explaining.explain);
        }
        let narrate: Option<container::Narrate<'_>> = self.explaining.explain.is_some().then_some(&narrate);
        let attachment = (!self.detach).then(|| self.attaching.attachment(create.options.interactive));
        let store = open(root, &mut create, self.pulling)?;
        let launched = container::launch(&store, &create, attachment, narrate)?;
        match self.detach {
            true => output::line(launched.id).map(|()| ExitCode::SUCCESS),
            false => parted(launched.follow(narrate)?),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Example: tupper create --name web debian:12 sleep 60, then tupper start -a web")]
pub(super) struct Create {
    #[command(flatten)]
    flags: Flags,
    #[command(flatten)]
    command: Command,
    #[command(flatten)]
    pulling: Pulling,
}

impl Create {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let mut create = create(self.flags, self.command)?;
        if create.keep.is_some() {
            bail!("--keep and --rm=on-success are for `run`, in the foreground");
        }
        let store = with_source(root, &mut create, self.pulling)?;
        output::line(container::create(&store, &create)?)
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper shell debian:12; tupper shell debian:12 apt-get --version")]
pub(super) struct Shell {
    /// =on-success: what it changed goes to the trash if it failed
    #[arg(
        long,
        value_name = "always|on-success",
        require_equals = true,
        default_value = "always",
        hide_possible_values = true
    )]
    rm: Rm,
    #[command(flatten)]
    after: After,
    #[command(flatten)]
    inside: Inside,
    #[command(flatten)]
    explaining: Explaining,
    #[command(flatten)]
    pulling: Pulling,
    /// An image or a snapshot, or the path of a subvolume; by default the only image, or the one used last
    #[arg(value_name = "IMAGE|SNAPSHOT")]
    source: Option<String>,
    /// A command instead of a shell
    #[arg(value_name = "CMD", trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

impl Shell {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let source = match self.source {
            Some(source) => source,
            None => default_image(&super::open_existing(root)?, "shell")?,
        };
        let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
        let mut inside = self.inside;
        // What is written elsewhere than in the throwaway outlives it, and with it the reasons for which it is synced.
        inside.security.suppress_sync.get_or_insert(!inside.mounts.are_written());
        let flags = Flags {
            tty: terminal,
            interactive: true,
            rm: Some(self.rm),
            after: self.after,
            keeping: Keeping::default(),
            notes: Notes::default(),
            name: None,
            inside,
        };
        // A login shell: bash where the image has it, else sh.
        let shell = "if [ -x /bin/bash ]; then exec /bin/bash -l; else exec /bin/sh -l; fi";
        let args = match self.args.is_empty() {
            true => ["/bin/sh", "-c", shell].map(str::to_string).to_vec(),
            false => self.args,
        };
        let command = Command { entrypoint: Some(Entrypoint(Vec::new())), source, args };
        run(root, create(flags, command)?, self.pulling, self.explaining.explain)
    }
}

/// The only image, or the one used last: what a verb takes that was told of none.
pub(super) fn default_image(store: &Store, verb: &str) -> Result<String> {
    let images = image::list(store)?;
    let id = match images.as_slice() {
        [] => {
            let error = Error::new(Kind::NotFound, format!("{verb}: no image in the store yet"));
            return Err(error.with_hint("`tupper image import` makes one").into());
        }
        [one] => Some(one.id),
        _ => store.last_image()?,
    };
    id.map(|id| format!("image:{id}")).ok_or_else(|| {
        Error::new(Kind::Invalid, format!("{verb}: several images, and none was used yet"))
            .with_hint("name one of `tupper image ls`")
            .into()
    })
}

fn create(flags: Flags, command: Command) -> Result<container::Create> {
    let inside = flags.inside;
    if flags.rm.is_some() && flags.keeping.restart.is_some_and(|restart| restart != Restart::No) {
        bail!("--rm and --restart: what goes at its end cannot be started again");
    }
    let term = std::env::var("TERM").ok();
    let (volumes, tmpfs) = inside.mounts.split()?;
    let chosen = inside.networking.chosen()?;
    Ok(container::Create {
        source: command.source,
        name: flags.name,
        auto_remove: flags.rm.is_some(),
        keep: flags.after.keep(flags.rm)?,
        in_place: false,
        warm: inside.pool == Pool::On,
        size_limit: inside.size_limit,
        id_file: flags.notes.cidfile.clone(),
        term,
        options: Options {
            args: command.args,
            entrypoint: command.entrypoint.map(|entrypoint| entrypoint.0),
            env: inside.environment.variables()?,
            workdir: inside.workdir,
            user: inside.user,
            hostname: inside.hostname,
            tty: flags.tty,
            interactive: flags.interactive,
            init: inside.init,
            read_only: inside.read_only,
            volumes,
            tmpfs,
            image_volumes: inside.mounts.image_volumes(),
            limits: inside.resources.limits()?,
            cgroup_manager: inside.cgroup_manager.into(),
            ports: inside.networking.ports(),
            publish_all: inside.networking.publish_all(),
            dns: inside.networking.dns(),
            hosts: inside.networking.hosts(),
            network: chosen.mode,
            network_of: chosen.of,
            users: inside.users.users(inside.security.privileged),
            security: inside.security.security()?,
            restart: flags.keeping.restart.unwrap_or_default(),
            log: flags.keeping.log(),
            stop_signal: flags.notes.stop_signal,
            stop_timeout: flags.notes.stop_timeout,
            shm_size: inside.devices.shm_size,
            labels: flags.notes.labels()?,
            devices: inside.devices.device,
            health: flags.keeping.health.options()?,
        },
    })
}

/// The store for a new container that is about to run.
fn open(root: &Path, create: &mut container::Create, pulling: Pulling) -> Result<Store> {
    if create.options.tty && create.options.interactive && !std::io::stdin().is_terminal() {
        log::warn!("the input device is not a terminal: -t and -i may not work together as expected");
    }
    if create.options.security.privileged && create.options.users == Users::Host {
        log::warn!("privileged: the container can do to this host whatever root can");
    }
    with_source(root, create, pulling)
}

/// The store with what the container is to be made of in it.
fn with_source(root: &Path, create: &mut container::Create, pulling: Pulling) -> Result<Store> {
    let store = pulling.provide(root, super::open(root)?, &mut create.source)?;
    super::to_make(super::existing(root, store)?)
}

fn run(root: &Path, mut create: container::Create, pulling: Pulling, explain: Option<Explain>) -> Result<ExitCode> {
    let only = explain == Some(Explain::Only);
    let store = open(root, &mut create, if only { pulling.never() } else { pulling })?;
    if only {
        container::explain(&store, &create, &narrate)?;
        return Ok(ExitCode::SUCCESS);
    }
    let narrate: Option<container::Narrate<'_>> = explain.is_some().then_some(&narrate);
    if create.in_place {
        return container::run_in_place(&store, &create, narrate).map(|exit| exit_code(&exit)).map_err(Into::into);
    }
    let gone = container::run(&store, &create, narrate)?;
    let status = exit_status(&gone.exit);
    gone.end_process(status);
    Ok(ExitCode::from(status))
}

/// One step a line: the command, and what it is for. As a shell's xtrace has it, a second plus is for the inner shell.
pub(super) fn narrate(shell: sandbox::Shell, words: &str, command: &str) {
    let plus = if shell == sandbox::Shell::Host { "+" } else { "++" };
    // Of one line, whatever the image calls its command: the next would be one that somebody types.
    let words = output::one_line(words);
    let _ = match command.starts_with('#') {
        true => output::note(format_args!("{plus} # {words}")), // nothing that a shell could do
        false => output::note(format_args!("{plus} {command}  # {words}")),
    };
}

/// The command's own status; 128+N when a signal ended it.
pub(super) fn exit_code(exit: &Exit) -> ExitCode {
    ExitCode::from(exit_status(exit))
}

fn exit_status(exit: &Exit) -> u8 {
    if exit.oom_killed {
        log::warn!("the memory limit was reached, and the kernel killed a process (-m sets the limit)");
    }
    if exit.pids_limited {
        log::warn!("the limit of processes was reached, and the kernel refused another (--pids-limit sets the limit)");
    }
    exit.code()
}

fn restart(text: &str) -> Result<Restart> {
    Ok(match text.split_once(':') {
        None => match text {
            "no" | "" => Restart::No,
            "on-failure" => Restart::OnFailure(0),
            "always" => Restart::Always,
            "unless-stopped" => Restart::UnlessStopped,
            _ => bail!("not no, on-failure[:N], always or unless-stopped"),
        },
        Some(("on-failure", most)) => Restart::OnFailure(most.parse().context("the number of times")?),
        Some(_) => bail!("only on-failure takes a number of times"),
    })
}

fn max_size(text: &str) -> Result<u64> {
    match text.split_once('=') {
        Some(("max-size", size)) => bytes(size),
        _ => bail!("not max-size=SIZE"),
    }
}

fn entrypoint(text: &str) -> Result<Entrypoint> {
    Ok(Entrypoint(match text.starts_with('[') {
        true => serde_json::from_str(text)?,
        false if text.is_empty() => Vec::new(),
        false => vec![text.to_string()],
    }))
}

/// Bytes with a unit in powers of 1024, as podman and docker read them.
pub(super) fn bytes(text: &str) -> Result<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        unit => bail!("unit {unit:?} is not b, k, m, g or t"),
    };
    let number: f64 = digits.parse().map_err(|_| anyhow!("not a number with a unit, such as 512m"))?;
    let bytes = number * (1u64 << shift) as f64;
    if !(1.0..=9e18).contains(&bytes) {
        bail!("out of range");
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, value) in
            [("1", 1), ("1k", 1024), ("512m", 512 << 20), ("1.5g", 3 << 29), ("8K", 8192), ("1GiB", 1 << 30)]
        {
            assert_eq!(bytes(text).expect(text), value);
        }
        for text in ["", "m", "-1", "1x", "0", "1e30t"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
