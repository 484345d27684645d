//! The profile of whoever asks for none: what podman's lets through, and less where docker's lets less.
//!
//! Most of it is a column of [`CALLS`]; here is what depends on arguments. Numbers of flags and requests are written out:
//! they are the kernel's interface, and the same on every ABI here.

use super::calls::{CALLS, Call, Usual};
use super::profile::{ABSENT, Action, Arch, Compare, Condition, Profile, Rule};
use crate::kernel::seccomp::{EAFNOSUPPORT, EINVAL, ENOTTY, EPERM};
use crate::sandbox::step::{CapabilitySet, capabilities};

const REFUSED: Action = Action::Errno(EPERM);

/// An argument that is an int: the kernel does not look at what stands above its 32 bits, nor may a rule.
const INT: u64 = 0xffff_ffff;

/// The profile for a sandbox whose processes may get these capabilities.
pub(super) fn usual(bounding: CapabilitySet) -> Profile {
    let has = |wanted: CapabilitySet| bounding.0 & wanted.0 != 0;
    let mut rules = Vec::with_capacity(CALLS.len() + 32);
    for call in CALLS {
        let action = match call.usual {
            Usual::Allowed => Action::Allow,
            Usual::With(wanted) if has(wanted) => Action::Allow,
            Usual::With(_) | Usual::Refused => REFUSED,
            Usual::Absent => continue,
            Usual::Checked => {
                rules.extend(checked(call, has));
                continue;
            }
        };
        rules.push(Rule { call: call.name, when: Vec::new(), action });
    }
    Profile { arches: Arch::here().to_vec(), default: ABSENT, rules }
}

fn checked(call: &Call, has: impl Fn(CapabilitySet) -> bool) -> Vec<Rule> {
    let admin = has(capabilities(&["sys_admin"]));
    let rule = |when: Vec<Condition>, action| Rule { call: call.name, when, action };
    match call.name {
        "clone" | "unshare" if admin => vec![rule(Vec::new(), Action::Allow)],
        // New namespaces: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET.
        "clone" => vec![rule(vec![none_of(0, 0x7e02_0000)], Action::Allow), rule(Vec::new(), REFUSED)],
        // And CLONE_NEWTIME, whose bit is one of the signal's in clone(2).
        "unshare" => vec![rule(vec![none_of(0, 0x7e02_0080)], Action::Allow), rule(Vec::new(), REFUSED)],
        // Its flags lie in memory, where no filter reads them; libc falls back to clone.
        "clone3" => vec![rule(Vec::new(), if admin { Action::Allow } else { ABSENT })],
        "ioctl" => ioctl().into_iter().map(|(when, action)| rule(when, action)).collect(),
        // PER_LINUX, PER_LINUX32, each with UNAME26, and the question which it is.
        "personality" => [0, 8, 0x2_0000, 0x2_0008, INT]
            .map(|persona| rule(vec![is(0, persona)], Action::Allow))
            .into_iter()
            .chain([rule(Vec::new(), REFUSED)])
            .collect(),
        "socket" => {
            // AF_ALG and AF_VSOCK: the kernel's cipher drivers, and the hypervisor. i386's socketcall has its arguments in
            // memory, where no filter looks; Debian 12's i386 libc knows no other way to a socket.
            let mut rules = [38, 40].map(|family| rule(vec![is(0, family)], Action::Errno(EAFNOSUPPORT))).to_vec();
            if !has(capabilities(&["audit_write"])) {
                // AF_NETLINK, NETLINK_AUDIT: EINVAL is what libaudit takes for a kernel without it.
                rules.push(rule(vec![is(0, 16), is(2, 9)], Action::Errno(EINVAL)));
            }
            rules.push(rule(Vec::new(), Action::Allow));
            rules
        }
        _ => vec![rule(Vec::new(), REFUSED)],
    }
}

/// btrfs's requests make subvolumes, which escape limits of size and are left when their container goes, whatever
/// capabilities somebody has. Of the requests with its letter some are every filesystem's: FICLONE, FICLONERANGE and
/// FIDEDUPERANGE (include/uapi/linux/fs.h).
fn ioctl() -> Vec<(Vec<Condition>, Action)> {
    let mut rules = [0x4004_9409, 0x4020_940d, 0xc018_9436].map(|r| (vec![is(1, r)], Action::Allow)).to_vec();
    rules.push((vec![masked(1, 0xff00, 0x9400)], Action::Errno(ENOTTY)));
    // TIOCSTI and TIOCLINUX type into a terminal that whoever holds its other end believes to be theirs.
    rules.extend([0x5412, 0x541c].map(|request| (vec![is(1, request)], REFUSED)));
    rules.push((Vec::new(), Action::Allow));
    rules
}

fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    Condition { argument, compare: Compare::Equal, mask, value }
}

fn is(argument: u8, value: u64) -> Condition {
    masked(argument, INT, value)
}

fn none_of(argument: u8, flags: u64) -> Condition {
    masked(argument, flags, 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(name: &str) -> u32 {
        super::super::calls::find(name).and_then(|call| call.number(Arch::X86_64)).expect(name)
    }

    #[test]
    fn what_makes_data_durable_can_be_answered_without_being_done() {
        let open = Profile::open();
        for mut profile in [usual(CapabilitySet(0)), open] {
            let before = profile.verdict(Arch::X86_64, number("write"), &[0; 6]);
            profile.suppress_sync();
            for name in ["fsync", "fdatasync", "sync", "syncfs", "sync_file_range", "msync"] {
                assert_eq!(profile.verdict(Arch::X86_64, number(name), &[0; 6]), Action::Errno(0), "{name}");
                let numbered = profile.numbered(Arch::X86_64);
                assert!(numbered.iter().any(|(found, _)| *found == number(name)), "{name} is in what is compiled");
            }
            assert_eq!(profile.verdict(Arch::X86_64, number("write"), &[0; 6]), before);
        }
    }

    #[test]
    fn what_is_allowed_by_default() {
        let none = CapabilitySet(0);
        let admin = capabilities(&["sys_admin"]);
        let allow = Action::Allow;
        for (name, arguments, capabilities, expected) in [
            ("read", [0; 6], none, allow),
            ("mount", [0; 6], none, REFUSED),
            ("mount", [0; 6], admin, allow),
            ("io_uring_setup", [0; 6], admin, REFUSED),
            ("kexec_load", [0; 6], CapabilitySet(u64::MAX), REFUSED),
            ("clone", [0x11, 0, 0, 0, 0, 0], none, allow),
            ("clone", [0x3d_0f00, 0, 0, 0, 0, 0], none, allow),
            ("clone", [0x1000_0011, 0, 0, 0, 0, 0], none, REFUSED),
            ("clone", [0x1000_0011, 0, 0, 0, 0, 0], admin, allow),
            ("unshare", [0x400, 0, 0, 0, 0, 0], none, allow),
            ("unshare", [0x80, 0, 0, 0, 0, 0], none, REFUSED),
            ("clone3", [0; 6], none, ABSENT),
            ("clone3", [0; 6], admin, allow),
            ("security", [0; 6], admin, ABSENT),
            ("ioctl", [0, 0x5401, 0, 0, 0, 0], none, allow),
            ("ioctl", [0, 0x5000_940e, 0, 0, 0, 0], none, Action::Errno(ENOTTY)),
            ("ioctl", [0, 0x5000_9418, 0, 0, 0, 0], admin, Action::Errno(ENOTTY)),
            ("ioctl", [0, 0x1_5000_9418, 0, 0, 0, 0], none, Action::Errno(ENOTTY)),
            ("ioctl", [0, 0x4004_9409, 0, 0, 0, 0], none, allow),
            ("ioctl", [0, 0xffff_ffff_c018_9436, 0, 0, 0, 0], none, allow),
            ("ioctl", [0, 0x7_0000_5412, 0, 0, 0, 0], none, REFUSED),
            ("socket", [40, 1, 0, 0, 0, 0], none, Action::Errno(EAFNOSUPPORT)),
            ("socket", [0xf_0000_0026, 1, 0, 0, 0, 0], none, Action::Errno(EAFNOSUPPORT)),
            ("socket", [16, 3, 9, 0, 0, 0], none, Action::Errno(EINVAL)),
            ("socket", [16, 3, 9, 0, 0, 0], super::capabilities(&["audit_write"]), allow),
            ("socket", [16, 3, 0, 0, 0, 0], none, allow),
            ("personality", [0xffff_ffff, 0, 0, 0, 0, 0], none, allow),
            ("personality", [0x4_0000, 0, 0, 0, 0, 0], none, REFUSED),
        ] {
            let found = usual(capabilities).verdict(Arch::X86_64, number(name), &arguments);
            assert_eq!(found, expected, "{name} {arguments:x?}");
        }
        assert_eq!(usual(none).verdict(Arch::X86_64, 0x4000_0000, &[0; 6]), ABSENT, "x32");
        assert_eq!(usual(none).verdict(Arch::X86_64, 9_999, &[0; 6]), ABSENT, "not made yet");
    }

    #[test]
    fn the_calls_are_in_order_and_have_rules() {
        assert!(CALLS.is_sorted_by(|a, b| a.name < b.name));
        for arch in [Arch::X86_64, Arch::X86, Arch::Aarch64] {
            let mut numbers: Vec<u32> = CALLS.iter().filter_map(|call| call.number(arch)).collect();
            numbers.sort_unstable();
            assert!(numbers.len() > 300 && numbers.is_sorted_by(|a, b| a < b), "{arch:?}: a number twice");
        }
        let profile = usual(CapabilitySet(0));
        for call in CALLS.iter().filter(|call| call.usual != Usual::Absent) {
            assert!(profile.rules.iter().any(|rule| rule.call == call.name), "{}", call.name);
        }
        for call in CALLS.iter().filter(|call| call.usual == Usual::Checked) {
            assert!(checked(call, |_| false) != [Rule { call: call.name, when: Vec::new(), action: REFUSED }]);
        }
    }
}
