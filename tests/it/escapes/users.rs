//! Ids: root inside is nobody outside, whatever of the host it gets at.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

use super::attack::{Target, text};
use crate::support::disk::scratch;
use crate::support::eventually;

/// Were a process to get out, it would own nothing there: what is root's outside is not root's inside.
#[test]
fn root_inside_is_nobody_outside() {
    let host = scratch();
    let secret = host.path().join("secret");
    fs::write(&secret, "the host's\n").expect("a file");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).expect("chmod");
    fs::set_permissions(host.path(), fs::Permissions::from_mode(0o755)).expect("chmod");
    let target = Target::new();
    let attack = "cat /v/secret; echo x > /v/secret; echo x > /v/new; chmod 666 /v/secret; chown 0:0 /v/secret; id -u";
    // noidmap shows the host's files as they would be to who got out.
    let done = target.sh(&format!("-v {}:/v:noidmap", text(host.path())), attack).ok();
    assert_eq!(done, "0", "root, who may nothing");
    let found = fs::metadata(&secret).expect("the file");
    assert_eq!((found.mode() & 0o777, found.uid(), found.len()), (0o600, 0, 11));
    assert!(!host.path().join("new").exists());
    // The attack is real: with the host's ids it is the file's owner.
    let done = target.sh(&format!("--userns host -v {}:/v:noidmap", text(host.path())), attack).ok();
    assert_eq!(done, "the host's\n0");
    assert_eq!(fs::metadata(&secret).expect("the file").mode() & 0o777, 0o666);
}

/// Two containers have different ids: the one's root owns nothing of the other's.
#[test]
fn root_of_one_container_is_nobody_in_another() {
    let shared = scratch();
    fs::set_permissions(shared.path(), fs::Permissions::from_mode(0o1777)).expect("chmod");
    let target = Target::new();
    let flags = format!("-v {}:/v:noidmap", text(shared.path()));
    let script = "echo mine > /v/file; chmod 600 /v/file; mv /v/file /v/ready; exec sleep 1000";
    let (first, _) = target.create(&flags, script);
    let mut running = target.command(&format!("start -a {first}"), &[]).spawn().expect("tupper");
    let ready = shared.path().join("ready");
    eventually("it has written", Duration::from_secs(60), || ready.exists());
    assert_ne!(fs::metadata(&ready).expect("the file").uid(), 0);
    let done = target.sh(&flags, "cat /v/ready; rm -f /v/ready; echo x > /v/ready; chmod 666 /v/ready; echo end");
    target.ok(&format!("rm -f {first}"));
    assert_eq!(running.wait().expect("wait").code(), Some(137));
    assert_eq!(done.stdout, "end\n", "{done}");
    assert_eq!(fs::read_to_string(ready).expect("the file"), "mine\n");
}
