//! `logs`: what a container has written, from its log (podman-logs(1)).

use std::collections::VecDeque;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;

use jiff::Timestamp;

use super::monitor::{Attach, Event, LOG, PREVIOUS, Request, SOCKET, Stream};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::{fs, socket};
use crate::sandbox::LogDriver;
use crate::store::{Shelf, Store};

/// The longest line of a log that is read at once: the rest is its next piece.
const LONGEST: u64 = 1 << 20;

/// Something that a container has written: a line, or a piece of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// When.
    pub time: Timestamp,
    /// Where to.
    pub stream: Stream,
    /// It ends a line.
    pub whole: bool,
    /// What, without the end of the line.
    pub text: Vec<u8>,
}

/// Which entries of a log are wanted.
#[derive(Debug, Clone, Default)]
pub struct Selection {
    /// So many lines from the end of it.
    pub tail: Option<usize>,
    /// From then on.
    pub since: Option<Timestamp>,
    /// Until then.
    pub until: Option<Timestamp>,
    /// And what comes, until the container ends.
    pub follow: bool,
}

/// Reads a container's log, oldest entry first.
///
/// # Errors
/// A container that keeps none ([`Kind::Unsupported`]); an error of `show`, which is passed on as it is.
pub fn logs<E: From<Error>>(
    store: &Store,
    text: &str,
    selection: &Selection,
    mut show: impl FnMut(&Entry) -> Result<(), E>,
) -> Result<(), E> {
    let doing = || format!("logs of container {text}");
    let container = super::find(store, text)?;
    if container.spec.log == LogDriver::None {
        let error = Error::new(Kind::Unsupported, format!("{}: it was made with --log-driver none", doing()));
        return Err(error.into());
    }
    let dir = store.open_object(Shelf::Containers, &container.id).context(doing)?;
    // Connected to before the log is read, so that nothing is missed in between.
    let monitor = if selection.follow { follow(dir.as_fd()).context(doing)? } else { None };
    let mut reader = Reader { dir: dir.as_fd(), file: None };
    let mut tail = VecDeque::new();
    let mut lines = 0;
    reader.read(|entry| {
        if selection.since.is_some_and(|since| entry.time < since)
            || selection.until.is_some_and(|until| entry.time > until)
        {
            return Ok(());
        }
        let Some(most) = selection.tail else { return show(&entry) };
        lines += usize::from(entry.whole);
        // The last line may not have ended yet, and is one, too.
        let open = usize::from(!entry.whole);
        tail.push_back(entry);
        while lines + open > most
            && let Some(dropped) = tail.pop_front()
        {
            lines -= usize::from(dropped.whole);
        }
        Ok(())
    })?;
    tail.iter().try_for_each(&mut show)?;
    let Some(monitor) = monitor else { return Ok(()) };
    let is_late = |entry: &Entry| selection.until.is_some_and(|until| entry.time > until);
    loop {
        let ended = !has_more(&monitor).context(doing)?;
        reader.read(|entry| if is_late(&entry) { Ok(()) } else { show(&entry) })?;
        if ended || selection.until.is_some_and(|until| until < Timestamp::now()) {
            return Ok(());
        }
    }
}

/// A connection to the monitor that tells when the log grows; `None` when there is no monitor.
fn follow(dir: BorrowedFd<'_>) -> Result<Option<OwnedFd>> {
    let Some(monitor) = socket::connect(dir, SOCKET)? else { return Ok(None) };
    let hello = Attach { output: false, log: true, ends_input: false };
    socket::send(monitor.as_fd(), &Request::Attach(hello).encode(), &[])?;
    Ok(Some(monitor))
}

/// Waits until the log has grown; `false` when it never will again.
fn has_more(monitor: &OwnedFd) -> Result<bool> {
    let Some((message, _)) = socket::receive(monitor.as_fd())? else { return Ok(false) };
    Ok(!matches!(Event::decode(&message)?, Event::Ended { last: true, .. } | Event::Failed(_)))
}

/// A file, and what was read of a line in it that is not all there yet.
type LogFile = (BufReader<File>, Vec<u8>);

/// A log that is read as it grows.
struct Reader<'a> {
    dir: BorrowedFd<'a>,
    file: Option<LogFile>,
}

impl Reader<'_> {
    /// What was added since the last time, in the file before this one first.
    fn read<E: From<Error>>(&mut self, mut show: impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        if self.file.is_none() {
            self.file = self.open(PREVIOUS)?.or(self.open(LOG)?);
        }
        loop {
            self.read_file(&mut show)?;
            let Some(next) = self.next_file()? else { return Ok(()) };
            // What was written before the new one began, and after we looked.
            self.read_file(&mut show)?;
            self.file = Some(next);
        }
    }

    fn read_file<E: From<Error>>(&mut self, show: &mut impl FnMut(Entry) -> Result<(), E>) -> Result<(), E> {
        let Some((file, part)) = &mut self.file else { return Ok(()) };
        while let Some(entry) = next(file, part).context(|| "read the log")? {
            show(entry)?;
        }
        Ok(())
    }

    /// The file after the one that is being read: that one is the previous now, or older, where a new log has begun.
    fn next_file(&self) -> Result<Option<LogFile>> {
        let here = self.file.as_ref().and_then(number);
        let (previous, current) = (self.open(PREVIOUS)?, self.open(LOG)?);
        Ok(match (&previous, &current) {
            (_, Some(current)) if number(current) == here => None,
            (Some(before), _) if number(before) == here => current,
            _ => previous.or(current),
        })
    }

    fn open(&self, name: &str) -> Result<Option<LogFile>> {
        match fs::open_file_beneath(self.dir, name.as_ref()) {
            Ok(file) => Ok(Some((BufReader::new(File::from(file)), Vec::new()))),
            Err(e) if e.kind() == Kind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

fn number((file, _): &LogFile) -> Option<u64> {
    file.get_ref().metadata().ok().map(|metadata| metadata.ino())
}

/// The next entry, if all of it is there; `part` holds what is there of it.
fn next(file: &mut BufReader<File>, part: &mut Vec<u8>) -> Result<Option<Entry>> {
    loop {
        let mut limited = std::io::Read::take(&mut *file, LONGEST);
        if limited.read_until(b'\n', part).context(|| "read")? == 0 {
            return Ok(None);
        }
        if part.last() != Some(&b'\n') {
            continue;
        }
        let line = std::mem::take(part);
        // A line that makes no sense is one of a disk that was full, or of a power cut.
        if let Some(entry) = parse(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Ok(Some(entry));
        }
    }
}

fn parse(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => Stream::Output,
        b"stderr" => Stream::Error,
        _ => return None,
    };
    let whole = match parts.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    Some(Entry { time, stream, whole, text: parts.next()?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        let entry = parse(b"2026-11-25T10:00:00.5Z stderr P a b ").expect("an entry");
        assert_eq!((entry.stream, entry.whole, entry.text.as_slice()), (Stream::Error, false, &b"a b "[..]));
        assert_eq!(parse(b"2026-11-25T10:00:00.5Z stdout F ").expect("an entry").text, b"");
        for line in [&b""[..], b"x", b"2026-11-25T10:00:00.5Z stdin F x", b"2026-11-25T10:00:00.5Z stdout X x"] {
            assert_eq!(parse(line), None);
        }
    }
}
