//! image load: archives and layouts in, layers shared, interrupted and gone on with.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tupper::image::{self, Step};
use tupper::layer::Limits;
use tupper::transport::{Platform, Stored};

use crate::scratch::Tar;
use crate::support::archives::{Files, chains, config, hex};
use crate::support::canary::Canary;
use crate::support::command::wait;
use crate::support::store::Store;
use crate::support::{busybox, eventually, sh};

/// A base, two layers that go on from it in different ways, and one on top.
fn layers() -> [Vec<u8>; 4] {
    [
        Tar::default()
            .directory("etc")
            .file("etc/base", b"base")
            .file("etc/gone", b"x")
            .directory("d")
            .file("d/x", b"1")
            .end(),
        Tar::default().directory("etc").file("etc/.wh.gone", b"").file("etc/one", b"1").end(),
        Tar::default().directory("d").file("d/.wh..wh..opq", b"").file("d/two", b"2").end(),
        Tar::default().file("top", b"3").end(),
    ]
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// The chain ids of the layers in a store.
pub(super) fn stored(store: &Store) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(store.root().join("fs/layers"))
        .map(|entries| entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect())
        .unwrap_or_default();
    names.sort();
    names
}

pub(super) fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// Nothing is under way, left or damaged.
#[track_caller]
pub(super) fn assert_clean(store: &Store) {
    assert_eq!(store.ok("store check"), "");
    assert_eq!(fs::read_dir(store.root().join("fs/staging")).expect("staging").count(), 0);
}

#[track_caller]
fn load(store: &Store, path: &Path) -> Vec<String> {
    store.ok_with("image load -i", &[text(path)]).lines().map(str::to_string).collect()
}

/// What a snapshot of an image holds, as `find` tells.
fn tree(store: &Store, image: &str) -> String {
    let name = store.ok_with("snapshot create", &[image]);
    let path = store.ok_with("snapshot path", &[&name]);
    let found = sh("find", &[&path, "-mindepth", "1", "-printf", "%P "]);
    store.ok_with("snapshot rm", &[&name]);
    let mut names: Vec<&str> = found.split_whitespace().collect();
    names.sort_unstable();
    names.join(" ")
}

#[test]
fn images_with_the_same_base_store_it_once() {
    let store = Store::empty();
    let [base, one, two, top] = layers();
    let (first, second) = ([&base[..], &one], [&base[..], &two, &top]);
    let archive = Files::docker(&[(&["one:1", "localhost/uno:latest"], &first), (&["quay.io/a/two:2"], &second)]);
    let path = archive.save(&store.disk.path(), "saved.tar");
    assert_eq!(
        load(&store, &path),
        ["Loaded image: localhost/one:1", "Loaded image: localhost/uno:latest", "Loaded image: quay.io/a/two:2"]
    );
    let (ones, twos) = (chains(&first), chains(&second));
    let all = sorted([ones.clone(), twos[1..].to_vec()].concat());
    assert_eq!(stored(&store), all);
    assert_eq!(tree(&store, "localhost/uno"), "d d/x etc etc/base etc/one");
    assert_eq!(tree(&store, "quay.io/a/two:2"), "d d/two etc etc/base etc/gone top");
    let details = store.json("image inspect quay.io/a/two:2");
    assert_eq!(details[0]["Id"], json!(hex(&serde_json::to_vec(&config(&second)).expect("JSON"))));
    assert_eq!(details[0]["RootFS"]["Layers"].as_array().expect("an array").len(), 3);
    assert_clean(&store);

    // Again: the same image, and nothing is made.
    let inodes = |store: &Store| -> Vec<u64> {
        let layers = store.root().join("fs/layers");
        stored(store).iter().map(|name| fs::metadata(layers.join(name)).expect("a layer").ino()).collect()
    };
    let before = inodes(&store);
    load(&store, &path);
    assert_eq!(inodes(&store), before);

    store.ok("image rm quay.io/a/two:2");
    assert_eq!(stored(&store), sorted(ones));
    assert_eq!(tree(&store, "localhost/uno"), "d d/x etc etc/base etc/one");
    load(&store, &path);
    assert_eq!(stored(&store), all);
    for name in ["localhost/uno", "one:1", "quay.io/a/two:2"] {
        store.ok_with("image rm", &[name]);
    }
    assert_eq!(stored(&store), [""; 0]);
    assert_clean(&store);
}

#[test]
fn every_form_is_the_same_image() {
    let store = Store::empty();
    let [base, one, ..] = layers();
    let (dir, both) = (store.disk.path(), [&base[..], &one]);
    let docker = Files::docker(&[(&["localhost/x:1"], &both)]).save(&dir, "docker.tar");
    let plain = Files::layout(Some("x:1"), &both, <[u8]>::to_vec);
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, bytes).and_then(|()| encoder.finish()).expect("to memory")
    };
    let gzipped = Files::layout(Some("localhost/x:1"), &both, gzip);
    let zstd = Files::layout(Some("localhost/x:1"), &both, |bytes| zstd::encode_all(bytes, 3).expect("to memory"));
    let layout = dir.join("layout");
    zstd.write(&layout);
    let oci = plain.save(&dir, "oci.tar");
    let mut sources =
        vec![docker.clone(), oci.clone(), gzipped.save(&dir, "gzip.tar"), zstd.save(&dir, "zstd.tar"), layout];
    for (program, args) in [("gzip", &["-k"][..]), ("zstd", &["-qk"]), ("xz", &["-k"]), ("bzip2", &["-k"])] {
        sh(program, &[args, &[text(&docker)]].concat());
    }
    sources.extend(["gz", "zst", "xz", "bz2"].map(|end| dir.join(format!("docker.tar.{end}"))));
    let mut ids = Vec::new();
    for source in &sources {
        assert_eq!(load(&store, source), ["Loaded image: localhost/x:1"], "{}", source.display());
        ids.push(store.ok("image ls --no-trunc -q"));
        assert_eq!(tree(&store, "x:1"), "d d/x etc etc/base etc/one", "{}", source.display());
        store.ok("image rm x:1");
    }
    // From a file that can be read anywhere, from one that cannot, and from a pipe.
    for line in ["image load", "load -q -i -", "load -i /dev/stdin"] {
        assert_eq!(store.run_reading(line, File::open(&oci).expect("a file")).ok(), "Loaded image: localhost/x:1");
        let mut cat = std::process::Command::new("cat").arg(&docker).stdout(Stdio::piped()).spawn().expect("cat");
        let mut command = store.command(line, &[]);
        command.stdin(cat.stdout.take().expect("piped"));
        assert_eq!(crate::support::command::finish(command).ok(), "Loaded image: localhost/x:1");
        cat.wait().expect("cat");
        ids.push(store.ok("image ls --no-trunc -q"));
        store.ok("image rm x:1");
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    assert_clean(&store);
}

#[test]
fn an_image_without_a_name_is_told_by_its_id_and_a_loaded_one_runs() {
    let store = Store::empty();
    let base = fs::read(busybox()).expect("a tarball");
    let top = Tar::default().file("hello", b"hello from above\n").end();
    let layers = [&base[..], &top];
    let path = Files::layout(None, &layers, <[u8]>::to_vec).save(&store.disk.path(), "oci.tar");
    let id = hex(&serde_json::to_vec(&config(&layers)).expect("JSON"));
    assert_eq!(load(&store, &path), [format!("Loaded image: sha256:{id}")]);
    assert_eq!(store.ok(&format!("run --rm {id} cat /hello")), "hello from above");
    // A layer is imported as what it is in an image, too: the same chain, stored once.
    store.ok_with("image import --name base", &[text(&busybox())]);
    assert_eq!(stored(&store), sorted(chains(&layers)));
    store.ok(&format!("image rm {id}"));
    assert_eq!(stored(&store), chains(&layers[..1]));
    assert_eq!(load(&store, &path), [format!("Loaded image: sha256:{id}")]);
    store.ok("image rm base");
    assert_eq!(store.ok(&format!("run --rm {id} cat /hello")), "hello from above");
    assert_clean(&store);
}

#[test]
fn of_several_platforms_the_one_that_is_asked_for() {
    let store = Store::empty();
    let [base, one, two, _] = layers();
    let image = |files: &mut Files, layer: &[u8]| {
        let part = Files::layout(None, &[layer], <[u8]>::to_vec);
        let index: serde_json::Value = serde_json::from_slice(part.get("index.json")).expect("JSON");
        part.0
            .into_iter()
            .filter(|(name, _)| name.starts_with("blobs"))
            .for_each(|(name, blob)| files.set(&name, blob));
        index["manifests"][0].clone()
    };
    let mut files = Files::default();
    let described = |mut descriptor: serde_json::Value, os: &str, architecture: &str| {
        descriptor["platform"] = json!({ "os": os, "architecture": architecture });
        descriptor
    };
    let here = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    let manifests = [
        described(image(&mut files, &one), "linux", "s390x"),
        described(image(&mut files, &base), "linux", here),
        described(image(&mut files, &two), "unknown", "unknown"),
    ];
    // An index within the layout's own, as buildx writes it, and all at once in that, as others do.
    let nested = json!({ "schemaVersion": 2, "manifests": manifests });
    let mut nested = files.blob("application/vnd.oci.image.index.v1+json", nested.to_string().into_bytes());
    nested["annotations"] =
        json!({ "io.containerd.image.name": "localhost/many:1", "org.opencontainers.image.ref.name": "1" });
    for (number, index) in [vec![nested], manifests.to_vec()].into_iter().enumerate() {
        files.index(&index);
        let path = files.save(&store.disk.path(), "many.tar");
        load(&store, &path);
        assert_eq!(stored(&store), chains(&[&base]), "{number}");
        let id = store.ok("image ls -q --no-trunc");
        store.ok(&format!("image rm {id}"));
        store.ok_with("image load --platform linux/s390x -i", &[text(&path)]);
        assert_eq!(stored(&store), chains(&[&one]), "{number}");
        let id = store.ok("image ls -q --no-trunc");
        store.ok(&format!("image rm {id}"));
    }
    files.index(&[]);
    let missing = store.run_with("image load -i", &[text(&files.save(&store.disk.path(), "none.tar"))]).fails(1);
    assert!(missing.contains("lists no image"), "{missing}");
}

/// Everything is refused with one error line, and the store is as if nobody had tried.
#[test]
fn what_is_not_what_it_says_is_refused_without_a_trace() {
    let store = Store::empty();
    let canary = Canary::new();
    let [base, one, two, _] = layers();
    let all = [&base[..], &one, &two];
    let docker = Files::docker(&[(&["x:1"], &all)]);
    let oci = Files::layout(Some("x:1"), &all, <[u8]>::to_vec);
    let outside = canary.path().join("etc/passwd");
    let up = format!("{}{}", "../".repeat(30), text(&outside).trim_start_matches('/'));
    let layer = |n: usize| format!("blobs/sha256/{}", hex(all[n]));
    let manifest = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut files = oci.clone();
        let index: serde_json::Value = serde_json::from_slice(files.get("index.json")).expect("JSON");
        let name = index["manifests"][0]["digest"].as_str().expect("a digest").replace("sha256:", "blobs/sha256/");
        let mut document = serde_json::from_slice(files.get(&name)).expect("JSON");
        change(&mut document);
        let descriptor = files.blob("application/vnd.oci.image.manifest.v1+json", document.to_string().into_bytes());
        files.index(&[descriptor]);
        files
    };
    let config_of = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut value = config(&all);
        change(&mut value);
        let text = value.to_string().into_bytes();
        let name = format!("{}.json", hex(&text));
        let mut files = docker.clone().change("manifest.json", |list| list[0]["Config"] = json!(name));
        files.set(&name, text);
        files
    };
    let index_of = |descriptors: &[serde_json::Value]| {
        let mut files = oci.clone();
        files.index(descriptors);
        files
    };
    let spoilt = |name: &str, bytes: Vec<u8>| {
        let mut files = oci.clone();
        files.set(name, bytes);
        files
    };
    let zeros = "0".repeat(64);
    let descriptor = |digest: &str, size: i64| json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size });
    let list = |change: &dyn Fn(&mut serde_json::Value)| docker.clone().change("manifest.json", change);
    let mut huge = docker.clone();
    huge.set("huge.json", vec![b' '; (4 << 20) + 1]);
    let huge = huge.change("manifest.json", |list| list[0]["Config"] = json!("huge.json"));
    let mut bad_tar = docker.clone();
    bad_tar.set(&format!("{}/layer.tar", chains(&all)[2]), b"no tar at all".repeat(100));

    let cases: Vec<(&str, Files, &str)> = vec![
        ("config outside", list(&|l| l[0]["Config"] = json!(text(&outside))), "is not in the archive"),
        ("config up", list(&|l| l[0]["Config"] = json!(up)), "is not in the archive"),
        ("layer outside", list(&|l| l[0]["Layers"][1] = json!(text(&outside))), "is not in the archive"),
        ("layer up", list(&|l| l[0]["Layers"][1] = json!(up)), "is not in the archive"),
        ("a directory as layer", list(&|l| l[0]["Layers"][1] = json!("")), "is not in the archive"),
        ("a layer too few", list(&|l| drop(l[0]["Layers"].as_array_mut().expect("an array").pop())), "the manifest 2"),
        ("layers swapped", list(&|l| l[0]["Layers"].as_array_mut().expect("an array").swap(1, 2)), "its diff id is"),
        ("a layer twice", list(&|l| l[0]["Layers"][2] = l[0]["Layers"][1].clone()), "its diff id is"),
        ("no list", docker.clone().change("manifest.json", |l| *l = json!(["a"])), "not docker's list"),
        ("an empty list", docker.clone().change("manifest.json", |l| *l = json!([])), "lists no image"),
        (
            "too many images",
            docker.clone().change("manifest.json", |l| *l = json!(vec![l[0].clone(); 1025])),
            "more than 1024",
        ),
        ("a name that is none", list(&|l| l[0]["RepoTags"] = json!(["../../x:1"])), "image name"),
        ("a huge config", huge, "larger than 4194304 bytes"),
        ("a config that is none", config_of(&|c| *c = json!({ "rootfs": [] })), "the config is no image's"),
        (
            "no layers",
            config_of(&|c| c["rootfs"]["diff_ids"] = json!([])).change("manifest.json", |l| l[0]["Layers"] = json!([])),
            "has no layers",
        ),
        ("a diff id that is none", config_of(&|c| c["rootfs"]["diff_ids"][1] = json!("sha256:../../x")), "not sha256:"),
        (
            "another diff id",
            config_of(&|c| c["rootfs"]["diff_ids"][2] = json!(format!("sha256:{zeros}"))),
            "its diff id is",
        ),
        ("a layer that is no tar", bad_tar, "not a tar header"),
        (
            "a wrong config digest",
            manifest(&|m| m["config"]["digest"] = json!(format!("sha256:{}", hex(all[0])))),
            "descriptor says",
        ),
        ("a config that lies", spoilt(&layer(2), two.iter().rev().copied().collect()), "its digest is"),
        ("a layer that is cut", spoilt(&layer(2), two[..two.len() - 512].to_vec()), "shorter than its descriptor says"),
        ("a layer that goes on", spoilt(&layer(2), [&two[..], &[0; 512]].concat()), "longer than its descriptor says"),
        (
            "a layer that is not there",
            manifest(&|m| m["layers"][1]["digest"] = json!(format!("sha256:{zeros}"))),
            "is not in the archive",
        ),
        ("a wrong size", manifest(&|m| m["layers"][1]["size"] = json!(7)), "longer than its descriptor says"),
        (
            "a layer of another kind",
            manifest(&|m| m["layers"][1]["mediaType"] = json!("application/wasm")),
            "media type",
        ),
        (
            "an artifact",
            manifest(&|m| m["config"]["mediaType"] = json!("application/vnd.cncf.helm.config.v1+json")),
            "artifact",
        ),
        (
            "an index that calls itself an image",
            manifest(&|m| m["mediaType"] = json!("application/vnd.oci.image.index.v1+json")),
            "media type",
        ),
        ("an image that is an index, too", manifest(&|m| m["manifests"] = json!([])), "both"),
        ("a digest that leads out", index_of(&[descriptor("sha256:../../../etc/passwd", 10)]), "not an index"),
        ("a digest that is short", index_of(&[descriptor("sha256:abc", 10)]), "not an index"),
        ("a digest of another kind", index_of(&[descriptor(&format!("sha512:{zeros}{zeros}"), 10)]), "not sha256:"),
        ("a huge manifest", index_of(&[descriptor(&format!("sha256:{zeros}"), 5 << 20)]), "larger than 4194304 bytes"),
        ("a negative size", index_of(&[descriptor(&format!("sha256:{zeros}"), -1)]), "not an index"),
        (
            "a manifest that is not there",
            index_of(&[descriptor(&format!("sha256:{zeros}"), 10)]),
            "is not in the archive",
        ),
        ("nothing that is known", Files(vec![("a".into(), b"b".to_vec())]), "no image archive"),
        ("docker's oldest", Files(vec![("repositories".into(), b"{}".to_vec())]), "hint: it is of the kind"),
    ];
    for (what, files, why) in &cases {
        let path = files.save(&store.disk.path(), "spoilt.tar");
        let error = store.run_with("image load -i", &[text(&path)]).fails(1);
        assert!(error.contains(why), "{what}: {error}");
        assert_eq!(stored(&store), [""; 0], "{what}");
        assert_eq!(store.ok("image ls -q"), "", "{what}");
        assert_clean(&store);
        // In a directory, too: names lead out of it as little.
        if files.0.iter().all(|(name, _)| name != "repositories") {
            let dir = store.disk.path().join("spoilt");
            files.write(&dir);
            store.run_with("image load -i", &[text(&dir)]).fails(1);
            assert_eq!(stored(&store), [""; 0], "{what}");
            fs::remove_dir_all(&dir).expect("removable");
        }
    }
    assert_clean(&store);
    canary.assert_untouched();
}

#[test]
fn indexes_within_indexes_end() {
    let store = Store::empty();
    let mut all = Files::layout(None, &[&layers()[0]], <[u8]>::to_vec);
    let index: serde_json::Value = serde_json::from_slice(all.get("index.json")).expect("JSON");
    let mut at = index["manifests"][0].clone();
    for _ in 0..5 {
        let index = json!({ "schemaVersion": 2, "manifests": [at] });
        at = all.blob("application/vnd.oci.image.index.v1+json", index.to_string().into_bytes());
    }
    all.index(&[at]);
    let error = store.run_with("image load -i", &[text(&all.save(&store.disk.path(), "deep.tar"))]).fails(1);
    assert!(error.contains("more than 4 indexes within each other"), "{error}");
    assert_clean(&store);
}

#[test]
fn members_are_links_twice_there_or_cut() {
    let store = Store::empty();
    let [base, one, ..] = layers();
    let both = [&base[..], &one];
    let docker = Files::docker(&[(&["localhost/x:1"], &both)]);
    let dir = store.disk.path();
    let save = |name: &str, tar: Tar| {
        let path = dir.join(name);
        fs::write(&path, tar.end()).expect("a file");
        path
    };
    let file = |tar: Tar, name: &str, as_name: &str| tar.file(as_name, docker.get(name));
    let chain = chains(&both);
    let config = docker.0.iter().map(|(name, _)| name).find(|name| name.ends_with(".json") && *name != "manifest.json");
    let config = config.expect("a config").clone();
    let rest = |tar: Tar| file(file(tar, &config, &config), "manifest.json", "manifest.json");
    let (first, second) = (format!("{}/layer.tar", chain[0]), format!("{}/layer.tar", chain[1]));

    // An old `docker save` has a layer that two images share once, and symlinks to it.
    let linked = rest(file(file(Tar::default(), &first, "elsewhere/base.tar"), &second, "second.tar"))
        .symlink(&first, "../elsewhere/base.tar")
        .hard_link(&second, "second.tar");
    assert_eq!(load(&store, &save("linked.tar", linked)), ["Loaded image: localhost/x:1"]);
    assert_eq!(tree(&store, "x:1"), "d d/x etc etc/base etc/one");
    store.ok("image rm x:1");

    let up = format!("{}etc/passwd", "../".repeat(30));
    let whole = || file(file(Tar::default(), &first, &first), &second, &second);
    for (name, tar, why) in [
        ("loop", rest(file(Tar::default(), &first, &first)).symlink(&second, "layer.tar"), "a loop of links"),
        ("out", rest(file(Tar::default(), &first, &first)).symlink(&second, "/etc/passwd"), "is not in the archive"),
        ("up", rest(file(Tar::default(), &first, &first)).symlink(&second, &up), "is not in the archive"),
        ("device", rest(file(Tar::default(), &first, &first)).entry(b'6', &second, "", b""), "is no plain file"),
        ("twice", file(rest(whole()), &second, &second), "is in the archive twice"),
        ("as another, too", rest(whole()).symlink("manifest.json", "x"), "is in the archive twice"),
        ("long", rest(whole()).file("n".repeat(600), b""), "larger than 512 bytes"),
    ] {
        let error = store.run_with("image load -i", &[text(&save("odd.tar", tar))]).fails(1);
        assert!(error.contains(why), "{name}: {error}");
        assert_clean(&store);
    }
    let whole = docker.tar();
    for length in [0, 100, 512, 1500, whole.len() / 2, whole.len() - 1536] {
        let path = dir.join("cut.tar");
        fs::write(&path, &whole[..length]).expect("a file");
        store.run_with("image load -i", &[text(&path)]).fails(1);
        store.run_reading("image load", File::open(&path).expect("a file")).fails(1);
    }
    let error = store.run_with("image load -i", &["/dev/null"]).fails(1);
    assert!(error.contains("the archive is empty"), "{error}");
    assert_eq!(stored(&store), [""; 0]);
    assert_clean(&store);
}

/// `umoci insert` closes no archive: neither the blocks at the end are there nor what fills up the last file.
#[test]
fn a_layer_may_lack_its_end_when_its_digest_is_right() {
    let store = Store::empty();
    let whole = Tar::default().directory("d").file("d/f", b"text").end();
    for (number, length) in [0, 512, 1024 + 4, 1536, 2048, whole.len()].into_iter().enumerate() {
        let layer = &whole[..length];
        let path = Files::layout(Some("localhost/x:1"), &[&layers()[0], layer], <[u8]>::to_vec)
            .save(&store.disk.path(), "open.tar");
        load(&store, &path);
        let expected = if number < 2 { "d d/x etc etc/base etc/gone" } else { "d d/f d/x etc etc/base etc/gone" };
        assert_eq!(tree(&store, "x:1"), expected, "{length}");
    }
    for length in [1, 511, 513, 1024 + 3, 1024 + 5, 1535, 1537, 2047] {
        let files = Files::layout(Some("localhost/x:1"), &[&layers()[0], &whole[..length]], <[u8]>::to_vec);
        let error = store.run_with("image load -i", &[text(&files.save(&store.disk.path(), "cut.tar"))]).fails(1);
        assert!(error.ends_with("the archive is truncated"), "{length}: {error}");
    }
    assert_clean(&store);
}

/// Enough layers for somebody to come in between.
pub(super) fn many() -> Vec<Vec<u8>> {
    (0..40).map(|n| Tar::default().file(format!("f{n}"), &vec![b'x'; 100_000]).end()).collect()
}

pub(super) fn interrupted(store: &Store, path: &Path, signal: Signal) -> i32 {
    let mut command = store.command("image load -i", &[text(path)]);
    let child: Child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper");
    let pid = Pid::from_raw(child.id().try_into().expect("a pid"));
    eventually("some layers are there", Duration::from_secs(60), || stored(store).len() >= 5);
    kill(pid, signal).expect("a signal");
    wait(child, "tupper load")
}

#[test]
fn what_an_interrupted_load_has_made_the_next_goes_on_with() {
    let store = Store::empty();
    let layers = many();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let path = Files::docker(&[(&["localhost/x:1"], &layers)]).save(&store.disk.path(), "many.tar");
    let inode = |name: &String| fs::metadata(store.root().join("fs/layers").join(name)).expect("a layer").ino();
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGKILL, 137), (Signal::SIGTERM, 143)] {
        assert_eq!(interrupted(&store, &path, signal), status);
        let made = stored(&store);
        assert!(made.len() >= 5 && made.len() < 40, "{}", made.len());
        if signal != Signal::SIGKILL {
            assert_clean(&store);
        }
        let inodes: Vec<u64> = made.iter().map(inode).collect();
        let gone = store.lines("store gc");
        assert!(gone.iter().all(|line| line.starts_with("draft ")), "{gone:?}");
        assert_eq!(stored(&store), made, "the next load will want them");
        load(&store, &path);
        assert_eq!(made.iter().map(inode).collect::<Vec<_>>(), inodes);
        assert_eq!(stored(&store), sorted(chains(&layers)));
        assert_clean(&store);
        store.ok("image rm x:1");
        assert_eq!(stored(&store), [""; 0]);
    }
}

#[test]
fn what_nobody_goes_on_with_is_garbage_after_a_week() {
    let store = Store::empty();
    let layers = many();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let path = Files::docker(&[(&["localhost/x:1"], &layers)]).save(&store.disk.path(), "many.tar");
    assert_eq!(interrupted(&store, &path, Signal::SIGINT), 130);
    let made = stored(&store);
    // An image in between that goes takes nothing of it along.
    store.ok_with("image import --name box", &[text(&busybox())]);
    store.ok("image rm box");
    assert_eq!(stored(&store), made);
    assert_eq!(store.ok("store gc"), "");
    for name in &made {
        let layer = store.root().join("fs/layers").join(name);
        let record = sh("getfattr", &["--only-values", "-n", "user.tupper.record", text(&layer)]);
        let mut record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
        assert!(record["unfinished"].is_string(), "{record}");
        record["unfinished"] = json!("2020-01-01T00:00:00Z");
        sh("setfattr", &["-n", "user.tupper.record", "-v", &record.to_string(), text(&layer)]);
    }
    assert_eq!(store.run("store check").status, 1);
    assert_eq!(store.lines("store gc").len(), made.len());
    assert_eq!(stored(&store), [""; 0]);
    assert_clean(&store);
}

#[test]
fn an_image_that_is_at_fault_takes_its_layers_along_but_not_those_of_others() {
    let store = Store::empty();
    let [base, one, two, _] = layers();
    let good = Files::docker(&[(&["localhost/good:1"], &[&base, &one])]).save(&store.disk.path(), "good.tar");
    load(&store, &good);
    let before = stored(&store);
    let all = [&base[..], &one, &two];
    let mut bad = Files::docker(&[(&["localhost/bad:1"], &all)]);
    bad.set(&format!("{}/layer.tar", chains(&all)[2]), Tar::default().file("other", b"").end());
    let bad = bad.save(&store.disk.path(), "bad.tar");
    let error = store.run_with("image load -i", &[text(&bad)]).fails(1);
    assert!(error.contains("layer 3 of 3") && error.contains("its diff id is"), "{error}");
    assert_eq!(stored(&store), before);
    assert_clean(&store);
}

#[test]
fn several_at_once_unpack_each_layer_once() {
    let store = Store::empty();
    let layers = many();
    let all: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let path = Files::docker(&[(&["localhost/x:1"], &all)]).save(&store.disk.path(), "many.tar");
    store.ok("store init");
    let unpacked: Arc<Mutex<Vec<usize>>> = Arc::default();
    let there = Arc::new(AtomicUsize::new(0));
    let ids: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    let opened = tupper::store::Store::open(store.root()).expect("a store").expect("made");
                    let file = File::open(&path).expect("a file");
                    let stored = Stored::in_archive(file, &Platform::host(), &Limits::default()).expect("an archive");
                    let (unpacked, there) = (Arc::clone(&unpacked), Arc::clone(&there));
                    let progress: image::LayerProgress = Arc::new(move |number, step| match step {
                        Step::Unpacked => unpacked.lock().expect("whole").push(number),
                        Step::There => drop(there.fetch_add(1, Ordering::Relaxed)),
                        Step::Read(..) => {}
                    });
                    let added = image::add(&opened, &stored.offers[0], &stored.blobs, &Limits::default(), &progress);
                    added.expect("added").to_string()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    let mut unpacked = unpacked.lock().expect("whole").clone();
    unpacked.sort_unstable();
    assert_eq!(unpacked, (0..40).collect::<Vec<_>>(), "each once");
    assert_eq!(there.load(Ordering::Relaxed), 3 * 40);
    assert_clean(&store);

    // In processes of their own, and somebody removes it again and again.
    store.ok("image rm x:1");
    let start = || store.command("image load -i", &[text(&path)]).stdout(Stdio::null()).spawn().expect("tupper");
    let children: Vec<Child> = (0..4).map(|_| start()).collect();
    for _ in 0..20 {
        let _ = store.run("image rm -f x:1");
        store.ok("store gc");
    }
    for child in children {
        assert_eq!(wait(child, "tupper load"), 0);
    }
    load(&store, &path);
    assert_eq!(stored(&store), sorted(chains(&all)));
    assert_clean(&store);
    store.ok("image rm x:1");
    assert_eq!(stored(&store), [""; 0]);
    assert_clean(&store);
}

#[test]
fn a_bomb_meets_a_limit() {
    let store = Store::empty();
    // 3 GiB of zeros in a layer, and in an archive: more than half of what a disk of 4 GiB has free.
    let zeros = |name: &str| {
        let path = store.disk.path().join(name);
        let script = format!("head -c 3G /dev/zero | zstd -q -1 -o {}", text(&path));
        sh("bash", &["-c", &script]);
        path
    };
    let archive = zeros("zeros.zst");
    let error = store.run_with("image load -i", &[text(&archive)]).fails(1);
    assert!(error.contains("half of what the store has free") && error.contains("hint: "), "{error}");
    assert_clean(&store);
    let mut window = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    window.window_log(28).and_then(|()| window.include_contentsize(false)).expect("a large window");
    std::io::Write::write_all(&mut window, &layers()[0]).expect("to memory");
    let window = window.finish().expect("to memory");
    let files = Files::layout(Some("x:1"), &[&layers()[0]], |_| window.clone());
    let error = store.run_with("image load -i", &[text(&files.save(&store.disk.path(), "w.tar"))]).fails(1);
    assert!(error.contains("zstd window: larger than 128 MiB"), "{error}");
    assert_clean(&store);
}
