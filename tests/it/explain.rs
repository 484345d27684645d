//! `--explain` is true: what it prints, typed by hand into two shells, makes the same container.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crate::support::eventually;
use crate::support::store::Store;

/// What a container is, as a command in it sees it: lines that differ between two containers only if they differ.
const PROBE: &str = r#"
for n in user mnt pid uts ipc net cgroup; do echo "namespace $n $(readlink /proc/self/ns/$n)"; done
sed 's/^/users /' /proc/self/uid_map; sed 's/^/groups /' /proc/self/gid_map
grep -E '^(Uid|Gid|Groups|Umask|Cap[A-Za-z]+|NoNewPrivs|SigBlk|SigIgn):' /proc/self/status | sed 's/^/status /'
sed 's/^/mount /' /proc/self/mountinfo
ls -ln /dev | sed 's/ [A-Z][a-z][a-z] [0-9 ]* [0-9:]* / /; s/^/device /'
for f in $(find /sys/fs/cgroup -name pids.max -o -name memory.max -o -name memory.limit_in_bytes -o -name cpu.max -o -name cpu.cfs_quota_us -o -name cpu.shares -o -name cpu.weight -o -name cpuset.cpus -o -name cpuset.mems -o -name hugetlb.2MB.max); do
  echo "limit $f $(cat $f)"; done
sed 's/^/cgroup /' /proc/self/cgroup
ulimit -a | sed 's/^/ulimit /'
echo "name $(hostname) $(cat /etc/hostname)"; sed 's/^/hosts /' /etc/hosts
echo "ping $(cat /proc/sys/net/ipv4/ping_group_range 2>/dev/null)"
echo "links $(ip -o link 2>/dev/null | cut -d' ' -f2,3; cat /sys/class/net/lo/operstate /sys/class/net/lo/flags)"
echo "input $(readlink /proc/self/fd/0)"; ls /proc/self/fd | sed 's/^/descriptor /'
pwd | sed 's/^/cwd /'; env | sort | sed 's/^/env /'
for f in /kept /data/file /data/sub; do ls -ldn $f 2>&1 | sed 's/^/file /'; done
for f in /x /data/x /run/x /proc/sys/x /sys/x /etc/hosts; do (: >> $f) 2>/dev/null && echo "writable $f"; done
sed 's/^/parents /' /proc/1/status | grep -E 'PPid|NSpid'
exit 0
"#;

/// A shell that lines are typed into.
struct Typist {
    shell: Child,
    input: ChildStdin,
    answers: BufReader<File>,
    count: u32,
}

impl Typist {
    fn sit_down(path: &str) -> Typist {
        let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).expect("a pipe");
        let error = write.try_clone().expect("a copy");
        // A person's shell has no descriptors of a test harness; dash could not close those above 9.
        let clean = "for fd in /proc/self/fd/*; do fd=${fd##*/}; ((fd < 3)) || eval \"exec $fd>&-\"; done; exec sh";
        // Nor does it ignore what those who run a test in the background do.
        let mut shell = Command::new("env")
            .args(["--default-signal", "bash", "-c", clean])
            .env("PATH", path)
            .stdin(Stdio::piped())
            .stdout(Stdio::from(write))
            .stderr(Stdio::from(error))
            .spawn()
            .expect("a shell");
        let input = shell.stdin.take().expect("its input");
        Typist { shell, input, answers: BufReader::new(File::from(read)), count: 0 }
    }

    /// Types a line and waits until the shell has taken it, so that what follows is for the one that it may start.
    fn type_line(&mut self, line: &str) {
        writeln!(self.input, "{line}").expect("a shell that reads");
        let input = self.input.as_raw_fd();
        eventually("the shell takes the line", Duration::from_secs(60), || {
            let mut waiting: libc::c_int = 0;
            // SAFETY: FIONREAD stores an int, which outlives the call.
            #[expect(unsafe_code, reason = "nix has no wrapper of FIONREAD")]
            let asked = unsafe { libc::ioctl(input, libc::FIONREAD, &raw mut waiting) };
            assert_eq!(asked, 0, "FIONREAD");
            waiting == 0
        });
    }

    /// Types a line that has to succeed.
    fn succeed(&mut self, line: &str) {
        self.type_line(line);
        self.count += 1;
        let mark = format!("typed-{}", self.count);
        self.type_line(&format!("echo {mark} $?"));
        let mut said = String::new();
        loop {
            let mut answer = String::new();
            let length = self.answers.read_line(&mut answer).expect("an answer");
            assert!(length > 0, "the shell ended at {line:?}: {said}");
            match answer.trim_end().strip_prefix(&mark) {
                Some(status) => return assert_eq!(status.trim(), "0", "{line}\n{said}"),
                None => said.push_str(&answer),
            }
        }
    }

    /// Types the last line and reads what it prints; then everything has ended.
    fn finish(mut self, line: &str) -> String {
        self.type_line(line);
        drop(self.input);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut self.answers, &mut said).expect("output");
        self.shell.wait().expect("its end");
        said
    }
}

/// What must be the same. A namespace is the host's or its own; numbers that the kernel gives out are left out.
fn compared(said: &str) -> BTreeMap<String, usize> {
    let mut lines = BTreeMap::new();
    for line in said.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let line = match words.as_slice() {
            ["cgroup", rest] => format!("cgroup {}", rest.split_once(':').map_or("", |(_number, rest)| rest)),
            // Whoever was spawned by posix_spawn(3) of glibc ignores signal 32, which is the C library's own.
            ["status", "SigIgn:", mask] => {
                format!("ignores {:x}", u64::from_str_radix(mask, 16).expect("a mask") & !(1 << 31))
            }
            ["namespace", name, link] => {
                let host = fs::read_link(format!("/proc/self/ns/{name}")).expect("a namespace");
                format!("namespace {name} {}", if host == Path::new(link) { "the host's" } else { "its own" })
            }
            // Field 4 is the path below the filesystem's root, 5 the mount point, 6 the options: proc_pid_mountinfo(5).
            ["mount", _id, _parent, _device, place, point, options, rest @ ..] => {
                let fields: Vec<&&str> = rest.iter().skip_while(|word| **word != "-").skip(1).collect();
                let place = if place.contains("/containers/") || place.contains("/tupper/") { "" } else { place };
                let place = if place.starts_with("/tmp/") || point.starts_with("/data") { "" } else { place };
                let mut sorted: Vec<&str> = fields.get(2).map_or("", |options| options).split(',').collect();
                sorted.retain(|option| !option.contains("subvol") && !option.starts_with("size="));
                sorted.sort_unstable();
                format!("mount {point} {place} {options} {} {sorted:?}", fields.first().expect("a type"))
            }
            _ => words.join(" "),
        };
        *lines.entry(line).or_default() += 1;
    }
    lines
}

fn by_hand_and_by_tupper(flags: &[&str]) {
    let store = Store::alone();
    store.import_debian();
    let tools = tempfile::tempdir().expect("a directory");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/explain/mount.c");
    let cc = Command::new("gcc")
        .args(["-O1", "-Wall", "-Werror", "-o"])
        .arg(tools.path().join("mount"))
        .arg(source)
        .status();
    assert!(cc.expect("gcc").success());
    let data = tempfile::tempdir().expect("a directory");
    fs::create_dir(data.path().join("sub")).expect("a directory");
    fs::write(data.path().join("file"), "x").expect("a file");
    std::os::unix::fs::chown(data.path().join("file"), Some(33), Some(34)).expect("an owner");
    let volume = format!("{}:/data", data.path().display());
    let before = store.traces();

    let mut arguments = vec!["--hostname", "box", "-v", &volume];
    arguments.extend(flags);
    arguments.extend(["debian", "sh", "-c", PROBE.trim()]);
    let by_tupper = store.run_with("run --rm", &arguments).ok();
    let told = store.run_with("run --rm --explain=only", &arguments).status(0).stderr;

    let path = format!("{}:{}", tools.path().display(), std::env::var("PATH").expect("a path"));
    let (mut host, mut inner) = (Typist::sit_down(&path), Some(Typist::sit_down(&path)));
    let mut by_hand = String::new();
    for line in told.lines().filter(|line| line.starts_with('+')) {
        match line.strip_prefix("++ ") {
            Some(comment) if comment.starts_with('#') => {}
            Some(command) if command.starts_with("exec env") => {
                by_hand = inner.take().expect("one last line").finish(command);
            }
            Some(command) => inner.as_mut().expect("it has not ended").succeed(command),
            None => host.succeed(line.trim_start_matches("+ ")),
        }
    }
    host.finish("exit");

    let (by_hand, by_tupper) = (compared(&by_hand), compared(&by_tupper));
    assert!(by_tupper.len() > 60, "{by_tupper:#?}");
    let differ = |a: &BTreeMap<String, usize>, b: &BTreeMap<String, usize>| {
        a.iter().filter(|(line, n)| b.get(*line) != Some(n)).map(|(line, _)| line.clone()).collect::<Vec<_>>()
    };
    assert_eq!(
        (differ(&by_hand, &by_tupper), differ(&by_tupper, &by_hand)),
        (Vec::new(), Vec::new()),
        "by hand, and by tupper"
    );
    before.assert_same(&store.traces());
}

#[test]
fn what_it_prints_makes_the_default_container() {
    by_hand_and_by_tupper(&[
        "-m",
        "64m",
        "--cpus",
        "0.5",
        "--pids-limit",
        "100",
        "--tmpfs",
        "/run:size=1m",
        "-w",
        "/srv/deep",
    ]);
}

#[test]
fn what_it_prints_makes_a_container_of_a_user_on_the_hosts_network() {
    by_hand_and_by_tupper(&["-u", "www-data", "--network", "host", "--read-only"]);
}

#[test]
fn what_it_prints_makes_a_container_without_a_user_namespace() {
    by_hand_and_by_tupper(&[
        "--userns",
        "host",
        "--init",
        "--cap-add",
        "net_admin",
        "--security-opt",
        "no-new-privileges=false",
        "--cpuset-cpus",
        "1",
        "--cpu-shares",
        "512",
        "--hugetlb",
        "2m=64m",
    ]);
}

#[test]
fn what_it_prints_makes_a_container_with_other_ids_and_capabilities() {
    by_hand_and_by_tupper(&[
        "--uidmap",
        "0:1500000000:40000",
        "--gidmap",
        "0:1600000000:100",
        "--gidmap",
        "100:1700000000:60000",
        "--cap-drop",
        "all",
        "--cap-add",
        "setuid,sys_chroot",
        "--security-opt",
        "no-new-privileges=false",
        "--security-opt",
        "unmask=/proc/acpi",
        "--security-opt",
        "mask=/etc/shadow:/usr/share",
    ]);
}
