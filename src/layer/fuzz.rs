//! What a fuzzer asks of this room: a stack of layers stays within its root, in whatever order its entries stand; and
//! decoders end.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::lower::{Whiteout, whiteout};
use super::{Limits, Opened, Recipe, decompress, unwatched};
use crate::error::Result;
use crate::kernel;

/// Few names, so that they meet; two that would lead out.
const NAMES: [&str; 16] = [
    "a",
    "b",
    "d",
    "d/a",
    "d/b",
    "d/e",
    "d/e/a",
    "e",
    "e/d/a",
    "l",
    "l/a",
    "l/e/b",
    "./d/./e",
    "d/../a",
    "../canary",
    "/",
];
const TARGETS: [&str; 8] = ["d", "/d", "..", "../canary", "e/d", "a", "l", "/"];

/// An entry: what it is, its name, what it leads to.
type Word = (u8, String, &'static str);

/// A stack of layers: two bytes an entry, which a third kind of byte ends.
pub fn layers(bytes: &[u8]) {
    let layers: Vec<Vec<Word>> = bytes.split(|&b| b == 0xff).take(4).map(words).collect();
    let place = std::env::temp_dir().join(format!("tupper-fuzz-layers-{}", std::process::id()));
    let canary = place.join("canary");
    let begin = || -> std::io::Result<()> {
        if place.exists() {
            fs::remove_dir_all(&place)?;
        }
        fs::create_dir_all(&canary)?;
        fs::write(canary.join("a"), "untouched")
    };
    begin().unwrap_or_else(|e| panic!("{}: {e}", place.display()));
    let untouched = tree(&canary);
    let as_it_is = stack(&place.join("one"), &layers);
    // image-spec layer.md, "Whiteouts": they hide what lies below, wherever in the layer they stand. What a link leads to,
    // though, is what has been applied before.
    let links = layers.iter().flatten().any(|(kind, ..)| matches!(kind, b'1' | b'2'));
    if let Some(as_it_is) = as_it_is.filter(|_| !links) {
        let hides = |word: &&Word| word.1.contains(".wh.");
        let first = |words: &Vec<Word>| {
            let (hide, make): (Vec<&Word>, Vec<&Word>) = words.iter().partition(hides);
            [hide, make].concat().into_iter().cloned().collect()
        };
        if let Some(other) = stack(&place.join("two"), &layers.iter().map(first).collect::<Vec<_>>()) {
            assert_eq!(as_it_is, other, "{layers:?}");
        }
    }
    assert_eq!(tree(&canary), untouched, "it got out: {layers:?}");
}

fn words(bytes: &[u8]) -> Vec<Word> {
    let word = |pair: &[u8; 2]| {
        let [kind, what] = *pair;
        let (name, target) = (NAMES[usize::from(what % 16)], TARGETS[usize::from(what / 16 % 8)]);
        let (parent, last) = name.rsplit_once('/').map_or((String::new(), name), |(p, l)| (format!("{p}/"), l));
        match kind % 8 {
            0 | 1 => (b'0', name.to_string(), ""),
            2 => (b'5', name.to_string(), ""),
            3 => (b'2', name.to_string(), target),
            4 => (b'1', name.to_string(), target),
            5 | 6 => (b'0', format!("{parent}.wh.{last}"), ""),
            _ => (b'0', format!("{name}/.wh..wh..opq"), ""),
        }
    };
    bytes.as_chunks::<2>().0.iter().take(24).map(word).collect()
}

/// Mode, links and content of each file.
type Tree = BTreeMap<PathBuf, (u32, u64, Vec<u8>)>;

/// What the layers come to on an empty root, if all of them can be applied.
fn stack(root: &Path, layers: &[Vec<Word>]) -> Option<Tree> {
    let open = || fs::create_dir(root).and_then(|()| File::open(root));
    let directory = open().unwrap_or_else(|e| panic!("{}: {e}", root.display()));
    for (number, words) in layers.iter().enumerate() {
        let archive = archive(words, number);
        let bytes = Cursor::new(archive.clone());
        let beside = root.with_extension(number.to_string());
        let recipe = fs::create_dir(&beside)
            .map_err(Into::into)
            .and_then(|()| kernel::fs::open_directory_follow(&beside))
            .and_then(|directory| Recipe::create(directory, "recipe"))
            .unwrap_or_else(|e| panic!("{e}"));
        let opened = Opened::open(|| Ok(Box::new(bytes)), &Limits::default(), unwatched());
        let applied: Result<_> = opened.and_then(|opened| opened.apply(directory.as_fd(), Some(&recipe)));
        applied.ok()?;
        assert!(comes_out(&recipe, &directory, &archive), "it comes out as another archive");
    }
    Some(tree(root))
}

/// Whether a recipe, if there is one, makes the archive of what is there.
fn comes_out(recipe: &Recipe, directory: &File, archive: &[u8]) -> bool {
    let rebuilt = || -> Result<Option<Vec<u8>>> {
        let recipe = recipe.open()?;
        if !super::is_recipe(&recipe)? {
            return Ok(None);
        }
        let mut rebuilt = Vec::new();
        super::rebuild(recipe, directory.try_clone()?.into())?.read_to_end(&mut rebuilt)?;
        Ok(Some(rebuilt))
    };
    rebuilt().is_ok_and(|rebuilt| rebuilt.is_none_or(|rebuilt| rebuilt == archive))
}

fn archive(words: &[Word], number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, name, target) in words {
        let content = if *kind == b'0' { vec![b'0' + number as u8; 300] } else { Vec::new() };
        let mut header = tar::Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(tar::EntryType::new(*kind));
        header.set_mode(0o700 + number as u32);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend(header.as_bytes());
        bytes.extend(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes
}

/// What is there.
fn tree(root: &Path) -> Tree {
    let mut found = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).into_iter().flatten() {
        let Ok(metadata) = entry.metadata() else { continue };
        let content = match (metadata.is_file(), metadata.is_symlink()) {
            (true, _) => fs::read(entry.path()).unwrap_or_default(),
            (_, true) => {
                fs::read_link(entry.path()).map(|to| to.into_os_string().into_encoded_bytes()).unwrap_or_default()
            }
            _ => Vec::new(),
        };
        let links = if metadata.is_dir() { 0 } else { metadata.nlink() };
        let path = entry.path().strip_prefix(root).unwrap_or(entry.path());
        found.insert(path.to_path_buf(), (metadata.mode(), links, content));
    }
    found
}

/// The name of an entry in a layer.
pub fn whiteouts(bytes: &[u8]) {
    let path = crate::archive::clean(bytes);
    if let Ok(Whiteout::Name(name)) = whiteout(&path) {
        assert!(!matches!(name, b"" | b"." | b"..") && !name.contains(&b'/'), "{path:?} hides {name:?}");
    }
}

/// A stream, compressed or not: it is read to its end, or to 4 MiB.
pub fn decompression(bytes: &[u8]) {
    let Ok(stream) = decompress(Box::new(Cursor::new(bytes.to_vec()))) else { return };
    let _ = std::io::copy(&mut stream.take(4 << 20), &mut std::io::sink());
}
