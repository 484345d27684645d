//! The command line: one file a verb. The only code that writes to the terminal.
//!
//! Results go to standard output, everything else to standard error. An error is one line, `tupper: error: WHAT: WHY`,
//! and where there is a way out a second, `hint: …`.

mod attach;
mod bench;
mod cgroup;
mod check;
mod chosen;
mod commit;
mod completion;
mod container;
mod copy;
mod df;
mod diff;
mod exec;
mod filter;
mod flags;
mod health;
mod image;
mod image_filter;
mod kill;
mod limits;
mod logger;
mod logs;
mod monitor;
mod mounts;
mod network;
mod networking;
mod output;
mod pause;
mod port;
mod progress;
mod prune;
mod ps;
mod registry;
mod resources;
mod run;
mod save;
mod security;
mod settings;
mod snapshot;
mod snapshot_filter;
mod stats;
mod stop;
mod store;
mod top;
mod trash;
mod tree;
mod users;
mod volume;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use log::LevelFilter;
use tupper::error::{Context, Kind};
use tupper::store::Store;

use settings::Settings;

/// Images and containers as btrfs snapshots.
#[derive(Debug, Parser)]
#[command(name = "tupper", version, arg_required_else_help = true, propagate_version = false)]
#[command(after_help = "Start with `tupper image import rootfs.tar --name NAME`, then `tupper shell NAME`.")]
struct Cli {
    #[command(flatten)]
    everywhere: Everywhere,
    #[command(subcommand)]
    verb: Verb,
}

/// The flags of every verb.
#[derive(Debug, Args)]
struct Everywhere {
    /// Where the store is
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "TUPPER_ROOT",
        default_value = "/var/lib/tupper",
        hide_env_values = true
    )]
    root: PathBuf,
    /// What to say on standard error
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", ignore_case = true, value_parser = levels())]
    log_level: LevelFilter,
}

impl Cli {
    /// What was typed, if it is one of the verbs whose own time counts, and nothing is wrong with it. The whole tree of verbs and
    /// flags is a megabyte, and building it takes longer than anything else that tupper does for a throwaway container; whoever
    /// asks for help, or is to be told what is wrong, has the time.
    fn quick(settings: &Settings) -> Option<Cli> {
        let words: Vec<_> = std::env::args_os().skip(1).take(5).collect();
        let name =
            ["run", "shell", "exec", "snapshot"].into_iter().find(|name| words.iter().any(|word| word == name))?;
        let verb = clap::Command::new(name);
        let verb = match name {
            "run" => run::Run::augment_args(verb),
            "shell" => run::Shell::augment_args(verb),
            "exec" => exec::Exec::augment_args(verb),
            _ => snapshot::Verb::augment_subcommands(verb).subcommand_required(true),
        };
        let command = Everywhere::augment_args(clap::Command::new("tupper")).subcommand(verb);
        let mut command = settings.apply(command);
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        std::mem::forget(command);
        let matches = matches.ok()?;
        let (_, own) = matches.subcommand()?;
        let verb = match name {
            "run" => Verb::Run(run::Run::from_arg_matches(own).ok()?),
            "shell" => Verb::Shell(run::Shell::from_arg_matches(own).ok()?),
            "exec" => Verb::Exec(exec::Exec::from_arg_matches(own).ok()?),
            _ => Verb::Snapshot(snapshot::Verb::from_arg_matches(own).ok()?),
        };
        Some(Cli { everywhere: Everywhere::from_arg_matches(&matches).ok()?, verb })
    }

    fn whole(settings: &Settings) -> Result<Cli, clap::Error> {
        let mut command = settings.apply(Cli::command());
        let matches = command.try_get_matches_from_mut(std::env::args_os());
        let parsed = matches.and_then(|matches| Cli::from_arg_matches(&matches).map_err(|e| e.format(&mut command)));
        // Taking the tree of verbs and flags apart again would be a tenth of what a short verb costs.
        std::mem::forget(command);
        parsed
    }
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a command in a fresh snapshot of an image
    Run(run::Run),
    /// A throwaway interactive shell in a fresh snapshot, gone at exit
    Shell(run::Shell),
    /// Make a container, without starting it
    Create(run::Create),
    /// Start containers that were created or have ended
    Start(attach::Start),
    /// Run another command in a running container
    Exec(exec::Exec),
    /// Go to a running container: see what it writes, type what it reads
    Attach(attach::Attach),
    /// Show what a container has written
    Logs(logs::Logs),
    /// Ask containers to end, and kill those that do not
    Stop(stop::Stop),
    /// Send a signal to containers, by default one that ends them at once
    Kill(kill::Kill),
    /// Stop containers and start them again
    Restart(stop::Restart),
    /// Wait until containers have ended, and print their exit statuses
    Wait(stop::Wait),
    /// List containers
    Ps(ps::Ps),
    /// Change the limits of containers, now if they run
    Update(resources::Update),
    /// Copy files between a container and the host, another container, or a tar archive
    Cp(copy::Cp),
    /// Show what differs in a container, a snapshot or an image from what it was made from
    Diff(diff::Diff),
    /// Make an image of what a container or a snapshot has come to
    Commit(commit::Commit),
    /// Give a container another name
    Rename(kill::Rename),
    /// Show where the ports of a container are reached
    Port(port::Ports),
    /// Remove containers
    Rm(container::Rm),
    /// Freeze every process of containers
    Pause(pause::Pause),
    /// Let paused containers go on
    Unpause(pause::Pause),
    /// Show what running containers use
    Stats(stats::Stats),
    /// Show the processes of a running container
    Top(top::Top),
    /// Show the kernel's chain from the tasks of a running container to their cgroups
    Cgroup(cgroup::Cgroup),
    /// Check whether a container is well
    #[command(subcommand, arg_required_else_help = true)]
    Healthcheck(health::Verb),
    /// Show all that is known of containers, as JSON
    Inspect(container::Inspect),
    /// Import, load, pull, push, save, list, name and remove images
    #[command(subcommand, arg_required_else_help = true)]
    Image(image::Verb),
    /// Make, list and remove snapshots
    #[command(subcommand, arg_required_else_help = true)]
    Snapshot(snapshot::Verb),
    /// Make, list and remove volumes
    #[command(subcommand, arg_required_else_help = true)]
    Volume(volume::Verb),
    /// Make, list and remove networks
    #[command(subcommand, arg_required_else_help = true)]
    Network(network::Verb),
    /// Set up and inspect the store
    #[command(subcommand, arg_required_else_help = true)]
    Store(store::Verb),
    /// Measure snapshots, containers and imports on this machine
    #[command(subcommand, arg_required_else_help = true)]
    Bench(bench::Verb),
    /// Short for `image ls`
    Images(image::Ls),
    /// Short for `image rm`
    Rmi(image::Rm),
    /// Short for `image import`
    Import(image::Import),
    /// Short for `image load`
    Load(image::Load),
    /// Short for `image pull`
    Pull(registry::Pull),
    /// Short for `image push`
    Push(registry::Push),
    /// Short for `image save`
    Save(save::Save),
    /// Short for `image export`
    Export(save::Export),
    /// Short for `image tag`
    Tag(image::Tag),
    /// Log in to a registry
    Login(registry::Login),
    /// Log out of a registry
    Logout(registry::Logout),
    /// Print a completion script for a shell
    Completion(completion::Completion),
    /// Print the version
    Version,
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(completion::Man),
}

fn levels() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .try_map(|text| text.parse::<LevelFilter>())
}

/// Parses the arguments, does what they say, and returns the exit status.
pub(crate) fn main() -> ExitCode {
    if let Some(arguments) = started_as(tupper::container::MONITOR) {
        return monitor::main(&arguments);
    }
    if let Some(arguments) = started_as(tupper::network::RESOLVER) {
        return monitor::resolver(&arguments);
    }
    if let Some(arguments) = started_as(tupper::network::PROXY) {
        return monitor::proxy(&arguments);
    }
    let settings = match Settings::read() {
        Ok(settings) => settings,
        Err(e) => {
            report(&e);
            return ExitCode::from(125);
        }
    };
    let cli = match Cli::quick(&settings).map_or_else(|| Cli::whole(&settings), Ok) {
        Ok(cli) => cli,
        Err(e) => return usage(&e, settings.blamed(&e, std::env::args().skip(1))),
    };
    logger::init(cli.everywhere.log_level);
    let runs_a_command =
        matches!(cli.verb, Verb::Run(_) | Verb::Shell(_) | Verb::Start(_) | Verb::Attach(_) | Verb::Exec(_));
    match dispatch(cli) {
        Ok(code) => code,
        Err(e) if output::is_broken_pipe(&e) => ExitCode::SUCCESS, // `tupper image ls | head -1`
        Err(e) => failed(&e, runs_a_command),
    }
}

/// What follows the word by which this program is a monitor, if it is one.
fn started_as(verb: &str) -> Option<Vec<std::ffi::OsString>> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == verb).then(|| arguments.collect())
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    // What can fail is getcwd(3).
    let root = std::path::absolute(&cli.everywhere.root)
        .context(|| format!("store {}: find the working directory", cli.everywhere.root.display()))?;
    let done = match cli.verb {
        Verb::Run(verb) => return verb.run(&root),
        Verb::Shell(verb) => return verb.run(&root),
        Verb::Start(verb) => return verb.run(&root),
        Verb::Attach(verb) => return verb.run(&root),
        Verb::Exec(verb) => return verb.run(&root),
        Verb::Logs(verb) => return verb.run(&root),
        Verb::Stop(verb) => return verb.run(&root),
        Verb::Kill(verb) => return verb.run(&root),
        Verb::Rename(verb) => verb.run(&root),
        Verb::Cp(verb) => verb.run(&root),
        Verb::Diff(verb) => verb.run(&root),
        Verb::Commit(verb) => verb.run(&root),
        Verb::Restart(verb) => return verb.run(&root),
        Verb::Wait(verb) => return verb.run(&root),
        Verb::Create(verb) => verb.run(&root),
        Verb::Ps(verb) => verb.run(&root),
        Verb::Update(verb) => return verb.run(&root),
        Verb::Rm(verb) => return verb.run(&root),
        Verb::Pause(verb) => return verb.run(&root),
        Verb::Unpause(verb) => return verb.undo(&root),
        Verb::Stats(verb) => verb.run(&root),
        Verb::Top(verb) => verb.run(&root),
        Verb::Cgroup(verb) => verb.run(&root),
        Verb::Healthcheck(verb) => return verb.run(&root),
        Verb::Inspect(verb) => return verb.run(&root),
        Verb::Image(verb) => return verb.run(&root),
        Verb::Snapshot(verb) => return verb.run(&root),
        Verb::Volume(verb) => return verb.run(&root),
        Verb::Network(verb) => return verb.run(&root),
        Verb::Port(verb) => return verb.run(&root),
        Verb::Store(verb) => return verb.run(&root),
        Verb::Bench(verb) => verb.run(&root),
        Verb::Images(verb) => verb.run(&root),
        Verb::Rmi(verb) => return verb.run(&root),
        Verb::Import(verb) => verb.run(&root),
        Verb::Load(verb) => verb.run(&root),
        Verb::Pull(verb) => verb.run(&root),
        Verb::Push(verb) => verb.run(&root),
        Verb::Save(verb) => verb.run(&root),
        Verb::Export(verb) => verb.run(&root),
        Verb::Tag(verb) => verb.run(&root),
        Verb::Login(verb) => verb.run(),
        Verb::Logout(verb) => verb.run(),
        Verb::Completion(verb) => verb.run(),
        Verb::Version => output::line(format_args!("tupper {}", env!("CARGO_PKG_VERSION"))),
        Verb::Man(verb) => verb.run(),
    };
    done.map(|()| ExitCode::SUCCESS)
}

/// The command line as clap knows it, for completion and man pages.
fn command() -> clap::Command {
    Cli::command()
}

/// The store for a verb that only reads; `None` when there is none yet, and nothing to list.
fn open(root: &std::path::Path) -> Result<Option<Store>> {
    Ok(Store::open(root)?)
}

/// The store for a verb that names something in it.
fn open_existing(root: &std::path::Path) -> Result<Store> {
    existing(root, open(root)?)
}

fn existing(root: &std::path::Path, store: Option<Store>) -> Result<Store> {
    store.ok_or_else(|| {
        let error = tupper::error::Error::new(Kind::NotFound, format!("{}: no store there yet", root.display()));
        error.with_hint("`tupper image import` makes one").into()
    })
}

/// The store for a verb that removes something, or only says what it would.
fn open_to_remove(root: &std::path::Path, dry_run: bool) -> Result<Store> {
    let store = open_existing(root)?;
    if !dry_run {
        store.require_writable()?;
        store.require_host_room_to_remove()?;
        tupper::check::tidy(&store);
    }
    Ok(store)
}

/// How a verb removes something, and what it waits for.
#[derive(Debug, Args)]
struct Removing {
    /// Print what would go, and remove nothing
    #[arg(long)]
    dry_run: bool,
    /// Wait until the removal would survive a power cut
    #[arg(long)]
    sync: bool,
    /// Wait until the space is back
    #[arg(long)]
    wait: bool,
}

impl Removing {
    /// What was removed, durably so if that is wanted.
    fn synced<T>(&self, store: &Store, removed: T) -> tupper::error::Result<T> {
        if self.sync && !self.dry_run {
            store.sync()?;
        }
        Ok(removed)
    }

    /// All is removed.
    fn finish(&self, store: &Store) -> tupper::error::Result<()> {
        if self.wait && !self.dry_run { store.await_space() } else { Ok(()) }
    }
}

/// The store for a verb that makes something of what is in it.
fn open_to_make(root: &std::path::Path) -> Result<Store> {
    to_make(open_existing(root)?)
}

fn to_make(store: Store) -> Result<Store> {
    store.require_writable()?;
    store.require_host_room()?;
    tupper::check::tidy(&store);
    Ok(store)
}

/// Help and version go to standard output with status 0; a usage error is one line with status 2, or 125 where the
/// status could be taken for that of a command inside (run, shell, start). `blamed` is the file of settings that is at fault.
fn usage(error: &clap::Error, blamed: Option<&Path>) -> ExitCode {
    if !error.use_stderr() {
        return match output::text(&error.render().to_string()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) if output::is_broken_pipe(&e) => ExitCode::SUCCESS,
            Err(e) => failed(&e, runs_a_command(std::env::args().skip(1))),
        };
    }
    let text = error.render().to_string();
    let mut parts = text.split("\n\n").map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let first = parts.next().unwrap_or_default();
    // That an unknown flag could be a value behind `--` helps nobody: no verb takes a value that looks like one.
    let mut tips = text.lines().filter_map(|line| line.trim_start().strip_prefix("tip: "));
    let tip = tips.find(|tip| !tip.starts_with("to pass"));
    if error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = output::note(text.trim_end());
    } else {
        let whose = blamed.map(|file| format!("settings {}: ", output::one_line(file.display()))).unwrap_or_default();
        let _ = output::note(format_args!("tupper: error: {whose}{}", first.trim_start_matches("error: ")));
        let _ = output::note(format_args!("hint: {}", tip.unwrap_or("see `tupper --help`, or `tupper VERB --help`")));
    }
    ExitCode::from(if runs_a_command(std::env::args().skip(1)) { 125 } else { 2 })
}

/// Whether the first verb in arguments that did not parse is one whose status is that of a command inside.
fn runs_a_command(mut arguments: impl Iterator<Item = String>) -> bool {
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--root" | "--log-level" => drop(arguments.next()),
            option if option.starts_with('-') => {}
            verb => return matches!(verb, "run" | "shell" | "start" | "attach" | "exec"),
        }
    }
    false
}

/// Prints an error and says what status it gives.
fn failed(error: &anyhow::Error, runs_a_command: bool) -> ExitCode {
    // What a verb finds wrong with its flags once all of them are known.
    if let Some(error) = error.downcast_ref::<clap::Error>() {
        return usage(error, None);
    }
    report(error);
    if let Some(signal) = tupper::interrupt::caught() {
        return ExitCode::from(128u8.saturating_add(u8::try_from(signal).unwrap_or(0)));
    }
    let status = match error.downcast_ref::<tupper::error::Error>() {
        Some(e) if runs_a_command => match e.kind() {
            Kind::NotExecutable | Kind::CommandNotFound => e.exit_status(),
            _ => 125,
        },
        Some(e) => e.exit_status(),
        None if runs_a_command => 125,
        None => 1,
    };
    ExitCode::from(status)
}

/// One line, and the hint where there is one.
fn report(error: &anyhow::Error) {
    let _ = output::note(format_args!("tupper: error: {}", output::one_line(format_args!("{error:#}"))));
    if let Some(hint) = error.downcast_ref::<tupper::error::Error>().and_then(tupper::error::Error::hint) {
        let _ = output::note(format_args!("hint: {hint}"));
    }
}

/// Does something for each of several objects: all are tried, each failure is reported, and one is enough to fail.
fn for_each(objects: &[String], work: impl FnMut(&str) -> Result<()>) -> ExitCode {
    for_each_with(objects, false, work)
}

/// [`for_each`] for a verb whose status can be that of a command inside.
fn for_each_run(objects: &[String], work: impl FnMut(&str) -> Result<()>) -> ExitCode {
    for_each_with(objects, true, work)
}

fn for_each_with(objects: &[String], runs_a_command: bool, mut work: impl FnMut(&str) -> Result<()>) -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    for object in objects {
        if let Err(e) = work(object) {
            status = failed(&e, runs_a_command);
        }
    }
    status
}

/// Objects that a listing goes on without, because they cannot be read.
#[derive(Debug, Default)]
struct Broken(Vec<tupper::error::Error>);

impl Broken {
    /// One more.
    fn note(&mut self, error: tupper::error::Error) -> tupper::error::Result<()> {
        self.0.push(error);
        Ok(())
    }

    /// What could be read has been printed: the others are reported, and one is enough to fail.
    fn report(self) -> Result<()> {
        let mut errors = self.0.into_iter().map(|e| match e.hint() {
            None => e.with_hint("`tupper store check --repair` mends what the disk tells"),
            Some(_) => e,
        });
        let Some(last) = errors.next_back() else { return Ok(()) };
        errors.for_each(|e| report(&e.into()));
        Err(last.into())
    }
}

/// Prints an array of what is known of each of several objects; those that are not found are reported.
fn inspect(objects: &[String], mut details: impl FnMut(&str) -> Result<serde_json::Value>) -> Result<ExitCode> {
    let mut found = Vec::new();
    let status = for_each(objects, |object| {
        found.push(details(object)?);
        Ok(())
    });
    output::json(&serde_json::Value::Array(found))?;
    Ok(status)
}
