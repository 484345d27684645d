//! A line that a person types on the terminal of standard input, shown or not.
//!
//! What is secret is hidden before it is asked for, so that nothing typed ahead of the question's last letter appears; and
//! whichever way the wait ends, by a signal too, the terminal is left as it was.

use std::os::fd::BorrowedFd;

use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;
use crate::kernel::process::{self, Polled};
use crate::kernel::tty::{self, Settings, Transfer};

/// Bytes of a line; the kernel's line discipline keeps 4095 (termios(3), "Canonical and noncanonical mode").
const LIMIT: usize = 64 << 10;
/// How often the wait looks at what else could end it, in milliseconds.
const TICK: u16 = 100;

/// Asks, and reads a line without its end; `None` when there is no terminal to ask on. The caller's `ask` shows the
/// question.
///
/// # Errors
/// Those of `ask`, of a terminal that hangs up, and a caught signal.
pub fn line(hidden: bool, ask: impl FnOnce() -> Result<()>) -> Result<Option<String>> {
    let input = tty::stdio(0);
    if !tty::is_terminal(input) {
        return Ok(None);
    }
    let _restored = hidden.then(|| Hidden::new(input)).transpose()?;
    ask()?;
    let mut bytes = Vec::new();
    loop {
        interrupt::check()?;
        let [ready] = process::poll([Some((input, Polled::READ))], Some(TICK))?;
        if !ready.any() {
            continue;
        }
        let ended = tty::read(input, &mut bytes)? == Transfer::End;
        if let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            bytes.truncate(end);
            break;
        }
        if ended && bytes.is_empty() {
            return Err(Error::new(Kind::Invalid, "nothing was typed"));
        }
        if ended {
            break;
        }
        if bytes.len() > LIMIT {
            return Err(Error::new(Kind::Limit, format!("more than {LIMIT} bytes in a line")));
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::new(Kind::Invalid, "what was typed is not UTF-8"));
    text.map(Some).context(|| "read the answer")
}

/// A terminal that does not show what is typed.
struct Hidden {
    terminal: BorrowedFd<'static>,
    before: Settings,
}

impl Hidden {
    fn new(terminal: BorrowedFd<'static>) -> Result<Hidden> {
        let before = tty::settings(terminal)?;
        tty::set_settings(terminal, &tty::without_echo(&before))?;
        Ok(Hidden { terminal, before })
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // A terminal that is gone needs no settings.
        let _ = tty::set_settings(self.terminal, &self.before);
    }
}
