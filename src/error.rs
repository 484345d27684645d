//! The one error of the library: opaque, with a [`Kind`] to branch on.
//!
//! An error reads `WHAT: WHY`, lower case, no full stop; each stage that it passes wraps it once with what it was
//! doing ([`Context`]). A way out, where there is one, is its [`hint`](Error::hint). The chain is text, not a list of
//! boxed sources: nobody branches on anything but the kind and the errno.

use std::fmt;

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, coarsely: what a caller could act on. Exit statuses derive from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A named object does not exist.
    NotFound,
    /// A name or object is already taken.
    AlreadyExists,
    /// An object is in use: by a process, a container, or another object.
    InUse,
    /// The input is malformed: an archive, a name, a value.
    Invalid,
    /// A limit with a name was exceeded.
    Limit,
    /// The kernel, the filesystem or this version cannot do it.
    Unsupported,
    /// The caller may not do it.
    Permission,
    /// The disk, or the disk under it, is full.
    NoSpace,
    /// The store itself cannot be used.
    Store,
    /// The command of a container exists and cannot be run (exit status 126).
    NotExecutable,
    /// The command of a container was not found (exit status 127).
    CommandNotFound,
    /// Any other failed system call.
    Io,
}

/// The kinds by the number that stands for each between processes; a kind that is not here arrives as [`Kind::Io`].
const KINDS: &[Kind] = &[
    Kind::Io,
    Kind::NotFound,
    Kind::AlreadyExists,
    Kind::InUse,
    Kind::Invalid,
    Kind::Limit,
    Kind::Unsupported,
    Kind::Permission,
    Kind::NoSpace,
    Kind::Store,
    Kind::NotExecutable,
    Kind::CommandNotFound,
];

/// An error with what was being done, why it failed, and perhaps a way out.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    errno: Option<i32>,
    message: String,
    hint: Option<String>,
}

impl Error {
    /// A new error; `message` names the object and the reason.
    pub fn new(kind: Kind, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, errno: None, message: message.into(), hint: None }))
    }

    /// The error of a failed system call: `doing: the errno's text`.
    pub fn from_errno(doing: impl fmt::Display, errno: i32) -> Error {
        let mut error = Error::new(kind_of(errno), format!("{doing}: {}", errno_text(errno)));
        error.0.errno = Some(errno);
        error
    }

    /// The error of a failed operation of the standard library: `doing: reason`.
    pub fn from_io(doing: impl fmt::Display, error: std::io::Error) -> Error {
        Error::from(error).wrap(doing)
    }

    /// The same error with a way out.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// The same error without its way out, which is none here.
    pub(crate) fn without_hint(mut self) -> Error {
        self.0.hint = None;
        self
    }

    /// The same error seen as another kind.
    pub fn with_kind(mut self, kind: Kind) -> Error {
        self.0.kind = kind;
        self
    }

    /// What went wrong, coarsely.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno of the system call that failed, if one did.
    pub fn errno(&self) -> Option<i32> {
        self.0.errno
    }

    /// The host was short of something, or did not let us: that says nothing of what was looked at.
    pub(crate) fn tells_nothing(&self) -> bool {
        let of_host = matches!(self.kind(), Kind::Permission | Kind::NoSpace | Kind::InUse);
        of_host || matches!(self.errno(), Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::EINTR))
    }

    /// The way out, if one is known.
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }

    /// The exit status of a verb other than run, exec and shell (cli: 1 failed, 125 store unusable).
    pub fn exit_status(&self) -> u8 {
        match self.0.kind {
            Kind::Store => 125,
            Kind::NotExecutable => 126,
            Kind::CommandNotFound => 127,
            _ => 1,
        }
    }

    /// The error as bytes, for another process: its kind, what it says, and its way out. The errno is lost.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let kind = KINDS.iter().position(|kind| *kind == self.kind()).unwrap_or(0);
        let mut bytes = vec![u8::try_from(kind).unwrap_or(0)];
        // Control characters, line ends among them, are escaped.
        bytes.extend_from_slice(self.to_string().as_bytes());
        bytes.extend(self.hint().into_iter().flat_map(|hint| std::iter::once(b'\n').chain(hint.bytes())));
        bytes
    }

    /// The error that [`to_bytes`](Error::to_bytes) made.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Error {
        let (kind, text) = bytes.split_first().map_or((0, bytes), |(kind, text)| (usize::from(*kind), text));
        let text = String::from_utf8_lossy(text);
        let (message, hint) = text.split_once('\n').map_or((&*text, None), |(message, hint)| (message, Some(hint)));
        let error = Error::new(KINDS.get(kind).copied().unwrap_or(Kind::Io), message);
        if let Some(hint) = hint { error.with_hint(hint) } else { error }
    }

    /// The same error with what was being done before it; for those that are not returned.
    pub(crate) fn wrap(mut self, what: impl fmt::Display) -> Error {
        self.0.message = format!("{what}: {}", self.0.message);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever bytes a hostile archive put into a name.
        for c in self.0.message.chars() {
            match c {
                c if c.is_control() => write!(f, "{}", c.escape_default())?,
                c => write!(f, "{c}")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    /// For readers and writers: an `Error` that travelled inside an `io::Error` comes out as it was.
    fn from(error: std::io::Error) -> Error {
        match error.raw_os_error() {
            Some(errno) => {
                let mut e = Error::new(kind_of(errno), errno_text(errno));
                e.0.errno = Some(errno);
                e
            }
            None => match error.downcast::<Error>() {
                Ok(inner) => inner,
                Err(error) => Error::new(Kind::Invalid, lower_first(&error.to_string())),
            },
        }
    }
}

impl From<Error> for std::io::Error {
    fn from(error: Error) -> std::io::Error {
        std::io::Error::other(error)
    }
}

/// Wraps an error once with what a stage was doing.
pub trait Context<T> {
    /// Prefixes the error with `what: `, computed only on failure.
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;

    /// [`context`](Context::context) for the error of a system call only. One that we found ourselves, as that a name is
    /// taken, says already what it is about.
    fn call_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        self.map_err(|e| e.into().wrap(what()))
    }

    fn call_context<D: fmt::Display>(self, what: impl FnOnce() -> D) -> Result<T> {
        // One that another process has reported has lost its errno, not its kind.
        let call = |e: &Error| e.errno().is_some() || matches!(e.kind(), Kind::Io | Kind::NoSpace | Kind::Permission);
        self.map_err(Into::into).map_err(|e: Error| if call(&e) { e.wrap(what()) } else { e })
    }
}

fn kind_of(errno: i32) -> Kind {
    match errno {
        libc::ENOENT => Kind::NotFound,
        libc::EEXIST => Kind::AlreadyExists,
        libc::EBUSY | libc::ETXTBSY | libc::EWOULDBLOCK => Kind::InUse,
        libc::EPERM | libc::EACCES | libc::EROFS => Kind::Permission,
        libc::ENOSPC | libc::EDQUOT => Kind::NoSpace,
        libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY => Kind::Unsupported,
        _ => Kind::Io,
    }
}

fn errno_text(errno: i32) -> String {
    if errno == libc::EAGAIN {
        // strerror(3) says so; "try again" is no reason.
        return "resource temporarily unavailable".to_string();
    }
    lower_first(nix::errno::Errno::from_raw(errno).desc())
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match (chars.next(), text.chars().nth(1)) {
        // "I/O error" and "RPC failed" keep their capitals.
        (Some(first), second) if second.is_none_or(|c| c.is_lowercase() || c == ' ') => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_reads_as_what_and_why() {
        let failed: Result<()> = Err(Error::from_errno("create usr/bin/x", libc::ENOSPC));
        let error = failed.context(|| "unpack layer sha256:ab").expect_err("it failed");
        assert_eq!(error.to_string(), "unpack layer sha256:ab: create usr/bin/x: no space left on device");
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.errno(), Some(libc::ENOSPC));
    }

    #[test]
    fn an_errno_begins_in_lower_case_unless_it_is_an_abbreviation() {
        for (errno, text) in [(libc::ENOENT, "no such file or directory"), (libc::EIO, "I/O error")] {
            assert_eq!(errno_text(errno), text);
        }
        assert_eq!(lower_first("A file"), "a file");
    }

    #[test]
    fn it_travels_through_io_errors_unchanged() {
        let error = Error::new(Kind::Limit, "entries: more than 3").with_hint("raise it");
        let back = Error::from(std::io::Error::from(error));
        assert_eq!((back.kind(), back.hint()), (Kind::Limit, Some("raise it")));
    }

    #[test]
    fn it_stays_on_one_line() {
        assert_eq!(Error::new(Kind::Invalid, "name a\nb\u{1b}[31m").to_string(), "name a\\nb\\u{1b}[31m");
    }
}
