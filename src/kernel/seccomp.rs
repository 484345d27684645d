//! seccomp(2): a filter of system calls, in the instructions of classic BPF.

use nix::errno::Errno;

use super::failed;
use crate::error::Result;

/// One instruction: `struct sock_filter`, Documentation/networking/filter.rst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions a jump skips where its test is true.
    pub on_true: u8,
    /// And where it is false.
    pub on_false: u8,
    /// Its constant.
    pub constant: u32,
}

/// What the kernel takes at most: include/uapi/linux/bpf_common.h, BPF_MAXINSNS.
pub(crate) const MAX_INSTRUCTIONS: usize = 4096;

// What filters answer: errno(3).
pub(crate) const EPERM: u16 = libc::EPERM as u16;
pub(crate) const EINVAL: u16 = libc::EINVAL as u16;
pub(crate) const ENOTTY: u16 = libc::ENOTTY as u16;
pub(crate) const ENOSYS: u16 = libc::ENOSYS as u16;
pub(crate) const EAFNOSUPPORT: u16 = libc::EAFNOSUPPORT as u16;

/// SECCOMP_SET_MODE_FILTER: from here on this process and its children make only the calls that the filter lets through.
///
/// Needs no_new_privs, or CAP_SYS_ADMIN in the process's user namespace.
pub(crate) fn set_filter(program: &[Instruction], flags: u32) -> Result<()> {
    let length = u16::try_from(program.len()).map_err(|_| failed("load the system call filter", Errno::EINVAL))?;
    let fprog = libc::sock_fprog { len: length, filter: program.as_ptr().cast::<libc::sock_filter>().cast_mut() };
    // SAFETY: the kernel reads `length` instructions, which are laid out as sock_filter and live, and writes none.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps seccomp")]
    let result = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    Errno::result(result).map(drop).map_err(|e| failed("load the system call filter", e))
}
