//! Which images `image ls` shows: podman-images(1), `--filter`.

use std::str::FromStr;

use anyhow::{Result, anyhow, bail};
use jiff::Timestamp;
use regex::Regex;
use tupper::image::{self, Image};
use tupper::name::ImageName;
use tupper::store::Store;

use super::filter::{self, Pattern, Span, any};
use super::logs::time;

/// One of them, as it was given.
#[derive(Debug, Clone)]
pub(super) enum Filter {
    Id(Pattern),
    Label(String, Option<String>),
    Reference(Reference),
    Dangling(bool),
    Before(String),
    Since(String),
    Until(Timestamp),
}

/// Names of images: one as a person says it, or with `*`, `?` and `[…]` as a shell has them.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    text: String,
    pattern: Option<Regex>,
}

impl Reference {
    fn new(text: &str) -> Result<Reference> {
        let pattern = text.contains(['*', '?', '[']).then(|| Reference::pattern(text)).transpose()?;
        Ok(Reference { text: text.to_string(), pattern })
    }

    /// It may begin at any part of a name, and end before the tag.
    fn pattern(text: &str) -> Result<Regex> {
        let wild = regex::escape(text).replace(r"\*", "[^/]*").replace(r"\?", "[^/]");
        let wild =
            wild.replace(r"\[", "[").replace(r"\]", "]").replace(r"\-", "-").replace(r"[\^", "[^").replace("[!", "[^");
        Regex::new(&format!("^(.*/)?{wild}(:[^/:]*)?$")).map_err(|_| anyhow!("{text:?}: not a pattern"))
    }

    fn is_match(&self, name: &ImageName) -> bool {
        match &self.pattern {
            Some(pattern) => pattern.is_match(&name.to_string()),
            None => name.is_meant_by(&self.text) || name.is_meant_by(&format!("{}:{}", self.text, name.tag())),
        }
    }
}

impl FromStr for Filter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Filter> {
        let (key, value) = text.split_once('=').ok_or_else(|| anyhow!("not KEY=VALUE"))?;
        Ok(match key {
            "id" => Filter::Id(Pattern::of_id(value)?),
            "label" => {
                let (key, wanted) = filter::label(value);
                Filter::Label(key, wanted)
            }
            "reference" => Filter::Reference(Reference::new(value)?),
            "dangling" => Filter::Dangling(value.parse().map_err(|_| anyhow!("{value:?}: not true or false"))?),
            "before" => Filter::Before(value.to_string()),
            "since" | "after" => Filter::Since(value.to_string()),
            "until" => Filter::Until(time(value)?),
            _ => bail!("{key:?}: not one of id, label, reference, dangling, before, since, until"),
        })
    }
}

/// All of them, with what they refer to looked up. As with `ps`: where there are several of a kind, one has to be so; of
/// labels all.
#[derive(Debug, Default)]
pub(super) struct Filters {
    ids: Vec<Pattern>,
    labels: Vec<(String, Option<String>)>,
    references: Vec<Reference>,
    dangling: Vec<bool>,
    made: Span,
}

impl Filters {
    /// # Errors
    /// An image that `before` or `since` names and that is not there.
    pub(super) fn new(store: &Store, given: &[Filter]) -> Result<Filters> {
        let mut filters = Filters::default();
        for filter in given {
            match filter.clone() {
                Filter::Id(pattern) => filters.ids.push(pattern),
                Filter::Label(key, value) => filters.labels.push((key, value)),
                Filter::Reference(reference) => filters.references.push(reference),
                Filter::Dangling(wanted) => filters.dangling.push(wanted),
                Filter::Before(text) => filters.made.before(image::find(store, &text)?.created),
                Filter::Until(time) => filters.made.before(time),
                Filter::Since(text) => filters.made.since(image::find(store, &text)?.created),
            }
        }
        Ok(filters)
    }

    /// Whether all of it is so of this image.
    pub(super) fn take(&self, image: &Image) -> bool {
        let id = image.id.to_string();
        let labels = image.config.config().as_ref().and_then(|config| config.labels().as_ref());
        let has_label = |key: &str, wanted: Option<&str>| {
            let value = labels.and_then(|labels| labels.get(key));
            value.is_some_and(|value| wanted.is_none_or(|wanted| wanted == value))
        };
        any(&self.ids, |pattern| pattern.is_match(&id))
            && self.labels.iter().all(|(key, value)| has_label(key, value.as_deref()))
            && any(&self.references, |reference| image.names.iter().any(|name| reference.is_match(name)))
            && any(&self.dangling, |wanted| image.names.is_empty() == *wanted)
            && self.made.has(image.created)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_key_and_a_value() {
        for good in
            ["id=ab", "label=a", "label=a=b", "reference=debian", "dangling=true", "before=x", "after=x", "until=10m"]
        {
            good.parse::<Filter>().expect(good);
        }
        for wrong in ["", "id", "id=(", "dangling=maybe", "until=yesterday", "name=x", "reference=[z-a]"] {
            wrong.parse::<Filter>().expect_err(wrong);
        }
    }

    #[test]
    fn a_reference_is_a_name_or_a_pattern_of_it() {
        let name: ImageName = "docker.io/library/debian:12".parse().expect("a name");
        for wanted in [
            "debian",
            "debian:12",
            "library/debian",
            "docker.io/library/debian:12",
            "deb*",
            "*:12",
            "d?bian",
            "*/debian",
            "docker.io/*/d[a-f]bian:1*",
        ] {
            assert!(Reference::new(wanted).expect(wanted).is_match(&name), "{wanted}");
        }
        for other in
            ["debian:11", "bian", "ebian*", "quay.io/library/debian", "d??bian", "docker.io/*", "d[!e]bian", "*:1"]
        {
            assert!(!Reference::new(other).expect(other).is_match(&name), "{other}");
        }
    }
}
