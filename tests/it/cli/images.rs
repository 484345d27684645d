//! image import, ls, inspect, tag, rm.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::id;
use crate::support::canary::Canary;
use crate::support::store::Store;
use crate::support::tree::Tree;
use crate::support::{busybox, debian, eventually, sh};

/// Everything that a root filesystem may hold.
fn nasty_tree(top: &Path) {
    let path = |name: &str| top.join(name);
    let text = |name: &str| path(name).to_str().expect("plain").to_string();
    fs::create_dir_all(path("dir/deep")).expect("directories");
    fs::write(path("file"), "content\n").expect("a file");
    fs::write(path("empty"), "").expect("a file");
    chown(path("file"), Some(70_000), Some(1_000_000)).expect("chown");
    fs::write(path("setuid"), "#!/bin/sh\n").expect("a file");
    chown(path("setuid"), Some(1000), Some(33)).expect("chown");
    fs::set_permissions(path("setuid"), PermissionsExt::from_mode(0o6755)).expect("chmod");
    fs::set_permissions(path("dir"), PermissionsExt::from_mode(0o3770)).expect("chmod");
    fs::hard_link(path("file"), path("dir/hard link")).expect("a hard link");
    symlink("/etc/passwd", path("absolute")).expect("a symlink");
    symlink("../outside/../../x", path("dir/relative")).expect("a symlink");
    symlink("x".repeat(300), path("long-target")).expect("a symlink");
    sh("mkfifo", &["--mode", "640", &text("fifo")]);
    sh("mknod", &["--mode", "666", &text("null"), "c", "1", "3"]);
    sh("mknod", &["--mode", "660", &text("disk"), "b", "259", "70000"]);
    fs::write(path(&"n".repeat(255)), "long name\n").expect("a file");
    fs::create_dir_all(path(&format!("{0}/{0}/{0}", "p".repeat(200)))).expect("a long path");
    fs::write(top.join(std::ffi::OsStr::from_bytes(b"latin-\xe9\xff")), "not UTF-8\n").expect("a file");
    fs::write(path("new\nline"), "").expect("a file");
    let sparse = File::create(path("sparse")).expect("a file");
    sparse.set_len(64 << 20).expect("a hole");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 32 << 20).expect("an island");
    sh("setfattr", &["-n", "user.note", "-v", "a value", &text("file")]);
    sh("setfattr", &["-n", "trusted.note", "-v", "0x00ff00", &text("dir")]);
    fs::write(path("ping"), "x").expect("a file");
    sh("setcap", &["cap_net_raw+ep", &text("ping")]);
    sh("setfacl", &["-m", "u:1234:rw", &text("empty")]);
    sh("setfacl", &["-d", "-m", "g:4321:rx", &text("dir/deep")]);
    for (name, time) in [
        ("file", "2001-02-03 04:05:06.123456789"),
        ("empty", "1960-01-01 00:00:00.5"),
        ("ping", "2040-06-07 08:09:10.000000001"),
        ("absolute", "2002-02-02 02:02:02.222222222"),
        ("dir/deep", "2003-03-03 03:03:03.333333333"),
        ("dir", "2004-04-04 04:04:04.444444444"),
        ("", "2005-05-05 05:05:05.555555555"),
    ] {
        sh("touch", &["--no-dereference", "--date", time, &text(name)]);
    }
}

fn pack(top: &Path, tarball: &Path) {
    let mut names: Vec<_> = fs::read_dir(top).expect("read").map(|e| e.expect("read").file_name()).collect();
    names.sort();
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(top).args(["--format=posix", "--numeric-owner", "--acls", "--xattrs", "--xattrs-include=*"]);
    let status = tar.args(["--sparse", "-cf"]).arg(tarball).arg("--").args(names).status().expect("tar");
    assert!(status.success());
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// A field of `image inspect`.
fn inspected(store: &Store, image: &str, field: &str) -> serde_json::Value {
    store.json(&format!("image inspect {image}"))[0][field].clone()
}

fn layer_count(store: &Store) -> usize {
    fs::read_dir(store.root().join("fs/layers")).expect("the layers").count()
}

/// What is in the shelves of the store that an import writes to.
fn shelves(store: &Store) -> Vec<PathBuf> {
    ["images", "layers", "tags", "staging", "trash"]
        .iter()
        .flat_map(|shelf| fs::read_dir(store.root().join("fs").join(shelf)).into_iter().flatten())
        .map(|entry| entry.expect("read a shelf").path())
        .collect()
}

#[test]
fn an_import_prints_the_digest_of_the_config() {
    let store = Store::empty();
    let image = id(&store.ok_with("image import --name busybox:1", &[text(&busybox())]));
    let config = fs::read(store.root().join("fs/images").join(&image).join("config.json")).expect("the config");
    let digest = Sha256::digest(&config).iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(digest, image);
    let config: serde_json::Value = serde_json::from_slice(&config).expect("the config is JSON");
    let tar = fs::read(busybox()).expect("the tarball");
    let diff_id = Sha256::digest(&tar).iter().fold("sha256:".to_string(), |text, byte| text + &format!("{byte:02x}"));
    assert_eq!(
        config["rootfs"]["diff_ids"],
        serde_json::json!([diff_id]),
        "OCI config.md: the digest of the plain tar"
    );
    assert_eq!(config["os"], "linux");
}

#[test]
fn everything_that_a_root_filesystem_holds_survives() {
    let store = Store::empty();
    let source = store.disk.path().join("source");
    fs::create_dir(&source).expect("a directory");
    nasty_tree(&source);
    let tarball = store.disk.path().join("nasty.tar");
    pack(&source, &tarball);
    let expected = Tree::read(&source);

    store.ok_with("image import --name tar", &[text(&tarball)]);
    store.ok_with("image import --name dir", &[text(&source)]);
    for image in ["tar", "dir"] {
        store.ok(&format!("snapshot create {image} of-{image}"));
        let path = PathBuf::from(store.ok(&format!("snapshot path of-{image}")));
        let mut got = Tree::read(&path);
        if image == "tar" {
            // The tarball has no entry for the top directory.
            got.0.insert(PathBuf::new(), expected.entry("").clone());
        }
        expected.assert_same(&got);
        let sparse = path.join("sparse").metadata().expect("stat");
        assert!(sparse.blocks() * 512 < 1 << 20, "{image}: the hole was filled: {} blocks", sparse.blocks());
    }
}

#[test]
fn a_real_debian_survives() {
    let store = Store::empty();
    let expected = store.disk.path().join("expected");
    fs::create_dir(&expected).expect("a directory");
    sh("tar", &["-C", text(&expected), "--xattrs", "--xattrs-include=*", "--acls", "-xpf", text(&debian())]);
    store.ok_with("image import --name debian:12", &[text(&debian())]);
    store.ok("snapshot create debian:12 web");
    let expected = Tree::read(&expected);
    let mut got = Tree::read(Path::new(&store.ok("snapshot path web")));
    got.0.insert(PathBuf::new(), expected.entry("").clone());
    expected.assert_same(&got);
    assert!(store.ok("run --rm debian:12 apt-get --version").starts_with("apt "));
}

#[test]
fn compressed_or_not_it_is_the_same_layer() {
    let store = Store::empty();
    let layers = |image: String| inspected(&store, &image, "RootFS")["Layers"].clone();
    let plain = layers(store.ok_with("image import", &[text(&busybox())]));
    for (program, args) in [("gzip", &["-c"][..]), ("zstd", &["-qc"]), ("xz", &["-0c"]), ("bzip2", &["-c"])] {
        // Found by content: the name says nothing.
        let packed = store.disk.path().join(format!("{program}.bin"));
        let status = Command::new(program)
            .args(args)
            .stdin(File::open(busybox()).expect("the tarball"))
            .stdout(File::create(&packed).expect("a file"))
            .status()
            .unwrap_or_else(|e| panic!("{program}: {e}; type: make setup"));
        assert!(status.success(), "{program}");
        assert_eq!(layers(store.ok_with("image import", &[text(&packed)])), plain, "{program}");
        let done = store.run_reading("image import -", File::open(&packed).expect("a file"));
        assert_eq!(layers(done.ok()), plain, "{program} from standard input");
    }
    assert_eq!(layer_count(&store), 1, "it is kept once");
}

#[test]
fn a_pipe_is_read_to_its_end() {
    let store = Store::empty();
    let mut cat = Command::new("cat").arg(busybox()).stdout(std::process::Stdio::piped()).spawn().expect("cat");
    let mut import = store.command("image import - --name piped", &[]);
    import.stdin(cat.stdout.take().expect("piped"));
    id(&crate::support::command::finish(import).ok());
    assert!(cat.wait().expect("cat").success(), "the pipe was closed early");
    assert_eq!(store.ok("run --rm piped echo here"), "here");
}

#[test]
fn a_bad_archive_leaves_nothing() {
    let store = Store::new();
    let listing = store.ok("image ls --format json");
    let before = (store.disk.subvolumes(), shelves(&store));
    let tar = fs::read(busybox()).expect("the tarball");
    let canary = Canary::new();
    let mut flipped = tar.clone();
    flipped[100] ^= 0xff; // the mode field of the first header: its checksum is wrong now
    let packed = store.disk.path().join("busybox.tar.gz");
    let gzip = Command::new("gzip").arg("-c").arg(busybox()).output().expect("gzip").stdout;
    fs::write(&packed, &gzip).expect("a file");
    let mut broken_gzip = gzip.clone();
    let last = broken_gzip.len() - 6; // within the CRC (RFC 1952, 2.3.1)
    broken_gzip[last] ^= 1;
    let escape = store.disk.path().join("escape.tar");
    sh(
        "tar",
        &[
            "-C",
            text(canary.path()),
            "--transform",
            &format!("s,.*,{},", text(&canary.missing())),
            "-P",
            "-cf",
            text(&escape),
            "etc/passwd",
        ],
    );
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("text", b"this is no archive\n".repeat(100)),
        ("cut in a file", tar[..tar.len() / 2].to_vec()),
        ("cut in a header", tar[..700].to_vec()),
        ("bad header", flipped),
        ("cut gzip", gzip[..gzip.len() / 2].to_vec()),
        ("bad crc", broken_gzip),
        ("gzip and garbage", [gzip.clone(), b"garbage".to_vec()].concat()),
    ] {
        let path = store.disk.path().join("bad.tar");
        fs::write(&path, bytes).expect("a file");
        let error = store.run_with("image import --name bad", &[text(&path)]).fails(1);
        assert!(error.lines().next().is_some_and(|line| line.len() > "tupper: error: ".len() + 10), "{name}: {error}");
        assert_eq!(store.ok("image ls --format json"), listing, "{name}");
        assert_eq!((store.disk.subvolumes(), shelves(&store)), before, "{name} left something");
    }
    // An absolute name is taken as below the root, as every tar does, or refused; the host's file stays as it is.
    store.run_with("image import", &[text(&escape)]);
    canary.assert_untouched();
    assert!(!canary.missing().exists());
}

#[test]
fn missing_sources_and_archives_of_other_kinds_are_told_apart() {
    let store = Store::new();
    let error = store.fails(1, "image import /nonexistent.tar");
    assert!(error.contains("/nonexistent.tar") && error.contains("no such file"), "{error}");
    let archive = store.disk.path().join("saved.tar");
    let dir = store.disk.path().join("saved");
    fs::create_dir_all(dir.join("blobs/sha256")).expect("directories");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).expect("a file");
    fs::write(dir.join("index.json"), r#"{"schemaVersion":2,"manifests":[]}"#).expect("a file");
    sh("tar", &["-C", text(&dir), "-cf", text(&archive), "blobs", "index.json", "oci-layout"]);
    let error = store.run_with("image import", &[text(&archive)]).fails(1);
    assert!(error.contains("an image archive") && error.contains("hint: `tupper image load`"), "{error}");
    let error = store.run_with("image load -i", &[text(&busybox())]).fails(1);
    assert!(error.contains("no image archive") && error.contains("`tupper image import`"), "{error}");
}

#[test]
fn listings_show_names_and_ids() {
    let store = Store::empty();
    let image = store.ok_with("image import --name one", &[text(&busybox())]);
    store.ok("image tag one two:2");
    let table = store.lines("image ls");
    assert!(
        ["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"].iter().all(|title| table[0].contains(title)),
        "{table:?}"
    );
    assert_eq!(table.len(), 3, "a line a name: {table:?}");
    assert!(
        table
            .iter()
            .any(|line| line.contains("localhost/one") && line.contains("latest") && line.contains(&image[..12]))
    );
    assert!(table.iter().any(|line| line.contains("localhost/two") && line.contains(" 2 ")));
    assert!(!table[1].contains(&image), "ids are cut to 12 digits");
    assert!(store.ok("image ls --no-trunc").contains(&image));
    assert_eq!(store.ok("images -q"), image[..12]);
    let json = store.json("image ls --format json");
    let entry = &json.as_array().expect("an array")[0];
    assert_eq!(entry["Id"], image.as_str());
    let mut names: Vec<_> =
        entry["Names"].as_array().expect("names").iter().map(|n| n.as_str().expect("text")).collect();
    names.sort();
    assert_eq!(names, ["localhost/one:latest", "localhost/two:2"]);
    assert!(entry["Size"].as_u64().is_some_and(|size| size > 1_000_000), "{entry}");
}

#[test]
fn change_sets_the_config_and_run_honours_it() {
    let store = Store::empty();
    let first = store.ok_with("image import --name plain", &[text(&busybox())]);
    let changes = [
        "--change",
        "CMD [\"sh\", \"-c\", \"echo $GREETING from $(pwd) as $(id -u)\"]",
        "--change",
        "ENV GREETING=hello",
        "--change",
        "WORKDIR /tmp",
        "--change",
        "USER nobody",
        "--message",
        "made by a test",
    ];
    let second = store.ok_with("image import --name changed", &[&changes[..], &[text(&busybox())]].concat());
    assert_ne!(first, second);
    let inspect = store.json("image inspect changed");
    let config = &inspect[0]["Config"];
    assert_eq!(inspect[0]["Id"], second.as_str());
    assert_eq!(config["WorkingDir"], "/tmp");
    assert_eq!(config["User"], "nobody");
    assert!(config["Env"].as_array().is_some_and(|env| env.contains(&"GREETING=hello".into())), "{config}");
    assert_eq!(store.ok("run --rm changed"), "hello from /tmp as 65534");
    assert_eq!(store.ok_with("run --rm -e GREETING=hi -w / -u 0 changed", &[]), "hi from / as 0");
    // Two images on one layer: it is kept once.
    assert_eq!(layer_count(&store), 1);
    store.ok_with("image import --change", &["ENTRYPOINT [\"echo\", \"entry\"]", "--name", "entry", text(&busybox())]);
    assert_eq!(store.ok("run --rm entry and more"), "entry and more");
    assert_eq!(store.ok("run --rm --entrypoint printf entry x"), "x");
    let error = store.run_with("image import --change", &["NOSUCH thing", text(&busybox())]).fails(2);
    assert!(error.contains("NOSUCH"), "{error}");
}

#[test]
fn names_are_taken_over_and_removed() {
    let store = Store::empty();
    let first = store.ok_with("image import --name app:1", &[text(&busybox())]);
    let second = store.ok_with("image import --name app:1 --change", &["ENV A=1", text(&busybox())]);
    assert_eq!(inspected(&store, "app:1", "Id"), second.as_str(), "the name moved");
    assert_eq!(store.lines("image ls -q").len(), 2, "the old image stays, without a name");
    store.ok_with("image rm", &[&first[..8]]);
    assert_eq!(store.ok("image ls -q --no-trunc"), second);
    store.ok("image tag app:1 other");
    store.ok("rmi app:1");
    assert_eq!(inspected(&store, "other", "Id"), second.as_str(), "one name less, still an image");
    store.fails(1, "image rm app:1");
    store.ok("image rm other");
    assert_eq!(store.ok("image ls -q"), "");
    crate::support::eventually("the layers are gone", std::time::Duration::from_secs(120), || {
        store.disk.subvolumes() == ["store/fs"]
    });
    assert_eq!(shelves(&store), [""; 0].map(PathBuf::from));
}

#[test]
fn several_removals_are_all_tried() {
    let store = Store::new();
    store.ok("image tag busybox second");
    let done = store.run("image rm nosuch busybox second").status(1);
    assert!(done.stderr.contains("nosuch"), "{done}");
    assert_eq!(store.ok("image ls -q"), "");
}

#[test]
fn an_image_stays_while_something_is_made_of_it() {
    let store = Store::new();
    store.ok("snapshot create busybox web");
    store.ok("image rm busybox");
    // btrfs needs no parent: the snapshot is whole without its image.
    assert_eq!(store.ok("run --rm web echo whole"), "whole");
}

#[test]
fn the_draft_of_a_killed_import_goes_with_the_next() {
    let store = Store::empty();
    let mut import = store.command("image import -", &[]);
    let mut import = import.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().expect("an import");
    let bytes = fs::read(busybox()).expect("the tarball");
    import.stdin.as_mut().expect("a pipe").write_all(&bytes[..bytes.len() / 2]).expect("written");
    let drafts = || fs::read_dir(store.root().join("fs/staging")).expect("staging").count();
    eventually("the import has begun", Duration::from_secs(120), || {
        store.root().join("fs/staging").exists() && drafts() == 1
    });
    // It is somebody's: another import leaves it alone.
    store.ok_with("image import", &[text(&busybox())]);
    assert_eq!(drafts(), 1);
    import.kill().and_then(|()| import.wait()).expect("killed");
    assert_eq!(store.lines("image ls -q").len(), 1, "what was not acknowledged is not there");
    store.ok_with("image import", &[text(&busybox())]);
    assert_eq!(drafts(), 0);
}

#[test]
fn an_interrupted_import_leaves_nothing() {
    let store = Store::empty();
    let mut import = store.command("image import -", &[]);
    let mut import =
        import.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("an import");
    let bytes = fs::read(busybox()).expect("the tarball");
    let mut input = import.stdin.take().expect("a pipe");
    input.write_all(&bytes[..bytes.len() / 2]).expect("written");
    let staging = store.root().join("fs/staging");
    eventually("the import has begun", Duration::from_secs(120), || {
        fs::read_dir(&staging).is_ok_and(|drafts| drafts.count() == 1)
    });
    let pid = nix::unistd::Pid::from_raw(i32::try_from(import.id()).expect("a pid"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("sent");
    eventually("the signal has come", Duration::from_secs(120), || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("a process");
        status.lines().any(|line| line.split_whitespace().eq(["ShdPnd:", "0000000000000000"]))
    });
    // It sees it with the next bytes; whether it takes all of them depends on when.
    let _ = input.write_all(&bytes[bytes.len() / 2..]);
    drop(input);
    let done = import.wait_with_output().expect("it ends");
    assert_eq!(done.status.code(), Some(128 + 15), "{}", String::from_utf8_lossy(&done.stderr));
    assert_eq!(fs::read_dir(&staging).expect("staging").count(), 0);
    assert_eq!(store.ok("image ls -q"), "");
}

#[test]
fn a_top_directory_without_an_entry_is_the_same_each_time() {
    let store = Store::new();
    let listed = sh("tar", &["-tf", busybox().to_str().expect("a plain path")]);
    assert!(!listed.lines().any(|line| line == "./"), "the archive has an entry for the top");
    let top = PathBuf::from(store.ok(&format!("snapshot path {}", store.ok("snapshot create busybox"))));
    let top = fs::metadata(top).expect("a directory");
    assert_eq!((top.mode(), top.uid(), top.gid(), top.mtime(), top.mtime_nsec()), (0o40755, 0, 0, 0, 0));
}

#[test]
fn short_names_find_what_came_from_a_registry() {
    let store = Store::new();
    store.ok("image tag busybox docker.io/library/foo:1 quay.io/x/bar");
    let id = store.ok("image inspect busybox");
    for name in ["docker.io/foo:1", "foo:1", "library/foo:1", "bar", "x/bar:latest", "image:bar"] {
        assert_eq!(store.ok(&format!("image inspect {name}")), id, "{name}");
    }
    assert_eq!(store.ok("run --rm foo:1 echo works"), "works");
    for (name, lines) in [("foo", 2), ("foo:1", 2), ("foo:2", 1), ("x/bar", 2), ("docker.io/foo", 2), ("o", 1)] {
        assert_eq!(store.lines(&format!("image ls {name}")).len(), lines, "{name}");
    }
    for name in ["foo", "oo:1", "quay.io/foo:1", "localhost/bar"] {
        store.fails(1, &format!("image rm {name}"));
    }
    // What is meant goes, and no more.
    assert_eq!(store.ok("image rm foo:1"), "Untagged: docker.io/library/foo:1");
    // Another image of that name: nobody knows which is meant, but the whole name says it, and localhost comes first.
    let other =
        store.ok_with("image import --name quay.io/y/bar --message other", &[busybox().to_str().expect("plain")]);
    let error = store.fails(1, "image rm bar");
    assert!(error.contains("several images are meant: quay.io/x/bar:latest, quay.io/y/bar:latest"), "{error}");
    store.ok("image tag quay.io/y/bar bar");
    assert_eq!(store.ok("image inspect bar"), store.ok(&format!("image inspect {other}")));
    assert_eq!(store.ok("image rm bar"), "Untagged: localhost/bar:latest");
}

#[test]
fn a_listing_is_of_those_that_a_filter_takes() {
    let store = Store::new();
    let labelled = store.ok_with("image import --change", &["LABEL tier=web", busybox().to_str().expect("plain")]);
    store.ok("image tag busybox quay.io/team/box:2");
    store.ok_with("commit", &[&store.ok_with("create", &[&labelled, "true"]), "late"]);
    let ls = |filters: &str| {
        let mut ids = store.lines(&format!("image ls -q --no-trunc {filters}"));
        ids.sort();
        ids.dedup();
        ids
    };
    let (first, late) = (store.ok("image inspect busybox"), store.ok("image inspect late"));
    let id = |document: &str| {
        let document: serde_json::Value = serde_json::from_str(document).expect("JSON");
        document[0]["Id"].as_str().expect("an id").to_string()
    };
    let (first, late) = (id(&first), id(&late));
    let sorted = |ids: &[&str]| {
        let mut ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
        ids.sort();
        ids
    };
    for (filters, wanted) in [
        ("--filter dangling=true", &[labelled.as_str()][..]),
        ("--filter dangling=false", &[&first, &late]),
        ("--filter label=tier", &[&labelled, &late]),
        ("--filter label=tier=web --filter dangling=true", &[&labelled]),
        ("--filter label=tier=db", &[]),
        ("--filter reference=busybox", &[&first]),
        ("--filter reference=quay.io/*/b?x", &[&first]),
        ("--filter reference=*:2 --filter reference=late", &[&first, &late]),
        ("-f since=busybox -f reference=late", &[&late]),
        ("--filter until=1h", &[]),
        ("late --filter dangling=false", &[&late]),
    ] {
        assert_eq!(ls(filters), sorted(wanted), "{filters}");
    }
    assert_eq!(ls(&format!("--filter id={}", &late[..10])), sorted(&[&late]));
    assert!(store.fails(1, "image ls --filter before=nosuch").contains("nosuch: no such image"));
    assert!(store.fails(2, "image ls --filter color=red").contains("not one of id, label"));
}
