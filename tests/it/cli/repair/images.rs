//! Images: their configs, and layers that are missing.

use std::fs;

use super::{ID, RECORD, Scene, changed, text, unset};
use crate::support::sh;

#[test]
fn an_image_without_its_config_goes_by_force_and_comes_again() {
    let scene = Scene::new();
    let found = format!("image images/{}", scene.two);
    let config = scene.fs(&format!("images/{}/config.json", scene.two));
    let whole = fs::read(&config).expect("a config");
    let another = [&whole[..], b"\n"].concat();
    let spoilt: [Option<&[u8]>; 6] =
        [None, Some(b""), Some(&whole[..whole.len() / 2]), Some(&another), Some(b"[]"), Some(&[0xff; 100])];
    for bytes in spoilt {
        match bytes {
            Some(bytes) => fs::write(&config, bytes).expect("written"),
            None => fs::remove_file(&config).expect("removed"),
        }
        let planted = scene.state();
        for flags in ["", "--deep", "--repair --dry-run --force"] {
            let told = scene.check(flags);
            assert!(told.contains(&format!("{found} force found")), "{told:?}");
        }
        let done = scene.check("--repair --force");
        assert!(done.contains(&format!("{found} force repaired")), "{done:?}");
        assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
        assert_eq!(scene.check("--deep"), Vec::<String>::new());
        let of_image = |path: &std::path::Path| {
            scene.chains.iter().chain([&scene.two]).any(|id| text(path).contains(id)) || path.starts_with("tags")
        };
        let changes = changed(&planted, &scene.state());
        assert!(changes.iter().all(|path| of_image(path)), "{changes:?}");
        assert!(!scene.store.ok("image ls").contains("two"));
        scene.load();
    }
    // Whoever has only a directory there has no image, and it may be pulled again.
    fs::create_dir(scene.fs(&format!("images/{ID}"))).expect("a directory");
    scene.mended_by("--force", &format!("image images/{ID}"), "force");
    scene.works();
}

#[test]
fn a_layer_that_is_missing_comes_again_with_its_image_or_the_image_goes() {
    let scene = Scene::new();
    let whole = scene.state();
    let found = format!("image images/{}", scene.two);
    for chain in &scene.chains {
        let layer = scene.fs(&format!("layers/{chain}"));
        for by_load in [true, false] {
            sh("btrfs", &["subvolume", "delete", text(&layer.join("rootfs"))]);
            // What is left of it is in the way of the next load.
            let done = scene.check("--repair");
            assert!(done.contains(&format!("layer layers/{chain} repair repaired")), "{done:?}");
            assert!(!layer.exists());
            if by_load {
                scene.stays("", &format!("{found} force found"));
            } else {
                let done = scene.check("--repair --force");
                assert!(done.contains(&format!("{found} force repaired")), "{done:?}");
                assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
            }
            scene.load();
            assert_eq!(scene.check("--deep"), Vec::<String>::new());
        }
    }
    let differ = changed(&whole, &scene.state());
    assert!(!differ.iter().any(|path| text(path).contains("/rootfs") || path.starts_with("snapshots")), "{differ:?}");
    scene.works();
}

#[test]
fn no_layer_goes_as_garbage_while_a_record_above_it_is_lost() {
    let scene = Scene::new();
    let [lower, upper] = [0, 1].map(|n| scene.fs(&format!("layers/{}", scene.chains[n])));
    unset(&upper, RECORD);
    let done = scene.store.run("store gc");
    assert_eq!((done.status, lower.exists(), upper.exists()), (1, true, true), "{done}");
    assert_eq!(scene.check("--repair"), [format!("layer layers/{} repair repaired", scene.chains[1])]);
    scene.works();
}

#[test]
fn a_layer_that_nothing_tells_of_and_no_image_needs_goes_by_force() {
    let scene = Scene::new();
    let layer = scene.fs(&format!("layers/{ID}"));
    fs::create_dir(&layer).expect("a directory");
    sh("btrfs", &["subvolume", "create", text(&layer.join("rootfs"))]);
    fs::write(layer.join("rootfs/precious"), "data").expect("a file");
    let done = scene.check("--repair --force");
    assert!(done.iter().any(|line| line.starts_with(&format!("layer layers/{ID}"))), "{done:?}");
    assert_eq!(fs::read_to_string(layer.join("rootfs/precious")).expect("a file"), "data", "nobody recorded it");
}
