//! run: the process and its surroundings.

use std::fs;
use std::path::PathBuf;

use crate::support::command::Done;
use crate::support::store::Store;

/// `run --rm FLAGS busybox sh -c SCRIPT`.
fn script(store: &Store, flags: &str, script: &str) -> Done {
    store.run_with(&format!("run --rm {flags} busybox sh -c"), &[script])
}

#[test]
fn the_exit_status_is_the_commands() {
    let store = Store::new();
    for (code, status) in [("true", 0), ("exit 7", 7), ("exit 125", 125), ("exit 255", 255)] {
        script(&store, "", code).status(status);
    }
    // PID 1 does not take signals that it has no handler for, its own among them (pid_namespaces(7)).
    script(&store, "--init", "kill -KILL $$").status(128 + 9);
    script(&store, "--init", "kill -TERM $$").status(128 + 15);
    for (line, status, what) in [
        ("run --rm nosuch:image true", 125, "nosuch"),
        ("run --rm busybox /etc/passwd", 126, "/etc/passwd"),
        ("run --rm busybox /etc", 126, "/etc"),
        ("run --rm busybox nosuchcommand", 127, "nosuchcommand"),
        ("run --rm busybox /no/such/file", 127, "/no/such/file"),
        ("run --rm -w /etc/passwd busybox true", 125, "/etc/passwd"),
        ("run --rm -u nosuchuser busybox true", 125, "nosuchuser"),
        ("run --rm -v /nonexistent/dir:/x busybox true", 125, "/nonexistent/dir"),
    ] {
        let error = store.fails(status, line);
        assert!(error.contains(what), "{line}: {error}");
    }
    assert_eq!(store.ok("ps -aq"), "", "what could not be started left a container");
}

#[test]
fn streams_are_passed_through() {
    let store = Store::new();
    let done = script(&store, "", "echo out; echo err >&2");
    assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, "out\n", "err\n"));
    let input = store.disk.path().join("input");
    fs::write(&input, vec![b'x'; 1 << 20]).expect("a file");
    let done = store.run_reading("run --rm -i busybox wc -c", fs::File::open(&input).expect("a file"));
    assert_eq!(done.ok(), "1048576");
    // Without -i there is nothing to read.
    let done = store.run_reading("run --rm busybox wc -c", fs::File::open(&input).expect("a file"));
    assert_eq!(done.ok(), "0");
}

#[test]
fn it_has_namespaces_of_its_own() {
    let store = Store::new();
    let probe = "for n in mnt pid uts ipc net cgroup; do readlink /proc/self/ns/$n; done; echo $$; hostname; \
        ls /sys/class/net; cat /proc/self/cgroup";
    let inside = script(&store, "", probe).ok();
    for (at, name) in ["mnt", "pid", "uts", "ipc", "net", "cgroup"].iter().enumerate() {
        let host = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
        let own = inside.lines().nth(at).expect("a line");
        assert!(own.starts_with(name) && own != host.to_string_lossy(), "{name}: {own}");
    }
    let rest: Vec<&str> = inside.lines().skip(6).collect();
    assert_eq!(rest[0], "1", "it is PID 1");
    assert!(rest[1].len() == 12 && rest[1].bytes().all(|b| b.is_ascii_hexdigit()), "the id is the name: {}", rest[1]);
    assert_eq!(rest[2], "lo");
    assert!(rest[3..].iter().all(|line| !line.contains("tupper")), "the host's cgroup path shows: {rest:?}");
    assert!(script(&store, "", "ip addr show lo").ok().contains("127.0.0.1"), "loopback is up");
    assert_eq!(script(&store, "--hostname web.test", "hostname; cat /etc/hostname").ok(), "web.test\nweb.test");
    assert!(script(&store, "--hostname web.test", "cat /etc/hosts").ok().contains("web.test"));
}

#[test]
fn the_network_is_none_or_the_hosts() {
    let store = Store::new();
    let host = fs::read_link("/proc/self/ns/net").expect("a namespace").to_string_lossy().into_owned();
    assert_eq!(script(&store, "--network host", "readlink /proc/self/ns/net").ok(), host);
    assert_ne!(script(&store, "--network none", "readlink /proc/self/ns/net").ok(), host);
    assert_eq!(script(&store, "--network none", "ls /sys/class/net").ok(), "lo");
}

#[test]
fn nothing_of_the_host_is_mounted() {
    let store = Store::new();
    let table = script(&store, "", "cat /proc/self/mountinfo").ok();
    let points: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    for needed in ["/", "/proc", "/sys", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue"] {
        assert!(points.contains(&needed), "{needed} is not mounted:\n{table}");
    }
    for point in &points {
        let listed = ["/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];
        assert!(*point == "/" || listed.iter().any(|top| point.starts_with(top)), "{point}:\n{table}");
    }
    assert!(!table.contains(store.disk.path().to_str().expect("plain")), "the host's paths show:\n{table}");
    let sysfs = table.lines().find(|line| line.contains(" /sys ")).expect("sysfs");
    assert!(sysfs.split(' ').nth(5).is_some_and(|options| options.split(',').any(|o| o == "ro")), "{sysfs}");
}

#[test]
fn devices_and_masks_are_in_place() {
    let store = Store::new();
    let probe = "echo x >/dev/null && head -c 3 /dev/zero | wc -c && head -c 3 /dev/urandom | wc -c && \
        ls /dev && touch /dev/shm/x && ls -l /dev/fd /dev/stdin";
    let devices = script(&store, "", probe).ok();
    for name in ["full", "mqueue", "null", "ptmx", "pts", "random", "shm", "tty", "urandom", "zero", "stdin"] {
        assert!(devices.lines().any(|line| line == name), "{name}: {devices}");
    }
    assert!(!devices.lines().any(|line| matches!(line, "loop-control" | "vda" | "sda" | "kmsg" | "btrfs-control")));
    for script_text in [
        "echo 1 >/proc/sys/kernel/panic",
        "echo h >/proc/sysrq-trigger",
        "test -s /proc/kcore && head -c 1 /proc/kcore | grep -q .",
        "test -s /proc/keys && grep -q . /proc/keys",
        "ls /sys/firmware | grep -q .",
        "mount -t tmpfs x /mnt",
        "mknod /tmp/sda b 8 0",
    ] {
        let done = script(&store, "", script_text);
        assert_ne!(done.status, 0, "it could: {done}");
    }
}

#[test]
fn capabilities_and_descriptors_are_few() {
    let store = Store::new();
    let status = script(&store, "", "cat /proc/self/status").ok();
    let field = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name)).expect("a field of proc_pid_status(5)");
        u64::from_str_radix(value.trim(), 16).expect("hexadecimal")
    };
    // capabilities(7) by number: CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT
    // SETFCAP, podman's default.
    let default: u64 = [0, 1, 3, 4, 5, 6, 7, 8, 10, 18, 31].iter().map(|bit| 1 << bit).sum();
    for (name, value) in
        [("CapBnd:", default), ("CapPrm:", default), ("CapEff:", default), ("CapInh:", 0), ("CapAmb:", 0)]
    {
        assert_eq!(field(name), value, "{name}");
    }
    assert_eq!(field("NoNewPrivs:"), 1);
    // A descriptor that the caller left open is not inherited.
    let mut command = std::process::Command::new("sh");
    let tupper = store.command("run --rm busybox ls /proc/self/fd", &[]);
    command
        .arg("-c")
        .arg("exec 7</etc/passwd 9</; exec \"$@\"")
        .arg("sh")
        .arg(tupper.get_program())
        .args(tupper.get_args());
    let fds = crate::support::command::finish(command).ok();
    assert_eq!(fds.split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"], "3 is ls's own");
}

#[test]
fn environment_directory_and_user_are_set() {
    let store = Store::new();
    let environment = script(&store, "-e A=1 -e B=two", "env").with_env_lines();
    for needed in ["A=1", "B=two", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"] {
        assert!(environment.iter().any(|line| line == needed), "{needed}: {environment:?}");
    }
    assert!(!environment.iter().any(|line| line.starts_with("CARGO")), "the host's environment leaks: {environment:?}");
    assert_eq!(script(&store, "-w /usr/bin", "pwd").ok(), "/usr/bin");
    assert_eq!(script(&store, "-w /new/dir", "pwd").ok(), "/new/dir", "made, as podman does");
    for (user, ids) in [("nobody", "65534 65534"), ("1000", "1000 0"), ("1000:50", "1000 50"), ("www-data:adm", "33 4")]
    {
        assert_eq!(script(&store, &format!("-u {user}"), "echo $(id -u) $(id -g)").ok(), ids, "{user}");
    }
    assert_eq!(script(&store, "", "umask").ok(), "0022");
}

impl Done {
    fn with_env_lines(self) -> Vec<String> {
        self.ok().lines().map(str::to_string).collect()
    }
}

#[test]
fn volumes_and_read_only_roots() {
    let store = Store::new();
    let shared = store.disk.path().join("shared");
    fs::create_dir(&shared).expect("a directory");
    fs::write(shared.join("in"), "from the host\n").expect("a file");
    let volume = shared.to_str().expect("plain");
    assert_eq!(
        script(&store, &format!("-v {volume}:/data"), "cat /data/in; echo back >/data/out").ok(),
        "from the host"
    );
    assert_eq!(fs::read_to_string(shared.join("out")).expect("written"), "back\n");
    assert_ne!(script(&store, &format!("-v {volume}:/data:ro"), "echo x >/data/refused").status, 0);
    assert!(!shared.join("refused").exists());
    let file = format!("{volume}/in");
    assert_eq!(script(&store, &format!("-v {file}:/new/place"), "cat /new/place").ok(), "from the host");

    assert_ne!(script(&store, "--read-only", "touch /x").status, 0);
    script(&store, "--read-only --tmpfs /scratch", "touch /scratch/x /dev/shm/y").ok();
    let options = script(&store, "--tmpfs /scratch:size=1m", "grep ' /scratch ' /proc/mounts").ok();
    assert!(options.contains("size=1024k"), "{options}");
    // The bind point is not seen in the image.
    assert_ne!(script(&store, "", "ls /data").status, 0);
}

#[test]
fn limits_hold() {
    let store = Store::new();
    let done = script(&store, "-m 32m", "head -c 200m /dev/zero | tail").status(137);
    assert!(done.stderr.to_lowercase().contains("memory"), "the reason is told: {done}");
    script(&store, "-m 64m", "true").ok();
    let done = script(&store, "--pids-limit 8", "for i in $(seq 20); do sleep 1 & done; wait");
    assert!(done.stderr.to_lowercase().contains("fork"), "{done}");
    script(&store, "--cpus 0.5", "true").ok();
    for flags in ["--cpus 0.001", "--cpus x", "-m lots"] {
        script(&store, flags, "true").status(125);
    }
}

#[test]
fn a_cpu_limit_holds() {
    let store = Store::alone();
    // The last line of times is the children's: `0m1.98s 0m0.00s`, user and system (POSIX, times).
    let burned = |flags: &str| -> f64 {
        let said = script(&store, flags, "timeout 2 sh -c 'while :; do :; done'; times").ok();
        let user = said.lines().last().and_then(|line| line.split(' ').next()).expect("the children's times");
        user.trim_start_matches("0m").trim_end_matches('s').parse().unwrap_or_else(|e| panic!("{e}: {said}"))
    };
    let (limited, free) = (burned("--cpus 0.2"), burned(""));
    assert!(limited < 0.8, "a fifth of 2 s, but for the first period's burst: {limited} s");
    assert!(free > limited, "{free} s without a limit, {limited} s with one");
}

#[test]
fn rm_leaves_nothing() {
    let store = Store::alone();
    store.ok("run --rm busybox true"); // what the first run of all sets up is the store's
    let before = store.traces();
    script(&store, "", "touch /x; mkdir -p /a/b; sleep 0.1 & true").ok();
    script(&store, "", "exit 3").status(3);
    store.run("run --rm busybox nosuchcommand").status(127);
    script(&store, "-m 32m --cpus 0.5 --pids-limit 20 --tmpfs /t --init", "sleep 100 & sleep 100 & exit 0").ok();
    store.ok("run --rm --explain=only busybox true");
    before.assert_same(&store.traces());
    assert_eq!(store.ok("ps -aq"), "");
}

#[test]
fn orphans_are_reaped_and_gone() {
    let store = Store::new();
    let zombies = "for i in 1 2 3 4 5; do (sleep 0.05 &) ; done; sleep 0.5; ps -o stat | grep -c Z || true";
    assert_eq!(script(&store, "--init", zombies).ok(), "0");
}

#[test]
fn the_snapshot_is_not_altered_by_what_is_supplied() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    let path = PathBuf::from(store.ok("snapshot path web"));
    store.ok("run --rm web sh -c true");
    store.ok_with("run --rm --hostname other web sh -c", &["touch /written; cat /etc/hosts"]);
    for name in ["written", "etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        assert!(!path.join(name).exists(), "{name}: a run works in a fresh snapshot");
    }
}

#[test]
fn explain_tells_each_step_and_only_does_none() {
    let store = Store::alone();
    let done = store.run("run --rm --explain busybox echo hello").status(0);
    assert_eq!(done.stdout, "hello\n");
    for word in ["unshare", "mount -t proc", "pivot_root", "btrfs subvolume snapshot"] {
        assert!(done.stderr.contains(word), "{word}: {done}");
    }
    let before = store.traces();
    let done = store.run("run --rm --explain=only busybox touch /never").status(0);
    let steps = format!("{}{}", done.stdout, done.stderr);
    assert!(steps.contains("pivot_root") && steps.contains("mount -t proc"), "{done}");
    before.assert_same(&store.traces());
    assert!(store.run("run --rm --explain=only --hostname box --tmpfs /t -m 64m busybox true").stderr.contains("box"));
}

#[test]
fn signals_are_forwarded() {
    let store = Store::new();
    let trap = "trap 'echo caught; exit 9' TERM; echo ready; while :; do sleep 0.05; done";
    let out = store.disk.path().join("out");
    let mut command = store.command("run --rm busybox sh -c", &[trap]);
    let child = command.stdout(fs::File::create(&out).expect("a file")).spawn().expect("tupper");
    crate::support::eventually("it is ready", std::time::Duration::from_secs(120), || {
        fs::read_to_string(&out).is_ok_and(|text| text.contains("ready"))
    });
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("kill");
    assert_eq!(crate::support::command::wait(child, "run"), 9);
    assert_eq!(fs::read_to_string(&out).expect("read"), "ready\ncaught\n");
}

#[test]
fn another_user_can_open_its_own_output() {
    let store = Store::new();
    let mut command =
        store.command("run --rm -u 65534 busybox sh -c", &["echo out >/dev/stdout; echo err >/dev/stderr"]);
    // Pipes, as in `tupper run … | cat`.
    let output = command.output().expect("a run");
    assert_eq!((output.stdout.as_slice(), output.stderr.as_slice()), (&b"out\n"[..], &b"err\n"[..]));
}

#[test]
fn init_tells_nothing_of_the_hosts_command_line() {
    let store = Store::new();
    let seen = script(&store, "--init -e SECRET=hunter2", "cat /proc/1/cmdline; cat /proc/1/comm; ps").ok();
    assert!(seen.contains("init") && !seen.contains("hunter2") && !seen.contains("--init"), "{seen}");
}

#[test]
fn a_read_only_root_has_writable_places() {
    let store = Store::new();
    script(&store, "--read-only", "touch /tmp/x /run/x /var/tmp/x").ok();
    for path in ["/x", "/etc/x", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname"] {
        let done = script(&store, "--read-only", &format!("echo x >>{path}"));
        assert!(done.stderr.contains("Read-only"), "{path}: {done}");
    }
}
