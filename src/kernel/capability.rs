//! Capabilities and the identity of a process: capabilities(7), credentials(7).
//!
//! Raw system calls throughout: they change the calling thread, which is the only one in the processes that use them,
//! where libc's wrappers may signal threads that a cloned process does not have (nptl(7), "NPTL and the POSIX
//! threads standard").

use nix::errno::Errno;

use super::failed;
use crate::error::Result;

/// A set of capabilities: bit N is capability N of include/uapi/linux/capability.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySet(pub u64);

const VERSION_3: u32 = 0x2008_0522;

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// prctl(2) PR_CAPBSET_DROP of every capability that the kernel knows and `keep` lacks.
pub(crate) fn limit_bounding_set(keep: CapabilitySet) -> Result<()> {
    for capability in 0..64u64 {
        if keep.0 & (1 << capability) != 0 {
            continue;
        }
        match prctl(libc::PR_CAPBSET_DROP, capability) {
            Ok(()) => {}
            // prctl(2): EINVAL names a capability that this kernel does not have; they are numbered without gaps.
            Err(Errno::EINVAL) => break,
            Err(e) => return Err(failed(format_args!("drop capability {capability} from the bounding set"), e)),
        }
    }
    Ok(())
}

/// prctl(2) PR_CAPBSET_READ: what this process's bounding set holds; with `known` every capability that the kernel knows,
/// which is what the root of a new user namespace has (kernel/user_namespace.c, set_cred_user_ns).
pub(crate) fn bounding_set(known: bool) -> CapabilitySet {
    let mut set = 0;
    for capability in 0..64u64 {
        // SAFETY: the option takes an integer; unused arguments must be zero (prctl(2)).
        #[expect(unsafe_code, reason = "nix does not cover the option")]
        match unsafe { libc::prctl(libc::PR_CAPBSET_READ, capability, 0u64, 0u64, 0u64) } {
            1 => set |= 1 << capability,
            0 if known => set |= 1 << capability,
            0 => {}
            _ => break, // prctl(2): EINVAL; capabilities are numbered without gaps
        }
    }
    CapabilitySet(set)
}

/// setgroups(2), setresgid(2), setresuid(2), in the order in which the privilege for each still lasts.
pub(crate) fn set_identity(uid: u32, gid: u32, groups: &[u32]) -> Result<()> {
    // SAFETY: the pointer and length are those of a live slice of gid_t; the other calls take integers.
    #[expect(unsafe_code, reason = "libc's wrappers signal every thread")]
    let (groups, gid_result, uid_result) = unsafe {
        let groups = Errno::result(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()));
        let gid = groups.and_then(|_| Errno::result(libc::syscall(libc::SYS_setresgid, gid, gid, gid)));
        let uid = gid.and_then(|_| Errno::result(libc::syscall(libc::SYS_setresuid, uid, uid, uid)));
        (groups, gid, uid)
    };
    groups.map_err(|e| failed("set the groups", e))?;
    gid_result.map_err(|e| failed(format_args!("set the group id {gid}"), e))?;
    uid_result.map_err(|e| failed(format_args!("set the user id {uid}"), e))?;
    Ok(())
}

/// capset(2) of the permitted and effective sets; inheritable and ambient become empty.
pub(crate) fn set_capabilities(capabilities: CapabilitySet) -> Result<()> {
    prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL.unsigned_abs().into())
        .map_err(|e| failed("clear the ambient capabilities", e))?;
    let header = Header { version: VERSION_3, pid: 0 };
    let half = |bits: u64| Data {
        effective: (bits & 0xffff_ffff) as u32,
        permitted: (bits & 0xffff_ffff) as u32,
        inheritable: 0,
    };
    let data = [half(capabilities.0), half(capabilities.0 >> 32)];
    // SAFETY: header and data are live and laid out as capset(2) wants them for version 3: two halves.
    #[expect(unsafe_code, reason = "libc and nix have no capset")]
    let result = unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) };
    Errno::result(result).map(drop).map_err(|e| failed("set the capabilities", e))
}

/// prctl(2) PR_SET_NO_NEW_PRIVS.
pub(crate) fn set_no_new_privileges() -> Result<()> {
    prctl(libc::PR_SET_NO_NEW_PRIVS, 1).map_err(|e| failed("set no_new_privs", e))
}

fn prctl(option: libc::c_int, argument: u64) -> nix::Result<()> {
    // SAFETY: the options used here take integers; unused arguments must be zero (prctl(2)).
    #[expect(unsafe_code, reason = "nix covers neither option")]
    let result = unsafe { libc::prctl(option, argument, 0u64, 0u64, 0u64) };
    Errno::result(result).map(drop)
}
