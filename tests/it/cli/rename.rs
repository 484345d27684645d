//! rename: the name changes, and nothing else.

use crate::support::store::Store;

use super::id;

#[test]
fn the_new_name_finds_it_and_the_old_one_is_free() {
    let store = Store::new();
    let made = id(&store.ok("create --name old busybox echo works"));
    assert_eq!(store.ok("rename old new"), "");
    assert_eq!(store.json("inspect new")[0]["Id"], made.as_str());
    assert_eq!(store.json("ps -a --format json")[0]["Names"][0], "new");
    store.fails(125, "start old");
    store.ok(&format!("rename {} newer", &made[..12]));
    store.ok("create --name new busybox true");
    store.ok("create --name old busybox true");
    assert_eq!(store.run("start -a newer").status(0).stdout, "works\n");
    store.ok("store check");
    store.ok("rm old new newer");
    assert_eq!(store.ok("store gc"), "", "no name is left");
}

#[test]
fn a_name_that_is_taken_stays_whose_it_is() {
    let store = Store::new();
    let one = id(&store.ok("create --name one busybox true"));
    store.ok("create --name two busybox true");
    store.ok("snapshot create busybox snap");
    for taken in ["two", "snap", "one"] {
        let error = store.fails(1, &format!("rename one {taken}"));
        assert!(error.contains(&format!("name {taken}: taken by")), "{error}");
    }
    assert_eq!(store.json("inspect one")[0]["Id"], one.as_str());
    store.fails(2, "rename one a/b");
    store.fails(1, "rename nobody else");
    store.fails(1, "rename snap other");
}

#[test]
fn it_may_run_meanwhile_and_goes_with_its_new_name() {
    let store = Store::alone();
    store.ok("run --rm busybox true");
    let before = store.traces();
    for flags in ["", "--rm"] {
        store.ok(&format!("run -d {flags} --name old --stop-signal KILL busybox sleep 600"));
        store.ok("rename old new");
        assert_eq!(store.json("ps --format json")[0]["Names"][0], "new");
        store.ok("stop new");
        if flags.is_empty() {
            store.ok("rm new");
        }
        before.assert_same(&store.traces());
    }
}

/// One that nobody named is given a name.
#[test]
fn a_throwaway_can_be_named() {
    let store = Store::new();
    let running = store.command("run --rm busybox sleep 600", &[]).spawn().expect("a run");
    crate::support::eventually("it runs", std::time::Duration::from_secs(120), || !store.ok("ps -q").is_empty());
    store.ok(&format!("rename {} named", store.ok("ps -q")));
    store.ok("kill named");
    assert_eq!(crate::support::command::wait(running, "run"), 137);
    store.ok("store check");
    store.ok("create --name named busybox true");
}
