//! `tupper snapshot tree`

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};
use tupper::error::Kind;
use tupper::name::Id;
use tupper::snapshot::{self, Node};
use tupper::store::Store;

use tupper::usage::{self, Figures};

use super::df;
use super::output::{self, Listing, Shape};

#[derive(Debug, Args)]
#[command(
    after_help = "Sizes are data as it lies on the disk, as `store df` counts it: of an image all that it holds, and after a + what \
    nothing but this holds. What was made of something that is gone, or of a subvolume outside the store, says so, and stands below \
    its image or at the top."
)]
pub(super) struct Tree {
    #[command(flatten)]
    listing: Listing,
}

impl Tree {
    pub(super) fn run(self, root: &Path) -> Result<()> {
        let store = super::open(root)?;
        let tree = store.as_ref().map(snapshot::tree).transpose()?.unwrap_or_default();
        let whole = self.listing.no_trunc;
        let shape = self.listing.shape();
        let sizes = match &store {
            Some(store) if shape != Shape::Quiet => sizes(store)?,
            _ => HashMap::new(),
        };
        match shape {
            Shape::Quiet => {
                output::text(&tree.nodes().iter().map(|node| output::id(&node.id, whole) + "\n").collect::<String>())
            }
            Shape::Json => output::json(&nested(tree.nodes(), &sizes)),
            Shape::Table => {
                let depths: Vec<usize> = tree.nodes().iter().map(|node| node.depth).collect();
                let lines = branches(&depths).into_iter().zip(tree.nodes());
                let line = |(branch, node): (String, &Node)| {
                    format!("{branch}{}\n", output::one_line(described(&tree, node, sizes.get(&key(node)), whole)))
                };
                output::text(&lines.map(line).collect::<String>())
            }
        }
    }
}

/// What tells a node from others.
fn key(node: &Node) -> (&'static str, Id) {
    (node.kind, node.id)
}

/// What each holds; nothing is known without the right to look at the filesystem's trees.
fn sizes(store: &Store) -> Result<HashMap<(&'static str, Id), Figures>> {
    match usage::usage(store, usage::FEW) {
        Ok(usage) => Ok(usage.objects.into_iter().map(|(node, figures)| (key(&node), figures)).collect()),
        Err(e) if e.kind() == Kind::Permission => Ok(HashMap::new()),
        Err(e) => Err(e.into()),
    }
}

/// `web (snapshot 0123456789ab, +4.1 kB, 2 hours ago)`.
fn described(tree: &snapshot::Tree, node: &Node, figures: Option<&Figures>, whole: bool) -> String {
    let (id, ago) = (output::id(&node.id, whole), output::ago(node.created));
    let size = figures.map(|figures| match node.kind {
        "image" => format!("{}, ", output::size(figures.exclusive.bytes + figures.shared.bytes)),
        _ => format!("+{}, ", df::size(figures.exclusive)),
    });
    let ago = size.unwrap_or_default() + &ago;
    let source = node.source.as_ref().filter(|_| tree.is_orphan(node)).map(|source| match &source.id {
        Some(id) if source.name == id.to_string() => format!("of {} {}, ", source.kind, output::id(id, whole)),
        _ => format!("of {} {}, ", source.kind, source.name),
    });
    let source = source.unwrap_or_default();
    match node.names.as_slice() {
        [] => format!("{id} ({}, {source}{ago})", node.kind),
        names => format!("{} ({} {id}, {source}{ago})", names.join(", "), node.kind),
    }
}

/// What tree(1) draws before each node, by how many are above each; those below a node follow it.
fn branches(depths: &[usize]) -> Vec<String> {
    // From the end: whether a node at this depth has another after it below the same.
    let mut followed: Vec<bool> = Vec::new();
    let mut last: Vec<bool> = depths
        .iter()
        .rev()
        .map(|depth| {
            followed.resize(depth + 1, false);
            !std::mem::replace(&mut followed[*depth], true)
        })
        .collect();
    last.reverse();
    let mut above: Vec<bool> = Vec::new();
    let branch = |(depth, last): (&usize, bool)| {
        above.truncate(*depth);
        let mut text = String::new();
        // What is at the top hangs on nothing.
        for ended in above.iter().skip(1) {
            text.push_str(if *ended { "    " } else { "│   " });
        }
        if *depth > 0 {
            text.push_str(if last { "└── " } else { "├── " });
        }
        above.push(last);
        text
    };
    depths.iter().zip(last).map(branch).collect()
}

/// Each node with those below it inside.
fn nested(nodes: &[Node], sizes: &HashMap<(&'static str, Id), Figures>) -> Value {
    // From the end: those of each depth whose parent is still to come, the last first.
    let mut waiting: Vec<Vec<Value>> = Vec::new();
    for node in nodes.iter().rev() {
        waiting.resize(waiting.len().max(node.depth + 2), Vec::new());
        let below: Vec<Value> = std::mem::take(&mut waiting[node.depth + 1]).into_iter().rev().collect();
        let mut value = known(node);
        value["Created"] = json!(node.created.as_second());
        value["CreatedAt"] = json!(node.created.to_string());
        value["Source"] = match &node.source {
            Some(source) => json!({ "Kind": source.kind, "Id": source.id, "Name": source.name }),
            None => Value::Null,
        };
        if let Some(figures) = sizes.get(&key(node)) {
            value["Size"] = df::figures(figures);
        }
        value["Children"] = Value::Array(below);
        waiting[node.depth].push(value);
    }
    waiting.into_iter().next().unwrap_or_default().into_iter().rev().collect()
}

/// What others say of a node.
pub(super) fn known(node: &Node) -> Value {
    json!({ "Kind": node.kind, "Id": node.id, "Names": node.names })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn branches_are_drawn_as_by_tree() {
        let drawn = branches(&[0, 1, 2, 2, 1, 2, 3, 0, 1, 0]);
        let expected = ["", "├── ", "│   ├── ", "│   └── ", "└── ", "    └── ", "        └── ", "", "└── ", ""];
        assert_eq!(drawn, expected);
        assert!(branches(&[]).is_empty());
    }
}
