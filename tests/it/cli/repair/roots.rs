//! The subvolumes of objects: which of them is whose, missing ones, and what is in their place.

use std::fs;

use super::{RECORD, SUBVOLUME, Scene, get, set, text, unset};
use crate::support::sh;

#[test]
fn whose_a_subvolume_is_is_recorded_again() {
    let scene = Scene::new();
    let volume = crate::support::archives::hex(b"data");
    let objects = [
        format!("snapshot snapshots/{}", scene.web),
        format!("container containers/{}", scene.container),
        format!("volume volumes/{volume}"),
        format!("layer layers/{}", scene.chains[0]),
        format!("layer layers/{}", scene.chains[1]),
    ];
    for found in &objects {
        let object = scene.fs(found.split_once(' ').expect("two words").1);
        for words in [None, Some(&b""[..]), Some(b"\xff\x1b[2J"), Some(b"uuid:12"), Some(&[b'x'; 3000])] {
            match words {
                None => unset(&object, SUBVOLUME),
                Some(bytes) => set(&object, SUBVOLUME, bytes),
            }
            scene.mended(found);
        }
        // It says another: a copy that somebody brought back, say. A layer's digest tells; of the others a person has to.
        set(
            &object,
            SUBVOLUME,
            format!("uuid:{}", "0".repeat(8) + &"-0000".repeat(3) + "-" + &"0".repeat(12)).as_bytes(),
        );
        match found.starts_with("layer") {
            true => scene.mended(found),
            false => scene.mended_by("--force", found, "force"),
        }
    }
    scene.works();
}

#[test]
fn a_foreign_subvolume_is_never_destroyed() {
    let scene = Scene::new();
    for found in [format!("layer layers/{}", scene.chains[1]), format!("snapshot snapshots/{}", scene.child)] {
        let object = scene.fs(found.split_once(' ').expect("two words").1);
        let rootfs = object.join("rootfs");
        sh("btrfs", &["subvolume", "delete", text(&rootfs)]);
        sh("btrfs", &["subvolume", "create", text(&rootfs)]);
        fs::write(rootfs.join("precious"), "data").expect("a file");
        for flags in ["", "--deep"] {
            scene.check(&format!("--repair {flags}"));
            assert_eq!(fs::read_to_string(rootfs.join("precious")).expect("a file"), "data", "{found} {flags}");
        }
        let done = scene.check("--repair --force --deep");
        assert_eq!(fs::read_to_string(rootfs.join("precious")).expect("a file"), "data", "{found}: {done:?}");
        if found.starts_with("layer") {
            assert!(done.iter().any(|line| line.starts_with(&found) && line.ends_with(" failed")), "{done:?}");
            // As the hint says: out of the store, and the image comes again.
            let aside = scene.store.disk.path().join("aside");
            sh("btrfs", &["subvolume", "snapshot", text(&rootfs), text(&aside)]);
            sh("btrfs", &["subvolume", "delete", text(&rootfs)]);
            scene.check("--repair --force");
            scene.load();
        } else {
            assert!(done.contains(&format!("{found} force repaired")), "{done:?}");
        }
        assert_eq!(scene.check("--deep"), Vec::<String>::new(), "{found}");
    }
    assert_eq!(fs::read_to_string(scene.store.disk.path().join("aside/precious")).expect("a file"), "data");
    scene.works();
}

#[test]
fn a_directory_in_the_place_of_a_subvolume_is_left_to_a_person() {
    let scene = Scene::new();
    for found in [format!("snapshot snapshots/{}", scene.child), format!("container containers/{}", scene.container)] {
        let rootfs = scene.fs(&format!("{}/rootfs", found.split_once(' ').expect("two words").1));
        sh("btrfs", &["subvolume", "delete", text(&rootfs)]);
        fs::create_dir(&rootfs).expect("a directory");
        fs::write(rootfs.join("precious"), "data").expect("a file");
        for flags in ["", "--force", "--force --deep"] {
            scene.stays(flags, &format!("{found} person found"));
        }
        fs::remove_dir_all(&rootfs).expect("removed");
        fs::write(&rootfs, "a file").expect("a file");
        scene.stays("--force", &format!("{found} person found"));
        fs::remove_file(&rootfs).expect("removed");
        // Without any, it cannot be told from one whose creation was killed.
        let kind = found.split_once(' ').expect("two words").0;
        let done = scene.check("--repair");
        assert!(done.iter().any(|line| line.starts_with(kind) && line.ends_with("repair repaired")), "{done:?}");
        assert_eq!(scene.check(""), Vec::<String>::new());
    }
}

#[test]
fn a_volume_without_its_subvolume_goes_only_by_force() {
    let scene = Scene::new();
    let object = scene.fs(&format!("volumes/{}", crate::support::archives::hex(b"data")));
    sh("btrfs", &["subvolume", "delete", text(&object.join("rootfs"))]);
    fs::write(object.join("precious"), "data").expect("a file");
    let found = format!("volume volumes/{}", crate::support::archives::hex(b"data"));
    assert_eq!(scene.check("--repair --force"), [format!("{found} force failed")], "something else is in it");
    assert_eq!(fs::read_to_string(object.join("precious")).expect("a file"), "data");
    fs::remove_file(object.join("precious")).expect("removed");
    scene.mended_by("--force", &found, "force");
    assert!(!object.exists());
    assert!(scene.store.run("start --attach box").fails(125).contains("volume data: it is gone"));
}

#[test]
fn a_container_stays_whole_without_its_image_and_a_shelf_comes_back() {
    let scene = Scene::new();
    scene.store.ok("image rm -f busybox");
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.store.ok("start --attach box");
    scene.store.ok("image rm two:1");
    fs::remove_dir(scene.fs("layers")).expect("an empty shelf");
    scene.mended("store layers");
    scene.load();
    // A record that says of whom it is made is nobody's proof: the image is gone, which is no damage.
    assert!(get(&scene.fs(&format!("containers/{}", scene.container)), RECORD).contains(&scene.busybox));
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
}
