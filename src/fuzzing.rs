//! What `make fuzz` runs: a function for each target, which panics when something is wrong with the library.
//!
//! Only with the feature `fuzzing`; no part of the interface.

pub use crate::archive::fuzz::{archive, pax};
pub use crate::container::fuzz::config;
pub use crate::image::fuzz::change;
pub use crate::layer::fuzz::{decompression, layers, whiteouts};
pub use crate::sandbox::seccomp::fuzz::seccomp;
pub use crate::subvolume::preread::fuzz as program;
pub use crate::transport::fuzz::{challenge, headers, manifest, reference, registries, stored};

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// The seeds, and what was found once: files of fuzz/seeds/TARGET. Layers are applied by root only, as the gate is.
    #[test]
    fn no_seed_finds_anything() {
        type Target = fn(&[u8]);
        let targets: [(&str, Target); 14] = [
            ("archive", archive),
            ("challenge", challenge),
            ("change", change),
            ("config", config),
            ("decompression", decompression),
            ("headers", headers),
            ("manifest", manifest),
            ("pax", pax),
            ("program", program),
            ("reference", reference),
            ("registries", registries),
            ("seccomp", seccomp),
            ("stored", stored),
            ("whiteouts", whiteouts),
        ];
        let root = std::fs::metadata("/proc/self").is_ok_and(|this| this.uid() == 0); // proc_pid(5)
        let as_root: &[(&str, Target)] = if root { &[("layers", layers)] } else { &[] };
        let seeds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds");
        for (name, target) in targets.iter().chain(as_root) {
            let files: Vec<_> = std::fs::read_dir(seeds.join(name)).expect(name).flatten().collect();
            assert!(!files.is_empty(), "{name} has no seeds");
            for file in files {
                target(&std::fs::read(file.path()).expect("a seed"));
            }
        }
    }
}
