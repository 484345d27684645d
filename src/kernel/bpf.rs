//! bpf(2), for the one program that a cgroup may need: which devices it allows.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use super::failed;
use crate::error::Result;

// include/uapi/linux/bpf.h: enum bpf_cmd, enum bpf_prog_type, enum bpf_attach_type, BPF_F_ALLOW_MULTI.
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The program calls no function of the kernel, so any licence does.
const LICENSE: &CStr = c"Apache-2.0";

/// One instruction: `struct bpf_insn`, Documentation/bpf/standardization/instruction-set.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u8,
    /// The destination in the lower half, the source in the upper: how a little-endian C lays the bit fields out.
    pub(crate) registers: u8,
    pub(crate) offset: i16,
    pub(crate) immediate: i32,
}

// The bit fields are the other way round there; no machine that tupper is built for is one.
const _: () = assert!(cfg!(target_endian = "little"));

impl Instruction {
    const fn new(code: u8, to: u8, from: u8, offset: i16, immediate: u32) -> Instruction {
        Instruction { code, registers: from << 4 | to, offset, immediate: immediate.cast_signed() }
    }

    /// `to = *(u32 *)(from + offset)`
    pub(crate) const fn load(to: u8, from: u8, offset: i16) -> Instruction {
        Instruction::new(0x61, to, from, offset, 0)
    }

    /// `to = from`, 32 bits.
    pub(crate) const fn copy(to: u8, from: u8) -> Instruction {
        Instruction::new(0xbc, to, from, 0, 0)
    }

    /// `register >>= bits`, 32 bits.
    pub(crate) const fn shift_right(register: u8, bits: u32) -> Instruction {
        Instruction::new(0x74, register, 0, 0, bits)
    }

    /// `register &= mask`, 32 bits.
    pub(crate) const fn and(register: u8, mask: u32) -> Instruction {
        Instruction::new(0x54, register, 0, 0, mask)
    }

    /// Over the next `instructions` unless the register has this value, 32 bits. At most 32,767 of them.
    pub(crate) fn jump_unless(register: u8, value: u32, instructions: usize) -> Instruction {
        Instruction::new(0x56, register, 0, i16::try_from(instructions).unwrap_or(i16::MAX), value)
    }

    /// `return value`
    pub(crate) const fn verdict(value: u32) -> [Instruction; 2] {
        [Instruction::new(0xb7, 0, 0, 0, value), Instruction::new(0x95, 0, 0, 0, 0)]
    }
}

/// The members of `union bpf_attr` for BPF_PROG_LOAD, as far as they are needed; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
}

/// Those for BPF_PROG_ATTACH.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

/// Has every use of a device in a v2 cgroup decided by a program, beside those that other programs decide. It lasts as
/// long as the cgroup.
pub(crate) fn decide_devices(cgroup: BorrowedFd<'_>, program: &[Instruction]) -> Result<()> {
    let load = Load {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr().addr() as u64,
        license: LICENSE.as_ptr().addr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
    };
    let fd = bpf(PROG_LOAD, &load).map_err(|e| failed("load the program that decides on devices", e))?;
    // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows it.
    #[expect(unsafe_code, reason = "taking ownership of a new descriptor")]
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target: cgroup.as_raw_fd().unsigned_abs(),
        program: program.as_raw_fd().unsigned_abs(),
        attach_type: CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    bpf(PROG_ATTACH, &attach).map(drop).map_err(|e| failed("attach the program that decides on devices", e))
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> nix::Result<i32> {
    // SAFETY: `attributes` is one of the two structs above, alive and of the size that is given; what it points to is
    // alive in the one caller. The kernel only reads it.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps bpf")]
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    Errno::result(result).map(|fd| i32::try_from(fd).unwrap_or(-1))
}
