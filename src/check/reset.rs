//! The end of a store: what is in it goes, one object after the other, and then the store.
//!
//! Each removal is atomic and checks that a subvolume is the one that the store recorded, so a reset that is killed, or comes
//! upon something that is not the store's, leaves a store with less in it.

use std::fmt;

use super::gc;
use crate::container::{self, Removal};
use crate::error::Result;
use crate::name::{Id, NetworkName, VolumeName};
use crate::store::{Found, Shelf, Store};
use crate::subvolume::pool;
use crate::{image, network, snapshot, volume};

/// Something that people made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A container, running or not.
    Container(Id),
    /// A snapshot, in the trash or not.
    Snapshot(Id),
    /// A volume.
    Volume(VolumeName),
    /// A network.
    Network(NetworkName),
    /// An image, with its names and layers.
    Image(Id),
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Object::Container(id) => write!(f, "container {id}"),
            Object::Snapshot(id) => write!(f, "snapshot {id}"),
            Object::Volume(name) => write!(f, "volume {name}"),
            Object::Network(name) => write!(f, "network {name}"),
            Object::Image(id) => write!(f, "image {id}"),
        }
    }
}

/// All that is in the store, in the order in which it can go.
pub fn contents(store: &Store) -> Result<Vec<Object>> {
    let mut all = Vec::new();
    all.extend(store.ids(Shelf::Containers)?.into_iter().map(Object::Container));
    all.extend(store.ids(Shelf::Snapshots)?.into_iter().map(Object::Snapshot));
    all.extend(volume::list(store)?.into_iter().map(|volume| Object::Volume(volume.name)));
    let networks = network::list(store)?.into_iter().filter(|network| !network.is_own());
    all.extend(networks.map(|network| Object::Network(network.name)));
    all.extend(store.ids(Shelf::Images)?.into_iter().map(Object::Image));
    Ok(all)
}

/// Removes one of these. A container that runs is killed.
pub fn remove(store: &Store, object: &Object) -> Result<()> {
    match object {
        Object::Container(id) => {
            container::remove(store, &id.to_string(), &Removal { force: true, volumes: false, dry_run: false })
                .map(drop)
        }
        Object::Snapshot(id) => snapshot::remove_found(store, Found { shelf: Shelf::Snapshots, id: *id }),
        Object::Volume(name) => volume::remove(store, name),
        Object::Network(name) => network::remove(store, name),
        Object::Image(id) => image::remove(store, &id.to_string(), true, false).map(drop),
    }
}

/// Removes the store, of which all [`contents`] are gone, and what killed commands left in it.
///
/// # Errors
/// A store in which there is something else, or something anew ([`Kind::InUse`](crate::error::Kind::InUse)): it stays.
pub fn end(store: Store) -> Result<()> {
    // A throwaway's tree goes after its command.
    store.await_removals()?;
    network::settle(&store)?;
    image::prune(&store, true, false)?;
    pool::forget(&store, None)?;
    if let Some(e) = gc(&store, false)?.failed.into_iter().next() {
        return Err(e);
    }
    store.destroy()
}
