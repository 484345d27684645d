//! Exit statuses, signals, init, and the end of a supervisor.

use std::path::Path;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::sys::wait::waitpid;
use tupper::sandbox::Spec;

use super::harness::{Root, cgroups_of, eventually, shell};

fn command(args: &[&str]) -> Spec {
    Spec { args: args.iter().map(|a| a.to_string()).collect(), ..shell("") }
}

#[test]
fn exit_statuses() {
    let root = Root::new();
    root.write("text", b"not a program");
    std::fs::write(root.path("plain"), "").expect("write");
    root.write("bin/orphan", b"#!/no/such/interpreter\n");
    let with_init = |spec: Spec| Spec { init: true, ..spec };
    let cases = [
        (shell("true"), "code 0"),
        (shell("exit 3"), "code 3"),
        (shell("exit 255"), "code 255"),
        (with_init(shell("exit 3")), "code 3"),
        (with_init(shell("kill -KILL $$")), "code 137"),
        (with_init(shell("kill -TERM $$")), "code 143"),
        (command(&["nosuch"]), "error 127 CommandNotFound run \"nosuch\": not found in PATH"),
        (command(&["/no/such"]), "error 127 CommandNotFound run \"/no/such\": no such file"),
        (command(&[""]), "error 127 CommandNotFound"),
        (command(&["orphan"]), "error 127 CommandNotFound"),
        (with_init(command(&["nosuch"])), "error 127 CommandNotFound"),
        (command(&["/etc"]), "error 126 NotExecutable run \"/etc\": permission denied"),
        (command(&["/plain"]), "error 126 NotExecutable run \"/plain\": permission denied"),
        (command(&["/text"]), "error 126 NotExecutable run \"/text\": exec format error"),
        (Spec { user: Some("nobody".into()), ..shell("true") }, "error 125 NotFound user \"nobody\""),
        (Spec { cwd: "/etc/passwd".into(), ..shell("true") }, "error 125 Io make the directory /etc/passwd: "),
    ];
    for (spec, expected) in cases {
        let (args, end) = (spec.args.clone(), root.run(spec).end);
        assert!(end.starts_with(expected), "{args:?}: {end}, not {expected}");
    }
}

#[test]
fn a_working_directory_that_the_user_may_not_enter() {
    let root = Root::new();
    std::fs::create_dir(root.path("secret")).expect("mkdir");
    std::fs::set_permissions(root.path("secret"), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("chmod");
    let spec = Spec { cwd: "/secret".into(), user: Some("33".into()), ..shell("pwd") };
    let end = root.run(spec).end;
    assert!(end.starts_with("error 125 Permission enter /secret: "), "{end}");
}

#[test]
fn signals_are_handed_on() {
    let root = Root::new();
    for init in [false, true] {
        for (signal, name) in [
            (Signal::SIGTERM, "TERM"),
            (Signal::SIGINT, "INT"),
            (Signal::SIGHUP, "HUP"),
            (Signal::SIGQUIT, "QUIT"),
            (Signal::SIGUSR1, "USR1"),
            (Signal::SIGUSR2, "USR2"),
        ] {
            let script = format!("trap 'echo got; exit 7' {name}; echo ready; while :; do sleep 0.05; done");
            let mut supervisor = root.spawn(Spec { init, ..shell(&script) });
            supervisor.wait_for("ready");
            supervisor.signal(signal);
            let outcome = supervisor.finish();
            assert_eq!((outcome.stdout.trim(), outcome.end.as_str()), ("got", "code 7 false"), "{name}, init {init}");
        }
    }
}

#[test]
fn the_third_request_to_end_is_the_last() {
    // PID 1 ignores what it does not handle: pid_namespaces(7).
    let root = Root::new();
    let mut supervisor = root.spawn(shell("echo ready; while :; do sleep 0.05; done"));
    supervisor.wait_for("ready");
    for _ in 0..2 {
        supervisor.signal_and_wait(Signal::SIGTERM);
        assert!(!cgroups_of(&supervisor.id).is_empty(), "it still runs");
    }
    supervisor.signal(Signal::SIGINT);
    assert_eq!(supervisor.finish().end, "signal 9 false");
}

#[test]
fn init_reaps_and_cannot_be_read() {
    let spec = Spec {
        init: true,
        ..shell(
            "(sleep 0.1 &) ; (sleep 0.1 &); sleep 0.4; ps -o stat,comm | grep -c ^Z; cat /proc/1/comm; \
                 (cat /proc/1/exe; cat /proc/1/environ; readlink /proc/1/fd/0) 2>&1 | grep -vc 'ermission denied'",
        )
    };
    let outcome = Root::new().run(spec);
    assert_eq!(outcome.stdout.lines().collect::<Vec<_>>(), ["0", "init", "0"], "{outcome:?}");
}

#[test]
fn what_outlives_the_command_is_killed() {
    let started = Instant::now();
    for init in [false, true] {
        let outcome = Root::new().run(Spec { init, ..shell("sleep 6000 & exit 4") });
        assert_eq!(outcome.end, "code 4 false");
    }
    assert!(started.elapsed().as_secs() < 3000);
}

#[test]
fn a_sandbox_ends_with_its_supervisor() {
    let root = Root::new();
    for spec in [shell("sleep 600"), Spec { init: true, user: Some("web".into()), ..shell("sleep 600 & sleep 600") }] {
        let mut supervisor = root.spawn(spec);
        let pid = supervisor.container_pid();
        supervisor.signal(Signal::SIGKILL);
        waitpid(supervisor.pid, None).expect("waitpid");
        eventually("the sandbox ends", || !Path::new(&format!("/proc/{pid}")).exists());
        // Nobody was left to remove them.
        for cgroup in cgroups_of(&supervisor.id) {
            eventually("its cgroups are empty", || std::fs::remove_dir(&cgroup).is_ok());
        }
    }
}

#[test]
fn a_process_with_several_threads_cannot_start_one() {
    let root = Root::new();
    let spec = shell("true");
    let rootfs = root.open();
    let facts = tupper::sandbox::Facts::gather(&spec, &rootfs, "threads", None, None, None).expect("facts");
    let plan = tupper::sandbox::plan(&spec, &facts).expect("a plan");
    std::thread::scope(|s| {
        let error = s
            .spawn(|| tupper::sandbox::start(&plan, None, None, |_| Ok(rootfs), None).expect_err("threads"))
            .join()
            .expect("join");
        assert!(error.to_string().contains("threads"), "{error}");
    });
    assert!(cgroups_of("threads").is_empty());
}
