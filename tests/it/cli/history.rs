//! image history, image prune, and what inspect tells of images that were loaded.

use std::fs::{self, File};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::load::{interrupted, many, sorted, stored, text};
use crate::scratch::Tar;
use crate::support::archives::{Files, chains, config, hex};
use crate::support::busybox;
use crate::support::store::Store;

/// Two layers, and steps around them that made none.
fn told() -> (Files, String, [Vec<u8>; 2]) {
    let layers = [
        Tar::default().directory("d").file("d/x", &[b'x'; 2000]).end(),
        Tar::default().directory("d").file("d/.wh.x", b"").file("y", &[b'y'; 30]).end(),
    ];
    let mut document = config(&[&layers[0], &layers[1]]);
    let long = format!("/bin/sh -c echo {}\n\u{1b}[31m", "ä".repeat(60));
    document["history"] = json!([
        { "created": "2020-02-02T02:02:02.5Z", "created_by": "first" },
        { "created": "2020-02-02T02:02:03Z", "created_by": "ENV A=b", "empty_layer": true },
        { "created": "2020-02-02T02:02:04Z", "created_by": long, "comment": "by hand" },
        { "created_by": "CMD [\"sh\"]", "empty_layer": true },
    ]);
    let mut files = Files::docker(&[(&["localhost/told:1"], &[&layers[0], &layers[1]])]);
    document["docker_version"] = json!("20.10");
    document["config"]["Healthcheck"] = json!({ "Test": ["CMD-SHELL", "true"] });
    let document = serde_json::to_vec(&document).expect("JSON");
    let name = format!("{}.json", hex(&document));
    files.set(&name, document.clone());
    (files.change("manifest.json", |list| list[0]["Config"] = json!(name)), hex(&document), layers)
}

#[test]
fn history_tells_each_step_newest_first() {
    let store = Store::empty();
    let (files, id, _) = told();
    store.ok_with("image load -i", &[text(&files.save(&store.disk.path(), "told.tar"))]);
    store.ok("image tag told:1 localhost/again:2");
    let columns = |line: &str| -> Vec<String> {
        let parts = line.split("  ").map(str::trim).filter(|part| !part.is_empty());
        parts.map(str::to_string).collect()
    };
    let table = store.lines("image history told:1");
    assert_eq!(columns(&table[0]), ["ID", "CREATED", "CREATED BY", "SIZE", "COMMENT"]);
    assert_eq!(table.len(), 5);
    assert_eq!(columns(&table[1]), [&id[..12], "CMD [\"sh\"]", "0 B"]);
    let second = columns(&table[2]);
    let cut = format!("/bin/sh -c echo {}...", "ä".repeat(26));
    assert_eq!((second[0].as_str(), &second[2..]), ("<missing>", &[cut, "30 B".into(), "by hand".into()][..]));
    assert!(second[1].ends_with("years ago"), "{second:?}");
    assert_eq!(columns(&table[3])[2..], ["ENV A=b", "0 B"]);
    assert_eq!(columns(&table[4])[2..], ["first", "2.00 kB"]);
    // All of each column lies below its title.
    for title in ["CREATED BY", "SIZE"] {
        let at = table[0].find(title).expect("a column");
        let before = |line: &String| line.chars().nth(at - 1).is_none_or(char::is_whitespace);
        assert!(table.iter().all(before), "{table:#?}");
    }
    let whole = store.ok("image history --no-trunc told:1");
    assert!(whole.contains(&id) && whole.contains(&format!("{}\\n\\u{{1b}}[31m", "ä".repeat(60))), "{whole}");
    assert_eq!(store.lines("image history -q told:1"), [&id[..12], "<missing>", "<missing>", "<missing>"]);
    assert_eq!(store.lines("image history -q --no-trunc told:1")[0], id);

    let steps = store.json("image history --format json told:1");
    let first = &steps[3];
    assert_eq!(first["id"], "<missing>");
    assert_eq!(first["created"], "2020-02-02T02:02:02.5Z");
    assert_eq!((&first["CreatedBy"], &first["size"], &first["comment"]), (&json!("first"), &json!(2000), &json!("")));
    assert_eq!(steps[0]["id"], id.as_str());
    assert_eq!(steps[0]["tags"], json!(["localhost/again:2", "localhost/told:1"]));
    assert_eq!(steps[0]["created"], Value::Null);
    assert_eq!(steps[1]["comment"], "by hand");
    // What docker's config has and the OCI's has not.
    let inspected = store.json("image inspect told:1");
    assert_eq!(inspected[0]["Healthcheck"]["Test"], json!(["CMD-SHELL", "true"]));
    assert_eq!((&inspected[0]["Version"], &inspected[0]["Digest"]), (&json!("20.10"), &json!("")));

    // One that was imported has one step; one that says nothing of its layers has a line for each all the same.
    store.ok_with("image import --name box --message why", &[text(&busybox())]);
    let steps = store.json("image history --format json box");
    assert_eq!(steps.as_array().expect("an array").len(), 1);
    assert_eq!((&steps[0]["CreatedBy"], &steps[0]["comment"]), (&json!("tupper image import"), &json!("why")));
    let base = Tar::default().file("f", b"123").end();
    let mut silent = config(&[&base]);
    silent["history"] = json!([]);
    let silent = serde_json::to_vec(&silent).expect("JSON");
    let mut files = Files::docker(&[(&["localhost/silent:1"], &[&base])]);
    files.set("silent.json", silent);
    let files = files.change("manifest.json", |list| list[0]["Config"] = json!("silent.json"));
    store.ok_with("image load -i", &[text(&files.save(&store.disk.path(), "silent.tar"))]);
    assert_eq!(store.json("image history --format json silent:1")[0]["size"], 3);
    let error = store.fails(1, "image history nosuch");
    assert!(error.contains("nosuch"), "{error}");
}

fn image_ids(store: &Store) -> Vec<String> {
    let mut ids = sorted(store.lines("image ls -q --no-trunc"));
    ids.dedup();
    ids
}

#[test]
fn prune_removes_what_has_no_name_and_nothing_was_made_from() {
    let store = Store::empty();
    assert_eq!(store.ok("image prune -f"), "", "there is no store yet");
    let import =
        |change: &str, name: &str| store.ok_with("image import --change", &[change, "--name", name, text(&busybox())]);
    let unnamed = import("ENV A=1", "app:1");
    let used = import("ENV A=2", "app:1");
    store.ok("create --name keeps app:1 true");
    let named = import("ENV A=3", "app:1");
    let (files, told, layers) = told();
    store.ok_with("image load -i", &[text(&files.save(&store.disk.path(), "told.tar"))]);
    let chains = chains(&[&layers[0], &layers[1]]);
    // And what a load that was interrupted has left.
    let before = stored(&store);
    let many = many();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let path = Files::docker(&[(&["localhost/many:1"], &many)]).save(&store.disk.path(), "many.tar");
    assert_eq!(interrupted(&store, &path, Signal::SIGINT), 130);
    let left: Vec<String> = stored(&store).into_iter().filter(|layer| !before.contains(layer)).collect();
    let all = image_ids(&store);
    assert_eq!(all.len(), 4);

    // It asks, and takes silence for a no.
    for answer in ["", "n\n", "yes please\n"] {
        let file = store.disk.path().join("answer");
        fs::write(&file, answer).expect("a file");
        let done = store.run_reading("image prune", File::open(&file).expect("a file"));
        assert!(done.stderr.contains("[y/N]"), "{done}");
        assert_eq!((done.ok().as_str(), image_ids(&store)), ("", all.clone()));
    }
    let planned = sorted(store.lines("image prune --dry-run"));
    let lines = left.iter().map(|chain| format!("layer {chain}")).chain([unnamed]).collect();
    assert_eq!(planned, sorted(lines));
    // A gc leaves what the next load may want, and a dry run everything.
    assert_eq!(store.ok("store gc"), "");
    assert_eq!((image_ids(&store), stored(&store).len()), (all, before.len() + left.len()));
    assert_eq!(sorted(store.lines("image prune -f")), planned);
    let stay = sorted(vec![used.clone(), named.clone(), told.clone()]);
    assert_eq!(image_ids(&store), stay);
    assert_eq!(stored(&store), before);
    assert!(chains.iter().all(|chain| before.contains(chain)));
    assert_eq!(store.ok("image prune -f"), "");

    let planned = sorted(store.lines("image prune --all --dry-run"));
    assert_eq!(planned, sorted(vec![named, told]));
    assert_eq!(image_ids(&store), stay);
    let file = store.disk.path().join("answer");
    fs::write(&file, "y\n").expect("a file");
    let done = store.run_reading("image prune --all", File::open(&file).expect("a file")).ok();
    assert_eq!(sorted(done.lines().map(str::to_string).collect()), planned);
    assert_eq!(image_ids(&store), std::slice::from_ref(&used), "a container was made from it");
    store.ok("rm keeps");
    assert_eq!(store.ok("image prune -af"), used);
    assert_eq!((image_ids(&store), stored(&store)), (Vec::new(), Vec::new()));
    assert_eq!(store.ok("store check"), "");
}

#[test]
fn a_base_goes_with_its_image_when_nothing_waits_on_it_any_more() {
    let store = Store::empty();
    let many = many();
    let many: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
    let dir = store.disk.path();
    let path = Files::docker(&[(&["localhost/many:1"], &many)]).save(&dir, "many.tar");
    assert_eq!(interrupted(&store, &path, Signal::SIGINT), 130);
    let left = stored(&store).len();
    // An image without a name of the lowest of them.
    store.ok_with("image load -i", &[text(&Files::docker(&[(&[], &many[..2])]).save(&dir, "two.tar"))]);
    assert_eq!(stored(&store).len(), left);
    let planned = sorted(store.lines("image prune --dry-run"));
    assert_eq!(planned.len(), 1 + left - 2);
    assert_eq!(sorted(store.lines("image prune -f")), planned);
    assert_eq!(stored(&store), [""; 0]);
    assert_eq!(store.ok("store check"), "");
}
