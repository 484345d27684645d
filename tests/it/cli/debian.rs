//! What a person does in a Debian: install a package, become another user, ping, run into the limits.

use crate::support::command::Done;
use crate::support::debian;
use crate::support::store::Store;

fn store() -> Store {
    let store = Store::new();
    store.import_debian();
    store
}

/// `run --rm FLAGS debian bash -c SCRIPT`, with the recipe's packages at /packages.
fn bash(store: &Store, flags: &[&str], script: &str) -> Done {
    let packages = format!("{}:/packages:ro", debian().with_file_name("packages").display());
    store.run_with("run --rm -v", &[&[packages.as_str()], flags, &["debian", "bash", "-c", script]].concat())
}

#[test]
fn packages_are_installed_and_ping_works_as_any_user() {
    let store = store();
    let script = "set -e; dpkg -i /packages/*.deb >/tmp/log 2>&1 || { cat /tmp/log; exit 1; }; \
                  dpkg --status iputils-ping | grep ^Status; getcap /usr/bin/ping; \
                  ping -c 1 127.0.0.1 | grep -c '64 bytes'; \
                  su -s /bin/bash www-data -c 'id -un; ping -c 1 127.0.0.1' | grep -E -c 'www-data|64 bytes'";
    let done = bash(&store, &[], script).ok();
    let expected = ["Status: install ok installed", "/usr/bin/ping cap_net_raw=ep", "1", "2"];
    assert_eq!(done.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn root_can_become_another_user_and_not_the_reverse() {
    let store = store();
    let script = "echo root:secret | chpasswd; useradd -m me; su - me -c 'id -u; pwd'; \
                  su me -c 'echo secret | su -c \"id -u\" root' 2>&1 | tail -n 1";
    let lines = bash(&store, &[], script).status(0).stdout;
    let lines: Vec<&str> = lines.lines().collect();
    assert_eq!(lines[..2], ["1000", "/home/me"]);
    assert!(!lines[2..].contains(&"0"), "a set-user-id program made root of a user: {lines:?}");
    // Where somebody wants that, it is one flag away.
    let allowed =
        "echo root:secret | chpasswd; useradd -m me; su me -c 'echo secret | su -c \"id -u\" root' 2>/dev/null";
    for flags in [
        &["--security-opt", "no-new-privileges=false"][..],
        &["--security-opt", "no-new-privileges:false", "--userns", "host"],
    ] {
        assert_eq!(bash(&store, flags, allowed).ok(), "0", "{flags:?}");
    }
}

#[test]
fn files_belong_to_whom_the_package_says() {
    let store = store();
    let script = "stat -c '%U:%G %a' /etc/shadow /var/mail /tmp; touch /x; chown games:mail /x; stat -c %U:%G /x; \
                  find / -xdev -nouser -o -xdev -nogroup | head -n 3";
    assert_eq!(bash(&store, &[], script).ok(), "root:shadow 640\nroot:mail 2775\nroot:root 1777\ngames:mail");
}

#[test]
fn a_fork_bomb_and_a_memory_hog_are_held_and_reported() {
    let store = store();
    // bash tries again and again, and gives up.
    let done = bash(&store, &["--pids-limit", "40"], "for i in $(seq 100); do sleep 100 & done").status(254);
    assert!(done.stderr.contains("fork") && done.stderr.contains("--pids-limit"), "{done}");
    let hog = "head -c 100m /dev/zero | tail -c 90m | wc -c";
    let done = bash(&store, &["-m", "32m"], hog);
    assert!(done.stderr.contains("memory limit") && done.stderr.contains("-m"), "{done}");
}
