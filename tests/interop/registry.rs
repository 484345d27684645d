//! A real registry: Debian's docker-registry on loopback, its images put there by skopeo, what comes out of them compared
//! with what umoci makes of them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::support::certificates;
use crate::support::command::{Done, Tupper, finish};
use crate::support::store::{Store, alone};
use crate::support::tree::Tree;
use crate::support::{busybox, eventually, sh};

/// A registry with a folder and a port of its own; gone when dropped.
struct Registry {
    daemon: Child,
    dir: TempDir,
    port: u16,
}

impl Registry {
    fn plain() -> Registry {
        Registry::start("", |_| String::new())
    }

    /// One that knows `me`, whose password is `secret`.
    fn with_password() -> Registry {
        Registry::start("", |dir| {
            let file = dir.join("htpasswd");
            fs::write(&file, sh("htpasswd", &["-Bbn", "me", "secret"]) + "\n").expect("a file");
            format!("auth: {{htpasswd: {{realm: test, path: \"{}\"}}}}\n", file.display())
        })
    }

    /// One that speaks TLS with the certificate `server.crt` and `server.key` that `make` puts into the folder.
    fn with_tls(make: impl FnOnce(&Path)) -> Registry {
        Registry::start("tls: {certificate: server.crt, key: server.key}", |dir| {
            make(dir);
            String::new()
        })
    }

    fn start(http: &str, prepare: impl FnOnce(&Path) -> String) -> Registry {
        let dir = tempfile::Builder::new().prefix("tupper-registry-").tempdir().expect("a scratch directory");
        let more = prepare(dir.path());
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a port").port();
        let text = format!(
            "version: 0.1\nlog: {{accesslog: {{disabled: false}}, level: warn}}\n\
             storage: {{filesystem: {{rootdirectory: {}/data}}}}\n{more}http:\n  addr: 127.0.0.1:{port}\n  {http}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("config.yml"), text).expect("a file");
        let log = File::create(dir.path().join("log")).expect("a file");
        let daemon = Command::new("docker-registry")
            .args(["serve", "config.yml"])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("dup"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("docker-registry: {e}; type: make setup"));
        let mut registry = Registry { daemon, dir, port };
        eventually("the registry answers", Duration::from_secs(120), || {
            let ended = registry.daemon.try_wait().is_ok_and(|status| status.is_some());
            assert!(!ended, "docker-registry ended:\n{}", registry.log());
            std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        registry
    }

    /// `127.0.0.1:PORT/NAME`.
    fn image(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// The requests of tupper that it has answered.
    fn requests(&self) -> Vec<String> {
        let log = self.log();
        let ours = log.lines().filter(|line| line.contains("\"tupper/"));
        ours.filter_map(|line| line.split('"').nth(1)).map(str::to_string).collect()
    }

    /// Puts an image of a layout there.
    fn push(&self, layout: &Layout, name: &str, more: &[&str]) {
        let (from, to) = (format!("oci:{}:image", layout.0.path().display()), format!("docker://{}", self.image(name)));
        sh(
            "skopeo",
            &[&["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"], more, &[&from, &to]].concat(),
        );
    }

    /// The sha256 of an image's config, as skopeo sees it.
    fn id(&self, name: &str) -> String {
        let manifest =
            sh("skopeo", &["inspect", "--tls-verify=false", "--raw", &format!("docker://{}", self.image(name))]);
        let manifest: serde_json::Value = serde_json::from_str(&manifest).expect("a manifest");
        let digest = manifest["config"]["digest"].as_str().expect("a digest").to_string();
        digest.trim_start_matches("sha256:").to_string()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// An OCI layout with the image `image`: busybox, and two layers that add, change, replace and delete.
struct Layout(TempDir);

impl Layout {
    fn new() -> Layout {
        let dir = tempfile::Builder::new().prefix("tupper-layout-").tempdir().expect("a scratch directory");
        let layout = dir.path().join("layout");
        let image = format!("{}:image", layout.display());
        sh("umoci", &["init", "--layout", layout.to_str().expect("a plain path")]);
        sh("umoci", &["new", "--image", &image]);
        let tar = busybox();
        sh("umoci", &["raw", "add-layer", "--image", &image, tar.to_str().expect("a plain path")]);
        for (nth, script) in [
            "mkdir -p opt/a/b && echo one > opt/a/b/file && ln -s b opt/a/link && chown 1000:1000 opt/a/b/file",
            "echo two > opt/a/b/file && ln opt/a/b/file opt/hard && rm -r opt/a/link && mkdir opt/a/link && rm bin/vi",
        ]
        .iter()
        .enumerate()
        {
            let bundle = dir.path().join(format!("bundle{nth}"));
            let bundle_text = bundle.to_str().expect("a plain path");
            sh("umoci", &["unpack", "--image", &image, bundle_text]);
            sh("sh", &["-ec", &format!("cd {bundle_text}/rootfs && {script}")]);
            sh("umoci", &["repack", "--image", &image, bundle_text]);
            fs::remove_dir_all(bundle).expect("remove a bundle");
        }
        let inner = tempfile::Builder::new().prefix("tupper-layout-").tempdir().expect("a scratch directory");
        sh("cp", &["-a", &format!("{}/.", layout.display()), inner.path().to_str().expect("a plain path")]);
        Layout(inner)
    }

    /// What umoci makes of it.
    fn tree(&self) -> Tree {
        let dir = tempfile::Builder::new().prefix("tupper-bundle-").tempdir().expect("a scratch directory");
        let bundle = dir.path().join("bundle");
        let image = format!("{}:image", self.0.path().display());
        sh("umoci", &["unpack", "--image", &image, bundle.to_str().expect("a plain path")]);
        Tree::read(&bundle.join("rootfs"))
    }
}

fn tree(tupper: &Tupper, image: &str) -> Tree {
    let snapshot = tupper.ok(&format!("snapshot create {image}"));
    Tree::read(&PathBuf::from(tupper.ok(&format!("snapshot path {snapshot}"))))
}

#[test]
fn what_is_pulled_is_what_umoci_unpacks_whatever_it_travelled_as() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    let expected = layout.tree();
    for (name, more) in [
        ("oci:1", &["--format", "oci"][..]),
        ("docker:1", &["--format", "v2s2"]),
        ("zstd:1", &["--format", "oci", "--dest-compress-format", "zstd"]),
        ("deep/path/plain:1", &["--format", "oci", "--dest-decompress"]),
    ] {
        registry.push(&layout, name, more);
        let image = registry.image(name);
        if name == "oci:1" {
            for limit in ["--max-size", "--max-config"] {
                let error = tupper.fails(1, &format!("pull --tls-verify=false {limit} 10 {image}"));
                assert!(error.contains("than 10 bytes") && error.contains(&format!("hint: {limit} ")), "{error}");
            }
        }
        let id = tupper.ok(&format!("image pull --tls-verify=false {image}"));
        assert_eq!(id, registry.id(name), "{name}");
        if name == "oci:1" {
            let place = format!("docker://{image}");
            let digest = sh("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &place]);
            let inspected = tupper.json(&format!("image inspect {image}"));
            assert_eq!(inspected[0]["Digest"], digest.as_str());
            let repository = image.trim_end_matches(":1");
            assert_eq!(inspected[0]["RepoDigests"], serde_json::json!([format!("{repository}@{digest}")]));
        }
        expected.assert_same(&tree(&tupper, &image));
    }
    // By the name of the host, through /etc/hosts, without the library that a static binary must not call.
    let by_name = format!("localhost:{}/oci:1", registry.port);
    assert_eq!(tupper.ok(&format!("pull --tls-verify=false {by_name}")), registry.id("oci:1"));
    assert!(tupper.ok("images").contains("localhost:"), "the name is kept");
    let by_digest = tupper.ok(&format!("pull -q --tls-verify=false {}", {
        let text = format!("docker://{}", registry.image("oci:1"));
        let digest = sh("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &text]);
        format!("{}@{digest}", registry.image("oci"))
    }));
    assert_eq!(by_digest, registry.id("oci:1"));
}

#[test]
fn a_second_pull_asks_for_manifests_alone() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &[]);
    let pull = format!("pull --tls-verify=false {}", registry.image("a:1"));
    let id = tupper.ok(&pull);
    assert_eq!(registry.requests().iter().filter(|request| request.contains("/blobs/")).count(), 4);
    let before = registry.requests().len();
    assert_eq!(tupper.ok(&pull), id);
    let second = registry.requests().split_off(before);
    assert!(!second.is_empty() && second.iter().all(|request| !request.contains("/blobs/")), "{second:?}");
    // Another name for it costs no layer either.
    registry.push(&layout, "b:1", &[]);
    tupper.ok(&format!("pull --tls-verify=false {}", registry.image("b:1")));
    assert!(registry.requests().iter().all(|request| !request.contains("/v2/b/blobs/")));
    assert_eq!(tupper.lines("images -q").len(), 1);
}

#[test]
fn what_is_not_there_leaves_nothing() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &[]);
    for (name, why) in [("a:2", "manifest unknown"), ("b:1", "manifest unknown")] {
        let error = tupper.fails(1, &format!("pull --tls-verify=false {}", registry.image(name)));
        assert!(error.contains(why) && error.contains("hint: "), "{error}");
    }
    let error = tupper.fails(1, &format!("pull --tls-verify=false --platform linux/s390x {}", index(&registry)));
    assert!(error.contains("no image for linux/s390x, there is linux/"), "{error}");
    let error = tupper.fails(1, &format!("pull {}", registry.image("a:1")));
    assert!(error.contains("does not speak TLS") && error.contains("--tls-verify=false"), "{error}");
    let error = tupper.fails(1, "pull --tls-verify=false 127.0.0.1:1/a");
    assert!(error.contains("connection refused") && error.contains("hint: "), "{error}");
    assert!(!store.root().exists(), "a store was made for nothing");
}

/// An index with the image `a:1` for this machine alone.
fn index(registry: &Registry) -> String {
    let raw = sh("skopeo", &["inspect", "--tls-verify=false", "--raw", &format!("docker://{}", registry.image("a:1"))]);
    let text = format!("docker://{}", registry.image("a:1"));
    let digest = sh("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &text]);
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": raw.len(),
            "platform": {"os": "linux", "architecture": "amd64"},
        }],
    });
    let file = registry.dir.path().join("index.json");
    fs::write(&file, index.to_string()).expect("a file");
    let url = format!("http://{}/v2/a/manifests/index", registry.host());
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    sh("curl", &["-fsS", "-X", "PUT", "-H", kind, "--data-binary", &format!("@{}", file.display()), &url]);
    registry.image("a:index")
}

#[test]
fn a_password_protects_and_a_login_opens() {
    let (registry, layout, store) = (Registry::with_password(), Layout::new(), Store::empty());
    let (home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &["--dest-creds", "me:secret"]);
    let (host, image) = (registry.host(), registry.image("a:1"));
    let pull = format!("pull --tls-verify=false {image}");
    let error = tupper.fails(1, &pull);
    assert!(error.contains("asks who we are") && error.contains(&format!("tupper login {host}")), "{error}");
    let error = tupper.fails(1, &format!("{pull} --creds me:wrong"));
    assert!(error.contains("as me") && !error.contains("wrong"), "{error}");
    let login = |password: &str| -> Done {
        let file = home.path().join("password");
        fs::write(&file, format!("{password}\n")).expect("a file");
        let line = format!("login --tls-verify=false -u me --password-stdin {host}");
        tupper.run_reading(&line, File::open(file).expect("a file"))
    };
    let error = login("wrong").fails(1);
    assert!(error.contains(&format!("log in to {host}")), "{error}");
    assert_eq!(tupper.run(&format!("login --get-login {host}")).status, 1);
    assert_eq!(login("secret").ok(), "Login Succeeded!");
    assert_eq!(tupper.ok(&format!("login --get-login {host}")), "me");
    let id = tupper.ok(&pull);
    // What was kept, podman's family can read.
    let file = home.path().join("run/containers/auth.json");
    sh(
        "skopeo",
        &["inspect", "--tls-verify=false", "--authfile", file.to_str().expect("a path"), &format!("docker://{image}")],
    );
    assert_eq!(tupper.ok(&format!("logout {host}")), format!("Removed login credentials for {host}"));
    tupper.fails(1, &pull);
    tupper.fails(1, &format!("logout {host}"));
    assert_eq!(tupper.ok(&format!("{pull} --creds me:secret")), id);
    layout.tree().assert_same(&tree(&tupper, &image));
}

#[test]
fn a_helper_keeps_the_password() {
    use std::os::unix::fs::PermissionsExt;
    let (registry, layout, store) = (Registry::with_password(), Layout::new(), Store::empty());
    let (home, _) = alone(&store);
    registry.push(&layout, "a:1", &["--dest-creds", "me:secret"]);
    let host = registry.host();
    let bin = home.path().join("bin");
    fs::create_dir(&bin).expect("a directory");
    let helper = bin.join("docker-credential-test");
    let answer = format!("{{\"ServerURL\":\"{host}\",\"Username\":\"me\",\"Secret\":\"secret\"}}");
    let script = format!(
        "#!/bin/sh\nread -r server\n[ \"$1 $server\" = 'get {host}' ] && echo '{answer}' && exit\n\
         echo 'credentials not found in native keychain'\nexit 1\n"
    );
    fs::write(&helper, script).expect("a file");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("chmod");
    let file = home.path().join("auth.json");
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").expect("a PATH"));
    let pull = format!("pull --tls-verify=false --authfile {} {}", file.display(), registry.image("a:1"));
    for config in [format!("{{\"credHelpers\":{{\"{host}\":\"test\"}}}}"), "{\"credsStore\":\"test\"}".to_string()] {
        fs::write(&file, config).expect("a file");
        Tupper::new(store.root()).with_env("PATH", path.clone()).ok(&pull);
    }
    let error = Tupper::new(store.root()).fails(1, &pull);
    assert!(error.contains("docker-credential-test"), "{error}");
}

#[test]
fn tls_is_trusted_when_its_authority_is() {
    let (registry, layout, store) = (Registry::with_tls(certificates::authority), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &[]);
    let image = registry.image("a:1");
    let error = tupper.fails(1, &format!("pull {image}"));
    assert!(error.contains("unknown authority") && error.contains("certs.d") && error.contains("hint"), "{error}");
    let certs = registry.dir.path().join("certs");
    let id = tupper.ok(&format!("pull --cert-dir {} {image}", certs.display()));
    assert_eq!(id, tupper.ok(&format!("pull --tls-verify=false {image}")));
    layout.tree().assert_same(&tree(&tupper, &image));
    // The name that it was made out to counts.
    let other = format!("127.0.0.2:{}/a:1", registry.port);
    tupper.fails(1, &format!("pull --cert-dir {} {other}", certs.display()));
}

#[test]
fn a_certificate_that_names_itself_is_trusted_by_name() {
    let (registry, layout, store) = (Registry::with_tls(certificates::itself), Layout::new(), Store::empty());
    let (home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &[]);
    let certs = home.path().join(".config/containers/certs.d").join(registry.host());
    fs::create_dir_all(&certs).expect("directories");
    tupper.fails(1, &format!("pull {}", registry.image("a:1")));
    fs::copy(registry.dir.path().join("server.crt"), certs.join("ca.crt")).expect("a copy");
    tupper.ok(&format!("pull {}", registry.image("a:1")));
    tupper.fails(1, &format!("pull localhost:{}/a:1", registry.port));
}

#[test]
fn registries_conf_leads_there() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (home, tupper) = alone(&store);
    registry.push(&layout, "team/a:1", &[]);
    let conf = format!(
        "unqualified-search-registries = ['{host}']\n[aliases]\nshort = 'example.org/team/a'\n\
         [[registry]]\nlocation = '{host}'\ninsecure = true\n\
         [[registry]]\nprefix = 'example.org'\nlocation = '{host}'\ninsecure = true\n\
         [[registry.mirror]]\nlocation = '127.0.0.1:1'\ninsecure = true\n\
         [[registry]]\nprefix = 'evil.org'\nlocation = 'evil.org'\nblocked = true\n",
        host = registry.host()
    );
    fs::write(home.path().join("registries.conf"), conf).expect("a file");
    let id = registry.id("team/a:1");
    for (name, kept) in [
        ("example.org/team/a:1", "example.org/team/a:1".to_string()),
        ("short:1", "example.org/team/a:1".to_string()),
        ("team/a:1", registry.image("team/a:1")),
    ] {
        assert_eq!(tupper.ok(&format!("pull {name}")), id, "{name}");
        let inspected = tupper.json(&format!("image inspect {kept}"));
        assert_eq!(inspected[0]["Id"].as_str().expect("an id").trim_start_matches("sha256:"), id);
    }
    let error = tupper.fails(1, "pull evil.org/a");
    assert!(error.contains("blocked by registries.conf"), "{error}");
}

#[test]
fn a_proxy_is_used_but_not_for_this_machine() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &[]);
    // Nothing listens there: whoever asks the proxy fails.
    let tupper = tupper.with_env("HTTP_PROXY", "http://127.0.0.1:1").with_env("HTTPS_PROXY", "http://127.0.0.1:1");
    tupper.ok(&format!("pull --tls-verify=false {}", registry.image("a:1")));
    let error = finish(tupper.command("pull --tls-verify=false 192.0.2.1:5000/a", &[])).fails(1);
    assert!(error.contains("connection refused"), "{error}");
}

#[test]
fn what_is_pushed_is_what_podman_runs() {
    let (registry, layout, store) = (Registry::plain(), Layout::new(), Store::empty());
    let (home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &["--format", "oci"]);
    let id = tupper.ok(&format!("pull --tls-verify=false {}", registry.image("a:1")));
    let digest_of = |name: &str| {
        let place = format!("docker://{}", registry.image(name));
        sh("skopeo", &["inspect", "--tls-verify=false", "--format", "{{.Digest}}", &place])
    };
    let file = home.path().join("digest");
    // As it came: the layers have the digests that they had, and nothing is sent but the manifest.
    let before = registry.requests().len();
    let push = |more: &str, name: &str| {
        let line =
            format!("push --tls-verify=false --digestfile {} {more} {id} {}", file.display(), registry.image(name));
        assert_eq!(tupper.ok(&line), "");
        assert_eq!(fs::read_to_string(&file).expect("a file"), digest_of(name));
        assert_eq!(registry.id(name), id);
    };
    push("", "a:2");
    let sent = registry.requests().split_off(before);
    assert!(sent.iter().all(|request| !request.contains("/blobs/uploads/")), "{sent:?}");
    // Into another repository they are mounted, and into another registry they go again.
    let before = registry.requests().len();
    push("", "deep/b:1");
    let sent = registry.requests().split_off(before);
    assert_eq!(sent.iter().filter(|request| request.contains("mount=sha256")).count(), 3, "{sent:?}");
    assert!(sent.iter().all(|request| !request.starts_with("PATCH ")), "{sent:?}");
    let other = Registry::plain();
    tupper.ok(&format!("push --tls-verify=false {id} {}", other.image("c:1")));
    assert_eq!(other.id("c:1"), id);
    push("--compression-format zstd --compression-level 3", "zstd:1");
    push("--format v2s2 --compression-format gzip", "docker:1");
    // umoci knows no zstd.
    for image in [other.image("c:1"), registry.image("docker:1")] {
        let to = tempfile::Builder::new().prefix("tupper-pushed-").tempdir().expect("a scratch directory");
        let place = format!("oci:{}:image", to.path().display());
        let from = format!("docker://{image}");
        sh("skopeo", &["--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", &from, &place]);
        layout.tree().assert_same(&Layout(to).tree());
    }
    let podman = Podman::new(home.path());
    for image in [registry.image("deep/b:1"), registry.image("docker:1"), registry.image("zstd:1")] {
        podman.ok(&["pull", "-q", "--tls-verify=false", &image]);
        let line = ["run", "--rm", "--network", "none", &image, "/bin/busybox", "cat", "/opt/a/b/file"];
        assert_eq!(podman.ok(&line), "two");
    }
}

#[test]
fn a_password_is_for_pushing_too() {
    let (registry, layout, store) = (Registry::with_password(), Layout::new(), Store::empty());
    let (_home, tupper) = alone(&store);
    registry.push(&layout, "a:1", &["--dest-creds", "me:secret"]);
    let id = tupper.ok(&format!("pull --tls-verify=false --creds me:secret {}", registry.image("a:1")));
    let push = format!("push --tls-verify=false {id} {}", registry.image("b:1"));
    let error = tupper.fails(1, &push);
    assert!(error.contains("asks who we are") && error.contains("tupper login"), "{error}");
    tupper.ok(&format!("{push} --creds me:secret"));
}

/// podman with all that it keeps in a directory.
struct Podman {
    dir: PathBuf,
}

impl Podman {
    fn new(home: &Path) -> Podman {
        let dir = home.join("podman");
        fs::create_dir(&dir).expect("a directory");
        let conf = "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n[engine]\n\
                    cgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n";
        fs::write(dir.join("containers.conf"), conf).expect("a file");
        Podman { dir }
    }

    fn ok(&self, args: &[&str]) -> String {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let (root, run, tmp) = (path("root"), path("run"), path("tmp"));
        let ours = ["--runtime", "runc", "--root", &root, "--runroot", &run, "--tmpdir", &tmp];
        let output = Command::new("podman")
            .args(ours)
            .args(["--storage-driver", "vfs"])
            .args(args)
            .env("CONTAINERS_CONF", path("containers.conf"))
            .output()
            .expect("podman");
        assert!(output.status.success(), "podman {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_string()
    }
}
