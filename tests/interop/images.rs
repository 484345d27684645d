//! Images that docker builds, as docker, podman, skopeo and umoci write them: loaded, they are what each of those unpacks.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::docker::{Docker, text};
use crate::support::command::{Tupper, finish};
use crate::support::tree::{Entry, Tree};
use crate::support::{busybox, debian, sh};

/// Seven layers, one of them a Debian: what is added, changed, removed, replaced and hidden as a whole.
const LAYERS: &str = r#"FROM base:1
RUN mkdir -p /opt/a/b /opt/keep && echo one >/opt/a/one && echo two >/opt/a/b/two && ln /opt/a/one /opt/a/hard && ln -s one /opt/a/sym
RUN cp -a /usr/share /opt/share && chmod 3771 /opt/keep && chown 70000:33 /opt/keep && mkfifo -m 640 /opt/fifo
RUN rm -rf /opt/a && mkdir -p /opt/a && echo new >/opt/a/new && rm /etc/motd && chown -R 7:8 /opt/share/perl5
RUN rm -rf /opt/share/doc /usr/share/man && echo file >/opt/share/doc && mv /opt/share/zoneinfo /opt/zone && ln /opt/a/new /opt/new
RUN cp -a /usr/lib/*-linux-gnu/gconv /opt/lib && cp /bin/true /opt/su && chown 1000:33 /opt/su && chmod 6755 /opt/su
RUN find /opt/lib -type f -name '*.so*' -delete; rm /opt/share/doc; mkdir /opt/share/doc; touch /opt/share/doc/x; chmod 700 /opt/lib
ENV A=b
CMD ["sh", "-c", "echo $A"]
"#;

/// Three layers of a few files.
const SMALL: &str = r#"FROM scratch
ADD busybox.tar /
RUN mkdir -p /d/e && echo 1 >/d/e/f && echo 2 >/d/g && chmod 4755 /d/g
RUN rm -r /d/e && mkdir /d/e && echo 3 >/d/e/h && rm /d/g
CMD ["cat", "/d/e/h"]
"#;

fn build(docker: &Docker, name: &str, dockerfile: &str) {
    let context = docker.disk.path().join(name.replace(':', "-"));
    fs::create_dir(&context).expect("a directory");
    fs::copy(busybox(), context.join("busybox.tar")).expect("a tarball");
    fs::write(context.join("Dockerfile"), dockerfile).expect("a file");
    let mut command = docker.command(&["build", "--quiet", "--network", "none", "-t", name, text(&context)]);
    command.env("DOCKER_BUILDKIT", "0");
    finish(command).ok();
}

fn snapshot(tupper: &Tupper, image: &str) -> Tree {
    let id = tupper.ok_with("snapshot create", &[image]);
    let tree = Tree::read(Path::new(&tupper.ok_with("snapshot path", &[&id])));
    tupper.ok_with("snapshot rm", &[&id]);
    tree
}

/// The same but for the top directory, which has no entry in these layers.
#[track_caller]
fn assert_same(expected: &Tree, found: &Tree) {
    let below = |tree: &Tree| Tree(tree.0.iter().skip(1).map(|(path, entry)| (path.clone(), entry.clone())).collect());
    below(expected).assert_same(&below(found));
}

/// Docker's layers hold whole seconds of most times, and no note of a directory whose time alone changed.
fn without_times(tree: &Tree) -> Tree {
    let plain = |(path, entry): (&PathBuf, &Entry)| (path.clone(), Entry { mtime: (0, 0), ..entry.clone() });
    Tree(tree.0.iter().map(plain).collect())
}

fn json(text: &str) -> serde_json::Value {
    serde_json::from_str(text).unwrap_or_else(|e| panic!("{e}: {text}"))
}

/// What kind of JSON it is.
fn kind(value: &serde_json::Value) -> std::mem::Discriminant<serde_json::Value> {
    std::mem::discriminant(value)
}

fn layers(tupper: &Tupper) -> BTreeSet<String> {
    let names = fs::read_dir(tupper.root().join("fs/layers")).expect("layers");
    names.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect()
}

/// One test, because most of its time would be the start of a daemon for each.
#[test]
fn images_are_loaded_as_others_unpack_them() {
    let docker = Docker::start();
    what_docker_builds(&docker);
    what_podman_saves(&docker);
    what_umoci_makes(&docker);
}

/// Loaded, it is what docker holds and what umoci unpacks, whatever carries it.
fn what_docker_builds(docker: &Docker) {
    let dir = docker.disk.path();
    docker.ok(&["import", text(&debian()), "base:1"]);
    build(docker, "multi:7", LAYERS);
    let saved = dir.join("saved.tar");
    docker.ok(&["save", "-o", text(&saved), "multi:7", "base:1"]);
    let tupper = Tupper::new(dir.join("store"));
    let mut loaded = tupper.lines(&format!("image load -i {}", text(&saved)));
    loaded.sort();
    assert_eq!(loaded, ["Loaded image: localhost/base:1", "Loaded image: localhost/multi:7"]);
    assert_eq!(layers(&tupper).len(), 7, "the base is shared");
    let id = docker.ok(&["image", "inspect", "--format", "{{.Id}}", "multi:7"]);
    assert_eq!(format!("sha256:{}", tupper.json("image inspect multi:7")[0]["Id"].as_str().expect("an id")), id);
    assert_eq!(tupper.ok("run --rm multi:7"), "b");

    let found = snapshot(&tupper, "multi:7");
    assert_eq!(found.entry("opt/su").mode, 0o6755);
    assert_eq!(found.entry("opt/new").same_as, found.entry("opt/a/new").same_as);
    assert!(found.0.contains_key(Path::new("opt/zone")) && !found.0.contains_key(Path::new("etc/motd")));
    let layout = dir.join("layout");
    let from = format!("docker-archive:{}:multi:7", text(&saved));
    sh("skopeo", &["copy", "-q", &from, &format!("oci:{}:x", text(&layout))]);
    let bundle = dir.join("bundle");
    sh("umoci", &["unpack", "--image", &format!("{}:x", text(&layout)), text(&bundle)]);
    assert_same(&Tree::read(&bundle.join("rootfs")), &found);
    // What docker itself keeps of it.
    let tag = tupper.root().join("fs/tags/localhost%multi:7");
    let record =
        sh("getfattr", &["--only-values", "-n", "user.tupper.record", text(&fs::canonicalize(tag).expect("a tag"))]);
    let record: serde_json::Value = serde_json::from_str(&record).expect("JSON");
    let held = Tree::read(&docker.layer(record["chain"].as_str().expect("a chain id")));
    assert_same(&without_times(&held), &without_times(&found));

    // From zstd, which is another way through, and under a store of its own, so that it is unpacked again.
    let zstd = dir.join("zstd");
    let (from, to) = (format!("oci:{}:x", text(&layout)), format!("oci:{}:x:1", text(&zstd)));
    sh("skopeo", &["copy", "-q", "--dest-compress-format", "zstd", &from, &to]);
    let again = Tupper::new(dir.join("again"));
    again.ok(&format!("image load -i {}", text(&zstd)));
    assert_eq!(layers(&again), layers(&tupper));
    assert_same(&found, &snapshot(&again, "x:1"));
    what_is_saved_others_load(docker, &tupper, "multi:7", &id, &found);
    for tupper in [&tupper, &again] {
        assert_eq!(tupper.ok("store check"), "");
    }
}

/// Saved by tupper, it is the same image for docker, podman and tupper, by skopeo's hands too, and umoci unpacks the same tree.
fn what_is_saved_others_load(docker: &Docker, tupper: &Tupper, image: &str, id: &str, tree: &Tree) {
    let dir = docker.disk.path();
    let (archive, oci, layout) = (dir.join("our.tar"), dir.join("our-oci.tar"), dir.join("our-layout"));
    tupper.ok_with("save -o", &[text(&archive), image]);
    tupper.ok_with("save --format oci-archive --compression-format zstd -o", &[text(&oci), image]);
    tupper.ok_with("save --format oci-dir -o", &[text(&layout), image]);
    docker.ok(&["rmi", "--force", image]);
    docker.ok(&["load", "-q", "-i", text(&archive)]);
    assert_eq!(docker.ok(&["image", "inspect", "--format", "{{.Id}}", &format!("localhost/{image}")]), id);
    for path in [&archive, &oci] {
        let told = podman(docker, &["load", "-q", "-i", text(path)]);
        assert_eq!(told, format!("Loaded image: localhost/{image}"), "{}", path.display());
        let inspected = podman(docker, &["image", "inspect", "--format", "{{.Id}}", &format!("localhost/{image}")]);
        assert_eq!(format!("sha256:{inspected}"), id, "{}", path.display());
        podman(docker, &["rmi", "--force", &inspected]);
    }
    sh("umoci", &["ls", "--layout", text(&layout)]);
    // Its tags have no slash in them.
    let (bundle, renamed) = (dir.join("our-bundle"), format!("{}:x", text(&dir.join("our-renamed"))));
    let from = format!("docker-archive:{}:localhost/{image}", text(&archive));
    sh("skopeo", &["copy", "-q", &from, &format!("oci:{renamed}")]);
    sh("umoci", &["unpack", "--image", &renamed, text(&bundle)]);
    assert_same(&Tree::read(&bundle.join("rootfs")), tree);
    // Away and back.
    let by_hand = dir.join("by-hand");
    let to = format!("dir:{}", text(&by_hand));
    sh("skopeo", &["copy", "-q", &format!("oci-archive:{}", text(&oci)), &to]);
    tupper.ok_with("image rm", &[image]);
    tupper.ok_with("load -q -i", &[text(&by_hand)]);
    tupper.ok_with("image tag", &[id.trim_start_matches("sha256:"), image]);
    assert_same(&snapshot(tupper, image), tree);
}

/// Runs podman on a storage of its own.
fn podman(docker: &Docker, args: &[&str]) -> String {
    let (root, run) = (docker.disk.path().join("podman"), docker.run.path().join("podman"));
    let own = ["--root", text(&root), "--runroot", text(&run), "--storage-driver", "vfs"];
    sh("podman", &[&own[..], args].concat())
}

/// Loaded in every format, it is the same image.
fn what_podman_saves(docker: &Docker) {
    let dir = docker.disk.path();
    build(docker, "small:3", SMALL);
    let saved = dir.join("small.tar");
    docker.ok(&["save", "-o", text(&saved), "small:3"]);
    let tupper = Tupper::new(dir.join("small"));
    let told = tupper.ok(&format!("image load -i {}", text(&saved)));
    let (tree, before) = (snapshot(&tupper, "small:3"), layers(&tupper));
    assert_eq!(before.len(), 3);
    tupper.ok("image rm small:3");

    let podman = |args: &[&str]| podman(docker, args);
    assert_eq!(podman(&["load", "-q", "-i", text(&saved)]), told, "podman's words");
    for format in ["docker-archive", "oci-archive", "oci-dir", "docker-dir"] {
        let path = dir.join(format);
        podman(&["save", "-q", "--format", format, "-o", text(&path), "small:3"]);
        let loaded = tupper.ok(&format!("image load -i {}", text(&path)));
        let name = loaded.strip_prefix("Loaded image: ").unwrap_or_else(|| panic!("{format}: {loaded}"));
        // A directory of that kind holds no names.
        assert_eq!(name == "localhost/small:3", format != "docker-dir", "{format}: {name}");
        let name = name.trim_start_matches("sha256:");
        assert_eq!(layers(&tupper), before, "{format}");
        assert_same(&tree, &snapshot(&tupper, name));
        assert_eq!(tupper.ok_with("run --rm", &[name]), "3", "{format}");
        tupper.ok_with("image rm", &[name]);
        assert_eq!(layers(&tupper).len(), 0, "{format}");
    }
    // From hand to hand: the same layers, whatever compresses them and whoever wrote the config anew.
    let from = format!("docker-archive:{}:small:3", text(&saved));
    for (kind, compression) in [("oci", "gzip"), ("oci-archive", "zstd"), ("docker-archive", "gzip"), ("dir", "zstd")] {
        let path = dir.join(format!("skopeo.{kind}.{compression}"));
        let to = match kind {
            "dir" => format!("dir:{}", text(&path)),
            _ => format!("{kind}:{}:localhost/small:3", text(&path)),
        };
        sh("skopeo", &["copy", "-q", "--dest-compress-format", compression, &from, &to]);
        let loaded = tupper.ok(&format!("image load -i {}", text(&path)));
        let name = loaded.strip_prefix("Loaded image: ").expect("a name").trim_start_matches("sha256:");
        assert_eq!(layers(&tupper), before, "{to}");
        assert_same(&tree, &snapshot(&tupper, name));
        tupper.ok_with("image rm", &[name]);
    }
    assert_eq!(tupper.ok("store check"), "");
}

/// What both tell of an image: the same keys, the same values, but for what is each one's own.
fn assert_told_as_podman_tells(docker: &Docker, layout: &Path) {
    let archive = docker.disk.path().join("umoci.tar");
    let tupper = Tupper::new(docker.disk.path().join("told"));
    tupper.ok_with("image load -i", &[text(layout)]);
    sh("tar", &["-C", text(layout), "-cf", text(&archive), "."]);
    assert_eq!(podman(docker, &["load", "-q", "-i", text(&archive)]), "Loaded image: localhost/x:latest");
    let theirs = json(&podman(docker, &["image", "inspect", "localhost/x"]));
    let ours = tupper.json("image inspect x");
    let own = ["Size", "VirtualSize", "GraphDriver", "RepoTags", "RepoDigests", "NamesHistory"];
    let unknown = ["Annotations", "ManifestType"];
    for (key, value) in theirs[0].as_object().expect("an object") {
        match key.as_str() {
            key if unknown.contains(&key) => assert!(ours[0].get(key).is_none(), "{key}"),
            "NamesHistory" => {}
            key if own.contains(&key) => assert_eq!(kind(&ours[0][key]), kind(value), "{key}"),
            key => assert_eq!(ours[0][key], *value, "{key}"),
        }
    }
    let digest = theirs[0]["Digest"].as_str().expect("a digest");
    assert_eq!(ours[0]["RepoDigests"], serde_json::json!([format!("localhost/x@{digest}")]));
    let steps = |value: serde_json::Value| -> Vec<serde_json::Value> {
        let steps = value.as_array().expect("an array").iter();
        steps.map(|step| serde_json::json!([step["created"], step["CreatedBy"]])).collect()
    };
    let theirs = json(&podman(docker, &["image", "history", "--format", "json", "localhost/x"]));
    assert_eq!(steps(tupper.json("image history --format json x")), steps(theirs));
}

/// Umoci writes opaque whiteouts, which the others only read: loaded, they hide what they hide when umoci unpacks them.
fn what_umoci_makes(docker: &Docker) {
    let dir = docker.disk.path();
    let layout = dir.join("umoci");
    let image = format!("{}:x", text(&layout));
    let saved = format!("docker-archive:{}:small:3", text(&dir.join("small.tar")));
    sh("skopeo", &["copy", "-q", &saved, &format!("oci:{image}")]);
    let content = dir.join("content");
    fs::create_dir_all(content.join("deep")).expect("directories");
    fs::write(content.join("deep/new"), "new\n").expect("a file");
    let umoci = |args: &[&str]| sh("umoci", args);
    umoci(&["insert", "--image", &image, "--opaque", text(&content), "/d"]);
    umoci(&["insert", "--image", &image, text(&content), "/etc"]);
    umoci(&["insert", "--image", &image, "--opaque", text(&content.join("deep")), "/etc/deep"]);
    umoci(&["insert", "--image", &image, "--whiteout", "/bin/ls"]);
    assert_told_as_podman_tells(docker, &layout);
    // And a layer as it finds it between two trees.
    let bundle = dir.join("changed");
    umoci(&["unpack", "--image", &image, text(&bundle)]);
    let root = bundle.join("rootfs");
    fs::remove_dir_all(root.join("d/deep")).expect("removable");
    fs::write(root.join("d/deep"), "a file now\n").expect("a file");
    fs::remove_file(root.join("bin/cat")).expect("removable");
    fs::create_dir(root.join("bin/cat")).expect("a directory");
    sh("setfattr", &["-n", "user.note", "-v", "kept", text(&root.join("d/deep"))]);
    sh("setcap", &["cap_net_raw+ep", text(&root.join("d/deep"))]);
    umoci(&["repack", "--image", &image, text(&bundle)]);

    let bundle = dir.join("unpacked");
    umoci(&["unpack", "--image", &image, text(&bundle)]);
    let expected = Tree::read(&bundle.join("rootfs"));
    assert!(expected.entry("d/deep").xattrs.contains_key("security.capability"));
    assert!(!expected.0.contains_key(Path::new("bin/ls")) && !expected.0.contains_key(Path::new("d/e")));
    let tupper = Tupper::new(dir.join("of-umoci"));
    assert_eq!(tupper.ok(&format!("image load -i {}", text(&layout))), "Loaded image: localhost/x:latest");
    assert_same(&expected, &snapshot(&tupper, "x"));
    assert_eq!(layers(&tupper).len(), 8);
    assert_eq!(tupper.ok("run --rm x busybox cat /d/deep /etc/deep/new"), "a file now\nnew");
    assert_eq!(tupper.ok("store check"), "");
}
