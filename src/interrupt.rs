//! Signals that ask to stop, as a flag: long work looks at it between two steps, fails, and so cleans up as after any
//! other failure.
//!
//! A second signal ends the process at once, and leaves to the next command what it leaves.

use std::time::{Duration, Instant};

use crate::error::{Error, Kind, Result};
use crate::kernel::signal;

/// From now on HUP, INT and TERM make long work fail at its next step instead of ending the process.
///
/// # Errors
/// A failed sigaction(2).
pub fn catch() -> Result<()> {
    signal::note_termination()
}

/// From now on they end the process again.
///
/// # Errors
/// A failed sigaction(2).
pub fn release() -> Result<()> {
    signal::forget_termination()
}

/// The signal that arrived, if one did.
pub fn caught() -> Option<i32> {
    signal::noted_termination()
}

/// Waits for so long, or until a signal has arrived: whether one has.
pub fn pause(time: Duration) -> bool {
    let end = Instant::now() + time;
    while caught().is_none() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(50).min(end.saturating_duration_since(Instant::now())));
    }
    caught().is_some()
}

/// Fails once a signal has arrived.
pub(crate) fn check() -> Result<()> {
    match caught() {
        Some(signal) => Err(Error::new(Kind::Io, format!("interrupted by signal {signal}"))),
        None => Ok(()),
    }
}
