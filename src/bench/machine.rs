//! What the figures were taken on: a figure without its machine says nothing.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use crate::error::{Context, Result};
use crate::kernel::{btrfs, mount};
use crate::store::{Shelf, Store};

/// The machine, and the filesystem that the store is on.
#[derive(Debug, Clone)]
pub struct Machine {
    /// This program's version, and whether it was built without optimisation.
    pub program: String,
    /// The kernel's release and the architecture.
    pub kernel: String,
    /// The processor's name, as far as the kernel tells.
    pub processor: String,
    /// How many of its processors this process may use.
    pub processors: usize,
    /// Bytes of memory.
    pub memory: u64,
    /// The device that the filesystem is on; of a loop device also what its file lies on.
    pub device: String,
    /// How it is mounted.
    pub mount_options: Vec<String>,
    /// Bytes in a node of its trees.
    pub node_size: u32,
    /// Bytes in the filesystem.
    pub size: u64,
}

impl Machine {
    /// The one that this runs on.
    pub(super) fn look(store: &Store) -> Result<Machine> {
        let build = if cfg!(debug_assertions) { " (debug build)" } else { "" };
        let release = read("/proc/sys/kernel/osrelease")?;
        let processors = read("/proc/cpuinfo")?;
        let memory = read("/proc/meminfo")?;
        let kilobytes: Option<u64> = field(&memory, "MemTotal").and_then(|text| text.split(' ').next()?.parse().ok());
        let fs = store.shelf(Shelf::Staging)?;
        let mounted = mount::holding(fs.as_fd())?;
        Ok(Machine {
            program: format!("tupper {}{build}", env!("CARGO_PKG_VERSION")),
            kernel: format!("Linux {} {}", release.trim(), std::env::consts::ARCH),
            processor: field(&processors, "model name").unwrap_or("processor without a name").to_string(),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory: kilobytes.unwrap_or(0) * 1024,
            device: device(&mounted.source),
            mount_options: mounted.options,
            node_size: btrfs::node_size(fs.as_fd())?,
            size: store.space()?.size,
        })
    }

    /// It in two lines: the machine, and its disk.
    pub fn lines(&self) -> [String; 2] {
        let gib = |bytes: u64| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64);
        let cpus = if self.processors == 1 { "1 CPU".to_string() } else { format!("{} CPUs", self.processors) };
        [
            format!("{} · {} · {cpus}, {} · {}", self.program, self.kernel, self.processor, gib(self.memory)),
            format!(
                "btrfs, {}, {} KiB nodes, on {} · {}",
                gib(self.size),
                self.node_size / 1024,
                self.device,
                self.mount_options.join(",")
            ),
        ]
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).context(|| format!("read {path}"))
}

/// The first value of `name: value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then_some(value.trim())
    })
}

/// The device, and for a loop device the filesystem of its file: that is what its figures are of.
fn device(source: &str) -> String {
    let name = Path::new(source).file_name().unwrap_or_default();
    let backing = Path::new("/sys/class/block").join(name).join("loop/backing_file");
    let below = fs::read_to_string(backing).ok().and_then(|file| {
        let file = fs::File::open(file.trim_end_matches('\n')).ok()?;
        mount::holding(file.as_fd()).ok()
    });
    match below {
        Some(below) => format!("{source}, a file on {} ({})", below.kind, below.source),
        None => source.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_found_by_their_name() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\nMemTotal:        1024 kB\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), Some("1024 kB"));
        assert_eq!(field(text, "name"), None);
    }
}
