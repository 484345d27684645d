//! What limits are to the kernel: controllers, their control files and what is written to them, in the words of v2
//! (Documentation/admin-guide/cgroup-v2.rst) and of v1 (Documentation/admin-guide/cgroup-v1).
//!
//! How one is said in the other's words is as in runc and crun (crun(1), "CGROUP v2").

use super::devices::DeviceRule;
use super::facts::Disk;
use super::limits::{DeviceRate, Limits, Rate};
use crate::error::{Error, Kind, Result};

/// How many processes a sandbox may have when nobody says; podman's default is twice that (containers.conf(5),
/// `pids_limit`).
const DEFAULT_PIDS: i64 = 1024;

/// A CPU quota's period in microseconds: the kernel's default (cgroup-v2.rst, cpu.max).
pub(super) const CPU_PERIOD: u64 = 100_000;

/// A controller that has something to limit: the writes for v2 and for v1, and whether the person asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) unified_name: &'static str,
    pub(super) legacy_name: &'static str,
    pub(super) explicit: bool,
    pub(super) unified: Vec<Write>,
    pub(super) legacy: Vec<Write>,
}

/// What one control file gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    pub(super) file: String,
    pub(super) value: String,
    /// Another file, with the value that it takes, where a kernel lacks the first.
    pub(super) instead: Option<(String, String)>,
    /// A kernel without the file does without it.
    pub(super) optional: bool,
}

impl Write {
    fn new(file: impl Into<String>, value: impl ToString) -> Write {
        Write { file: file.into(), value: value.to_string(), instead: None, optional: false }
    }

    fn optional_unless(self, explicit: bool) -> Write {
        Write { optional: !explicit, ..self }
    }
}

/// The controllers that these limits need, in the order in which they are set up.
pub(super) fn wanted(limits: &Limits, disks: &[Disk]) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    let mut add = |names: (&'static str, &'static str), explicit, unified: Vec<Write>, legacy: Vec<Write>| {
        if !unified.is_empty() || !legacy.is_empty() {
            all.push(Wanted { unified_name: names.0, legacy_name: names.1, explicit, unified, legacy });
        }
    };
    add(("memory", "memory"), true, unified_memory(limits), legacy_memory(limits));
    add(("cpu", "cpu"), true, unified_cpu(limits), legacy_cpu(limits));
    let sets = [("cpuset.cpus", &limits.cpuset_cpus), ("cpuset.mems", &limits.cpuset_mems)];
    let cpuset: Vec<Write> =
        sets.into_iter().filter_map(|(file, set)| set.as_ref().map(|set| Write::new(file, set))).collect();
    add(("cpuset", "cpuset"), true, cpuset.clone(), cpuset);
    let pids = Some(limits.pids.unwrap_or(DEFAULT_PIDS)).filter(|pids| *pids > 0);
    let pids: Vec<Write> = pids.iter().map(|pids| Write::new("pids.max", pids)).collect();
    add(("pids", "pids"), limits.pids.is_some(), pids.clone(), pids);
    let (unified, legacy) = io(limits, disks)?;
    add(("io", "blkio"), true, unified, legacy);
    add(("hugetlb", "hugetlb"), true, hugetlb(limits, "max"), hugetlb(limits, "limit_in_bytes"));
    Ok(all)
}

fn unified_memory(limits: &Limits) -> Vec<Write> {
    let mut writes: Vec<Write> = limits.memory.iter().map(|bytes| Write::new("memory.max", bytes)).collect();
    // v2 counts swap for itself.
    let swap = match (limits.memory, limits.memory_swap) {
        (_, Some(-1)) => Some("max".to_string()),
        (Some(memory), Some(total)) => Some(total.unsigned_abs().saturating_sub(memory).to_string()),
        (memory, _) => memory.map(|memory| memory.to_string()),
    };
    let explicit = limits.memory_swap.is_some();
    writes.extend(swap.map(|swap| Write::new("memory.swap.max", swap).optional_unless(explicit)));
    writes.extend(limits.memory_reservation.map(|bytes| Write::new("memory.low", bytes)));
    writes
}

fn legacy_memory(limits: &Limits) -> Vec<Write> {
    let mut writes: Vec<Write> = limits.memory.iter().map(|bytes| Write::new("memory.limit_in_bytes", bytes)).collect();
    let total = limits.memory_swap.map(|total| total.to_string());
    // As much swap as memory is docker's and podman's default.
    let total = total.or(limits.memory.map(|memory| memory.saturating_mul(2).to_string()));
    let explicit = limits.memory_swap.is_some();
    writes.extend(total.map(|total| Write::new("memory.memsw.limit_in_bytes", total).optional_unless(explicit)));
    writes.extend(limits.memory_reservation.map(|bytes| Write::new("memory.soft_limit_in_bytes", bytes)));
    writes
}

/// The quota in microseconds (-1: none) and its period, where there is one of both.
pub(super) fn cpu_quota(limits: &Limits) -> Option<(i64, u64)> {
    if let Some(millicpus) = limits.millicpus {
        return Some((i64::from(millicpus) * (CPU_PERIOD / 1000).cast_signed(), CPU_PERIOD));
    }
    let given = limits.cpu_quota.is_some() || limits.cpu_period.is_some();
    given.then(|| (limits.cpu_quota.unwrap_or(-1), limits.cpu_period.unwrap_or(CPU_PERIOD)))
}

fn unified_cpu(limits: &Limits) -> Vec<Write> {
    let quota = cpu_quota(limits).map(|(quota, period)| match quota {
        -1 => format!("max {period}"),
        quota => format!("{quota} {period}"),
    });
    let mut writes: Vec<Write> = quota.into_iter().map(|value| Write::new("cpu.max", value)).collect();
    writes.extend(limits.cpu_shares.map(|shares| Write::new("cpu.weight", cpu_weight(shares))));
    writes
}

fn legacy_cpu(limits: &Limits) -> Vec<Write> {
    let mut writes = Vec::new();
    if let Some((quota, period)) = cpu_quota(limits) {
        writes = vec![Write::new("cpu.cfs_period_us", period), Write::new("cpu.cfs_quota_us", quota)];
    }
    writes.extend(limits.cpu_shares.map(|shares| Write::new("cpu.shares", shares)));
    writes
}

/// cpu.weight (1 to 10,000) for cpu.shares (2 to 262,144), so that both defaults and both ends meet: the parabola in
/// logarithms that runc 1.3.2 and crun 1.23 use (opencontainers/cgroups pull request 20).
pub(super) fn cpu_weight(shares: u64) -> u64 {
    let log = (shares.clamp(2, 262_144) as f64).log2();
    let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
    // At the upper end the sum is a little above 4.
    (10f64.powf(exponent).ceil() as u64).clamp(1, 10_000)
}

/// io.weight (1 to 10,000) for blkio.weight (10 to 1000).
pub(super) fn io_weight(weight: u16) -> u64 {
    1 + u64::from(weight.max(10) - 10) * 9999 / 990
}

fn io(limits: &Limits, disks: &[Disk]) -> Result<(Vec<Write>, Vec<Write>)> {
    let (mut unified, mut legacy) = (Vec::new(), Vec::new());
    if let Some(weight) = limits.blkio_weight {
        // Which file there is depends on the scheduler: bfq's takes the weight as it is (block/bfq-cgroup.c).
        let instead = Some(("io.weight".to_string(), io_weight(weight).to_string()));
        unified.push(Write { instead, ..Write::new("io.bfq.weight", weight) });
        let instead = Some(("blkio.weight".to_string(), weight.to_string()));
        legacy.push(Write { instead, ..Write::new("blkio.bfq.weight", weight) });
    }
    for DeviceRate { device, rate, limit } in &limits.device_rates {
        let Some(Disk { major, minor, .. }) = disks.iter().find(|disk| disk.path == *device) else {
            return Err(Error::new(Kind::NotFound, format!("limit io: {}: no such device", device.display())));
        };
        let (key, file) = match rate {
            Rate::ReadBps => ("rbps", "blkio.throttle.read_bps_device"),
            Rate::WriteBps => ("wbps", "blkio.throttle.write_bps_device"),
            Rate::ReadIops => ("riops", "blkio.throttle.read_iops_device"),
            Rate::WriteIops => ("wiops", "blkio.throttle.write_iops_device"),
        };
        unified.push(Write::new("io.max", format!("{major}:{minor} {key}={limit}")));
        legacy.push(Write::new(file, format!("{major}:{minor} {limit}")));
    }
    Ok((unified, legacy))
}

fn hugetlb(limits: &Limits, file: &str) -> Vec<Write> {
    let mut writes = Vec::new();
    for pages in &limits.hugetlb {
        let name = format!("hugetlb.{}", pages.size_name());
        writes.push(Write::new(format!("{name}.{file}"), pages.limit));
        // Without this, who has reserved more gets a signal at its first touch instead of an error (hugetlb.rst).
        writes.push(Write::new(format!("{name}.rsvd.{file}"), pages.limit).optional_unless(false));
    }
    writes
}

/// What the v1 controller of devices is told: none, then those.
pub(super) fn legacy_devices(rules: &[DeviceRule]) -> Wanted {
    let mut legacy = vec![Write::new("devices.deny", "a")];
    legacy.extend(rules.iter().map(|rule| Write::new("devices.allow", rule)));
    Wanted { unified_name: "devices", legacy_name: "devices", explicit: true, unified: Vec::new(), legacy }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The values that the authors of the formula give, and both ends.
    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(2, 1), (3, 2), (102, 17), (512, 59), (1024, 100), (2048, 174), (262_144, 10_000)] {
            assert_eq!(cpu_weight(shares), weight, "{shares}");
        }
        for (blkio, io) in [(10, 1), (500, 4950), (1000, 10_000)] {
            assert_eq!(io_weight(blkio), io, "{blkio}");
        }
    }
}
