//! What a sandbox may use up, as a person says it: podman-run(1)'s limits, and which of them make no sense.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Kind, Result};

/// The kernel's least CPU quota and period, and its greatest period, in microseconds: kernel/sched/core.c,
/// min_cfs_quota_period and max_cfs_quota_period.
const LEAST_PERIOD: u64 = 1_000;
const GREATEST_PERIOD: u64 = 1_000_000;

/// include/linux/threads.h, PID_MAX_LIMIT: pids.max takes no more.
const GREATEST_PIDS: i64 = 4 << 20;

/// Limits of the sandbox's cgroup. `None` is no limit, but for processes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes, -1 without a limit; by default twice the memory.
    pub memory_swap: Option<i64>,
    /// Bytes of memory that are taken from it last when the host has none left.
    pub memory_reservation: Option<u64>,
    /// Processor time in thousandths of a processor, at least 10.
    pub millicpus: Option<u32>,
    /// The period of the CPU quota in microseconds; by default 100,000.
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in each period, -1 without a limit.
    pub cpu_quota: Option<i64>,
    /// Its share of processors that are busy, relative to others'; 1024 is what everybody has.
    pub cpu_shares: Option<u64>,
    /// The processors it may run on, such as `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// The memory nodes it may have memory of.
    pub cpuset_mems: Option<String>,
    /// Processes and threads. 1024 by default, where the host can limit them; zero or less: no limit.
    pub pids: Option<i64>,
    /// Its share of a busy disk, relative to others', from 10 to 1000.
    pub blkio_weight: Option<u16>,
    /// How fast it may read and write single disks.
    pub device_rates: Vec<DeviceRate>,
    /// Huge pages, by their size.
    pub hugetlb: Vec<HugePages>,
}

/// How fast one disk may be read or written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceRate {
    /// The disk's device node.
    pub device: PathBuf,
    /// What is counted.
    pub rate: Rate,
    /// So much a second; never zero.
    pub limit: u64,
}

/// What is counted of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rate {
    /// Bytes read.
    ReadBps,
    /// Bytes written.
    WriteBps,
    /// Reads.
    ReadIops,
    /// Writes.
    WriteIops,
}

/// How much memory huge pages of one size may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HugePages {
    /// Bytes of a page.
    pub size: u64,
    /// Bytes of all of them.
    pub limit: u64,
}

impl HugePages {
    /// The page's size as in the names of control files: mm/hugetlb_cgroup.c, mem_fmt.
    pub fn size_name(&self) -> String {
        match self.size {
            size if size >= 1 << 30 => format!("{}GB", size >> 30),
            size if size >= 1 << 20 => format!("{}MB", size >> 20),
            size => format!("{}KB", size >> 10),
        }
    }
}

impl Limits {
    /// These limits with some of them changed: what `change` sets is taken from it, and a zero (or an empty set) in it
    /// takes the limit away.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`], as of [`Limits::check`].
    pub fn changed_by(&self, change: &Limits) -> Result<Limits> {
        let mut new = self.clone();
        merge(&mut new.memory, change.memory, 0);
        merge(&mut new.memory_swap, change.memory_swap, 0);
        merge(&mut new.memory_reservation, change.memory_reservation, 0);
        // Two ways to say the same: whichever was said last.
        if change.millicpus.is_some() && change.cpu_period.is_none() && change.cpu_quota.is_none() {
            (new.cpu_period, new.cpu_quota) = (None, None);
        } else if change.millicpus.is_none() && (change.cpu_period.is_some() || change.cpu_quota.is_some()) {
            new.millicpus = None;
        }
        merge(&mut new.millicpus, change.millicpus, 0);
        merge(&mut new.cpu_period, change.cpu_period, 0);
        merge(&mut new.cpu_quota, change.cpu_quota, 0);
        merge(&mut new.cpu_shares, change.cpu_shares, 0);
        merge(&mut new.cpuset_cpus, change.cpuset_cpus.clone(), String::new());
        merge(&mut new.cpuset_mems, change.cpuset_mems.clone(), String::new());
        new.pids = change.pids.or(new.pids);
        merge(&mut new.blkio_weight, change.blkio_weight, 0);
        for rate in &change.device_rates {
            new.device_rates.retain(|old| (&old.device, old.rate) != (&rate.device, rate.rate));
            new.device_rates.extend((rate.limit > 0).then(|| rate.clone()));
        }
        for pages in &change.hugetlb {
            new.hugetlb.retain(|old| old.size != pages.size);
            new.hugetlb.push(pages.clone());
        }
        new.check()?;
        Ok(new)
    }

    /// Whether they make sense, each and together.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`], naming the flag.
    pub fn check(&self) -> Result<()> {
        self.check_memory()?;
        self.check_processors()?;
        if let Some(pids) = self.pids.filter(|pids| *pids > GREATEST_PIDS) {
            return Err(invalid(format!("--pids-limit {pids}: more than {GREATEST_PIDS}, the kernel's own limit")));
        }
        if let Some(weight) = self.blkio_weight.filter(|weight| !(10..=1000).contains(weight)) {
            return Err(invalid(format!("--blkio-weight {weight}: not between 10 and 1000")));
        }
        if let Some(rate) = self.device_rates.iter().find(|rate| rate.limit == 0) {
            return Err(invalid(format!("--device-…-bps or -iops {}: a rate of zero", rate.device.display())));
        }
        match self.hugetlb.iter().find(|pages| pages.size < 1 << 10) {
            Some(pages) => Err(invalid(format!("--hugetlb {}: no page is that small", pages.size))),
            None => Ok(()),
        }
    }

    fn check_memory(&self) -> Result<()> {
        if self.memory == Some(0) {
            return Err(invalid("limit memory: zero bytes".to_string()));
        }
        match (self.memory_swap, self.memory) {
            (None | Some(-1), _) => {}
            (Some(swap), None) => {
                return Err(invalid(format!("--memory-swap {swap}: it includes the memory, so it needs --memory")));
            }
            (Some(swap), Some(memory)) if u64::try_from(swap).map_or(true, |swap| swap < memory) => {
                return Err(invalid(format!("--memory-swap {swap}: less than --memory {memory}, which it includes")));
            }
            _ => {}
        }
        match (self.memory_reservation, self.memory) {
            (Some(reserved), Some(memory)) if reserved > memory => {
                Err(invalid(format!("--memory-reservation {reserved}: more than --memory {memory}")))
            }
            _ => Ok(()),
        }
    }

    fn check_processors(&self) -> Result<()> {
        if self.millicpus.is_some_and(|m| m < 10) {
            return Err(invalid("limit cpus: less than 0.01".to_string()));
        }
        if self.millicpus.is_some() && (self.cpu_quota.is_some() || self.cpu_period.is_some()) {
            let message = "--cpus with --cpu-quota or --cpu-period: two ways to say the same";
            return Err(invalid(message.to_string()));
        }
        if let Some(period) = self.cpu_period.filter(|p| !(LEAST_PERIOD..=GREATEST_PERIOD).contains(p)) {
            let message =
                format!("--cpu-period {period}: not between {LEAST_PERIOD} and {GREATEST_PERIOD} microseconds");
            return Err(invalid(message));
        }
        if let Some(quota) = self.cpu_quota.filter(|q| *q != -1 && u64::try_from(*q).map_or(true, |q| q < LEAST_PERIOD))
        {
            return Err(invalid(format!("--cpu-quota {quota}: neither -1 nor {LEAST_PERIOD} microseconds or more")));
        }
        // kernel/sched/sched.h, MIN_SHARES and MAX_SHARES.
        if let Some(shares) = self.cpu_shares.filter(|s| !(2..=262_144).contains(s)) {
            return Err(invalid(format!("--cpu-shares {shares}: not between 2 and 262144")));
        }
        for (flag, set) in [("--cpuset-cpus", &self.cpuset_cpus), ("--cpuset-mems", &self.cpuset_mems)] {
            if let Some(set) = set
                && numbers(set).is_none()
            {
                return Err(invalid(format!("{flag} {set:?}: not a list of numbers and ranges, such as 0-2,4")));
            }
        }
        Ok(())
    }
}

fn merge<T: PartialEq>(field: &mut Option<T>, change: Option<T>, none: T) {
    if let Some(value) = change {
        *field = Some(value).filter(|value| *value != none);
    }
}

/// The numbers in a list such as `0-2,4` (cpuset(7), "List format"); `None` when it is none.
pub(super) fn numbers(list: &str) -> Option<Vec<usize>> {
    // More than CONFIG_NR_CPUS can be: a mistake, and not worth the memory.
    let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n < 1 << 16 && !text.starts_with('+'));
    let mut all = Vec::new();
    for part in list.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

fn invalid(message: String) -> Error {
    Error::new(Kind::Invalid, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_that_make_no_sense_name_their_flag() {
        let gib = Limits { memory: Some(1 << 30), ..Limits::default() };
        let cases = [
            ("--memory-swap 5: it includes", Limits { memory_swap: Some(5), ..Limits::default() }),
            ("--memory-swap 5: less", Limits { memory_swap: Some(5), ..gib.clone() }),
            ("--memory-swap -2: less", Limits { memory_swap: Some(-2), ..gib.clone() }),
            ("--memory-reservation 1073741825: more", Limits { memory_reservation: Some((1 << 30) + 1), ..gib }),
            ("--cpus with", Limits { millicpus: Some(500), cpu_quota: Some(5000), ..Limits::default() }),
            ("--cpus with", Limits { millicpus: Some(500), cpu_period: Some(5000), ..Limits::default() }),
            ("--cpu-period 999", Limits { cpu_period: Some(999), ..Limits::default() }),
            ("--cpu-quota 999", Limits { cpu_quota: Some(999), ..Limits::default() }),
            ("--cpu-quota -2", Limits { cpu_quota: Some(-2), ..Limits::default() }),
            ("--cpu-shares 1", Limits { cpu_shares: Some(1), ..Limits::default() }),
            ("--cpuset-cpus \"x\"", Limits { cpuset_cpus: Some("x".into()), ..Limits::default() }),
            ("--cpuset-mems \"2-1\"", Limits { cpuset_mems: Some("2-1".into()), ..Limits::default() }),
            ("--pids-limit 9999999", Limits { pids: Some(9_999_999), ..Limits::default() }),
            ("--blkio-weight 9", Limits { blkio_weight: Some(9), ..Limits::default() }),
            ("--hugetlb 5", Limits { hugetlb: vec![HugePages { size: 5, limit: 0 }], ..Limits::default() }),
        ];
        for (names, limits) in cases {
            let error = limits.check().expect_err(names);
            assert_eq!(error.kind(), Kind::Invalid);
            assert!(error.to_string().starts_with(names), "{error} does not begin with {names}");
        }
    }

    #[test]
    fn a_change_is_over_what_was_and_zero_takes_away() {
        let rate = |rate, limit| DeviceRate { device: "/dev/sda".into(), rate, limit };
        let old = Limits {
            memory: Some(1 << 30),
            cpu_quota: Some(5000),
            cpu_period: Some(10_000),
            pids: Some(7),
            device_rates: vec![rate(Rate::ReadBps, 1), rate(Rate::WriteBps, 2)],
            ..Limits::default()
        };
        let change = Limits {
            memory: Some(0),
            millicpus: Some(500),
            device_rates: vec![rate(Rate::ReadBps, 0), rate(Rate::WriteBps, 3)],
            hugetlb: vec![HugePages { size: 2 << 20, limit: 0 }],
            ..Limits::default()
        };
        let new = old.changed_by(&change).expect("it makes sense");
        let expected = Limits {
            millicpus: Some(500),
            pids: Some(7),
            device_rates: vec![rate(Rate::WriteBps, 3)],
            hugetlb: vec![HugePages { size: 2 << 20, limit: 0 }],
            ..Limits::default()
        };
        assert_eq!(new, expected);
        let back = new.changed_by(&Limits { cpu_quota: Some(-1), ..Limits::default() }).expect("it makes sense");
        assert_eq!((back.millicpus, back.cpu_quota), (None, Some(-1)));
        let swap = Limits { memory_swap: Some(1), ..Limits::default() };
        assert!(old.changed_by(&swap).is_err(), "checked with what was there");
    }

    #[test]
    fn lists_of_numbers() {
        assert_eq!(numbers("0-2,4"), Some(vec![0, 1, 2, 4]));
        assert_eq!(numbers("7"), Some(vec![7]));
        for text in ["", "a", "-1", "1-", "3-2", "1,,2", "+1", "70000", "1-2-3"] {
            assert_eq!(numbers(text), None, "{text}");
        }
    }

    #[test]
    fn huge_pages_have_the_kernels_names() {
        for (size, name) in [(64 << 10, "64KB"), (2 << 20, "2MB"), (1 << 30, "1GB"), (16 << 30, "16GB")] {
            assert_eq!(HugePages { size, limit: 0 }.size_name(), name);
        }
    }
}
