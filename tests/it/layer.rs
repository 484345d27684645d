//! Everything that a root filesystem holds survives an unpack, and a pack.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use tupper::layer::{Limits, Unpacked, pack, unpack};

use crate::scratch::{Scratch, Tar, shell, unpack_bytes};

/// One of everything.
const TREE: &str = r#"
umask 0
mkdir -p bin etc/deep/er var/mail empty dev
echo elf > bin/su; chown 0:0 bin/su; chmod 4755 bin/su
echo elf > bin/wall; chown 0:5 bin/wall; chmod 2755 bin/wall
echo elf > bin/owned; chown 1000:100 bin/owned; chmod 6751 bin/owned
echo elf > bin/ping; setcap cap_net_raw+ep bin/ping
echo elf > bin/capped; chown 33:33 bin/capped; setcap cap_net_raw+ep bin/capped
echo big > etc/big; chown 100000:4294967294 etc/big
printf x > etc/xattr; setfattr -n user.a -v "" etc/xattr; setfattr -n user.b -v 0x00ff0a3d etc/xattr; setfattr -n trusted.t -v t etc/xattr
echo acl > etc/acl; chmod 640 etc/acl; setfacl -m u:12345:rw,g:23456:r etc/acl
mkdir etc/defaults; setfacl -d -m u:12345:rwx etc/defaults; setfacl -m g:23456:rx etc/defaults
echo in > etc/defaults/in; setfacl -b etc/defaults/in; chmod 600 etc/defaults/in; mkdir etc/defaults/sub; setfacl -k -b etc/defaults/sub; chmod 711 etc/defaults/sub
mkdir var/setgid; chown 0:50 var/setgid; chmod 2775 var/setgid
echo in > var/setgid/in; chgrp 0 var/setgid/in; mkdir var/setgid/sub; chgrp 0 var/setgid/sub; chmod 755 var/setgid/sub
mkdir tmp; chmod 1777 tmp
ln etc/big etc/deep/hard; ln -s /etc/big sym; ln -s ../nowhere etc/dangling; chown -h 5:6 sym; ln sym hardsym
setfattr -h -n trusted.s -v s sym
mkfifo pipe; chmod 622 pipe; chown 3:4 pipe
mknod dev/console c 5 1; mknod dev/sda b 8 0; mknod dev/large c 4095 1048575; chown 0:6 dev/sda; chmod 660 dev/sda
truncate -s 5M holes; printf data | dd of=holes bs=1 seek=1048576 conv=notrunc status=none; printf end | dd of=holes bs=1 seek=3145729 conv=notrunc status=none
truncate -s 1M hole; truncate -s 300K tail; printf y | dd of=tail bs=1 conv=notrunc status=none
for i in $(seq 0 2 60); do printf piece | dd of=pieces bs=1 seek=$((i*65536)) conv=notrunc status=none; done; truncate -s 9M pieces
long=$(printf 'l%.0s' $(seq 200)); mkdir -p $long/$long; echo deep > $long/$long/$long; ln -s $long/$long/$long longlink; ln $long/$long/$long longhard
echo raw > $'raw\xff\xfe name\n'; echo back > 'back\slash'; mkdir $'dir\x80'; : > 'star*'
head -c 300000 /dev/zero | tr '\0' x > large
touch -d '1969-12-31 23:59:58.25 UTC' etc/big; touch -d '2100-01-01 00:00:00.123456789 UTC' bin/su
touch -h -d '2001-02-03 04:05:06.7 UTC' sym; touch -d '1901-01-01 UTC' etc/deep/er
touch -d '2011-11-11 11:11:11.000000001 UTC' pipe dev/sda empty etc/deep var/setgid etc/defaults $long bin etc var dev .
"#;

/// All that can be told of a tree, as text; `.` of a subvolume or directory alike.
fn told(directory: &Path) -> String {
    shell(
        r#"export LC_ALL=C
find . -print0 | sort -z | xargs -r0 stat --printf '%N %F %a %u:%g %y %t:%T %h\n' | sed 's/ directory \(.*\) [0-9]*$/ directory \1/'
find . ! -type d -print0 | sort -z | xargs -r0 stat --printf '%N %s\n'
find . -print0 | sort -z | xargs -r0 getfattr -hd -m - -e hex
find . -type f -print0 | sort -z | xargs -r0 sha256sum
find . -type f -links +1 -print0 -o -type l -links +1 -print0 | sort -z | xargs -r0 stat --printf '%n %i\n' | awk '{ if (!($NF in seen)) seen[$NF] = ++n; $NF = seen[$NF]; print }'"#,
        directory,
    )
}

fn unpack_file(tar: &Path, into: &Path) -> Unpacked {
    let into = File::open(into).expect("a directory");
    unpack(Box::new(File::open(tar).expect("an archive")), into.as_fd(), &Limits::default())
        .unwrap_or_else(|e| panic!("{}: {e}", tar.display()))
}

fn packed(directory: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(directory, &[]).and_then(|mut stream| Ok(stream.read_to_end(&mut bytes)?)).unwrap_or_else(|e| panic!("{e}"));
    bytes
}

#[test]
fn what_gnu_tar_wrote_survives() {
    let scratch = Scratch::new();
    let tree = scratch.make("tree");
    shell(TREE, &tree);
    let expected = told(&tree);
    let everything = "--xattrs --xattrs-include='*' --acls --numeric-owner --sparse";
    for (number, format) in [
        "--format=pax --sparse-version=1.0",
        "--format=pax --sparse-version=0.1",
        "--format=pax --sparse-version=0.0",
        "--format=posix --sort=name --hole-detection=raw",
    ]
    .into_iter()
    .enumerate()
    {
        let tar = scratch.path().join(format!("{number}.tar"));
        shell(&format!("tar {everything} {format} -cf {} .", tar.display()), &tree);
        let (ours, theirs) = (scratch.make(&format!("ours{number}")), scratch.make(&format!("theirs{number}")));
        unpack_file(&tar, &ours);
        shell(&format!("tar -xpf {} {everything}", tar.display()), &theirs);
        similar_asserts(&told(&ours), &expected, format);
        similar_asserts(&told(&ours), &told(&theirs), &format!("{format}, unpacked by tar"));
        let blocks = |name| std::fs::metadata(ours.join(name)).expect("a file").blocks() * 512;
        assert!(blocks("hole") == 0 && blocks("holes") < 64 << 10, "{format}: holes are kept");
    }
    // GNU's own format keeps no fractions, no attributes and no owners before 1970 in octal: compare with tar alone.
    for (number, format) in ["gnu", "oldgnu"].into_iter().enumerate() {
        let tar = scratch.path().join(format!("g{number}.tar"));
        shell(&format!("tar --sparse --numeric-owner --format={format} -cf {} .", tar.display()), &tree);
        let (ours, theirs) = (scratch.make(&format!("g-ours{number}")), scratch.make(&format!("g-theirs{number}")));
        unpack_file(&tar, &ours);
        shell(&format!("tar -xpf {} --numeric-owner", tar.display()), &theirs);
        similar_asserts(&told(&ours), &told(&theirs), format);
    }
    for (number, format) in ["v7", "ustar"].into_iter().enumerate() {
        let tar = scratch.path().join(format!("v{number}.tar"));
        let names = "bin/su bin/wall bin/owned tmp var sym large star*";
        shell(&format!("tar --numeric-owner --mtime=@1000 --format={format} -cf {} {names}", tar.display()), &tree);
        let (ours, theirs) = (scratch.make(&format!("v-ours{number}")), scratch.make(&format!("v-theirs{number}")));
        unpack_file(&tar, &ours);
        shell(&format!("tar -xpf {} --numeric-owner", tar.display()), &theirs);
        shell("touch -d @0 . bin", &ours);
        shell("touch -d @0 . bin", &theirs);
        similar_asserts(&told(&ours), &told(&theirs), format);
    }
}

fn similar_asserts(found: &str, expected: &str, what: &str) {
    for (found, expected) in found.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(found.lines().count(), expected.lines().count(), "{what}");
}

#[test]
fn a_packed_tree_unpacks_to_itself_and_to_the_same_bytes() {
    let scratch = Scratch::new();
    let tree = scratch.make("tree");
    shell(TREE, &tree);
    let bytes = packed(&tree);
    let (ours, theirs) = (scratch.make("ours"), scratch.make("theirs"));
    let unpacked = unpack_bytes(&bytes, &ours, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    similar_asserts(&told(&ours), &told(&tree), "unpacked");
    assert_eq!(packed(&tree), bytes, "packed twice");
    let again = packed(&ours);
    assert!(again == bytes, "what was unpacked packs to the same bytes");
    let stream = pack(&ours, &[]).expect("a stream");
    let into = File::open(scratch.make("stream")).expect("a directory");
    let streamed = unpack(Box::new(stream), into.as_fd(), &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(streamed, unpacked);
    let tar = scratch.path().join("packed.tar");
    std::fs::write(&tar, &bytes).expect("a file");
    shell(&format!("tar -xpf {} --xattrs --xattrs-include='*' --numeric-owner", tar.display()), &theirs);
    similar_asserts(&told(&theirs), &told(&tree), "unpacked by tar");
}

#[test]
fn a_stream_that_is_dropped_ends_its_packer() {
    let scratch = Scratch::new();
    let tree = scratch.make("tree");
    shell("head -c 20000000 /dev/zero | tr '\\0' x > large", &tree);
    let mut stream = pack(&tree, &[]).expect("a stream");
    stream.read_exact(&mut [0; 1000]).expect("the first bytes");
    drop(stream);
    assert!(pack(&tree.join("large"), &[]).is_err());
    assert!(pack(&tree.join("missing"), &[]).is_err());
    assert!(pack(&tree, &[&tree.join("missing")]).is_err());
}

#[test]
fn sockets_and_what_is_mounted_are_left_out_of_a_pack() {
    let scratch = Scratch::new();
    let (tree, copy) = (scratch.make("tree"), scratch.make("copy"));
    shell(
        "btrfs -q subvolume create sub; echo x > sub/inside; mkdir m; mount -t tmpfs tmpfs m; echo x > m/inside",
        &tree,
    );
    let socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("a socket");
    let bytes = packed(&tree);
    drop(socket);
    shell("umount m", &tree);
    unpack_bytes(&bytes, &copy, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shell("find . | sort", &copy), ".\n./m\n./sub\n");
}

#[test]
fn directories_that_are_not_wanted_are_packed_empty() {
    let scratch = Scratch::new();
    let (tree, copy) = (scratch.make("tree"), scratch.make("copy"));
    shell("mkdir -p a/b a/z; echo x > a/b/inside; btrfs -q subvolume create a/s; echo x > a/s/inside", &tree);
    shell("echo x > a/z/beside; ln -s b a/l", &tree);
    let mut bytes = Vec::new();
    let mut stream = pack(&tree, &[&tree.join("a/l"), &tree.join("a/s")]).expect("a stream");
    stream.read_to_end(&mut bytes).unwrap_or_else(|e| panic!("{e}"));
    unpack_bytes(&bytes, &copy, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(shell("find . | sort", &copy), ".\n./a\n./a/b\n./a/l\n./a/s\n./a/z\n./a/z/beside\n");
}

#[test]
fn entries_may_come_in_any_order() {
    let scratch = Scratch::new();
    let root = scratch.make("root");
    let time = |name: &str| std::fs::metadata(root.join(name)).expect("there").mtime();
    let bytes = Tar::default()
        .directory("a")
        .directory("a/b")
        .file("z", b"")
        .file("a/b/late", b"x")
        .file("made/on/the/way", b"x")
        .symlink("l", "a/b")
        .file("l/through", b"x")
        .directory("made")
        .directory("./")
        .file("last", b"")
        .end();
    unpack_bytes(&bytes, &root, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
    for name in ["a", "a/b", "made", "", "z", "a/b/through"] {
        assert_eq!(time(name), 1_000_000, "{name}");
    }
    assert_eq!(std::fs::metadata(root.join("made/on")).expect("made").mode(), 0o40755);
}

#[test]
fn a_full_disk_is_named_and_ends_all_stages() {
    let scratch = Scratch::new();
    shell("mount -t tmpfs -o size=1M tmpfs .", &scratch.make("small"));
    let small = scratch.path().join("small");
    let bytes = Tar::default().directory("usr").file("usr/big", &vec![1; 40 << 20]).end();
    let error = unpack_bytes(&bytes, &small, &Limits::default()).expect_err("no space");
    shell("umount small", &scratch.path());
    assert_eq!(error.to_string(), "unpack layer: write usr/big: no space left on device");
    assert_eq!(error.kind(), tupper::error::Kind::NoSpace);
}

#[derive(Debug, Clone)]
struct Sketch {
    name: String,
    kind: u8,
    mode: u32,
    owner: u32,
    time: (i64, u32),
    text: Vec<u8>,
}

fn sketch() -> impl Strategy<Value = Sketch> {
    let time = (-5_000_000_000i64..9_000_000_000, prop_oneof![Just(0), 0u32..1_000_000_000]);
    let owner = prop_oneof![Just(0), 0u32..3_000_000_000];
    ("[a-c]{1,2}(/[a-c]{1,120}){0,2}", 0u8..6, 0u32..0o10000, owner, time, prop::collection::vec(any::<u8>(), 0..2000))
        .prop_map(|(name, kind, mode, owner, time, text)| Sketch { name, kind, mode, owner, time, text })
}

/// Draws a tree; a sketch whose name is in the way of another's is left out.
fn draw(root: &Path, sketches: &[Sketch]) {
    let mut drawn: Vec<&Sketch> = Vec::new();
    for sketch in sketches {
        let path = root.join(&sketch.name);
        let parent = path.parent().expect("below the root");
        if path.symlink_metadata().is_ok() || std::fs::create_dir_all(parent).is_err() {
            continue;
        }
        let made = match (sketch.kind, drawn.iter().rfind(|d| d.kind == 0)) {
            (1, _) => std::fs::create_dir(&path),
            (2, _) => std::os::unix::fs::symlink("x".repeat(1 + sketch.text.len() / 10), &path),
            (3, Some(first)) => std::fs::hard_link(root.join(&first.name), &path),
            (4, _) => std::fs::write(&path, b"").and_then(|()| {
                let file = File::options().write(true).open(&path)?;
                std::os::unix::fs::FileExt::write_all_at(&file, &sketch.text, u64::from(sketch.mode) * 1000)
            }),
            _ => std::fs::write(&path, &sketch.text),
        };
        made.expect("drawn");
        if !matches!(sketch.kind, 2 | 3) {
            std::os::unix::fs::chown(&path, Some(sketch.owner), Some(sketch.owner / 2)).expect("owned");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(sketch.mode);
            std::fs::set_permissions(&path, mode).expect("moded");
        }
        drawn.push(sketch);
    }
    for sketch in drawn.iter().rev().filter(|sketch| sketch.kind != 2) {
        let (seconds, nanoseconds) = sketch.time;
        let time = format!("@{seconds}.{nanoseconds:09}");
        shell(&format!("touch -d {time} {}", sketch.name), root);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_tree_survives_the_round(sketches in prop::collection::vec(sketch(), 0..12)) {
        let scratch = Scratch::new();
        let (tree, copy) = (scratch.make("tree"), scratch.make("copy"));
        draw(&tree, &sketches);
        shell("echo x > .always", &tree);
        let bytes = packed(&tree);
        unpack_bytes(&bytes, &copy, &Limits::default()).unwrap_or_else(|e| panic!("{e}"));
        prop_assert!(packed(&copy) == bytes);
        similar_asserts(&told(&copy), &told(&tree), "a tree");
    }
}
