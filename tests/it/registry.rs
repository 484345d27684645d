//! Registries that lie, stall, loop and forget: what a pull and a push make of them. Each is a server of the test's own on
//! loopback. Registries that tell the truth are in `tests/interop`.

mod auth;
mod blobs;
mod fixture;
mod interrupted;
mod login;
mod manifests;
mod memory;
mod names;
mod push;
mod redirects;
mod tls;
mod url;
