//! Names and tags, documents of networks, and what lies where nothing of ours does.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::Value;

use super::{ID, RECORD, Scene, changed, get, text};
use crate::support::sh;

#[test]
fn names_lead_to_their_objects_again() {
    let scene = Scene::new();
    let link = |name: &str| fs::read_link(scene.fs(&format!("names/{name}"))).map(|to| text(&to).to_string());
    for (name, found) in [
        ("web", format!("snapshot snapshots/{}", scene.web)),
        ("box", format!("container containers/{}", scene.container)),
    ] {
        let path = scene.fs(&format!("names/{name}"));
        let before = scene.state();
        // Lost; stale; one that leads to another, which is called otherwise.
        for to in [None, Some(format!("../snapshots/{ID}")), Some(format!("../snapshots/{}", scene.child))] {
            fs::remove_file(&path).expect("a name");
            if let Some(to) = &to {
                symlink(to, &path).expect("a link");
            }
            let told = scene.check("");
            assert!(told.contains(&format!("{found} repair found")), "{told:?}");
            let done = scene.check("--repair");
            assert!(done.contains(&format!("{found} repair repaired")), "{done:?}");
            assert!(done.iter().all(|line| line.ends_with(" repaired")), "{done:?}");
            assert_eq!(scene.check(""), Vec::<String>::new());
            let changes = changed(&before, &scene.state());
            assert!(changes.iter().all(|changed| changed.ends_with(format!("names/{name}"))), "{changes:?}");
            assert_eq!(link(name).expect("a link"), format!("../{}", found.split_once(' ').expect("two words").1));
        }
    }
    scene.works();
}

#[test]
fn of_two_with_one_name_the_one_to_which_it_leads_has_it() {
    let scene = Scene::new();
    let (web, child) = (scene.fs(&format!("snapshots/{}", scene.web)), scene.fs(&format!("snapshots/{}", scene.child)));
    let mut record: Value = serde_json::from_str(&get(&child, RECORD)).expect("JSON");
    record["name"] = Value::from("web");
    super::set(&child, RECORD, record.to_string().as_bytes());
    let done = scene.check("--repair");
    assert!(done.contains(&format!("snapshot snapshots/{} repair repaired", scene.child)), "{done:?}");
    assert_eq!(scene.check(""), Vec::<String>::new());
    let name = |object| serde_json::from_str::<Value>(&get(object, RECORD)).expect("JSON")["name"].clone();
    assert_eq!((name(&web), name(&child)), (Value::from("web"), Value::Null));
    scene.works();
}

#[test]
fn what_is_no_link_of_ours_goes_by_force_and_a_directory_never() {
    let scene = Scene::new();
    let clean = scene.state();
    for (kind, shelf) in [("name", "names"), ("tag", "tags")] {
        let strange = scene.fs(&format!("{shelf}/strange"));
        let found = format!("{kind} {shelf}/strange");
        fs::write(&strange, "data").expect("a file");
        scene.mended_by("--force", &found, "force");
        symlink("/etc/passwd", &strange).expect("a link");
        scene.mended_by("--force", &found, "force");
        assert!(fs::exists("/etc/passwd").expect("it is there"));
        fs::create_dir(&strange).expect("a directory");
        scene.stays("--force", &format!("{found} person found"));
        fs::remove_dir(&strange).expect("removed");
    }
    assert!(changed(&clean, &scene.state()).is_empty());
}

#[test]
fn what_is_no_object_is_left_to_a_person() {
    let scene = Scene::new();
    let clean = scene.state();
    for shelf in ["images", "layers", "snapshots", "containers", "volumes", "networks"] {
        let kind = shelf.trim_end_matches('s');
        let strange = scene.fs(&format!("{shelf}/not an id"));
        fs::create_dir(&strange).expect("a directory");
        scene.stays("--force --deep", &format!("{kind} {shelf}/not an id person found"));
        fs::remove_dir(&strange).expect("removed");
        if shelf != "networks" && shelf != "snapshots" && shelf != "containers" {
            let strange = scene.fs(&format!("{shelf}/{ID}"));
            fs::write(&strange, "data").expect("a file");
            scene.stays("--force", &format!("{kind} {shelf}/{ID} person found"));
            fs::remove_file(&strange).expect("removed");
        }
    }
    let own = scene.fs("own");
    sh("btrfs", &["subvolume", "create", text(&own)]);
    scene.stays("--force", "subvolume own person found");
    sh("btrfs", &["subvolume", "delete", text(&own)]);
    assert!(changed(&clean, &scene.state()).is_empty());
}

#[test]
fn a_network_whose_document_is_damaged_goes_by_force() {
    let scene = Scene::new();
    scene.store.ok("network create --subnet 10.99.1.0/24 net");
    let document = scene.fs("networks/net");
    let whole = fs::read_to_string(&document).expect("a document");
    for bytes in ["", "{", "[]", &whole.replace("\"net\"", "\"other\"")] {
        fs::write(&document, bytes).expect("written");
        scene.mended_by("--force", "network networks/net", "force");
        assert!(!document.exists());
        scene.store.ok("network create --subnet 10.99.1.0/24 net");
    }
    scene.store.ok("network rm net");
}

#[test]
fn garbage_goes_with_a_repair_and_foreign_data_does_not() {
    let scene = Scene::new();
    let clean = scene.state();
    fs::create_dir(scene.fs("staging/draft-1")).expect("a draft");
    symlink(format!("../images/{ID}"), scene.fs("tags/localhost%gone:latest")).expect("a tag");
    symlink(format!("../snapshots/{ID}"), scene.fs("names/stale")).expect("a name");
    let found = ["draft staging/draft-1", "name names/stale", "tag tags/localhost%gone:latest"];
    let all = |outcome: &str| found.map(|found| format!("{found} repair {outcome}"));
    assert_eq!(scene.check("--repair --dry-run"), all("found"));
    assert_eq!(scene.check("--repair"), all("repaired"));
    assert!(changed(&clean, &scene.state()).is_empty());
    let draft = scene.fs("staging/draft-2");
    fs::create_dir(&draft).expect("a draft");
    sh("btrfs", &["subvolume", "create", text(&draft.join("rootfs"))]);
    fs::write(draft.join("rootfs/precious"), "data").expect("a file");
    assert_eq!(scene.check("--repair --force"), ["store . person found"]);
    assert_eq!(fs::read_to_string(draft.join("rootfs/precious")).expect("a file"), "data");
}
