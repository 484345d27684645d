//! A btrfs of a test's own, and archives made byte by byte.

use std::fs::File;
use std::io::{Cursor, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use crate::support::disk::Disk;
use tupper::error::Result;
use tupper::layer::{self, Limits, Recipe, Unpacked, unpack_watched};
use tupper::name::Digest;

/// A btrfs of a test's own, with a directory for each thing that is tried.
pub struct Scratch {
    disk: Disk,
}

impl Scratch {
    pub fn new() -> Scratch {
        Scratch { disk: Disk::btrfs() }
    }

    pub fn path(&self) -> PathBuf {
        self.disk.path()
    }

    /// A new directory on it.
    pub fn make(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir(&path).expect("a directory");
        path
    }
}

/// Runs a program that must succeed; its standard output.
pub fn run(command: &mut Command) -> Vec<u8> {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let told = || String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{command:?}: {}", told());
    output.stdout
}

pub fn shell(script: &str, directory: &Path) -> String {
    let output = run(Command::new("bash").args(["-euo", "pipefail", "-c", script]).current_dir(directory));
    String::from_utf8_lossy(&output).into_owned()
}

/// Unpacks an archive, and sees that it can be put together again.
pub fn unpack_bytes(bytes: &[u8], into: &Path, limits: &Limits) -> Result<Unpacked> {
    let into = File::open(into).expect("a directory");
    let (_beside, recipe) = recipe();
    let bytes = Box::new(Cursor::new(bytes.to_vec()));
    let unpacked = unpack_watched(bytes, into.as_fd(), limits, Arc::new(|_| Ok(())), Some(&recipe))?;
    if let Some(rebuilt) = rebuilt(&recipe, into) {
        assert_eq!(Digest::of(&rebuilt), unpacked.diff_id, "put together again it is another archive");
    }
    Ok(unpacked)
}

/// A place for a recipe.
pub fn recipe() -> (tempfile::TempDir, Recipe) {
    let beside = tempfile::tempdir().expect("a directory");
    let directory = File::open(beside.path()).expect("a directory");
    let recipe = Recipe::create(directory.into(), "recipe").expect("a file");
    (beside, recipe)
}

/// What a recipe makes of the files below a root; nothing where there is none.
pub fn rebuilt(recipe: &Recipe, root: File) -> Option<Vec<u8>> {
    let recipe = recipe.open().expect("a file");
    if !layer::is_recipe(&recipe).expect("a file") {
        return None;
    }
    let size = layer::rebuilt_size(&recipe).expect("a recipe");
    let mut bytes = Vec::new();
    layer::rebuild(recipe, root.into()).expect("a thread").read_to_end(&mut bytes).expect("an archive");
    assert_eq!(size, bytes.len() as u64);
    Some(bytes)
}

/// An archive, entry by entry.
#[derive(Default, Clone)]
pub struct Tar(pub Vec<u8>);

impl Tar {
    /// The whole archive.
    pub fn end(mut self) -> Vec<u8> {
        self.0.extend([0; 1024]);
        self.0
    }

    pub fn file(self, name: impl AsRef<[u8]>, data: &[u8]) -> Tar {
        self.entry(b'0', name, "", data)
    }

    pub fn directory(self, name: impl AsRef<[u8]>) -> Tar {
        self.entry(b'5', name, "", b"")
    }

    pub fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.entry(b'2', name, target, b"")
    }

    pub fn hard_link(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.entry(b'1', name, target, b"")
    }

    /// An extended header for the next entry.
    pub fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut bytes = Vec::new();
        for (key, value) in records {
            let mut length = key.len() + value.len() + 4;
            while length != key.len() + value.len() + 3 + length.to_string().len() {
                length = key.len() + value.len() + 3 + length.to_string().len();
            }
            bytes.extend(format!("{length} {key}=").as_bytes());
            bytes.extend(*value);
            bytes.push(b'\n');
        }
        self.entry(b'x', "PaxHeader", "", &bytes)
    }

    pub fn entry(self, kind: u8, name: impl AsRef<[u8]>, link: impl AsRef<[u8]>, data: &[u8]) -> Tar {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000);
        header.set_entry_type(tar::EntryType::new(kind));
        self.raw(header, name.as_ref(), link.as_ref(), data)
    }

    /// An entry of this header, with GNU long names where they are needed.
    pub fn raw(mut self, mut header: tar::Header, name: &[u8], link: &[u8], data: &[u8]) -> Tar {
        if name.len() > 100 {
            self = self.entry(b'L', "././@LongLink", "", &[name, b"\0"].concat());
        }
        if link.len() > 100 {
            self = self.entry(b'K', "././@LongLink", "", &[link, b"\0"].concat());
        }
        let old = header.as_old_mut();
        let (name, link) = (&name[..name.len().min(100)], &link[..link.len().min(100)]);
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(data);
        let padding = data.len().wrapping_neg() % 512;
        self.0.extend(std::iter::repeat_n(0, padding));
        self
    }
}
