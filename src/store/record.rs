//! Records: what the store knows of an object beside its files, as xattrs on the object's directory.
//!
//! `user.tupper.record` is a small versioned JSON document whose fields belong to the room that writes it.
//! `user.tupper.spec`, `user.tupper.spec.1`, … are what a container runs: as large as a command line and an environment may
//! be, in pieces that fit in a leaf. It is no file, because no file is on the disk with the snapshot unless fsync(2) was
//! called for it, and what that brings there of its directory comes without the sign in `staging/` that it was being made.
//! `user.tupper.life` is how a container fares: it is written by whoever runs the container, and the record by whoever
//! makes or renames it.
//! `user.tupper.limits` is what a container's limits were changed to after it was made: an xattr of its own, since that
//! may be somebody else again. `user.tupper.subvolume` names the one subvolume that may lie in `rootfs`: by its own UUID, or, where the record has
//! to be set before the snapshot is made, by the UUID of what it is a snapshot of.

use std::os::fd::{AsFd, BorrowedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::uuid_text;
use crate::error::{Context, Error, Kind, Result};

use crate::kernel::{btrfs, fs};

const RECORD: &str = "user.tupper.record";
const SPEC: &str = "user.tupper.spec";
const LIMITS: &str = "user.tupper.limits";
const LIFE: &str = "user.tupper.life";
const SUBVOLUME: &str = "user.tupper.subvolume";

/// The field of a record that holds for another subvolume.
const THEN: &str = "then";

/// What fits in an attribute with nodes of any size: BTRFS_MAX_XATTR_SIZE is 3,963 less the name for the smallest of 4 KiB.
const PIECE: usize = 3072;

/// A larger spec is refused: it holds a command line and an environment, which execve(2) limits to 2 MiB.
const SPEC_LIMIT: usize = 4 << 20;

/// The version that every record carries. Unknown fields are ignored, missing ones have defaults: only a change that
/// an older tupper would misread raises it.
const VERSION: u32 = 1;

#[derive(serde::Serialize, serde::Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    record: T,
}

/// Sets an object's record.
pub(crate) fn write<T: Serialize>(object: BorrowedFd<'_>, record: &T) -> Result<()> {
    write_as(RECORD, object, record)
}

/// Sets what a new container runs.
pub(crate) fn write_spec(object: BorrowedFd<'_>, spec: &[u8]) -> Result<()> {
    if spec.len() > SPEC_LIMIT {
        return Err(Error::new(Kind::Limit, format!("write the spec: larger than {SPEC_LIMIT} bytes")));
    }
    let mut pieces = spec.chunks(PIECE).enumerate();
    pieces.try_for_each(|(nth, piece)| fs::set_xattr(object, &spec_name(nth), piece)).context(|| "write the spec")
}

/// What a container runs; `None` where nothing says so.
pub(crate) fn read_spec(object: BorrowedFd<'_>) -> Result<Option<Vec<u8>>> {
    let mut spec = None;
    for nth in 0..=SPEC_LIMIT / PIECE {
        let Some(piece) = fs::get_xattr(object, &spec_name(nth)).context(|| "read the spec")? else { break };
        let last = piece.len() < PIECE;
        spec.get_or_insert_with(Vec::new).extend(piece);
        if last {
            break;
        }
    }
    Ok(spec)
}

fn spec_name(nth: usize) -> String {
    if nth == 0 { SPEC.to_string() } else { format!("{SPEC}.{nth}") }
}

/// Sets the limits that a container has instead of those that it was made with.
pub(crate) fn write_limits<T: Serialize>(object: BorrowedFd<'_>, limits: &T) -> Result<()> {
    write_as(LIMITS, object, limits)
}

/// Sets how a container fares.
pub(crate) fn write_life<T: Serialize>(object: BorrowedFd<'_>, life: &T) -> Result<()> {
    write_as(LIFE, object, life)
}

fn write_as<T: Serialize>(name: &str, object: BorrowedFd<'_>, record: &T) -> Result<()> {
    let json = serde_json::to_vec(&Versioned { version: VERSION, record })
        .map_err(|e| Error::new(Kind::Invalid, format!("write the record: {e}")))?;
    fs::set_xattr(object, name, &json).context(|| "write the record")
}

/// Sets an object's record, and what its `source` is as soon as its `rootfs` is the subvolume with this UUID, which one exchange
/// makes it.
pub(crate) fn write_for_both<S: Serialize>(
    object: BorrowedFd<'_>,
    mut record: Value,
    uuid: [u8; 16],
    source: &S,
) -> Result<()> {
    record[THEN] = json!({ "subvolume": uuid_text(&uuid), "source": source });
    write(object, &record)
}

/// An object's record; `None` where there is none.
pub(crate) fn read<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Option<T>> {
    read_as(RECORD, object)
}

/// Decides which of [both](write_for_both) it is.
fn settle(object: BorrowedFd<'_>, record: &mut Value) -> Result<()> {
    let Some(mut then) = record.as_object_mut().and_then(|record| record.remove(THEN)) else { return Ok(()) };
    let rootfs = match fs::open_directory(object, "rootfs") {
        // It is being removed.
        Err(e) if e.kind() == Kind::NotFound => return Ok(()),
        other => other?,
    };
    if then["subvolume"] == uuid_text(&btrfs::info(rootfs.as_fd())?.uuid) {
        record["source"] = then["source"].take();
    }
    Ok(())
}

/// The limits that a container has instead of those that it was made with, if they were changed.
pub(crate) fn read_limits<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Option<T>> {
    read_as(LIMITS, object)
}

/// How a container fares, if it was ever started.
pub(crate) fn read_life<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Option<T>> {
    read_as(LIFE, object)
}

/// What an object's record is.
pub(crate) enum Condition<T> {
    /// It can be read.
    Good(T),
    /// It cannot, and why.
    Broken(String),
    /// Only a newer tupper can read it.
    Newer(String),
}

/// What an object's record is; an error is one of the disk.
pub(crate) fn examine<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Condition<T>> {
    Ok(examine_as(RECORD, object)?.unwrap_or_else(|| Condition::Broken("it has no record".to_string())))
}

/// What the limits are that a container has instead of those that it was made with, if there are any.
pub(crate) fn examine_limits<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Option<Condition<T>>> {
    examine_as(LIMITS, object)
}

/// What is noted of how a container fares, if something is.
pub(crate) fn examine_life<T: DeserializeOwned>(object: BorrowedFd<'_>) -> Result<Option<Condition<T>>> {
    examine_as(LIFE, object)
}

fn examine_as<T: DeserializeOwned>(name: &str, object: BorrowedFd<'_>) -> Result<Option<Condition<T>>> {
    let Some(json) = fs::get_xattr(object, name).context(|| "read the record")? else { return Ok(None) };
    Ok(Some(match read_as::<T>(name, object) {
        Ok(Some(record)) => Condition::Good(record),
        Ok(None) => return Ok(None),
        Err(e) if e.errno().is_some() => return Err(e),
        Err(e) => {
            let version = serde_json::from_slice::<Value>(&json).ok().and_then(|value| value.get("version")?.as_u64());
            match version {
                Some(version) if version > u64::from(VERSION) => Condition::Newer(e.to_string()),
                _ => Condition::Broken(e.to_string()),
            }
        }
    }))
}

/// What can be read of an object's record whose fields are not all as they should be: those that are, by name.
pub(crate) fn fields(object: BorrowedFd<'_>) -> Map<String, Value> {
    let json = fs::get_xattr(object, RECORD).ok().flatten();
    match json.and_then(|json| serde_json::from_slice(&json).ok()) {
        Some(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// A field of a [damaged](fields) record, if it can be read.
pub(crate) fn field<T: DeserializeOwned>(fields: &Map<String, Value>, name: &str) -> Option<T> {
    serde_json::from_value(fields.get(name)?.clone()).ok()
}

/// An object's record is as it was, without its name.
pub(crate) fn forget_name(object: BorrowedFd<'_>) -> Result<()> {
    let Some(mut record) = read::<Map<String, Value>>(object)? else { return Ok(()) };
    record.remove("version");
    record.insert("name".to_string(), Value::Null);
    write(object, &record)
}

/// Takes away the limits that a container has instead of those that it was made with.
pub(crate) fn forget_limits(object: BorrowedFd<'_>) -> Result<()> {
    fs::remove_xattr(object, LIMITS)
}

/// Takes away what is noted of how a container fares.
pub(crate) fn forget_life(object: BorrowedFd<'_>) -> Result<()> {
    fs::remove_xattr(object, LIFE)
}

fn read_as<T: DeserializeOwned>(name: &str, object: BorrowedFd<'_>) -> Result<Option<T>> {
    let Some(json) = fs::get_xattr(object, name).context(|| "read the record")? else { return Ok(None) };
    let broken = |e| Error::new(Kind::Store, format!("read the record: {e}"));
    // flatten buffers through a Value anyway; doing it by hand lets a newer version be named before its fields matter.
    let mut value: Value = serde_json::from_slice(&json).map_err(broken)?;
    match value.get("version").and_then(Value::as_u64) {
        Some(version) if version <= u64::from(VERSION) => {
            settle(object, &mut value)?;
            serde_json::from_value(value).map(Some).map_err(broken)
        }
        version => {
            let message = format!("read the record: version {version:?} is not {VERSION} or older");
            Err(Error::new(Kind::Store, message).with_hint("use the newer tupper that wrote it"))
        }
    }
}

/// Which subvolume an object's `rootfs` may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    /// The one with this UUID.
    Itself([u8; 16]),
    /// A snapshot of the one with this UUID.
    ChildOf([u8; 16]),
}

/// Records which subvolume the object's `rootfs` is or will be.
pub(crate) fn write_identity(object: BorrowedFd<'_>, identity: Identity) -> Result<()> {
    write_identities(object, &[identity])
}

/// Records which subvolumes the object's `rootfs` may be.
pub(crate) fn write_identities(object: BorrowedFd<'_>, identities: &[Identity]) -> Result<()> {
    let words: Vec<String> = identities.iter().map(ToString::to_string).collect();
    fs::set_xattr(object, SUBVOLUME, words.join(" ").as_bytes()).context(|| "record the subvolume")
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Identity::Itself(uuid) => write!(f, "uuid:{}", uuid_text(uuid)),
            Identity::ChildOf(uuid) => write!(f, "child-of:{}", uuid_text(uuid)),
        }
    }
}

/// Whether the object says which subvolume it has, in words that mean something.
pub(crate) fn has_identity(object: BorrowedFd<'_>) -> Result<bool> {
    let Some(recorded) = fs::get_xattr(object, SUBVOLUME)? else { return Ok(false) };
    let is_word = |word: &[u8]| {
        let uuid = [b"uuid:".as_slice(), b"child-of:"].iter().find_map(|prefix| word.strip_prefix(*prefix));
        uuid.is_some_and(|uuid| uuid.len() == 36 && uuid.iter().all(|b| b.is_ascii_hexdigit() || *b == b'-'))
    };
    Ok(recorded.split(|byte| *byte == b' ').any(is_word))
}

/// Whether this subvolume is one that the store recorded for the object.
pub(crate) fn identity_matches(object: BorrowedFd<'_>, rootfs: BorrowedFd<'_>) -> Result<bool> {
    let Some(recorded) = fs::get_xattr(object, SUBVOLUME)? else { return Ok(false) };
    let info = btrfs::info(rootfs)?;
    let itself = Identity::Itself(info.uuid).to_string();
    let child = info.parent_uuid.map(|uuid| Identity::ChildOf(uuid).to_string());
    let is_it = |word: &[u8]| word == itself.as_bytes() || child.as_ref().is_some_and(|child| word == child.as_bytes());
    Ok(recorded.split(|byte| *byte == b' ').any(is_it))
}
