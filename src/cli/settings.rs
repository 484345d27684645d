//! Settings: what a flag is when nobody gives it and no variable says so, from [`SYSTEM`] and then the user's own file.
//!
//! A key is the name of the flag that it stands for, wherever a verb has it. Files are read again by each command, so there
//! is nothing to reload; without one, that is two failed open(2).

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::builder::Str;
use clap::error::{ContextKind, ContextValue};
use clap::{Arg, Command};
use tupper::error::Error;

/// For everybody.
const SYSTEM: &str = "/etc/tupper/tupper.toml";

/// The same for one user, whose keys win: below `$XDG_CONFIG_HOME`, or `~/.config`.
const OF_USER: &str = "tupper/tupper.toml";

/// The keys that there are.
const KEYS: [&str; 6] = ["root", "log-level", "network", "pool", "pull", "cgroup-manager"];

/// A file is larger than this only by mistake.
const LIMIT: u64 = 64 << 10;

/// What the files say, those that win first.
#[derive(Debug, Default)]
pub(super) struct Settings(Vec<Setting>);

#[derive(Debug, PartialEq)]
struct Setting {
    key: &'static str,
    value: &'static str,
    file: PathBuf,
}

impl Settings {
    /// Those of the system and of who runs this.
    pub(super) fn read() -> Result<Settings> {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let of_user = path("XDG_CONFIG_HOME").or_else(|| Some(path("HOME")?.join(".config")));
        let mut settings = Settings::default();
        for file in of_user.map(|directory| directory.join(OF_USER)).into_iter().chain([PathBuf::from(SYSTEM)]) {
            if let Some(text) = text(&file).with_context(|| format!("settings {}", file.display()))? {
                settings.add(&file, &text).with_context(|| format!("settings {}", file.display()))?;
            }
        }
        Ok(settings)
    }

    fn add(&mut self, file: &Path, text: &str) -> Result<()> {
        let table: toml::Table = toml::from_str(text).map_err(|e| match e.span() {
            Some(at) => {
                let line = text.bytes().take(at.start).filter(|byte| *byte == b'\n').count() + 1;
                anyhow::anyhow!("line {line}: {}", e.message())
            }
            None => anyhow::anyhow!("{}", e.message()),
        })?;
        for (key, value) in table {
            let Some(known) = KEYS.into_iter().find(|known| *known == key) else {
                bail!("{key}: no such key; there are {}", KEYS.join(", "));
            };
            let toml::Value::String(value) = value else { bail!("{key}: not a string") };
            // As long as the command line's parser lives, which is as long as the process.
            self.0.push(Setting { key: known, value: value.leak(), file: file.to_path_buf() });
        }
        Ok(())
    }

    /// The command line with these as defaults of its flags.
    pub(super) fn apply(&self, command: Command) -> Command {
        if self.0.is_empty() {
            return command;
        }
        let with_default = |arg: Arg| match self.of(arg.get_long()) {
            Some(setting) => arg.default_value(Str::from(setting.value)),
            None => arg,
        };
        command.mut_args(with_default).mut_subcommands(|verb| self.apply(verb))
    }

    fn of(&self, flag: Option<&str>) -> Option<&Setting> {
        self.0.iter().find(|setting| Some(setting.key) == flag)
    }

    /// The file that gave the value that clap complains of, if it was not typed.
    pub(super) fn blamed(&self, error: &clap::Error, typed: impl Iterator<Item = String>) -> Option<&Path> {
        let Some(ContextValue::String(arg)) = error.get(ContextKind::InvalidArg) else { return None };
        let flag = arg.strip_prefix("--")?.split([' ', '=']).next()?;
        let Some(ContextValue::String(value)) = error.get(ContextKind::InvalidValue) else { return None };
        let setting = self.of(Some(flag)).filter(|setting| setting.value == value)?;
        let given = format!("--{flag}");
        let mut typed = typed;
        let was_typed = typed.any(|word| word == given || word.starts_with(&format!("{given}=")));
        (!was_typed).then_some(&setting.file)
    }
}

/// What a file holds, if there is one.
fn text(file: &Path) -> Result<Option<String>> {
    let open = match File::open(file) {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => return Ok(None),
        // Another's home, as after setpriv(1): what is there is not for this user.
        Err(e) if e.kind() == ErrorKind::PermissionDenied && file != Path::new(SYSTEM) => return Ok(None),
        open => open.map_err(Error::from)?,
    };
    let mut bytes = Vec::new();
    open.take(LIMIT + 1).read_to_end(&mut bytes).map_err(Error::from)?;
    if bytes.len() as u64 > LIMIT {
        bail!("larger than {LIMIT} bytes");
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some(text)),
        Err(_) => bail!("not UTF-8"),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Verb {
        #[arg(long, default_value = "on", env = "TUPPER_SETTINGS_TEST", value_parser = ["on", "off"])]
        pool: String,
        #[arg(long)]
        name: Option<String>,
    }

    fn settings(text: &str) -> Result<Settings> {
        let mut settings = Settings::default();
        settings.add(Path::new("/a/file"), text)?;
        Ok(settings)
    }

    fn pool(settings: &Settings, typed: &[&str]) -> Result<String, clap::Error> {
        let command = settings.apply(<Verb as clap::CommandFactory>::command());
        let matches = command.try_get_matches_from(["x"].iter().chain(typed))?;
        Ok(matches.get_one::<String>("pool").expect("has a default").clone())
    }

    #[test]
    fn a_setting_is_a_flag_s_default() {
        let off = settings("pool = 'off' # as here").expect("reads");
        assert_eq!(pool(&off, &[]).expect("parses"), "off");
        assert_eq!(pool(&off, &["--pool", "on"]).expect("parses"), "on", "what is typed wins");
        assert_eq!(pool(&Settings::default(), &[]).expect("parses"), "on");
        let mut both = settings("pool = 'off'").expect("reads");
        both.add(Path::new("/other"), "pool = 'on'\nroot = '/x'").expect("reads");
        assert_eq!(pool(&both, &[]).expect("parses"), "off", "the first file wins");
    }

    #[test]
    fn a_wrong_value_is_blamed_on_its_file() {
        let wrong = settings("pool = 'maybe'").expect("reads");
        let error = pool(&wrong, &[]).expect_err("no such value");
        assert_eq!(wrong.blamed(&error, [].into_iter()), Some(Path::new("/a/file")));
        let error = pool(&wrong, &["--pool=maybe"]).expect_err("no such value");
        assert_eq!(wrong.blamed(&error, ["--pool=maybe".to_string()].into_iter()), None, "it was typed");
    }

    #[test]
    fn what_is_no_setting_is_refused_by_name() {
        for (text, why) in [
            ("name = 'x'", "name: no such key; there are root, log-level, network, pool, pull, cgroup-manager"),
            ("pool = true", "pool: not a string"),
            ("root = '/x'\npool = ", "line 2: "),
            ("[run]\npool = 'off'", "run: no such key"),
        ] {
            let error = settings(text).expect_err(text).to_string();
            assert!(error.starts_with(why), "{text}: {error}");
        }
    }
}
