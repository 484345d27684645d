//! What is recorded of objects: missing, cut short, of another type, out of bounds.

use serde_json::Value;

use super::{RECORD, Scene, changed, get, set, text, unset};
use crate::support::sh;
use crate::support::store::Store;

/// What may have become of a record: nothing, or these bytes.
fn spoilt(record: &str) -> Vec<(&'static str, Option<Vec<u8>>)> {
    let with = |key: &str, value: Value| {
        let mut document: Value = serde_json::from_str(record).expect("JSON");
        document[key] = value;
        Some(serde_json::to_vec(&document).expect("JSON"))
    };
    let created = if record.contains("diff_id") { "diff_id" } else { "created" };
    vec![
        ("missing", None),
        ("empty", Some(Vec::new())),
        ("cut short", Some(record.as_bytes()[..record.len() / 2].to_vec())),
        ("another type", Some(b"[1, 2]".to_vec())),
        ("no text", Some(vec![0xff, 0, 0x1b, 0x80])),
        ("a large number", with(created, serde_json::json!(1e300))),
        ("escapes", with(created, serde_json::json!("\u{1b}[31m\u{9b}2J\n"))),
        ("no version", with("version", Value::Null)),
    ]
}

#[test]
fn records_are_written_anew() {
    let scene = Scene::new();
    let volume = scene.fs("volumes").read_dir().expect("volumes").next().expect("one").expect("an entry").file_name();
    let volume = volume.to_str().expect("text");
    let objects = [
        format!("image images/{}", scene.two),
        format!("layer layers/{}", scene.chains[0]),
        format!("layer layers/{}", scene.chains[1]),
        format!("snapshot snapshots/{}", scene.web),
        format!("container containers/{}", scene.container),
        format!("volume volumes/{volume}"),
    ];
    for found in &objects {
        let path = found.split_once(' ').expect("two words").1;
        let object = scene.fs(path);
        let record = get(&object, RECORD);
        for (how, bytes) in spoilt(&record) {
            let before = scene.state();
            match &bytes {
                Some(bytes) => set(&object, RECORD, bytes),
                None => unset(&object, RECORD),
            }
            // What gc cannot decide without it is told, too.
            let told = scene.check("");
            assert!(told.contains(&format!("{found} repair found")), "{how}: {told:?}");
            let planted = scene.state();
            scene.check("--repair --dry-run");
            assert!(changed(&planted, &scene.state()).is_empty(), "a rehearsal changes nothing");
            let done = scene.check("--repair");
            assert_eq!(done, [format!("{found} repair repaired")], "{how}");
            assert_eq!(scene.check("--deep"), Vec::<String>::new(), "{how}");
            let changes = changed(&before, &scene.state());
            assert!(changes.iter().all(|changed| changed.ends_with(path)), "{changes:?}");
            let (was, is): (Value, Value) = (
                serde_json::from_str(&record).expect("JSON"),
                serde_json::from_str(&get(&object, RECORD)).expect("JSON"),
            );
            for key in ["name", "chain", "size", "diff_id", "parent", "entries", "image", "read_only"] {
                assert_eq!(is[key], was[key], "{how}: {key}: {is}");
            }
            for key in ["kind", "id"] {
                assert_eq!(is["source"][key], was["source"][key], "{key}: {is}");
            }
            set(&object, RECORD, record.as_bytes());
        }
    }
    scene.works();
}

#[test]
fn a_layer_without_an_image_is_known_by_its_recipe() {
    let scene = Scene::new();
    // The images' configs are the first to be asked: they go out of the way.
    let image = scene.fs(&format!("images/{}", scene.two));
    let aside = scene.fs("aside");
    let record = get(&scene.fs(&format!("layers/{}", scene.chains[1])), RECORD);
    for chain in &scene.chains {
        let layer = scene.fs(&format!("layers/{chain}"));
        let was: Value = serde_json::from_str(&get(&layer, RECORD)).expect("JSON");
        // It waits for somebody to go on with it, so no gc takes it.
        std::fs::rename(&image, &aside).expect("renamed");
        sh("setfattr", &["-x", RECORD, text(&layer)]);
        let found = scene.check("");
        assert!(found.contains(&format!("layer layers/{chain} repair found")), "{found:?}");
        std::fs::rename(&aside, &image).expect("renamed");
        let config = std::fs::read(image.join("config.json")).expect("a config");
        // An image that cannot be read tells nothing, and keeps gc from taking layers.
        std::fs::write(image.join("config.json"), "{").expect("written");
        let done = scene.check("--repair");
        assert!(done.contains(&format!("layer layers/{chain} repair repaired")), "{done:?}");
        std::fs::write(image.join("config.json"), config).expect("written");
        let is: Value = serde_json::from_str(&get(&layer, RECORD)).expect("JSON");
        for key in ["diff_id", "parent", "size", "entries"] {
            assert_eq!(is[key], was[key], "{key}: {is}");
        }
        assert_eq!(scene.check("--deep"), Vec::<String>::new());
    }
    set(&scene.fs(&format!("layers/{}", scene.chains[1])), RECORD, record.as_bytes());
    scene.works();
}

#[test]
fn a_record_of_another_is_noticed() {
    let scene = Scene::new();
    let (lower, upper) =
        (scene.fs(&format!("layers/{}", scene.chains[0])), scene.fs(&format!("layers/{}", scene.chains[1])));
    let (lower_record, upper_record) = (get(&lower, RECORD), get(&upper, RECORD));
    set(&upper, RECORD, lower_record.as_bytes());
    scene.mended(&format!("layer layers/{}", scene.chains[1]));
    assert_eq!(
        serde_json::from_str::<Value>(&get(&upper, RECORD)).expect("JSON")["diff_id"],
        serde_json::from_str::<Value>(&upper_record).expect("JSON")["diff_id"]
    );
    let (two, busybox) = (scene.fs(&format!("images/{}", scene.two)), scene.fs(&format!("images/{}", scene.busybox)));
    let record = get(&two, RECORD);
    set(&two, RECORD, get(&busybox, RECORD).as_bytes());
    let found = scene.check("");
    assert!(found.contains(&format!("image images/{} repair found", scene.two)), "{found:?}");
    // Its layers would be garbage, if its record were true: it is mended before they are looked at.
    assert_eq!(scene.check("--repair"), [format!("image images/{} repair repaired", scene.two)]);
    assert_eq!(
        serde_json::from_str::<Value>(&get(&two, RECORD)).expect("JSON")["chain"],
        serde_json::from_str::<Value>(&record).expect("JSON")["chain"]
    );
    assert_eq!(scene.check("--deep"), Vec::<String>::new());
    scene.works();
}

#[test]
fn what_a_newer_tupper_wrote_is_left_to_it() {
    let scene = Scene::new();
    for found in [format!("image images/{}", scene.two), format!("snapshot snapshots/{}", scene.web)] {
        let object = scene.fs(found.split_once(' ').expect("two words").1);
        let record = get(&object, RECORD);
        set(&object, RECORD, br#"{"version":2,"new":true}"#);
        let planted = scene.state();
        for flags in ["", "--repair", "--repair --force"] {
            let left = scene.check(flags);
            assert!(left.contains(&format!("{found} person found")), "{left:?}");
        }
        assert!(changed(&planted, &scene.state()).is_empty());
        set(&object, RECORD, record.as_bytes());
    }
    scene.works();
}

#[test]
fn what_people_noted_of_a_snapshot_stays_where_it_can_be_read() {
    let scene = Scene::new();
    let id = scene.store.ok("snapshot create --label a=b --read-only web noted");
    let object = scene.fs(&format!("snapshots/{id}"));
    let mut record: Value = serde_json::from_str(&get(&object, RECORD)).expect("JSON");
    record["source"] = Value::from(7);
    record["trashed"] = Value::from(1);
    record["created"] = Value::from("2001-01-01T00:00:00Z");
    set(&object, RECORD, record.to_string().as_bytes());
    scene.mended(&format!("snapshot snapshots/{id}"));
    let is = &scene.store.json("snapshot inspect noted")[0];
    assert_eq!((&is["Labels"]["a"], &is["ReadOnly"]), (&Value::from("b"), &Value::from(true)), "{is}");
    assert_eq!(scene.store.lines("snapshot ls -q").len(), 3, "it is in no trash");
    let is: Value = serde_json::from_str(&get(&object, RECORD)).expect("JSON");
    assert_eq!(
        (is["source"]["id"].as_str(), is["created"].as_str()),
        (Some(&*scene.web), Some("2001-01-01T00:00:00Z"))
    );
}

#[test]
fn how_a_container_fared_and_its_limits_are_forgotten_and_what_it_runs_is_not_made_up() {
    let scene = Scene::new();
    scene.store.ok("start --attach box");
    scene.store.ok("update --memory 64m box");
    let found = format!("container containers/{}", scene.container);
    let object = scene.fs(&format!("containers/{}", scene.container));
    for name in ["user.tupper.life", "user.tupper.limits"] {
        assert!(get(&object, name).contains("version"));
        set(&object, name, b"{\"version\":1,\"limits\":9,\"started\":\"\x1b[1m\"}");
        scene.mended(&found);
    }
    assert_eq!(scene.store.json("inspect box")[0]["HostConfig"]["Memory"], 0);
    scene.works();
    let spec = get(&object, "user.tupper.spec");
    for bytes in [&spec.as_bytes()[..100], b"{\"args\":99999999999999999999999}"] {
        set(&object, "user.tupper.spec", bytes);
        for flags in ["", "--force"] {
            scene.stays(flags, &format!("{found} person found"));
        }
        // As the hint says.
        let kept = scene.store.ok(&format!("snapshot create container:{}", scene.container));
        scene.store.ok(&format!("snapshot rm {kept}"));
    }
    set(&object, "user.tupper.spec", spec.as_bytes());
    scene.works();
}

#[test]
fn a_volume_whose_name_nothing_tells_is_left_to_a_person() {
    let scene = Scene::new();
    scene.store.ok("volume create lonely");
    let object = scene.fs(&format!("volumes/{}", crate::support::archives::hex(b"lonely")));
    let found = format!("volume {}", text(object.strip_prefix(scene.fs("")).expect("below")));
    std::fs::write(object.join("rootfs/precious"), "data").expect("a file");
    let record = get(&object, RECORD);
    // Only its name is lost, or another's is there.
    for name in [Value::Null, Value::from("data")] {
        let mut document: Value = serde_json::from_str(&record).expect("JSON");
        document["name"] = name;
        set(&object, RECORD, document.to_string().as_bytes());
        for flags in ["", "--force"] {
            scene.stays(flags, &format!("{found} person found"));
        }
    }
    set(&object, RECORD, record.as_bytes());
    assert_eq!(scene.check(""), Vec::<String>::new());
}

#[test]
fn nothing_is_done_to_a_container_that_runs() {
    let scene = Scene::new();
    let id = scene.store.ok("run -d --name on busybox sleep 1000");
    let object = scene.fs(&format!("containers/{id}"));
    let record = get(&object, RECORD);
    set(&object, RECORD, b"{");
    let found = scene.check("--repair --force");
    assert!(found.contains(&format!("container containers/{id} repair failed")), "{found:?}");
    assert_eq!(get(&object, RECORD), "{");
    set(&object, RECORD, record.as_bytes());
    assert_eq!(scene.store.lines("ps -q").len(), 1, "it runs");
    scene.store.ok("rm -f on");
    assert_eq!(scene.check("--repair"), Vec::<String>::new());
}

#[test]
fn listings_go_on_without_what_cannot_be_read() {
    let store = Store::new();
    for line in [
        "image tag busybox other",
        "snapshot create busybox one",
        "snapshot create busybox two",
        "create --name three busybox true",
        "create --name four busybox true",
        "volume create five",
        "volume create six",
    ] {
        store.ok(line);
    }
    store.ok("commit two gone");
    for (shelf, listing, inspect, stays, is_gone) in [
        ("images", "image ls", "image inspect", "localhost/other", "gone"),
        ("snapshots", "snapshot ls", "snapshot inspect", "two", "one"),
        ("containers", "ps -a", "inspect", "four", "three"),
        ("volumes", "volume ls", "volume inspect", "six", "five"),
    ] {
        let known = store.json(&format!("{inspect} {is_gone}"));
        let id = match known[0]["Mountpoint"].as_str() {
            Some(path) => path.rsplit('/').nth(1).expect("an id").to_string(),
            None => known[0]["Id"].as_str().expect("an id").to_string(),
        };
        let object = store.root().join("fs").join(shelf).join(id);
        let record = get(&object, RECORD);
        set(&object, RECORD, b"no JSON");
        let done = store.run(listing);
        assert_eq!(done.status, 125, "{done}");
        assert!(done.stdout.contains(stays) && !done.stdout.contains(is_gone), "{done}");
        let lines: Vec<&str> = done.stderr.lines().collect();
        assert!(lines[0].starts_with("tupper: error: ") && lines[0].contains("record"), "{done}");
        assert_eq!(lines[1..], ["hint: `tupper store check --repair` mends what the disk tells"], "{done}");
        set(&object, RECORD, record.as_bytes());
        store.ok(listing);
    }
}
