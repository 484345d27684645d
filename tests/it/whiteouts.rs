//! Layers on layers: what a whiteout hides, and what it does not (image-spec layer.md, "Whiteouts").

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Cursor;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use proptest::prelude::*;
use tupper::error::{Kind, Result};
use tupper::layer::{Limits, Opened};

use crate::scratch::{Scratch, Tar, rebuilt, recipe, shell};
use crate::support::canary::Canary;
use crate::support::tree::Tree;

fn apply(tar: Tar, into: &Path) -> Result<()> {
    let bytes = tar.end();
    let into = File::open(into).expect("a directory");
    let ((_beside, recipe), copy) = (recipe(), bytes.clone());
    Opened::open(|| Ok(Box::new(Cursor::new(copy))), &Limits::default(), std::sync::Arc::new(|_| Ok(())))?
        .apply(into.as_fd(), Some(&recipe))?;
    if let Some(rebuilt) = rebuilt(&recipe, into) {
        assert!(rebuilt == bytes, "put together again it is another archive");
    }
    Ok(())
}

fn applied(tar: Tar, into: &Path) {
    apply(tar, into).unwrap_or_else(|e| panic!("{e}"));
}

/// An entry: `d/` is a directory, `f=x` a file, `l>t` a symlink, `h&t` a hard link, anything else an empty file.
fn entries(words: &[&str]) -> Tar {
    words.iter().fold(Tar::default(), |tar, word| {
        if let Some((name, data)) = word.split_once('=') {
            tar.file(name, data.as_bytes())
        } else if let Some((name, target)) = word.split_once('>') {
            tar.symlink(name, target)
        } else if let Some((name, target)) = word.split_once('&') {
            tar.hard_link(name, target)
        } else if let Some(name) = word.strip_suffix('/') {
            tar.directory(name)
        } else {
            tar.file(word, b"")
        }
    })
}

/// What is there, in the words of [`entries`], sorted.
fn listing(root: &Path) -> String {
    let find = r#"find . -mindepth 1 \( -type d -printf '%P/\n' \) -o \( -type l -printf '%P>%l\n' \) -o -type f -print |
        while IFS= read -r f; do if [ -f "$f" ] && [ ! -L "$f" ]; then echo "${f#./}=$(cat "$f")"; else echo "$f"; fi; done |
        sort | tr '\n' ' '"#;
    shell(find, root).trim_end().to_string()
}

#[test]
fn a_whiteout_hides_what_lies_below_and_nothing_of_its_own_layer() {
    let scratch = Scratch::new();
    let cases: &[(&str, &str, &str)] = &[
        // Names: files, trees, links, what is not there.
        ("a=1 b=2", ".wh.a", "b=2"),
        ("d/ d/a=1 d/b=2", "d/.wh.a", "d/ d/b=2"),
        ("d/ d/e/ d/e/f=1 g=1", ".wh.d", "g=1"),
        ("l>d d/ d/f=1", ".wh.l", "d/ d/f=1"),
        ("l>d d/ d/f=1", "l/.wh.f", "d/ l>d"),
        ("l>/d d/ d/f=1", "l/.wh.f", "d/ l>/d"),
        ("a=1", ".wh.b", "a=1"),
        ("a=1", "d/.wh.b", "a=1"),
        ("a=1", "a/.wh.b", "a=1"),
        ("l>x a=1", "l/.wh.b", "a=1 l>x"),
        ("a=1 b&a", ".wh.a", "b=1"),
        ("..a=1 .b=2 c=3", ".wh...a .wh..b", "c=3"),
        // Not what its own layer has, before or after it.
        ("a=1", "a=2 .wh.a", "a=2"),
        ("a=1", ".wh.a a=2", "a=2"),
        ("", "a=2 .wh.a", "a=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/ d/b=2 .wh.d", "d/ d/b=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", ".wh.d d/ d/b=2", "d/ d/b=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/e/g=2 .wh.d", "d/ d/e/ d/e/g=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", ".wh.d d/e/g=2", "d/ d/e/ d/e/g=2"),
        ("d/ d/a=1", "d/ .wh.d", "d/"),
        ("d/ d/a=1", "d=2 .wh.d", "d=2"),
        ("a=1", "a/ a/b=2 .wh.a", "a/ a/b=2"),
        // A hard link to what lies below is of the layer that makes it.
        ("a=1", "b&a .wh.b", "a=1 b=1"),
        ("a=1", "b&a .wh.a", "b=1"),
        ("d/ d/a=1 d/c=3", "d/b&d/a d/.wh..wh..opq", "d/ d/b=1"),
        ("a=1 b=2", "b&a .wh.b", "a=1 b=1"),
        // Opaque: all that lies below, wherever the marker stands.
        ("d/ d/a=1 d/e/ d/e/f=1 g=1", "d/ d/.wh..wh..opq", "d/ g=1"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/ d/.wh..wh..opq d/n=2", "d/ d/n=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/ d/n=2 d/.wh..wh..opq", "d/ d/n=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/ d/e/ d/e/n=2 d/.wh..wh..opq", "d/ d/e/ d/e/n=2"),
        ("d/ d/a=1 d/e/ d/e/f=1", "d/ d/e/n=2 d/.wh..wh..opq", "d/ d/e/ d/e/n=2"),
        ("d/ d/a=1", "d/ d/a=2 d/.wh..wh..opq", "d/ d/a=2"),
        ("d/ d/a=1 b=1", ".wh..wh..opq c=2", "c=2"),
        ("d/ d/a=1 b=1", "c=2 .wh..wh..opq", "c=2"),
        ("a=1", "d/.wh..wh..opq", "a=1"),
        ("d/ d/a=1", "d/.wh.a .wh.d", ""),
        ("d/ d/a=1", ".wh.d d/.wh.a d/.wh..wh..opq", ""),
        ("d/ d/.h=1 d/..x=1", "d/.wh..wh..opq", "d/"),
        // Not below a link that is replaced, and not behind one.
        ("d/ d/a=1 l>d", "l/ l/.wh..wh..opq l/n=2", "d/ d/a=1 l/ l/n=2"),
        ("d/ d/a=1 l>d", ".wh.l l/ l/n=2", "d/ d/a=1 l/ l/n=2"),
        // File over directory and back, without a whiteout.
        ("d/ d/a=1 d/e/ d/e/f=1", "d=2", "d=2"),
        ("a=1", "a/ a/b=2", "a/ a/b=2"),
        ("d/ d/a=1", "d>x", "d>x"),
        ("a>x", "a/ a/b=2", "a/ a/b=2"),
        ("d/ d/a=1", "d/ d/b=2", "d/ d/a=1 d/b=2"),
        // AUFS's notes.
        ("a=1", ".wh..wh.plnk/ .wh..wh.plnk/1.2=x .wh..wh.aufs d/ d/.wh..wh.orph/", "a=1 d/"),
    ];
    for (number, (below, layer, expected)) in cases.iter().enumerate() {
        let root = scratch.make(&format!("r{number}"));
        let words = |text: &str| entries(&text.split_whitespace().collect::<Vec<_>>());
        applied(words(below), &root);
        applied(words(layer), &root);
        assert_eq!(listing(&root), *expected, "{below}  +  {layer}");
    }
}

#[test]
fn in_the_lowest_layer_and_in_a_root_filesystem() {
    let scratch = Scratch::new();
    let root = scratch.make("layer");
    applied(entries(&["a=1", ".wh.a", ".wh.b", "d/.wh..wh..opq", "d/c=3"]), &root);
    assert_eq!(listing(&root), "a=1 d/ d/c=3");
    // A root filesystem lies on nothing: there it is a name like any other.
    let root = scratch.make("root");
    crate::scratch::unpack_bytes(&entries(&["a=1", ".wh.a=2"]).end(), &root, &Limits::default()).expect("sound");
    assert_eq!(listing(&root), ".wh.a=2 a=1");
}

#[test]
fn a_whiteout_of_nothing_or_of_the_way_up_is_refused() {
    let scratch = Scratch::new();
    let canary = Canary::new();
    let up = format!("{}{}", "../".repeat(30), canary.path().strip_prefix("/").expect("absolute").display());
    for (number, name) in [
        ".wh.",
        "d/.wh.",
        ".wh..",
        "d/.wh..",
        ".wh...",
        "d/.wh...",
        ".wh.d/f",
        ".wh..wh..opq/f",
        &format!("{up}/.wh.."),
    ]
    .into_iter()
    .enumerate()
    {
        let root = scratch.make(&format!("r{number}"));
        applied(entries(&["d/", "d/f=1"]), &root);
        let before = Tree::read(&root);
        for kind in [b'0', b'2', b'5', b'1'] {
            let error = apply(Tar::default().entry(kind, name, "d/f", b""), &root).expect_err(name);
            assert_eq!(error.kind(), Kind::Invalid, "{name}: {error}");
        }
        before.assert_same(&Tree::read(&root));
    }
    canary.assert_untouched();
}

#[test]
fn a_whiteout_never_leads_out() {
    let scratch = Scratch::new();
    let canary = Canary::new();
    let outside = canary.path().to_str().expect("UTF-8").to_string();
    let up = format!("{}{}", "../".repeat(30), outside.trim_start_matches('/'));
    for (number, layer) in [
        vec![format!("{outside}/etc/.wh.passwd")],
        vec![format!("{up}/etc/.wh.passwd"), format!("{up}/.wh.etc")],
        vec![format!("{up}/.wh..wh..opq")],
        // The directory has to be there inside: links resolve in the root.
        vec![format!("{}/", outside.trim_start_matches('/')), format!("l>{outside}"), "l/.wh.etc".into()],
        vec![format!("{}/", outside.trim_start_matches('/')), format!("l>{up}"), "l/.wh..wh..opq".into()],
        vec![format!("{}/", outside.trim_start_matches('/')), format!("l>{outside}"), ".wh.l".into()],
    ]
    .iter()
    .enumerate()
    {
        let root = scratch.make(&format!("r{number}"));
        applied(entries(&["etc/", "etc/passwd=1"]), &root);
        applied(entries(&layer.iter().map(String::as_str).collect::<Vec<_>>()), &root);
        canary.assert_untouched();
    }
}

#[test]
fn an_entry_of_a_directory_says_all_that_is_known_of_it() {
    let scratch = Scratch::new();
    let root = scratch.make("r");
    applied(entries(&["d/", "d/a=1", "e/", "e/a=1"]), &root);
    shell("chmod 2700 d e; chown 7:8 d e; setfattr -n user.note -v x d e; setfacl -d -m u:9:rwx d e", &root);
    let before = Tree::read(&root);
    applied(entries(&["d/", "d/b=2", "e/.wh.a"]), &root);
    let after = Tree::read(&root);
    let d = after.entry("d");
    assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o755, 0, 0, (1_000_000, 0)));
    assert!(d.xattrs.is_empty(), "of the layer below: {:?}", d.xattrs);
    assert!(after.entry("d/b").xattrs.is_empty(), "inherited: {:?}", after.entry("d/b").xattrs);
    // One without an entry stays as it is, with its times, whatever goes from it.
    assert_eq!(after.entry("e"), before.entry("e"));
}

#[test]
fn what_stays_of_a_hidden_directory_is_what_the_layer_says() {
    let scratch = Scratch::new();
    for (number, order) in [[".wh.d", "d/e/n=1"], ["d/e/n=1", ".wh.d"]].into_iter().enumerate() {
        let root = scratch.make(&format!("r{number}"));
        applied(entries(&["d/", "d/a=1", "d/e/"]), &root);
        shell("chmod 700 d d/e; chown 7:8 d d/e; setfattr -n user.note -v x d d/e", &root);
        applied(entries(&order), &root);
        let after = Tree::read(&root);
        for name in ["d", "d/e"] {
            let left = after.entry(name);
            assert_eq!((left.mode, left.uid, left.gid, left.xattrs.len()), (0o755, 0, 0, 0), "{name} after {order:?}");
        }
    }
    // With an entry of its own it has its times, although things went from it after that.
    let root = scratch.make("times");
    applied(entries(&["d/", "d/e/", "d/e/a=1", "d/e/b/", "d/e/b/c=1"]), &root);
    applied(entries(&["d/", "d/e/", "d/e/b/", "d/e/b/n=1", "d/.wh..wh..opq"]), &root);
    assert_eq!(listing(&root), "d/ d/e/ d/e/b/ d/e/b/n=1");
    let after = Tree::read(&root);
    for name in ["d", "d/e", "d/e/b"] {
        assert_eq!(after.entry(name).mtime, (1_000_000, 0), "{name}");
    }
}

#[test]
fn deep_and_wide_trees_go_with_few_descriptors() {
    let scratch = Scratch::new();
    let root = scratch.make("r");
    let deep = "d/".repeat(2500);
    applied(Tar::default().file(format!("top/{deep}f"), b"1").file("top/g", b"1"), &root);
    let wide =
        (0..3000).fold(Tar::default(), |tar, n| tar.file(format!("top/w/f{n}"), b"").directory(format!("top/w/d{n}")));
    applied(wide, &root);
    applied(entries(&["top/w/d7/n=1", ".wh.top"]), &root);
    assert_eq!(listing(&root), "top/ top/w/ top/w/d7/ top/w/d7/n=1");
    applied(entries(&[".wh.top"]), &root);
    assert_eq!(listing(&root), "");
}

#[test]
fn links_to_lower_files_are_counted() {
    let scratch = Scratch::new();
    let root = scratch.make("r");
    applied((0..1001).fold(Tar::default(), |tar, n| tar.file(format!("f{n}"), b"1")), &root);
    // A file takes 65,535 links on btrfs, so they go to several.
    let links = (0..65_537)
        .fold(Tar::default(), |tar, n| tar.hard_link(format!("d{}/l{n}", n / 1000), format!("f{}", n / 100)));
    let error = apply(links, &root).expect_err("too many");
    assert_eq!(error.kind(), Kind::Limit, "{error}");
    assert!(error.to_string().contains("hard links to files of layers below"), "{error}");
}

/// One entry or whiteout of a layer over a few names, so that they meet.
fn word() -> impl Strategy<Value = String> {
    let name = prop::sample::select(vec!["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "e", "e/d/a"]);
    (name, 0..6usize).prop_map(|(name, kind)| {
        let (parent, last) = name.rsplit_once('/').map_or((String::new(), name), |(p, l)| (format!("{p}/"), l));
        match kind {
            0 | 1 => format!("{name}=x"),
            2 => format!("{name}/"),
            3 | 4 => format!("{parent}.wh.{last}"),
            _ => format!("{name}/.wh..wh..opq"),
        }
    })
}

/// The same by the definition: what lies below, without all that any whiteout of the layer hides, and then the layer's
/// entries. `None` where an entry runs into a file that is in its way.
fn by_definition(below: &[String], layer: &[String]) -> Option<Vec<String>> {
    // The names, with what is there: a directory or a file.
    fn add(tree: &mut BTreeMap<String, bool>, words: &[String]) -> Option<()> {
        for word in words {
            let (name, directory) = match word.split_once('=') {
                Some((name, _)) => (name.to_string(), false),
                None => (word.trim_end_matches('/').to_string(), true),
            };
            let mut parent = name.as_str();
            while let Some((above, _)) = parent.rsplit_once('/') {
                if tree.get(above) == Some(&false) {
                    return None;
                }
                tree.insert(above.to_string(), true);
                parent = above;
            }
            if !directory {
                tree.retain(|other, _| !other.starts_with(&format!("{name}/")));
            }
            tree.insert(name, directory);
        }
        Some(())
    }
    let plain = |words: &[String]| words.iter().filter(|w| !w.contains(".wh.")).cloned().collect::<Vec<_>>();
    let mut tree = BTreeMap::new();
    add(&mut tree, &plain(below))?;
    for word in layer.iter().filter(|word| word.contains(".wh.")) {
        let (parent, last) = word.rsplit_once('/').map_or(("", word.as_str()), |(p, l)| (p, l));
        let prefix = if parent.is_empty() { String::new() } else { format!("{parent}/") };
        match last.strip_prefix(".wh.").filter(|name| *name != ".wh..opq") {
            Some(name) => {
                let hidden = format!("{prefix}{name}");
                tree.retain(|other, _| *other != hidden && !other.starts_with(&format!("{hidden}/")));
            }
            None => tree.retain(|other, _| !other.starts_with(&prefix)),
        }
    }
    add(&mut tree, &plain(layer))?;
    Some(
        tree.into_iter()
            .map(|(name, directory)| if directory { format!("{name}/") } else { format!("{name}=x") })
            .collect(),
    )
}

#[test]
fn whiteouts_are_what_the_definition_says_in_any_order() {
    let scratch = Scratch::new();
    let (number, compared) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() };
    let layers = (prop::collection::vec(word(), 0..8), prop::collection::vec(word(), 1..8));
    proptest!(config, |((below, layer) in layers)| {
        // The same name as file and as directory in one layer, or as a parent of another: that is not about whiteouts.
        let file = |words: &[String], name: &str| words.contains(&format!("{name}=x"));
        let mixed = |words: &[String]| words.iter().any(|word| {
            let name = word.trim_end_matches("=x").trim_end_matches('/');
            let parents = name.match_indices('/').map(|(at, _)| &name[..at]);
            parents.chain(word.strip_suffix('/')).any(|name| file(words, name))
        });
        let Some(expected) = (!mixed(&below) && !mixed(&layer)).then(|| by_definition(&below, &layer)).flatten() else {
            return Ok(());
        };
        number.set(number.get() + 1);
        let root = scratch.make(&format!("r{}", number.get()));
        let plain: Vec<&str> = below.iter().map(String::as_str).filter(|word| !word.contains(".wh.")).collect();
        applied(entries(&plain), &root);
        let words: Vec<&str> = layer.iter().map(String::as_str).collect();
        if let Err(e) = apply(entries(&words), &root) {
            // A lower file in the way of an entry's parent may be hidden only later in the archive.
            prop_assert!(e.to_string().contains("it is no directory"), "{:?} + {:?}: {}", plain, words, e);
            return Ok(());
        }
        compared.set(compared.get() + 1);
        let mut found: Vec<String> = Tree::read(&root).0.iter().skip(1).map(|(path, entry)| match entry.kind {
            "directory" => format!("{}/", path.display()),
            _ => format!("{}=x", path.display()),
        }).collect();
        let mut expected = expected;
        found.sort();
        expected.sort();
        prop_assert_eq!(found, expected, "{:?} + {:?}", plain, words);
    });
    assert!(compared.get() > 300, "only {} of {} could be compared", compared.get(), number.get());
}

#[test]
fn the_layer_below_stays_whole() {
    let scratch = Scratch::new();
    let (below, above) = (scratch.path().join("below"), scratch.path().join("above"));
    crate::support::sh("btrfs", &["subvolume", "create", below.to_str().expect("plain")]);
    applied(entries(&["d/", "d/a=1", "d/e/", "d/e/f=1", "g=1", "h&g"]), &below);
    let before = Tree::read(&below);
    crate::support::sh(
        "btrfs",
        &["subvolume", "snapshot", below.to_str().expect("plain"), above.to_str().expect("plain")],
    );
    applied(entries(&["d/", "d/.wh..wh..opq", "d/n=2", ".wh.g"]), &above);
    assert_eq!(listing(&above), "d/ d/n=2 h=1");
    assert_eq!(std::fs::metadata(above.join("h")).expect("a file").nlink(), 1);
    before.assert_same(&Tree::read(&below));
}
