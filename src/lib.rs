//! tupper: images and containers as btrfs snapshots.
//!
//! One direction, and a room for each step of it:
//!
//! ```text
//! transport ─> layer ──> image ──> snapshot ──> sandbox
//! where       a tar     sealed    a writable    a process
//! bytes       stream,   read-only child of it   that lives
//! come from   applied   subvolume               inside it
//! ```
//!
//! The rooms and which may use which are in ARCHITECTURE.md; `tests/layering.rs` holds the code to it. The library
//! never prints: it returns values, and says what it did through the `log` crate.

pub mod error;
pub mod name;
pub mod rootfs;

pub(crate) mod kernel;

pub(crate) mod archive;

pub mod interrupt;
pub mod prompt;

pub mod store;
pub mod subvolume;

pub mod bench;
pub mod check;
pub mod container;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod image;
pub mod layer;
pub mod network;
pub mod sandbox;
pub mod snapshot;
pub mod transport;
pub mod usage;
pub mod volume;
