//! What layers hold: changed by somebody, and recipes that tell no more.

use std::fs;
use std::path::Path;

use super::{Scene, changed, read_only, text};
use crate::support::sh;

/// What somebody may have done in the root of the lower layer, in the words of a shell; and whether its archive can be put
/// together all the same.
const CHANGES: [(&str, bool); 12] = [
    ("echo other > etc/small", true),
    ("chmod 4755 etc/big", true),
    ("chown 7:8 etc/gone", true),
    ("rm etc/gone", true),
    ("mkdir new && echo x > new/file", true),
    ("ln -sfn etc/big link", true),
    ("setfattr -n user.x -v y etc/big", true),
    ("touch -d @5 etc/small", true),
    ("rm -r etc && mkdir etc", false),
    ("printf X | dd of=etc/big bs=1 seek=150000 conv=notrunc", false),
    ("printf X | dd of=etc/big bs=1 seek=150000 conv=notrunc; touch -d @1000000 etc/big", false),
    ("truncate -s 1000 etc/big", false),
];

fn spoil(rootfs: &Path, change: &str, sealed_again: bool) {
    read_only(rootfs, false);
    sh("sh", &["-ec", &format!("cd {} && {change}", text(rootfs))]);
    if sealed_again {
        read_only(rootfs, true);
    }
}

#[test]
fn a_layer_that_was_changed_is_put_back_and_the_change_is_kept() {
    let scene = Scene::new();
    let found = format!("layer layers/{}", scene.chains[0]);
    let rootfs = scene.fs(&format!("layers/{}/rootfs", scene.chains[0]));
    let whole = scene.state();
    for (change, _) in CHANGES.iter().filter(|(_, can)| *can) {
        for (sealed_again, force) in [(false, false), (true, false), (true, true)] {
            spoil(&rootfs, change, sealed_again);
            let planted = scene.state();
            assert!(!changed(&whole, &planted).is_empty());
            let plain = scene.check("");
            assert_eq!(plain.is_empty(), sealed_again, "only its flag tells a plain look: {plain:?}");
            let told = scene.check("--deep");
            assert!(told.contains(&format!("{found} repair found")), "{change}: {told:?}");
            assert!(changed(&planted, &scene.state()).is_empty(), "a deep look changes nothing");
            let flags = if force { "--force" } else { "" };
            let done = scene.check(&format!("--repair --deep {flags}"));
            assert_eq!(done, [format!("{found} repair repaired")], "{change}");
            assert_eq!(scene.check("--deep"), Vec::<String>::new(), "{change}");
            let ids = scene.store.lines("snapshot ls -q --no-trunc");
            let kept: Vec<&String> = ids.iter().filter(|id| **id != scene.web && **id != scene.child).collect();
            assert_eq!(kept.len(), usize::from(!force));
            if let [kept] = kept[..] {
                // What was there is in the snapshot, entry by entry.
                let of = |state: &std::collections::BTreeMap<std::path::PathBuf, String>, at: &str| {
                    let below = |(path, entry): (&std::path::PathBuf, &String)| {
                        Some((path.strip_prefix(at).ok()?.to_path_buf(), entry.clone()))
                    };
                    state.iter().filter_map(below).collect::<Vec<_>>()
                };
                let was = of(&planted, &format!("layers/{}/rootfs", scene.chains[0]));
                assert!(was.len() > 4);
                assert_eq!(of(&scene.state(), &format!("snapshots/{kept}/rootfs")), was);
                scene.store.ok(&format!("snapshot rm {kept}"));
            }
            let differ = changed(&whole, &scene.state());
            assert!(differ.iter().all(|path| path.ends_with(&scene.chains[0])), "only its record: {differ:?}");
        }
    }
    scene.works();
}

#[test]
fn a_layer_on_another_is_put_back_too_and_one_that_was_imported() {
    let scene = Scene::new();
    let busybox = fs::read_dir(scene.fs("layers")).expect("layers").map(|entry| entry.expect("an entry").file_name());
    let busybox = busybox.map(|name| name.into_string().expect("text")).find(|name| !scene.chains.contains(name));
    let whole = scene.state();
    for (chain, change) in [
        (&scene.chains[1], "echo other > etc/more"),
        (&scene.chains[1], "echo back > etc/gone"),
        (&scene.chains[1], "chmod 700 etc/big"),
        (&scene.chains[1], "rm hard"),
        (&busybox.expect("its layer"), "rm bin/ls && mkdir -p x/y/z"),
    ] {
        let rootfs = scene.fs(&format!("layers/{chain}/rootfs"));
        spoil(&rootfs, change, true);
        scene.mended_by("--deep --force", &format!("layer layers/{chain}"), "repair");
        let differ = changed(&whole, &scene.state());
        assert!(differ.iter().all(|path| path.parent() == Some(Path::new("layers"))), "{chain}: {differ:?}");
    }
    scene.works();
}

#[test]
fn two_layers_of_a_chain_are_put_back_in_one_repair() {
    let scene = Scene::new();
    for chain in &scene.chains {
        spoil(&scene.fs(&format!("layers/{chain}/rootfs")), "echo other > etc/small", true);
    }
    let found = |outcome: &str| {
        let mut lines: Vec<String> =
            scene.chains.iter().map(|chain| format!("layer layers/{chain} repair {outcome}")).collect();
        lines.sort();
        lines
    };
    assert_eq!(scene.check("--deep"), found("found"));
    assert_eq!(scene.check("--deep --repair --force"), found("repaired"));
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.works();
}

#[test]
fn a_layer_whose_content_is_lost_goes_with_its_images_by_force() {
    let scene = Scene::new();
    let found = format!("layer layers/{}", scene.chains[0]);
    let rootfs = scene.fs(&format!("layers/{}/rootfs", scene.chains[0]));
    for (change, _) in CHANGES.iter().filter(|(_, can)| !*can) {
        spoil(&rootfs, change, true);
        assert_eq!(scene.check("--deep"), [format!("{found} force found")], "{change}");
        scene.stays("--deep", &format!("{found} force found"));
        let told = scene.store.run("store check --deep").status(1);
        assert!(told.stdout.contains("localhost/two:1"), "which image has to come again: {told}");
        let done = scene.check("--repair --deep --force");
        assert!(done.contains(&format!("{found} force repaired")), "{done:?}");
        assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
        assert!(!rootfs.exists() && !scene.store.ok("image ls").contains("two"));
        scene.load();
        assert_eq!(scene.check("--deep"), Vec::<String>::new());
        // Without a deep look its flag is all that tells, and it is verified before it is trusted again.
        spoil(&rootfs, change, false);
        assert_eq!(scene.check("--repair"), [format!("{found} repair failed")]);
        let done = scene.check("--repair --force");
        assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
        scene.load();
    }
    scene.works();
}

#[test]
fn a_layer_that_was_only_made_writable_is_sealed_again() {
    let scene = Scene::new();
    let whole = scene.state();
    for chain in &scene.chains {
        read_only(&scene.fs(&format!("layers/{chain}/rootfs")), false);
        scene.mended(&format!("layer layers/{chain}"));
        let rootfs = scene.fs(&format!("layers/{chain}/rootfs"));
        assert_eq!(sh("btrfs", &["property", "get", text(&rootfs), "ro"]), "ro=true");
    }
    assert!(changed(&whole, &scene.state()).is_empty());
    scene.works();
}

#[test]
fn a_layer_without_a_recipe_is_read_and_not_vouched_for() {
    let scene = Scene::new();
    let summary = |flags: &str| scene.store.run(&format!("store check --deep {flags}")).stderr;
    assert!(summary("").contains("verified 3 layers by their digests; read "), "{}", summary(""));
    // Of before there were any; and of an archive of which none could be made.
    fs::remove_file(scene.fs(&format!("layers/{}/recipe", scene.chains[0]))).expect("a recipe");
    fs::write(scene.fs(&format!("layers/{}/recipe", scene.chains[1])), "").expect("a recipe");
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    assert!(
        summary("").contains("verified 1 layers by their digests, 2 without a recipe by the disk's checksums only"),
        "{}",
        summary("")
    );
    let found = format!("layer layers/{}", scene.chains[0]);
    read_only(&scene.fs(&format!("layers/{}/rootfs", scene.chains[0])), false);
    scene.stays("", &format!("{found} repair failed"));
    let done = scene.check("--repair --force");
    assert!(done.contains(&format!("{found} repair repaired")), "{done:?}");
    assert!(!scene.store.ok("image ls").contains("two"), "nobody can vouch for it");
    scene.load();
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.works();
}

#[test]
fn a_recipe_that_is_damaged_is_done_without_by_force() {
    let scene = Scene::new();
    let recipe = scene.fs(&format!("layers/{}/recipe", scene.chains[1]));
    let found = format!("layer layers/{}", scene.chains[1]);
    let whole = fs::read(&recipe).expect("a recipe");
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0x55;
    let hostile =
        zstd::encode_all(&[b"tupper recipe 1\n".as_slice(), &[2], &[0xff; 100]].concat()[..], 3).expect("zstd");
    let endless = zstd::encode_all(&[b"tupper recipe 1\n".as_slice(), &[0], &[0xff, 0xff, 0xff, 0xff]].concat()[..], 3);
    let spoilt = [
        whole[..whole.len() - 3].to_vec(),
        whole[..20].to_vec(),
        flipped,
        b"no recipe".to_vec(),
        vec![0xff; 5000],
        hostile,
        endless.expect("zstd"),
    ];
    for bytes in spoilt {
        fs::write(&recipe, &bytes).expect("written");
        assert_eq!(scene.check(""), Vec::<String>::new(), "a plain look does not read it");
        scene.mended_by("--deep --force", &found, "force");
        assert_eq!(fs::metadata(&recipe).expect("a recipe").len(), 0);
        let made = scene.store.ok("snapshot create two:1");
        scene.store.ok(&format!("snapshot rm {made}"));
    }
    let error = scene.store.run("image save -o /dev/null two:1").fails(1);
    assert!(error.contains("how its archive was is not known"), "{error}");
    // One that tells of files which are not there, or of others.
    let piece = |path: &str, length: u64| {
        let path_length = u32::try_from(path.len()).expect("short").to_le_bytes();
        let piece =
            [&[1][..], &path_length, path.as_bytes(), &0u64.to_le_bytes(), &length.to_le_bytes(), &[3]].concat();
        zstd::encode_all(&[b"tupper recipe 1\n".as_slice(), &piece].concat()[..], 3).expect("zstd")
    };
    for (path, length) in [("none", 9), ("one", u64::MAX), ("../../../etc/passwd", 9), ("etc", 9), ("\u{1b}[31m", 9)] {
        fs::write(&recipe, piece(path, length)).expect("written");
        scene.stays("--deep", &format!("{found} force found"));
    }
    fs::write(&recipe, whole).expect("written");
    fs::rename(&recipe, recipe.with_extension("aside")).expect("renamed");
    for strange in ["mkdir recipe", "ln -s /etc/passwd recipe", "mkfifo recipe"] {
        sh("sh", &["-ec", &format!("cd {} && {strange}", text(recipe.parent().expect("a directory")))]);
        assert_eq!(scene.check("--deep"), [format!("{found} force found")], "{strange}");
        sh("rm", &["-r", text(&recipe)]);
    }
    fs::rename(recipe.with_extension("aside"), &recipe).expect("renamed");
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.works();
}
