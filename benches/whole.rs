//! Whole processes beside their floors, on a fresh loop-backed btrfs: `cargo bench --bench whole [WORD]`.
//!
//! The rows of a table take turns, so that a noisy moment hits all of them, and each ratio is of medians. `RUNS` is
//! how many turns there are. There are no limits here that could fail: the figures are for reading.

#![expect(clippy::print_stdout, reason = "a bench prints its tables")]

#[allow(dead_code, reason = "shared with tests/it: each binary uses its part")]
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use support::command::Tupper;
use support::disk::{self, Disk};
use support::{busybox, debian, eventually, need_root, sh};
use tempfile::TempDir;

fn main() {
    need_root();
    // cargo bench passes --bench; a word beside it chooses among the tables.
    let word = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).unwrap_or_default();
    let bench = Bench::new();
    println!("{} · {} CPUs · btrfs, 8 KiB nodes, on a loop device", sh("uname", &["-sr"]), sh("nproc", &[]));
    let tables: [(&str, Table); 8] = [
        ("version", version),
        ("run", run),
        ("network", network),
        ("snapshot", snapshot),
        ("import", import),
        ("pull", pull),
        ("save", save),
        ("commit", commit),
    ];
    tables.iter().filter(|(name, _)| name.contains(&word)).for_each(|(_, table)| table(&bench));
}

type Table = fn(&Bench);

/// The disk, a store with a Debian and a busybox in it, and the floors, compiled.
struct Bench {
    tupper: Tupper,
    /// A Debian as a plain subvolume.
    debian: PathBuf,
    runs: usize,
    disk: Disk,
}

impl Bench {
    fn new() -> Bench {
        let disk = Disk::btrfs();
        let tupper = Tupper::new(disk.path().join("store"));
        tupper.ok_with("image import --name debian", &[text(&debian())]);
        tupper.ok_with("image import --name busybox", &[text(&busybox())]);
        let tree = disk.path().join("debian");
        sh("btrfs", &["--quiet", "subvolume", "create", text(&tree)]);
        sh("tar", &["-C", text(&tree), "-xf", text(&debian())]);
        let floors = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/floor");
        for name in ["run", "posture", "snapshots"] {
            let (source, program) = (floors.join(format!("{name}.c")), disk.path().join(name));
            sh("cc", &["-O2", "-Wall", "-pthread", "-o", text(&program), text(&source)]);
        }
        let runs = std::env::var("RUNS").ok().and_then(|runs| runs.parse().ok()).unwrap_or(15);
        Bench { tupper, debian: tree, runs, disk }
    }

    /// A fresh directory for what a floor makes.
    fn scratch(&self, name: &str) -> PathBuf {
        let dir = self.disk.path().join(name);
        fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    /// The raw ioctls: milliseconds to create and to destroy, in all.
    fn raw_snapshots(&self, count: usize, threads: usize, directories: &str) -> (Duration, Duration) {
        let dir = self.scratch("raw");
        let (count, threads) = (count.to_string(), threads.to_string());
        let said = sh(
            text(&self.disk.path().join("snapshots")),
            &[text(&self.debian), text(&dir), &count, &threads, directories],
        );
        let times: Vec<f64> = said.split(' ').map(|ms| ms.parse().expect("milliseconds")).collect();
        (Duration::from_secs_f64(times[0] / 1e3), Duration::from_secs_f64(times[1] / 1e3))
    }

    /// A snapshot in a directory of its own that was written to and read, as those of the pool.
    fn ready_snapshot(&self, below: &Path) -> PathBuf {
        let directory = below.join("one");
        let root = directory.join("rootfs");
        fs::create_dir_all(&directory).expect("a directory");
        sh("btrfs", &["--quiet", "subvolume", "snapshot", text(&self.debian), text(&root)]);
        fs::write(root.join("etc/written"), "").expect("a file");
        for name in
            ["usr/bin/true", "usr/lib/x86_64-linux-gnu/libc.so.6", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"]
        {
            let _ = fs::read(root.join(name)); // where this machine's Debian has them
        }
        directory
    }

    /// Everything that was removed is gone from the disk too.
    fn settle(&self) {
        sh("btrfs", &["subvolume", "sync", text(&self.disk.path())]);
        sh("btrfs", &["filesystem", "sync", text(&self.disk.path())]);
    }
}

/// A named way to do the work once; it returns what counts of the time.
struct Row<'a> {
    name: &'static str,
    once: Box<dyn FnMut() -> Duration + 'a>,
    times: Vec<Duration>,
}

fn row<'a>(name: &'static str, once: impl FnMut() -> Duration + 'a) -> Row<'a> {
    Row { name, once: Box::new(once), times: Vec::new() }
}

/// Lets the rows take turns and prints the table; ratios are to the sum of the first `floors` rows' medians.
fn measure(title: &str, runs: usize, each: usize, floors: usize, mut rows: Vec<Row>) {
    for turn in 0..=runs {
        for row in &mut rows {
            let time = (row.once)();
            if turn > 0 {
                row.times.push(time); // the first turn warms the caches
            }
        }
    }
    let each = u32::try_from(each).expect("a small number");
    rows.iter_mut().for_each(|row| row.times.sort());
    let median = |row: &Row| row.times[row.times.len() / 2] / each;
    let floor: Duration = rows[..floors].iter().map(median).sum();
    println!("\n{title} (medians of {runs}, ms{})", if each > 1 { " each" } else { "" });
    println!("  {:<44} {:>10} {:>10} {:>10} {:>8}", "", "median", "min", "max", "ratio");
    for row in &rows {
        let (min, max) = (row.times[0] / each, row.times[row.times.len() - 1] / each);
        println!(
            "  {:<44} {:>10.3} {:>10.3} {:>10.3} {:>7.2}x",
            row.name,
            ms(median(row)),
            ms(min),
            ms(max),
            median(row).as_secs_f64() / floor.as_secs_f64()
        );
    }
}

fn version(bench: &Bench) {
    let rows = vec![
        row("floor: exec of true", || timed(&mut Command::new("true"))),
        row("tupper version", || timed(bench.tupper.command("version", &[]).stdout(Stdio::null()))),
    ];
    measure("Starting and saying one's version", bench.runs * 4, 1, 1, rows);
}

/// A container without what holds it, to see what that costs.
const BARE: &str = "run --rm --userns host --pids-limit -1 --security-opt seccomp=unconfined debian true";

fn run(bench: &Bench) {
    let bwrap = |root: &Path| {
        let mut bwrap = Command::new("bwrap");
        bwrap.arg("--bind").arg(root).args(["/", "--proc", "/proc", "--dev", "/dev", "--unshare-all", "true"]);
        bwrap
    };
    let ready = bench.scratch("ready");
    let groups =
        ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].into_iter().find(|at| Path::new(at).exists()).expect("cgroups");
    let mut rows = vec![
        row("floor: clone3, mounts, pivot_root, exec", || {
            timed(Command::new(bench.disk.path().join("run")).arg(&bench.debian).arg("true"))
        }),
        row("floor: one raw snapshot, ioctl alone", || bench.raw_snapshots(1, 1, "one").0),
        row("what the kernel takes for tupper's defaults", || {
            let snapshot = bench.ready_snapshot(&ready);
            let group = format!("{groups}/tupper-bench-{}", std::process::id());
            timed(Command::new(bench.disk.path().join("posture")).args([text(&snapshot), &group, "true"]))
        }),
        row("tupper run --rm debian true, a snapshot ready", || {
            let warm = bench.tupper.clone().with_env("TUPPER_POOL", "on");
            let time = timed(&mut warm.command("run --rm debian true", &[]));
            std::thread::sleep(Duration::from_millis(200)); // who makes others is in nobody's way
            time
        }),
        row("tupper run --rm debian true", || timed(&mut bench.tupper.command("run --rm debian true", &[]))),
        row("the same without user namespace, cgroup, seccomp", || timed(&mut bench.tupper.command(BARE, &[]))),
        row("tupper run --rm busybox true", || timed(&mut bench.tupper.command("run --rm busybox true", &[]))),
        row("tupper run --rm debian touch /x", || timed(&mut bench.tupper.command("run --rm debian touch /x", &[]))),
    ];
    if bwrap(&bench.debian).stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success()) {
        rows.push(row("bwrap, no snapshot, no cgroup", || timed(&mut bwrap(&bench.debian))));
    }
    measure("A throwaway container (ratio to the two floors together)", bench.runs, 1, 2, rows);
}

/// Others come and go, so that each row finds the bridge as it would: there, or lingering from the turn before.
fn network(bench: &Bench) {
    let run =
        |network: &str| timed(&mut bench.tupper.command(&format!("run --rm --network {network} busybox true"), &[]));
    bench.tupper.ok("network create used");
    bench.tupper.ok("run -d --name beside --network used busybox sleep 100000");
    let rows = vec![
        row("run --rm --network none", || run("none")),
        row("--network bridge, nobody else on it", || run("bridge")),
        row("--network bridge, another on it", || run("used")),
        row("--network ptp", || run("ptp")),
        row("--network host", || run("host")),
    ];
    measure("What a network adds to a throwaway container (ratio to none)", bench.runs, 1, 1, rows);
    bench.tupper.ok("rm -f beside");
    bench.tupper.ok("network rm used");
}

fn snapshot(bench: &Bench) {
    const COUNT: usize = 512;
    let runs = bench.runs.div_ceil(5);
    let ids = bench.disk.path().join("ids");
    let create = || {
        bench.settle();
        let mut command = bench.tupper.command(&format!("snapshot create --count {COUNT} debian"), &[]);
        let time = timed(command.stdout(File::create(&ids).expect("a file")));
        let ids = fs::read_to_string(&ids).expect("the ids");
        assert_eq!(ids.lines().count(), COUNT, "snapshots that were named");
        let removal = timed(bench.tupper.command("snapshot rm", &[]).args(ids.lines()).stdout(Stdio::null()));
        (time, removal)
    };
    let mut removals = Vec::new();
    let settled = |threads, directories| {
        bench.settle();
        bench.raw_snapshots(COUNT, threads, directories).0
    };
    let rows = vec![
        row("floor: raw ioctl, 64 threads, 64 directories", || settled(64, "many")),
        row("raw ioctl, 1 thread, 1 directory", || settled(1, "one")),
        row("raw ioctl, 64 threads, 1 directory", || settled(64, "one")),
        row("tupper snapshot create --count 512", || {
            let (time, removal) = create();
            removals.push(removal);
            time
        }),
    ];
    measure("512 snapshots of a Debian", runs, COUNT, 1, rows);
    removals.sort();
    let removal = removals[removals.len() / 2] / u32::try_from(COUNT).expect("a small number");
    println!("  {:<44} {:>10.3}", "tupper snapshot rm (those 512)", ms(removal));
}

fn import(bench: &Bench) {
    let tarball = debian();
    let tree = bench.disk.path().join("unpacked");
    let untar = || {
        if tree.exists() {
            sh("btrfs", &["--quiet", "subvolume", "delete", text(&tree)]);
        }
        bench.settle();
        sh("btrfs", &["--quiet", "subvolume", "create", text(&tree)]);
        let script = "tar -C \"$0\" -xf \"$1\" && btrfs filesystem sync \"$0\"";
        timed(Command::new("sh").args(["-c", script, text(&tree), text(&tarball)]))
    };
    // Another tree each time: a layer that is there already would not be unpacked at all.
    let mut turn = 0;
    let fresh = || {
        turn += 1;
        let packed = bench.disk.path().join("import.tar");
        fs::copy(&tarball, &packed).expect("copy the tarball");
        let mark = bench.scratch("mark").join("mark");
        fs::write(&mark, turn.to_string()).expect("a file");
        sh("tar", &["-rf", text(&packed), "-C", text(&bench.scratch("mark")), "mark"]);
        bench.settle();
        let mut command = bench.tupper.command("image import --name fresh", &[text(&packed)]);
        let time = timed(command.stdout(Stdio::null()));
        bench.tupper.ok("image rm fresh");
        time
    };
    let rows = vec![row("floor: tar -xf into a subvolume, then sync", untar), row("tupper image import", fresh)];
    let size = tarball.metadata().expect("the tarball").len() >> 20;
    measure(&format!("Import of a Debian, {size} MiB"), bench.runs.div_ceil(3), 1, 1, rows);
}

/// An image of four layers, from a layout beside the store and from a registry on this machine.
fn pull(bench: &Bench) {
    let image = Layers::of(&bench.debian, &bench.disk.path());
    let registry = Registry::with(&image);
    let tree = bench.disk.path().join("layered");
    let untar = || {
        if tree.exists() {
            sh("btrfs", &["--quiet", "subvolume", "delete", text(&tree)]);
        }
        bench.settle();
        sh("btrfs", &["--quiet", "subvolume", "create", text(&tree)]);
        let script =
            "t=$0; for l; do gzip -dc \"$l\" | tar -C \"$t\" -xf - || exit; done; btrfs filesystem sync \"$t\"";
        timed(Command::new("sh").args(["-c", script, text(&tree)]).args(&image.blobs))
    };
    // A store of its own, in which no layer of it is there.
    let store = Tupper::new(bench.disk.path().join("pulled"));
    let fresh = |line: &str| {
        bench.settle();
        let time = timed(store.command(line, &[]).stdout(Stdio::null()));
        store.ok("image prune --all --force");
        time
    };
    let load = format!("image load --quiet -i {}", text(&image.layout));
    let pull = format!("image pull --quiet --tls-verify=false {}/bench:1", registry.address);
    let rows = vec![
        row("floor: gzip -dc into tar -xf a layer, then sync", untar),
        row("tupper image load, an OCI layout", || fresh(&load)),
        row("tupper image pull, a registry on loopback", || fresh(&pull)),
    ];
    let size: u64 = image.blobs.iter().map(|blob| blob.metadata().expect("a blob").len()).sum();
    measure(&format!("An image of 4 layers, {} MiB compressed", size >> 20), bench.runs.div_ceil(3), 1, 1, rows);
}

/// Both write a file on the same disk, and the floor syncs it, as save does.
fn save(bench: &Bench) {
    let [floor, saved] = ["floor.out", "saved.out"].map(|name| bench.disk.path().join(name));
    for (how, compressor, flags) in [
        ("not compressed", "cat", "--format docker-archive"),
        ("zstd", "zstd -q -3 -T0", "--format oci-archive --compression-format zstd"),
    ] {
        let script = format!("tar -C \"$0\" -cf - . | {compressor} >\"$1\" && sync \"$1\"");
        let rows = vec![
            row("floor: tar into the compressor, then sync", || {
                bench.settle();
                timed(Command::new("sh").args(["-c", &script, text(&bench.debian), text(&floor)]))
            }),
            row("tupper image save", || {
                let _ = fs::remove_file(&saved);
                bench.settle();
                timed(&mut bench.tupper.command(&format!("image save -q {flags} debian -o"), &[text(&saved)]))
            }),
        ];
        measure(&format!("A Debian saved, {how}"), bench.runs.div_ceil(3), 1, 1, rows);
    }
}

fn commit(bench: &Bench) {
    let write = "for n in 0 1 2 3 4 5 6 7 8 9; do echo $n >/etc/new-$n; done";
    bench.tupper.ok_with("run --name changed debian sh -c", &[write]);
    let rows = vec![
        row("floor: two raw snapshots at once", || {
            bench.settle();
            bench.raw_snapshots(2, 2, "many").0
        }),
        row("tupper commit", || {
            bench.settle();
            let time = timed(bench.tupper.command("commit -q changed changed:1", &[]).stdout(Stdio::null()));
            bench.tupper.ok("image rm changed:1");
            time
        }),
    ];
    measure("A commit of ten new files in a Debian", bench.runs, 1, 1, rows);
    bench.tupper.ok("rm changed");
}

/// An image in an OCI layout, as umoci makes it.
struct Layers {
    layout: PathBuf,
    /// The layers as they travel, lowest first.
    blobs: Vec<PathBuf>,
}

impl Layers {
    /// A tree twice over: whole, and again in three parts.
    fn of(tree: &Path, scratch: &Path) -> Layers {
        let layout = scratch.join("layout");
        let image = format!("{}:1", text(&layout));
        sh("umoci", &["init", "--layout", text(&layout)]);
        sh("umoci", &["new", "--image", &image]);
        for part in [".", "./usr/share", "./usr/lib", "./var"] {
            let archive = scratch.join("layer.tar");
            let under = if part == "." { "s,^,," } else { "s,^\\./,./again/," };
            sh("tar", &["-C", text(tree), "--transform", under, "-cf", text(&archive), part]);
            sh("umoci", &["raw", "add-layer", "--image", &image, text(&archive)]);
        }
        let index = json(&layout.join("index.json"));
        let blob = |descriptor: &serde_json::Value| {
            layout
                .join("blobs/sha256")
                .join(descriptor["digest"].as_str().expect("a digest").trim_start_matches("sha256:"))
        };
        let manifest = json(&blob(&index["manifests"][0]));
        let blobs = manifest["layers"].as_array().expect("layers").iter().map(blob).collect();
        Layers { layout, blobs }
    }
}

fn json(path: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("a document")).expect("JSON")
}

/// docker-registry(1) on loopback, with one image in it.
struct Registry {
    server: Child,
    address: String,
    _files: TempDir,
}

impl Registry {
    fn with(image: &Layers) -> Registry {
        let files = disk::scratch();
        let address =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
        let config = files.path().join("config.yml");
        let storage = text(&files.path().join("registry")).to_string();
        let lines = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}}}}}\nhttp: {{addr: \"{address}\"}}\n"
        );
        fs::write(&config, lines).expect("a file");
        let mut command = Command::new("docker-registry");
        command.args(["serve", text(&config)]).stdout(Stdio::null()).stderr(Stdio::null());
        let server = command.spawn().unwrap_or_else(|e| panic!("docker-registry: {e}; type: make setup"));
        let registry = Registry { server, address, _files: files };
        eventually("the registry listens", Duration::from_secs(120), || TcpStream::connect(&registry.address).is_ok());
        let (from, to) = (format!("oci:{}:1", text(&image.layout)), format!("docker://{}/bench:1", registry.address));
        sh("skopeo", &["copy", "--quiet", "--dest-tls-verify=false", &from, &to]);
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

/// From before the fork to after the wait; a failure ends the bench.
fn timed(command: &mut Command) -> Duration {
    command.stdin(Stdio::null());
    let start = Instant::now();
    let status = command.status().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let time = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    time
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}
