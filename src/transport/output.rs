//! Where an archive goes: a file, or a stream that is written onwards.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Kind, Result};

/// A place for an archive. A file is there, whole, or as it was before: until [`Output::finish`] it has another name.
pub struct Output {
    /// As people call it.
    name: String,
    into: Into,
}

enum Into {
    Stream(Box<dyn Write + Send>),
    File { file: File, half: Half, path: PathBuf },
}

/// The other name, which goes when nothing comes of it.
struct Half(Option<PathBuf>);

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Who was not able to write there may not be able to do that either.
            let _ = std::fs::remove_file(path);
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
        let Some(last) = path.file_name() else {
            return Err(Error::new(Kind::Invalid, "it names no file")).context(doing);
        };
        let mut half = std::ffi::OsString::from(".");
        half.push(std::ffi::OsStr::from_bytes(&last.as_bytes()[..last.len().min(200)]));
        half.push(format!(".tupper-{}", std::process::id()));
        let half = path.with_file_name(half);
        // One that a killed process of this number has left.
        let _ = std::fs::remove_file(&half);
        let file = File::options().read(true).write(true).create_new(true).open(&half).context(doing)?;
        Ok(Output { name, into: Into::File { file, half: Half(Some(half)), path } })
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
            Into::Stream(mut stream) => stream.flush(),
            Into::File { mut half, path, .. } => match half.0.take() {
                Some(from) => std::fs::rename(&from, path).inspect_err(|_| half.0 = Some(from)),
                None => Ok(()),
            },
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
