//! Docker's seccomp profiles (also podman's and containerd's): docs.docker.com, "Seccomp security profiles for Docker";
//! the actions and comparisons are libseccomp's, seccomp_rule_add(3).
//!
//! Rules without arguments come before those with, as in libseccomp; otherwise the first that fits decides. An argument
//! that a rule names twice makes it several rules, one for each (runc, libcontainer/specconv). Calls that are not known
//! are passed over, as they are there.

use serde::{Deserialize, Serialize};

use super::calls;
use super::profile::{Action, Arch, Compare, Condition, Profile, Rule};
use crate::error::{Error, Kind, Result};
use crate::kernel::seccomp::EPERM;
use crate::sandbox::step::{CapabilitySet, capability};

/// Rules of a profile, one for each call and alternative. The kernel takes 4096 instructions, and a rule is at least two.
const RULES: usize = 65_536;

/// A profile as a file has it. What it says beyond this (comments, an agent to notify) is passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Document {
    /// `SCMP_ACT_…`
    pub default_action: String,
    /// The errno of a default action that has one; EPERM without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_errno_ret: Option<u32>,
    /// The ABIs, by the machine's; without this and `architectures` those of the machine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arch_map: Vec<ArchMap>,
    /// The ABIs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_…`
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// The rules.
    #[serde(default, deserialize_with = "or_null")]
    pub syscalls: Vec<NamedRule>,
}

/// The ABIs of one kind of machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ArchMap {
    /// Its own.
    pub architecture: String,
    /// And the others.
    #[serde(default, deserialize_with = "or_null")]
    pub sub_architectures: Vec<String>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NamedRule {
    /// The calls.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub names: Vec<String>,
    /// One call, in old profiles.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// `SCMP_ACT_…`
    pub action: String,
    /// The errno of an action that has one; EPERM without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno_ret: Option<u32>,
    /// What the arguments are.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
    /// It is a rule only there.
    #[serde(default, deserialize_with = "or_null")]
    pub includes: Matches,
    /// It is no rule there.
    #[serde(default, deserialize_with = "or_null")]
    pub excludes: Matches,
}

/// A comparison of an argument.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// Which, from 0 to 5.
    pub index: u8,
    /// What it is compared with; the mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// What a masked one is compared with.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_…`
    pub op: String,
}

/// Where a rule is one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Matches {
    /// With these capabilities.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub caps: Vec<String>,
    /// On these machines, in Go's words.
    #[serde(default, deserialize_with = "or_null", skip_serializing_if = "Vec::is_empty")]
    pub arches: Vec<String>,
    /// From this version of the kernel on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_kernel: Option<String>,
}

/// podman's own file has null for what is empty.
fn or_null<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

impl Document {
    /// Reads one.
    ///
    /// # Errors
    ///
    /// [`Kind::Invalid`] with the line for what is no profile, and for words in it that nobody knows.
    pub fn parse(text: &[u8]) -> Result<Document> {
        let document: Document =
            serde_json::from_slice(text).map_err(|e| Error::new(Kind::Invalid, format!("seccomp profile: {e}")))?;
        // Every word of it, also of rules that do not count here.
        action(&document.default_action, document.default_errno_ret)?;
        for rule in &document.syscalls {
            named(rule, action(&rule.action, rule.errno_ret).map(drop))?;
            rule.args.iter().try_for_each(|argument| named(rule, condition(argument).map(drop)))?;
            for matches in [&rule.includes, &rule.excludes] {
                named(rule, matches.min_kernel.iter().try_for_each(|text| version(text).map(drop)))?;
            }
        }
        flags(&document.flags)?;
        Ok(document)
    }

    /// The profile, and the flags to load it with.
    pub(super) fn profile(&self, bounding: CapabilitySet, kernel: (u32, u32)) -> Result<(Profile, u32)> {
        let default = action(&self.default_action, self.default_errno_ret)?;
        let mut rules = Vec::new();
        for rule in &self.syscalls {
            let counts = (rule.includes.is_empty() || rule.includes.all(bounding, kernel)?)
                && (rule.excludes.is_empty() || !rule.excludes.any(bounding, kernel)?);
            if !counts {
                continue;
            }
            let action = named(rule, action(&rule.action, rule.errno_ret))?;
            let conditions = rule.args.iter().map(condition).collect::<Result<Vec<_>>>();
            let conditions = named(rule, conditions)?;
            let twice = (0..6).any(|n| conditions.iter().filter(|c| c.argument == n).count() > 1);
            let alternatives =
                if twice { conditions.iter().map(|c| vec![*c]).collect() } else { vec![conditions.clone()] };
            let calls = rule.names.len() + rule.name.iter().len();
            if calls.saturating_mul(alternatives.len()).saturating_add(rules.len()) > RULES {
                return named(
                    rule,
                    Err(invalid(format!("more than {RULES} rules, each call and alternative counted"))),
                );
            }
            for call in rule.names.iter().chain(&rule.name).filter_map(|name| calls::find(name)) {
                rules.extend(alternatives.iter().map(|when| Rule { call: call.name, when: when.clone(), action }));
            }
        }
        rules.sort_by_key(|rule| (rule.call, !rule.when.is_empty()));
        Ok((Profile { arches: self.arches(), default, rules }, flags(&self.flags)?))
    }

    fn arches(&self) -> Vec<Arch> {
        let own = Arch::here()[0].names()[0];
        let mapped = self.arch_map.iter().filter(|map| map.architecture == own);
        let mut names: Vec<&String> =
            mapped.flat_map(|m| [&m.architecture].into_iter().chain(&m.sub_architectures)).collect();
        names.extend(&self.architectures);
        if names.is_empty() {
            return Arch::here()[..1].to_vec();
        }
        let listed = |arch: &&Arch| names.iter().any(|name| **name == arch.names()[0]);
        Arch::here().iter().filter(|arch| arch.names()[0] == own || listed(arch)).copied().collect()
    }
}

impl Matches {
    fn is_empty(&self) -> bool {
        *self == Matches::default()
    }

    /// What it says, one by one, and whether each is so.
    fn each(&self, bounding: CapabilitySet, kernel: (u32, u32)) -> Result<Vec<bool>> {
        let mut found = Vec::new();
        if !self.arches.is_empty() {
            let here = Arch::here().iter().flat_map(|arch| arch.names());
            found.push(here.into_iter().any(|name| self.arches.iter().any(|a| a == name)));
        }
        found.extend(self.caps.iter().map(|cap| has(bounding, cap)));
        if let Some(text) = &self.min_kernel {
            found.push(kernel >= version(text)?);
        }
        Ok(found)
    }

    fn all(&self, bounding: CapabilitySet, kernel: (u32, u32)) -> Result<bool> {
        Ok(self.each(bounding, kernel)?.into_iter().all(|holds| holds))
    }

    fn any(&self, bounding: CapabilitySet, kernel: (u32, u32)) -> Result<bool> {
        Ok(self.each(bounding, kernel)?.into_iter().any(|holds| holds))
    }
}

fn has(bounding: CapabilitySet, name: &str) -> bool {
    let lower = name.to_ascii_lowercase();
    let known = lower.strip_prefix("cap_").and_then(capability);
    known.is_some_and(|one| bounding.0 & one.0 != 0)
}

fn named<T>(rule: &NamedRule, result: Result<T>) -> Result<T> {
    let name = rule.names.iter().chain(&rule.name).next().map_or("", String::as_str);
    result.map_err(|e| Error::new(Kind::Invalid, format!("{e} (the rule for {name})")))
}

fn action(name: &str, errno: Option<u32>) -> Result<Action> {
    let data = errno.unwrap_or_else(|| u32::from(EPERM));
    // include/linux/seccomp.h, MAX_ERRNO: the kernel takes 4095 for what is more.
    let data = u16::try_from(data).ok().filter(|data| *data <= 4095);
    let data = data.ok_or_else(|| invalid(format!("{name} with {}: not an errno", errno.unwrap_or_default())))?;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_ERRNO" => Action::Errno(data),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        "SCMP_ACT_TRAP" => Action::Trap(if errno.is_some() { data } else { 0 }),
        "SCMP_ACT_TRACE" => Action::Trace(data),
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_NOTIFY" => {
            let error = invalid("SCMP_ACT_NOTIFY: tupper has no agent that could be asked".to_string());
            return Err(error.with_hint("write SCMP_ACT_ERRNO or SCMP_ACT_ALLOW instead"));
        }
        _ => return Err(invalid(format!("{name:?}: not an action"))),
    })
}

fn condition(argument: &Argument) -> Result<Condition> {
    let (compare, mask, value) = match argument.op.as_str() {
        "SCMP_CMP_NE" => (Compare::NotEqual, u64::MAX, argument.value),
        "SCMP_CMP_LT" => (Compare::Less, u64::MAX, argument.value),
        "SCMP_CMP_LE" => (Compare::LessOrEqual, u64::MAX, argument.value),
        "SCMP_CMP_EQ" => (Compare::Equal, u64::MAX, argument.value),
        "SCMP_CMP_GE" => (Compare::GreaterOrEqual, u64::MAX, argument.value),
        "SCMP_CMP_GT" => (Compare::Greater, u64::MAX, argument.value),
        "SCMP_CMP_MASKED_EQ" => (Compare::Equal, argument.value, argument.value_two),
        op => return Err(invalid(format!("{op:?}: not a comparison"))),
    };
    if argument.index > 5 {
        return Err(invalid(format!("argument {}: a call has six, from 0 on", argument.index)));
    }
    Ok(Condition { argument: argument.index, compare, mask, value })
}

/// include/uapi/linux/seccomp.h. A sandbox has one thread when the filter is loaded, so TSYNC changes nothing.
fn flags(names: &[String]) -> Result<u32> {
    names.iter().try_fold(0, |flags, name| match name.as_str() {
        "SECCOMP_FILTER_FLAG_TSYNC" => Ok(flags),
        "SECCOMP_FILTER_FLAG_LOG" => Ok(flags | 2),
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW" => Ok(flags | 4),
        _ => Err(invalid(format!("{name:?}: not a flag"))),
    })
}

/// The first two numbers of a kernel's version.
fn version(text: &str) -> Result<(u32, u32)> {
    let mut numbers = text.split('.').map(str::parse::<u32>);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => Err(invalid(format!("{text:?}: not a kernel's version"))),
    }
}

fn invalid(what: String) -> Error {
    Error::new(Kind::Invalid, format!("seccomp profile: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::step::capabilities;

    fn verdict(text: &str, bounding: CapabilitySet, call: &str, arguments: [u64; 6]) -> Action {
        let document = Document::parse(text.as_bytes()).expect("a profile");
        let kept = serde_json::to_string(&document).expect("it prints");
        assert_eq!(Document::parse(kept.as_bytes()).expect("it parses again"), document);
        let (profile, _) = document.profile(bounding, (5, 15)).expect("it makes sense");
        let arch = Arch::here()[0];
        profile.verdict(arch, calls::find(call).and_then(|c| c.number(arch)).expect(call), &arguments)
    }

    #[test]
    fn rules_count_where_they_say() {
        let text = r#"{
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "comment": "passed over",
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}],
            "syscalls": [
                {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW", "args": null},
                {"name": "write", "action": "SCMP_ACT_TRAP"},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "5.16"}},
                {"names": ["close"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["s390x"]}},
                {"names": ["dup"], "action": "SCMP_ACT_LOG", "includes": {"arches": ["s390x", "amd64", "arm64"]}},
                {"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 255, "valueTwo": 17, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 2, "op": "SCMP_CMP_EQ"}]},
                {"names": ["kill"], "action": "SCMP_ACT_KILL_PROCESS", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["kill"], "action": "SCMP_ACT_ALLOW"}
            ]}"#;
        let none = CapabilitySet(0);
        let admin = capabilities(&["sys_admin"]);
        for (call, first, second, bounding, expected) in [
            ("read", 0, 0, none, Action::Allow),
            ("open_by_handle_at", 0, 0, none, Action::Errno(38)),
            ("write", 0, 0, none, Action::Trap(0)),
            ("mount", 0, 0, none, Action::Errno(1)),
            ("mount", 0, 0, admin, Action::Allow),
            ("ptrace", 0, 0, none, Action::Allow),
            ("bpf", 0, 0, none, Action::Errno(38)),
            ("close", 0, 0, none, Action::Errno(38)),
            ("dup", 0, 0, none, Action::Log),
            ("socket", 40, 0, none, Action::Errno(38)),
            ("socket", 1, 0, none, Action::Allow),
            ("clone", 0x1211, 0, none, Action::Allow),
            ("clone", 0x1212, 0, none, Action::Errno(38)),
            ("personality", 1, 0, none, Action::Allow),
            ("personality", 2, 0, none, Action::Allow),
            ("personality", 3, 0, none, Action::Errno(38)),
            ("kill", 1, 9, none, Action::Allow),
        ] {
            assert_eq!(verdict(text, bounding, call, [first, second, 0, 0, 0, 0]), expected, "{call} {first}");
        }
    }

    #[test]
    fn what_nobody_knows_is_an_error_that_says_where() {
        let rule = |rule: &str| format!(r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{rule}]}}"#);
        for (text, says) in [
            ("{", "line 1"),
            (r#"{"syscalls": []}"#, "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_MAYBE"}"#, "\"SCMP_ACT_MAYBE\": not an action"),
            (&rule(r#"{"names": ["dup"], "action": "SCMP_ACT_NOTIFY"}"#), "SCMP_ACT_NOTIFY: tupper has no agent"),
            (&rule(r#"{"names": ["dup"], "action": "ALLOW"}"#), "the rule for dup"),
            (&rule(r#"{"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9999}"#), "not an errno"),
            (
                &rule(
                    r#"{"names": ["dup"], "action": "SCMP_ACT_LOG", "args": [{"index": 0, "value": 1, "op": "IS"}]}"#,
                ),
                "\"IS\": not a comparison",
            ),
            (
                &rule(
                    r#"{"names": ["dup"], "action": "SCMP_ACT_LOG", "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]}"#,
                ),
                "argument 6",
            ),
            (&rule(r#"{"names": ["dup"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "x"}}"#), "version"),
        ] {
            let error = Document::parse(text.as_bytes()).expect_err(says);
            assert!(error.kind() == Kind::Invalid && error.to_string().contains(says), "{error}");
        }
    }

    /// Names times comparisons of one argument are rules: a file of a few hundred KiB could ask for gigabytes.
    #[test]
    fn rules_are_counted_before_they_are_made() {
        let argument = r#"{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}"#;
        let many = |what: &str, count: usize| vec![what; count].join(",");
        let text = |count: usize| {
            let (names, arguments) = (many("\"read\"", count), many(argument, count));
            format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
                    {{"names": [{names}], "action": "SCMP_ACT_LOG", "args": [{arguments}]}}]}}"#
            )
        };
        let profile = |count| Document::parse(text(count).as_bytes()).expect("one").profile(CapabilitySet(0), (6, 1));
        assert_eq!(profile(200).expect("within").0.rules.len(), 40_000);
        assert!(profile(1000).is_err_and(|e| e.to_string().contains("rules")), "a million");
    }
}
