//! One of the crowd: a command after the other, and a memory of what it did to objects of its own.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::pool::Pool;
use crate::random::Random;
use crate::runner::{Ended, Refused, Runner};
use crate::{BASE, Kills};

/// What a snapshot or container is kept as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Snapshot,
    Container,
}

/// What a container did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Created,
    Exited(i32),
    /// A tupper of it was killed at some point, and it may run still.
    Unknown,
}

/// A snapshot or container that was acknowledged.
#[derive(Debug, Clone)]
pub struct Object {
    pub kind: Kind,
    pub id: Option<String>,
    pub name: Option<String>,
    pub read_only: bool,
    pub state: State,
    /// The status that its command ends with, if it ends.
    code: Option<i32>,
    /// What the file /mark in it says.
    pub mark: Option<String>,
}

impl Object {
    /// By what it can be called.
    fn handle(&self, random: &mut Random) -> String {
        let handles: Vec<&String> = self.id.iter().chain(&self.name).collect();
        random.pick(&handles).expect("an id or a name").to_string()
    }
}

/// An image that was acknowledged.
#[derive(Debug, Clone)]
pub struct Picture {
    pub id: String,
    pub tags: BTreeSet<String>,
}

pub struct Worker<'a> {
    runner: &'a Runner<'a>,
    pool: &'a Pool<'a>,
    random: Random,
    number: usize,
    serial: usize,
    pub objects: Vec<Object>,
    pub pictures: Vec<Picture>,
    /// Ids and names of which nobody knows whether they are there: a command on them was killed.
    pub doubtful: BTreeSet<String>,
}

/// What something is made of.
struct Source {
    text: String,
    mark: Option<String>,
    /// Others may remove it.
    shared: bool,
}

impl<'a> Worker<'a> {
    pub fn new(number: usize, pool: &'a Pool<'a>, random: Random) -> Worker<'a> {
        let (objects, pictures, doubtful) = (Vec::new(), Vec::new(), BTreeSet::new());
        Worker { runner: pool.runner, pool, random, number, serial: 0, objects, pictures, doubtful }
    }

    pub fn work(&mut self) {
        while self.runner.next() {
            // What is made is removed again, now and then: the store stays of a size.
            let full = self.objects.len() + self.pictures.len() > 8;
            match self.random.below(100) {
                0..30 => self.pool.work(self.number, &mut self.random),
                30..44 if full => self.remove(),
                30..44 => self.snapshot(),
                44..52 if full => self.remove_picture(),
                44..52 => self.create(),
                52..58 => self.start(),
                58..66 => self.throwaway(),
                66..72 => self.keep(),
                72..76 => self.kill_running(),
                76..83 => self.import(),
                83..87 => self.tag(),
                87..89 => self.untag(),
                89..91 => self.remove_picture(),
                91..95 => self.remove(),
                95..97 => self.is_refused(),
                _ => self.look(),
            }
        }
    }

    fn run(&mut self, line: &str, more: &[&str]) -> Ended {
        self.runner.try_run(&mut self.random, line, more)
    }

    /// A name that nobody had before; no digit that could be taken for one of an id begins it.
    fn name(&mut self) -> String {
        self.serial += 1;
        format!("w{}-{}", self.number, self.serial)
    }

    fn new_tag(&mut self) -> String {
        format!("example.org/{}:t", self.name())
    }

    fn doubt(&mut self, handles: impl IntoIterator<Item = String>) {
        self.doubtful.extend(handles);
    }

    fn source(&mut self) -> Source {
        let own = self.random.pick(&self.objects).cloned();
        match self.random.below(10) {
            0..3 if own.is_some() => {
                let own = own.expect("there is one");
                Source { text: own.handle(&mut self.random), mark: own.mark, shared: false }
            }
            3..5 if !self.pictures.is_empty() => {
                let picture = self.random.pick(&self.pictures).expect("not empty");
                Source { text: format!("image:{}", picture.id), mark: None, shared: false }
            }
            5..7 => Source { text: self.pool.source(&mut self.random), mark: None, shared: true },
            _ => Source { text: BASE.to_string(), mark: None, shared: false },
        }
    }

    /// A failure for which others are the reason: they removed what was shared.
    fn forgive(source: &Source, ended: &Ended) {
        assert!(source.shared && ended.refused() == Refused::Missing, "{ended}");
    }

    fn snapshot(&mut self) {
        let source = self.source();
        let name = self.random.percent(60).then(|| self.name());
        let count = self.random.percent(25).then(|| self.random.below(4) + 1);
        let read_only = self.random.percent(20);
        let counted = count.map(|count| format!("--count={count}"));
        let mut more = vec![source.text.as_str()];
        more.extend(name.as_deref());
        more.extend(counted.as_deref());
        more.extend(read_only.then_some("--read-only"));
        let ended = self.run("snapshot create", &more);
        let names: Vec<Option<String>> = match (&name, count) {
            (name, None) => vec![name.clone()],
            (name, Some(count)) => (1..=count).map(|n| name.as_ref().map(|name| format!("{name}-{n}"))).collect(),
        };
        match ended.status {
            0 => {
                let ids = ended.ids();
                assert_eq!(ids.len(), names.len(), "{ended}");
                let (kind, state, code) = (Kind::Snapshot, State::Created, None);
                self.objects.extend(ids.into_iter().zip(names).map(|(id, name)| Object {
                    kind,
                    id: Some(id),
                    name,
                    read_only,
                    state,
                    code,
                    mark: source.mark.clone(),
                }));
            }
            _ if ended.killed => {
                self.runner.untold.fetch_add(names.iter().filter(|name| name.is_none()).count(), Ordering::Relaxed);
                self.doubt(names.into_iter().flatten());
            }
            _ => Self::forgive(&source, &ended),
        }
    }

    fn create(&mut self) {
        let source = self.source();
        let name = self.random.percent(60).then(|| self.name());
        let code = i32::try_from(self.random.below(100)).expect("small");
        let script = format!("exit {code}");
        let mut more: Vec<&str> = name.iter().flat_map(|name| ["--name", name]).collect();
        more.extend([source.text.as_str(), "sh", "-c", &script]);
        let ended = self.run("create", &more);
        match ended.status {
            0 => {
                let [id] = &ended.ids()[..] else { panic!("{ended}") };
                let (kind, state, read_only) = (Kind::Container, State::Created, false);
                self.objects.push(Object {
                    kind,
                    id: Some(id.clone()),
                    name,
                    read_only,
                    state,
                    code: Some(code),
                    mark: source.mark,
                });
            }
            _ if ended.killed => match name {
                Some(name) => self.doubt([name]),
                None => drop(self.runner.untold.fetch_add(1, Ordering::Relaxed)),
            },
            _ => Self::forgive(&source, &ended),
        }
    }

    fn start(&mut self) {
        let containers: Vec<usize> = (0..self.objects.len()).filter(|at| self.objects[*at].code.is_some()).collect();
        let Some(at) = self.random.pick(&containers).copied() else { return self.create() };
        let handle = self.objects[at].handle(&mut self.random);
        let ended = self.run("start --attach", &[&handle]);
        let object = &mut self.objects[at];
        if ended.killed {
            object.state = State::Unknown;
        } else {
            assert_eq!(Some(ended.status), object.code, "{ended}");
            object.state = State::Exited(ended.status);
        }
    }

    /// One that goes at its end. Killed, it goes, too: the next command or the last gc sees to it.
    fn throwaway(&mut self) {
        let source = self.source();
        let name = self.random.percent(50).then(|| self.name());
        let word = self.name();
        let script = format!("echo {word}; exit 42");
        let mut more: Vec<&str> = name.iter().flat_map(|name| ["--name", name]).collect();
        more.extend([source.text.as_str(), "sh", "-c", &script]);
        let ended = self.run("run --rm", &more);
        match ended.status {
            42 => assert_eq!(ended.stdout.trim_end(), word, "{ended}"),
            _ if ended.killed => {}
            _ => Self::forgive(&source, &ended),
        }
    }

    /// One that stays when its command has ended, with what that wrote.
    fn keep(&mut self) {
        let source = self.source();
        let (name, mark) = (self.name(), self.name());
        let code = i32::try_from(self.random.below(100)).expect("small");
        let script = format!("echo {mark} >/mark; exit {code}");
        let ended = self.run("run", &["--name", &name, &source.text, "sh", "-c", &script]);
        match ended.status {
            _ if ended.killed => self.doubt([name]),
            125 => Self::forgive(&source, &ended),
            status => {
                assert_eq!(status, code, "{ended}");
                let (kind, state, mark) = (Kind::Container, State::Exited(code), Some(mark));
                let code = Some(code);
                self.objects.push(Object { kind, id: None, name: Some(name), read_only: false, state, code, mark });
            }
        }
    }

    /// One that is removed while it runs; or whose tupper is killed, and then its monitor.
    fn kill_running(&mut self) {
        let name = self.name();
        let mut run = self.runner.start("run", &["--name", &name, BASE, "sleep", "1000"]);
        loop {
            let ended = self.runner.run("inspect", &[&name]);
            if ended.stdout.contains("\"Running\": true") {
                break;
            }
            assert!(ended.status == 0 || ended.refused() == Refused::Missing, "{ended}");
            if run.has_ended() {
                panic!("it was to run: {}", self.runner.end(run, false));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if self.runner.kills == Kills::Some && self.random.percent(50) {
            // Without the tupper that began it it goes on; without its monitor it does not.
            run.kill();
            assert_eq!(self.runner.end(run, true).status, 137);
            let monitor = self.runner.tupper().monitor(&name);
            nix::sys::signal::kill(monitor, nix::sys::signal::Signal::SIGKILL).expect("a monitor");
            let (kind, state) = (Kind::Container, State::Unknown);
            let object = Object { kind, id: None, name: Some(name), read_only: false, state, code: None, mark: None };
            return self.objects.push(object);
        }
        let removal = self.run("rm --force", &[&name]);
        if removal.killed {
            self.doubt([name]);
            run.kill();
        } else {
            assert_eq!(removal.ok(), name);
        }
        let ended = self.runner.end(run, removal.killed);
        assert_eq!(ended.status, 137, "{ended}");
    }

    fn remove(&mut self) {
        let Some(kind) = self.random.pick(&self.objects).map(|object| object.kind) else { return self.snapshot() };
        let mut removed = Vec::new();
        for _ in 0..=self.random.below(3) {
            let places: Vec<usize> = (0..self.objects.len()).filter(|at| self.objects[*at].kind == kind).collect();
            removed.extend(self.random.pick(&places).map(|at| self.objects.swap_remove(*at)));
        }
        let handles: Vec<String> = removed.iter().map(|object| object.handle(&mut self.random)).collect();
        let runs = |object: &Object| object.kind == Kind::Container && object.state == State::Unknown;
        for (_, handle) in removed.iter().zip(&handles).filter(|(object, _)| runs(object)) {
            self.runner.run("wait", &[handle]).ok();
        }
        let mut more: Vec<&str> = handles.iter().map(String::as_str).collect();
        more.extend(self.random.percent(30).then_some("--force"));
        more.extend(self.random.percent(10).then_some("--sync"));
        let ended = match kind {
            Kind::Snapshot => self.run("snapshot rm", &more),
            Kind::Container => self.run("rm", &more),
        };
        if ended.killed {
            return self.doubt(removed.into_iter().flat_map(|object| object.id.into_iter().chain(object.name)));
        }
        let said: Vec<&str> = ended.ok().lines().collect();
        match kind {
            Kind::Snapshot => {
                let ids: Vec<&str> = removed.iter().filter_map(|object| object.id.as_deref()).collect();
                assert_eq!(said, ids, "{ended}");
            }
            Kind::Container => assert_eq!(said, handles, "{ended}"),
        }
        // It is gone now, not later.
        let inspect = if kind == Kind::Snapshot { "snapshot inspect" } else { "inspect" };
        let look = self.runner.run(inspect, &[&handles[0]]);
        assert!(look.status != 0 && look.refused() == Refused::Missing, "{look}");
    }

    fn import(&mut self) {
        let (tag, archive) = (self.new_tag(), self.pool.archive(&mut self.random));
        let ended = self.run("image import --quiet", &["--name", &tag, &archive]);
        if ended.killed {
            self.runner.untold.fetch_add(1, Ordering::Relaxed);
            return self.doubt([tag]);
        }
        let [id] = &ended.ids()[..] else { panic!("{ended}") };
        self.pictures.push(Picture { id: id.clone(), tags: [tag].into() });
    }

    fn tag(&mut self) {
        let tags: Vec<String> = (0..=self.random.below(2)).map(|_| self.new_tag()).collect();
        if self.pictures.is_empty() {
            return self.import();
        }
        let at = self.random.below(self.pictures.len());
        let handle = match self.pictures[at].tags.first() {
            Some(tag) if self.random.percent(50) => tag.clone(),
            _ => self.pictures[at].id.clone(),
        };
        let more: Vec<&str> = [&handle].into_iter().chain(&tags).map(String::as_str).collect();
        let ended = self.run("image tag", &more);
        if ended.killed {
            return self.doubt(tags);
        }
        ended.ok();
        self.pictures[at].tags.extend(tags);
    }

    fn untag(&mut self) {
        let Some(at) = (0..self.pictures.len()).find(|at| self.pictures[*at].tags.len() > 1) else { return self.tag() };
        let tag = self.pictures[at].tags.pop_last().expect("several");
        let ended = self.run("image rm", &[&tag]);
        if ended.killed {
            return self.doubt([tag]);
        }
        assert_eq!(ended.ok(), format!("Untagged: {tag}"));
    }

    fn remove_picture(&mut self) {
        if self.pictures.is_empty() {
            return self.import();
        }
        let at = self.random.below(self.pictures.len());
        let Picture { id, tags } = self.pictures[at].clone();
        let force = self.random.percent(60);
        let ended = self.run(if force { "image rm --force" } else { "image rm" }, &[&id]);
        if ended.status == 1 && !force {
            // It has several names, or containers were made of it.
            return assert_eq!(ended.refused(), Refused::Busy, "{ended}");
        }
        self.pictures.swap_remove(at);
        if ended.killed {
            return self.doubt([id].into_iter().chain(tags));
        }
        let said: BTreeSet<String> = ended.ok().lines().map(str::to_string).collect();
        let mut expected: BTreeSet<String> = tags.iter().map(|tag| format!("Untagged: {tag}")).collect();
        expected.insert(format!("Deleted: {id}"));
        // In the company of those who are killed, a tag of which that was not known may be among them.
        match self.runner.kills {
            Kills::None => assert_eq!(said, expected, "{ended}"),
            Kills::Some => assert!(said.is_superset(&expected), "{ended}"),
        }
    }

    /// What must fail does, whatever others do.
    fn is_refused(&mut self) {
        let named: Vec<String> = self.objects.iter().filter_map(|object| object.name.clone()).collect();
        let (ended, why) = match self.random.pick(&named).cloned() {
            Some(name) if self.random.percent(50) => (self.run("snapshot create", &[BASE, &name]), Refused::Taken),
            Some(name) => (self.run("create", &["--name", &name, BASE, "true"]), Refused::Taken),
            None => {
                let name = self.name();
                (self.run("snapshot rm", &[&name]), Refused::Missing)
            }
        };
        assert!(ended.killed || ended.refused() == why, "{ended}");
    }

    /// What was acknowledged is there at once, for everybody.
    fn look(&mut self) {
        let Some(object) = self.random.pick(&self.objects).cloned() else { return self.snapshot() };
        let inspect = if object.kind == Kind::Snapshot { "snapshot inspect" } else { "inspect" };
        let ended = self.runner.run(inspect, &[&object.handle(&mut self.random)]);
        let found: serde_json::Value = serde_json::from_str(ended.ok()).expect("json");
        let problem = object.differs_from(&found[0]);
        assert!(problem.is_none(), "{problem:?}: {object:?} {ended}");
    }
}

impl Object {
    /// How it differs from what a listing or an inspection says of it.
    pub fn differs_from(&self, found: &serde_json::Value) -> Option<&'static str> {
        let names = found["Names"].as_array().map(|names| names.first().and_then(|name| name.as_str()));
        let name = names.unwrap_or_else(|| found["Name"].as_str());
        let state = found["State"].as_str().or(found["State"]["Status"].as_str());
        let code = found["ExitCode"].as_i64().or(found["State"]["ExitCode"].as_i64());
        match self.state {
            _ if self.id.as_deref().is_some_and(|id| found["Id"] != id) => Some("another id"),
            _ if self.name.is_some() && name != self.name.as_deref() => Some("another name"),
            _ if self.kind == Kind::Snapshot && (name.is_some() && self.name.is_none()) => Some("a name"),
            _ if self.kind == Kind::Snapshot && found["ReadOnly"] != self.read_only => Some("another mode"),
            State::Created if self.kind == Kind::Container && state != Some("created") => Some("it ran"),
            State::Exited(status) if state != Some("exited") || code != Some(status.into()) => Some("another end"),
            _ => None,
        }
    }
}
