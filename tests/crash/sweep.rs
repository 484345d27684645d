//! A kill sweep: a command is killed before each of the changes that it makes, in one run each, and every time the store
//! has to be as it was before the command, or as it is after it. Nothing in between.
//!
//! ```text
//! prepare ──> run, killed before change N ──> clean up ──> compare ──> what was there before works
//!    ^                                                        │
//!    └──────────────── again, unless it is as it was ─────────┘
//! ```
//!
//! - Cleaning up is `store gc` after odd points, and after even ones the next command that writes, which has to see by
//!   itself that somebody was killed. `store check` finds nothing then.
//! - Compared is everything that [`Scene::state`] can see: what a run may leave on the host, every directory entry of the
//!   store outside of root filesystems, what the listings say.
//! - Before and after are no descriptions but references: the command not run at all and run whole, cleaned up in the same
//!   way. A command that acknowledges one thing after another has more outcomes, each the reference of other commands.
//! - Changes are counted by the tracer (trace.rs), so mkfs.btrfs is not swept, and of a container only what tupper does
//!   until its command is executed. With several threads, change N is the Nth of that run.
//!
//! A sweep of interruptions is the same with SIGINT: the command comes to its end, nobody cleans up afterwards, and there is
//! nothing to clean up.
//!
//! Without further notice it takes a sample: points spread evenly, the first and the last with them.
//! `TUPPER_SWEEP=whole` takes every point, `TUPPER_SWEEP=17` that one.

use std::fmt::Write as _;
use std::io::Write as _;

use nix::sys::signal::Signal;

use crate::scene::{Before, Cleaning, Ground, Place, Scene};
use crate::support::store::Host;
use crate::trace::{self, Blow};

/// Points of a sweep that is not asked to be whole.
const SAMPLE: u64 = 4;

/// Nothing came of the command.
const UNCHANGED: &str = "unchanged";

/// All came of it.
const DONE: &str = "done";

type Act = Box<dyn Fn(&mut Scene)>;

/// One sweep: a command, where it runs, and what may come of it.
pub struct Sweep {
    line: &'static str,
    ground: Ground,
    before: Vec<Before>,
    beside: Option<&'static str>,
    outcomes: Vec<(&'static str, Act)>,
    /// How many layers it makes that stay when it is killed.
    keeps: usize,
    blow: Blow,
    /// Objects that may be gone, by label.
    without: Vec<&'static [&'static str]>,
    /// The status with which it ends.
    status: i32,
    /// It leaves no sign for the next command that writes, only for `store gc`.
    signless: bool,
}

/// How it may be afterwards.
struct Reference {
    what: String,
    cleaning: Cleaning,
    state: Vec<String>,
}

impl Sweep {
    /// A sweep of `tupper LINE`, on [`Ground::Store`], in a directory that holds `tiny.tar`, `other.tar` and `tree/`.
    pub fn of(line: &'static str) -> Sweep {
        Sweep {
            line,
            ground: Ground::Store,
            before: Vec::new(),
            beside: None,
            outcomes: Vec::new(),
            keeps: 0,
            blow: Blow::First(Signal::SIGKILL),
            without: Vec::new(),
            status: 0,
            signless: false,
        }
    }

    /// It ends with this status.
    pub fn ending(self, status: i32) -> Sweep {
        Sweep { status, ..self }
    }

    /// What it leaves is no sign for the next command that writes: `store gc` cleans up.
    pub fn signless(self) -> Sweep {
        Sweep { signless: true, ..self }
    }

    /// It runs there.
    pub fn on(self, ground: Ground) -> Sweep {
        Sweep { ground, ..self }
    }

    /// `tupper LINE` was run before.
    pub fn after(mut self, line: &'static str) -> Sweep {
        self.before.push(Before::Done(line));
        self
    }

    /// `tupper LINE` was run before, and ended with this status.
    pub fn after_failing(mut self, line: &'static str, status: i32) -> Sweep {
        self.before.push(Before::Failed(line, status));
        self
    }

    /// `tupper LINE` was run before, and killed at its first system call of this name that changes something.
    pub fn after_kill(mut self, line: &'static str, call: &'static str) -> Sweep {
        self.before.push(Before::Killed(line, call, 1));
        self
    }

    /// The same at the Nth call of that name.
    pub fn after_kill_at(mut self, line: &'static str, call: &'static str, nth: u32) -> Sweep {
        self.before.push(Before::Killed(line, call, nth));
        self
    }

    /// The container of `tupper LINE` runs meanwhile.
    pub fn beside(self, line: &'static str) -> Sweep {
        Sweep { beside: Some(line), ..self }
    }

    /// It may also be as if `tupper LINE` had been run instead.
    pub fn or(self, line: &'static str) -> Sweep {
        self.or_as_if(line, move |scene| drop(scene.ok(line)))
    }

    /// It may also be as if this had been done instead.
    pub fn or_as_if(mut self, what: &'static str, act: impl Fn(&mut Scene) + 'static) -> Sweep {
        self.outcomes.push((what, Box::new(act)));
        self
    }

    /// Up to so many layers more may be there, and the same command run again takes them and comes to its end.
    pub fn keeping(self, layers: usize) -> Sweep {
        Sweep { keeps: layers, ..self }
    }

    /// It is asked to stop, as by Ctrl-C, instead of being killed, and nobody cleans up.
    pub fn interrupted(self) -> Sweep {
        Sweep { blow: Blow::First(Signal::SIGINT), ..self }
    }

    /// The process is killed that makes the change: its monitor, or what is to become its command.
    pub fn whoever(self) -> Sweep {
        Sweep { blow: Blow::Caller, ..self }
    }

    /// It may also be as before, but without these objects.
    pub fn or_without(mut self, objects: &'static [&'static str]) -> Sweep {
        self.without.push(objects);
        self
    }

    /// Runs it, says how many points it had, and fails the test if it was violated at one of them.
    pub fn run(&self) {
        let line = self.line;
        let cleanings: &[Cleaning] = match self.blow {
            Blow::First(Signal::SIGINT) => &[Cleaning::None],
            _ if self.signless => &[Cleaning::Gc],
            _ => &[Cleaning::Gc, Cleaning::Next],
        };
        let (points, violations) = self.points(asked_for, cleanings);
        // Not eprintln!, which a test that passes would keep to itself.
        let _ = writeln!(std::io::stderr(), "sweep {line}: {points} points, {} violations", violations.len());
        assert!(violations.is_empty(), "sweep {line}: {} of {points}\n{}", violations.len(), violations.join("\n"));
    }

    /// Runs it at the points that are chosen of all, cleaning up in these ways in turn. Returns how many points there were
    /// and what was violated.
    pub fn points(&self, chosen: fn(u64) -> Vec<u64>, cleanings: &[Cleaning]) -> (usize, Vec<String>) {
        // Links and rules are looked at whosever they are.
        let _host = if self.is_about_networks() { Host::alone() } else { Host::shared() };
        let place = Place::new(self.ground);
        let (references, total) = self.references(&place, cleanings);
        // What a killed command left is gone once it is cleaned up.
        let lasts = !self.before.iter().any(|before| matches!(before, Before::Killed(..)));
        let (mut points, mut violations, mut scene) = (0, Vec::new(), None);
        for number in chosen(total) {
            let mut now = scene.take().unwrap_or_else(|| self.prepare(&place));
            let cleaning = cleanings[(number as usize + 1) % cleanings.len()];
            let traced = match trace::run_dealing(self.blow, now.traced(self.line), |call| call.number == number) {
                Ok(traced) => traced,
                Err(e) => {
                    points += 1;
                    violations.push(format!("before #{number}: {e}"));
                    continue;
                }
            };
            let at = traced.calls.get(number as usize - 1).map(|call| now.plain(&call.to_string()));
            if at.is_none() && number > total {
                break;
            }
            points += 1;
            let judged =
                self.ended(&now, traced.status).and_then(|()| now.judge(cleaning, &references)).and_then(|outcome| {
                    let again = self.keeps > 0 && outcome != UNCHANGED && outcome != DONE;
                    if again { now.goes_on(self.line, cleaning, &references).map(|()| outcome) } else { Ok(outcome) }
                });
            match judged {
                Ok(outcome) if outcome == UNCHANGED && lasts => scene = Some(now),
                Ok(_) => {}
                Err(e) => {
                    let at = at.unwrap_or(format!("#{number}, which it did not come to"));
                    violations.push(format!("before {at}, then {}: {e}", cleaning.describe()));
                }
            }
        }
        (points, violations)
    }

    /// Who is asked to stop says so, or has done all, and leaves nothing to clean up.
    fn ended(&self, scene: &Scene, status: i32) -> Result<(), String> {
        if self.blow != Blow::First(Signal::SIGINT) {
            return Ok(());
        }
        let left = scene.ok("store gc --dry-run");
        match (status, left.is_empty()) {
            (0 | 130, true) => Ok(()),
            (_, true) => Err(format!("status {status}: {}", scene.said())),
            _ => Err(format!("it left to gc: {left}")),
        }
    }

    fn prepare(&self, place: &Place) -> Scene {
        Scene::prepare(place, &self.before, self.beside, self.is_about_networks())
    }

    fn is_about_networks(&self) -> bool {
        self.line.contains("network")
    }

    /// What may come of it, after each way to clean up; and how many changes the whole command makes.
    fn references(&self, place: &Place, cleanings: &[Cleaning]) -> (Vec<Reference>, u64) {
        let mut references = Vec::new();
        let mut refer = |what: &str, act: &mut dyn FnMut(&mut Scene)| {
            let mut scene = self.prepare(place);
            act(&mut scene);
            for cleaning in cleanings.iter().copied() {
                scene.clean(cleaning).unwrap_or_else(|e| panic!("{}, {what}: {e}", self.line));
                references.push(Reference { what: what.to_string(), cleaning, state: scene.state() });
            }
        };
        refer(UNCHANGED, &mut |_| {});
        let mut total = 0;
        refer(DONE, &mut |scene| {
            let traced = trace::run(scene.traced(self.line), |_| false).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!(traced.status, self.status, "{}: {}", self.line, scene.said());
            total = traced.calls.len() as u64;
        });
        for (what, act) in &self.outcomes {
            refer(what, &mut |scene| act(scene));
        }
        let mut variants = Vec::new();
        for reference in references.iter().filter(|reference| reference.what != DONE) {
            for layers in 1..=self.keeps {
                let what = format!("{}, with {layers} layers more", reference.what);
                let more = ["entry fs/layers/<new>", "entry fs/layers/<new>/recipe", "entry fs/layers/<new>/rootfs"];
                let more = more.into_iter().chain(["subvolume <store>/fs/layers/<new>/rootfs"]).map(str::to_string);
                let more = more.flat_map(|line| std::iter::repeat_n(line, layers));
                let mut state: Vec<String> = reference.state.iter().cloned().chain(more).collect();
                state.sort();
                variants.push(Reference { what, cleaning: reference.cleaning, state });
            }
        }
        for reference in references.iter().filter(|reference| reference.what == UNCHANGED) {
            for objects in &self.without {
                let stays = |line: &&String| !objects.iter().any(|object| line.contains(object));
                let state: Vec<String> = reference.state.iter().filter(stays).cloned().collect();
                let gone = reference.state.len() - state.len();
                assert!(gone >= objects.len(), "{}: no such objects: {objects:?}", self.line);
                let what = format!("unchanged, without {}", objects.join(", "));
                variants.push(Reference { what, cleaning: reference.cleaning, state });
            }
        }
        references.extend(variants);
        (references, total)
    }
}

impl Scene {
    /// Cleans up, compares with what may be, and tries what was there before. Returns what came of the command.
    fn judge<'a>(&mut self, cleaning: Cleaning, references: &'a [Reference]) -> Result<&'a str, String> {
        self.undamaged()?;
        self.clean(cleaning)?;
        let may: Vec<_> = references.iter().filter(|reference| reference.cleaning == cleaning).collect();
        let mut outcome = Err(String::new());
        self.settle(cleaning, |state| {
            let same = may.iter().find(|reference| reference.state == state);
            outcome = same.map(|reference| reference.what.as_str()).ok_or_else(|| nearest(state, &may));
            same.is_some()
        });
        let outcome = outcome?;
        self.intact().map(|()| outcome)
    }
}

impl Scene {
    /// Runs the command that was killed once more: it makes none of the layers anew that are there, and ends as if it had
    /// not been killed.
    fn goes_on(&mut self, line: &str, cleaning: Cleaning, references: &[Reference]) -> Result<(), String> {
        let made = self.layers();
        self.ok(line);
        let now = self.layers();
        if let Some((layer, _)) = made.iter().find(|(layer, inode)| now.get(*layer) != Some(inode)) {
            return Err(format!("run again, it made the layer {layer} anew"));
        }
        self.clean(cleaning)?;
        let done: Vec<_> =
            references.iter().filter(|reference| reference.cleaning == cleaning && reference.what == DONE).collect();
        let mut same = false;
        self.settle(cleaning, |state| {
            same = done.iter().any(|reference| reference.state == state);
            same
        });
        if same { Ok(()) } else { Err(format!("run again: {}", nearest(&self.state(), &done))) }
    }
}

/// How a state differs from the reference that it is nearest to.
fn nearest(state: &[String], may: &[&Reference]) -> String {
    let differences = may.iter().map(|reference| {
        let (more, missing) = (without(state, &reference.state), without(&reference.state, state));
        (more.len() + missing.len(), &reference.what, more, missing)
    });
    let (_, what, more, missing) = differences.min_by_key(|(count, ..)| *count).expect("a reference");
    let mut text = format!("in between; nearest is `{what}`");
    for (sign, lines) in [('+', more), ('-', missing)] {
        lines.iter().for_each(|line| write!(text, "\n    {sign} {line}").expect("a string"));
    }
    text
}

/// The lines of `these` that `those` have not, or not as often.
fn without(these: &[String], those: &[String]) -> Vec<String> {
    let mut left = those.to_vec();
    let mut more = these.to_vec();
    more.retain(|line| match left.iter().position(|other| other == line) {
        Some(position) => {
            left.swap_remove(position);
            false
        }
        None => true,
    });
    more
}

/// The points that `TUPPER_SWEEP` asks for, of so many.
pub fn asked_for(total: u64) -> Vec<u64> {
    match std::env::var("TUPPER_SWEEP").ok().as_deref() {
        // The order of threads varies, and with it the number of changes: until a run comes to its end.
        Some("whole") => (1..=2 * total + 8).collect(),
        Some(number) => vec![number.parse().expect("TUPPER_SWEEP is `whole` or the number of a point")],
        None => sample(total),
    }
}

/// A few points spread evenly over all, odd and even ones in turn.
pub fn sample(total: u64) -> Vec<u64> {
    if total <= SAMPLE {
        return (1..=total).collect();
    }
    let spread = (0..SAMPLE).map(|i| (i, 1 + i * (total - 1) / (SAMPLE - 1)));
    spread.map(|(i, n)| if n % 2 == i % 2 && n < total { n + 1 } else { n }).collect()
}

/// Every point.
pub fn every(total: u64) -> Vec<u64> {
    (1..=total).collect()
}
