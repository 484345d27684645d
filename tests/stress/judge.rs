//! The end: what the store holds against what its users were told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::pool::{Ids, Pool};
use crate::runner::locked;
use crate::support::store::Store;
use crate::worker::{Kind, Object, Worker};
use crate::{BASE, Kills};

/// Objects of a listing by id; what is accounted for is taken out.
struct Listing(BTreeMap<String, Value>);

impl Listing {
    fn of(store: &Store, line: &str) -> Listing {
        let listed = store.json(line);
        let objects = listed.as_array().expect("an array").clone();
        let count = objects.len();
        let by_id: BTreeMap<String, Value> =
            objects.into_iter().map(|object| (object["Id"].as_str().expect("an id").to_string(), object)).collect();
        assert_eq!(by_id.len(), count, "listed twice: {line}");
        Listing(by_id)
    }

    fn names(object: &Value) -> impl Iterator<Item = &str> {
        object["Names"].as_array().into_iter().flatten().filter_map(Value::as_str)
    }

    fn take(&mut self, id: Option<&str>, name: Option<&str>) -> Option<Value> {
        let id = match (id, name) {
            (Some(id), _) => id.to_string(),
            (None, Some(name)) => {
                let named = |(_, object): &(&String, &Value)| Listing::names(object).any(|n| n == name);
                self.0.iter().find(named)?.0.clone()
            }
            (None, None) => return None,
        };
        self.0.remove(&id)
    }
}

/// Fails the test unless the store holds what was acknowledged and not removed, as it was acknowledged, and nothing
/// else; where commands were killed, what they may have made or removed may be there or not.
pub fn compare(store: &Store, workers: &[Worker<'_>], pool: &Pool<'_>) {
    let mut problems: Vec<String> = Vec::new();
    let mut snapshots = Listing::of(store, "snapshot ls --format json");
    let mut containers = Listing::of(store, "ps --all --format json");
    let mut images = Listing::of(store, "image ls --format json");
    let doubtful: BTreeSet<&String> = workers.iter().flat_map(|worker| &worker.doubtful).collect();

    for object in workers.iter().flat_map(|worker| &worker.objects) {
        let (listing, shelf) = match object.kind {
            Kind::Snapshot => (&mut snapshots, "snapshots"),
            Kind::Container => (&mut containers, "containers"),
        };
        match listing.take(object.id.as_deref(), object.name.as_deref()) {
            None => problems.push(format!("lost: {object:?}")),
            Some(found) => {
                problems.extend(object.differs_from(&found).map(|what| format!("{what}: {object:?}, but {found}")));
                problems.extend(another_mark(store, shelf, object, &found));
            }
        }
    }
    for picture in workers.iter().flat_map(|worker| &worker.pictures) {
        match images.take(Some(&picture.id), None) {
            None => problems.push(format!("lost: {picture:?}")),
            Some(found) => {
                let tags: BTreeSet<String> = Listing::names(&found).map(str::to_string).collect();
                let more = tags.difference(&picture.tags).filter(|tag| !doubtful.contains(tag)).count();
                if more > 0 || !picture.tags.is_subset(&tags) {
                    problems.push(format!("other tags: {picture:?}, but {tags:?}"));
                }
            }
        }
    }
    for (listing, ids) in
        [(&mut snapshots, &pool.snapshots), (&mut containers, &pool.containers), (&mut images, &pool.images)]
    {
        problems.extend(compare_pool(listing, &locked(ids)));
    }
    problems.extend(images.take(None, Some(BASE)).is_none().then(|| format!("lost: {BASE}")));
    if pool.runner.kills == Kills::None {
        let tags = Listing::of(store, "image ls --format json");
        let tags: BTreeSet<&str> = tags.0.values().flat_map(Listing::names).collect();
        let ids = locked(&pool.tags);
        let once = |tag: &&&str| tag.starts_with("example.org/once/");
        let expected: BTreeSet<&str> = ids.left().map(String::as_str).collect();
        let found: BTreeSet<&str> = tags.iter().filter(once).copied().collect();
        problems.extend((expected != found).then(|| format!("tags: {expected:?}, but {found:?}")));
    }

    let mut untold = 0;
    for (id, object) in [snapshots, containers, images].into_iter().flat_map(|listing| listing.0) {
        let known = Listing::names(&object).any(|name| {
            doubtful.contains(&name.to_string()) || name.starts_with("pool-") || name.starts_with("example.org/pool/")
        });
        match pool.runner.kills {
            Kills::Some if known || doubtful.contains(&id) => {}
            Kills::Some => untold += 1,
            Kills::None => problems.push(format!("nobody made it, or it was removed: {object}")),
        }
    }
    if untold > pool.runner.untold.load(Ordering::Relaxed) {
        problems.push(format!("{untold} objects that nobody made"));
    }
    assert!(problems.is_empty(), "{} problems:\n{}", problems.len(), problems.join("\n"));
}

/// What a command wrote in an object, or in what that is a snapshot of, is in it.
fn another_mark(store: &Store, shelf: &str, object: &Object, found: &Value) -> Option<String> {
    let id = found["Id"].as_str().expect("an id");
    let mark = store.root().join("fs").join(shelf).join(id).join("rootfs/mark");
    let text = std::fs::read_to_string(mark).ok().map(|text| text.trim_end().to_string());
    (text != object.mark).then(|| format!("it says {text:?}: {object:?}"))
}

fn compare_pool(listing: &mut Listing, ids: &Ids) -> Vec<String> {
    let mut problems = Vec::new();
    for id in ids.left() {
        problems.extend(listing.take(Some(id), None).is_none().then(|| format!("lost: {id} of the pool")));
    }
    for id in &ids.doubtful {
        listing.0.remove(id);
    }
    problems
}

/// Removes everything but the base image.
pub fn remove_all(store: &Store, kills: Kills) {
    let all = |line: &str| Listing::of(store, line).0;
    let remove = |line: &str, ids: Vec<&String>| {
        if !ids.is_empty() {
            let ids: Vec<&str> = ids.into_iter().map(String::as_str).collect();
            store.ok_with(line, &ids);
        }
    };
    // What outlived a killed tupper runs still.
    let rm = if kills == Kills::Some { "rm --force" } else { "rm" };
    remove(rm, all("ps --all --format json").keys().collect());
    remove("snapshot rm", all("snapshot ls --format json").keys().collect());
    let images = all("image ls --format json");
    let but_base = images.iter().filter(|(_, image)| !Listing::names(image).any(|name| name == BASE));
    remove("image rm --force", but_base.map(|(id, _)| id).collect());
    for line in ["ps --all --quiet", "snapshot ls --quiet"] {
        assert_eq!(store.ok(line), "");
    }
}
