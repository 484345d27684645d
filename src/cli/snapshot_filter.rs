//! Which snapshots `snapshot ls` shows and `snapshot prune` looks at.

use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use tupper::error::{Error, Kind};
use tupper::name::Id;
use tupper::snapshot::{self, Snapshot};
use tupper::store::Store;

use super::filter::{self, Pattern, Span, any};

/// One of them, as it was given.
#[derive(Debug, Clone)]
pub(super) enum Filter {
    Id(Pattern),
    Name(Pattern),
    Label(String, Option<String>),
    Source(String),
    Before(String),
    Since(String),
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Filter> {
        let (key, value) = text.split_once('=').ok_or_else(|| anyhow!("not KEY=VALUE"))?;
        Ok(match key {
            "id" => Filter::Id(Pattern::of_id(value)?),
            "name" => Filter::Name(Pattern::new(value)?),
            "label" => {
                let (key, wanted) = filter::label(value);
                Filter::Label(key, wanted)
            }
            "source" => Filter::Source(value.to_string()),
            "before" => Filter::Before(value.to_string()),
            "since" => Filter::Since(value.to_string()),
            _ => bail!("{key:?}: not one of id, name, label, source, before, since"),
        })
    }
}

/// All of them, with what they refer to looked up. As with `ps`: where there are several of a kind, one has to be so; of
/// labels all.
#[derive(Debug, Default)]
pub(super) struct Filters {
    ids: Vec<Pattern>,
    names: Vec<Pattern>,
    labels: Vec<(String, Option<String>)>,
    /// What it was called, and which object is called so now.
    sources: Vec<(String, Option<Id>)>,
    made: Span,
}

impl Filters {
    /// # Errors
    /// A snapshot that `before` or `since` names and that is not there.
    pub(super) fn new(store: &Store, given: &[Filter]) -> Result<Filters> {
        let mut filters = Filters::default();
        for filter in given {
            match filter.clone() {
                Filter::Id(pattern) => filters.ids.push(pattern),
                Filter::Name(pattern) => filters.names.push(pattern),
                Filter::Label(key, value) => filters.labels.push((key, value)),
                Filter::Source(name) => {
                    let id = match store.find(&name) {
                        Ok(found) => Some(found.id),
                        Err(e) if e.kind() == Kind::NotFound => None,
                        Err(e) => return Err(e.into()),
                    };
                    filters.sources.push((name, id));
                }
                Filter::Before(text) => filters.made.before(snapshot::find(store, &text)?.created),
                Filter::Since(text) => filters.made.since(snapshot::find(store, &text)?.created),
            }
        }
        Ok(filters)
    }

    /// Those of which all of it is so, newest first.
    pub(super) fn select(
        &self,
        store: &Store,
        broken: impl FnMut(Error) -> tupper::error::Result<()>,
    ) -> Result<Vec<Snapshot>> {
        let mut snapshots = snapshot::list_but(store, broken)?;
        snapshots.retain(|snapshot| self.take(snapshot));
        Ok(snapshots)
    }

    fn take(&self, snapshot: &Snapshot) -> bool {
        let id = snapshot.id.to_string();
        let name = snapshot.name.as_ref().map(ToString::to_string).unwrap_or_default();
        let has_label = |key: &str, wanted: Option<&str>| {
            snapshot.labels.get(key).is_some_and(|value| wanted.is_none_or(|wanted| wanted == value))
        };
        let source = &snapshot.source;
        any(&self.ids, |pattern| pattern.is_match(&id))
            && any(&self.names, |pattern| pattern.is_match(&name))
            && self.labels.iter().all(|(key, value)| has_label(key, value.as_deref()))
            && any(&self.sources, |(name, id)| source.name == *name || id.is_some() && source.id == *id)
            && self.made.has(snapshot.created)
    }
}
