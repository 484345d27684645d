//! The small flags of run and create.

use std::fs;

use crate::support::store::Store;

#[test]
fn variables_come_from_files() {
    let store = Store::new();
    let home = tempfile::tempdir().expect("a directory");
    let (one, two) = (home.path().join("one"), home.path().join("two"));
    fs::write(&one, "# a comment\n\n  A=1 \nB=b=c\nFROM_CALLER\nNOT_THERE\nMANY_*\nD=#x\r\n").expect("a file");
    fs::write(&two, "A=2\n").expect("a file");
    let (one, two) = (one.to_str().expect("a path"), two.to_str().expect("a path"));
    let script = "echo \"[$A][$B][$FROM_CALLER][${NOT_THERE-none}][$MANY_X$MANY_Y][$D][$E]\"";
    let run = |flags: &str| {
        let mut command = store.command(&format!("run --rm {flags} busybox sh -c"), &[script]);
        command.env("FROM_CALLER", "yes").env("MANY_X", "x").env("MANY_Y", "y");
        crate::support::command::finish(command).ok()
    };
    assert_eq!(run(&format!("--env-file {one} -e E=5")), "[1 ][b=c][yes][none][xy][#x][5]");
    assert_eq!(run(&format!("-e A=3 --env-file {one} --env-file {two}")), "[3][b=c][yes][none][xy][#x][]");
    assert_eq!(run("-e MANY_*"), "[][][][none][xy][][]");
    fs::write(two, "=2\n").expect("a file");
    let error = store.fails(125, &format!("run --rm --env-file {two} busybox true"));
    assert!(error.contains("--env-file") && error.contains("without a name"), "{error}");
    store.fails(125, "run --rm --env-file /no/such/file busybox true");
    store.ok("run -d --name web busybox sleep 600");
    assert_eq!(store.ok_with(&format!("exec --env-file {one} web sh -c"), &["echo $B"]), "b=c");
    store.ok("rm -f web");
}

#[test]
fn labels_are_the_image_s_under_the_person_s() {
    let store = Store::new();
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("labels");
    fs::write(&file, "# a comment\nfile=1\nx=file\n").expect("a file");
    let tar = crate::support::busybox();
    store.ok_with(
        "image import --name labelled --change",
        &["LABEL x=image y=image", "--change", "STOPSIGNAL SIGQUIT", tar.to_str().expect("a path")],
    );
    store.ok(&format!("create --name c --label-file {} -l y=person --label z busybox true", file.display()));
    store.ok(&format!("create --name d --label-file {} -l y=person --label z labelled true", file.display()));
    let labels = |name: &str| store.json(&format!("inspect {name}"))[0]["Config"]["Labels"].clone();
    assert_eq!(labels("c"), serde_json::json!({ "file": "1", "x": "file", "y": "person", "z": "" }));
    assert_eq!(labels("d"), serde_json::json!({ "file": "1", "x": "file", "y": "person", "z": "" }));
    store.ok("create --name e labelled true");
    assert_eq!(labels("e"), serde_json::json!({ "x": "image", "y": "image" }));
    assert_eq!(store.json("inspect e")[0]["Config"]["StopSignal"], 3);
    store.ok("create --name f --stop-signal 12 labelled true");
    assert_eq!(store.json("inspect f")[0]["Config"]["StopSignal"], 12);
    let error = store.fails(1, "create --label =x busybox true");
    assert!(error.contains("--label"), "{error}");
}

#[test]
fn the_id_is_written_to_a_file_that_is_new() {
    let store = Store::new();
    let home = tempfile::tempdir().expect("a directory");
    let file = home.path().join("id");
    let flag = format!("--cidfile {}", file.display());
    let id = store.ok(&format!("create {flag} busybox true"));
    assert_eq!(fs::read_to_string(&file).expect("the file"), id);
    let error = store.fails(1, &format!("create {flag} busybox true"));
    assert!(error.contains("cidfile") && error.contains("hint: "), "{error}");
    assert_eq!(store.lines("ps -aq").len(), 1, "none was made");
    assert_eq!(fs::read_to_string(&file).expect("the file"), id);
    for (how, kept) in [("run --rm", 1), ("run", 2), ("run -d", 3)] {
        fs::remove_file(&file).expect("it was there");
        store.ok(&format!("{how} {flag} busybox true"));
        assert_eq!(fs::read_to_string(&file).expect("the file").len(), 64, "{how}");
        assert_eq!(store.lines("ps -aq").len(), kept, "{how}");
        store.fails(125, &format!("{how} {flag} busybox true"));
        assert_eq!(store.lines("ps -aq").len(), kept, "{how}, and nothing is left of another");
    }
    fs::remove_file(&file).expect("it was there");
    store.fails(1, &format!("create {flag} --name a --name b busybox true").replace("--name a ", "-m 2k "));
    assert!(!file.exists(), "no container, no file");
    store.fails(1, "create --cidfile /no/such/directory/id busybox true");
}

#[test]
fn devices_are_those_that_were_given() {
    let store = Store::new();
    let run = |flags: &str, script: &str| store.run_with(&format!("run --rm {flags} busybox sh -c"), &[script]);
    // One that nobody has by default, and that can be opened without doing anything: /dev/loop-control.
    let node = std::env::temp_dir().join(format!("tupper-node-{}", std::process::id()));
    let node = node.to_str().expect("a path");
    let made = std::process::Command::new("mknod").args(["-m", "0666", node, "c", "10", "237"]).status();
    assert!(made.expect("mknod").success());
    let (reads, writes) = (": </dev/given", ": >/dev/given");
    for userns in ["", "--userns host "] {
        assert_eq!(run(userns, "ls /dev/given").status, 1, "it has no such device by itself");
        let kind = run(&format!("{userns}--device {node}:/dev/a/b:rw"), "stat -c '%F %t:%T %U' /dev/a/b");
        assert_eq!(kind.ok(), "character special file a:ed root");
        // What may be done with it, although root inside could do all by the node.
        for (access, may_read, may_write) in
            [("rwm", true, true), ("r", true, false), ("w", false, true), ("m", false, false)]
        {
            let device = format!("{userns}--device {node}:/dev/given:{access}");
            assert_eq!(run(&device, reads).status == 0, may_read, "{device}");
            assert_eq!(run(&device, writes).status == 0, may_write, "{device}");
            assert_eq!(run(&device, "echo x >/dev/null && cat /dev/null").ok(), "", "the usual ones as ever");
        }
    }
    std::fs::remove_file(node).expect("the node");
    for (flags, status) in [
        ("--device /no/such/device", 125),
        ("--device /etc/passwd:/dev/x", 125),
        ("--device /dev/zero:/mnt/x", 125),
        ("--device /dev/zero:/dev/x:rx", 125),
    ] {
        assert_eq!(run(flags, "true").status, status, "{flags}");
    }
}

#[test]
fn a_directory_of_devices_is_all_of_them() {
    let store = Store::new();
    let home = tempfile::tempdir().expect("a directory");
    fs::create_dir(home.path().join("deep")).expect("a directory");
    fs::write(home.path().join("file"), "no device").expect("a file");
    for (name, minor) in [("zero", "5"), ("deep/full", "7")] {
        let path = home.path().join(name);
        let made = std::process::Command::new("mknod").arg(path).args(["c", "1", minor]).status();
        assert!(made.expect("mknod").success());
    }
    let script = "cd /dev/all && find . -type c | sort | tr '\\n' ' '; ls | wc -l";
    let flags = format!("run --rm --device {}:/dev/all busybox sh -c", home.path().display());
    assert_eq!(store.ok_with(&flags, &[script]), "./deep/full ./zero 2");
    let made = store.json(&format!("inspect {}", store.ok("create --device /dev/zero:/dev/z:rw busybox true")));
    let wanted = serde_json::json!([
        { "PathOnHost": "/dev/zero", "PathInContainer": "/dev/z", "CgroupPermissions": "rw" }
    ]);
    assert_eq!(made[0]["HostConfig"]["Devices"], wanted);
}

#[test]
fn shared_memory_has_a_size() {
    let store = Store::new();
    let size = |flags: &str| {
        store.ok_with(&format!("run --rm {flags} busybox sh -c"), &["df -k /dev/shm | tail -1 | awk '{print $2}'"])
    };
    assert_eq!(size(""), "65536");
    assert_eq!(size("--shm-size 1m"), "1024");
    assert_ne!(size("--shm-size 0"), "65536");
    assert_eq!(
        store.json(&format!("inspect {}", store.ok("create --shm-size 2m busybox true")))[0]["HostConfig"]["ShmSize"],
        2 << 20
    );
}
