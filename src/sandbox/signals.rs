//! The signals that a supervisor hands on: blocked from before the sandbox is made until it is gone, so that none can
//! end the supervisor in between and leave things behind. And signals as people name them.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};
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

/// A signal by number: what a person names with or without `SIG`, or counts from `RTMIN` or `RTMAX` (signal(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Signal(i32);

impl Signal {
    /// What ends a process that does not have to be asked.
    pub const KILL: Signal = Signal(signal::SIGKILL);
    /// What asks a process to end.
    pub const TERM: Signal = Signal(signal::SIGTERM);

    /// Its number.
    pub fn number(self) -> i32 {
        self.0
    }
}

impl FromStr for Signal {
    type Err = Error;

    fn from_str(text: &str) -> Result<Signal> {
        let wrong = || Error::new(Kind::Invalid, format!("{text:?}: no signal is called that"));
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        let real_time = |from: i32, rest: &str, sign: i32| match rest {
            "" => Some(from),
            rest => Some(from + sign * digits(rest.strip_prefix(if sign > 0 { '+' } else { '-' })?)?),
        };
        let number = digits(text).or_else(|| signal::number(name)).or_else(|| {
            let (first, last) = signal::real_time();
            let counted = name.strip_prefix("RTMIN").map(|rest| real_time(first, rest, 1));
            let counted = counted.or_else(|| name.strip_prefix("RTMAX").map(|rest| real_time(last, rest, -1)));
            counted.flatten().filter(|number| (first..=last).contains(number))
        });
        number.filter(|number| (1..=signal::real_time().1).contains(number)).map(Signal).ok_or_else(wrong)
    }
}

/// A number without a sign, which parse() would take.
fn digits(text: &str) -> Option<i32> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigterm", 15),
            ("hup", 1),
            ("9", 9),
            ("64", 64),
            ("RTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMIN+30", 64),
            ("rtmax", 64),
            ("RTMAX-14", 50),
            ("IOT", 6),
            ("POLL", 29),
            ("CLD", 17),
        ] {
            assert_eq!(text.parse::<Signal>().expect(text).number(), number, "{text}");
        }
        for text in ["", "SIG", "0", "65", "-1", "+9", "KILLER", "RTMIN-1", "RTMIN+31", "RTMAX+1", "RTMIN3", "RTMAX-31"]
        {
            assert_eq!(text.parse::<Signal>().expect_err(text).kind(), Kind::Invalid);
        }
    }
}
