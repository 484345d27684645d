//! tupper against a real kernel: as root, each test on a loop-backed filesystem of its own.

#[allow(dead_code, reason = "shared with tests/interop: each test binary uses its part")]
mod support;

mod changes;
mod cli;
mod escapes;
mod explain;
mod held;
mod hostile;
mod layer;
mod network;
mod registry;
mod sandbox;
mod scratch;
mod tour;
mod upgrade;
mod whiteouts;
