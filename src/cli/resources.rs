//! What a container may use up: the flags of run, create, shell and update, with podman's names and meanings.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use clap::{Args, CommandFactory, ValueEnum};
use serde_json::{Map, Value, json};
use tupper::container;
use tupper::error::{Error, Kind};
use tupper::sandbox::{CgroupManager, DeviceRate, HugePages, Limits, Rate};

use super::output;
use super::run::bytes;

/// Limits of the container's cgroup. A zero is no limit.
#[derive(Debug, Args)]
#[command(next_help_heading = "Limits")]
pub(super) struct Resources {
    /// Limit of memory, such as 512m
    #[arg(long, short, value_name = "SIZE", value_parser = bytes_or_none)]
    memory: Option<u64>,
    /// Limit of memory and swap together; -1 for none [default: twice the memory]
    #[arg(long, value_name = "SIZE", value_parser = swap, allow_negative_numbers = true)]
    memory_swap: Option<i64>,
    /// Memory that is taken from it last when the host runs short
    #[arg(long, value_name = "SIZE", value_parser = bytes_or_none)]
    memory_reservation: Option<u64>,
    /// Limit of processor time, such as 1.5
    #[arg(long, value_name = "N", value_parser = millicpus)]
    cpus: Option<u32>,
    /// Limit of processor time in each period, in microseconds; -1 for none
    #[arg(long, value_name = "US", conflicts_with = "cpus", allow_negative_numbers = true)]
    cpu_quota: Option<i64>,
    /// The period of --cpu-quota in microseconds, 1000 to 1000000 [default: 100000]
    #[arg(long, value_name = "US", conflicts_with = "cpus")]
    cpu_period: Option<u64>,
    /// Its share of processors that are busy, 2 to 262144; everybody else has 1024
    #[arg(long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// The processors it may run on, such as 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// The memory nodes it may have memory of
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Limit of processes; -1 for none [default: 1024]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pids_limit: Option<i64>,
    /// Its share of busy disks, 10 to 1000
    #[arg(long, value_name = "N")]
    blkio_weight: Option<u16>,
    /// Bytes a second that may be read from a disk
    #[arg(long, value_name = "DEVICE:SIZE", value_parser = byte_rate)]
    device_read_bps: Vec<(PathBuf, u64)>,
    /// Bytes a second that may be written to a disk
    #[arg(long, value_name = "DEVICE:SIZE", value_parser = byte_rate)]
    device_write_bps: Vec<(PathBuf, u64)>,
    /// Reads a second of a disk
    #[arg(long, value_name = "DEVICE:N", value_parser = operation_rate)]
    device_read_iops: Vec<(PathBuf, u64)>,
    /// Writes a second of a disk
    #[arg(long, value_name = "DEVICE:N", value_parser = operation_rate)]
    device_write_iops: Vec<(PathBuf, u64)>,
    /// Limit of huge pages of one size, such as 2m=64m
    #[arg(long, value_name = "SIZE=LIMIT", value_parser = huge_pages)]
    hugetlb: Vec<HugePages>,
}

impl Resources {
    /// What they change, on top of whatever there is.
    fn change(self) -> Limits {
        let rates = [
            (Rate::ReadBps, self.device_read_bps),
            (Rate::WriteBps, self.device_write_bps),
            (Rate::ReadIops, self.device_read_iops),
            (Rate::WriteIops, self.device_write_iops),
        ];
        let of_kind = |(rate, list): (Rate, Vec<(PathBuf, u64)>)| {
            list.into_iter().map(move |(device, limit)| DeviceRate { device, rate, limit })
        };
        Limits {
            memory: self.memory,
            memory_swap: self.memory_swap,
            memory_reservation: self.memory_reservation,
            millicpus: self.cpus,
            cpu_period: self.cpu_period,
            cpu_quota: self.cpu_quota,
            cpu_shares: self.cpu_shares,
            cpuset_cpus: self.cpuset_cpus,
            cpuset_mems: self.cpuset_mems,
            pids: self.pids_limit,
            blkio_weight: self.blkio_weight,
            device_rates: rates.into_iter().flat_map(of_kind).collect(),
            hugetlb: self.hugetlb,
        }
    }

    /// The limits of a new container.
    ///
    /// # Errors
    ///
    /// A usage error for what makes no sense.
    pub(super) fn limits(self) -> Result<Limits> {
        Limits::default().changed_by(&self.change()).map_err(usage)
    }
}

/// Limits that make no sense are a mistake on the command line.
fn usage(error: Error) -> anyhow::Error {
    match error.kind() {
        Kind::Invalid => super::Cli::command().error(clap::error::ErrorKind::ValueValidation, error).into(),
        _ => error.into(),
    }
}

/// Who makes the container's cgroup.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Manager {
    /// tupper, below a cgroup of its own.
    #[default]
    Cgroupfs,
    /// systemd, as a scope in machine.slice.
    Systemd,
}

impl From<Manager> for CgroupManager {
    fn from(manager: Manager) -> CgroupManager {
        match manager {
            Manager::Cgroupfs => CgroupManager::Cgroupfs,
            Manager::Systemd => CgroupManager::Systemd,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples: tupper update -m 512m web; tupper update --cpus 0.5 --pids-limit 200 web db")]
pub(super) struct Update {
    #[command(flatten)]
    resources: Resources,
    /// Names or ids
    #[arg(required = true, value_name = "CONTAINER")]
    containers: Vec<String>,
}

impl Update {
    pub(super) fn run(self, root: &Path) -> Result<ExitCode> {
        let change = self.resources.change();
        if change == Limits::default() {
            return Err(usage(Error::new(Kind::Invalid, "update: no limit given")));
        }
        let store = super::open_to_make(root)?;
        Ok(super::for_each(&self.containers, |text| {
            container::update(&store, text, &change).map_err(usage)?;
            output::line(text)
        }))
    }
}

/// The limits in podman-container-inspect(1)'s words, among its HostConfig.
pub(super) fn details(limits: &Limits) -> Map<String, Value> {
    let rates = |kind: Rate| -> Vec<Value> {
        let of_kind = limits.device_rates.iter().filter(|rate| rate.rate == kind);
        of_kind.map(|rate| json!({ "Path": rate.device, "Rate": rate.limit })).collect()
    };
    let hugetlb = limits.hugetlb.iter().map(|pages| json!({ "PageSize": pages.size_name(), "Limit": pages.limit }));
    let all = [
        ("Memory", json!(limits.memory.unwrap_or(0))),
        ("MemorySwap", json!(limits.memory_swap.unwrap_or(0))),
        ("MemoryReservation", json!(limits.memory_reservation.unwrap_or(0))),
        ("NanoCpus", json!(u64::from(limits.millicpus.unwrap_or(0)) * 1_000_000)),
        ("CpuPeriod", json!(limits.cpu_period.unwrap_or(0))),
        ("CpuQuota", json!(limits.cpu_quota.unwrap_or(0))),
        ("CpuShares", json!(limits.cpu_shares.unwrap_or(0))),
        ("CpusetCpus", json!(limits.cpuset_cpus.as_deref().unwrap_or(""))),
        ("CpusetMems", json!(limits.cpuset_mems.as_deref().unwrap_or(""))),
        ("PidsLimit", json!(limits.pids)),
        ("BlkioWeight", json!(limits.blkio_weight.unwrap_or(0))),
        ("BlkioDeviceReadBps", rates(Rate::ReadBps).into()),
        ("BlkioDeviceWriteBps", rates(Rate::WriteBps).into()),
        ("BlkioDeviceReadIOps", rates(Rate::ReadIops).into()),
        ("BlkioDeviceWriteIOps", rates(Rate::WriteIops).into()),
        ("Hugetlb", hugetlb.collect::<Vec<_>>().into()),
    ];
    all.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn bytes_or_none(text: &str) -> Result<u64> {
    if text == "0" { Ok(0) } else { bytes(text) }
}

fn swap(text: &str) -> Result<i64> {
    match text {
        "-1" => Ok(-1),
        text => Ok(i64::try_from(bytes_or_none(text)?)?),
    }
}

fn millicpus(text: &str) -> Result<u32> {
    let cpus: f64 = text.parse().map_err(|_| anyhow!("not a number, such as 1.5"))?;
    if cpus != 0.0 && !(0.01..=100_000.0).contains(&cpus) {
        bail!("not between 0.01 and 100000");
    }
    Ok((cpus * 1000.0).round() as u32)
}

fn byte_rate(text: &str) -> Result<(PathBuf, u64)> {
    let (device, rate) = device(text)?;
    Ok((device, bytes_or_none(rate)?))
}

fn operation_rate(text: &str) -> Result<(PathBuf, u64)> {
    let (device, rate) = device(text)?;
    Ok((device, rate.parse().map_err(|_| anyhow!("{rate:?}: not a number"))?))
}

fn device(text: &str) -> Result<(PathBuf, &str)> {
    match text.rsplit_once(':') {
        Some((device, rate)) if device.starts_with('/') => Ok((PathBuf::from(device), rate)),
        _ => bail!("not a device and a rate, such as /dev/sda:1m"),
    }
}

fn huge_pages(text: &str) -> Result<HugePages> {
    let (size, limit) = text.split_once('=').ok_or_else(|| anyhow!("not a size and a limit, such as 2m=64m"))?;
    Ok(HugePages { size: bytes(size)?, limit: bytes_or_none(limit)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_decimal() {
        assert_eq!(millicpus("1.5").expect("valid"), 1500);
        assert_eq!(millicpus("0").expect("none"), 0);
        for text in ["-1", "x", "0.001", "inf", "nan"] {
            assert!(millicpus(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_are_of_devices() {
        assert_eq!(byte_rate("/dev/disk/by-path/a:b:1m").expect("valid"), ("/dev/disk/by-path/a:b".into(), 1 << 20));
        assert_eq!(operation_rate("/dev/sda:100").expect("valid"), ("/dev/sda".into(), 100));
        for text in ["/dev/sda", "sda:1m", "/dev/sda:", "/dev/sda:x"] {
            assert!(byte_rate(text).is_err() && operation_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_values_have_units_and_ends() {
        assert_eq!(swap("-1").expect("none"), -1);
        assert_eq!(swap("1g").expect("valid"), 1 << 30);
        assert!(swap("-2").is_err());
        assert_eq!(huge_pages("2MB=1g").expect("valid"), HugePages { size: 2 << 20, limit: 1 << 30 });
        assert!(huge_pages("2MB").is_err());
        assert_eq!(bytes_or_none("0").expect("none"), 0);
    }
}
