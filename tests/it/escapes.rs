//! Every way out of a container that is known, tried for real: docs/security.md has the table of what each was and why it
//! fails here.
//!
//! A test that only shows that something did not happen proves nothing, so each also shows that the attack itself works:
//! on the host, with a flag that takes the protection away, or on a careless stand-in.

pub mod attack;
mod cgroups;
mod descriptors;
mod devices;
mod kernel;
mod privileges;
mod processes;
mod races;
mod runtime;
mod subvolumes;
mod users;
