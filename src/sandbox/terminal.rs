//! The person's terminal while a sandbox has it: raw, and put back on every way out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::Result;
use crate::kernel::tty::{self, Settings};

/// Standard input in raw mode; dropped, it is as it was. A panic puts it back too, also in a program that aborts on
/// panics and so never drops: what the panic says should be readable.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Settings,
    active: Arc<AtomicBool>,
}

impl RawTerminal {
    /// `None` when standard input is no terminal.
    pub(crate) fn enter() -> Result<Option<RawTerminal>> {
        let input = tty::stdio(0);
        if !tty::is_terminal(input) {
            return Ok(None);
        }
        let before = tty::settings(input)?;
        let active = Arc::new(AtomicBool::new(true));
        let (armed, next) = (Arc::clone(&active), std::panic::take_hook());
        std::panic::set_hook(Box::new(move |panic| {
            restore(&before, &armed);
            next(panic);
        }));
        let raw = RawTerminal { before, active };
        tty::set_settings(input, &tty::raw(&raw.before))?;
        Ok(Some(raw))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        restore(&self.before, &self.active);
    }
}

/// Puts the settings back, once.
fn restore(before: &Settings, active: &AtomicBool) {
    if active.swap(false, Ordering::SeqCst) {
        // A terminal that has hung up has no settings to put back.
        if let Err(e) = tty::set_settings(tty::stdio(0), before) {
            log::debug!("{e}");
        }
    }
}
