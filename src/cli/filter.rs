//! Which containers `ps` shows: podman-ps(1), `--filter`.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use jiff::Timestamp;
use regex::Regex;
use tupper::container::{self, Container, State};
use tupper::error::Kind;
use tupper::image;
use tupper::name::Id;
use tupper::network::Mode;
use tupper::sandbox::{Restart, Volume};
use tupper::store::Store;

/// One of them, as it was given.
#[derive(Debug, Clone)]
pub(super) enum Filter {
    Id(Pattern),
    Name(Pattern),
    Label(String, Option<String>),
    Status(String),
    Exited(u8),
    Ancestor(String),
    Before(String),
    Since(String),
    Volume(String),
    Network(String),
    Health(String),
    RestartPolicy(String),
    StartsOnBoot(bool),
}

/// podman's words for what a container does, those among them that tupper has no use for.
const STATUSES: [&str; 11] = [
    "created",
    "configured",
    "initialized",
    "running",
    "stopping",
    "stopped",
    "paused",
    "exited",
    "removing",
    "restarting",
    "unknown",
];

/// podman's words for how a container is.
const HEALTHS: [&str; 4] = ["starting", "healthy", "unhealthy", "none"];

/// podman-run(1), `--restart`.
const POLICIES: [&str; 4] = ["no", "on-failure", "always", "unless-stopped"];

const KEYS: &str = "id, name, label, status, exited, ancestor, before, since, volume, network, health, restart-policy, \
                    should-start-on-boot";

/// A regular expression, which may begin anywhere.
#[derive(Debug, Clone)]
pub(super) struct Pattern(Regex);

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Pattern> {
        Regex::new(text).map(Pattern).map_err(|_| anyhow!("{text:?}: not a regular expression"))
    }

    /// One of ids: a prefix of an id is one of what it may begin with.
    pub(super) fn of_id(text: &str) -> Result<Pattern> {
        Pattern::new(&format!("^(?:{text})"))
    }

    pub(super) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

/// `K[=V]`.
pub(super) fn label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((key, wanted)) => (key.to_string(), Some(wanted.to_string())),
        None => (text.to_string(), None),
    }
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Filter> {
        let (key, value) = text.split_once('=').ok_or_else(|| anyhow!("not KEY=VALUE"))?;
        Ok(match key {
            "id" => Filter::Id(Pattern::of_id(value)?),
            "name" => Filter::Name(Pattern::new(value)?),
            "label" => {
                let (key, wanted) = label(value);
                Filter::Label(key, wanted)
            }
            "status" if STATUSES.contains(&value) => Filter::Status(value.to_string()),
            "status" => bail!("{value:?}: not a status"),
            "exited" => Filter::Exited(value.parse().map_err(|_| anyhow!("{value:?}: not an exit status"))?),
            "ancestor" => Filter::Ancestor(value.to_string()),
            "before" => Filter::Before(value.to_string()),
            "since" => Filter::Since(value.to_string()),
            "volume" => Filter::Volume(value.to_string()),
            "network" => Filter::Network(value.to_string()),
            "health" if HEALTHS.contains(&value) => Filter::Health(value.to_string()),
            "health" => bail!("{value:?}: not one of {}", HEALTHS.join(", ")),
            "restart-policy" if POLICIES.contains(&value) => Filter::RestartPolicy(value.to_string()),
            "restart-policy" => bail!("{value:?}: not one of {}", POLICIES.join(", ")),
            "should-start-on-boot" => {
                Filter::StartsOnBoot(value.parse().map_err(|_| anyhow!("{value:?}: not true or false"))?)
            }
            _ => bail!("{key:?}: not one of {KEYS}"),
        })
    }
}

/// All of them, with what they refer to looked up. Where there are several of a kind, one has to be so; of labels all.
#[derive(Debug, Default)]
pub(super) struct Filters {
    ids: Vec<Pattern>,
    names: Vec<Pattern>,
    labels: Vec<(String, Option<String>)>,
    statuses: Vec<String>,
    exits: Vec<u8>,
    ancestors: Vec<(String, Option<Id>)>,
    made: Span,
    volumes: Vec<String>,
    networks: Vec<String>,
    healths: Vec<String>,
    policies: Vec<String>,
    on_boot: Vec<bool>,
}

impl Filters {
    /// # Errors
    /// A container that `before` or `since` names and that is not there.
    pub(super) fn new(store: &Store, given: &[Filter]) -> Result<Filters> {
        let mut filters = Filters::default();
        for filter in given {
            match filter.clone() {
                Filter::Id(pattern) => filters.ids.push(pattern),
                Filter::Name(pattern) => filters.names.push(pattern),
                Filter::Label(key, value) => filters.labels.push((key, value)),
                Filter::Status(status) => filters.statuses.push(status),
                Filter::Exited(status) => filters.exits.push(status),
                Filter::Ancestor(name) => filters.ancestors.push(ancestor(store, name)?),
                Filter::Before(text) => filters.made.before(container::find(store, &text)?.created),
                Filter::Since(text) => filters.made.since(container::find(store, &text)?.created),
                Filter::Volume(text) => filters.volumes.push(text),
                Filter::Network(network) => filters.networks.push(network),
                Filter::Health(health) => filters.healths.push(health),
                Filter::RestartPolicy(policy) => filters.policies.push(policy),
                Filter::StartsOnBoot(wanted) => filters.on_boot.push(wanted),
            }
        }
        Ok(filters)
    }

    /// Who says what they are to be doing means others than those that run, too.
    pub(super) fn say_status(&self) -> bool {
        !self.statuses.is_empty()
    }

    /// Whether all of it is so of this container.
    pub(super) fn take(&self, container: &Container) -> bool {
        let id = container.id.to_string();
        let name = container.name.as_ref().map(ToString::to_string).unwrap_or_default();
        any(&self.ids, |pattern| pattern.is_match(&id))
            && any(&self.names, |pattern| pattern.is_match(&name))
            && self.labels.iter().all(|(key, value)| has_label(container, key, value.as_deref()))
            && any(&self.statuses, |status| status == container.status())
            && any(&self.exits, |status| matches!(&container.state, State::Exited(end) if end.exit_code == *status))
            && any(&self.ancestors, |(name, id)| comes_from(container, name, id.as_ref()))
            && self.made.has(container.created)
            && any(&self.volumes, |volume| mounts(container, volume))
            && any(&self.networks, |network| is_network(&container.spec.network, network))
            && any(&self.healths, |word| container.health.as_ref().map_or("none", |h| h.condition.as_str()) == word)
            && any(&self.policies, |word| super::container::policy(container.spec.restart).0 == word)
            && any(&self.on_boot, |wanted| starts_on_boot(container) == *wanted)
    }
}

/// When something may have been made: before the newest of some times, and since the oldest of others.
#[derive(Debug, Default)]
pub(super) struct Span {
    before: Option<Timestamp>,
    since: Option<Timestamp>,
}

impl Span {
    pub(super) fn before(&mut self, time: Timestamp) {
        self.before = self.before.max(Some(time));
    }

    pub(super) fn since(&mut self, time: Timestamp) {
        self.since = Some(self.since.map_or(time, |since| since.min(time)));
    }

    pub(super) fn has(&self, time: Timestamp) -> bool {
        self.before.is_none_or(|before| time < before) && self.since.is_none_or(|since| time > since)
    }
}

/// One of them is so, or there is none.
pub(super) fn any<T>(wanted: &[T], is: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(is)
}

/// The image of this name, if it is there still; what a container was made from has the name, too.
fn ancestor(store: &Store, name: String) -> Result<(String, Option<Id>)> {
    match image::find(store, &name) {
        Ok(image) => Ok((name, Some(image.id))),
        Err(e) if e.kind() == Kind::NotFound => Ok((name, None)),
        Err(e) => Err(e.into()),
    }
}

fn comes_from(container: &Container, name: &str, id: Option<&Id>) -> bool {
    container.source.name == name || container.image.as_ref() == id && id.is_some()
}

/// podman-ps(1): what a host starts again that has started itself.
fn starts_on_boot(container: &Container) -> bool {
    match container.spec.restart {
        Restart::Always => true,
        Restart::UnlessStopped => !container.stopped,
        Restart::No | Restart::OnFailure(_) => false,
    }
}

fn has_label(container: &Container, key: &str, wanted: Option<&str>) -> bool {
    container.spec.labels.get(key).is_some_and(|value| wanted.is_none_or(|wanted| wanted == value))
}

fn mounts(container: &Container, text: &str) -> bool {
    let is = |v: &Volume| {
        v.name.as_ref().is_some_and(|name| name.as_str() == text)
            || v.destination == Path::new(text)
            || v.source == Path::new(text)
    };
    container.spec.volumes.iter().any(is)
}

/// Whether it is a network by this name.
fn is_network(mode: &Mode, name: &str) -> bool {
    match mode {
        Mode::None => name == "none",
        Mode::Host => name == "host",
        Mode::Container(_) => false,
        Mode::Joined(join) => join.name.as_str() == name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_key_and_a_value() {
        for good in ["id=ab", "name=^w", "label=a", "label=a=b=c", "status=paused", "exited=137", "network=none"] {
            good.parse::<Filter>().expect(good);
        }
        assert!(matches!("label=a=b=c".parse(), Ok(Filter::Label(key, Some(value))) if key == "a" && value == "b=c"));
        for wrong in ["", "name", "color=red", "status=fine", "exited=x", "exited=256", "name=("] {
            wrong.parse::<Filter>().expect_err(wrong);
        }
    }
}
