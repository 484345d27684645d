//! A container's log: its output as podman's k8s-file driver keeps it, a line each: when, from where, whole or not, what.
//!
//! ```text
//! 2026-11-25T10:00:00.123456789Z stdout F a line
//! 2026-11-25T10:00:01.000000000Z stderr P not ended yet
//! ```
//!
//! It lies beside the container's root, grows to a limit, and is then kept as the previous one while a new one begins. A
//! log that cannot be written, on a full disk say, loses what comes; the container goes on.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use jiff::Timestamp;

use super::message::Stream;
use crate::error::{Error, Kind, Result};
use crate::kernel::fs;

/// The log's name in the container's directory.
pub(in super::super) const LOG: &str = "log";

/// The name of the one before.
pub(in super::super) const PREVIOUS: &str = "log.1";

pub(super) struct Log {
    dir: OwnedFd,
    /// The file that is written to, and its size; made when there is something to write.
    file: Option<(File, u64)>,
    /// Without one nothing is kept.
    limit: Option<u64>,
}

impl Log {
    /// Goes on with the container's log.
    pub(super) fn new(dir: BorrowedFd<'_>, limit: Option<u64>) -> Result<Log> {
        Ok(Log { dir: fs::duplicate(dir)?, file: None, limit })
    }

    /// Adds what the command has written. A new file begins where a line has ended, if one does before long.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        if let Some(limit) = self.limit
            && let Err(e) = self.add(stream, bytes, limit)
        {
            ::log::debug!("write the log: {e}");
        }
    }

    fn add(&mut self, stream: Stream, bytes: &[u8], limit: u64) -> Result<()> {
        let now = Timestamp::now();
        let mut text = Vec::with_capacity(bytes.len() + 64);
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            add_line(&mut text, now, stream, line);
            let size = text.len() as u64 + self.file()?.1;
            if size >= limit.saturating_mul(2) || size >= limit && line.ends_with(b"\n") {
                self.append(&text)?;
                text.clear();
                fs::rename_replace(self.dir.as_fd(), LOG, self.dir.as_fd(), PREVIOUS)?;
                self.file = None;
            }
        }
        self.append(&text)
    }

    fn append(&mut self, text: &[u8]) -> Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        let (file, size) = self.file()?;
        file.write_all(text)?;
        *size += text.len() as u64;
        Ok(())
    }

    fn file(&mut self) -> Result<&mut (File, u64)> {
        if self.file.is_none() {
            let file = fs::open_to_append(self.dir.as_fd(), LOG)?;
            let size = file.metadata()?.len();
            self.file = Some((file, size));
        }
        self.file.as_mut().ok_or_else(|| Error::new(Kind::Io, "no log"))
    }
}

fn add_line(text: &mut Vec<u8>, now: Timestamp, stream: Stream, line: &[u8]) {
    let from = match stream {
        Stream::Output => "stdout",
        Stream::Error => "stderr",
    };
    let (line, whole) = line.strip_suffix(b"\n").map_or((line, "P"), |line| (line, "F"));
    text.extend_from_slice(format!("{now:.9} {from} {whole} ").as_bytes());
    text.extend_from_slice(line);
    text.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_whether_it_is_whole() {
        let now: Timestamp = "2026-11-25T10:00:00.5Z".parse().expect("a time");
        let mut text = Vec::new();
        [&b"a\n"[..], b"\n", b"b c"].iter().for_each(|line| add_line(&mut text, now, Stream::Error, line));
        let at = "2026-11-25T10:00:00.500000000Z stderr";
        assert_eq!(String::from_utf8(text).expect("text"), format!("{at} F a\n{at} F \n{at} P b c\n"));
    }
}
