//! What the caller's credentials and the image's files could bring along.

use std::process::Command;

use super::attack::{Target, on_the_host, text};
use crate::support::command::finish;
use crate::support::sh;

/// CVE-2022-29162: inheritable capabilities make permitted ones of every file that asks for them.
#[test]
fn capabilities_of_the_caller_are_not_inherited() {
    let target = Target::with(|root| {
        sh("setcap", &["cap_net_raw,cap_sys_ptrace,cap_chown+ei", text(&root.join("attack/ping"))]);
    });
    let status = ["sh", "-c", "grep -E 'Cap(Inh|Amb)' /proc/self/status"];
    let generous = |command: &Command| {
        let mut caller = Command::new("setpriv");
        caller.args(["--inh-caps=+net_raw,+sys_ptrace,+chown", "--ambient-caps=+net_raw,+sys_ptrace,+chown"]);
        caller.arg(command.get_program()).args(command.get_args());
        finish(caller).ok()
    };
    let mut own = Command::new(status[0]);
    own.args(&status[1..]);
    let real = generous(&own);
    assert!(real.matches("0000000000082001").count() == 2, "the attack is real: {real}");
    for flags in ["", "-u nobody", "--init"] {
        let run = target.command(&format!("run --rm {flags} attack"), &status);
        assert_eq!(generous(&run), "CapInh:\t0000000000000000\nCapAmb:\t0000000000000000", "{flags}");
        let ping = generous(&target.command(&format!("run --rm {flags} attack /attack/ping"), &[]));
        assert!(ping.contains("raw: Operation not permitted"), "{ping}");
    }
}

/// Files of the image that would raise privileges: setuid, and capabilities of their own.
#[test]
fn files_of_the_image_raise_no_privileges() {
    let target = Target::with(|root| {
        sh("chmod", &["6755", text(&root.join("attack/whoami"))]);
        sh("setcap", &["cap_net_raw,cap_sys_admin+eip", text(&root.join("attack/ping"))]);
    });
    let kept = target.sh("", "stat -c %a /attack/whoami").ok();
    assert_eq!(kept, "6755", "the attack is real: the bits arrive");
    for flags in ["-u nobody", "-u nobody --init"] {
        assert_eq!(target.run(&format!("run --rm {flags} attack /attack/whoami")).ok(), "65534");
        let ping = target.run(&format!("run --rm {flags} attack /attack/ping")).ok();
        assert!(ping.contains("raw: Operation not permitted"), "{ping}");
    }
    // The attack is real: without the protection nobody becomes root, inside.
    let raised = target.ok("run --rm -u nobody --security-opt no-new-privileges=false attack /attack/whoami");
    assert_eq!(raised, "0");
    // Capabilities outside the bounding set are not for root, either.
    let bounds = target.sh("", "cp /attack/ping /p; grep CapBnd /proc/self/status").ok();
    assert_eq!(bounds, "CapBnd:\t00000000800405fb");
}

/// open_by_handle_at(2) finds any file of a filesystem, given one place on it: other containers', and the store's.
#[test]
fn files_of_other_containers_are_not_opened_by_handle() {
    let target = Target::new();
    let (other, root) = target.create("", "true");
    std::fs::write(root.join("secret"), "the other's\n").expect("a file");
    let handle = on_the_host("handle", &["get", text(&root.join("secret"))]).ok();
    let open = |place: &str| format!("handle open {place} {handle}");
    let top = target.disk.path();
    let words: Vec<String> = open(text(&top)).split(' ').skip(1).map(str::to_string).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    assert_eq!(on_the_host("handle", &words).ok(), "the other's", "the attack is real");
    for flags in ["", "-u nobody", "--init"] {
        let done = target.run(&format!("run --rm {flags} attack /attack/{}", open("/"))).status(1);
        assert_eq!(done.stdout, "open_by_handle_at: Operation not permitted\n", "{done}");
    }
    target.ok(&format!("rm {other}"));
}

/// Given the capabilities on purpose: they hold over what the container owns, and only with the host's ids over the host.
#[test]
fn added_capabilities_hold_over_the_container_alone() {
    let target = Target::new();
    assert_eq!(target.ok("run --rm --cap-add net_raw attack /attack/ping"), "ping: done\nraw: done\npacket: done");
    let (other, root) = target.create("", "true");
    std::fs::write(root.join("secret"), "the other's\n").expect("a file");
    let handle = on_the_host("handle", &["get", text(&root.join("secret"))]).ok();
    let open = |flags: &str| {
        let flags = format!("{flags} --cap-add dac_read_search --security-opt seccomp=unconfined");
        target.run(&format!("run --rm {flags} attack /attack/handle open / {handle}")).stdout
    };
    assert_eq!(open(""), "open_by_handle_at: Operation not permitted\n");
    assert_eq!(open("--userns host"), "the other's\n", "the attack is real");
    target.ok(&format!("rm {other}"));
}
