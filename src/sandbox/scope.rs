//! A sandbox's cgroup as a transient scope of systemd (systemd.scope(5)): its name, its place, and the properties that
//! its limits are (org.freedesktop.systemd1(5), systemd.resource-control(5)).

use std::path::{Path, PathBuf};

use super::cgroups::{Cgroups, Counters, Ground};
use super::controllers::{cpu_quota, cpu_weight, io_weight};
use super::devices::DeviceRule;
use super::limits::{Limits, Rate, numbers};
use crate::error::{Error, Kind, Result};

/// Where systemd keeps what virtual machines and containers run in: systemd.special(7).
pub(super) const SLICE: &str = "machine.slice";

/// What systemd calls "infinity".
const INFINITY: u64 = u64::MAX;

/// A scope to be made for the sandbox's first process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// The unit's name.
    pub unit: String,
    /// Its cgroup.
    pub directory: PathBuf,
    /// Its properties, beside the process.
    pub properties: Vec<Property>,
    /// The devices that may be used in it; `None` for all.
    pub devices: Option<Vec<DeviceRule>>,
}

/// A property of a unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Property {
    /// Its name.
    pub name: &'static str,
    /// Its value.
    pub value: Value,
}

/// A property's value, in the D-Bus types that properties of scopes have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// `b`
    Flag(bool),
    /// `s`
    Text(String),
    /// `t`
    Number(u64),
    /// `ay`: a set of numbers, one bit each, the lowest first.
    Set(Vec<u8>),
    /// `a(st)`: device nodes and rates.
    Rates(Vec<(String, u64)>),
    /// `au`
    Processes(Vec<u32>),
}

impl Value {
    /// As busctl(1) takes it, the signature first.
    pub(super) fn words(&self) -> String {
        let list = |signature: &str, words: Vec<String>| {
            [vec![signature.to_string(), words.len().to_string()], words].concat().join(" ")
        };
        match self {
            Value::Flag(flag) => format!("b {flag}"),
            Value::Text(text) => format!("s '{text}'"),
            Value::Number(number) => format!("t {number}"),
            Value::Set(bytes) => list("ay", bytes.iter().map(u8::to_string).collect()),
            Value::Rates(rates) => list("'a(st)'", rates.iter().map(|(path, rate)| format!("{path} {rate}")).collect()),
            Value::Processes(pids) => list("au", pids.iter().map(u32::to_string).collect()),
        }
    }
}

/// The unit of the sandbox with this name.
fn unit(name: &str) -> String {
    format!("tupper-{name}.scope")
}

/// The name of the sandbox that this is the unit of.
pub(super) fn name_in(unit: &str) -> Option<String> {
    Some(unit.strip_prefix("tupper-")?.strip_suffix(".scope")?.to_string())
}

/// The cgroup of the scope of the sandbox with this name, below the unified hierarchy's mount.
pub(super) fn directory(mount: &Path, name: &str) -> PathBuf {
    mount.join(SLICE).join(unit(name))
}

/// The name of the scope's unit on this ground, and its cgroup.
pub(super) fn locate(ground: Ground<'_>) -> Result<(String, PathBuf)> {
    let unsupported = |message: &str| {
        let error = Error::new(Kind::Unsupported, format!("cgroup manager systemd: {message}"));
        Err(error.with_hint("use --cgroup-manager cgroupfs"))
    };
    if !ground.systemd {
        return unsupported("this host does not run systemd");
    }
    // What systemd makes of a scope on v1 hierarchies differs from version to version, and since 258 it makes nothing.
    let Some(unified) = ground.hierarchies.first().filter(|_| ground.is_unified()) else {
        return unsupported("this host has cgroup v1 hierarchies");
    };
    let name = ground.cgroup.file_name().unwrap_or_default().to_string_lossy();
    Ok((unit(&name), directory(&unified.mount, &name)))
}

/// Plans the scope that these limits need.
pub(super) fn plan(limits: &Limits, devices: Option<Vec<DeviceRule>>, ground: Ground<'_>) -> Result<Cgroups> {
    let (unit, directory) = locate(ground)?;
    let text = |name, value: &str| Property { name, value: Value::Text(value.to_string()) };
    let mut properties = vec![
        text("Description", &format!("tupper container {}", name_in(&unit).unwrap_or_default())),
        text("Slice", SLICE),
        // systemd leaves what is below to whoever runs in it.
        Property { name: "Delegate", value: Value::Flag(true) },
        // One that ended badly is not kept to be looked at.
        text("CollectMode", "inactive-or-failed"),
    ];
    properties.extend(limit_properties(limits, ground)?);
    let mut counters = Counters { fleeting: true, ..Counters::default() };
    for (wanted, _) in ground.assign(limits)? {
        counters.note(&wanted, &directory, "memory.events");
    }
    let scope = Scope { unit, directory, properties, devices };
    Ok(Cgroups { scope: Some(scope), counters, ..Cgroups::default() })
}

/// The properties that limits are. One that is not set is not named, but for processes: systemd has a default of its own
/// for them.
pub(super) fn limit_properties(limits: &Limits, ground: Ground<'_>) -> Result<Vec<Property>> {
    if !limits.hugetlb.is_empty() {
        let message = "limit hugetlb: systemd has no such property";
        return Err(Error::new(Kind::Unsupported, message).with_hint("use --cgroup-manager cgroupfs"));
    }
    let mut all = Vec::new();
    let mut number = |name, value: Option<u64>| {
        all.extend(value.map(|value| Property { name, value: Value::Number(value) }));
    };
    for (wanted, _) in ground.assign(limits)? {
        for write in &wanted.unified {
            let plain = if write.value == "max" { Some(INFINITY) } else { write.value.parse().ok() };
            match write.file.as_str() {
                "memory.max" => number("MemoryMax", plain),
                "memory.swap.max" => number("MemorySwapMax", plain),
                "memory.low" => number("MemoryLow", plain),
                "pids.max" => number("TasksMax", plain),
                _ => {}
            }
        }
    }
    if limits.pids.is_some_and(|pids| pids <= 0) {
        number("TasksMax", Some(INFINITY));
    }
    if let Some((quota, period)) = cpu_quota(limits) {
        // Whole percents, rounded up: at a reload systemd reads them back from a file that has no others.
        let second = |quota: u64| (quota * 1_000_000).div_ceil(period).next_multiple_of(10_000);
        number("CPUQuotaPerSecUSec", Some(u64::try_from(quota).map_or(INFINITY, second)));
        number("CPUQuotaPeriodUSec", Some(period));
    }
    number("CPUWeight", limits.cpu_shares.map(cpu_weight));
    number("IOWeight", limits.blkio_weight.map(io_weight));
    for (name, set) in [("AllowedCPUs", &limits.cpuset_cpus), ("AllowedMemoryNodes", &limits.cpuset_mems)] {
        all.extend(set.iter().map(|set| Property { name, value: Value::Set(bits(set)) }));
    }
    for (name, rate) in [
        ("IOReadBandwidthMax", Rate::ReadBps),
        ("IOWriteBandwidthMax", Rate::WriteBps),
        ("IOReadIOPSMax", Rate::ReadIops),
        ("IOWriteIOPSMax", Rate::WriteIops),
    ] {
        let of_kind = limits.device_rates.iter().filter(|r| r.rate == rate);
        let rates: Vec<(String, u64)> = of_kind.map(|r| (r.device.display().to_string(), r.limit)).collect();
        all.extend((!rates.is_empty()).then_some(Property { name, value: Value::Rates(rates) }));
    }
    Ok(all)
}

/// The bits of a list of numbers: bit N of byte N / 8.
pub(super) fn bits(list: &str) -> Vec<u8> {
    let numbers = numbers(list).unwrap_or_default();
    let mut bytes = vec![0; numbers.iter().max().map_or(0, |last| last / 8 + 1)];
    for number in numbers {
        bytes[number / 8] |= 1 << (number % 8);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::facts::Hierarchy;
    use crate::sandbox::limits::{DeviceRate, HugePages};

    fn unified() -> Vec<Hierarchy> {
        let controllers = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"].map(String::from).to_vec();
        vec![Hierarchy { mount: "/sys/fs/cgroup".into(), controllers, unified: true }]
    }

    fn ground(hierarchies: &[Hierarchy]) -> Ground<'_> {
        Ground { hierarchies, cgroup: Path::new("tupper/c1"), disks: &[], systemd: true }
    }

    fn said(limits: &Limits) -> Vec<String> {
        let properties = limit_properties(limits, ground(&unified())).expect("properties");
        properties.iter().map(|p| format!("{} {}", p.name, p.value.words())).collect()
    }

    #[test]
    fn limits_are_properties() {
        assert_eq!(said(&Limits::default()), ["TasksMax t 1024"]);
        let limits = Limits {
            memory: Some(1 << 20),
            memory_swap: Some(3 << 20),
            memory_reservation: Some(1 << 19),
            millicpus: Some(1505),
            cpu_shares: Some(1024),
            cpuset_cpus: Some("0-1,9".into()),
            cpuset_mems: Some("0".into()),
            pids: Some(-1),
            blkio_weight: Some(1000),
            ..Limits::default()
        };
        let expected = [
            "MemoryMax t 1048576",
            "MemorySwapMax t 2097152",
            "MemoryLow t 524288",
            "TasksMax t 18446744073709551615",
            "CPUQuotaPerSecUSec t 1510000",
            "CPUQuotaPeriodUSec t 100000",
            "CPUWeight t 100",
            "IOWeight t 10000",
            "AllowedCPUs ay 2 3 2",
            "AllowedMemoryNodes ay 1 1",
        ];
        assert_eq!(said(&limits), expected);
        let none = Limits { memory_swap: Some(-1), cpu_quota: Some(-1), pids: Some(5), ..Limits::default() };
        let expected = [
            "MemorySwapMax t 18446744073709551615",
            "TasksMax t 5",
            "CPUQuotaPerSecUSec t 18446744073709551615",
            "CPUQuotaPeriodUSec t 100000",
        ];
        assert_eq!(said(&none), expected);
    }

    #[test]
    fn disks_are_named_by_their_nodes() {
        let rate = |rate| DeviceRate { device: "/dev/sda".into(), rate, limit: 7 };
        let limits = Limits { device_rates: vec![rate(Rate::ReadBps), rate(Rate::WriteIops)], ..Limits::default() };
        let disks = [crate::sandbox::facts::Disk { path: "/dev/sda".into(), major: 8, minor: 0 }];
        let unified = unified();
        let found = limit_properties(&limits, Ground { disks: &disks, ..ground(&unified) }).expect("properties");
        let said: Vec<String> = found.iter().map(|p| format!("{} {}", p.name, p.value.words())).collect();
        assert_eq!(said[1..], ["IOReadBandwidthMax 'a(st)' 1 /dev/sda 7", "IOWriteIOPSMax 'a(st)' 1 /dev/sda 7"]);
    }

    #[test]
    fn what_systemd_cannot_do_says_what_can() {
        let pages = Limits { hugetlb: vec![HugePages { size: 2 << 20, limit: 0 }], ..Limits::default() };
        let hybrid =
            [unified(), vec![Hierarchy { mount: "/v1".into(), controllers: vec!["cpu".into()], unified: false }]];
        let (hybrid, unified) = (hybrid.concat(), unified());
        for (limits, ground) in [
            (&pages, ground(&unified)),
            (&Limits::default(), ground(&hybrid)),
            (&Limits::default(), Ground { systemd: false, ..ground(&unified) }),
        ] {
            let error = plan(limits, None, ground).err().expect("it cannot");
            assert_eq!(
                (error.kind(), error.hint()),
                (Kind::Unsupported, Some("use --cgroup-manager cgroupfs")),
                "{error}"
            );
        }
    }

    #[test]
    fn a_scope_is_found_by_its_name() {
        assert_eq!(name_in("tupper-a-b.scope").as_deref(), Some("a-b"));
        for other in ["libpod-a.scope", "tupper-a.service", "tupper.scope"] {
            assert_eq!(name_in(other), None, "{other}");
        }
        assert_eq!(directory(Path::new("/c"), "a"), Path::new("/c/machine.slice/tupper-a.scope"));
    }
}
