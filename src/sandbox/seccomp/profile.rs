//! Which system calls a process may make: a value.
//!
//! [`Profile::verdict`] says what it means; [`compile`](super::compile::compile) makes of it what the kernel runs, and a
//! test holds the two against each other.

use super::calls;
use crate::kernel::seccomp;

/// An ABI of the kernel's. The order is that of [`Arch::here`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arch {
    X86_64,
    X86,
    Aarch64,
}

impl Arch {
    /// Those that programs can use on this machine; the first is that of its own programs.
    ///
    /// Of aarch64's there is no 32-bit one here, and of x86_64's not x32, which distributions turn off: their calls
    /// answer ENOSYS.
    pub const fn here() -> &'static [Arch] {
        if cfg!(target_arch = "aarch64") { &[Arch::Aarch64] } else { &[Arch::X86_64, Arch::X86] }
    }

    /// include/uapi/linux/audit.h, AUDIT_ARCH_*.
    pub const fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::X86 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
        }
    }

    /// As Docker's profiles call it: in an `archMap`, and in `includes` and `excludes`.
    pub const fn names(self) -> [&'static str; 2] {
        match self {
            Arch::X86_64 => ["SCMP_ARCH_X86_64", "amd64"],
            Arch::X86 => ["SCMP_ARCH_X86", "x86"],
            Arch::Aarch64 => ["SCMP_ARCH_AARCH64", "arm64"],
        }
    }
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    Allow,
    /// It fails with this errno.
    Errno(u16),
    KillProcess,
    KillThread,
    /// SIGSYS.
    Trap(u16),
    /// The tracer decides; without one it fails with ENOSYS.
    Trace(u16),
    /// It is made, and noted in the audit log.
    Log,
}

impl Action {
    /// What the filter returns: include/uapi/linux/seccomp.h, SECCOMP_RET_*.
    pub fn value(self) -> u32 {
        match self {
            Action::KillProcess => 0x8000_0000,
            Action::KillThread => 0,
            Action::Trap(data) => 0x0003_0000 | u32::from(data),
            Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Action::Log => 0x7ffc_0000,
            Action::Allow => 0x7fff_0000,
        }
    }
}

/// For what the kernel does not have.
pub(crate) const ABSENT: Action = Action::Errno(seccomp::ENOSYS);

/// The numbers of x32's calls begin here: arch/x86/include/uapi/asm/unistd.h, __X32_SYSCALL_BIT.
pub(super) const X32: u32 = 0x4000_0000;

/// A comparison of two numbers without sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
}

/// Something that an argument of a call is: `argument & mask OP value`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Condition {
    /// Which argument, from 0 to 5.
    pub argument: u8,
    pub compare: Compare,
    pub mask: u64,
    pub value: u64,
}

#[cfg(any(test, feature = "fuzzing"))]
impl Condition {
    fn holds(self, arguments: &[u64; 6]) -> bool {
        let found = arguments[usize::from(self.argument)] & self.mask;
        match self.compare {
            Compare::NotEqual => found != self.value,
            Compare::Less => found < self.value,
            Compare::LessOrEqual => found <= self.value,
            Compare::Equal => found == self.value,
            Compare::GreaterOrEqual => found >= self.value,
            Compare::Greater => found > self.value,
        }
    }
}

/// What becomes of a call if its arguments are such.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Rule {
    pub call: &'static str,
    /// All of these; none: always.
    pub when: Vec<Condition>,
    pub action: Action,
}

/// Which system calls a process may make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Profile {
    /// The ABIs it knows; calls by others answer ENOSYS.
    pub arches: Vec<Arch>,
    /// What becomes of a call that no rule fits.
    pub default: Action,
    /// The first that fits decides. Those of one call stand together, in the order of the calls' names.
    pub rules: Vec<Rule>,
}

/// What makes data durable. What a file is opened with, O_SYNC, is left: it costs time, and breaks nothing.
const SYNC: [&str; 6] = ["fdatasync", "fsync", "msync", "sync", "sync_file_range", "syncfs"];

impl Profile {
    /// All is allowed.
    pub(super) fn open() -> Profile {
        Profile { arches: Arch::here().to_vec(), default: Action::Allow, rules: Vec::new() }
    }

    /// [What makes data durable](SYNC) succeeds, and is not done.
    pub(super) fn suppress_sync(&mut self) {
        self.rules.retain(|rule| !SYNC.contains(&rule.call));
        let done = |call| Rule { call, when: Vec::new(), action: Action::Errno(0) };
        self.rules.extend(SYNC.map(done));
        self.rules.sort_by_key(|rule| rule.call);
    }
}

impl Profile {
    /// What becomes of a call.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn verdict(&self, arch: Arch, number: u32, arguments: &[u64; 6]) -> Action {
        let named = |call: &&calls::Call| call.number(arch) == Some(number);
        let call = calls::CALLS.iter().find(named);
        if !self.arches.contains(&arch) || call.is_none() && arch == Arch::X86_64 && number >= X32 {
            return ABSENT;
        }
        let fits = |rule: &&Rule| {
            call.is_some_and(|call| call.name == rule.call) && rule.when.iter().all(|c| c.holds(arguments))
        };
        self.rules.iter().find(fits).map_or(self.default, |rule| rule.action)
    }

    /// Each known call of an ABI that is not left to the default, by its number.
    pub fn numbered(&self, arch: Arch) -> Vec<(u32, &[Rule])> {
        let mut found: Vec<(u32, &[Rule])> = Vec::with_capacity(calls::CALLS.len());
        let mut rest = &self.rules[..];
        // Both are in the order of the names.
        for call in calls::CALLS {
            let count = rest.iter().take_while(|rule| rule.call == call.name).count();
            let (rules, others) = rest.split_at(count);
            rest = others;
            if let Some(number) = call.number(arch).filter(|_| count > 0) {
                found.push((number, rules));
            }
        }
        found.sort_unstable_by_key(|(number, _)| *number);
        found
    }
}
