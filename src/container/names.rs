//! Names for containers that nobody named: an adjective and a vessel, since everything here fits in a box.

use crate::error::{Error, Kind, Result};
use crate::kernel::fs;
use crate::name::ObjectName;
use crate::store::Store;

const ADJECTIVES: [&str; 32] = [
    "airtight", "amber", "brisk", "bright", "calm", "clever", "cosy", "crisp", "eager", "fresh", "gentle", "glad",
    "handy", "hardy", "honest", "jolly", "keen", "light", "lively", "lucky", "mellow", "modest", "neat", "nimble",
    "patient", "plain", "quiet", "snug", "spry", "steady", "sunny", "tidy",
];

const VESSELS: [&str; 32] = [
    "amphora", "basin", "basket", "beaker", "bottle", "bowl", "box", "bucket", "canteen", "carafe", "casket", "chest",
    "crate", "cup", "decanter", "dish", "drum", "flask", "goblet", "hamper", "jar", "jug", "kettle", "ladle", "locker",
    "mug", "pail", "pitcher", "pot", "thermos", "tub", "vase",
];

/// A name that no object has now.
pub(super) fn free(store: &Store) -> Result<ObjectName> {
    for attempt in 0..100 {
        let random = fs::random_bytes()?;
        let pick = |byte: u8| usize::from(byte) % 32;
        let mut name = format!("{}_{}", ADJECTIVES[pick(random[0])], VESSELS[pick(random[1])]);
        if attempt > 2 {
            name.push_str(&u16::from_le_bytes([random[2], random[3]]).to_string());
        }
        if matches!(store.find_among(&name, &[crate::store::Shelf::Containers, crate::store::Shelf::Snapshots]), Err(e) if e.kind() == Kind::NotFound)
        {
            return name.parse();
        }
    }
    Err(Error::new(Kind::AlreadyExists, "make up a name: a hundred were taken").with_hint("give one with --name"))
}
