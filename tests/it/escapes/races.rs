//! Names in a container's root or volume that are exchanged, without a pause, with links and directories of the
//! attacker's, while tupper starts containers on them: CVE-2018-15664, CVE-2019-16884, CVE-2019-19921, CVE-2021-30465,
//! CVE-2023-27561, CVE-2023-28642, CVE-2024-23651, CVE-2025-52881.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::attack::{Exchange, Target, text};
use crate::support::canary::Canary;
use crate::support::disk::scratch;

/// What the canary's file holds, and no container may read.
const SECRET: &str = "root:x:0:0:::";

/// The race is real: a careless runtime, which looks whether a name is a link before it uses it, writes outside.
fn assert_real(directory: &Path, link: &Path, outside: &Path) {
    Exchange::between(directory, link).until(|| {
        let checked = fs::symlink_metadata(directory).is_ok_and(|found| found.is_dir());
        checked && fs::write(directory.join("escaped"), "x").is_ok() && outside.join("escaped").exists()
    });
    fs::remove_file(outside.join("escaped")).expect("it was written");
}

#[test]
fn the_exchange_catches_the_careless() {
    let dir = scratch();
    for name in ["plain", "outside"] {
        fs::create_dir(dir.path().join(name)).expect("mkdir");
    }
    symlink(dir.path().join("outside"), dir.path().join("link")).expect("a link");
    assert_real(&dir.path().join("plain"), &dir.path().join("link"), &dir.path().join("outside"));
}

/// CVE-2021-30465, CVE-2024-23651: a volume's place lies in another volume, which another container writes to.
#[test]
fn the_places_of_volumes_are_not_led_out() {
    let canary = Canary::new();
    let (shared, second) = (scratch(), scratch());
    let (place, link) = (shared.path().join("place"), shared.path().join("link"));
    fs::create_dir_all(place.join("etc")).expect("mkdir");
    symlink(canary.path(), &link).expect("a link");
    let target = Target::new();
    let flags = format!("-v {}:/shared -v {}:/shared/place/etc", text(shared.path()), text(second.path()));
    let script = "cat /shared/place/etc/passwd /shared/link/etc/passwd; echo x > /shared/place/etc/mine; \
                  echo x > /shared/link/etc/escaped; true";
    let (id, _) = target.create(&flags, script);
    Exchange::between(&place, &link).during(60, || {
        let done = target.run(&format!("start -a {id}"));
        assert!(!done.stdout.contains(SECRET), "{done}");
        // While the name is a link it leads to a place in the root, which is made; and a name can change too often.
        assert!(done.status == 0 || done.status == 125, "{done}");
        assert!(!canary.missing().exists(), "{done}");
    });
    canary.assert_untouched();
}

/// CVE-2019-16884, CVE-2025-52881: the place of a volume becomes one in /proc, where it would stand in for the kernel's.
#[test]
fn no_volume_is_led_over_proc() {
    let (shared, second) = (scratch(), scratch());
    let (place, link) = (shared.path().join("place"), shared.path().join("link"));
    fs::create_dir_all(place.join("sys")).expect("mkdir");
    symlink("/proc", &link).expect("a link");
    fs::create_dir(second.path().join("kernel")).expect("mkdir");
    let target = Target::new();
    let flags = format!("-v {}:/shared -v {}:/shared/place/sys", text(shared.path()), text(second.path()));
    let (id, _) = target.create(&flags, "cat /proc/sys/kernel/ostype; grep -c ' /proc/sys ' /proc/self/mountinfo");
    let (mut started, mut refused) = (0, 0);
    Exchange::between(&place, &link).during(60, || {
        let done = target.run(&format!("start -a {id}"));
        match done.status {
            0 => {
                assert_eq!(done.stdout, "Linux\n1\n", "its own read-only one alone: {done}");
                started += 1;
            }
            _ => {
                let error = done.fails(125);
                refused += u32::from(error.contains("leads into /proc"));
            }
        }
    });
    assert!(started > 0 && refused > 0, "the exchange never came in between: {started} started, {refused} refused");
}

/// The container's own places: each is now a directory, now a link to the host's directory of that name.
#[test]
fn the_roots_own_places_are_not_led_out() {
    for name in ["etc", "dev", "proc", "sys", "work", "v"] {
        let canary = Canary::new();
        let volume = scratch();
        let target = Target::with(|root| {
            fs::create_dir_all(root.join(name)).expect("mkdir");
            symlink(canary.path().join("etc"), root.join("link")).expect("a link");
        });
        let flags = format!("-w /work/deep -v {}:/v/deep --tmpfs /v/tmp", text(volume.path()));
        let script = "cat /etc/passwd /link/passwd | grep -F 'root:x:0:0:::'; cd /proc && [ -e self/status ] && \
                      wc -c < keys && (echo 1 > sysrq-trigger) 2>&- && echo written; echo end";
        let (id, root) = target.create(&flags, script);
        let mut started = 0;
        Exchange::between(root.join(name), root.join("link")).during(20, || {
            let done = target.run(&format!("start -a {id}"));
            match done.status {
                0 => started += 1,
                status => assert_eq!(status, 125, "{name}: {done}"),
            }
            let answer = done.stdout.trim_end();
            assert!(["", "end", "0\nend"].contains(&answer), "{name}: {done}");
            assert!(!canary.missing().exists(), "{name}: {done}");
        });
        canary.assert_untouched();
        assert!(started > 0 || ["proc", "dev", "sys"].contains(&name), "{name}: none started");
    }
}

/// CVE-2019-16884, CVE-2019-19921, CVE-2023-27561, CVE-2023-28642: two directories, one of which becomes /proc. What is
/// masked, made read-only or set there must be the kernel's, whichever name it has by then.
#[test]
fn proc_is_masked_and_set_whatever_its_name_becomes() {
    for name in ["proc", "sys"] {
        let canary = Canary::new();
        let target = Target::with(|root| {
            let fake = root.join("fake");
            fs::create_dir_all(fake.join("sys/net/ipv4")).expect("mkdir");
            fs::create_dir_all(fake.join("firmware")).expect("mkdir");
            for file in ["keys", "kcore", "timer_list", "interrupts", "sysrq-trigger"] {
                fs::write(fake.join(file), "").expect("a file");
            }
            for directory in ["bus", "fs", "irq", "acpi", "asound", "scsi"] {
                fs::create_dir(fake.join(directory)).expect("mkdir");
            }
            // A parameter of the kernel's, written there before the root is one, would reach the host's file.
            symlink(canary.path().join("etc/passwd"), fake.join("sys/net/ipv4/ping_group_range")).expect("a link");
            fs::rename(fake.join("sys/net/ipv4"), root.join("ipv4")).expect("rename");
            symlink("/etc/ipv4", fake.join("sys/net/ipv4")).expect("a link");
        });
        let script = "for d in /proc /sys /fake; do cd $d; [ -e self/status ] || continue; \
                      cat keys timer_list interrupts | wc -c; (echo 1 > sysrq-trigger) 2>&- && echo written; \
                      (echo x > sys/kernel/domainname) 2>&- && echo written; done; echo end";
        let (id, root) = target.create("", script);
        let mut masked = 0;
        Exchange::between(root.join(name), root.join("fake")).during(100, || {
            let done = target.run(&format!("start -a {id}"));
            assert!(done.status == 0 || done.status == 125, "{name}: {done}");
            let answer = done.stdout.trim_end();
            assert!(["", "end", "0\nend", "0\n0\nend"].contains(&answer), "{name}: {done}");
            masked += u32::from(answer.starts_with('0'));
            canary.assert_untouched();
        });
        assert!(masked > 0, "{name}: none started");
    }
}

/// CVE-2018-15664, CVE-2024-9676: what is read of the root from outside is the root's, or nothing.
#[test]
fn users_are_not_looked_up_in_the_hosts_files() {
    let host = scratch();
    fs::write(host.path().join("passwd"), "stolen:x:0:0::/:/bin/sh\n").expect("a file");
    let target = Target::with(|root| {
        fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").expect("a file");
        symlink(host.path(), root.join("link")).expect("a link");
    });
    let (id, root) = target.create("-u stolen", "id -u");
    Exchange::between(root.join("etc"), root.join("link")).during(60, || {
        let error = target.fails(125, &format!("start -a {id}"));
        assert!(error.contains("not in the root's /etc/passwd"), "{error}");
    });
}

/// The attacker is inside and exchanges while tupper works on its root from outside, and removes it.
#[test]
fn a_container_that_exchanges_is_listed_copied_and_removed() {
    let canary = Canary::new();
    let target = Target::with(|root| {
        fs::create_dir_all(root.join("swap/plain")).expect("mkdir");
        symlink(canary.path(), root.join("swap/link")).expect("a link");
        // For the 10,000: what is exchanged holds subvolumes, which removal has to walk to.
        fs::create_dir_all(root.join("swap/other/deep/etc")).expect("mkdir");
    });
    for _ in 0..10 {
        let (id, root) = target.create(
            "",
            "/attack/swap 10000 /swap/plain /swap/link && \
                                            exec /attack/swap 0 /swap/plain /swap/link /swap/other /swap/plain",
        );
        crate::support::sh("btrfs", &["--quiet", "subvolume", "create", text(&root.join("swap/plain/etc"))]);
        let output = scratch();
        let log = fs::File::create(output.path().join("log")).expect("a file");
        let mut running = target
            .command(&format!("start -a {id}"), &[])
            .stdout(log)
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("tupper");
        crate::support::eventually("it has exchanged 10,000 times", std::time::Duration::from_secs(120), || {
            fs::read_to_string(output.path().join("log")).is_ok_and(|log| log.matches("swapping").count() == 2)
        });
        target.ok("ps");
        target.ok(&format!("inspect {id}"));
        let copy = target.ok(&format!("snapshot create {id}"));
        target.ok(&format!("snapshot rm {copy}"));
        target.ok(&format!("rm -f {id}"));
        assert_eq!(running.wait().expect("wait").code(), Some(137));
        canary.assert_untouched();
    }
    let left: Vec<String> = target.disk.subvolumes();
    assert!(!left.iter().any(|path| path.contains("containers/")), "{left:?}");
}

/// CVE-2018-15664: what is copied, and where to, becomes a link to the host's while it is copied.
#[test]
fn cp_is_not_led_out() {
    let canary = Canary::new();
    let target = Target::new();
    let (id, root) = target.create("", "true");
    let (place, link) = (root.join("work/place"), root.join("work/link"));
    fs::create_dir_all(place.join("etc")).expect("mkdir");
    fs::write(place.join("etc/passwd"), "inside").expect("a file");
    symlink(canary.path(), &link).expect("a link");
    let host = scratch();
    fs::create_dir_all(host.path().join("in/etc")).expect("mkdir");
    fs::write(host.path().join("in/etc/escaped"), "x").expect("a file");
    let (mut met, mut missed) = (0, 0);
    Exchange::between(&place, &link).during(200, || {
        for from in ["work/place", "work/place/etc", "work/place/etc/passwd", "work/link/etc/passwd"] {
            let out = host.path().join("out");
            let done = target.run_with("cp --overwrite", &[&format!("{id}:/{from}"), text(&out)]);
            for found in walkdir::WalkDir::new(&out).into_iter().flatten().filter(|found| found.file_type().is_file()) {
                let content = fs::read_to_string(found.path()).expect("a file");
                assert!(!content.contains(SECRET), "{from}: {done}");
            }
            *if done.status == 0 { &mut met } else { &mut missed } += 1;
            let _ = fs::remove_dir_all(&out).or_else(|_| fs::remove_file(&out));
        }
        for to in ["work/place", "work/place/etc", "work/link/etc/"] {
            target.run_with("cp --overwrite", &[text(&host.path().join("in/etc")), &format!("{id}:/{to}")]);
            assert!(!canary.missing().exists(), "{to}");
        }
    });
    assert!(met > 0 && missed > 0, "the exchange never came in between: {met} copied, {missed} not");
    canary.assert_untouched();
}
