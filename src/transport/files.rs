//! The files of an archive, or of a directory, by names that come from outside.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::archive::Index;
use crate::error::{Error, Kind, Result};
use crate::kernel::fs;

/// Where documents and layers lie. Names never lead out of it: they are members of the archive, or resolved below the
/// directory without following any link.
pub(super) enum Files {
    Archive(Index),
    Directory(OwnedFd),
}

impl Files {
    pub(super) fn has(&self, name: &str) -> bool {
        match self {
            Files::Archive(index) => index.has(name),
            Files::Directory(_) => self.open(name).is_ok(),
        }
    }

    /// A file, and how long it is.
    pub(super) fn open(&self, name: &str) -> Result<(Box<dyn Read + Send>, u64)> {
        match self {
            Files::Archive(index) => {
                let (member, size) = index.open(name)?;
                Ok((Box::new(member), size))
            }
            Files::Directory(top) => {
                let file = File::from(fs::open_file_beneath(top.as_fd(), Path::new(name))?);
                let found = file.metadata()?;
                if !found.is_file() {
                    return Err(Error::new(Kind::Invalid, format!("{name}: is no plain file")));
                }
                Ok((Box::new(file), found.len()))
            }
        }
    }

    /// A whole document.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let (reader, size) = self.open(name)?;
        if size > limit {
            return Err(Error::new(Kind::Limit, format!("{name}: larger than {limit} bytes")));
        }
        let mut bytes = Vec::new();
        reader.take(limit).read_to_end(&mut bytes).map_err(|e| Error::from_io(format_args!("read {name}"), e))?;
        Ok(bytes)
    }
}
