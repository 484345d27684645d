//! Whatever the disk says, it is told in one line without control characters, and nothing panics.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use super::{RECORD, SUBVOLUME, Scene, changed, read_only, said, set};
use crate::support::command::finish;

const NAME: &[u8] = b"\x1b[31m\xff\xc2\x9b2J\nx";

#[test]
fn names_with_escapes_are_not_printed_raw() {
    let scene = Scene::new();
    let name = Path::new(OsStr::from_bytes(NAME));
    for shelf in ["images", "layers", "snapshots", "containers", "volumes", "networks", "names", "tags"] {
        fs::create_dir(scene.fs(shelf).join(name)).expect("a directory");
    }
    let rootfs = scene.fs(&format!("layers/{}/rootfs", scene.chains[0]));
    read_only(&rootfs, false);
    fs::write(rootfs.join(name), "x").expect("a file");
    fs::write(scene.fs(&format!("snapshots/{}/rootfs", scene.web)).join(name), "x").expect("a file");
    for flags in ["", "--deep", "--repair", "--repair --dry-run", "--repair --deep"] {
        for format in ["json", "table"] {
            let done = scene.store.run(&format!("store check {flags} --format {format}"));
            assert_eq!(done.status, 1, "{done}");
            let raw = |c: char| c.is_control() && c != '\n';
            assert!(!done.stdout.contains(raw) && !done.stderr.contains(raw), "{flags}: {done}");
            match format {
                "json" => assert!(said(&done).len() >= 8, "{done}"),
                _ => assert!(done.stdout.lines().count() >= 9, "{done}"),
            }
        }
    }
}

#[test]
fn attributes_of_any_bytes_do_no_harm() {
    let scene = Scene::new();
    let volume = crate::support::archives::hex(b"data");
    let objects = [
        format!("images/{}", scene.two),
        format!("layers/{}", scene.chains[0]),
        format!("snapshots/{}", scene.web),
        format!("containers/{}", scene.container),
        format!("volumes/{volume}"),
    ];
    let deep = "[".repeat(3000);
    let long = format!("{{\"version\":1,\"name\":\"{}\"}}", "a".repeat(3500));
    let huge = r#"{"version":1,"size":18446744073709551615,"chain":"x","entries":-1,"created":9e99,"labels":{"a":{}}}"#;
    let loops =
        format!(r#"{{"version":1,"diff_id":"sha256:{0}","parent":"{0}","size":1,"entries":1}}"#, scene.chains[0]);
    let values: [&[u8]; 7] =
        [b"", &[0; 3000], &[0xff; 3900], deep.as_bytes(), long.as_bytes(), huge.as_bytes(), loops.as_bytes()];
    for value in values {
        for object in &objects {
            set(&scene.fs(object), RECORD, value);
            if !object.starts_with("images") {
                set(&scene.fs(object), SUBVOLUME, value);
            }
        }
        for flags in ["", "--deep", "--repair --dry-run --deep"] {
            let found = scene.check(flags);
            assert!(found.len() >= objects.len(), "{found:?}");
        }
        let done = scene.check("--repair --deep");
        assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
        assert_eq!(scene.check("--deep"), Vec::<String>::new());
    }
    scene.works();
}

#[test]
fn a_look_that_fails_makes_no_damage() {
    let scene = Scene::new();
    let clean = scene.state();
    let mut failed = 0;
    for descriptors in (4..40).step_by(3) {
        let tupper = scene.store.command("store check --repair --force --deep", &[]);
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={descriptors}")).arg(tupper.get_program()).args(tupper.get_args());
        command.env("TUPPER_POOL", "off");
        let done = finish(command);
        assert!(!done.stderr.contains("panicked"), "{done}");
        failed += u32::from(done.status != 0);
        let changes = changed(&clean, &scene.state());
        assert!(
            changes.iter().all(|path| path.starts_with("staging")),
            "{descriptors} descriptors: {changes:?} {done}"
        );
    }
    assert!(failed > 2, "it was never short of them");
    assert_eq!(scene.check("--repair --deep"), Vec::<String>::new());
    scene.works();
}
