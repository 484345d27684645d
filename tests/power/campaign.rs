//! A campaign of power cuts: somebody runs commands chosen at random, of all verbs, and the power goes at a random moment in
//! or after a random one of them, with the writes since the last flush lost, kept or torn.
//!
//! A seed is a workload and a cut: those with the same quotient by [`CUTS`] are cuts of one workload, which is run once for
//! them. `TUPPER_SEED=N` runs the workload of N and cuts as N says, and no other. The cut is counted in commands and in parts of
//! a command, not in writes, which the kernel makes in an order of its own.

use std::io::Write as _;
use std::sync::Arc;
use std::time::SystemTime;

use crate::after::Clearing;
use crate::ledger::{Status, Thing};
use crate::machine::Machine;
use crate::recorder::Filesystem;
use crate::support::store::Host;
use crate::support::tree::Tree;
use crate::tape::{Random, Unflushed};
use crate::worker::{Sources, Worker};

/// How many seeds share a workload.
const CUTS: u64 = 20;

/// How many commands a workload has.
const COMMANDS: usize = 40;

/// Cuts as many times as asked for, `whole` times if all is asked for; fails with all seeds that did not hold.
fn campaign(filesystem: Filesystem, sample: u64, whole: u64) {
    let _host = Host::shared();
    let seeds: Vec<u64> = match said("TUPPER_SEED") {
        Some(seed) => vec![seed.parse().expect("TUPPER_SEED is a number")],
        None => {
            let cuts = if said("TUPPER_SWEEP").is_some_and(|sweep| sweep == "whole") { whole } else { sample };
            let first = now() * CUTS;
            (first..first + cuts).collect()
        }
    };
    let mut failed = Vec::new();
    for cuts in seeds.chunk_by(|a, b| a / CUTS == b / CUTS) {
        failed.extend(cut(filesystem, cuts));
    }
    let test = format!("{filesystem:?}").to_lowercase();
    assert!(
        failed.is_empty(),
        "of {} cuts did not hold: cargo test --test power campaign::on_{test}, with {failed:#?}",
        seeds.len()
    );
}

/// Runs a workload, and cuts once for each of these seeds. Returns those that did not hold, and why.
fn cut(filesystem: Filesystem, seeds: &[u64]) -> Vec<String> {
    let workload = seeds[0] / CUTS;
    let sources = Sources::new(0);
    let machine = Machine::new(filesystem);
    let mut worker = Worker::new(&machine, &sources, "a", true, Random::new(workload));
    worker.work(COMMANDS);
    let steps = worker.steps;
    let history = machine.stop();

    let mut failed = Vec::new();
    for seed in seeds {
        let mut random = Random::new(*seed);
        let step = random.below(steps.len());
        let begun = step.checked_sub(1).map_or(0, |before| steps[before].0);
        let (ended, verb) = steps[step];
        // After a third of them.
        let part = if random.below(3) == 0 { 1000 } else { random.below(1000) };
        let moment = begun + (ended - begun) * part / 1000;
        let unflushed = match random.below(5) {
            0 => Unflushed::Kept,
            1 | 2 => Unflushed::Lost,
            _ => Unflushed::Mixed(*seed),
        };
        let clearing = [Clearing::Gc, Clearing::Next][random.below(2)];
        let what = format!(
            "TUPPER_SEED={seed} {filesystem:?}: cut {} of {} into command {step}, {verb}; {unflushed:?}, {clearing:?}",
            moment - begun,
            ended - begun
        );
        let holds = std::panic::catch_unwind(|| history.assert_survives(moment, unflushed, clearing));
        // Not eprintln!, which a test that passes would keep to itself.
        let _ = writeln!(std::io::stderr(), "{what}: {}", if holds.is_ok() { "holds" } else { "DOES NOT HOLD" });
        failed.extend(holds.is_err().then_some(what));
    }
    failed
}

/// What the environment says.
pub fn said(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// A seed that nobody chose.
pub fn now() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_secs()
}

/// A campaign can fail: what was not durable is missed.
#[test]
fn what_was_promised_too_early_is_missed() {
    let _host = Host::shared();
    let sources = Sources::new(0);
    let machine = Machine::new(Filesystem::Btrfs);
    let (image, tree) = sources.import_into(&machine);
    let [removed, written] = [(); 2].map(|()| machine.snapshot(&image, "", tree).remove(0));
    let kept = machine.recorder.now();
    machine.remove("snapshot rm", &removed);
    machine.promise(&removed, Status::Gone);
    let early = machine.recorder.now();
    std::fs::write(machine.path_of(&written).join("more"), "text").expect("write");
    let tree = Arc::new(Tree::read(&machine.path_of(&written)));
    machine.promise(&removed, Status::ThereOrNot);
    machine.promise(&written, Status::There(Thing::Snapshot { name: None, tree }));
    let unsynced = machine.recorder.now();
    let history = machine.stop();
    let holds =
        |moment| std::panic::catch_unwind(|| history.assert_survives(moment, Unflushed::Lost, Clearing::Gc)).is_ok();
    assert_eq!([kept, early, unsynced].map(holds), [true, false, false]);
}

#[test]
fn on_btrfs() {
    campaign(Filesystem::Btrfs, 8, 140);
}

#[test]
fn on_ext4() {
    campaign(Filesystem::Ext4, 8, 120);
}

#[test]
fn on_xfs() {
    campaign(Filesystem::Xfs, 4, 40);
}
