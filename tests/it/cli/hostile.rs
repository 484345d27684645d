//! Archives that mean harm, from end to end: imported as a root filesystem and loaded as a layer, each either is refused
//! with one error line or unpacks inside; nothing outside changes, and what is refused leaves no trace.
//!
//! docs/hostile.md lists all cases, those of other files too.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::load::{assert_clean, stored, text};
use crate::scratch::Tar;
use crate::support::archives::{Files, chains, config, hex};
use crate::support::canary::Canary;
use crate::support::sh;
use crate::support::store::Store;

/// What becomes of an archive: of what it asks for, this is inside, or the error says this.
#[derive(Clone, Copy)]
enum Ends<'a> {
    Inside(&'a str),
    Refused(&'a str),
}
use Ends::{Inside, Refused};

fn base() -> Vec<u8> {
    Tar::default().directory("etc").file("etc/base", b"base").end()
}

/// All that a store shows and holds.
fn listing(store: &Store) -> (String, Vec<String>, Vec<std::path::PathBuf>) {
    let shelves = ["images", "tags", "staging", "trash"].iter();
    let entries = shelves.flat_map(|shelf| fs::read_dir(store.root().join("fs").join(shelf)).into_iter().flatten());
    let entries = entries.map(|entry| entry.expect("an entry").path()).collect();
    (store.ok("image ls --format json"), stored(store), entries)
}

/// Does it, by `import` and by `load`, and looks at what has become of it.
#[track_caller]
fn both(store: &Store, canary: &Canary, what: &str, tar: &[u8], flags: &[&str], import: Ends<'_>, load: Ends<'_>) {
    let before = listing(store);
    let root = store.disk.path().join("hostile.tar");
    fs::write(&root, tar).expect("a file");
    let image = store.disk.path().join("image.tar");
    fs::write(&image, Files::docker(&[(&["localhost/bad:1"], &[&base(), tar])]).tar()).expect("a file");
    for (verb, end) in
        [(["import", "--name", "bad:1", text(&root)], import), (["load", "-q", "-i", text(&image)], load)]
    {
        let done = store.run_with("image", &[&verb[..], flags].concat());
        match end {
            Refused(why) => {
                let error = done.fails(1);
                assert!(error.contains(why), "{what}: {verb:?}: {error}");
            }
            Inside(path) => {
                done.ok();
                let id = store.ok("snapshot create bad:1");
                let top = store.ok_with("snapshot path", &[&id]);
                let there = fs::symlink_metadata(Path::new(&top).join(path));
                assert!(there.is_ok(), "{what}: {verb:?}: no {path}: {}", sh("find", &[&top]));
                store.ok_with("snapshot rm", &[&id]);
                store.ok("image rm bad:1");
            }
        }
        canary.assert_untouched();
        assert_eq!(listing(store), before, "{what}: {verb:?}");
        assert_clean(store);
    }
}

fn device(name: &str, major: u32, minor: u32) -> Tar {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Block);
    header.set_size(0);
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_device_major(major).and(header.set_device_minor(minor)).expect("a device");
    Tar::default().raw(header, name.as_bytes(), b"", b"")
}

#[test]
fn names_and_links_stay_inside() {
    let (store, canary) = (Store::empty(), Canary::new());
    store.ok("store init");
    let top = text(canary.path()).to_string();
    let inside = top.trim_start_matches('/').to_string();
    let up = format!("{}{inside}", "../".repeat(40));
    let new = || Tar::default();
    let file = |name: String| new().file(name, b"evil").end();
    let in_it = |name: &str| format!("{inside}/{name}");
    let mut wide = new().directory("l");
    wide.0[100..108].copy_from_slice(b"0000777\0");
    let mut header = tar::Header::new_old();
    header.as_mut_bytes().copy_from_slice(&wide.0[..512]);
    header.set_cksum();
    let open_directory = header.as_bytes().to_vec();
    let long = "n".repeat(255);
    let cases: Vec<(&str, Vec<u8>, Ends<'_>, Ends<'_>)> = vec![
        ("absolute", file(format!("{top}/etc/escaped")), Inside(&inside), Inside(&inside)),
        ("up", file(format!("{up}/etc/escaped")), Inside(&inside), Inside(&inside)),
        ("up from within", file(format!("a/../../{up}/etc/escaped")), Inside(&inside), Inside(&inside)),
        (
            "through a link",
            new().symlink("l", &top).file("l/etc/escaped", b"evil").end(),
            Refused("link to nowhere"),
            Refused("link to nowhere"),
        ),
        (
            "through a link up",
            new().symlink("l", &up).file("l/etc/escaped", b"evil").end(),
            Refused("link to nowhere"),
            Refused("link to nowhere"),
        ),
        (
            "through a parent that is a link",
            new().directory("a").symlink("a/b", format!("{top}/etc")).file("a/b/c/escaped", b"evil").end(),
            Refused("link to nowhere"),
            Refused("link to nowhere"),
        ),
        (
            "over a link",
            new().symlink("l", format!("{top}/etc/passwd")).file("l", b"evil").end(),
            Inside("l"),
            Inside("l"),
        ),
        (
            "a directory over a link",
            [new().symlink("l", &top).0, open_directory, new().file("l/etc", b"evil").end()].concat(),
            Inside("l/etc"),
            Inside("l/etc"),
        ),
        (
            "attributes through a link",
            new()
                .symlink("l", format!("{top}/etc/passwd"))
                .pax(&[("SCHILY.xattr.trusted.evil", b"1"), ("uid", b"70000"), ("mtime", b"-1.5")])
                .symlink("l", format!("{top}/etc/passwd"))
                .end(),
            Inside("l"),
            Inside("l"),
        ),
        (
            "a hard link out",
            new().hard_link("h", format!("{top}/etc/passwd")).file("h", b"evil").end(),
            Refused("no such entry before it"),
            Refused("no such entry before it"),
        ),
        (
            "a hard link up",
            new().hard_link("h", format!("{up}/etc/passwd")).end(),
            Refused("no such entry before it"),
            Refused("no such entry before it"),
        ),
        (
            "a hard link through a link",
            new().symlink("l", &top).hard_link("h", "l/etc/passwd").end(),
            Refused("no such entry before it"),
            Refused("no such entry before it"),
        ),
        (
            "a hard link to a link",
            new().symlink("l", format!("{top}/etc/passwd")).hard_link("h", "l").file("h", b"evil").end(),
            Inside("h"),
            Inside("h"),
        ),
        // In a root filesystem these are names.
        ("a whiteout of nothing", new().file(".wh.", b"").end(), Inside(".wh."), Refused(".wh.")),
        ("a whiteout of the directory", new().file("d/.wh..", b"").end(), Inside("d/.wh.."), Refused(".wh..")),
        ("a whiteout of the parent", new().file("d/.wh...", b"").end(), Inside("d/.wh..."), Refused(".wh...")),
        (
            "a whiteout outside",
            new().symlink("l", format!("{top}/etc")).file("l/.wh.passwd", b"").end(),
            Refused("link to nowhere"),
            Inside("l"),
        ),
        (
            "opaque outside",
            new().symlink("l", format!("{top}/etc")).file("l/.wh..wh..opq", b"").end(),
            Refused("link to nowhere"),
            Inside("l"),
        ),
        ("a whiteout up", file(format!("{up}/etc/.wh.passwd")), Inside(&inside), Inside("etc/base")),
        (
            "opaque at the top",
            new().file(".wh..wh..opq", b"").file("x", b"").end(),
            Inside(".wh..wh..opq"),
            Inside("x"),
        ),
        (
            "a file, a directory, a file",
            new().file("a", b"1").directory("a").file("a/b", b"2").file("a", b"3").end(),
            Inside("a"),
            Inside("a"),
        ),
        (
            "below a file",
            new().file("a", b"1").file("a/b", b"2").end(),
            Refused("no directory"),
            Refused("no directory"),
        ),
        (
            "a device, and a file of its name",
            [device("n", 7, 0).0, new().file("n", b"evil").end()].concat(),
            Inside("n"),
            Inside("n"),
        ),
        (
            "a FIFO, and a file of its name",
            new().entry(b'6', "p", "", b"").file("p", b"evil").end(),
            Inside("p"),
            Inside("p"),
        ),
        (
            "through a device",
            [device("n", 7, 0).0, new().file("n/x", b"").end()].concat(),
            Refused("no directory"),
            Refused("no directory"),
        ),
        ("the top as a link", new().symlink(".", &top).end(), Refused("unpack layer"), Refused("unpack layer")),
        ("not UTF-8", new().file(b"\xff\xfe\n", b"").file("x", b"").end(), Inside("x"), Inside("x")),
        ("255 bytes", new().file(&long, b"").end(), Inside(&long), Inside(&long)),
        ("256 bytes", new().file("n".repeat(256), b"").end(), Refused("name too long"), Refused("name too long")),
        (
            "10,000 deep",
            new().file(format!("{}f", "d/".repeat(10_000)), b"").file("x", b"").end(),
            Inside("x"),
            Inside("x"),
        ),
        (
            "deeper",
            new().file(format!("{}f", "d/".repeat(17_000)), b"").end(),
            Refused("--max-depth"),
            Refused("--max-depth"),
        ),
        ("an unknown kind", new().entry(b'?', "q", "", b"").end(), Refused("unknown kind"), Refused("unknown kind")),
        (
            "an ACL that is none",
            new().pax(&[("SCHILY.xattr.system.posix_acl_access", b"\x02\0\0\0evil")]).file("f", b"").end(),
            Refused("posix_acl_access"),
            Refused("posix_acl_access"),
        ),
        (
            "a huge attribute",
            new().pax(&[("SCHILY.xattr.user.a", &[b'x'; 70_000])]).file("f", b"").end(),
            Refused("user.a"),
            Refused("user.a"),
        ),
        (
            "a long attribute name",
            new().pax(&[(&format!("SCHILY.xattr.user.{}", "a".repeat(300)), b"1")]).file("f", b"").end(),
            Refused("user.aaa"),
            Refused("user.aaa"),
        ),
        ("a long link", new().symlink("l", "x".repeat(5000)).end(), Refused("name too long"), Refused("name too long")),
        (
            "a size that two say",
            [new().pax(&[("size", b"1024")]).file("f", b"").0, new().file("smuggled", b"x").end()].concat(),
            Inside("f"),
            Inside("f"),
        ),
    ];
    for (what, tar, import, load) in &cases {
        both(&store, &canary, what, tar, &[], *import, *load);
    }
    assert!(in_it("etc").starts_with("tmp/"), "the canary is where the names lead");
}

#[test]
fn each_limit_is_named_and_its_flag_raises_it() {
    let (store, canary) = (Store::empty(), Canary::new());
    store.ok("store init");
    let new = || Tar::default();
    let sparse: &[(&str, &[u8])] = &[("GNU.sparse.size", b"5000"), ("GNU.sparse.map", b"0,0,5,0,7,0")];
    let gzip = |bytes: &[u8]| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).and_then(|()| encoder.finish()).expect("to memory")
    };
    let bomb = new().file("f", &vec![0; 3 << 20]).end();
    // Three bytes, each in a block of its own.
    let dots: &[(&str, &[u8])] = &[("GNU.sparse.size", b"12288"), ("GNU.sparse.map", b"0,1,4096,1,8192,1")];
    let dots = new().pax(dots).file("f", b"123").end();
    for (what, tar, flag, low, high) in [
        ("unpacks to more than 1048576 bytes", bomb.clone(), "--max-size", "1m", "4m"),
        ("take more than 10240 bytes", dots, "--max-size", "10k", "12k"),
        ("the file is larger than 1024 bytes", new().file("f", &[0; 1025]).end(), "--max-file-size", "1k", "2k"),
        ("the file is larger than 4096 bytes", new().pax(sparse).file("f", b"").end(), "--max-file-size", "4k", "5k"),
        ("more than 2 entries", new().file("f", b"").file("g", b"").file("h", b"").end(), "--max-entries", "2", "9"),
        ("more than 3 directories deep", new().file("1/2/3/f", b"").file("f", b"").end(), "--max-depth", "3", "4"),
        (
            "long name: larger than 1024 bytes",
            new().file(format!("{}f", "d/".repeat(900)), b"").file("f", b"").end(),
            "--max-name",
            "1k",
            "4k",
        ),
        (
            "extended header: larger than 1024 bytes",
            new().pax(&[("comment", &[b'x'; 1100])]).file("f", b"").end(),
            "--max-pax",
            "1k",
            "2k",
        ),
        ("more than 2 pieces", new().pax(sparse).file("f", b"").end(), "--max-sparse-pieces", "2", "3"),
        (
            "more than 1024 bytes behind",
            [new().file("f", b"").end(), vec![0; 1025]].concat(),
            "--max-padding",
            "1k",
            "2k",
        ),
    ] {
        // Import takes it compressed, too: the limit is on what comes out.
        for tar in [tar.clone(), gzip(&tar)] {
            let compressed = tar[..2] == [0x1f, 0x8b];
            let path = store.disk.path().join("limit.tar");
            fs::write(&path, &tar).expect("a file");
            let mut sources = vec![("image import --name bad:1", path)];
            if !compressed {
                let image = Files::docker(&[(&["localhost/bad:1"], &[&base(), &tar])]);
                // The base, and the blocks that fill it up, stay within each of these limits.
                sources.push(("image load -i", image.save(&store.disk.path(), "limits.tar")));
            }
            for (verb, path) in sources {
                let before = listing(&store);
                let error = store.run_with(verb, &[text(&path), flag, low]).fails(1);
                assert!(error.contains(what) && error.contains(&format!("hint: {flag} ")), "{verb} {flag}: {error}");
                assert_eq!(listing(&store), before);
                assert_clean(&store);
                store.ok_with(verb, &[text(&path), flag, high]);
                store.ok("image rm bad:1");
            }
        }
    }
    // All layers together, not each.
    let two = [new().file("a", &vec![0; 700 << 10]).end(), new().file("b", &vec![0; 700 << 10]).end()];
    let path = Files::docker(&[(&["localhost/bad:1"], &[&two[0], &two[1]])]).save(&store.disk.path(), "two.tar");
    let error = store.run_with("image load -i", &[text(&path), "--max-size", "1m"]).fails(1);
    assert!(error.contains("unpacks to more than 1048576 bytes") && error.contains("--max-size"), "{error}");
    assert_eq!(stored(&store).len(), 0);
    store.ok_with("image load -i", &[text(&path), "--max-size", "2m"]);
    store.ok("image rm bad:1");

    let mut files = Files::docker(&[(&["localhost/bad:1"], &[&base()])]);
    let mut long = config(&[&base()]);
    long["config"]["Labels"] = json!({ "a": "x".repeat(5 << 20) });
    files.set("long.json", long.to_string().into_bytes());
    let path =
        files.change("manifest.json", |list| list[0]["Config"] = json!("long.json")).save(&store.disk.path(), "c.tar");
    let error = store.run_with("image load -i", &[text(&path)]).fails(1);
    assert!(
        error.contains("the config is larger than 4194304 bytes") && error.contains("hint: --max-config "),
        "{error}"
    );
    assert_clean(&store);
    store.ok_with("image load --max-config 6m -i", &[text(&path)]);
    assert_eq!(store.json("image inspect bad:1")[0]["Labels"]["a"].as_str().expect("text").len(), 5 << 20);
    canary.assert_untouched();
    let help = store.ok("image load --help");
    for flag in ["--max-size", "--max-entries", "--max-depth", "--max-pax", "--max-config"] {
        assert!(help.contains(flag), "{help}");
    }
    assert!(!store.ok("image load -h").contains("--max-pax"), "the short help is short");
}

/// Runs it to its end; its status, and the most memory that it held at any moment, in MiB.
fn peak(mut command: Command) -> (i32, u64, String) {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tupper");
    let status = format!("/proc/{}/status", child.id());
    let mut peak = 0;
    let ended = loop {
        // VmHWM is the peak so far (proc_pid_status(5)); it is of this program alone, unlike getrusage(2)'s.
        let text = fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        peak = kib.unwrap_or(0).max(peak);
        if let Some(status) = child.try_wait().expect("wait") {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    };
    let mut error = String::new();
    std::io::Read::read_to_string(&mut child.stderr.take().expect("piped"), &mut error).expect("text");
    (ended.code().unwrap_or(-1), peak >> 10, error)
}

#[test]
fn bombs_take_no_memory() {
    let store = Store::empty();
    store.ok("store init");
    let dir = store.disk.path();
    let made = |name: &str, script: &str| {
        let path = dir.join(name);
        sh("bash", &["-euo", "pipefail", "-c", script, "bash", text(&path)]);
        path
    };
    // A file of 1 GiB of zeros: its header, and what gzip and zstd make of it.
    let head = dir.join("head");
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 30);
    header.set_mode(0o644);
    header.set_path("f").expect("a name");
    header.set_cksum();
    fs::write(&head, header.as_bytes()).expect("a file");
    let zeros = format!("{{ cat {}; head -c 1G /dev/zero; }}", text(&head));
    let gzip = made("bomb.gz", &format!("{zeros} | gzip -1 >\"$1\""));
    let zstd = made("bomb.zst", &format!("{zeros} | zstd -q -1 --long=27 >\"$1\""));
    // A thousand entries with an extended header of nearly 1 MiB each.
    let mut headers = zstd::Encoder::new(Vec::new(), 1).expect("an encoder");
    for number in 0..300 {
        let entry = Tar::default().pax(&[("comment", &vec![b'x'; 1_000_000])]).file(format!("f{number}"), b"");
        headers.write_all(&entry.0).expect("to memory");
    }
    headers.write_all(&[0; 1024]).expect("to memory");
    let pax = dir.join("pax.zst");
    fs::write(&pax, headers.finish().expect("to memory")).expect("a file");
    // A sparse file of a million pieces.
    let mut map = b"1000000\n".to_vec();
    for piece in 0..1_000_000u64 {
        map.extend(format!("{}\n0\n", piece * 4096).bytes());
    }
    map.resize(map.len().next_multiple_of(512), 0);
    let size = (1_000_000u64 * 4096).to_string();
    let records: &[(&str, &[u8])] =
        &[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size.as_bytes())];
    let pieces = dir.join("pieces.tar");
    fs::write(&pieces, Tar::default().pax(records).file("s", &map).end()).expect("a file");

    // MiB: 64 and 8 for the layer in flight, and zstd's window.
    for (path, most, status, why) in
        [(&gzip, 72, 1, "--max-size"), (&zstd, 72 + 128, 1, "--max-size"), (&pax, 72, 0, ""), (&pieces, 72, 0, "")]
    {
        let (ended, peak, error) = peak(store.command("image import --max-size 512m", &[text(path)]));
        assert!(ended == status && error.contains(why), "{}: {ended}: {error}", path.display());
        assert!(peak > 1 && peak <= most, "{}: {peak} MiB", path.display());
        assert_clean(&store);
    }
    // Three layers at once.
    let bytes = fs::read(&gzip).expect("a file");
    let descriptor = |files: &mut Files| files.blob("application/vnd.oci.image.layer.v1.tar+gzip", bytes.clone());
    let mut files = Files::default();
    let layer = descriptor(&mut files);
    let mut document = config(&[b"1", b"2", b"3"]);
    document["history"] = json!([]);
    let document = files.blob("application/vnd.oci.image.config.v1+json", document.to_string().into_bytes());
    let manifest = json!({ "schemaVersion": 2, "config": document, "layers": [layer, layer, layer] });
    let manifest = files.blob("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
    files.index(&[manifest]);
    let path = files.save(&dir, "three.tar");
    let (ended, peak, error) = peak(store.command("image load --max-size 512m -i", &[text(&path)]));
    assert!(ended == 1 && error.contains("--max-size"), "{error}");
    assert!(peak > 1 && peak <= 64 + 3 * 8, "{peak} MiB");
    assert_clean(&store);
}

#[test]
fn documents_that_lie_are_refused() {
    let (store, canary) = (Store::empty(), Canary::new());
    store.ok("store init");
    let one = Tar::default().file("one", b"1").end();
    let both = [&base()[..], &one];
    let oci = Files::layout(Some("localhost/x:1"), &both, <[u8]>::to_vec);
    let manifest_kind = "application/vnd.oci.image.manifest.v1+json";
    let index_kind = "application/vnd.oci.image.index.v1+json";
    let led_to = |kind: &str, bytes: Vec<u8>| {
        let mut files = oci.clone();
        let descriptor = files.blob(kind, bytes);
        files.index(&[descriptor]);
        files
    };
    let document = |value: Value| value.to_string().into_bytes();
    let with_config = |text: Vec<u8>| {
        let mut files = Files::docker(&[(&["localhost/x:1"], &both)]);
        files.set("other.json", text);
        files.change("manifest.json", |list| list[0]["Config"] = json!("other.json"))
    };
    // An index that leads to itself would need a digest of itself: this one only says so.
    let own = "1".repeat(64);
    let mut circle = oci.clone();
    let to_itself = json!({ "mediaType": index_kind, "digest": format!("sha256:{own}"), "size": 1 });
    let mut index = json!({ "schemaVersion": 2, "mediaType": index_kind, "manifests": [to_itself] });
    let size = index.to_string().len() + 2;
    index["manifests"][0]["size"] = json!(size);
    circle.set(&format!("blobs/sha256/{own}"), document(index.clone()));
    circle.index(&[json!({ "mediaType": index_kind, "digest": format!("sha256:{own}"), "size": size })]);
    let many = vec![format!("sha256:{own}"); 513];
    let mut too_many = config(&both);
    too_many["rootfs"]["diff_ids"] = json!(many);
    for (what, files, why) in [
        ("an index that leads to itself", circle, "its digest is"),
        ("a manifest that is a config", led_to(manifest_kind, document(config(&both))), "malformed"),
        ("a manifest that is a layer", led_to(manifest_kind, one.clone()), "not a manifest"),
        ("a manifest that is empty", led_to(manifest_kind, Vec::new()), "not a manifest"),
        ("schema 1", led_to(manifest_kind, document(json!({ "schemaVersion": 1, "fsLayers": [] }))), "schema 1"),
        (
            "an index of nothing",
            led_to(index_kind, document(json!({ "schemaVersion": 2, "manifests": [] }))),
            "there is nothing",
        ),
        ("a deep document", led_to(manifest_kind, [b'['; 100_000].to_vec()), "not a manifest"),
        (
            "a deep config",
            with_config([b"{\"config\":".as_slice(), &[b'['; 100_000]].concat()),
            "the config is no image's",
        ),
        ("a config of another kind", with_config(b"[]".to_vec()), "the config is no image's"),
        (
            "a config with two of a kind",
            with_config(b"{\"os\":\"linux\",\"os\":\"linux\"}".to_vec()),
            "duplicate field",
        ),
        ("too many layers", with_config(document(too_many)), "more than 512 layers"),
    ] {
        let before = listing(&store);
        let error = store.run_with("image load -i", &[text(&files.save(&store.disk.path(), "lie.tar"))]).fails(1);
        assert!(error.contains(why), "{what}: {error}");
        assert_eq!(listing(&store), before, "{what}");
        assert_clean(&store);
    }
    // The same layer twice is no lie.
    let twice = [&base()[..], &one, &one];
    let files = Files::layout(Some("localhost/x:1"), &twice, <[u8]>::to_vec);
    store.ok_with("image load -i", &[text(&files.save(&store.disk.path(), "twice.tar"))]);
    assert_eq!(stored(&store).len(), chains(&twice).len());
    store.ok("image rm x:1");
    // A name that is none is left out, and said on one line.
    let mut odd = oci.clone();
    odd = odd.change("index.json", |index| {
        index["manifests"][0]["annotations"] = json!({ "org.opencontainers.image.ref.name": "../../\u{1b}[31mx\n" });
    });
    let done = store.run_with("image load -i", &[text(&odd.save(&store.disk.path(), "odd.tar"))]);
    assert!(done.stderr.lines().count() == 1 && !done.stderr.contains('\u{1b}'), "{done}");
    let id = hex(&serde_json::to_vec(&config(&both)).expect("JSON"));
    assert_eq!(done.ok(), format!("Loaded image: sha256:{id}"));
    store.ok(&format!("image rm {id}"));

    // In a directory, files that are something else.
    let blob = format!("blobs/sha256/{}", hex(&one));
    for (name, script, why) in [
        (blob.as_str(), "ln -s \"$1/etc/passwd\" \"$2\"", "symbolic link"),
        (&blob, "mkfifo \"$2\"", "is no plain file"),
        (&blob, "mkdir \"$2\"", "is no plain file"),
        (&blob, "mknod \"$2\" c 1 5", "is no plain file"),
        ("index.json", "ln -s \"$1/etc/passwd\" \"$2\"", ""),
        ("index.json", "mkfifo \"$2\"", ""),
    ] {
        let dir = store.disk.path().join("layout");
        oci.write(&dir);
        let path = dir.join(name);
        fs::remove_file(&path).expect("removable");
        sh("bash", &["-euc", script, "bash", text(canary.path()), text(&path)]);
        let error = store.run_with("image load -i", &[text(&dir)]).fails(1);
        assert!(error.contains(why), "{name}: {script}: {error}");
        fs::remove_dir_all(&dir).expect("removable");
        assert_clean(&store);
    }
    // And the way there, a directory that is a link.
    let dir = store.disk.path().join("layout");
    oci.write(&dir);
    fs::rename(dir.join("blobs"), store.disk.path().join("elsewhere")).expect("renamed");
    sh("ln", &["-s", "../elsewhere", text(&dir.join("blobs"))]);
    store.run_with("image load -i", &[text(&dir)]).fails(1);
    canary.assert_untouched();
    assert_eq!(stored(&store).len(), 0);
    assert_clean(&store);
}
