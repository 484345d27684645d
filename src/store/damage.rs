//! What is wrong with something in the store, and what can be done about it, as the rooms tell `check/`.

use std::fmt;

use super::Store;
use crate::error::Result;

/// Something that is wrong.
pub(crate) struct Damage {
    /// What.
    pub problem: String,
    /// What can be done about it: an order, such as `write its record anew`.
    pub way_out: String,
    /// Who does that.
    pub mend: Mend,
}

/// Does what can be done, and says what that was. It is told whether something may go that could be somebody's.
pub(crate) type Work = Box<dyn FnOnce(&Store, bool) -> Result<String>>;

/// Who mends something.
pub(crate) enum Mend {
    /// We, and nothing of anybody's goes.
    Now(Work),
    /// We, if a person lets us remove what could be somebody's.
    ByForce(Work),
    /// A person.
    ByHand,
}

impl Damage {
    /// What is mended without losing anything; that is what is said to have been done.
    pub(crate) fn now(
        problem: impl Into<String>,
        way_out: impl Into<String>,
        work: impl FnOnce(&Store) -> Result<()> + 'static,
    ) -> Damage {
        let way_out = way_out.into();
        Damage { problem: problem.into(), mend: Mend::Now(saying(way_out.clone(), work)), way_out }
    }

    /// What is mended by removing something, or by trusting what cannot be verified.
    pub(crate) fn by_force(
        problem: impl Into<String>,
        way_out: impl Into<String>,
        work: impl FnOnce(&Store) -> Result<()> + 'static,
    ) -> Damage {
        let way_out = way_out.into();
        Damage { problem: problem.into(), mend: Mend::ByForce(saying(way_out.clone(), work)), way_out }
    }

    /// What only a person can mend.
    pub(crate) fn by_hand(problem: impl Into<String>, way_out: impl Into<String>) -> Damage {
        Damage { problem: problem.into(), way_out: way_out.into(), mend: Mend::ByHand }
    }
}

impl fmt::Debug for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.mend {
            Mend::Now(_) => "now",
            Mend::ByForce(_) => "by force",
            Mend::ByHand => "by hand",
        };
        write!(f, "{} ({by}: {})", self.problem, self.way_out)
    }
}

/// Work that says of itself what it was to do.
fn saying(done: String, work: impl FnOnce(&Store) -> Result<()> + 'static) -> Work {
    Box::new(move |store, _| work(store).map(|()| done))
}
