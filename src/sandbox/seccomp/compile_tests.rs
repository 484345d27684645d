//! The compiled program against what the profile says, in an interpreter of the few instructions that there are.

use proptest::prelude::*;

use super::super::calls::CALLS;
use super::super::usual::usual;
use super::*;
use crate::kernel::seccomp::MAX_INSTRUCTIONS;
use crate::sandbox::step::CapabilitySet;

fn agree(profile: &Profile, program: &[Instruction], arch: Arch, number: u32, arguments: &[u64; 6]) {
    let expected = profile.verdict(arch, number, arguments).value();
    let (found, _) = run(program, arch.audit(), number, arguments);
    assert_eq!(found, expected, "{arch:?} {number} {arguments:x?}");
}

const ARCHES: [Arch; 3] = [Arch::X86_64, Arch::X86, Arch::Aarch64];

#[test]
fn every_call_of_the_usual_profile() {
    let arguments = [[0; 6], [u64::MAX; 6], [16, 0x9400, 9, 0, 0, 0], [40, 0x4004_9409, 0, 0, 0, 0], [0x7e02_0000; 6]];
    for bounding in [0, 1 << 21, u64::MAX] {
        let profile = usual(CapabilitySet(bounding));
        let program = compile(&profile);
        assert!(program.len() < 1000, "{} instructions", program.len());
        for arch in ARCHES {
            for number in (0..600).chain([X32 - 1, X32, X32 + 1, u32::MAX]) {
                arguments.iter().for_each(|a| agree(&profile, &program, arch, number, a));
            }
        }
        // A call by the machine's own ABI costs at most this many instructions, ioctl more.
        let steps = |number| run(&program, Arch::here()[0].audit(), number, &[0, 0x5401, 0, 0, 0, 0]).1;
        let longest = (0..600).map(steps).max().expect("some");
        assert!(longest <= 32, "{longest} instructions");
    }
}

fn condition() -> impl Strategy<Value = Condition> {
    let compare = prop::sample::select(vec![
        Compare::NotEqual,
        Compare::Less,
        Compare::LessOrEqual,
        Compare::Equal,
        Compare::GreaterOrEqual,
        Compare::Greater,
    ]);
    (0..6u8, compare, word(), word()).prop_map(|(argument, compare, mask, value)| Condition {
        argument,
        compare,
        mask,
        value,
    })
}

/// Few values, so that comparisons meet.
fn word() -> impl Strategy<Value = u64> {
    let half = || prop::sample::select(vec![0u64, 1, 2, 0x8000_0000, 0xffff_fffe, 0xffff_ffff]);
    (half(), half()).prop_map(|(upper, lower)| upper << 32 | lower)
}

fn profile() -> impl Strategy<Value = Profile> {
    let action = || {
        prop::sample::select(vec![
            Action::Allow,
            Action::Errno(1),
            Action::Errno(38),
            Action::KillProcess,
            Action::KillThread,
            Action::Trap(0),
            Action::Trace(7),
            Action::Log,
        ])
    };
    let rule = (0..CALLS.len(), prop::collection::vec(condition(), 0..4), action());
    let rule = rule.prop_map(|(i, when, action)| Rule { call: CALLS[i].name, when, action });
    let arches = prop::sample::subsequence(ARCHES.to_vec(), 0..=3);
    (arches, action(), prop::collection::vec(rule, 0..300)).prop_map(|(arches, default, mut rules)| {
        rules.sort_by_key(|rule| rule.call);
        Profile { arches, default, rules }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn a_program_says_what_its_profile_says(
        profile in profile(),
        calls in prop::collection::vec((0..470u32, prop::array::uniform6(word())), 50),
    ) {
        let program = compile(&profile);
        prop_assert!(program.len() <= MAX_INSTRUCTIONS * 4);
        for arch in ARCHES {
            for (number, arguments) in &calls {
                agree(&profile, &program, arch, *number, arguments);
            }
        }
    }
}
