//! Pulls that end in the middle, and what the next one finds.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::fixture::{Image, blob_path, registry};
use crate::scratch::Tar;
use crate::support::command::{Tupper, wait};
use crate::support::eventually;
use crate::support::http::{End, Reply, Server};
use crate::support::store::{Store, alone};

/// An archive of one file, named and filled by its number.
fn layer(number: usize) -> Vec<u8> {
    Tar::default().file(format!("file{number}"), &vec![number as u8; 100_000]).end()
}

/// A registry that sends only the beginning of one layer; of none when that is [`NONE`].
struct Stalling {
    image: Image,
    server: Server,
    at: Arc<AtomicUsize>,
}

const NONE: usize = usize::MAX;

impl Stalling {
    fn with_layers(count: usize) -> Stalling {
        let image = Image::of((0..count).map(layer).collect(), |_| {});
        let at = Arc::new(AtomicUsize::new(NONE));
        let (stalls, layers) = (Arc::clone(&at), image.layers.clone());
        let server = registry(&image, move |asked| {
            let layer = layers.get(stalls.load(Ordering::Relaxed))?;
            (asked.path == blob_path(layer)).then(|| Reply::range_of(asked, layer).ending(End::Stall(1000)))
        });
        Stalling { image, server, at }
    }

    fn pull(&self) -> String {
        format!("pull --tls-verify=false {}/a/image:1", self.server.host())
    }

    /// Pulls until all layers below the one with this number are there, and it waits for that.
    fn pull_to(&self, tupper: &Tupper, number: usize) -> Child {
        self.at.store(number, Ordering::Relaxed);
        let asks = self.server.count(&blob_path(&self.image.layers[number]));
        let mut command = tupper.command(&self.pull(), &[]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a pull");
        eventually("the layers below are there", Duration::from_secs(60), || {
            names(tupper, "layers").len() == number && self.server.count(&blob_path(&self.image.layers[number])) > asks
        });
        child
    }

    /// The layers that were asked for since so many requests had come.
    fn asked_since(&self, before: usize) -> Vec<usize> {
        let asked = self.server.asked().split_off(before);
        let number = |path: &str| self.image.layers.iter().position(|layer| path == blob_path(layer));
        let mut numbers: Vec<usize> = asked.iter().filter_map(|asked| number(&asked.path)).collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }
}

/// The names on a shelf of the store.
fn names(tupper: &Tupper, shelf: &str) -> Vec<String> {
    let listed = fs::read_dir(tupper.root().join("fs").join(shelf));
    let mut names: Vec<String> = listed
        .map(|listed| listed.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect())
        .unwrap_or_default();
    names.sort();
    names
}

fn end(child: Child, signal: Signal) -> i32 {
    kill(Pid::from_raw(i32::try_from(child.id()).expect("a pid")), signal).expect("sent");
    wait(child, "an interrupted pull")
}

fn assert_whole(tupper: &Tupper, image: &str, layers: usize) {
    let top = PathBuf::from(tupper.ok(&format!("snapshot path {}", tupper.ok(&format!("snapshot create {image}")))));
    for number in 0..layers {
        assert!(fs::read(top.join(format!("file{number}"))).expect("a file") == vec![number as u8; 100_000]);
    }
}

#[test]
fn what_was_applied_before_an_interruption_is_not_fetched_again() {
    let (registry, store) = (Stalling::with_layers(6), Store::empty());
    let (_home, tupper) = alone(&store);
    let mut before = 0;
    for (there, ends_at, signal) in [(0, 2, Signal::SIGINT), (2, 3, Signal::SIGINT), (3, 4, Signal::SIGKILL)] {
        let pulling = registry.pull_to(&tupper, ends_at);
        assert_eq!(end(pulling, signal), 128 + signal as i32);
        let asked = registry.asked_since(before);
        assert!(asked.contains(&ends_at) && asked[0] == there, "{asked:?} after {there} layers were there");
        if signal == Signal::SIGINT {
            assert_eq!(names(&tupper, "staging"), Vec::<String>::new(), "an interrupted pull leaves a draft");
            assert_eq!(tupper.ok("store gc --dry-run"), "", "an interrupted pull leaves work to a gc");
        }
        assert_eq!(tupper.ok("images -q"), "");
        assert_eq!(names(&tupper, "layers").len(), ends_at);
        before = registry.server.asked().len();
    }
    registry.at.store(NONE, Ordering::Relaxed);
    let id = tupper.ok(&registry.pull());
    assert_eq!(registry.asked_since(before), [4, 5]);
    assert_eq!((names(&tupper, "layers").len(), names(&tupper, "staging").len()), (6, 0));
    assert_eq!(tupper.ok("store gc --dry-run"), "");
    tupper.ok("store check");
    assert_whole(&tupper, &id, 6);
}

#[test]
fn an_unchanged_image_costs_one_manifest() {
    let (registry, store) = (Stalling::with_layers(3), Store::empty());
    let (_home, tupper) = alone(&store);
    let id = tupper.ok(&registry.pull());
    let before = registry.server.asked().len();
    assert_eq!(tupper.ok(&registry.pull()), id);
    let asked = registry.server.asked().split_off(before);
    // Plain HTTP is found out by one request more.
    assert!(asked.iter().filter(|asked| asked.path == "/v2/a/image/manifests/1").count() == 1, "{asked:?}");
    assert!(asked.iter().all(|asked| !asked.path.contains("/blobs/")), "{asked:?}");
}

#[test]
fn a_layer_that_the_registry_does_not_have_takes_nothing_of_others_along() {
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    let base = Stalling::with_layers(2);
    let id = tupper.ok(&base.pull());
    let interrupted = Stalling::with_layers(5);
    assert_eq!(end(interrupted.pull_to(&tupper, 3), Signal::SIGTERM), 128 + 15);
    let before = names(&tupper, "layers");
    let image = Image::of((0..5).map(layer).collect(), |_| {});
    let missing = blob_path(&image.layers[4]);
    let server = registry(&image, move |asked| {
        (asked.path == missing)
            .then(|| Reply::new(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown to registry"}]}"#))
    });
    let error = tupper.fails(1, &format!("pull --tls-verify=false {}/a/image:1", server.host()));
    assert!(error.contains("layer 5 of 5") && error.contains("blob unknown"), "{error}");
    // The one that this pull made is gone, with the hope that it is wanted.
    assert_eq!(names(&tupper, "layers"), before);
    assert_eq!(names(&tupper, "staging"), Vec::<String>::new());
    assert_eq!(tupper.lines("images -q").len(), 1);
    assert_whole(&tupper, &id, 2);
}
