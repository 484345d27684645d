//! What a fuzzer asks of this room: a profile is an error, or a program that the kernel takes and that says the same.

use super::compile::run;
use super::profile::{Arch, X32};
use super::{Document, Seccomp, Security, filter};
use crate::kernel::seccomp::MAX_INSTRUCTIONS;
use crate::sandbox::step::CapabilitySet;

const ARGUMENTS: [[u64; 6]; 4] = [[0; 6], [u64::MAX; 6], [1, 2, 8, 16, 0x7e02_0000, 3], [1 << 32; 6]];

/// A profile in Docker's words.
pub fn seccomp(bytes: &[u8]) {
    let Ok(document) = Document::parse(bytes) else { return };
    let kept = serde_json::to_vec(&document).unwrap_or_default();
    assert!(Document::parse(&kept).is_ok_and(|same| same == document), "it is another when it was kept");
    for bounding in [CapabilitySet(0), CapabilitySet(u64::MAX)] {
        let Ok((profile, _)) = document.profile(bounding, (6, 1)) else { continue };
        let security = Security { seccomp: Seccomp::Profile(Box::new(document.clone())), ..Security::default() };
        let Ok(Some(filter)) = filter(&security, bounding, (6, 1)) else { continue };
        assert!(filter.program.len() <= MAX_INSTRUCTIONS);
        for arch in Arch::here() {
            for number in (0..480).step_by(3).chain([X32, u32::MAX]) {
                for arguments in &ARGUMENTS {
                    let (found, _) = run(&filter.program, arch.audit(), number, arguments);
                    assert_eq!(found, profile.verdict(*arch, number, arguments).value(), "{arch:?} {number}");
                }
            }
        }
    }
}
