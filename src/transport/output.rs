//! Where an archive goes: a file, or a stream that is written onwards.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use crate::error::{Context, Error, Kind, Result};
use crate::kernel::fs;

/// A place for an archive. A file is there, whole, or as it was before: until [`Output::finish`] it has another name.
pub struct Output {
    /// As people call it.
    name: String,
    into: Into,
}

enum Into {
    Stream(Box<dyn Write + Send>),
    File { file: File, place: Place },
}

/// Where a file is to be.
struct Place {
    directory: OwnedFd,
    name: String,
    /// The name that it has until it is whole, which goes when nothing comes of it: none yet, where the filesystem has files
    /// without a name, so that even a kill leaves nothing.
    half: Option<String>,
}

impl Place {
    /// A name beside the file's.
    fn beside(&self) -> String {
        let start: String = self.name.chars().take(40).collect();
        format!(".{start}.tupper-{}", std::process::id())
    }

    /// Gives the file its name.
    fn take(&mut self, file: &File) -> Result<()> {
        let at = self.directory.as_fd();
        let half = match self.half.take() {
            Some(half) => half,
            None => {
                match fs::name_file(file.as_fd(), at, &self.name) {
                    // Another is there, to be replaced.
                    Err(e) if e.kind() == Kind::AlreadyExists => {}
                    done => return done,
                }
                let half = self.beside();
                fs::name_file(file.as_fd(), at, &half)?;
                half
            }
        };
        let done = fs::rename_replace(at, &half, at, &self.name);
        self.half = done.is_err().then_some(half);
        done
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(half) = self.half.take() {
            // Who was not able to write there may not be able to do that either.
            let _ = fs::unlink(self.directory.as_fd(), half);
        }
    }
}

impl Output {
    /// A stream that is there already, called `name`.
    pub fn stream(stream: Box<dyn Write + Send>, name: &str) -> Output {
        Output { name: name.to_string(), into: Into::Stream(stream) }
    }

    /// The file at `path`, new or to be replaced; what is no plain file (a pipe, a device) is written to.
    ///
    /// # Errors
    /// Those of open(2); [`Kind::Invalid`] for a directory.
    pub fn file(path: &Path) -> Result<Output> {
        let name = path.display().to_string();
        let doing = || format!("write {}", path.display());
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => {
                return Err(Error::new(Kind::Invalid, "it is a directory")).context(doing);
            }
            Ok(found) if !found.is_file() => {
                let stream = File::options().write(true).open(path).context(doing)?;
                return Ok(Output { name, into: Into::Stream(Box::new(stream)) });
            }
            // Through a link: what it leads to is replaced.
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).context(doing),
        }
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
        let open = || -> Result<Into> {
            let name = path.file_name().and_then(|name| name.to_str());
            let name = name.ok_or_else(|| Error::new(Kind::Invalid, "it names no file, or not in UTF-8"))?.to_string();
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let directory = fs::open_directory_follow(parent)?;
            let mut place = Place { directory, name, half: None };
            let file = match fs::unnamed_file(place.directory.as_fd(), 0o666) {
                Err(e) if matches!(e.kind(), Kind::Unsupported | Kind::Invalid) => {
                    let half = place.beside();
                    let file = fs::create_new(place.directory.as_fd(), &half, 0o666)?;
                    place.half = Some(half);
                    file
                }
                made => made?,
            };
            Ok(Into::File { file, place })
        };
        Ok(Output { name, into: open().context(doing)? })
    }

    /// How people call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file, where it is one that can be written anywhere.
    pub(super) fn as_file(&self) -> Option<&File> {
        match &self.into {
            Into::File { file, .. } => Some(file),
            Into::Stream(_) => None,
        }
    }

    /// It is whole: a file gets its name.
    ///
    /// # Errors
    /// Those of write(2) and rename(2).
    pub fn finish(self) -> Result<()> {
        let finish = || match self.into {
            Into::Stream(mut stream) => Ok(stream.flush()?),
            Into::File { file, mut place } => place.take(&file),
        };
        finish().context(|| format!("write {}", self.name))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.into {
            Into::Stream(stream) => stream.write(bytes),
            Into::File { file, .. } => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.into {
            Into::Stream(stream) => stream.flush(),
            Into::File { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_whole() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("a.tar");
        let names = || std::fs::read_dir(scratch.path()).expect("listed").count();
        let mut output = Output::file(&path).expect("made");
        output.write_all(b"one").expect("written");
        assert!(!path.exists());
        output.finish().expect("named");
        assert_eq!((std::fs::read(&path).expect("there").as_slice(), names()), (&b"one"[..], 1));
        let mut given_up = Output::file(&path).expect("made");
        given_up.write_all(b"two").expect("written");
        drop(given_up);
        assert_eq!((std::fs::read(&path).expect("there").as_slice(), names()), (&b"one"[..], 1));
        assert!(Output::file(scratch.path()).is_err() && Output::file(&scratch.path().join("no/b")).is_err());
        assert!(Output::file(Path::new("/dev/null")).expect("a device").finish().is_ok());
    }
}
