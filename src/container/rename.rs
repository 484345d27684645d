//! `rename`: another name for a container, whatever it does meanwhile (podman-rename(1)).

use std::os::fd::{AsFd, OwnedFd};

use super::record::Record;
use crate::error::{Context, Error, Kind, Result};
use crate::name::ObjectName;
use crate::store::{Found, Shelf, Store, record};

/// Gives the container that `text` names the name `new` instead of its own.
///
/// It has both for a moment, and never none: the new name leads to it before the record says it, and the old one after.
/// Whatever a kill or a power cut leaves in between, the name that the record says is the one that stays.
///
/// # Errors
/// [`Kind::AlreadyExists`] for a name that something has, itself included.
pub fn rename(store: &Store, text: &str, new: &ObjectName) -> Result<()> {
    let doing = || format!("rename container {text}");
    let _intent = store.intend().context(doing)?;
    // Whoever renames or removes it holds this, so the record is nobody else's to write, and `text` is its name still.
    let names = store.lock_shelf(Shelf::Names).context(doing)?;
    let found = store.find_among(text, &[Shelf::Containers]).call_context(doing)?;
    rename_found(store, names, found, new).context(doing)
}

fn rename_found(store: &Store, names: OwnedFd, found: Found, new: &ObjectName) -> Result<()> {
    let dir = store.open_object(Shelf::Containers, &found.id)?;
    let mut record = Record::read(dir.as_fd())?;
    store.claim_name_in(&names, new, found)?;
    // On the disk before the record: whoever has that synced for a reason of his own would take it there alone.
    store.sync()?;
    let old = record.name.replace(new.clone());
    let renamed = record::write(dir.as_fd(), &record).and_then(|()| still_there(store, found));
    if let Err(e) = renamed {
        store.release_name(&names, new, found)?;
        return Err(e);
    }
    if let Some(old) = old {
        store.release_name(&names, &old, found)?;
    }
    drop(names);
    store.sync()
}

/// One without a name is removed without the lock of the names.
fn still_there(store: &Store, found: Found) -> Result<()> {
    match store.exists(found.shelf, &found.id)? {
        true => Ok(()),
        false => Err(Error::new(Kind::NotFound, "it was removed meanwhile")),
    }
}
