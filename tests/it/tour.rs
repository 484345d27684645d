//! README's tour is true: what is pasted from it prints what stands below it.

use std::path::Path;
use std::process::Command;

use crate::support::command::Tupper;
use crate::support::disk::{self, Disk};
use crate::support::store::Host;

/// The lines of a section's code blocks, without their indent.
fn code_of(section: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).expect("README.md");
    let from = readme.split_once(&format!("\n## {section}\n")).unwrap_or_else(|| panic!("no section {section}")).1;
    let section = from.split_once("\n## ").map_or(from, |(section, _)| section);
    section.lines().filter_map(|line| line.strip_prefix("    ")).map(str::to_string).collect()
}

/// A line of output without what differs between two machines and two moments: ids, ages, sizes, the width of columns.
fn plain(line: &str) -> String {
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| "(),`".contains(c));
        let is_id = [12, 64].contains(&bare.len()) && bare.bytes().all(|b| b.is_ascii_hexdigit());
        let is_number = bare.parse::<f64>().is_ok() && bare.len() < 4;
        let is_unit = ["B", "kB", "MB", "second", "seconds", "minute", "minutes", "hour"].contains(&bare);
        match () {
            () if is_id => word.replace(bare, "ID"),
            () if is_number => word.replace(bare, "N"),
            () if is_unit => word.replace(bare, "UNIT"),
            () => word.to_string(),
        }
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Runs one line as a person would, with both outputs on one terminal.
fn paste(line: &str, tupper: &Tupper, programs: &Path) -> Vec<String> {
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("a search path"));
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec 2>&1; {line}")]).current_dir(env!("CARGO_MANIFEST_DIR")).env("PATH", path);
    shell.env("TUPPER_ROOT", tupper.root()).env("TUPPER_NETWORK", "none").env("TUPPER_POOL", "off");
    let out = shell.output().expect("bash");
    String::from_utf8_lossy(&out.stdout).lines().map(str::to_string).collect()
}

#[test]
fn the_readme_s_tour_prints_what_it_says() {
    let _host = Host::shared();
    let disk = Disk::btrfs();
    let tupper = Tupper::new(disk.path().join("store"));
    // What is root already has no need of sudo(8), and the binary is this one.
    let programs = disk::scratch();
    let link = |name: &str, to: &str| std::os::unix::fs::symlink(to, programs.path().join(name)).expect("symlink");
    link("sudo", "/usr/bin/env");
    link("tupper", env!("CARGO_BIN_EXE_tupper"));

    let code = code_of("A tour: fork, compare, go back");
    let mut lines = code.iter().peekable();
    let (mut commands, mut compared) = (0, 0);
    while let Some(command) = lines.next() {
        assert!(!command.starts_with('#'), "output of no command: {command}");
        let mut told = Vec::new();
        while let Some(line) = lines.next_if(|line| line.starts_with('#')) {
            told.push(line.trim_start_matches('#').to_string());
        }
        let printed = paste(command, &tupper, programs.path());
        commands += 1;
        if told.is_empty() {
            assert!(!printed.iter().any(|line| line.contains("error")), "{command}: {printed:#?}");
            continue;
        }
        let whole = told.last().is_none_or(|last| last.trim() != "…");
        if !whole {
            told.pop();
        }
        let told: Vec<String> = told.iter().map(|line| plain(line)).collect();
        let printed: Vec<String> = printed.iter().map(|line| plain(line)).collect();
        assert_eq!(if whole { &printed[..] } else { &printed[..told.len().min(printed.len())] }, told, "{command}");
        compared += 1;
    }
    assert!(commands >= 14 && compared >= 10, "{commands} commands, {compared} with output");
}
