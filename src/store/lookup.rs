//! From what a person types to an object: names, ids, unambiguous prefixes of ids; and the names themselves.
//!
//! A name is a symlink to its object. Making one is atomic (symlink(2) fails with EEXIST), and it becomes durable with
//! the snapshot that follows. A name whose object never came to be, or is gone, is stale: the next who wants it
//! replaces it, under the lock of `names/`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::Deserialize;

use super::{Shelf, Store, record};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::flock::{self, Lock};
use crate::kernel::fs;
use crate::name::{Id, ImageName, ObjectName};

/// An object that was looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// Where it lies: images, snapshots or containers.
    pub shelf: Shelf,
    /// Its id.
    pub id: Id,
}

impl Found {
    /// Its directory, below `fs/`.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}", self.shelf, self.id)
    }
}

impl Store {
    /// Finds an object by name, id or unambiguous prefix of an id, among snapshots and containers first, then among
    /// images. `container:`, `snapshot:` and `image:` before it decide.
    ///
    /// The whole name of an image comes before the first digits of an id: nobody chose those, and an image may be called `cafe`.
    pub fn find(&self, text: &str) -> Result<Found> {
        self.find_among(text, &[Shelf::Containers, Shelf::Snapshots, Shelf::Images])
    }

    /// [`find`](Store::find) among some kinds of objects only.
    pub fn find_among(&self, text: &str, shelves: &[Shelf]) -> Result<Found> {
        let (wanted, text) = match text.split_once(':') {
            Some(("container", rest)) => (Some(Shelf::Containers), rest),
            Some(("snapshot", rest)) => (Some(Shelf::Snapshots), rest),
            Some(("image", rest)) => (Some(Shelf::Images), rest),
            Some(("sha256", rest)) => (Some(Shelf::Images), rest),
            _ => (None, text),
        };
        let shelves: Vec<Shelf> = shelves.iter().copied().filter(|shelf| wanted.is_none_or(|w| w == *shelf)).collect();
        let kinds = shelves.iter().map(|shelf| kind_word(*shelf)).collect::<Vec<_>>().join(" or ");
        if text.is_empty() {
            return Err(Error::new(Kind::Invalid, format!("name of the {kinds}: it is empty")));
        }
        let objects: Vec<Shelf> = shelves.iter().copied().filter(|shelf| *shelf != Shelf::Images).collect();
        if let Some(found) = self.by_name(text)?.filter(|found| objects.contains(&found.shelf)) {
            return Ok(found);
        }
        if shelves.contains(&Shelf::Images)
            && text.parse::<Id>().is_err()
            && let Ok(name) = text.parse()
            && let Some(id) = self.tagged(&name)?
        {
            return Ok(Found { shelf: Shelf::Images, id });
        }
        if let Some(found) = self.by_id(text, &objects)? {
            return Ok(found);
        }
        if shelves.contains(&Shelf::Images) {
            if let Some(found) = self.by_id(text, &[Shelf::Images])? {
                return Ok(found);
            }
            if let Some(id) = self.by_short_name(text)? {
                return Ok(Found { shelf: Shelf::Images, id });
            }
        }
        let error = Error::new(Kind::NotFound, format!("{text}: no such {kinds}"));
        Err(match shelves.last() {
            Some(Shelf::Images) => error.with_hint("`tupper image ls` lists what there is"),
            Some(Shelf::Containers) => error.with_hint("`tupper ps -a` lists what there is"),
            _ => error.with_hint("`tupper snapshot ls` lists what there is"),
        })
    }

    /// The image whose name ends so.
    fn by_short_name(&self, text: &str) -> Result<Option<Id>> {
        let mut meant = Vec::new();
        for (name, id) in self.tags()? {
            if name.is_meant_by(text) && self.exists(Shelf::Images, &id)? {
                meant.push((name, id));
            }
        }
        match meant.as_slice() {
            [] => Ok(None),
            [(_, first), others @ ..] if others.iter().all(|(_, id)| id == first) => Ok(Some(*first)),
            several => {
                let names: Vec<String> = several.iter().map(|(name, _)| name.to_string()).collect();
                let error =
                    Error::new(Kind::Invalid, format!("{text}: several images are meant: {}", names.join(", ")));
                Err(error.with_hint("give the whole name"))
            }
        }
    }

    /// The image with this name.
    pub fn tagged(&self, name: &ImageName) -> Result<Option<Id>> {
        let tags = self.shelf(Shelf::Tags)?;
        match link_target(&tags, OsStr::new(&tag_file(name)))? {
            Some(found) if self.exists(Shelf::Images, &found.id)? => Ok(Some(found.id)),
            _ => Ok(None),
        }
    }

    /// Every name of an image with the image's id, sorted by name.
    pub fn tags(&self) -> Result<Vec<(ImageName, Id)>> {
        let tags = self.shelf(Shelf::Tags)?;
        let mut found = Vec::new();
        for file in fs::list(tags.as_fd(), ".")? {
            let name = file.to_str().and_then(|text| text.replace('%', "/").parse::<ImageName>().ok());
            if let (Some(name), Some(target)) = (name, link_target(&tags, &file)?) {
                found.push((name, target.id));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Makes `name` the name of the image `id`, whatever image had it before: one rename.
    pub(crate) fn set_tag(&self, name: &ImageName, id: &Id) -> Result<()> {
        let tags = self.shelf(Shelf::Tags)?;
        let staging = self.staging(Lock::Shared)?;
        let draft = format!("tag-{}", self.new_id()?);
        fs::symlink(format!("../images/{id}"), staging.as_fd(), &draft)?;
        replace(&staging, &draft, &tags, &tag_file(name))
    }

    /// Puts into `dir`, an image's directory, the name that it is about to get.
    pub(crate) fn prepare_tag(&self, dir: BorrowedFd<'_>, name: &ImageName, id: &Id) -> Result<()> {
        fs::symlink(format!("../images/{id}"), dir, tag_file(name)).context(|| format!("tag {name}"))
    }

    /// Makes a [prepared](Store::prepare_tag) name one of the image, whatever image had it before: one rename.
    pub(crate) fn take_tag(&self, dir: BorrowedFd<'_>, name: &ImageName) -> Result<()> {
        let tags = self.shelf(Shelf::Tags)?;
        fs::rename_replace(dir, tag_file(name), tags.as_fd(), tag_file(name)).context(|| format!("tag {name}"))
    }

    /// The names that are [prepared](Store::prepare_tag) in `dir`.
    pub(crate) fn prepared_tags(&self, dir: BorrowedFd<'_>) -> Result<Vec<ImageName>> {
        let mut names = Vec::new();
        for file in fs::list(dir, ".")? {
            let name = file.to_str().and_then(|text| text.replace('%', "/").parse::<ImageName>().ok());
            if let Some(name) = name.filter(|name| *tag_file(name) == *file) {
                names.extend(fs::read_link_if_any(dir, &file)?.map(|_| name));
            }
        }
        Ok(names)
    }

    /// [`take_tag`](Store::take_tag) for somebody who was killed before; not if its image is gone, or the name was given
    /// to one since.
    pub(crate) fn take_tag_left(&self, dir: BorrowedFd<'_>, name: &ImageName) -> Result<()> {
        let file = tag_file(name);
        let target = fs::read_link_if_any(dir, &file)?.and_then(|target| parse_target(&target));
        let there = target.map_or(Ok(false), |found| self.exists(found.shelf, &found.id))?;
        // A link that was made later has a higher number (btrfs_get_free_objectid, fs/btrfs/disk-io.c).
        let since = match fs::metadata_at(self.shelf(Shelf::Tags)?.as_fd(), &file) {
            Ok(tag) => tag.st_ino > fs::metadata_at(dir, &file)?.st_ino,
            Err(e) if e.kind() == Kind::NotFound => false,
            Err(e) => return Err(e),
        };
        if there && !since { self.take_tag(dir, name) } else { fs::unlink(dir, &file) }
    }

    /// Takes a name away from its image.
    pub(crate) fn remove_tag(&self, name: &ImageName) -> Result<()> {
        fs::unlink(self.shelf(Shelf::Tags)?.as_fd(), tag_file(name))
    }

    /// Gives a new object its name. `Kind::AlreadyExists` when a living object has it.
    pub(crate) fn claim_name(&self, name: &ObjectName, object: Found) -> Result<()> {
        let names = self.shelf(Shelf::Names)?;
        match fs::symlink(target_of(object), names.as_fd(), name.as_str()) {
            Err(e) if e.kind() == Kind::AlreadyExists => {}
            other => return other,
        }
        // Whoever replaces a stale name holds this lock, so the name cannot become somebody's between look and unlink.
        flock::lock(names.as_fd(), Lock::Exclusive, || Shelf::Names)?;
        self.claim_name_in(&names, name, object)
    }

    /// Whether a name could be claimed now; else the error that says whose it is.
    pub(crate) fn require_free(&self, name: &ObjectName) -> Result<()> {
        match link_target(&self.shelf(Shelf::Names)?, OsStr::new(name.as_str()))? {
            Some(owner) if self.is_alive(owner)? => Err(taken(name, owner)),
            _ => Ok(()),
        }
    }

    /// [`claim_name`](Store::claim_name) in the shelf that the caller has locked.
    pub(crate) fn claim_name_in(&self, names: &OwnedFd, name: &ObjectName, object: Found) -> Result<()> {
        if let Some(owner) = link_target(names, OsStr::new(name.as_str()))? {
            if self.is_alive(owner)? {
                return Err(taken(name, owner));
            }
            fs::unlink(names.as_fd(), name.as_str())?;
        }
        fs::symlink(target_of(object), names.as_fd(), name.as_str()).context(|| format!("name {name}"))
    }

    /// Frees a name, if it still is this object's. `names` is the locked shelf: between look and unlink the name must
    /// not become another's.
    pub(crate) fn release_name(&self, names: &OwnedFd, name: &ObjectName, object: Found) -> Result<()> {
        match link_target(names, OsStr::new(name.as_str()))? {
            Some(owner) if owner == object => fs::unlink(names.as_fd(), name.as_str()),
            _ => Ok(()),
        }
    }

    /// The image that was used last.
    pub fn last_image(&self) -> Result<Option<Id>> {
        match fs::read_link_if_any(self.dir(), "last")?.and_then(|target| parse_target(&target)) {
            Some(found) if self.exists(Shelf::Images, &found.id)? => Ok(Some(found.id)),
            _ => Ok(None),
        }
    }

    /// Remembers the image that was used last. A convenience: nothing depends on it.
    pub(crate) fn set_last_image(&self, id: &Id) -> Result<()> {
        if self.last_image()?.is_some_and(|last| last == *id) {
            return Ok(());
        }
        let staging = self.staging(Lock::Shared)?;
        let draft = format!("last-{}", self.new_id()?);
        fs::symlink(format!("images/{id}"), staging.as_fd(), &draft)?;
        replace(&staging, &draft, &fs::duplicate(self.dir())?, "last")
    }

    /// A fresh random id.
    pub(crate) fn new_id(&self) -> Result<Id> {
        Ok(Id::from_bytes(fs::random_bytes()?))
    }

    /// The ids of the objects on a shelf, unsorted.
    pub fn ids(&self, shelf: Shelf) -> Result<Vec<Id>> {
        let names = match fs::list(self.dir(), shelf.as_str()) {
            Err(e) if e.kind() == Kind::NotFound && shelf == Shelf::Volumes => return Ok(Vec::new()),
            names => names.context(|| format!("store {}", self.root().display()))?,
        };
        let mut ids = Vec::new();
        for id in names.iter().filter_map(|name| name.to_str()?.parse().ok()) {
            if self.exists(shelf, &id)? {
                ids.push(id);
            }
        }
        Ok(ids)
    }

    /// The objects of a shelf, as `open` reads them. One that goes meanwhile is none; one that cannot be read is told to `broken`,
    /// which says whether to go on without it.
    pub(crate) fn each<T>(
        &self,
        shelf: Shelf,
        open: impl Fn(&Id) -> Result<T>,
        mut broken: impl FnMut(Error) -> Result<()>,
    ) -> Result<Vec<T>> {
        let mut objects = Vec::new();
        for id in self.ids(shelf)? {
            match open(&id) {
                Ok(object) => objects.push(object),
                Err(e) if e.kind() == Kind::NotFound => {}
                Err(e) => broken(e)?,
            }
        }
        Ok(objects)
    }

    /// Whether the object is there, whole.
    pub fn exists(&self, shelf: Shelf, id: &Id) -> Result<bool> {
        let whole = match shelf {
            Shelf::Images => "config.json",
            _ => "rootfs",
        };
        fs::exists_at(self.dir(), format!("{shelf}/{id}/{whole}"))
    }

    /// The directory of an object, open. `Kind::NotFound` when it is not there, or not whole.
    pub(crate) fn open_object(&self, shelf: Shelf, id: &Id) -> Result<OwnedFd> {
        if !self.exists(shelf, id)? {
            return Err(Error::new(Kind::NotFound, format!("{} {}: no such object", kind_word(shelf), id.short())));
        }
        fs::open_directory(self.dir(), format!("{shelf}/{id}")).context(|| kind_word(shelf))
    }

    fn by_name(&self, text: &str) -> Result<Option<Found>> {
        if text.parse::<ObjectName>().is_err() {
            return Ok(None);
        }
        match link_target(&self.shelf(Shelf::Names)?, OsStr::new(text))? {
            Some(found) if self.exists(found.shelf, &found.id)? => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    fn by_id(&self, text: &str, shelves: &[Shelf]) -> Result<Option<Found>> {
        if let Ok(id) = text.parse::<Id>() {
            for shelf in shelves {
                if self.exists(*shelf, &id)? {
                    return Ok(Some(Found { shelf: *shelf, id }));
                }
            }
            return Ok(None);
        }
        if text.is_empty() || text.len() > 64 || !text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Ok(None);
        }
        let mut found = Vec::new();
        for shelf in shelves {
            let ids = self.ids(*shelf)?.into_iter().filter(|id| id.to_string().starts_with(text));
            found.extend(ids.map(|id| Found { shelf: *shelf, id }));
        }
        match found.as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(*one)),
            many => {
                let message = format!("{text}: {} ids begin with it", many.len());
                Err(Error::new(Kind::Invalid, message).with_hint("give more digits"))
            }
        }
    }

    /// Where a name leads, whether that is there or not.
    pub(crate) fn named(&self, name: &ObjectName) -> Result<Option<Found>> {
        link_target(&self.shelf(Shelf::Names)?, OsStr::new(name.as_str()))
    }

    /// The names that lead to an object.
    pub(crate) fn names_of(&self, object: Found) -> Result<Vec<ObjectName>> {
        let names = self.shelf(Shelf::Names)?;
        let mut found = Vec::new();
        for file in fs::list(names.as_fd(), ".")? {
            let name = file.to_str().and_then(|text| text.parse::<ObjectName>().ok());
            if let Some(name) = name.filter(|_| link_target(&names, &file).is_ok_and(|target| target == Some(object))) {
                found.push(name);
            }
        }
        Ok(found)
    }

    /// Makes the name that an object's record says lead to it again, whatever it led to; if it is the name of another,
    /// which leads there, this one has none from now on. Whether it has its name.
    pub(crate) fn restore_name(&self, object: Found) -> Result<bool> {
        let names = self.lock_shelf(Shelf::Names)?;
        // Whoever holds that lock may write the name in the record.
        let dir = self.open_object(object.shelf, &object.id)?;
        let Some(name) = record::read::<Named>(dir.as_fd())?.and_then(|record| record.name) else { return Ok(true) };
        let file = OsStr::new(name.as_str());
        if let Some(owner) = link_target(&names, file)? {
            if owner == object {
                return Ok(true);
            }
            if self.is_alive(owner)? && !self.is_called_otherwise(&names, file, owner)? {
                record::forget_name(dir.as_fd())?;
                return Ok(false);
            }
        }
        // Something else may be in the way, which is not ours to remove.
        if fs::read_link_if_any(names.as_fd(), file)?.is_some() {
            fs::unlink(names.as_fd(), file)?;
        }
        fs::symlink(target_of(object), names.as_fd(), name.as_str()).context(|| format!("name {name}"))?;
        Ok(true)
    }

    /// Removes what lies among the tags or names and is no link of the store's. A directory stays, which is an error.
    pub(crate) fn remove_strange_link(&self, shelf: Shelf, file: &OsStr) -> Result<()> {
        // Whoever changes tags holds the images.
        let _changing = self.lock_shelf(if shelf == Shelf::Tags { Shelf::Images } else { shelf })?;
        match self.strange_links(shelf)?.iter().any(|strange| strange == file) {
            true => fs::unlink(self.shelf(shelf)?.as_fd(), file),
            false => Ok(()), // it was replaced meanwhile
        }
    }

    /// What lies among the tags or names and is no link of the store's.
    pub(crate) fn strange_links(&self, shelf: Shelf) -> Result<Vec<OsString>> {
        let directory = self.shelf(shelf)?;
        let mut strange = Vec::new();
        for file in fs::list(directory.as_fd(), ".")? {
            let text = file.to_str().unwrap_or_default();
            let named = match shelf {
                Shelf::Tags => text.replace('%', "/").parse::<ImageName>().is_ok(),
                _ => text.parse::<ObjectName>().is_ok(),
            };
            if !(named && link_target(&directory, &file)?.is_some()) && fs::exists_at(directory.as_fd(), &file)? {
                strange.push(file);
            }
        }
        Ok(strange)
    }

    /// The names whose objects are gone or never came to be, and those that a rename which was killed left beside the one
    /// that the record says; with `remove`, they are removed.
    pub(crate) fn stale_names(&self, remove: bool) -> Result<Vec<String>> {
        let names = self.lock_shelf(Shelf::Names)?;
        let mut stale = Vec::new();
        for file in fs::list(names.as_fd(), ".")? {
            let Some(owner) = link_target(&names, &file)? else { continue };
            if !self.is_alive(owner)? || self.is_called_otherwise(&names, &file, owner)? {
                if remove {
                    fs::unlink(names.as_fd(), &file)?;
                }
                stale.push(file.to_string_lossy().into_owned());
            }
        }
        Ok(stale)
    }

    /// The object's record says another name than this, and that one leads to it: or it says that it has none.
    fn is_called_otherwise(&self, names: &OwnedFd, file: &OsStr, owner: Found) -> Result<bool> {
        // One that cannot be read is damage, and its name the way to it.
        let Ok(Some(Named { name })) =
            self.open_object(owner.shelf, &owner.id).and_then(|dir| record::read(dir.as_fd()))
        else {
            return Ok(false);
        };
        match name {
            Some(name) if file == name.as_str() => Ok(false),
            Some(name) => Ok(link_target(names, OsStr::new(name.as_str()))? == Some(owner)),
            None => Ok(true),
        }
    }

    /// Whole, or being made by somebody who holds its lock.
    fn is_alive(&self, object: Found) -> Result<bool> {
        if self.exists(object.shelf, &object.id)? {
            return Ok(true);
        }
        let Some(dir) = fs::open_directory_if_any(self.dir(), object.path())? else { return Ok(false) };
        match flock::try_lock(dir.as_fd()) {
            Err(e) if e.kind() == Kind::InUse => Ok(true),
            // Its maker may have finished it since we looked, and let go.
            other => other.and_then(|()| self.exists(object.shelf, &object.id)),
        }
    }
}

/// What the record of anything that may have a name says of it.
#[derive(Deserialize)]
pub(crate) struct Named {
    pub name: Option<ObjectName>,
}

/// Where the name of an object leads.
fn target_of(object: Found) -> String {
    format!("../{}/{}", object.shelf, object.id)
}

/// What a shelf holds, in the singular.
pub(crate) fn kind_word(shelf: Shelf) -> &'static str {
    shelf.as_str().trim_end_matches('s')
}

fn tag_file(name: &ImageName) -> String {
    name.to_string().replace('/', "%")
}

/// Renames a link over another one; it does not stay where it was if that fails.
fn replace(from_at: &OwnedFd, from: &str, to_at: &OwnedFd, to: &str) -> Result<()> {
    fs::rename_replace(from_at.as_fd(), from, to_at.as_fd(), to).inspect_err(|_| {
        // The cause is what counts; a link that stays is removed by the next gc.
        let _ = fs::unlink(from_at.as_fd(), from);
    })
}

fn taken(name: &ObjectName, owner: Found) -> Error {
    let message = format!("name {name}: taken by {} {}", kind_word(owner.shelf), owner.id.short());
    Error::new(Kind::AlreadyExists, message).with_hint("choose another name, or remove that first")
}

/// What a link of the store leads to; `None` when it is not there, or leads to no object.
pub(super) fn link_target(shelf: &OwnedFd, name: &OsStr) -> Result<Option<Found>> {
    Ok(fs::read_link_if_any(shelf.as_fd(), name)?.and_then(|target| parse_target(&target)))
}

fn parse_target(target: &Path) -> Option<Found> {
    let id = target.file_name()?.to_str()?.parse().ok()?;
    let shelf = match target.parent()?.file_name()?.to_str()? {
        "images" => Shelf::Images,
        "snapshots" => Shelf::Snapshots,
        "containers" => Shelf::Containers,
        _ => return None,
    };
    Some(Found { shelf, id })
}
