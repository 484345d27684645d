//! Power cuts in the middle: several people work at once, and the power goes at any write of any of them.

use std::io::Write as _;

use crate::after::Clearing;
use crate::campaign::{now, said};
use crate::machine::Machine;
use crate::recorder::Filesystem;
use crate::support::store::Host;
use crate::tape::{Random, Unflushed};
use crate::worker::{Sources, Worker};

const WORKERS: u64 = 3;
const COMMANDS: usize = 15;

/// Lets them work, and cuts at random moments.
fn any_moment(filesystem: Filesystem) {
    let _host = Host::shared();
    let seed = said("TUPPER_SEED").map_or_else(now, |seed| seed.parse().expect("TUPPER_SEED is a number"));
    let cuts = if said("TUPPER_SWEEP").is_some_and(|sweep| sweep == "whole") { 60 } else { 3 };
    let _ = writeln!(std::io::stderr(), "TUPPER_SEED={seed}, {cuts} cuts");

    let sources: Vec<Sources> = (0..WORKERS).map(Sources::new).collect();
    let machine = Machine::new(filesystem);
    std::thread::scope(|scope| {
        for (nth, sources) in (0..).zip(&sources) {
            let random = Random::new(seed ^ (nth + 1) << 32);
            let mut worker = Worker::new(&machine, sources, &format!("w{nth}"), false, random);
            scope.spawn(move || worker.work(COMMANDS));
        }
    });
    let history = machine.stop();

    let mut random = Random::new(seed);
    let mut failed = Vec::new();
    for _ in 0..cuts {
        let moment = random.below(history.end());
        let unflushed = match random.below(3) {
            0 => Unflushed::Lost,
            _ => Unflushed::Mixed(seed ^ moment as u64),
        };
        let holds = std::panic::catch_unwind(|| history.assert_survives(moment, unflushed, Clearing::Next));
        let _ = writeln!(
            std::io::stderr(),
            "{moment} of {}, {unflushed:?}: {}",
            history.end(),
            if holds.is_ok() { "holds" } else { "DOES NOT HOLD" }
        );
        failed.extend(holds.is_err().then_some((moment, unflushed)));
    }
    assert!(failed.is_empty(), "TUPPER_SEED={seed}: does not survive a power cut at {failed:#?}");
}

#[test]
fn a_cut_at_any_moment_on_btrfs() {
    any_moment(Filesystem::Btrfs);
}

#[test]
fn a_cut_at_any_moment_embedded_in_ext4() {
    any_moment(Filesystem::Ext4);
}

#[test]
fn a_cut_at_any_moment_embedded_in_xfs() {
    any_moment(Filesystem::Xfs);
}
