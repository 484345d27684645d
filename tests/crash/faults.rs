//! Faults: a call fails, a disk is full, read-only or broken, descriptors run out. Whatever a command was doing, it has
//! to say so in one line, leave what was there before as it was, and leave nothing that gc does not remove.

mod broken;
mod inject;
mod layers;
mod real;
mod scene;
