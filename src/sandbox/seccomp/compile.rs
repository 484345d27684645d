//! From a profile to the program that the kernel runs at each call: classic BPF over `struct seccomp_data`.
//!
//! For each ABI a binary search over the numbers, whose leaves are ranges of calls with the same action or the tests of
//! one call's arguments. Where a path reads nothing but number and ABI, the kernel finds out when the filter is loaded
//! that a call is always allowed, and runs nothing at it (kernel/seccomp.c, seccomp_cache_prepare, Linux 5.11).

use super::profile::{ABSENT, Action, Arch, Compare, Condition, Profile, Rule, X32};
use crate::kernel::seccomp::Instruction;

// include/uapi/linux/bpf_common.h: class, size, mode and source of the few instructions that there are here.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;

// struct seccomp_data: include/uapi/linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

const fn plain(code: u16, constant: u32) -> Instruction {
    Instruction { code, on_true: 0, on_false: 0, constant }
}

/// What becomes of the calls from a number on.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaf<'a> {
    Always(Action),
    By(&'a [Rule]),
}

/// Compiles it.
pub(super) fn compile(profile: &Profile) -> Vec<Instruction> {
    let mut program = Vec::with_capacity(512);
    program.push(plain(LOAD, ARCH));
    for arch in &profile.arches {
        let first = program.len();
        program.push(plain(LOAD, NUMBER));
        search(&ranges(profile, *arch), profile.default, &mut program);
        let skipped = program.len() - first;
        let here = Instruction { on_true: 1, ..plain(IF_EQUAL, arch.audit()) };
        program.splice(first..first, [here, jump(skipped)]);
    }
    program.push(plain(RETURN, ABSENT.value()));
    program
}

fn jump(over: usize) -> Instruction {
    plain(JUMP, over as u32)
}

/// Where the ranges begin, and what becomes of what is in them.
fn ranges(profile: &Profile, arch: Arch) -> Vec<(u32, Leaf<'_>)> {
    let mut found = vec![(0, Leaf::Always(profile.default))];
    for (number, rules) in profile.numbered(arch) {
        let leaf = match rules.first() {
            Some(rule) if rule.when.is_empty() => Leaf::Always(rule.action),
            _ => Leaf::By(rules),
        };
        push(&mut found, number, leaf);
        push(&mut found, number + 1, Leaf::Always(profile.default));
    }
    if arch == Arch::X86_64 {
        push(&mut found, X32, Leaf::Always(ABSENT));
    }
    found
}

/// Adds a range, which ends the last one; the two are one if they are the same.
fn push<'a>(ranges: &mut Vec<(u32, Leaf<'a>)>, from: u32, leaf: Leaf<'a>) {
    ranges.pop_if(|(last, _)| *last == from);
    if ranges.last().is_none_or(|(_, last)| *last != leaf) {
        ranges.push((from, leaf));
    }
}

/// The search: the number is in the accumulator, and in one of the ranges.
fn search(ranges: &[(u32, Leaf<'_>)], default: Action, program: &mut Vec<Instruction>) {
    match ranges {
        [] => {}
        [(_, Leaf::Always(action))] => program.push(plain(RETURN, action.value())),
        [(_, Leaf::By(rules))] => test(rules, default, program),
        several => {
            let (lower, upper) = several.split_at(several.len() / 2);
            let at = program.len();
            program.push(plain(IF_GREATER_OR_EQUAL, upper[0].0));
            search(lower, default, program);
            let skipped = program.len() - at - 1;
            match u8::try_from(skipped) {
                Ok(skipped) => program[at].on_true = skipped,
                // A test skips 255 instructions at most, a jump as many as one likes.
                Err(_) => {
                    program[at].on_false = 1;
                    program.insert(at + 1, jump(skipped));
                }
            }
            search(upper, default, program);
        }
    }
}

/// The rules of one call, one after the other.
fn test(rules: &[Rule], default: Action, program: &mut Vec<Instruction>) {
    for rule in rules {
        let mut tests: Vec<(Test, usize)> = Vec::new();
        for condition in &rule.when {
            let of_condition = condition_tests(*condition);
            let end = tests.len() + of_condition.len();
            tests.extend(of_condition.into_iter().map(|test| (test, end)));
        }
        let behind_rule = tests.len() + 1;
        for (i, (test, end)) in tests.iter().enumerate() {
            // A rule has at most six conditions of eight instructions.
            let skip = |to: To| match to {
                To::Next => 0,
                To::Holds => (end - i - 1) as u8,
                To::Fails => (behind_rule - i - 1) as u8,
            };
            let (on_true, on_false) = (skip(test.on_true), skip(test.on_false));
            program.push(Instruction { code: test.code, on_true, on_false, constant: test.constant });
        }
        program.push(plain(RETURN, rule.action.value()));
        if rule.when.is_empty() {
            return; // nothing gets past it
        }
    }
    program.push(plain(RETURN, default.value()));
}

/// An instruction of a condition.
struct Test {
    code: u16,
    constant: u32,
    on_true: To,
    on_false: To,
}

/// Where it goes on.
#[derive(Clone, Copy)]
enum To {
    Next,
    /// The condition holds.
    Holds,
    /// It does not: the next rule.
    Fails,
}

/// An argument has 64 bits, the accumulator 32: first the upper half, then, if that does not decide, the lower.
fn condition_tests(condition: Condition) -> Vec<Test> {
    let half = |shift: u32| ((condition.mask >> shift) as u32, (condition.value >> shift) as u32);
    let (upper, lower) = (half(32), half(0));
    let mut tests = Vec::with_capacity(8);
    let offset = ARGUMENTS + 8 * u32::from(condition.argument);
    let load = |tests: &mut Vec<Test>, offset: u32, mask: u32| {
        tests.push(Test { code: LOAD, constant: offset, on_true: To::Next, on_false: To::Next });
        if mask != u32::MAX {
            tests.push(Test { code: AND, constant: mask, on_true: To::Next, on_false: To::Next });
        }
    };
    // Little-endian: Arch::here has no other.
    if upper != (0, 0) {
        load(&mut tests, offset + 4, upper.0);
        let mut branch = |code, on_true, on_false| tests.push(Test { code, constant: upper.1, on_true, on_false });
        match condition.compare {
            Compare::Equal => branch(IF_EQUAL, To::Next, To::Fails),
            Compare::NotEqual => branch(IF_EQUAL, To::Next, To::Holds),
            Compare::Greater | Compare::GreaterOrEqual => {
                branch(IF_GREATER, To::Holds, To::Next);
                branch(IF_EQUAL, To::Next, To::Fails);
            }
            Compare::Less | Compare::LessOrEqual => {
                branch(IF_GREATER, To::Fails, To::Next);
                branch(IF_EQUAL, To::Next, To::Holds);
            }
        }
    }
    load(&mut tests, offset, lower.0);
    let (code, on_true, on_false) = match condition.compare {
        Compare::Equal => (IF_EQUAL, To::Holds, To::Fails),
        Compare::NotEqual => (IF_EQUAL, To::Fails, To::Holds),
        Compare::Greater => (IF_GREATER, To::Holds, To::Fails),
        Compare::GreaterOrEqual => (IF_GREATER_OR_EQUAL, To::Holds, To::Fails),
        Compare::Less => (IF_GREATER_OR_EQUAL, To::Fails, To::Holds),
        Compare::LessOrEqual => (IF_GREATER, To::Fails, To::Holds),
    };
    tests.push(Test { code, constant: lower.1, on_true, on_false });
    tests
}

/// Runs a program as Documentation/networking/filter.rst defines it; also counts its steps.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn run(program: &[Instruction], audit: u32, number: u32, arguments: &[u64; 6]) -> (u32, usize) {
    let mut data = [number, audit, 0, 0].to_vec();
    data.extend(arguments.iter().flat_map(|a| [*a as u32, (*a >> 32) as u32]));
    let (mut accumulator, mut next) = (0u32, 0usize);
    for step in 1.. {
        let Instruction { code, on_true, on_false, constant } = program[next];
        next += 1;
        let branch = |test: bool| usize::from(if test { on_true } else { on_false });
        match code {
            LOAD => accumulator = data[constant as usize / 4],
            AND => accumulator &= constant,
            RETURN => return (constant, step),
            JUMP => next += constant as usize,
            IF_EQUAL => next += branch(accumulator == constant),
            IF_GREATER => next += branch(accumulator > constant),
            IF_GREATER_OR_EQUAL => next += branch(accumulator >= constant),
            other => panic!("an instruction that nobody assembles: {other:#x}"),
        }
    }
    unreachable!("every program returns")
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
