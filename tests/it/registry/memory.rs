//! How much memory a pull takes: as much for large layers as for small ones.

use std::process::Stdio;
use std::time::Duration;

use super::fixture::{Image, registry};
use crate::scratch::Tar;
use crate::support::store::{Store, alone};

/// In bytes, so far; `None` once the process has ended.
fn peak(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? << 10)
}

#[test]
fn a_pull_is_bounded_in_memory_however_large_its_layers() {
    let noise = |seed: u32| -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state
        };
        (0..8 << 20).flat_map(|_| next().to_le_bytes()).collect()
    };
    let layers = (1..6).map(|number| Tar::default().file(format!("file{number}"), &noise(number)).end()).collect();
    let image = Image::of(layers, |_| {});
    let server = registry(&image, |_| None);
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    let mut command = tupper.command(&format!("pull --tls-verify=false {}/a/image:1", server.host()), &[]);
    let mut child = command.stdout(Stdio::null()).spawn().expect("a pull");
    let mut highest = 0;
    let status = loop {
        highest = highest.max(peak(child.id()).unwrap_or(0));
        if let Some(status) = child.try_wait().expect("waited for") {
            break status;
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    assert!(status.success());
    // 64 MiB, and 8 MiB for each of three layers in flight.
    assert!(highest > 1 << 20 && highest <= (64 + 3 * 8) << 20, "{} KiB", highest >> 10);
}
