//! System calls: which a container can make, by default and by a profile; and limits of its processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use tupper::sandbox::Security;

use crate::escapes::attack::Target;
use crate::support::command::Done;
use crate::support::disk;

fn script(target: &Target, flags: &[&str], script: &str) -> Done {
    target.run_with("run --rm", &[flags, &["attack", "sh", "-c", script]].concat())
}

fn pairs(text: &str) -> BTreeMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k, v.trim())).collect()
}

/// What becomes of each call that the program tries.
fn calls(target: &Target, flags: &[&str]) -> BTreeMap<String, String> {
    let said = script(target, flags, "/attack/filter").ok();
    pairs(&said).into_iter().map(|(call, result)| (call.to_string(), result.to_string())).collect()
}

#[track_caller]
fn expect(found: &BTreeMap<String, String>, expected: &[(&str, &str)]) {
    for (call, result) in expected {
        assert_eq!(found.get(*call).map(String::as_str), Some(*result), "{call}: {found:#?}");
    }
}

#[test]
fn system_calls_are_those_of_a_list() {
    let target = Target::new();
    let list = [
        ("clone3", "ENOSYS"),
        ("not made yet", "ENOSYS"),
        ("io_uring_setup", "EPERM"),
        ("add_key", "EPERM"),
        ("mount", "EPERM"),
        ("unshare user", "EPERM"),
        ("unshare files", "made"),
        ("bpf", "EPERM"),
        ("vsock", "EAFNOSUPPORT"),
        ("alg", "EAFNOSUPPORT"),
        ("audit", "EINVAL"),
        ("route", "made"),
        ("subvolume", "ENOTTY"),
        ("subvolume, wide", "ENOTTY"),
        // The kernel's own word for a descriptor that is none.
        ("clone range", "EBADF"),
        ("sti", "EPERM"),
        ("no randomize", "EPERM"),
        ("personality", "made"),
    ];
    for flags in [&[][..], &["--init"], &["-u", "1000:1000"], &["--userns", "host"]] {
        let found = calls(&target, flags);
        expect(&found, if flags == ["-u", "1000:1000"] { &list[..12] } else { &list });
        #[cfg(target_arch = "x86_64")]
        expect(&found, &[("x32", "ENOSYS"), ("i386", "made"), ("i386 mount", "EPERM")]);
    }
    // Without no_new_privs it is loaded while that is still possible.
    let found = calls(&target, &["--security-opt", "no-new-privileges=false"]);
    expect(&found, &list);
    // With the capability go the calls that it is for, but not those that nobody is to make.
    let found = calls(&target, &["--cap-add", "SYS_ADMIN"]);
    expect(
        &found,
        &[("unshare user", "made"), ("subvolume", "ENOTTY"), ("io_uring_setup", "EPERM"), ("mount", "EFAULT")],
    );
    let found = calls(&target, &["--security-opt", "seccomp=unconfined"]);
    expect(&found, &[("clone3", "EINVAL"), ("subvolume", "made"), ("unshare user", "made")]);
}

#[test]
fn a_profile_of_docker_s_is_kept_with_the_container() {
    let target = Target::new();
    let dir = disk::scratch();
    let file = dir.path().join("profile.json");
    let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["add_key", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 13},
        {"names": ["socket"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5,
         "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_EQ"}]}]}"#;
    fs::write(&file, profile).expect("a file");
    let option = format!("seccomp={}", file.display());
    let found = calls(&target, &["--security-opt", &option]);
    expect(&found, &[("add_key", "EACCES"), ("vsock", "EIO"), ("route", "made"), ("clone3", "EINVAL")]);
    target.ok_with("create --name kept", &["--security-opt", &option, "attack", "/attack/filter"]);
    fs::write(&file, "{").expect("a file");
    let again = target.ok("start -a kept");
    assert!(again.contains("add_key: EACCES"), "{again}");
    let error = script(&target, &["--security-opt", &option], "true").status(125).stderr;
    assert!(error.contains(&option) && error.contains("line 1"), "{error}");
}

/// podman's own file, if it is to be taken, is taken whole.
#[test]
fn profiles_in_use_elsewhere_are_understood() {
    let file = Path::new("/usr/share/containers/seccomp.json");
    let text = fs::read(file).expect("containers-common's profile: golang-github-containers-common");
    let mut security = Security::default();
    security.set_seccomp_profile(&text).expect("a profile");
    let target = Target::new();
    let found = calls(&target, &["--security-opt", "seccomp=/usr/share/containers/seccomp.json"]);
    expect(&found, &[("bpf", "EPERM"), ("audit", "EINVAL"), ("route", "made"), ("not made yet", "ENOSYS")]);
}

#[test]
fn limits_of_processes_are_as_one_says() {
    let target = Target::new();
    let limits = "ulimit -n; ulimit -Hn; ulimit -c";
    assert_eq!(script(&target, &["--ulimit", "nofile=64:128"], limits).ok(), "64\n128\n0");
    assert_eq!(script(&target, &["--ulimit", "nofile=100", "--ulimit", "core=0"], limits).ok(), "100\n100\n0");
    let error = script(&target, &["--ulimit", "files=1"], limits).status(125).stderr;
    assert!(error.contains("\"files\""), "{error}");
}

#[test]
fn what_makes_data_durable_is_done_or_only_answered() {
    let target = Target::new();
    // Every call for a descriptor that is none fails, unless nobody looks at it.
    let fsync = |line: &str| {
        let done = target.run_with(line, &["attack", "/attack/filter"]);
        pairs(&done.stdout).get("fsync").map_or_else(|| done.to_string(), ToString::to_string)
    };
    assert_eq!(fsync("run --rm"), "EBADF");
    assert_eq!(fsync("run --rm --suppress-sync"), "made");
    assert_eq!(fsync("run --rm --suppress-sync --security-opt seccomp=unconfined"), "made");
    assert_eq!(fsync("run --rm --suppress-sync=no"), "EBADF");
    assert_eq!(fsync("shell"), "made");
    assert_eq!(fsync("shell --suppress-sync=no"), "EBADF");
    assert_eq!(fsync("shell -v /tmp:/host"), "EBADF", "what is elsewhere outlives it");
    assert_eq!(fsync("shell --mount type=bind,source=/tmp,target=/host"), "EBADF");
    assert_eq!(fsync("shell -v /tmp:/host:ro --mount type=tmpfs,target=/more"), "made", "nothing elsewhere is written");
}
