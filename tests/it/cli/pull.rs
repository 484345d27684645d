//! image pull by many at once, from a registry of the test's own.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::support::archives::{Files, chains};
use crate::support::command::{Tupper, wait};
use crate::support::http::{Reply, Server};
use crate::support::store::{Store, alone};
use crate::support::{eventually, registry};

/// As many layers as `count`, each with a file of so many bytes.
fn layers(count: usize, size: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| Files(vec![(format!("f{n}"), vec![n as u8; size])]).tar()).collect()
}

fn layout(layers: &[Vec<u8>]) -> Files {
    Files::layout(None, &layers.iter().map(Vec::as_slice).collect::<Vec<_>>(), <[u8]>::to_vec)
}

/// The layers in a store, each with its directory's inode number.
fn stored(store: &Store) -> BTreeMap<String, u64> {
    let entries = fs::read_dir(store.root().join("fs/layers")).into_iter().flatten().flatten();
    entries
        .map(|entry| (entry.file_name().into_string().expect("text"), entry.metadata().expect("a layer").ino()))
        .collect()
}

fn start(tupper: &Tupper, server: &Server) -> Child {
    let mut command = tupper.command("image pull --tls-verify=false", &[&format!("{}/a/image:1", server.host())]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tupper")
}

/// How often layers were asked for, lowest first.
fn asked(server: &Server, layers: &[Vec<u8>]) -> Vec<usize> {
    layers.iter().map(|layer| server.count(&registry::blob("a/image", layer))).collect()
}

#[test]
fn many_at_once_unpack_an_image_once_whoever_of_them_is_killed() {
    let store = Store::empty();
    let (_home, tupper) = alone(&store);
    let layers = layers(24, 400_000);
    let server = registry::serve(layout(&layers), |asked| {
        if asked.path.contains("/blobs/") {
            // Time for the others to come in between.
            std::thread::sleep(Duration::from_millis(5));
        }
        None::<Reply>
    });
    store.ok("store init");
    let chains = chains(&layers.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for kills in [0, 1, 2] {
        let before = asked(&server, &layers);
        let mut pulls: Vec<Child> = (0..4).map(|_| start(&tupper, &server)).collect();
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for number in 1..=kills {
            eventually("they have begun", Duration::from_secs(60), || stored(&store).len() >= 6 * number);
            seen.extend(stored(&store));
            let mut pull = pulls.remove(0);
            // It may be done already: the machine is quick.
            let _ = pull.kill();
            pull.wait().expect("a child");
        }
        for pull in pulls {
            assert_eq!(wait(pull, "a pull"), 0);
        }
        let now = stored(&store);
        let mut names: Vec<&String> = now.keys().collect();
        names.sort();
        let mut expected: Vec<&String> = chains.iter().collect();
        expected.sort();
        assert_eq!(names, expected);
        assert!(seen.iter().all(|(layer, inode)| now[layer] == *inode), "made anew");
        let times: usize = asked(&server, &layers).iter().sum::<usize>() - before.iter().sum::<usize>();
        // Each once, but for what somebody had begun to read who was killed.
        assert!(times <= layers.len() + 3 * kills, "{times} requests for {} layers", layers.len());
        store.ok("store gc");
        assert_eq!(store.ok("store check"), "");
        store.ok(&format!("image rm --force {}/a/image:1", server.host()));
        assert_eq!(stored(&store).len(), 0);
        assert_eq!(store.ok("store check"), "");
    }
}
