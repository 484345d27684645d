//! `attach`: podman-attach(1).

use std::os::fd::AsFd;

use super::monitor::{Attach, Request, SOCKET};
use super::session::{Attachment, Parted, Session};
use super::{Container, State};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::socket;
use crate::sandbox::BlockedSignals;
use crate::store::{Shelf, Store};

/// Goes to a container that runs, and stays until it ends or the person lets go.
pub fn attach(store: &Store, text: &str, attachment: Attachment) -> Result<Parted> {
    let doing = || format!("attach to container {text}");
    let container = super::find(store, text)?;
    let attachment = Attachment { input: attachment.input && container.spec.interactive, ..attachment };
    session(store, &container, attachment).context(doing)?.follow().context(doing)
}

pub(super) fn session(store: &Store, container: &Container, attachment: Attachment) -> Result<Session> {
    match &container.state {
        State::Running(_) if container.paused => {
            return Err(Error::new(Kind::Invalid, "it is paused").with_hint("`tupper unpause` lets it go on"));
        }
        State::Running(_) | State::Restarting(_) => {}
        _ => return Err(Error::new(Kind::Invalid, "it does not run").with_hint("`tupper start -a` starts it")),
    }
    let signals = BlockedSignals::block()?;
    let dir = store.open_object(Shelf::Containers, &container.id)?;
    let socket = socket::connect(dir.as_fd(), SOCKET)?.ok_or_else(|| {
        let error = Error::new(Kind::Unsupported, "it runs in the foreground of the command that made it");
        error.with_hint("`tupper exec` runs another command in it")
    })?;
    let hello = Attach { output: true, log: false, ends_input: false };
    socket::send(socket.as_fd(), &Request::Attach(hello).encode(), &[])?;
    Ok(Session { socket, tty: container.spec.tty, attachment, signals })
}
