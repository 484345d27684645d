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
use crate::error::Result;
use crate::kernel::fs;

/// The log's name in the container's directory.
pub(in super::super) const LOG: &str = "log";

/// The name of the one before.
pub(in super::super) const PREVIOUS: &str = "log.1";

pub(super) struct Log {
    dir: OwnedFd,
    /// Nothing where nothing is kept.
    file: Option<File>,
    size: u64,
    limit: u64,
}

impl Log {
    /// Goes on with the container's log. Without a `limit` nothing is kept.
    pub(super) fn open(dir: BorrowedFd<'_>, limit: Option<u64>) -> Result<Log> {
        let file = limit.map(|_| fs::open_to_append(dir, LOG)).transpose()?;
        let size = file.as_ref().and_then(|file| file.metadata().ok()).map_or(0, |metadata| metadata.len());
        Ok(Log { dir: fs::duplicate(dir)?, file, size, limit: limit.unwrap_or(0) })
    }

    /// Adds what the command has written.
    pub(super) fn write(&mut self, stream: Stream, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        let text = format(Timestamp::now(), stream, bytes);
        match file.write_all(&text) {
            Ok(()) => self.size += text.len() as u64,
            Err(e) => log::debug!("write the log: {e}"),
        }
        if self.size >= self.limit
            && let Err(e) = self.rotate()
        {
            log::debug!("begin a new log: {e}");
        }
    }

    fn rotate(&mut self) -> Result<()> {
        fs::rename_replace(self.dir.as_fd(), LOG, self.dir.as_fd(), PREVIOUS)?;
        self.file = Some(fs::open_to_append(self.dir.as_fd(), LOG)?);
        self.size = 0;
        Ok(())
    }
}

fn format(now: Timestamp, stream: Stream, bytes: &[u8]) -> Vec<u8> {
    let from = match stream {
        Stream::Output => "stdout",
        Stream::Error => "stderr",
    };
    let mut text = Vec::with_capacity(bytes.len() + 64);
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        let (line, whole) = line.strip_suffix(b"\n").map_or((line, "P"), |line| (line, "F"));
        text.extend_from_slice(format!("{now:.9} {from} {whole} ").as_bytes());
        text.extend_from_slice(line);
        text.push(b'\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_says_whether_it_is_whole() {
        let now: Timestamp = "2026-11-25T10:00:00.5Z".parse().expect("a time");
        let text = String::from_utf8(format(now, Stream::Error, b"a\n\nb c")).expect("text");
        let at = "2026-11-25T10:00:00.500000000Z stderr";
        assert_eq!(text, format!("{at} F a\n{at} F \n{at} P b c\n"));
        assert_eq!(format(now, Stream::Output, b""), b"");
    }
}
