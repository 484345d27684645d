//! What was made of what: images, snapshots and containers as the nodes of a tree.
//!
//! Nothing depends on it, so it is not kept anywhere: each record says what its object was made of. Where that is gone, the
//! node hangs below the image at the root of both, and where that is gone, too, at the top.

use std::collections::HashMap;

use jiff::Timestamp;

use super::{Origin, Source};
use crate::error::{Kind, Result};
use crate::image;
use crate::name::Id;
use crate::store::{Found, Shelf, Store, kind_word};

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// `image`, `snapshot` or `container`.
    pub kind: &'static str,
    /// Its id.
    pub id: Id,
    /// Its names; of an image perhaps several.
    pub names: Vec<String>,
    /// When it was made.
    pub created: Timestamp,
    /// What it was made of, unless it is an image.
    pub source: Option<Source>,
    /// How many nodes are above it.
    pub depth: usize,
    /// The image at the root of where it came from.
    image: Option<Id>,
    /// Which node it hangs below.
    parent: Option<usize>,
}

/// All of them, each before those that hang below it, and these oldest first.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: Vec<Node>,
}

impl Tree {
    /// Every node.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The node that this one hangs below.
    pub fn parent(&self, id: &Id) -> Option<&Node> {
        self.nodes.get(self.position(id)?.1.parent?)
    }

    /// The nodes that hang directly below this one, oldest first.
    pub fn children(&self, id: &Id) -> impl Iterator<Item = &Node> {
        let parent = self.position(id).map(|(at, _)| at);
        self.nodes.iter().filter(move |node| parent.is_some() && node.parent == parent)
    }

    /// Whether this node does not hang below what it was made of, because that is none of the store's, or gone.
    pub fn is_orphan(&self, node: &Node) -> bool {
        let parent = node.parent.and_then(|parent| self.nodes.get(parent)).map(|parent| parent.id);
        node.source.as_ref().is_some_and(|source| source.id.is_none() || source.id != parent)
    }

    fn position(&self, id: &Id) -> Option<(usize, &Node)> {
        self.nodes.iter().enumerate().find(|(_, node)| node.id == *id)
    }

    /// Hangs each node below what it was made of.
    fn plant(mut nodes: Vec<Node>) -> Tree {
        nodes.sort_by(|a, b| a.created.cmp(&b.created).then(a.id.cmp(&b.id)));
        let places: HashMap<Id, usize> = nodes.iter().enumerate().map(|(at, node)| (node.id, at)).collect();
        let mut below = vec![Vec::new(); nodes.len()];
        let mut tops = Vec::new();
        for at in 0..nodes.len() {
            let node = &nodes[at];
            let made_of = node.source.as_ref().and_then(|source| source.id);
            // Records are no more than that: two could say that each was made of the other.
            let parent = [made_of, node.image]
                .into_iter()
                .flatten()
                .filter_map(|id| places.get(&id).copied())
                .find(|parent| !hangs_below(&nodes, *parent, at));
            nodes[at].parent = parent;
            match parent {
                Some(parent) => below[parent].push(at),
                None => tops.push(at),
            }
        }
        // Without recursion: nobody knows how deep it is.
        let mut planted: Vec<Node> = Vec::with_capacity(nodes.len());
        let mut next: Vec<(usize, usize, Option<usize>)> = tops.into_iter().rev().map(|at| (at, 0, None)).collect();
        while let Some((at, depth, parent)) = next.pop() {
            next.extend(below[at].iter().rev().map(|child| (*child, depth + 1, Some(planted.len()))));
            planted.push(Node { depth, parent, ..nodes[at].clone() });
        }
        Tree { nodes: planted }
    }
}

/// Whether one node is the other, or somewhere below it.
fn hangs_below(nodes: &[Node], mut node: usize, other: usize) -> bool {
    loop {
        match nodes[node].parent {
            _ if node == other => return true,
            Some(parent) => node = parent,
            None => return false,
        }
    }
}

/// The tree of all that is in the store.
pub fn tree(store: &Store) -> Result<Tree> {
    let of_image = |image: image::Image| Node {
        kind: kind_word(Shelf::Images),
        id: image.id,
        names: image.names.iter().map(ToString::to_string).collect(),
        created: image.created,
        source: None,
        depth: 0,
        image: None,
        parent: None,
    };
    let images = if_whole(image::list(store))?.unwrap_or_default();
    let mut nodes: Vec<Node> = images.into_iter().map(of_image).collect();
    for shelf in [Shelf::Snapshots, Shelf::Containers] {
        for id in store.ids(shelf)? {
            let Some(origin) = if_whole(Origin::of(store, Found { shelf, id }))? else { continue };
            nodes.push(Node {
                kind: kind_word(shelf),
                id,
                names: origin.name.iter().map(ToString::to_string).collect(),
                created: origin.created.unwrap_or_default(),
                source: origin.source,
                depth: 0,
                image: origin.image,
                parent: None,
            });
        }
    }
    Ok(Tree::plant(nodes))
}

/// What was read of an object; nothing if it was removed while we looked, or is damaged, which is `store check`'s to report:
/// the others have their places still.
fn if_whole<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.kind() == Kind::NotFound => Ok(None),
        Err(e) if e.kind() == Kind::Store => {
            log::warn!("left out of the tree: {e}");
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(nth: u8) -> Id {
        Id::from_bytes([nth; 32])
    }

    /// A node that was made as the `nth`, of another, and from an image.
    fn node(nth: u8, of: Option<u8>, image: Option<u8>) -> Node {
        let source = of.map(|of| Source { kind: "snapshot".to_string(), id: Some(id(of)), name: String::new() });
        Node {
            kind: if image.is_none() && of.is_none() { "image" } else { "snapshot" },
            id: id(nth),
            names: Vec::new(),
            created: Timestamp::from_second(i64::from(nth)).expect("a time"),
            source,
            depth: 0,
            image: image.map(id),
            parent: None,
        }
    }

    fn drawn(nodes: Vec<Node>) -> Vec<(u8, usize)> {
        let tree = Tree::plant(nodes);
        let nth = |node: &Node| (1..=20).find(|nth| id(*nth) == node.id).expect("one of ours");
        tree.nodes().iter().map(|node| (nth(node), node.depth)).collect()
    }

    #[test]
    fn each_hangs_below_what_it_was_made_of() {
        let nodes =
            vec![node(5, Some(3), Some(1)), node(3, Some(1), Some(1)), node(1, None, None), node(4, Some(1), Some(1))];
        assert_eq!(drawn(nodes.clone()), [(1, 0), (3, 1), (5, 2), (4, 1)]);
        let tree = Tree::plant(nodes);
        assert_eq!(tree.parent(&id(5)).map(|node| node.id), Some(id(3)));
        assert_eq!(tree.parent(&id(1)), None);
        assert_eq!(tree.children(&id(1)).map(|node| node.id).collect::<Vec<_>>(), [id(3), id(4)]);
        assert_eq!(tree.children(&id(9)).count(), 0);
        assert!(!tree.nodes().iter().any(|node| tree.is_orphan(node)));
    }

    #[test]
    fn an_orphan_hangs_below_its_image_or_at_the_top() {
        let nodes =
            vec![node(1, None, None), node(3, Some(2), Some(1)), node(4, Some(2), Some(9)), node(5, Some(4), None)];
        assert_eq!(drawn(nodes.clone()), [(1, 0), (3, 1), (4, 0), (5, 1)]);
        let tree = Tree::plant(nodes);
        let orphans: Vec<Id> = tree.nodes().iter().filter(|node| tree.is_orphan(node)).map(|node| node.id).collect();
        assert_eq!(orphans, [id(3), id(4)]);
    }

    #[test]
    fn a_circle_is_cut() {
        assert_eq!(drawn(vec![node(1, None, None), node(2, Some(2), Some(1))]), [(1, 0), (2, 1)]);
        let circle =
            vec![node(1, None, None), node(2, Some(3), Some(1)), node(3, Some(4), Some(1)), node(4, Some(2), Some(1))];
        let drawn = drawn(circle);
        assert_eq!(drawn.len(), 4, "{drawn:?}");
        assert_eq!(drawn.iter().filter(|(_, depth)| *depth == 1).count(), 1, "{drawn:?}");
    }
}
