//! The runtime itself, and programs of the host that could run code of an image.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::attack::{Target, program, text};
use crate::support::archives::{Files, config};
use crate::support::command::finish;
use crate::support::disk::scratch;
use crate::support::store::Store;
use crate::support::{busybox, eventually};

/// For what an emulated machine does slowly.
const PATIENCE: Duration = Duration::from_secs(300);

fn executable(path: &Path, content: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir");
    fs::write(path, content).expect("a file");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// What this test calls the runtime: a copy, which may break.
struct Runtime {
    dir: tempfile::TempDir,
    original: Vec<u8>,
}

impl Runtime {
    fn new() -> Runtime {
        let original = fs::read(env!("CARGO_BIN_EXE_tupper")).expect("the binary");
        let dir = scratch();
        executable(&dir.path().join("tupper"), &original);
        Runtime { dir, original }
    }

    fn command(&self, target: &Target, line: &str, more: &[&str]) -> Command {
        let usual = target.command(line, more);
        let mut command = Command::new(self.dir.path().join("tupper"));
        command.args(usual.get_args()).stdin(std::process::Stdio::null());
        command
    }

    fn assert_untouched(&self) {
        assert!(fs::read(self.dir.path().join("tupper")).expect("the binary") == self.original, "it was overwritten");
    }
}

/// CVE-2019-5736: /proc/self/exe is the runtime, until it has become the command.
#[test]
fn the_runtime_is_not_overwritten() {
    let runtime = Runtime::new();
    let target = Target::with(|root| {
        executable(&root.join("self"), "#!/proc/self/exe\n");
        executable(&root.join("self-pull"), "#!/proc/self/exe image\n");
        // What tupper starts when it is run inside, as /proc/self/exe: a program of the image's, while PID 1 is tupper.
        executable(&root.join("bin/mkfs.btrfs"), "#!/bin/sh\nexec /attack/overwrite > /out/result\n");
    });
    // The attack is real: a program that has ended is overwritten through a descriptor that was only for reading.
    let dir = scratch();
    let victim = dir.path().join("victim");
    executable(&victim, fs::read(program("whoami")).expect("a program"));
    let mut command = Command::new("sh");
    command.args(["-c", "exec 7<$0; $0 >&2; echo OWNED > /proc/self/fd/7", text(&victim)]);
    assert_eq!(finish(command).status, 0);
    assert_eq!(fs::read(&victim).expect("the program"), b"OWNED\n");
    for flags in ["", "--init", "-u nobody", "--network host"] {
        for words in [
            &["/self"][..],
            &["/self-pull"],
            &["/proc/self/exe", "--version"],
            &["/proc/1/exe", "--version"],
            &["/attack/overwrite"],
            &["sh", "-c", "/attack/overwrite; /proc/1/exe --version; /attack/overwrite"],
            &["sh", "-c", "cp /attack/overwrite /tmp/x; cat /tmp/x > /proc/1/exe; cat /tmp/x > /proc/self/exe"],
        ] {
            let done = finish(runtime.command(&target, &format!("run --rm {flags} attack"), words));
            assert!(!done.stdout.contains("OVERWRITTEN") && !done.stdout.contains("opened for writing"), "{done}");
            runtime.assert_untouched();
        }
    }
    let out = scratch();
    fs::set_permissions(out.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
    // Only with the host's ids is it the kernel alone that refuses, because the file is being executed (ETXTBSY).
    for (flags, refusal) in
        [("", "Permission denied"), ("--network host", "Permission denied"), ("--userns host", "busy")]
    {
        let line = format!("run --rm {flags} --tmpfs /store -v {}:/out attack", text(out.path()));
        let words = ["/proc/self/exe", "--root", "/store/x", "store", "init", "--size", "256m"];
        let done = finish(runtime.command(&target, &line, &words));
        let result = fs::read_to_string(out.path().join("result")).unwrap_or_else(|e| panic!("{e}: {done}"));
        assert!(result.contains("1: held, not writable: ") && result.contains(refusal), "{flags}: {result}");
        runtime.assert_untouched();
        fs::remove_file(out.path().join("result")).expect("remove");
    }
    // And it still is what it was.
    assert_eq!(finish(runtime.command(&target, "run --rm attack echo whole", &[])).ok(), "whole");
}

/// With --init, PID 1 is tupper: nothing inside reads, traces or replaces it.
#[test]
fn init_is_no_way_to_the_runtime() {
    let target = Target::new();
    let done = target.sh(
        "--init",
        "readlink /proc/1/exe; ls /proc/1/fd /proc/1/cwd/ /proc/1/root/; cat /proc/1/maps /proc/1/environ /proc/1/mem; \
         cat /proc/1/cmdline | wc -c; /attack/overwrite | sed 's/^1: /init: /'",
    );
    assert!(done.stdout.contains("init: Permission denied"), "{done}");
    assert!(!done.stdout.contains("tupper") && !done.stdout.contains("OVERWRITTEN"), "{done}");
    // What is refused there is allowed where PID 1 is the command: the attack is real.
    assert_eq!(target.sh("", "readlink /proc/1/exe").ok(), "/bin/sh");
}

/// CVE-2019-14271: docker-tar, chrooted into the container, loaded the C library's plugins from there.
#[test]
fn nothing_of_the_host_loads_the_images_libraries() {
    let dir = scratch();
    let library = program("library.so");
    // The attack is real: a program that loads it runs it.
    let owned = dir.path().join("owned");
    let mut command = Command::new("true");
    command.env("LD_PRELOAD", &library).env("EVIL", &owned);
    assert_eq!(finish(command).status, 0);
    assert!(owned.exists(), "the library does nothing");
    let host = Path::new("/owned");
    assert!(!host.exists());
    let target = Target::with(|root| {
        let names = "libc.so.6 libnss_files.so.2 libnss_dns.so.2 libnss_compat.so.2 libgcc_s.so.1 libbtrfsutil.so.1 \
                     libm.so.6 libpthread.so.0 ld-linux-x86-64.so.2";
        for folder in ["lib", "lib64", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"] {
            for name in names.split_whitespace() {
                executable(&root.join(folder).join(name), fs::read(&library).expect("the library"));
            }
        }
        executable(&root.join("etc/ld.so.preload"), "/lib/libc.so.6\n");
        executable(&root.join("etc/nsswitch.conf"), "passwd: evil\ngroup: evil\nhosts: evil\n");
        executable(&root.join("lib/libnss_evil.so.2"), fs::read(&library).expect("the library"));
    });
    for flags in ["", "-u root", "-u nobody", "-u 33:34", "--init"] {
        assert_eq!(target.sh(flags, "ls /owned 2>/dev/null; echo clean").ok(), "clean");
    }
    let id = target.ok("snapshot create attack");
    let path = target.ok_with("snapshot path", &[&id]);
    assert!(!Path::new(&path).join("owned").exists() && !host.exists(), "a library of the image ran");
}

/// An image's metadata asks for everything, and changes nothing.
#[test]
fn an_image_does_not_choose_its_posture() {
    let target = Store::new();
    let layer = fs::read(busybox()).expect("a tarball");
    let mut config = config(&[&layer]);
    config["config"] = json!({
        "Labels": {
            "io.podman.annotations.privileged": "TRUE", "io.podman.annotations.seccomp": "unconfined",
            "io.containers.capabilities": "SYS_ADMIN,SYS_MODULE", "run.oci.keep_original_groups": "1",
        },
        "Privileged": true, "CapAdd": ["ALL"], "NetworkMode": "host", "SecurityOpt": ["seccomp=unconfined"],
        "Volumes": {"/proc/sys": {}, "/dev": {}}, "Devices": ["/dev/mem"],
    });
    let archive = Files::docker_of(serde_json::to_vec(&config).expect("json"), &["localhost/asks:1"], &[&layer]);
    let archive = archive.save(&target.disk.path(), "asks.tar");
    target.ok_with("image load -q -i", &[text(&archive)]);
    let posture = "grep -E '^(Cap|NoNewPrivs|Seccomp|Groups)' /proc/self/status; ls /dev / /sys/class/net; \
                   cut -d' ' -f5-6 /proc/self/mountinfo | sed 's/[/]sys[/]fs[/]cgroup.*//'";
    let plain = target.run_with("run --rm busybox sh -c", &[posture]);
    assert_eq!(target.run_with("run --rm asks:1 sh -c", &[posture]).ok(), plain.ok());
}

/// What an image is called, runs and says of itself is shown; it neither moves the terminal nor makes lines of its own,
/// which somebody might type.
#[test]
fn an_image_does_not_write_to_the_terminal() {
    let target = Store::new();
    let evil = "\u{1b}[2J\u{9b}1m\nrm -rf /tmp/nothing";
    let command = serde_json::to_string(&json!([format!("/bin/{evil}"), evil])).expect("json");
    let (command, tarball) = (format!("CMD {command}"), busybox());
    let args = ["--name", "evil", "--message", evil, "--change", &command, text(&tarball)];
    target.ok_with("image import", &args);
    target.ok("create --name made evil");
    for line in [
        "run --rm evil",
        "run --rm --explain=only evil",
        "ps -a",
        "image ls",
        "image history evil",
        "image inspect evil",
        "inspect made",
        "start -a made",
        "run --rm busybox /bin/\u{1b}[2J",
    ] {
        let done = target.run(line);
        let output = format!("{}{}", done.stdout, done.stderr);
        assert!(!output.chars().any(|c| c.is_control() && c != '\n'), "{line}: {output:?}");
        assert!(!output.lines().any(|line| line.starts_with("rm -rf")), "{line}: {output:?}");
    }
}

/// The setuid bit of a file in the store gives nobody on the host anything.
#[test]
fn setuid_files_of_the_store_are_out_of_reach() {
    let target = Target::new();
    let (id, root) = target.create("", "cp /attack/whoami /su; chmod 4755 /su");
    target.ok(&format!("start -a {id}"));
    let su = root.join("su");
    let mode = fs::metadata(&su).expect("the file").permissions().mode();
    assert_eq!(mode & 0o7777, 0o4755, "the attack is real: the bit is set");
    let as_nobody = |path: &Path| {
        let mut command = Command::new("setpriv");
        // It is the shell, without any capability left, that looks the path up.
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", "exec $0", text(path)]);
        finish(command)
    };
    let dir = tempfile::Builder::new().prefix("tupper-setuid-").tempdir_in("/var/tmp").expect("a directory");
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let copy = dir.path().join("su");
    executable(&copy, fs::read(&su).expect("the file"));
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o4755)).expect("chmod");
    assert_eq!(as_nobody(&copy).ok(), "0", "the attack is real: elsewhere it makes root of nobody");
    symlink(&su, dir.path().join("link")).expect("a link");
    for path in [su, dir.path().join("link")] {
        let refused = as_nobody(&path);
        assert!(refused.status != 0 && refused.stderr.contains("Permission denied"), "{refused}");
    }
}

/// CVE-2019-5736 and CVE-2024-21626 by way of exec: what joins a container is the runtime, until it has become the command,
/// and the container's processes are there before it.
#[test]
fn what_joins_a_container_is_not_seen_into() {
    let runtime = Runtime::new();
    let target = Target::with(|root| {
        executable(&root.join("self"), "#!/proc/self/exe\n");
        executable(&root.join("fd"), "#!/proc/self/fd/7/etc/passwd\n");
    });
    // A root that may look into whatever the kernel lets it, all the time.
    let watch = "while :; do /attack/overwrite; for p in /proc/[0-9]*; do \
                 case $p in /proc/1|/proc/self) ;; *) readlink $p/exe $p/cwd $p/root $p/fd/*; cat $p/maps $p/environ;; esac; \
                 done; done >/tmp/seen 2>&1";
    let line = "run -d --tmpfs /tmp --cap-add sys_ptrace,dac_read_search,sys_admin --name watch attack";
    finish(runtime.command(&target, line, &["sh", "-c", watch])).ok();
    for _ in 0..20 {
        finish(runtime.command(&target, "exec watch", &["/bin/true"])).ok();
        finish(runtime.command(&target, "exec -u nobody watch", &["/bin/true"])).ok();
        for words in [&["/fd"][..], &["/proc/self/fd/5/bin/true"]] {
            assert_ne!(finish(runtime.command(&target, "exec watch", words)).status, 0);
        }
    }
    let done = finish(runtime.command(&target, "exec watch", &["cat", "/tmp/seen"]));
    let seen = done.stdout;
    assert!(seen.contains(": Permission denied"), "it never met what joins: {} bytes", seen.len());
    for word in ["OVERWRITTEN", "opened for writing", "/fs/store", "libbtrfs", "tupper-test"] {
        assert!(!seen.contains(word), "{word}: {:?}", seen.lines().find(|line| line.contains(word)));
    }
    runtime.assert_untouched();
    target.ok("rm -f watch");
    // Where root inside is the host's, it holds what it finds, and writes when that is not executed any more.
    let hold = "while :; do for p in /proc/[0-9]*; do case $(readlink $p/exe) in ''|/bin/*) ;; *) \
                (exec 7<$p/exe && echo held && while :; do (echo OWNED >/proc/self/fd/7) && echo WRITTEN; sleep 0.1; done) & \
                ;; esac; done; done >/tmp/seen 2>/dev/null";
    for flags in ["--userns host", "--userns keep-id"] {
        let line = format!("run -d --tmpfs /tmp {flags} --name hold attack");
        // By another program than that which joins: nobody writes to what a monitor runs from.
        target.ok_with(&line, &["sh", "-c", hold]);
        finish(runtime.command(&target, "exec hold", &["/self"]));
        // It waits for a password, and is there to be found.
        let waits = ["/proc/self/exe", "login", "--username", "x", "--password-stdin", "example.org"];
        let mut found = runtime.command(&target, "exec -i hold", &waits);
        let quiet = std::process::Stdio::null;
        let mut found =
            found.stdin(std::process::Stdio::piped()).stdout(quiet()).stderr(quiet()).spawn().expect("tupper");
        let seen = || target.ok("exec hold cat /tmp/seen");
        eventually("it is held", PATIENCE, || seen().contains("held"));
        drop(found.stdin.take());
        assert!(!found.wait().expect("ended").success());
        target.ok("exec hold sleep 1");
        assert!(!seen().contains("WRITTEN"), "it was written to");
        runtime.assert_untouched();
        target.ok("rm -f hold");
    }
    assert_eq!(finish(runtime.command(&target, "run --rm attack echo whole", &[])).ok(), "whole");
}
