//! Archives that mean harm, and those that are merely broken: one clear error or a tree inside the root, and never a
//! change outside of it.

use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tupper::error::{Error, Kind};
use tupper::layer::Limits;

use crate::scratch::{Scratch, Tar, run, shell, unpack_bytes};

/// A root to unpack into, and beside it what must stay as it is.
struct Target {
    scratch: Scratch,
    canary: PathBuf,
    before: String,
}

impl Target {
    fn new() -> Target {
        let scratch = Scratch::new();
        let canary = scratch.make("canary");
        shell(
            "umask 0; mkdir d; echo precious > d/f; echo top > f; chmod 640 f; chown 7:8 f; setfattr -n user.a -v 1 f d
             touch -d @1234567.5 d/f f d .; ln f ../hard",
            &canary,
        );
        let before = state(&canary);
        Target { scratch, canary, before }
    }

    fn root(&self, name: &str) -> PathBuf {
        self.scratch.make(name)
    }

    fn assert_untouched(&self, by: &str) {
        assert_eq!(state(&self.canary), self.before, "changed by {by}");
        assert!(!Path::new("/tupper-escaped").exists() && !Path::new("/tmp/tupper-escaped").exists(), "{by}");
    }
}

fn state(directory: &Path) -> String {
    shell("find . -printf '%P %y %m %U:%G %T@ %s %n %l\\n' | sort; getfattr -Rhd -m - . ; cat f d/f", directory)
}

fn refused(bytes: &[u8], into: &Path) -> Error {
    unpack_bytes(bytes, into, &Limits::default()).expect_err("refused")
}

fn accepted(bytes: &[u8], into: &Path) {
    unpack_bytes(bytes, into, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn names_lead_nowhere_else() {
    let target = Target::new();
    let canary = target.canary.to_str().expect("UTF-8").to_owned();
    let up = format!("{}{}", "../".repeat(40), canary.trim_start_matches('/'));
    let inside = canary.trim_start_matches('/');
    for (number, name) in [format!("{canary}/f"), format!("{up}/f"), format!("a/../../{up}/f"), format!("./{up}/./f")]
        .into_iter()
        .enumerate()
    {
        for kind in [b'0', b'2', b'3', b'5', b'6'] {
            let root = target.root(&format!("n{number}{}", char::from(kind)));
            accepted(&Tar::default().entry(kind, &name, if kind == b'2' { "x" } else { "" }, b"").end(), &root);
            assert!(root.join(inside).join("f").symlink_metadata().is_ok(), "{name} is inside");
            target.assert_untouched(&name);
        }
    }
}

#[test]
fn links_resolve_inside() {
    let target = Target::new();
    let canary = target.canary.to_str().expect("UTF-8").to_owned();
    let up = format!("{}{}", "../".repeat(40), canary.trim_start_matches('/'));
    for (number, to) in [&canary, &up].into_iter().enumerate() {
        let root = target.root(&format!("l{number}"));
        // Nothing of that name is inside: there is no way on.
        let bytes = Tar::default().symlink("l", to).file("l/f", b"evil").end();
        assert_eq!(refused(&bytes, &root).kind(), Kind::Invalid);
        let root = target.root(&format!("m{number}"));
        // With such a directory inside, that one is meant.
        let bytes = Tar::default().directory(&canary).symlink("l", to).file("l/f", b"evil").directory("l/d").end();
        accepted(&bytes, &root);
        let inside = root.join(canary.trim_start_matches('/'));
        assert_eq!(std::fs::read(inside.join("f")).expect("inside"), b"evil");
        let root = target.root(&format!("o{number}"));
        // A file where a link is replaces the link.
        let file = format!("{to}/f");
        let bytes = Tar::default().symlink("l", &file).file("l", b"evil").symlink("d", to).directory("d").end();
        accepted(&bytes, &root);
        assert!(root.join("l").symlink_metadata().expect("a file").is_file());
        assert!(root.join("d").symlink_metadata().expect("a directory").is_dir());
        for bytes in [
            Tar::default().hard_link("h", &file).end(),
            Tar::default().symlink("l", to).hard_link("h", "l/f").end(),
            Tar::default().hard_link("h", format!("{up}/f")).file("h", b"evil").end(),
        ] {
            let root = target.root(&format!("h{number}{}", bytes.len()));
            let error = refused(&bytes, &root);
            assert!(error.to_string().contains("no such entry before it"), "{error}");
            std::fs::remove_dir_all(&root).expect("removable");
        }
        target.assert_untouched(to);
    }
}

#[test]
fn a_hard_link_to_a_symlink_is_that_symlink() {
    let target = Target::new();
    let root = target.root("r");
    let file = target.canary.join("f");
    let bytes = Tar::default()
        .symlink("s", file.as_os_str().as_bytes())
        .hard_link("h", "s")
        .file("h", b"mine")
        .file("a", b"1")
        .hard_link("a", "a")
        .hard_link("b", "a")
        .hard_link("b", "a")
        .end();
    accepted(&bytes, &root);
    assert_eq!(std::fs::read(root.join("h")).expect("a file"), b"mine");
    assert_eq!(std::fs::metadata(root.join("a")).expect("a file").nlink(), 2);
    assert_eq!(refused(&Tar::default().hard_link("a", "a").end(), &target.root("q")).kind(), Kind::Invalid);
    assert_eq!(refused(&Tar::default().hard_link("a", "..").end(), &target.root("p")).kind(), Kind::Invalid);
    target.assert_untouched("hard links");
}

#[test]
fn the_last_of_the_same_name_counts() {
    let target = Target::new();
    let root = target.root("r");
    let bytes = Tar::default()
        .file("a", b"1")
        .directory("a")
        .file("a/b", b"2")
        .directory("a/c")
        .file("a/c/d", b"3")
        .symlink("a/c/up", "../../..")
        .file("a", b"4")
        .entry(b'3', "n", "", b"")
        .file("n", b"5")
        .entry(b'6', "p", "", b"")
        .file("p", b"6")
        .file("f", b"7")
        .file("f", b"8")
        .directory("d")
        .file("d/kept", b"9")
        .directory("d")
        .file(".wh.name", b"")
        .file(".wh..wh..opq", b"")
        .end();
    accepted(&bytes, &root);
    for (name, text) in [("a", b"4"), ("n", b"5"), ("p", b"6"), ("f", b"8"), ("d/kept", b"9")] {
        assert_eq!(std::fs::read(root.join(name)).expect("a file"), text, "{name}");
        assert!(root.join(name).symlink_metadata().expect("a file").is_file());
    }
    assert!(root.join(".wh..wh..opq").exists());
    target.assert_untouched("duplicates");
    let error = refused(&Tar::default().file("a", b"1").file("a/b", b"2").end(), &target.root("q"));
    assert_eq!(error.to_string(), "unpack layer: enter a: it is no directory");
    assert_eq!(refused(&Tar::default().symlink(".", "x").end(), &target.root("p")).kind(), Kind::Invalid);
}

#[test]
fn long_and_deep_names_work_or_are_named() {
    let target = Target::new();
    let root = target.root("r");
    let (fits, long) = ("n".repeat(255), "n".repeat(256));
    accepted(&Tar::default().file(&fits, b"x").file(b"\xff\xfe\n", b"y").end(), &root);
    assert!(root.join(&fits).is_file());
    assert!(root.join(std::ffi::OsStr::from_bytes(b"\xff\xfe\n")).is_file());
    let error = refused(&Tar::default().file(&long, b"x").end(), &root);
    assert!(error.to_string().ends_with("file name too long"), "{error}");

    let deep = target.root("deep");
    let mut tar = Tar::default();
    let mut name = String::new();
    for _ in 0..10_000 {
        name += "d/";
        tar = tar.directory(&name);
    }
    tar = tar.file(format!("{name}f"), b"deep").hard_link("near", format!("{name}f"));
    accepted(&tar.file("after", b"x").end(), &deep);
    let near = std::fs::metadata(deep.join("near")).expect("linked");
    assert_eq!((near.nlink(), std::fs::read(deep.join("near")).expect("readable")), (2, b"deep".to_vec()));
    assert_eq!(std::fs::metadata(deep.join("d")).expect("a directory").mtime(), 1_000_000);
    // At once, without entries on the way; and away again.
    accepted(&Tar::default().file(format!("{}f", "e/".repeat(10_000)), b"x").file("e", b"y").end(), &deep);
    assert_eq!(std::fs::read(deep.join("e")).expect("a file"), b"y");
    let limits = Limits { depth: 3, ..Limits::default() };
    let error = unpack_bytes(&Tar::default().file("1/2/3/4", b"").end(), &deep, &limits).expect_err("too deep");
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    accepted(&Tar::default().file("d", b"gone").end(), &deep);
    target.assert_untouched("long names");
}

#[test]
fn sizes_are_limited_by_name() {
    let target = Target::new();
    let root = target.root("r");
    let big = vec![0u8; 3 << 20];
    let bomb = Tar::default().file("big", &big).end();
    let limits = Limits { bytes: Some(1 << 20), ..Limits::default() };
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    gzip.write_all(&bomb).expect("to memory");
    for bytes in [bomb.clone(), gzip.finish().expect("to memory"), zstd::encode_all(&bomb[..], 19).expect("to memory")]
    {
        let error = unpack_bytes(&bytes, &root, &limits).expect_err("a bomb");
        assert_eq!((error.kind(), error.to_string().contains("1048576 bytes")), (Kind::Limit, true), "{error}");
    }
    let trailing = [Tar::default().file("f", b"x").end(), big.clone()].concat();
    assert_eq!(unpack_bytes(&trailing, &root, &limits).expect_err("a bomb behind").kind(), Kind::Limit);

    let limits = Limits { pax: 100, name: 50, entries: 3, file_size: 1000, ..Limits::default() };
    let three = Tar::default().file("1", b"").file("2", b"").file("3", b"");
    let sparse: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"1001"), ("GNU.sparse.numblocks", b"0"), ("GNU.sparse.map", b"")];
    for (bytes, what) in [
        (Tar::default().pax(&[("comment", &[b'x'; 100])]).file("f", b"").end(), "extended header"),
        (Tar::default().entry(b'g', "g", "", &[b'x'; 101]).end(), "global extended header"),
        (Tar::default().entry(b'L', "L", "", &[b'x'; 51]).end(), "long name"),
        (Tar::default().pax(&[("path", &[b'x'; 60])]).file("f", b"").end(), "a name is longer"),
        (three.file("4", b"").end(), "more than 3 entries"),
        (Tar::default().file("u/v/w/4", b"").end(), "more than 3 entries"),
        (Tar::default().pax(sparse).file("f", b"").end(), "larger than 1000"),
        (Tar::default().file("f", &[0; 1001]).end(), "larger than 1000"),
    ] {
        let error = unpack_bytes(&bytes, &root, &limits).expect_err(what);
        assert!(error.kind() == Kind::Limit && error.to_string().contains(what), "{what}: {error}");
    }
}

#[test]
fn a_cut_archive_is_never_accepted() {
    let target = Target::new();
    let whole = Tar::default()
        .directory("d")
        .pax(&[("path", b"d/long")])
        .file("x", &[7; 700])
        .file("d/g", b"x")
        .symlink("s", "d")
        .end();
    let root = target.root("r");
    // The last block of zeros may be missing; nothing else.
    for length in (0..whole.len() - 512).step_by(64) {
        assert_eq!(refused(&whole[..length], &root).kind(), Kind::Invalid, "cut at {length}");
    }
    accepted(&whole[..whole.len() - 512], &root);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&whole).expect("to memory");
    let gzip = gzip.finish().expect("to memory");
    for length in 0..gzip.len() {
        assert!(unpack_bytes(&gzip[..length], &root, &Limits::default()).is_err(), "cut at {length}");
    }
    // Several members are one stream.
    let member = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).expect("to memory");
        gzip.finish().expect("to memory")
    };
    let two = [member(&whole[..777]), member(&whole[777..])].concat();
    let plain = unpack_bytes(&whole, &root, &Limits::default()).expect("whole");
    assert_eq!(unpack_bytes(&two, &root, &Limits::default()).expect("two members").diff_id, plain.diff_id);
    let more = unpack_bytes(&[&whole[..], b"more"].concat(), &root, &Limits::default()).expect("as tar does");
    assert_ne!(more.diff_id, plain.diff_id);
    assert!(refused(b"", &root).to_string().contains("empty"));
    assert!(refused(&[b'x'; 2048], &root).to_string().contains("not a tar header"));
}

#[test]
fn what_readers_disagree_about_is_refused() {
    let target = Target::new();
    let root = target.root("r");
    let inner = Tar::default().file("smuggled", b"x").0;
    // CVE-2025-62518: the record says that all of it is data, the header that there is none.
    let mut smuggling = Tar::default().pax(&[("size", inner.len().to_string().as_bytes())]).file("f", b"");
    smuggling.0.extend(&inner);
    accepted(&smuggling.end(), &root);
    assert_eq!(std::fs::metadata(root.join("f")).expect("a file").len(), inner.len() as u64);
    assert!(!root.join("smuggled").exists());
    let gap = [Tar::default().file("a", b"").0, vec![0; 512], Tar::default().file("b", b"").end()].concat();
    for (bytes, kind) in [
        (gap, Kind::Invalid),
        (Tar::default().entry(b'5', "d", "", b"data").end(), Kind::Invalid),
        (Tar::default().entry(b'2', "s", "t", b"data").end(), Kind::Invalid),
        (Tar::default().symlink("s", "").end(), Kind::Invalid),
        (Tar::default().entry(b'?', "q", "", b"").end(), Kind::Unsupported),
        (Tar::default().entry(b'M', "q", "", b"").end(), Kind::Unsupported),
        (Tar::default().entry(b'g', "g", "", b"9 path=x\n").file("f", b"").end(), Kind::Invalid),
        (Tar::default().entry(b'g', "g", "", b"24 SCHILY.xattr.user.a=\n").file("f", b"").end(), Kind::Unsupported),
        (Tar::default().pax(&[("uid", b"1")]).pax(&[("gid", b"1")]).file("f", b"").end(), Kind::Invalid),
        (Tar::default().pax(&[("uid", b"4294967295")]).file("f", b"").end(), Kind::Invalid),
        (Tar::default().pax(&[("path", b"a\0b")]).file("f", b"").end(), Kind::Invalid),
        (
            Tar::default().pax(&[("GNU.sparse.map", b"0,9"), ("GNU.sparse.size", b"4")]).file("f", b"123456789").end(),
            Kind::Invalid,
        ),
        (Tar::default().pax(&[("SCHILY.acl.access", b"user:lisa:rwx")]).file("f", b"").end(), Kind::Invalid),
    ] {
        let error = refused(&bytes, &root);
        assert_eq!(error.kind(), kind, "{error}");
    }
    target.assert_untouched("smuggling");
}

#[test]
fn devices_are_made_and_never_opened() {
    let target = Target::new();
    let root = target.root("r");
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Char);
    header.set_size(0);
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(5);
    header.set_mtime(0);
    header.set_device_major(5).and(header.set_device_minor(1)).expect("a device");
    let bytes = Tar::default().raw(header, b"console", b"", b"").entry(b'6', "p", "", b"").end();
    accepted(&bytes, &root);
    let console = std::fs::metadata(root.join("console")).expect("a device");
    assert!(console.file_type().is_char_device());
    assert_eq!((console.rdev(), console.gid(), console.permissions().mode() & 0o7777), (0x501, 5, 0o666));
    assert!(std::fs::metadata(root.join("p")).expect("a pipe").file_type().is_fifo());
}

/// Headers of empty files without end, as a reader that never holds more than one.
struct Million {
    left: u32,
    block: Vec<u8>,
}

impl Read for Million {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.block.is_empty() && self.left > 0 {
            self.left -= 1;
            // All of them one file with a name of its own each: a million links need no million inodes.
            let name = format!("{:03}/{}", self.left / 20_000, self.left);
            self.block = match self.left {
                0 => vec![0; 1024],
                left if left % 20_000 == 19_999 => Tar::default().file(&name, b"").0,
                left => {
                    Tar::default()
                        .hard_link(&name, format!("{:03}/{}", left / 20_000, left / 20_000 * 20_000 + 19_999))
                        .0
                }
            };
        }
        let length = into.len().min(self.block.len());
        into[..length].copy_from_slice(&self.block[..length]);
        self.block.drain(..length);
        Ok(length)
    }
}

fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("proc");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).expect("a peak");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("a number") << 10
}

/// In a process of its own: the peak is the process's, and other tests hold large archives.
#[test]
fn a_million_entries_need_no_memory() {
    if std::env::var_os("TUPPER_IT_ALONE").is_none() {
        let alone = std::env::current_exe().expect("this program");
        let test = ["--exact", "hostile::a_million_entries_need_no_memory"];
        let output = run(std::process::Command::new(alone).args(test).env("TUPPER_IT_ALONE", "1"));
        assert!(String::from_utf8_lossy(&output).contains("1 passed"));
        return;
    }
    let target = Target::new();
    let root = target.root("r");
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak can be reset");
    let before = peak_memory();
    let into = std::fs::File::open(&root).expect("a directory");
    let bytes = Million { left: 1_000_000, block: Vec::new() };
    let unpacked = tupper::layer::unpack(Box::new(bytes), std::os::fd::AsFd::as_fd(&into), &Limits::default());
    assert_eq!(unpacked.expect("a million").entries, 999_999);
    let grown = peak_memory().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_archives_end(changes in prop::collection::vec((0usize..8192, any::<u8>()), 1..20), cut in 0usize..8192) {
        let root = tempfile::tempdir().expect("a directory");
        let mut bytes = Tar::default()
            .directory("d")
            .pax(&[("path", b"d/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("x", &[7; 700])
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9")])
            .file("s", &[b"1\n0\n3\n".to_vec(), vec![0; 506], b"abc".to_vec()].concat())
            .file("n".repeat(150), b"x")
            .hard_link("h", "d/long")
            .symlink("l", "/etc")
            .end();
        // A header that was changed is only looked into with its checksum made right again.
        for (at, value) in changes {
            let at = at % bytes.len();
            bytes[at] = value;
            let block = at / 512 * 512;
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(&bytes[block..block + 512]);
            header.set_cksum();
            if bytes[block + 155] == b' ' || at % 2 == 0 {
                bytes[block..block + 512].copy_from_slice(header.as_bytes());
            }
        }
        bytes.truncate(cut.max(bytes.len() / 2).min(bytes.len()));
        let limits = Limits { file_size: 1 << 20, ..Limits::default() };
        let _ = unpack_bytes(&bytes, root.path(), &limits);
    }

    #[test]
    fn noise_ends(bytes in prop::collection::vec(any::<u8>(), 0..4096), magic in 0usize..6) {
        let root = tempfile::tempdir().expect("a directory");
        let magic = [&b""[..], b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh91AY&SY", b"\x50\x2a\x4d\x18"][magic];
        prop_assert!(unpack_bytes(&[magic, &bytes].concat(), root.path(), &Limits::default()).is_err());
    }
}
