//! Where bytes come from: a file, standard input, a directory, a URL.
//!
//! A root filesystem is a stream of bytes and, where it is known, its length; what the bytes mean is for the rooms below
//! to find out. Images come as offers: a config, and layers as they travel, from archives and layouts ([`Stored`])
//! and from registries ([`registry`]).

mod compress;
mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod http;
mod manifest;
mod offer;
mod outgoing;
mod output;
mod platform;
pub mod registry;
mod save;
mod stored;
mod verified;

pub use compress::{Compression, Compressor, Format};
pub use manifest::Style;
pub use offer::{Blob, Blobs, Offer};
pub use outgoing::{Outgoing, OutgoingLayer, Tars, Travelled};
pub use output::Output;
pub use platform::Platform;
pub use save::{Saved, Shape, Target, save};
pub use stored::Stored;
pub(crate) use verified::verified;

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};

/// A place that a root filesystem can come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Standard input, written `-`.
    Stdin,
    /// A file: regular, or something to be read once, such as a pipe.
    File(PathBuf),
    /// A directory, to be packed.
    Directory(PathBuf),
    /// A file that a web server has.
    Url(http::Url),
}

/// A stream of bytes.
pub struct Bytes {
    /// The bytes.
    pub reader: Box<dyn Read + Send>,
    /// How many there are, in bytes, where that is known beforehand.
    pub length: Option<u64>,
}

impl Source {
    /// What `name` names: `-` is standard input, `http://…` and `https://…` are URLs, anything else is a path.
    ///
    /// # Errors
    /// That of stat(2) when there is no such file; [`Kind::Invalid`] when the name is empty or no URL.
    pub fn locate(name: &str) -> Result<Source> {
        if name == "-" {
            return Ok(Source::Stdin);
        }
        if name.is_empty() {
            return Err(Error::new(Kind::Invalid, "the path of the source is empty"));
        }
        if name.starts_with("http://") || name.starts_with("https://") {
            return http::parse(name).map(Source::Url);
        }
        let path = PathBuf::from(name);
        let found = std::fs::metadata(&path).context(|| format!("read {name}"))?;
        Ok(if found.is_dir() { Source::Directory(path) } else { Source::File(path) })
    }

    /// The directory, if it is one.
    pub fn directory(&self) -> Option<&Path> {
        match self {
            Source::Directory(path) => Some(path),
            _ => None,
        }
    }

    /// Opens the stream. The errors of its reader are those of read(2), or of the network.
    ///
    /// # Errors
    /// That of open(2), or the server's; [`Kind::Invalid`] for a directory, which is no stream.
    pub fn open(&self) -> Result<Bytes> {
        match self {
            Source::Stdin => Ok(Bytes { reader: Box::new(std::io::stdin()), length: None }),
            Source::File(path) => {
                let fail = || format!("read {}", path.display());
                let file = File::open(path).context(fail)?;
                let found = file.metadata().context(fail)?;
                Ok(Bytes { length: found.is_file().then_some(found.len()), reader: Box::new(file) })
            }
            Source::Url(url) => {
                let body = http::get(url)?;
                Ok(Bytes { length: body.size(), reader: Box::new(body) })
            }
            Source::Directory(path) => {
                Err(Error::new(Kind::Invalid, format!("read {}: it is a directory", path.display())))
            }
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Stdin => f.write_str("standard input"),
            Source::File(path) | Source::Directory(path) => write!(f, "{}", path.display()),
            Source::Url(url) => f.write_str(&http::shown(url)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_is_what_its_name_names() {
        let scratch = tempfile::tempdir().expect("a directory");
        let file = scratch.path().join("a.tar");
        std::fs::write(&file, b"four").expect("a file");
        let locate = |path: &Path| Source::locate(path.to_str().expect("UTF-8"));
        assert_eq!(Source::locate("-").expect("stdin"), Source::Stdin);
        assert_eq!(locate(scratch.path()).expect("a directory").directory(), Some(scratch.path()));
        let mut bytes = locate(&file).and_then(|source| source.open()).expect("a file");
        let mut text = String::new();
        bytes.reader.read_to_string(&mut text).expect("readable");
        assert_eq!((text.as_str(), bytes.length), ("four", Some(4)));
        let missing = locate(&scratch.path().join("b")).expect_err("it is not there");
        assert_eq!(missing.kind(), Kind::NotFound);
        assert!(missing.to_string().contains("/b: no such file"), "{missing}");
        assert!(locate(scratch.path()).expect("a directory").open().is_err());
        assert!(Source::locate("").expect_err("no name").to_string().contains("empty"));
        let url = Source::locate("https://me:secret@example.com/a.tar?key=secret").expect("a URL");
        assert_eq!(url.to_string(), "https://example.com/a.tar");
        assert!(Source::locate("http://").is_err());
    }
}
