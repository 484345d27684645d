//! Many tuppers at once on one store: nobody sees half an object, nobody waits for ever, and what was acknowledged is
//! true in the end.
//!
//! Thirty-two workers run one command after the other, each on objects of its own, whose fate it therefore knows, and
//! on a pool that they share. Meanwhile others list, inspect, check and collect garbage. At the end the store must hold
//! what the workers say it holds, and nothing once that is removed.
//!
//! `TUPPER_SEED=N` repeats the choices of a run, `TUPPER_SWEEP=whole` runs ten times as many commands.

mod bystander;
mod judge;
mod pool;
mod random;
mod runner;
mod scale;
#[allow(dead_code, reason = "shared with tests/it: each test binary uses its part")]
#[path = "../it/support/mod.rs"]
mod support;
mod worker;

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use pool::Pool;
use random::Random;
use runner::Runner;
use support::store::Store;
use worker::Worker;

const WORKERS: usize = 32;

/// The image that is there all the time.
const BASE: &str = "example.org/base:1";

/// Whether commands are ended by SIGKILL at any point, now and then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kills {
    None,
    Some,
}

#[test]
fn what_32_processes_do_at_once_is_as_if_each_were_alone() {
    storm(1_000, Kills::None);
}

#[test]
fn processes_that_are_killed_take_nothing_of_the_others_with_them() {
    storm(600, Kills::Some);
}

#[expect(clippy::print_stderr, reason = "shown when the test fails, or with --nocapture")]
fn storm(commands: usize, kills: Kills) {
    let commands = commands * if std::env::var("TUPPER_SWEEP").is_ok_and(|sweep| sweep == "whole") { 10 } else { 1 };
    let seed = std::env::var("TUPPER_SEED").ok().map_or_else(random::seed, |text| text.parse().expect("a number"));
    eprintln!("to repeat the choices of this run: TUPPER_SEED={seed}");

    let store = Store::alone();
    store.ok_with("image tag busybox", &[BASE]);
    store.ok("image rm localhost/busybox:latest");
    let uuid = store.json("store info --format json")["Uuid"].as_str().expect("a UUID").to_string();
    // Cgroups and run state of other stores on this host are not ours.
    let traces = || -> BTreeSet<String> {
        let traces = store.traces();
        let ours = |line: &&str| !line.starts_with("cgroup ") && !line.starts_with("run ") || line.contains(&uuid);
        traces.named("").into_iter().filter(ours).map(str::to_string).collect()
    };
    let before = traces();

    let runner = Runner::new(&store, commands, kills);
    let pool = Pool::new(&runner);
    let mut random = Random::new(seed);
    let mut workers: Vec<Worker> = (0..WORKERS).map(|number| Worker::new(number, &pool, random.fork())).collect();
    std::thread::scope(|scope| {
        scope.spawn(|| runner.watch());
        for work in [bystander::read, bystander::read, bystander::collect, bystander::check] {
            let (runner, random) = (&runner, random.fork());
            scope.spawn(move || runner.guard(|| work(runner, random)));
        }
        std::thread::scope(|scope| {
            for worker in &mut workers {
                let runner = &runner;
                scope.spawn(move || runner.guard(|| worker.work()));
            }
        });
        runner.stop.store(true, Ordering::Release);
    });
    runner.assert_unharmed();
    eprintln!("{}", runner.summary());

    if kills == Kills::Some {
        store.ok("store gc");
    }
    assert_eq!(store.ok("store check"), "");
    judge::compare(&store, &workers, &pool);
    judge::remove_all(&store, kills);
    if kills == Kills::Some {
        // Layers of loads that nobody goes on with.
        store.ok("image prune --force");
    }
    assert_eq!(store.ok("store check"), "");
    let after = traces();
    let left: Vec<&String> = after.symmetric_difference(&before).collect();
    assert!(left.is_empty(), "left behind, or gone: {left:#?}");
}
