//! Which devices a sandbox may use, where its capabilities would let it make nodes of any: as rules, as what the v1
//! controller reads, and as the program that the kernel asks on v2.
//!
//! Without CAP_MKNOD and CAP_SYS_ADMIN a sandbox has no node but those it is given (every mount is `nodev`), and this
//! costs nothing, unless it may not do with one of them whatever the node allows.

use std::fmt;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::facts::Device;
use super::spec::DeviceRequest;
use super::step::{CapabilitySet, capabilities};
use crate::error::{Context, Error, Kind, Result};
use crate::kernel::bpf::{self, Instruction};
use crate::kernel::{cgroup, node};

/// With one of these somebody inside could make a node, or a mount that has nodes.
const MAKERS: CapabilitySet = capabilities(&["mknod", "sys_admin"]);

/// A class of devices and what may be done with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceRule {
    /// They are block devices, not character devices.
    pub block: bool,
    /// Their major number; `None` for each.
    pub major: Option<u32>,
    /// Their minor number; `None` for each.
    pub minor: Option<u32>,
    /// [`DeviceRule::MAKE`], [`DeviceRule::READ`] and [`DeviceRule::WRITE`].
    pub access: u8,
}

impl DeviceRule {
    /// Make a node: include/uapi/linux/bpf.h, BPF_DEVCG_ACC_MKNOD.
    pub const MAKE: u8 = 1;
    /// Open to read.
    pub const READ: u8 = 2;
    /// Open to write.
    pub const WRITE: u8 = 4;

    const fn character(major: u32, minor: Option<u32>) -> DeviceRule {
        DeviceRule { block: false, major: Some(major), minor, access: Self::MAKE | Self::READ | Self::WRITE }
    }
}

impl fmt::Display for DeviceRule {
    /// As devices.allow takes it: Documentation/admin-guide/cgroup-v1/devices.rst.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_string(), |n| n.to_string());
        let kind = if self.block { 'b' } else { 'c' };
        write!(f, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        for (bit, letter) in [(Self::READ, "r"), (Self::WRITE, "w"), (Self::MAKE, "m")] {
            f.write_str(if self.access & bit != 0 { letter } else { "" })?;
        }
        Ok(())
    }
}

/// podman's default list: nodes of anything may be made (a build unpacks them), and these used.
const DEFAULT: [DeviceRule; 11] = [
    DeviceRule { block: false, major: None, minor: None, access: DeviceRule::MAKE },
    DeviceRule { block: true, major: None, minor: None, access: DeviceRule::MAKE },
    DeviceRule::character(1, Some(3)), // null, and the others of Documentation/admin-guide/devices.txt:
    DeviceRule::character(1, Some(5)), // zero
    DeviceRule::character(1, Some(7)), // full
    DeviceRule::character(1, Some(8)), // random
    DeviceRule::character(1, Some(9)), // urandom
    DeviceRule::character(5, Some(0)), // tty
    DeviceRule::character(5, Some(1)), // console
    DeviceRule::character(5, Some(2)), // ptmx
    DeviceRule::character(136, None),  // pts/*
];

/// The devices that a sandbox may use whose processes may get these capabilities, those that it was `given` among them;
/// `None` where nothing has to be said.
pub fn device_rules(bounding: CapabilitySet, privileged: bool, given: &[DeviceRule]) -> Option<Vec<DeviceRule>> {
    let whole = DeviceRule::READ | DeviceRule::WRITE;
    let needed = bounding.0 & MAKERS.0 != 0 || given.iter().any(|rule| rule.access & whole != whole);
    (!privileged && needed).then(|| [&DEFAULT, given].concat())
}

/// The nodes of what a sandbox is given of the host's devices, and how it may use each.
pub(super) fn requested(requests: &[DeviceRequest]) -> Result<Vec<(Device, DeviceRule)>> {
    let mut found: Vec<(Device, DeviceRule)> = Vec::new();
    for request in requests {
        let source = request.source.display();
        let nodes = nodes(&request.source).context(|| format!("device {source}"))?;
        if nodes.is_empty() {
            return Err(Error::new(
                Kind::Invalid,
                format!("device {source}: neither a device nor a directory of some"),
            ));
        }
        let flag = |given: bool, bit| if given { bit } else { 0 };
        let access = flag(request.make, DeviceRule::MAKE)
            | flag(request.read, DeviceRule::READ)
            | flag(request.write, DeviceRule::WRITE);
        for (below, node) in nodes {
            let place = request.destination.join(below);
            let place = place.components().as_path();
            let below_dev = place.strip_prefix("/dev").ok().and_then(Path::to_str).filter(|name| !name.is_empty());
            let name = below_dev.ok_or_else(|| {
                Error::new(Kind::Invalid, format!("device {source}: {} is not below /dev", place.display()))
            })?;
            let (block, major, minor, mode) = node;
            // Who is asked for twice is what was said last.
            found.retain(|(device, _)| device.name != name);
            let rule = DeviceRule { block, major: Some(major), minor: Some(minor), access };
            found.push((Device { name: name.to_string(), block, major, minor, mode }, rule));
        }
    }
    Ok(found)
}

/// A device, or those in a directory and where they are below it.
fn nodes(source: &Path) -> Result<Vec<(PathBuf, node::Device)>> {
    let real = std::fs::canonicalize(source)?;
    if let Some(node) = node::device(&real)? {
        return Ok(vec![(PathBuf::new(), node)]);
    }
    let mut found = Vec::new();
    for entry in walkdir::WalkDir::new(&real).min_depth(1).sort_by_file_name() {
        let entry = entry.map_err(std::io::Error::from)?;
        if let Some(node) = node::device(entry.path())? {
            found.push((entry.path().strip_prefix(&real).unwrap_or(entry.path()).to_path_buf(), node));
        }
    }
    Ok(found)
}

/// Lets the processes of a v2 cgroup use only the devices that the rules allow, for as long as it exists.
pub fn restrict_devices(cgroup: &Path, rules: &[DeviceRule]) -> Result<()> {
    bpf::decide_devices(cgroup::open(cgroup)?.as_fd(), &device_program(rules))
}

/// The program that allows what one of the rules allows, for BPF_PROG_TYPE_CGROUP_DEVICE.
///
/// The kernel hands it a `struct bpf_cgroup_dev_ctx` in R1 and wants 1 or 0 in R0 (Documentation/bpf/prog_cgroup_dev,
/// kernel/bpf/cgroup.c, __cgroup_bpf_check_dev_permission).
fn device_program(rules: &[DeviceRule]) -> Vec<Instruction> {
    const ASKED: u8 = 1; // the context, then what is left of the access asked for
    const KIND: u8 = 2;
    const ACCESS: u8 = 3;
    const MAJOR: u8 = 4;
    const MINOR: u8 = 5;
    let mut program = vec![
        // access_type: the access in the upper half, the kind of device in the lower.
        Instruction::load(KIND, ASKED, 0),
        Instruction::load(MAJOR, ASKED, 4),
        Instruction::load(MINOR, ASKED, 8),
        Instruction::copy(ACCESS, KIND),
        Instruction::shift_right(ACCESS, 16),
        Instruction::and(KIND, 0xffff),
    ];
    for rule in rules {
        // BPF_DEVCG_DEV_BLOCK and BPF_DEVCG_DEV_CHAR.
        let mut tests = vec![(KIND, if rule.block { 1 } else { 2 })];
        tests.extend(rule.major.map(|major| (MAJOR, major)));
        tests.extend(rule.minor.map(|minor| (MINOR, minor)));
        tests.push((ASKED, 0));
        // Each test that fails leads behind the rule: over the tests after it, two instructions before the last one, and
        // the verdict.
        let mut left = tests.len();
        for (register, value) in tests {
            left -= 1;
            if left == 0 {
                program.push(Instruction::copy(ASKED, ACCESS));
                program.push(Instruction::and(ASKED, u32::from(!rule.access & 7)));
            }
            let behind = left + if left > 0 { 2 } else { 0 } + 2;
            program.push(Instruction::jump_unless(register, value, behind));
        }
        program.extend(Instruction::verdict(1));
    }
    program.extend(Instruction::verdict(0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::security::DEFAULT_CAPABILITIES;

    /// Runs a program of the few instructions that there are, as Documentation/bpf/standardization/instruction-set.rst
    /// defines them.
    fn verdict(program: &[Instruction], context: [u32; 3]) -> u64 {
        let mut registers = [0u64; 11];
        let mut next = 0;
        for _ in 0..10_000 {
            let Instruction { code, registers: pair, offset, immediate } = program[next];
            let (to, from) = (usize::from(pair & 15), usize::from(pair >> 4));
            let low = |value: u64| value & 0xffff_ffff;
            let constant = immediate as u32;
            next += 1;
            match code {
                0x61 => registers[to] = u64::from(context[usize::try_from(offset).expect("forward") / 4]),
                0xbc => registers[to] = low(registers[from]),
                0x74 => registers[to] = low(registers[to]) >> constant,
                0x54 => registers[to] &= u64::from(constant),
                0x56 if low(registers[to]) != u64::from(constant) => next += usize::try_from(offset).expect("forward"),
                0x56 => {}
                0xb7 => registers[to] = u64::from(constant),
                0x95 => return registers[0],
                other => panic!("an instruction that nobody assembles: {other:#x}"),
            }
        }
        panic!("it does not end")
    }

    fn asked(block: bool, major: u32, minor: u32, access: u8) -> [u32; 3] {
        [u32::from(access) << 16 | if block { 1 } else { 2 }, major, minor]
    }

    #[test]
    fn the_program_says_what_the_rules_say() {
        let program = device_program(&DEFAULT);
        let (make, read, write) = (DeviceRule::MAKE, DeviceRule::READ, DeviceRule::WRITE);
        for (block, major, minor, access, allowed) in [
            (false, 1, 3, read | write, 1),
            (false, 1, 3, make | read | write, 1),
            (false, 1, 9, read, 1),
            (false, 136, 12, read | write, 1),
            (false, 136, 0, read, 1),
            (false, 5, 2, write, 1),
            (false, 1, 1, make, 1),
            (true, 8, 0, make, 1),
            (false, 1, 1, read, 0), // /dev/mem
            (false, 10, 229, read | write, 0),
            (true, 8, 0, read, 0),
            (true, 8, 0, make | read, 0),
            (true, 1, 3, read, 0),
            (false, 3, 1, read, 0),
        ] {
            let context = asked(block, major, minor, access);
            assert_eq!(verdict(&program, context), allowed, "block {block} {major}:{minor} access {access}");
        }
        assert_eq!(verdict(&device_program(&[]), asked(false, 1, 3, read)), 0, "no rule allows nothing");
        // Every access to every kind of device, against the rules read one by one.
        let rules = [
            DeviceRule { block: true, major: Some(7), minor: None, access: read },
            DeviceRule { block: false, major: None, minor: Some(2), access: write | make },
            DeviceRule { block: true, major: None, minor: None, access: make },
        ];
        let program = device_program(&rules);
        for case in 0..2 * 8 * 8 * 8u32 {
            let (block, access) = (case & 1 == 1, (case >> 1 & 7) as u8);
            let (major, minor) = (case >> 4 & 7, case >> 7);
            let allows = |rule: &DeviceRule| {
                rule.block == block
                    && rule.major.is_none_or(|m| m == major)
                    && rule.minor.is_none_or(|m| m == minor)
                    && access & !rule.access == 0
            };
            let expected = u64::from(rules.iter().any(allows));
            assert_eq!(
                verdict(&program, asked(block, major, minor, access)),
                expected,
                "{block} {major}:{minor} {access}"
            );
        }
    }

    #[test]
    fn rules_are_needed_where_nodes_could_be_made() {
        assert_eq!(device_rules(DEFAULT_CAPABILITIES, false, &[]), None);
        let rule = DeviceRule::character(10, Some(229));
        assert_eq!(device_rules(DEFAULT_CAPABILITIES, false, &[rule]), None, "its node says the rest");
        let rules = device_rules(DEFAULT_CAPABILITIES, false, &[DeviceRule { access: DeviceRule::READ, ..rule }]);
        assert_eq!(rules.expect("rules")[11].to_string(), "c 10:229 r");
        for name in ["mknod", "sys_admin"] {
            let more = CapabilitySet(DEFAULT_CAPABILITIES.0 | capabilities(&[name]).0);
            assert!(device_rules(more, false, &[]).is_some_and(|rules| !rules.is_empty()), "{name}");
            assert_eq!(device_rules(more, true, &[]), None, "privileged");
        }
    }

    #[test]
    fn rules_are_written_as_the_v1_controller_reads_them() {
        let written: Vec<String> = DEFAULT.iter().map(ToString::to_string).collect();
        assert_eq!(written[..3], ["c *:* m", "b *:* m", "c 1:3 rwm"]);
        assert_eq!(written[10], "c 136:* rwm");
    }
}
