//! Which system calls change something outside the process that makes them, as far as programs like ours make them.
//!
//! A crash between two calls that change nothing is no other crash than the one before both, so only the others count.
//! What changes the process alone (memory, descriptors, its signal mask) is gone with it. Flocks and the signal at a
//! parent's death are counted, too: they are how a process that is killed is told from one that lives.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use nix::unistd::Pid;

/// What a call is about, by its arguments.
#[derive(Clone, Copy)]
enum About {
    /// The path that this argument points to.
    Path(usize),
    /// The open file that the first argument is.
    File,
    /// Nothing that a reader would miss.
    Nothing,
}

use About::{File as OpenFile, Nothing, Path};

macro_rules! calls {
    ($($about:expr => $($name:ident)*;)*) => { &[$($((libc::$name, stringify!($name), $about)),*),*] };
}

/// Those that change something whatever their arguments are.
const ALWAYS: &[(i64, &str, About)] = calls! {
    Path(0) => SYS_truncate SYS_setxattr SYS_lsetxattr SYS_removexattr SYS_lremovexattr SYS_execve SYS_umount2
        SYS_pivot_root SYS_chroot SYS_swapon SYS_swapoff;
    Path(1) => SYS_mkdirat SYS_mknodat SYS_unlinkat SYS_renameat2 SYS_fchmodat SYS_fchownat SYS_utimensat SYS_mount
        SYS_open_tree SYS_mount_setattr SYS_execveat;
    Path(2) => SYS_symlinkat;
    Path(3) => SYS_linkat SYS_move_mount;
    OpenFile => SYS_ftruncate SYS_fallocate SYS_fsetxattr SYS_fremovexattr SYS_fchmod SYS_fchown SYS_flock SYS_syncfs
        SYS_fsync SYS_fdatasync SYS_fsconfig SYS_fsmount SYS_setns;
    Path(0) => SYS_fsopen;
    Nothing => SYS_sync SYS_clone SYS_clone3 SYS_unshare SYS_kill SYS_tkill SYS_tgkill SYS_pidfd_send_signal SYS_sendto
        SYS_sendmsg SYS_sendmmsg SYS_bind SYS_connect SYS_copy_file_range SYS_splice SYS_sendfile SYS_keyctl
        SYS_sethostname SYS_quotactl SYS_bpf SYS_io_uring_enter;
};

/// Those that only some architectures have.
#[cfg(target_arch = "x86_64")]
const OLD: &[(i64, &str, About)] = calls! {
    Path(0) => SYS_mkdir SYS_rmdir SYS_mknod SYS_unlink SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_creat;
    Path(1) => SYS_rename SYS_link SYS_symlink SYS_futimesat;
    Path(3) => SYS_renameat;
    Nothing => SYS_fork SYS_vfork;
};
#[cfg(not(target_arch = "x86_64"))]
const OLD: &[(i64, &str, About)] = &[];

/// Those that change something if they write to a file: a control file of a cgroup, standard output, which says that
/// something is done. What goes through a pipe or to a terminal is another process's to act on.
const WRITES: &[(i64, &str, About)] = calls! {
    OpenFile => SYS_write SYS_writev SYS_pwrite64 SYS_pwritev SYS_pwritev2;
};

/// The name of this call and what it is about, if it changes something.
pub fn of(pid: Pid, number: i64, args: [u64; 6]) -> Option<(&'static str, String)> {
    let named = |(_, name, about): &(i64, &'static str, About)| {
        (name.strip_prefix("SYS_").unwrap_or(name), about_of(pid, *about, args))
    };
    let listed = |table: &'static [(i64, &'static str, About)]| table.iter().find(|(call, ..)| *call == number);
    if let Some(call) = listed(ALWAYS).or_else(|| listed(OLD)) {
        return Some(named(call));
    }
    if let Some(call) = listed(WRITES) {
        let file = std::fs::metadata(open_file(pid, args[0])).ok()?;
        return file.is_file().then(|| named(call));
    }
    match number {
        libc::SYS_openat => creates(args[2]).then(|| ("openat", text(pid, args[1]))),
        #[cfg(target_arch = "x86_64")]
        libc::SYS_open => creates(args[1]).then(|| ("open", text(pid, args[0]))),
        // openat2(2): the flags are the first field of `struct open_how`.
        libc::SYS_openat2 => creates(word(pid, args[2])?).then(|| ("openat2", text(pid, args[1]))),
        libc::SYS_ioctl => Some(("ioctl", ioctl(args[1])?)),
        libc::SYS_prctl => {
            (args[0] == libc::PR_SET_PDEATHSIG as u64).then(|| ("prctl", "PR_SET_PDEATHSIG".to_string()))
        }
        _ => None,
    }
}

/// open(2): a file may come to be, or lose what is in it.
fn creates(flags: u64) -> bool {
    flags & (libc::O_CREAT | libc::O_TRUNC | libc::O_TMPFILE & !libc::O_DIRECTORY) as u64 != 0
}

/// What an ioctl is called, if it changes a filesystem or a loop device.
fn ioctl(request: u64) -> Option<String> {
    // ioctl(2) numbers: bits 8 to 15 say whose it is, bits 0 to 7 which.
    let name = match (request >> 8 & 0xff, request & 0xff) {
        // include/uapi/linux/btrfs.h: TREE_SEARCH, INO_LOOKUP, SPACE_INFO, SUBVOL_GETFLAGS, DEV_INFO, FS_INFO,
        // GET_SUBVOL_INFO, GET_SUBVOL_ROOTREF and INO_LOOKUP_USER only look.
        (0x94, 17 | 18 | 20 | 25 | 30 | 31 | 60 | 61 | 62) => return None,
        (0x94, 8) => "BTRFS_IOC_SYNC",
        (0x94, 14) => "BTRFS_IOC_SUBVOL_CREATE",
        (0x94, 15) => "BTRFS_IOC_SNAP_DESTROY",
        (0x94, 23) => "BTRFS_IOC_SNAP_CREATE_V2",
        // Two of the same number: one hands a transaction out (_IOR), the other takes arguments (_IOW).
        (0x94, 24) if request >> 30 == 2 => "BTRFS_IOC_START_SYNC",
        (0x94, 22) => "BTRFS_IOC_WAIT_SYNC",
        (0x94, 24) => "BTRFS_IOC_SUBVOL_CREATE_V2",
        (0x94, 26) => "BTRFS_IOC_SUBVOL_SETFLAGS",
        (0x94, 63) => "BTRFS_IOC_SNAP_DESTROY_V2",
        (0x94, other) => return Some(format!("btrfs {other}")),
        // include/uapi/linux/loop.h: GET_STATUS and GET_STATUS64 only look.
        (0x4c, 0x03 | 0x05) => return None,
        (0x4c, 0x0a) => "LOOP_CONFIGURE",
        (0x4c, 0x82) => "LOOP_CTL_GET_FREE",
        (0x4c, other) => return Some(format!("loop {other:#x}")),
        // include/uapi/linux/fs.h: FS_IOC_SETFLAGS; FIFREEZE, FITHAW, FITRIM, FS_IOC_FSSETXATTR.
        (0x66, 2) | (0x58, 119..=121 | 32) => "FS_IOC",
        _ => return None,
    };
    Some(name.to_string())
}

fn about_of(pid: Pid, about: About, args: [u64; 6]) -> String {
    match about {
        Path(argument) => text(pid, args[argument]),
        OpenFile => std::fs::read_link(open_file(pid, args[0])).unwrap_or_default().display().to_string(),
        Nothing => String::new(),
    }
}

fn open_file(pid: Pid, fd: u64) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/fd/{fd}"))
}

/// The string at this address in its memory.
fn text(pid: Pid, address: u64) -> String {
    let mut bytes = [0; 4096];
    let n = memory(pid, address, &mut bytes);
    String::from_utf8_lossy(bytes[..n].split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

/// The 64-bit number at this address in its memory.
fn word(pid: Pid, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (memory(pid, address, &mut bytes) == 8).then(|| u64::from_ne_bytes(bytes))
}

/// As much as there is.
fn memory(pid: Pid, address: u64, bytes: &mut [u8]) -> usize {
    File::open(format!("/proc/{pid}/mem")).and_then(|file| file.read_at(bytes, address)).unwrap_or(0)
}
