//! The signals that a supervisor hands on: blocked from before the sandbox is made until it is gone, so that none can
//! end the supervisor in between and leave things behind.

use crate::error::Result;
use crate::kernel::signal::{self, SignalMask, SignalQueue};

/// Blocked while it lives; what arrives is queued.
#[derive(Debug)]
pub(crate) struct BlockedSignals {
    before: SignalMask,
    pub(crate) queue: SignalQueue,
}

impl BlockedSignals {
    /// Blocks HUP, INT, QUIT, TERM, USR1, USR2, ALRM and WINCH in this thread. Those of job control stay with the
    /// person's shell.
    pub(crate) fn block() -> Result<BlockedSignals> {
        let before = signal::block_forwarded()?;
        let queue = signal::forwarded_queue().inspect_err(|_| restore(&before))?;
        Ok(BlockedSignals { before, queue })
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

fn restore(mask: &SignalMask) {
    if let Err(e) = signal::set_mask(mask) {
        log::warn!("{e}");
    }
}
