//! The measurement itself: contenders take turns, so that a noisy moment hits all of them, and each begins its turn with
//! nothing of another's left to be written.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::Series;
use super::stats::Samples;
use crate::error::{Context, Error, Kind, Result};
use crate::interrupt;

/// A way to do the work.
pub(super) trait Contender: Sync {
    /// What it is called in tables and plots.
    fn name(&self) -> String;

    /// What it does, in this order; each is measured by itself.
    fn operations(&self) -> &'static [&'static str];

    /// Does an operation for the object number `n`. The first of the operations makes the object; what is left of it when
    /// one fails is in the scratch room.
    fn perform(&self, operation: usize, n: usize) -> Result<()>;
}

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    /// Samples of each operation of each contender.
    count: usize,
    /// Threads that do it at once.
    parallel: usize,
}

impl Plan {
    pub(super) fn new(count: usize, parallel: usize) -> Result<Plan> {
        match (count, parallel) {
            (0, _) | (_, 0) => Err(Error::new(Kind::Invalid, "count or parallel 0: nothing would be measured")),
            (_, MOST_THREADS..) => {
                Err(Error::new(Kind::Limit, format!("parallel {parallel}: not below {MOST_THREADS}")))
            }
            _ => Ok(Plan { count, parallel }),
        }
    }
}

/// So many threads would measure each other.
const MOST_THREADS: usize = 1024;

/// How often each contender does its work before it counts, and how long at most: the second time is enough of a slow one.
const WARM_UP: (usize, Duration) = (5, Duration::from_millis(500));

/// A contender that has had so much time has shown enough, once there are this many samples of it.
const ENOUGH: (usize, Duration) = (20, Duration::from_secs(60));

/// Samples that a thread takes in a row, where there are several threads: a turn is to be longer than its ends.
const ROW: usize = 4;

/// Measures them all; `settle` takes what is not written yet to the disk.
pub(super) fn measure(
    contenders: &[Box<dyn Contender + '_>],
    plan: Plan,
    settle: &dyn Fn() -> Result<()>,
) -> Result<Vec<Series>> {
    let mut next = 0;
    let mut tallies = Vec::new();
    for contender in contenders {
        let start = Instant::now();
        for turn in 0..WARM_UP.0 {
            if turn > 0 && start.elapsed() > WARM_UP.1 {
                break;
            }
            turn_of(contender.as_ref(), &mut next, 1, 1)?;
        }
        tallies.push(Tally::of(contender.as_ref()));
    }
    loop {
        let mut busy = false;
        for tally in tallies.iter_mut().filter(|tally| !tally.is_done(plan.count)) {
            busy = true;
            settle()?;
            let row = if plan.parallel == 1 { 1 } else { plan.parallel * ROW };
            let number = row.min(plan.count - tally.samples());
            for (operation, turn) in turn_of(tally.contender, &mut next, number, plan.parallel)?.into_iter().enumerate()
            {
                tally.times[operation].extend(turn.times);
                tally.walls[operation] += turn.wall;
            }
        }
        if !busy {
            return Ok(tallies.into_iter().flat_map(Tally::into_series).collect());
        }
    }
}

/// What was measured of a contender so far, by operation.
struct Tally<'a> {
    contender: &'a dyn Contender,
    times: Vec<Vec<Duration>>,
    walls: Vec<Duration>,
}

impl<'a> Tally<'a> {
    fn of(contender: &'a dyn Contender) -> Tally<'a> {
        let operations = contender.operations().len();
        Tally { contender, times: vec![Vec::new(); operations], walls: vec![Duration::ZERO; operations] }
    }

    fn samples(&self) -> usize {
        self.times.first().map_or(0, Vec::len)
    }

    fn is_done(&self, count: usize) -> bool {
        let (enough, time) = ENOUGH;
        self.samples() >= count || self.samples() >= enough && self.walls.iter().sum::<Duration>() >= time
    }

    fn into_series(self) -> Vec<Series> {
        let name = self.contender.name();
        let measured = self.contender.operations().iter().zip(self.times).zip(self.walls);
        measured
            .filter_map(|((operation, times), wall)| {
                Some(Series { contender: name.clone(), operation, samples: Samples::new(times)?, wall })
            })
            .collect()
    }
}

/// One operation of a turn: how long each took, and all together.
struct Turn {
    times: Vec<Duration>,
    wall: Duration,
}

/// All operations of a contender, one after the other, for each of `number` new objects.
fn turn_of(contender: &dyn Contender, next: &mut usize, number: usize, parallel: usize) -> Result<Vec<Turn>> {
    let first = *next;
    *next += number;
    let operations = contender.operations().iter().enumerate();
    operations
        .map(|(operation, word)| {
            let perform = |n| contender.perform(operation, first + n);
            let turn = if parallel == 1 { alone(number, &perform) } else { at_once(number, parallel, &perform) };
            // What a signal ended, our programs among it, was not at fault.
            turn.map_err(|e| interrupt::check().err().unwrap_or(e))
                .context(|| format!("bench: {}: {word}", contender.name()))
        })
        .collect()
}

/// When it began, and how long it took.
fn timed(perform: &dyn Fn(usize) -> Result<()>, n: usize) -> Result<(Instant, Duration)> {
    interrupt::check()?;
    let start = Instant::now();
    perform(n)?;
    Ok((start, start.elapsed()))
}

fn alone(number: usize, perform: &dyn Fn(usize) -> Result<()>) -> Result<Turn> {
    Turn::of((0..number).map(|n| timed(perform, n)).collect::<Result<_>>()?)
}

fn at_once(number: usize, parallel: usize, perform: &(dyn Fn(usize) -> Result<()> + Sync)) -> Result<Turn> {
    let threads = parallel.min(number);
    let (ready, next) = (Barrier::new(threads), AtomicUsize::new(0));
    let work = || {
        ready.wait();
        let mut mine = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= number {
                return Ok(mine);
            }
            mine.push(timed(perform, n).inspect_err(|_| next.store(number, Ordering::Relaxed))?);
        }
    };
    let done: Result<Vec<Vec<_>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let ended = threads.into_iter().map(|thread| thread.join());
        let died = |_| Err(Error::new(Kind::Io, "a thread that measures died"));
        // All of them, before the first that failed is told.
        ended.collect::<Vec<_>>().into_iter().map(|end| end.unwrap_or_else(died)).collect()
    });
    Turn::of(done?.concat())
}

impl Turn {
    fn of(runs: Vec<(Instant, Duration)>) -> Result<Turn> {
        let ends = runs.iter().map(|(start, time)| *start + *time).max();
        let wall = runs.iter().map(|(start, _)| *start).min().zip(ends).map(|(first, last)| last - first);
        let wall = wall.ok_or_else(|| Error::new(Kind::Invalid, "a turn without work"))?;
        Ok(Turn { times: runs.into_iter().map(|(_, time)| time).collect(), wall })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Notes what it is asked for, and fails at one object.
    struct Noting {
        done: Mutex<Vec<(usize, usize)>>,
        fails_at: Option<usize>,
    }

    impl Contender for Noting {
        fn name(&self) -> String {
            "noting".to_string()
        }

        fn operations(&self) -> &'static [&'static str] {
            &["make", "break"]
        }

        fn perform(&self, operation: usize, n: usize) -> Result<()> {
            self.done.lock().expect("whole").push((n, operation));
            match self.fails_at == Some(n) {
                true => Err(Error::new(Kind::Io, "no more")),
                false => Ok(()),
            }
        }
    }

    fn run(fails_at: Option<usize>, count: usize, parallel: usize) -> (Result<Vec<Series>>, Vec<(usize, usize)>) {
        let noting = Noting { done: Mutex::new(Vec::new()), fails_at };
        let boxed: Box<dyn Contender + '_> = Box::new(Borrowed(&noting));
        let plan = Plan::new(count, parallel).expect("a plan");
        let measured = measure(&[boxed], plan, &|| Ok(()));
        (measured, noting.done.into_inner().expect("whole"))
    }

    struct Borrowed<'a>(&'a Noting);

    impl Contender for Borrowed<'_> {
        fn name(&self) -> String {
            self.0.name()
        }

        fn operations(&self) -> &'static [&'static str] {
            self.0.operations()
        }

        fn perform(&self, operation: usize, n: usize) -> Result<()> {
            self.0.perform(operation, n)
        }
    }

    #[test]
    fn every_object_is_new_and_has_every_operation_in_order() {
        for (count, parallel) in [(7, 1), (7, 3), (50, 3)] {
            let (measured, mut done) = run(None, count, parallel);
            let series = measured.expect("it works");
            let words: Vec<_> = series.iter().map(|s| (s.operation, s.samples.count())).collect();
            assert_eq!(words, [("make", count), ("break", count)]);
            let order: Vec<_> = done.iter().filter(|(n, _)| *n == 6).collect();
            assert_eq!(order, [&(6, 0), &(6, 1)], "{count} {parallel}");
            done.sort_unstable();
            let expected: Vec<_> = (0..count + WARM_UP.0).flat_map(|n| [(n, 0), (n, 1)]).collect();
            assert_eq!(done, expected, "{count} {parallel}");
        }
    }

    #[test]
    fn a_failure_names_contender_and_operation() {
        for parallel in [1, 4] {
            let (measured, _) = run(Some(9), 10, parallel);
            assert_eq!(measured.expect_err("it fails").to_string(), "bench: noting: make: no more");
        }
        for (count, parallel) in [(0, 1), (1, 0), (1, MOST_THREADS)] {
            assert!(Plan::new(count, parallel).is_err(), "{count} {parallel}");
        }
    }
}
