//! Which containers a verb is for: podman's arguments of start, stop, kill, rm and their like.

use anyhow::Result;
use clap::Args;
use tupper::container::{self, Container};
use tupper::store::Store;

use super::filter::{Filter, Filters};

/// Beside `--all`, which each verb has for itself.
#[derive(Debug, Args)]
pub(super) struct Chosen {
    /// Only those of which this is so, as in `tupper ps`: of all, or of those that are named
    #[arg(long, value_name = "KEY=VALUE", value_parser = |text: &str| text.parse::<Filter>())]
    filter: Vec<Filter>,
    /// The one that was made last
    #[arg(long, short, conflicts_with_all = ["containers", "all"])]
    latest: bool,
    /// Names or ids
    #[arg(required_unless_present_any = ["all", "filter", "latest"], value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Chosen {
    /// What they are called. Of `all` of them, and of those that are only told by a filter, those that `can` be meant.
    pub(super) fn names(&self, store: &Store, can: impl Fn(&Container) -> bool) -> Result<Vec<String>> {
        if self.filter.is_empty() && !self.containers.is_empty() {
            return Ok(self.containers.clone());
        }
        let filters = Filters::new(store, &self.filter)?;
        if !self.containers.is_empty() {
            let mut named = Vec::new();
            for text in &self.containers {
                if filters.take(&container::find(store, text)?) {
                    named.push(text.clone());
                }
            }
            return Ok(named);
        }
        let mut all = container::list(store)?;
        if self.latest {
            all.truncate(1);
        } else {
            all.retain(can);
        }
        all.retain(|container| filters.take(container));
        Ok(all.into_iter().map(|container| container.id.to_string()).collect())
    }
}
