//! Registries that lie, stall, loop and forget: what a pull makes of them, at the library. Each is a server of the test's
//! own on loopback. Images in a store, and registries that tell the truth, are in `tests/interop`.

mod auth;
mod blobs;
mod fixture;
mod manifests;
mod redirects;
