//! What a power cut leaves: every write to a filesystem and every flush of it is recorded, the disk is made as it would
//! have been after a cut at any moment, and looked at.
//!
//! `TUPPER_SWEEP=whole` cuts at many more moments: a campaign of 300, and others. Each random cut says what repeats it:
//! `TUPPER_SEED=N` and the test's name.

#[allow(dead_code, reason = "shared with tests/it: each test binary uses its part")]
#[path = "../it/support/mod.rs"]
mod support;

mod after;
mod campaign;
mod claims;
mod ledger;
mod machine;
mod nbd;
mod pool;
mod recorder;
mod sweep;
mod tape;
mod verbs;
mod worker;
