//! What differs in a file, as a unified diff.

use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use similar::TextDiff;

use super::walk::{open_file, same_content};
use super::{Became, Change, Diff};
use crate::error::{Context, Result};

/// The largest file that is compared line by line.
const LARGEST: u64 = 1 << 20;
/// How long the shortest diff of a file is looked for, before a longer one will do.
const PATIENCE: Duration = Duration::from_secs(1);

/// How a file differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// There was a file.
    pub old: bool,
    /// There is a file.
    pub new: bool,
    /// In what.
    pub text: Text,
}

/// What differs in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Text {
    /// Lines: a unified diff without the names of files.
    Lines(Vec<u8>),
    /// Bytes that are no text: there is a zero among them.
    Binary,
    /// More than is compared line by line.
    Large,
}

/// The content of one side.
enum Side {
    None,
    Bytes(Vec<u8>),
    Large,
}

impl Diff {
    /// How the content of the file at a change differs; nothing when it does not, or there is no file on either side.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn content(&self, change: &Change) -> Result<Option<Content>> {
        let path = change.path.strip_prefix("/").unwrap_or(&change.path);
        let old = match &self.old {
            Some(root) if change.became != Became::Added => Side::read(root, path)?,
            _ => Side::None,
        };
        let new = if change.became == Became::Deleted { Side::None } else { Side::read(&self.new, path)? };
        let text = match (&old, &new) {
            (Side::Large, Side::Large) if self.same(path)? => return Ok(None),
            (Side::Large, _) | (_, Side::Large) => Text::Large,
            (old, new) if old.bytes() == new.bytes() => return Ok(None),
            (old, new) if old.bytes().contains(&0) || new.bytes().contains(&0) => Text::Binary,
            (old, new) => Text::Lines(lines(old.bytes(), new.bytes())?),
        };
        let is_file = |side: &Side| !matches!(side, Side::None);
        Ok(Some(Content { old: is_file(&old), new: is_file(&new), text }))
    }

    fn same(&self, path: &Path) -> Result<bool> {
        let Some(old) = &self.old else { return Ok(false) };
        same_content(old.as_fd(), self.new.as_fd(), path)
    }
}

impl Side {
    fn read(root: &impl AsFd, path: &Path) -> Result<Side> {
        let Some((file, _)) = open_file(root.as_fd(), path)? else { return Ok(Side::None) };
        let mut bytes = Vec::new();
        // Not its size: it may grow meanwhile.
        let read = file.take(LARGEST + 1).read_to_end(&mut bytes).context(|| format!("read {}", path.display()))?;
        Ok(if read as u64 > LARGEST { Side::Large } else { Side::Bytes(bytes) })
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Side::Bytes(bytes) => bytes,
            Side::None | Side::Large => &[],
        }
    }
}

fn lines(old: &[u8], new: &[u8]) -> Result<Vec<u8>> {
    let diff = TextDiff::configure().timeout(PATIENCE).diff_lines(old, new);
    let mut text = Vec::new();
    // Hunk by hunk: as a whole it is written as UTF-8, whatever it is.
    for hunk in diff.unified_diff().iter_hunks() {
        hunk.to_writer(&mut text).context(|| "compare lines")?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_told_as_diff_tells_them() {
        let text = |old: &str, new: &str| String::from_utf8(lines(old.as_bytes(), new.as_bytes()).expect("lines"));
        let cases = [
            ("a\nb\nc\n", "a\nB\nc\n", "@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"),
            ("", "a\n", "@@ -0,0 +1 @@\n+a\n"),
            ("a\n", "", "@@ -1 +0,0 @@\n-a\n"),
            ("a", "a\n", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+a\n"),
        ];
        for (old, new, wanted) in cases {
            assert_eq!(text(old, new).expect("text"), wanted);
        }
        assert_eq!(lines(b"\xff\n", b"\xfe\n").expect("lines"), b"@@ -1 +1 @@\n-\xff\n+\xfe\n");
    }
}
