//! tupper beside the programs that users have. They come from Debian's packages and run on sockets and folders of
//! their own; nothing of the host's own Docker is used or changed.

#[allow(dead_code, reason = "shared with tests/it: each test binary uses its part")]
#[path = "../it/support/mod.rs"]
mod support;

mod docker;
mod images;
mod registry;
