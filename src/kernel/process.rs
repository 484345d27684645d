//! Processes: clone3, sessions, signals, exec, and waiting by pidfd.

use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;

use super::{failed, signal};
use crate::error::{Error, Kind, Result};

/// include/uapi/linux/sched.h; libc's constant does not fit its type.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Who returned from [`clone3`].
#[derive(Debug)]
pub(crate) enum Cloned {
    /// The new process.
    Child,
    /// The old one, with the new one's process id and pidfd.
    Parent { pid: i32, pidfd: OwnedFd },
}

/// clone3(2) without a new stack, as fork(2), in new namespaces and, with `cgroup`, in that v2 cgroup.
///
/// The caller must be single-threaded: [`require_single_thread`].
pub(crate) fn clone3(namespaces: CloneFlags, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all-zero is a valid clone_args (clone3(2)).
    #[expect(unsafe_code, reason = "a C struct whose unset fields must be zero")]
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = u64::from(namespaces.bits().unsigned_abs()) | u64::from(libc::CLONE_PIDFD.unsigned_abs());
    if !namespaces.contains(CloneFlags::CLONE_PARENT) {
        args.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    }
    args.pidfd = (&raw mut pidfd).addr() as u64;
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
    }
    // SAFETY: without CLONE_VM the child runs on a copy of this memory; `pidfd` and `args` outlive the call. The
    // caller is single-threaded, so no lock is held by a thread that the child lacks.
    #[expect(unsafe_code, reason = "neither libc nor nix wraps clone3")]
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<libc::clone_args>()) };
    match Errno::result(result).map_err(|e| failed("clone3", e))? {
        0 => Ok(Cloned::Child),
        // SAFETY: CLONE_PIDFD stored a new descriptor that nobody else owns.
        #[expect(unsafe_code, reason = "the kernel returns a raw descriptor")]
        pid => Ok(Cloned::Parent { pid: pid as i32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// fork(2), for a process that is single-threaded: `true` in the child.
pub(crate) fn fork() -> Result<Option<i32>> {
    // SAFETY: the caller (init) is the only thread of its process.
    #[expect(unsafe_code, reason = "fork in a process with other threads would be unsound")]
    match unsafe { nix::unistd::fork() }.map_err(|e| failed("fork", e))? {
        nix::unistd::ForkResult::Child => Ok(None),
        nix::unistd::ForkResult::Parent { child } => Ok(Some(child.as_raw())),
    }
}

/// An error unless this process has one thread: /proc/self/task has a link for each and two of its own (proc(5)).
///
/// One that was joined may still be there for a moment: pthread_join(3) returns when the kernel clears the thread's id
/// (mm_release() in kernel/fork.c), which is before it takes the thread off the list (release_task() in kernel/exit.c).
pub(crate) fn require_single_thread() -> Result<()> {
    let end = Instant::now() + Duration::from_secs(1);
    loop {
        let task = nix::sys::stat::stat("/proc/self/task").map_err(|e| failed("stat /proc/self/task", e))?;
        match task.st_nlink {
            3 => return Ok(()),
            _ if Instant::now() < end => std::thread::sleep(Duration::from_micros(100)),
            links => {
                let threads = links.saturating_sub(2);
                let message = format!("start a container from a process with {threads} threads");
                return Err(Error::new(Kind::Unsupported, message));
            }
        }
    }
}

/// unshare(2).
pub(crate) fn unshare(namespaces: CloneFlags) -> Result<()> {
    nix::sched::unshare(namespaces).map_err(|e| failed("unshare", e))
}

/// prctl(2) PR_SET_PDEATHSIG: this process gets SIGKILL when its parent ends.
pub(crate) fn die_with_parent() -> Result<()> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(|e| failed("set the parent-death signal", e))
}

/// setsid(2).
pub(crate) fn new_session() -> Result<()> {
    nix::unistd::setsid().map(drop).map_err(|e| failed("setsid", e))
}

/// sethostname(2).
pub(crate) fn set_hostname(name: &str) -> Result<()> {
    nix::unistd::sethostname(name).map_err(|e| failed(format_args!("set the hostname {name}"), e))
}

/// setrlimit(2): no core files.
pub(crate) fn forbid_core_files() -> Result<()> {
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0)
        .map_err(|e| failed("set the core file limit", e))
}

/// umask(2): what it was before.
pub(crate) fn set_umask(mask: u32) -> u32 {
    nix::sys::stat::umask(Mode::from_bits_truncate(mask)).bits()
}

/// keyctl_join_session_keyring(3): an anonymous session keyring. A kernel without keyrings has none to leak.
pub(crate) fn join_new_keyring() -> Result<()> {
    // SAFETY: KEYCTL_JOIN_SESSION_KEYRING with a null name takes no memory of ours.
    #[expect(unsafe_code, reason = "libc and nix have no keyctl")]
    let result = unsafe { libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, 0usize) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        Err(e) => Err(failed("join a session keyring", e)),
    }
}

/// Puts this process under an AppArmor profile; `proc` is a proc filesystem of ours.
///
/// aa_change_profile(2), and not aa_change_onexec(2): an exec that changes the profile clears the wish to end with the parent
/// (security/apparmor/lsm.c, apparmor_bprm_committing_creds). The file has a folder of AppArmor's own since Linux 5.8.
pub(crate) fn confine(proc: BorrowedFd<'_>, profile: &str) -> Result<()> {
    let how = OpenHow::new()
        .flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let opened = match nix::fcntl::openat2(proc, "self/attr/apparmor/current", how) {
        Err(Errno::ENOENT) => nix::fcntl::openat2(proc, "self/attr/current", how),
        other => other,
    };
    let file = opened.map_err(|e| failed("open /proc/self/attr/current", e))?;
    let wanted = format!("changeprofile {profile}");
    nix::unistd::write(&file, wanted.as_bytes()).map(drop).map_err(|e| failed(format_args!("write {wanted:?}"), e))
}

/// prctl(2) PR_SET_DUMPABLE 0: /proc/PID/exe, mem and fd of this process open for nobody without CAP_SYS_PTRACE.
pub(crate) fn set_undumpable() -> Result<()> {
    nix::sys::prctl::set_dumpable(false).map_err(|e| failed("make the process undumpable", e))
}

/// prctl(2) PR_SET_NAME: what ps(1) shows as the command's name.
pub(crate) fn set_name(name: &CStr) {
    // A name is a courtesy; the call fails for no name.
    let _ = nix::sys::prctl::set_name(name);
}

/// close_range(2): every descriptor but 0, 1, 2 and `kept` is closed now, whoever owns it in this process. Only a
/// process that never returns to its owners may do that.
pub(crate) fn close_descriptors_but(kept: &[BorrowedFd<'_>]) -> Result<()> {
    let mut kept: Vec<libc::c_uint> = kept.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    kept.sort_unstable();
    let mut first = 3;
    for kept in kept.into_iter().filter(|kept| *kept >= 3) {
        if kept > first {
            close_range(first, kept - 1)?;
        }
        first = kept + 1;
    }
    close_range(first, libc::c_uint::MAX)
}

fn close_range(first: libc::c_uint, last: libc::c_uint) -> Result<()> {
    // SAFETY: integers only. Descriptors closed here are not used again: see the caller.
    #[expect(unsafe_code, reason = "nix has no close_range")]
    let result = unsafe { libc::close_range(first, last, 0) };
    Errno::result(result).map(drop).map_err(|e| failed("close descriptors", e))
}

/// dup2(2) onto standard input (0), output (1) or error (2), or onto a number that nobody owns.
pub(crate) fn replace_stdio(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    // SAFETY: integers only; 0, 1 and 2 are owned by nobody in Rust.
    #[expect(unsafe_code, reason = "nix's dup2 wants to own the target")]
    let result = unsafe { libc::dup2(fd.as_raw_fd(), number) };
    Errno::result(result).map(drop).map_err(|e| failed(format_args!("replace descriptor {number}"), e))
}

/// fchown(2) of a stream that is a pipe, so that its new owner can open it by name, too (/dev/stdout); a file or a
/// terminal stays whose it is.
pub(crate) fn own_pipe(stream: BorrowedFd<'_>, uid: u32) -> Result<()> {
    let found = nix::sys::stat::fstat(stream).map_err(|e| failed("stat a standard stream", e))?;
    if found.st_mode & libc::S_IFMT == libc::S_IFIFO && found.st_uid != uid {
        nix::unistd::fchown(stream, Some(nix::unistd::Uid::from_raw(uid)), None)
            .map_err(|e| failed("change the owner of a standard stream", e))?;
    }
    Ok(())
}

/// pipe2(2), close-on-exec: the end to read from, and the one to write to.
pub(crate) fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| failed("make a pipe", e))
}

/// Overwrites this process's command line with zeros: /proc/PID/cmdline shows the memory that it lay in at exec
/// (proc_pid_cmdline(5)), to everybody. Only for a process that will not look at its arguments again.
pub(crate) fn clear_command_line() {
    let Ok(stat) = std::fs::read_to_string("/proc/self/stat") else { return };
    // proc_pid_stat(5): fields 48 and 49, arg_start and arg_end; the third comes first after the name.
    let fields: Vec<&str> = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3).and_then(|text| text.parse::<usize>().ok()).unwrap_or(0);
    let (start, end) = (number(48), number(49));
    if start != 0 && end > start {
        // SAFETY: the kernel says that the arguments lie there, on this process's own writable stack; nothing else of
        // the program does, and nobody reads them any more.
        #[expect(unsafe_code, reason = "the memory of the arguments belongs to no Rust value")]
        unsafe {
            std::ptr::write_bytes(std::ptr::with_exposed_provenance_mut::<u8>(start), 0, end - start);
        }
    }
}

/// sysconf(3) _SC_CLK_TCK: the unit of times in proc_pid_stat(5).
pub(crate) fn ticks_per_second() -> f64 {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten();
    ticks.map_or(100.0, |ticks| ticks as f64)
}

/// sysconf(3) _SC_PAGESIZE.
pub(crate) fn page_size() -> u64 {
    let size = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    size.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096)
}

/// execve(2). Returns only when it failed, with the errno that a PATH search decides by.
pub(crate) fn exec(program: &CStr, args: &[CString], env: &[CString]) -> Errno {
    match nix::unistd::execve(program, args, env) {
        Ok(infallible) => match infallible {},
        Err(errno) => errno,
    }
}

/// This program, on a mount of its own that is read-only: who finds it by /proc/PID/exe cannot write to it, not even when
/// it is not executed any more (CVE-2019-5736).
fn sealed_executable() -> Result<OwnedFd> {
    if is_sealed()? {
        // Of a mount that is nowhere attached there are no clones.
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        return nix::fcntl::open("/proc/self/exe", flags, Mode::empty()).map_err(|e| failed("open /proc/self/exe", e));
    }
    let here = super::fs::CWD;
    let tree = super::mount::clone_tree(here, "/proc/self/exe", false)?;
    let read_only = super::mount::Attributes { read_only: true, nosuid: false, nodev: false, noexec: false };
    super::mount::set_attributes(tree.as_fd(), read_only, false)?;
    Ok(tree)
}

/// This program runs from a mount that is read-only.
fn is_sealed() -> Result<bool> {
    let found = nix::sys::statvfs::statvfs("/proc/self/exe").map_err(|e| failed("statvfs /proc/self/exe", e))?;
    Ok(found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY))
}

/// Runs this program from its beginning with its own arguments, from a read-only mount, unless it is on one.
pub(crate) fn run_sealed() -> Result<()> {
    if is_sealed()? {
        return Ok(());
    }
    let words =
        |words: Vec<std::ffi::OsString>| words.iter().map(|w| super::fs::c_string(w)).collect::<Result<Vec<_>>>();
    let args = words(std::env::args_os().collect())?;
    let variable = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        let mut variable = name;
        variable.push("=");
        variable.push(value);
        variable
    };
    let env = words(std::env::vars_os().map(variable).collect())?;
    Err(exec_sealed(&args, &env))
}

/// Returns only when it failed.
fn exec_sealed(args: &[CString], env: &[CString]) -> Error {
    let run = || -> Result<Infallible> {
        let program = sealed_executable()?;
        nix::unistd::execveat(&program, c"", args, env, nix::fcntl::AtFlags::AT_EMPTY_PATH)
            .map_err(|e| failed("run /proc/self/exe", e))
    };
    match run() {
        Ok(infallible) => match infallible {},
        Err(e) => e,
    }
}

/// Runs this program again with other `args`, as a process that needs nobody, or only that this one lives: in a session
/// of its own, at the root directory, without input, environment or output other than standard error. It takes what it was [given] first of all.
/// Returns the number of the process, which is this one's to [wait] for.
///
/// In the new process, `fail` is told why it does not run the program, and the first of what it was given.
pub(crate) fn respawn(
    args: &[CString],
    given: &[BorrowedFd<'_>],
    ends_with_us: bool,
    fail: impl FnOnce(BorrowedFd<'_>, Error),
) -> Result<i32> {
    require_single_thread()?;
    match fork()? {
        None => run_again(args, given, ends_with_us, fail),
        Some(pid) => Ok(pid),
    }
}

/// [`respawn`] as nobody's child: whoever goes on running need not [wait] for it.
pub(crate) fn respawn_orphan(args: &[CString], given: &[BorrowedFd<'_>]) -> Result<i32> {
    orphan(|| run_again(args, given, false, |_, _| {}))
}

/// Has this process keep nothing of who made it but some descriptors.
pub(crate) fn leave_all(kept: &[BorrowedFd<'_>]) -> Result<()> {
    close_descriptors_but(kept)?;
    signal::default_signals()?;
    keep_nothing_of_caller()
}

/// A session of its own, at the root directory, with nothing to read and nobody who reads what it says.
fn keep_nothing_of_caller() -> Result<()> {
    new_session()?;
    nix::unistd::chdir("/").map_err(|e| failed("change to the root directory", e))?;
    let null = null()?;
    (0..=2).try_for_each(|number| replace_stdio(null.as_fd(), number))
}

fn null() -> Result<OwnedFd> {
    nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed("open /dev/null", e))
}

/// Ends this process with `status` at once, and does something in another that has its memory and its descriptors, on a stack of
/// its own: whoever waits for this one does not wait for that. Returns only if it cannot, having done nothing.
///
/// It costs less than an [`orphan`]: no page table is copied, and taking the memory down is left to the other one as well.
pub(crate) fn end_before<F: FnOnce()>(status: u8, act: F) -> Error {
    let possible = require_single_thread().and_then(|()| match std::process::id() {
        // Its namespace would end with it, and everybody in there: pid_namespaces(7).
        1 => Err(Error::new(Kind::Unsupported, "the first process of a pid namespace has no heir")),
        _ => signal::block_all(),
    });
    if let Err(e) = possible {
        return e;
    }
    // Not filled before it is touched: calloc(3) maps it.
    let mut stack = vec![0_u128; HEIR_STACK / size_of::<u128>()];
    let mut act = Some(act);
    let flags = libc::CLONE_VM | libc::SIGCHLD;
    // SAFETY: the two processes share memory, thread-local variables too, and only one of them uses it: from here on this one,
    // which has no other thread, does nothing but _exit(2), which touches none. Its frames up to this one, with `act`, and the
    // stack stay as they are for as long as the memory is there, since it never returns. A stack grows down, from an
    // address that is a multiple of 16.
    #[expect(unsafe_code, reason = "a process that shares memory")]
    let cloned = unsafe {
        let top = stack.as_mut_ptr().add(stack.len());
        libc::clone(heir::<F>, top.cast(), flags, (&raw mut act).cast())
    };
    match Errno::result(cloned) {
        Ok(_) => exit_now(status),
        Err(e) => failed("clone", e),
    }
}

/// What the heir of a process does: `act` is the `Option<F>` of [`end_before`].
extern "C" fn heir<F: FnOnce()>(act: *mut libc::c_void) -> libc::c_int {
    set_name(c"tupper-end");
    // SAFETY: it points to that, and nobody else uses it any more.
    #[expect(unsafe_code, reason = "the argument of clone(2)")]
    let act = unsafe { (*act.cast::<Option<F>>()).take() };
    // Whoever reads to the end of a pipe of this process does wait for it to be closed.
    if keep_nothing_of_caller().is_ok()
        && let Some(act) = act
    {
        act();
    }
    exit_now(0)
}

/// How much stack the heir of a process has.
const HEIR_STACK: usize = 1 << 20;

/// Does something in a process that is nobody's child, and returns the number of that.
pub(crate) fn orphan(act: impl FnOnce()) -> Result<i32> {
    require_single_thread()?;
    let (read, write) = pipe()?;
    if let Some(pid) = fork()? {
        drop(write);
        let number = read_number(read);
        reap_helper(pid);
        return number?.ok_or_else(|| failed("fork", Errno::EAGAIN));
    }
    if let Ok(Some(pid)) = fork() {
        let _ = nix::unistd::write(&write, &pid.to_ne_bytes());
        exit_now(0);
    }
    drop((read, write));
    act();
    exit_now(0)
}

/// What a new process does to [become](respawn) this program.
fn run_again(
    args: &[CString],
    given: &[BorrowedFd<'_>],
    ends_with_us: bool,
    fail: impl FnOnce(BorrowedFd<'_>, Error),
) -> ! {
    // Copies above the numbers that they will have, so that none is in the way of another.
    let end = 3 + i32::try_from(given.len()).unwrap_or(0);
    let copy = |fd: BorrowedFd<'_>| nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(end));
    let run = || -> Result<Infallible> {
        signal::default_signals()?;
        new_session()?;
        if ends_with_us {
            die_with_parent()?;
        }
        nix::unistd::chdir("/").map_err(|e| failed("change to the root directory", e))?;
        let null = null()?;
        replace_stdio(null.as_fd(), 0)?;
        replace_stdio(null.as_fd(), 1)?;
        let copies = given.iter().map(|fd| copy(*fd).map_err(|e| failed("copy a descriptor", e)));
        for (copy, number) in copies.collect::<Result<Vec<RawFd>>>()?.into_iter().zip(3..) {
            // SAFETY: it was just made, and this process never returns to whoever owns the number.
            #[expect(unsafe_code, reason = "fcntl returns a raw descriptor")]
            replace_stdio(unsafe { BorrowedFd::borrow_raw(copy) }, number)?;
        }
        Err(exec_sealed(args, &[]))
    };
    let first = given.first().and_then(|fd| copy(*fd).ok());
    let error = match run() {
        Ok(infallible) => match infallible {},
        Err(e) => e,
    };
    if let Some(first) = first {
        // SAFETY: as above.
        #[expect(unsafe_code, reason = "fcntl returns a raw descriptor")]
        fail(unsafe { BorrowedFd::borrow_raw(first) }, error);
    }
    exit_now(125)
}

/// What [`respawn`] gave this process; everything else that it may have inherited is closed. Only for a process that
/// has opened nothing yet.
pub(crate) fn given<const N: usize>() -> Result<[OwnedFd; N]> {
    given_all(N)?.try_into().map_err(|_| failed("take what was given", Errno::EBADF))
}

/// [`given`], for as many as there are.
pub(crate) fn given_all(count: usize) -> Result<Vec<OwnedFd>> {
    close_range(3 + u32::try_from(count).unwrap_or(0), libc::c_uint::MAX)?;
    let mut number = 3;
    let take = || {
        // SAFETY: an integer only: a number that is no descriptor is refused.
        #[expect(unsafe_code, reason = "looking at a descriptor by its number")]
        let found = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
        Errno::result(found).map_err(|e| failed(format_args!("descriptor {number}"), e))?;
        // SAFETY: it is open, and was left to this process by the one that ran it.
        #[expect(unsafe_code, reason = "a descriptor that came with exec has only a number")]
        let fd = unsafe { OwnedFd::from_raw_fd(number) };
        number += 1;
        Ok(fd)
    };
    std::iter::repeat_with(take).take(count).collect()
}

/// Standard error goes nowhere from here on.
pub(crate) fn silence() -> Result<()> {
    replace_stdio(null()?.as_fd(), 2)
}

/// The inode of a process's namespace, which is its identity: namespaces(7).
pub(crate) fn namespace(pid: i32, name: &str) -> Result<u64> {
    namespace_at(&format!("/proc/{pid}/ns/{name}"))
}

/// [`namespace`] of this process.
pub(crate) fn namespace_of_this(name: &str) -> Result<u64> {
    namespace_at(&format!("/proc/self/ns/{name}"))
}

fn namespace_at(path: &str) -> Result<u64> {
    let found = nix::sys::stat::stat(path).map_err(|e| failed(format_args!("look at {path}"), e))?;
    Ok(found.st_ino)
}

/// setns(2) of namespaces of the process behind `pidfd`, by their names in /proc/PID/ns, all of them or none; or of the one that it
/// is a descriptor of.
pub(crate) fn join(pidfd: BorrowedFd<'_>, names: &[&str]) -> Result<()> {
    let flag = |name: &&str| match *name {
        "user" => CloneFlags::CLONE_NEWUSER,
        "mnt" => CloneFlags::CLONE_NEWNS,
        "uts" => CloneFlags::CLONE_NEWUTS,
        "ipc" => CloneFlags::CLONE_NEWIPC,
        "net" => CloneFlags::CLONE_NEWNET,
        "cgroup" => CloneFlags::CLONE_NEWCGROUP,
        "pid" => CloneFlags::CLONE_NEWPID,
        _ => CloneFlags::empty(),
    };
    let flags: CloneFlags = names.iter().map(flag).collect();
    if flags.is_empty() {
        return Ok(());
    }
    nix::sched::setns(pidfd, flags).map_err(|e| failed(format_args!("setns {}", names.join(", ")), e))
}

/// [`clone3`] of a process that is in some of the namespaces of the process behind `pidfd`, by their names in /proc/PID/ns, and whose
/// new ones belong to its user namespace, if that is among them.
///
/// This process could not come back from a user namespace, so another enters it and makes the new one, which is this one's child all
/// the same: clone(2), CLONE_PARENT.
pub(crate) fn clone_beside(
    pidfd: BorrowedFd<'_>,
    names: &[&str],
    namespaces: CloneFlags,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<Cloned> {
    let (read, write) = pipe()?;
    let Some(helper) = fork()? else {
        drop(read);
        let number = match join(pidfd, names).and_then(|()| clone3(namespaces | CloneFlags::CLONE_PARENT, cgroup)) {
            Ok(Cloned::Child) => return Ok(Cloned::Child),
            Ok(Cloned::Parent { pid, .. }) => pid,
            Err(_) => -(Errno::last() as i32),
        };
        let _ = nix::unistd::write(&write, &number.to_ne_bytes());
        exit_now(0);
    };
    drop(write);
    let number = read_number(read);
    reap_helper(helper);
    match number? {
        Some(pid @ 1..) => {
            let gone = || failed("clone3", Errno::ESRCH);
            Ok(Cloned::Parent { pid, pidfd: open(pid)?.ok_or_else(gone)? })
        }
        Some(errno) => {
            Err(failed(format_args!("clone3 in the namespaces {}", names.join(", ")), Errno::from_raw(-errno)))
        }
        None => Err(failed("fork", Errno::EAGAIN)),
    }
}

/// The number that a helper writes; nothing from one that could not be made to.
fn read_number(pipe: OwnedFd) -> Result<Option<i32>> {
    let mut number = [0; 4];
    match std::fs::File::from(pipe).read_exact(&mut number) {
        Ok(()) => Ok(Some(i32::from_ne_bytes(number))),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(Error::from_io("read the number of a new process", e)),
    }
}

/// Waits for a child that has nothing to say any more.
fn reap_helper(pid: i32) {
    // SAFETY: an integer and no status.
    #[expect(unsafe_code, reason = "nix's waitpid wants a status")]
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } < 0 && Errno::last() == Errno::EINTR {}
}

/// Opens a namespace of a process that cannot go meanwhile: namespaces(7).
pub(crate) fn open_namespace(pid: i32, name: &str) -> Result<OwnedFd> {
    let path = format!("/proc/{pid}/ns/{name}");
    nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(format_args!("open {path}"), e))
}

/// Does something in a network namespace, and comes back.
pub(crate) fn inside_network<T>(namespace: BorrowedFd<'_>, act: impl FnOnce() -> Result<T>) -> Result<T> {
    let ours = "/proc/thread-self/ns/net";
    let ours = nix::fcntl::open(ours, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(format_args!("open {ours}"), e))?;
    join(namespace, &["net"])?;
    let done = act();
    // It cannot fail: this process was there before.
    nix::sched::setns(ours, CloneFlags::CLONE_NEWNET).map_err(|e| failed("setns to the own network namespace", e))?;
    done
}

/// [`clone3`] of a process in the pid namespace of the process behind `pidfd`, and in no other new one. Children that come
/// later are in this process's again.
pub(crate) fn clone_inside(pidfd: BorrowedFd<'_>, cgroup: Option<BorrowedFd<'_>>) -> Result<Cloned> {
    let ours = "/proc/self/ns/pid";
    let ours = nix::fcntl::open(ours, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|e| failed(format_args!("open {ours}"), e))?;
    join(pidfd, &["pid"])?;
    match clone3(CloneFlags::empty(), cgroup) {
        // It could not go back, and has no need to.
        Ok(Cloned::Child) => Ok(Cloned::Child),
        cloned => {
            nix::sched::setns(ours, CloneFlags::CLONE_NEWPID)
                .map_err(|e| failed("setns to the own pid namespace", e))?;
            cloned
        }
    }
}

/// pidfd_open(2); `None` when there is no such process. Whoever learned the number elsewhere has to look again whether
/// it is the process they mean: from here on it cannot become another.
pub(crate) fn open(pid: i32) -> Result<Option<OwnedFd>> {
    // SAFETY: integers only.
    #[expect(unsafe_code, reason = "nix has no pidfd_open")]
    let result = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    match Errno::result(result) {
        Ok(fd) => {
            let fd = i32::try_from(fd).map_err(|_| failed("open a process", Errno::EBADF))?;
            // SAFETY: the kernel has just made this descriptor, close-on-exec, and nobody else knows it.
            #[expect(unsafe_code, reason = "taking ownership of a new descriptor")]
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            Ok(Some(fd))
        }
        Err(Errno::ESRCH) => Ok(None),
        Err(e) => Err(failed(format_args!("open process {pid}"), e)),
    }
}

/// _exit(2): no destructor, no atexit handler.
pub(crate) fn exit_now(status: u8) -> ! {
    // SAFETY: _exit does not return and touches no memory.
    #[expect(unsafe_code, reason = "std::process::exit would run the parent's exit handlers in the child")]
    unsafe {
        libc::_exit(i32::from(status))
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It exited with this status.
    Exited(u8),
    /// This signal ended it.
    Signaled(i32),
}

/// waitid(2) on a pidfd: waits for the process to end and reaps it.
pub(crate) fn wait(pidfd: BorrowedFd<'_>) -> Result<Ended> {
    loop {
        // SAFETY: all-zero is a valid siginfo_t, which the call fills in and which outlives it.
        #[expect(unsafe_code, reason = "nix's WaitStatus loses real-time signals")]
        let (result, info) = unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            let id = pidfd.as_raw_fd().unsigned_abs();
            (libc::waitid(libc::P_PIDFD, id, &raw mut info, libc::WEXITED), info)
        };
        match Errno::result(result) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(failed("wait for the container", e)),
            Ok(_) => return Ok(ended(&info)),
        }
    }
}

/// poll(2) on a pidfd: waits for a killed process that is not our child to be gone, for ten seconds at most: one that
/// waits for a dead network filesystem does not end before that comes back.
pub(crate) fn wait_gone(pidfd: BorrowedFd<'_>) -> Result<()> {
    let [ready] = poll([Some((pidfd, Polled::READ))], Some(10_000))?;
    match ready.any() {
        true => Ok(()),
        false => Err(failed("wait for a killed process to end", Errno::EBUSY)),
    }
}

fn ended(info: &libc::siginfo_t) -> Ended {
    // SAFETY: waitid(2) filled in a SIGCHLD siginfo, whose status field is valid.
    #[expect(unsafe_code, reason = "siginfo_t is a union")]
    let status = unsafe { info.si_status() };
    match info.si_code {
        // wait(2): only the low eight bits of an exit status are kept.
        libc::CLD_EXITED => Ended::Exited((status & 0xff) as u8),
        _ => Ended::Signaled(status),
    }
}

/// waitpid(2) for any child, without blocking: `None` when none has ended.
pub(crate) fn reap() -> Option<(i32, Ended)> {
    loop {
        let mut status = 0;
        // SAFETY: the pointer is that of a live integer.
        #[expect(unsafe_code, reason = "nix's WaitStatus loses real-time signals")]
        let result = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        match Errno::result(result) {
            Err(Errno::EINTR) => continue,
            Err(_) | Ok(0) => return None,
            Ok(pid) if libc::WIFSIGNALED(status) => return Some((pid, Ended::Signaled(libc::WTERMSIG(status)))),
            Ok(pid) => return Some((pid, Ended::Exited((libc::WEXITSTATUS(status) & 0xff) as u8))),
        }
    }
}

/// Whether the other end of a connected `socket` is closed: poll(2), POLLHUP.
pub(crate) fn peer_is_gone(socket: BorrowedFd<'_>) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::empty())];
    let polled = nix::poll::poll(&mut fds, PollTimeout::ZERO);
    polled.is_ok_and(|n| n > 0) && fds[0].revents().is_some_and(|r| r.contains(PollFlags::POLLHUP))
}

/// What a descriptor is waited for, or ready for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Polled(PollFlags);

impl Polled {
    pub(crate) const NOTHING: Polled = Polled(PollFlags::empty());
    pub(crate) const READ: Polled = Polled(PollFlags::POLLIN);
    pub(crate) const PRIORITY: Polled = Polled(PollFlags::POLLPRI);
    pub(crate) const WRITE: Polled = Polled(PollFlags::POLLOUT);

    /// It is ready for something, if only to say that the other side is gone.
    pub(crate) fn any(self) -> bool {
        !self.0.is_empty()
    }
}

impl std::ops::BitOr for Polled {
    type Output = Polled;

    fn bitor(self, other: Polled) -> Polled {
        Polled(self.0 | other.0)
    }
}

/// A descriptor that is waited for, if it is, and for what.
pub(crate) type Want<'a> = Option<(BorrowedFd<'a>, Polled)>;

/// poll(2), again after a signal: what each descriptor is ready for. `pause` is the longest wait in milliseconds.
pub(crate) fn poll<const N: usize>(wanted: [Want<'_>; N], pause: Option<u16>) -> Result<[Polled; N]> {
    let mut ready = [Polled::NOTHING; N];
    ready.iter_mut().zip(poll_all(&wanted, pause)?).for_each(|(slot, polled)| *slot = polled);
    Ok(ready)
}

/// [`poll`] for a number of descriptors that changes.
pub(crate) fn poll_all(wanted: &[Want<'_>], pause: Option<u16>) -> Result<Vec<Polled>> {
    let mut fds: Vec<PollFd<'_>> = wanted.iter().flatten().map(|(fd, events)| PollFd::new(*fd, events.0)).collect();
    let timeout = pause.map_or(PollTimeout::NONE, PollTimeout::from);
    loop {
        match nix::poll::poll(&mut fds, timeout) {
            Err(Errno::EINTR) => continue,
            Err(e) => return Err(failed("poll", e)),
            Ok(_) => break,
        }
    }
    let mut answers = fds.iter().map(|fd| Polled(fd.revents().unwrap_or(PollFlags::empty())));
    Ok(wanted.iter().map(|slot| slot.and_then(|_| answers.next()).unwrap_or(Polled::NOTHING)).collect())
}

/// unshare(2) CLONE_NEWCGROUP: the new namespace is rooted at the cgroup this process is in now (cgroup_namespaces(7)).
pub(crate) fn unshare_cgroup() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWCGROUP)
}

/// A network namespace with a loopback interface that is down: network_namespaces(7).
pub(crate) fn unshare_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET)
}

/// The namespaces of a sandbox that it gets at once; the cgroup namespace comes when it is in its cgroup.
pub(crate) fn sandbox_namespaces(users: bool, network: bool) -> CloneFlags {
    let base = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    let with = |wanted: bool, flag| if wanted { flag } else { CloneFlags::empty() };
    base | with(users, CloneFlags::CLONE_NEWUSER) | with(network, CloneFlags::CLONE_NEWNET)
}

/// Writes uid_map and gid_map of a child in a new user namespace, and opens the namespace: user_namespaces(7).
pub(crate) fn write_id_maps(pid: i32, uids: &str, gids: &str) -> Result<OwnedFd> {
    for (name, text) in [("uid_map", uids), ("gid_map", gids)] {
        let fail = |e| failed(format_args!("write {text:?} to /proc/{pid}/{name}"), e);
        let flags = OFlag::O_WRONLY | OFlag::O_CLOEXEC;
        let file = nix::fcntl::open(format!("/proc/{pid}/{name}").as_str(), flags, Mode::empty()).map_err(fail)?;
        nix::unistd::write(&file, text.as_bytes()).map_err(fail)?;
    }
    open_namespace(pid, "user")
}

/// An execve failed because there is no such program, as exec(3) sees it.
pub(crate) fn is_missing(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::ENOTDIR)
}

/// An execve failed for lack of permission.
pub(crate) fn is_denied(errno: Errno) -> bool {
    errno == Errno::EACCES
}

/// The error of an execve of `name`.
pub(crate) fn exec_error(name: &str, errno: Errno) -> Error {
    failed(format_args!("run {name:?}"), errno)
}

/// prlimit(2) of another process; `None` is RLIM_INFINITY.
pub(crate) fn set_resource_limit(pid: i32, number: u32, soft: Option<u64>, hard: Option<u64>) -> Result<()> {
    let value = |limit: Option<u64>| limit.unwrap_or(libc::RLIM_INFINITY);
    let limit = libc::rlimit64 { rlim_cur: value(soft), rlim_max: value(hard) };
    // SAFETY: the kernel reads the limit, which lives, and writes no old one.
    #[expect(unsafe_code, reason = "nix has setrlimit only, for the caller")]
    let result = unsafe { libc::prlimit64(pid, number, &raw const limit, std::ptr::null_mut()) };
    Errno::result(result).map(drop).map_err(|e| {
        let error = failed(format_args!("set a resource limit of process {pid}"), e);
        match e {
            Errno::EPERM => error.with_hint("to raise one above tupper's own (ulimit -H) takes CAP_SYS_RESOURCE"),
            _ => error,
        }
    })
}

/// `RLIMIT_…` by the name that ulimit and prlimit(1) have for it.
pub(crate) fn resource_number(name: &str) -> Option<u32> {
    Some(match name {
        "as" => libc::RLIMIT_AS,
        "core" => libc::RLIMIT_CORE,
        "cpu" => libc::RLIMIT_CPU,
        "data" => libc::RLIMIT_DATA,
        "fsize" => libc::RLIMIT_FSIZE,
        "locks" => libc::RLIMIT_LOCKS,
        "memlock" => libc::RLIMIT_MEMLOCK,
        "msgqueue" => libc::RLIMIT_MSGQUEUE,
        "nice" => libc::RLIMIT_NICE,
        "nofile" => libc::RLIMIT_NOFILE,
        "nproc" => libc::RLIMIT_NPROC,
        "rss" => libc::RLIMIT_RSS,
        "rtprio" => libc::RLIMIT_RTPRIO,
        "rttime" => libc::RLIMIT_RTTIME,
        "sigpending" => libc::RLIMIT_SIGPENDING,
        "stack" => libc::RLIMIT_STACK,
        _ => return None,
    })
}

/// uname(2): the first two numbers of the kernel's version.
pub(crate) fn kernel_version() -> (u32, u32) {
    let release = nix::sys::utsname::uname().map(|u| u.release().to_string_lossy().into_owned()).unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
