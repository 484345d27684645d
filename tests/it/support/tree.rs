//! A directory tree as a value: everything that a root filesystem holds, to be compared entry by entry.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// One file, directory or whatever else, as far as two trees could differ in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub kind: &'static str,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Of files only: a directory's size is its filesystem's affair.
    pub size: u64,
    /// Major and minor of a device node.
    pub device: (u64, u64),
    pub target: Option<PathBuf>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// Of a file with several names: the first of them in this tree.
    pub same_as: Option<PathBuf>,
    pub sha256: Option<String>,
}

/// The entries by their path below the top; the top itself is ``.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree(pub BTreeMap<PathBuf, Entry>);

impl Tree {
    /// Reads everything at and below `top` that is on its device.
    pub fn read(top: &Path) -> Tree {
        let mut reader = Reader { top, device: 0, names: BTreeMap::new(), entries: BTreeMap::new() };
        reader.device = fs::symlink_metadata(top).unwrap_or_else(|e| panic!("{}: {e}", top.display())).dev();
        reader.add(top);
        Tree(reader.entries)
    }

    /// The entry at a path below the top; the test fails if there is none.
    #[track_caller]
    pub fn entry(&self, path: impl AsRef<Path>) -> &Entry {
        let path = path.as_ref();
        self.0.get(path).unwrap_or_else(|| panic!("{} is not in the tree", path.display()))
    }

    /// How another tree differs from this one, a line for each difference.
    pub fn differences(&self, other: &Tree) -> Vec<String> {
        let missing =
            self.0.keys().filter(|path| !other.0.contains_key(*path)).map(|p| format!("{}: missing", p.display()));
        let extra =
            other.0.keys().filter(|path| !self.0.contains_key(*path)).map(|p| format!("{}: extra", p.display()));
        let changed = self.0.iter().filter_map(|(path, is)| {
            let changes = is.changes(other.0.get(path)?);
            (!changes.is_empty()).then(|| format!("{}: {changes}", path.display()))
        });
        missing.chain(extra).chain(changed).collect()
    }

    /// Fails the test unless the two are the same in everything.
    #[track_caller]
    pub fn assert_same(&self, other: &Tree) {
        let differences = self.differences(other);
        let shown = differences.iter().take(40).cloned().collect::<Vec<_>>().join("\n  ");
        assert!(differences.is_empty(), "{} differences:\n  {shown}", differences.len());
    }
}

impl Entry {
    fn changes(&self, other: &Entry) -> String {
        let mut text = String::new();
        macro_rules! compare {
            ($($field:ident)*) => {$(
                if self.$field != other.$field {
                    let _ = write!(text, "{} {:?} -> {:?}; ", stringify!($field), self.$field, other.$field);
                }
            )*};
        }
        compare!(kind mode uid gid mtime size device target xattrs same_as sha256);
        text
    }
}

struct Reader<'a> {
    top: &'a Path,
    device: u64,
    names: BTreeMap<u64, PathBuf>,
    entries: BTreeMap<PathBuf, Entry>,
}

impl Reader<'_> {
    fn add(&mut self, path: &Path) {
        let meta = fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let relative = path.strip_prefix(self.top).expect("below the top").to_path_buf();
        let file = meta.is_file();
        let node = meta.file_type().is_char_device() || meta.file_type().is_block_device();
        let first = self.names.entry(meta.ino()).or_insert_with(|| relative.clone()).clone();
        let entry = Entry {
            kind: kind(meta.file_type()),
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            size: if file { meta.size() } else { 0 },
            device: if node { (libc::major(meta.rdev()).into(), libc::minor(meta.rdev()).into()) } else { (0, 0) },
            target: meta.is_symlink().then(|| fs::read_link(path).expect("read a link")),
            xattrs: xattrs(path),
            same_as: (!meta.is_dir() && meta.nlink() > 1).then_some(first),
            sha256: file.then(|| sha256(path)),
        };
        self.entries.insert(relative, entry);
        if meta.is_dir() && meta.dev() == self.device {
            let mut children: Vec<PathBuf> = fs::read_dir(path)
                .expect("read a directory")
                .map(|entry| entry.expect("read a directory").path())
                .collect();
            children.sort();
            children.iter().for_each(|child| self.add(child));
        }
    }
}

fn kind(file_type: fs::FileType) -> &'static str {
    match () {
        () if file_type.is_dir() => "directory",
        () if file_type.is_file() => "file",
        () if file_type.is_symlink() => "symlink",
        () if file_type.is_fifo() => "fifo",
        () if file_type.is_char_device() => "character device",
        () if file_type.is_block_device() => "block device",
        () => "socket",
    }
}

fn sha256(path: &Path) -> String {
    let (mut hash, mut file) = (Sha256::new(), File::open(path).expect("open a file"));
    let mut block = vec![0; 1 << 20];
    loop {
        match file.read(&mut block).expect("read a file") {
            0 => break,
            length => hash.update(&block[..length]),
        }
    }
    hash.finalize().iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// llistxattr(2) and lgetxattr(2): of the entry itself, also of a symlink.
pub fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0u8; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let names = names[..length].split(|b| *b == 0).filter(|name| !name.is_empty());
    names
        .map(|name| {
            let mut value = vec![0u8; 1 << 16];
            let length =
                rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).expect("read an attribute");
            value.truncate(length);
            (String::from_utf8_lossy(name).into_owned(), value)
        })
        .collect()
}
