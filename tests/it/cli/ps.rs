//! ps: which containers it shows, in which order.

use crate::support::store::Store;

fn names(store: &Store, flags: &str) -> Vec<String> {
    let listed = store.json(&format!("ps --format json {flags}"));
    let name = |container: &serde_json::Value| container["Names"][0].as_str().unwrap_or("-").to_string();
    listed.as_array().expect("a list").iter().map(name).collect()
}

#[test]
fn filters_are_podman_s() {
    let store = Store::new();
    store.ok("tag busybox other:1");
    let one = store.ok("create --name one --label team=a --label x=1 -v /etc:/mnt busybox true");
    store.ok("create --name two --label team=b --network host busybox false");
    store.ok("snapshot create busybox snap");
    store.run("run --name three --label team=a snap sh").status(0);
    store.run("run --name four other:1 false").status(1);
    store.ok("run -d --name five busybox sleep 600");
    store.ok("run -d --name six --rm busybox sleep 600");
    store.ok("pause six");
    let image = store.json("image inspect busybox")[0]["Id"].as_str().expect("an id").to_string();

    for (filters, wanted) in [
        ("", "six five"),
        ("-a", "six five four three two one"),
        ("-l", "six"),
        ("-n 3", "six five four"),
        ("-n 0", ""),
        ("-a --sort names", "five four one six three two"),
        ("-f name=i", "six five"),
        ("-f name=^s -a", "six"),
        ("-f name=^(one|two)$ -a", "two one"),
        ("-f name=one -f name=two -a", "two one"),
        ("-f label=team -a", "three two one"),
        ("-f label=team=a -a", "three one"),
        ("-f label=team=a -f label=x -a", "one"),
        ("-f label=team= -a", ""),
        ("-f status=exited", "four three"),
        ("-f status=exited -f status=created", "four three two one"),
        ("-f status=paused", "six"),
        ("-f exited=1 -a", "four"),
        ("-f exited=0 -a", "three"),
        ("-f exited=0", ""),
        ("-f ancestor=snap -a", "three"),
        ("-f ancestor=other:1 -a", "six five four three two one"),
        ("-f ancestor=nothing -a", ""),
        ("-f before=three -a", "two one"),
        ("-f since=three -a", "six five four"),
        ("-f since=three -f before=five -a", "four"),
        ("-f volume=/mnt -a", "one"),
        ("-f volume=/etc -a", "one"),
        ("-f volume=/srv -a", ""),
        ("-f network=host -a", "two"),
        ("-f name=e -l", "five"),
    ] {
        assert_eq!(names(&store, filters).join(" "), wanted, "{filters}");
    }
    assert_eq!(names(&store, &format!("-a -f id={}", &one[..8])), ["one"]);
    assert_eq!(names(&store, &format!("-a -f ancestor={}", &image[..12])).len(), 6);
    store.fails(2, "ps -f color=red");
    store.fails(1, "ps -f since=nobody");
    let listed = store.json("ps -a --format json -f name=one");
    assert_eq!(listed[0]["Labels"]["team"], "a");
    assert_eq!(listed[0]["Mounts"][0], "/mnt");
    let table = store.lines("ps -a --no-trunc -f name=one");
    assert!(table.len() == 2 && table[1].starts_with(&one), "{table:?}");
    store.ok("rm -f five six");
}

#[test]
fn a_listing_without_a_store_is_empty() {
    let store = Store::empty();
    assert_eq!(store.ok("ps -aq -f name=x -f before=y"), "");
}
