//! Every command that changes something, killed before each of its changes: sweep.rs tells how.
//!
//! `cargo test --test crash` takes a sample of the points, `make test-crash` all of them.

#[allow(dead_code, reason = "shared with tests/it: each test binary uses its part")]
#[path = "../it/support/mod.rs"]
mod support;

mod changes;
mod faults;
mod images;
mod repair;
mod reset;
mod scene;
mod sweep;
mod trace;
mod trace_tests;

use scene::Ground::{Btrfs, Ext4};
use scene::{Cleaning, Scene};
use sweep::{Sweep, every};

macro_rules! sweeps {
    ($($test:ident: $sweep:expr;)*) => { $(#[test] fn $test() { $sweep.run() })* };
}

sweeps! {
    import: Sweep::of("image import --name new tiny.tar");
    import_without_a_name: Sweep::of("image import tiny.tar");
    import_of_a_directory: Sweep::of("image import --name new tree");
    import_of_a_stream: Sweep::of("image import --name new - < tiny.tar");
    import_of_the_same_bytes: Sweep::of("image import --name b tiny.tar").after("image import --name a tiny.tar");
    import_takes_a_name: Sweep::of("image import --name it other.tar").after("image import --name it tiny.tar");
    tag: Sweep::of("image tag base more");
    tag_takes_a_name: Sweep::of("image tag base it").after("image import --name it tiny.tar");
    tag_of_two: Sweep::of("image tag base one two").or("image tag base one");
    image_rm: Sweep::of("image rm it").after("image import --name it tiny.tar");
    image_rm_of_one_name: Sweep::of("image rm more").after("image tag base more");
    image_rm_of_all_names: Sweep::of("image rm --force it")
        .after("image import --name it tiny.tar").after("image import --name more tiny.tar");
    image_rm_of_two: Sweep::of("image rm it that")
        .after("image import --name it tiny.tar").after("image import --name that other.tar").or("image rm it");

    image_rm_of_shared_layers: Sweep::of("image rm two:1").after("image load -i pair.tar");

    // Layers that were kept stay for the next attempt, which the sweep makes.
    load: Sweep::of("image load -i three.tar").keeping(3);
    load_on_a_layer_that_is_there: Sweep::of("image load -i three.tar").after("image load -i first.tar").keeping(2);
    load_of_a_stream: Sweep::of("image load < three.tar.gz").keeping(3);
    load_of_a_layout: Sweep::of("image load -i layout").keeping(3);
    load_of_two_images: Sweep::of("image load -i pair.tar").or("image load -i one.tar").keeping(2);
    load_takes_a_name: Sweep::of("image load -i three.tar").after("image import --name it:1 tiny.tar").keeping(3);
    load_of_names_alone: Sweep::of("image load -i three.tar")
        .after("image load -i three.tar").after("image tag it:1 more").after("image rm it:1").after("image rm also:1");
    load_after_a_kill: Sweep::of("image load -i three.tar")
        .after_kill_at("image load -i three.tar", "renameat2", 5).keeping(3);
    pull: Sweep::of("image pull --tls-verify=false REGISTRY/a/three:1").keeping(3);
    pull_by_digest: Sweep::of("image pull --tls-verify=false REGISTRY/a/three@DIGEST").keeping(3);
    pull_on_a_layer_that_is_there: Sweep::of("image pull --tls-verify=false REGISTRY/a/three:1")
        .after("image load -i first.tar").keeping(2);
    pull_of_a_name_alone: Sweep::of("image pull --tls-verify=false REGISTRY/a/three:1")
        .after("image load -i three.tar");
    push: Sweep::of("image push --tls-verify=false it:1 REGISTRY/a/it:1").after("image load -i three.tar");
    save: Sweep::of("image save -o out/it.tar it:1").after("image load -i three.tar");
    save_as_a_layout: Sweep::of("image save --format oci-archive -o out/it.tar it:1").after("image load -i three.tar");
    export: Sweep::of("image export -o out/base.tar base");
    load_interrupted: Sweep::of("image load -i pair.tar").or("image load -i one.tar").keeping(2).interrupted();
    load_of_a_stream_interrupted: Sweep::of("image load < three.tar.gz").keeping(2).interrupted();
    pull_interrupted: Sweep::of("image pull --tls-verify=false REGISTRY/a/three:1").keeping(2).interrupted();
    import_interrupted: Sweep::of("image import --name new tiny.tar").interrupted();
    prune_of_an_image: Sweep::of("image prune --force")
        .after("image import --name it tiny.tar").after("image import --name it other.tar");
    prune_of_layers: Sweep::of("image prune --force")
        .after_kill_at("image load -i three.tar", "renameat2", 5).after("store gc")
        .or_without(&["<layers 3>"]);
    gc_of_a_load: Sweep::of("store gc").after_kill_at("image load -i three.tar", "renameat", 2);

    snapshot_create: Sweep::of("snapshot create base web");
    snapshot_create_without_a_name: Sweep::of("snapshot create base");
    snapshot_create_read_only: Sweep::of("snapshot create --read-only base web");
    snapshot_create_of_a_snapshot: Sweep::of("snapshot create keep web");
    // Each of them is whole or not there; how many are is another matter.
    snapshot_create_of_many: Sweep::of("snapshot create --count 3 base")
        .or("snapshot create --count 2 base").or("snapshot create base");
    snapshot_create_of_a_subvolume: Sweep::of("snapshot create BESIDE web");
    snapshot_create_of_a_running_container: Sweep::of("snapshot create web copy").beside("run --name web base sleep 600")
        // The cgroup of v1's freezer is made when a container is frozen for the first time, and goes with it.
        .or_as_if("it was frozen and went on", |scene| {
            scene.ok("pause web");
            scene.ok("unpause web");
        });
    snapshot_prune: Sweep::of("snapshot prune --force --filter name=one --filter name=two --keep-last 1")
        .after("snapshot create base one").after("snapshot create base two").after("snapshot create base three");
    snapshot_rm: Sweep::of("snapshot rm web").after("snapshot create base web");
    snapshot_rm_of_two: Sweep::of("snapshot rm one two")
        .after("snapshot create base one").after("snapshot create base two").or("snapshot rm one");

    rollback: Sweep::of("snapshot rollback web keep").after("create --name web base true");
    rollback_of_a_snapshot: Sweep::of("snapshot rollback web base").after("snapshot create keep web");
    keep: Sweep::of("run --rm --network none --keep web base true");
    keep_of_what_failed: Sweep::of("run --rm=on-success --network none base mkdir /made /proc/no/no").ending(1);
    trash_restore: Sweep::of("snapshot trash restore TRASHED found")
        .after_failing("run --rm=on-success base mkdir /made /proc/no/no", 1);
    trash_empty: Sweep::of("snapshot trash empty --force")
        .after_failing("run --rm=on-success base mkdir /made /proc/no/no", 1);
    bench_snapshot: Sweep::of("bench snapshot --source base --count 1 --live 1 --against overlay,btrfs-progs");
    bench_snapshot_interrupted: Sweep::of("bench snapshot --source base --count 1 --live 1 --against overlay").interrupted();
    bench_import: Sweep::of("bench import --count 1 tiny.tar");
    bench_run: Sweep::of("bench run --count 1 base true");

    commit: Sweep::of("commit keep new");
    commit_of_the_same_tree: Sweep::of("commit keep new").after("commit keep it");
    commit_of_a_tree_without_an_image: Sweep::of("commit keep2 new")
        .after("image import --name it tiny.tar").after("snapshot create it keep2").after("image rm it");
    commit_squashed: Sweep::of("commit --squash keep new");
    commit_of_a_running_container: Sweep::of("commit web new").beside("run --name web base sleep 600")
        .or_as_if("it was frozen and went on", |scene| {
            scene.ok("pause web");
            scene.ok("unpause web");
        });
    commit_interrupted: Sweep::of("commit keep new").interrupted();

    create: Sweep::of("create --name web base true");
    run: Sweep::of("run --name web base true").or("create --name web base true");
    run_whoever: Sweep::of("run --name web base true").whoever().or("create --name web base true")
        .or_as_if("its monitor was killed", |scene| scene.kill_monitor_of("run --name web base true"));
    run_detached: Sweep::of("run -d --name web base true").or("create --name web base true");
    run_detached_whoever: Sweep::of("run -d --name web base true").whoever().or("create --name web base true")
        .or_as_if("its monitor was killed", |scene| scene.kill_monitor_of("run -d --name web base true"));
    run_detached_rm: Sweep::of("run -d --rm base true");
    run_detached_rm_whoever: Sweep::of("run -d --rm base true").whoever();
    run_rm: Sweep::of("run --rm base true");
    run_rm_whoever: Sweep::of("run --rm base true").whoever();
    run_rm_from_the_pool: Sweep::of("run --rm --pool on base true").after("run --rm --pool on base true");
    run_rm_filling_the_pool: Sweep::of("run --rm --pool on base true");
    run_rm_filling_the_pool_whoever: Sweep::of("run --rm --pool on base true").whoever();
    run_rm_with_init: Sweep::of("run --rm --init base true");
    run_rm_with_limits: Sweep::of("run --rm --memory 64m --cpus 1 base true");
    run_in_place: Sweep::of("run --in-place keep true");
    run_in_place_whoever: Sweep::of("run --in-place -v /bin --memory 64m keep true").whoever();
    run_rm_of_a_snapshot: Sweep::of("run --rm --name web keep true");
    start: Sweep::of("start -a web").after("create --name web base true");
    start_whoever: Sweep::of("start web").whoever().after("create --name web base true")
        .or_as_if("its monitor was killed", |scene| scene.kill_monitor_of("start web"));
    stop: Sweep::of("stop -t 0 web").beside("run --name web base sleep 600");
    start_again: Sweep::of("start -a web").after("run --name web base true");
    update: Sweep::of("update --memory 64m --cpus 1 web").after("create --name web base true");
    update_of_a_running_one: Sweep::of("update --memory 64m web")
        .beside("run --name web --memory 128m base sleep 600");
    rename: Sweep::of("rename web shop").after("create --name web base true");
    rename_of_a_running_one: Sweep::of("rename web shop").beside("run --name web base sleep 600");
    restart: Sweep::of("restart web").after("run --name web base true");
    // A container that is frozen is no matter of the store's.
    pause: Sweep::of("pause web").beside("run --name web base sleep 600").signless()
        .or_as_if("it was frozen and went on", |scene| {
            scene.ok("pause web");
            scene.ok("unpause web");
        });
    unpause: Sweep::of("unpause web").after("run -d --name web base sleep 600").after("pause web").signless();
    exec: Sweep::of("exec web true").beside("run --name web base sleep 600");
    healthcheck: Sweep::of("healthcheck run web")
        .beside("run --name web --health-cmd true --health-interval 1h base sleep 600");
    cp: Sweep::of("cp tree web:/srv").after("create --name web base true");
    kill: Sweep::of("kill web").beside("run --name web base sleep 600");
    create_with_a_volume: Sweep::of("create --name web -v data:/bin base true")
        .or("volume create data")
        .or_as_if("its container was not made", |scene| {
            scene.ok("create --name web -v data:/bin base true");
            scene.ok("rm web");
        });
    create_with_a_volume_that_is_there: Sweep::of("create --name web -v data:/bin base true").after("volume create data")
        .or_as_if("its container was not made", |scene| {
            scene.ok("create --name web -v data:/bin base true");
            scene.ok("rm web");
        });
    run_rm_with_volumes: Sweep::of("run --rm -v data:/srv -v /bin base true").after("volume create data");
    run_detached_rm_with_a_volume_whoever: Sweep::of("run -d --rm -v /bin base true").whoever();
    run_rm_in_a_network: Sweep::of("run --rm --network bridge base true");
    run_detached_rm_in_a_network_whoever: Sweep::of("run -d --rm --network bridge -p 127.0.0.1::80 base true").whoever();
    network_create: Sweep::of("network create front");
    network_rm: Sweep::of("network rm front").after("network create front");
    network_create_ptp: Sweep::of("network create --driver ptp --subnet 10.77.0.0/24 front");
    network_rm_of_two: Sweep::of("network rm front back")
        .after("network create front").after("network create back").or("network rm front");
    network_rm_with_a_container: Sweep::of("network rm --force front")
        .after("network create front").after("create --name web --network front base true").or("rm web");
    network_prune: Sweep::of("network prune --force").after("network create front");
    create_in_a_network: Sweep::of("create --name web --network front base true").after("network create front");
    volume_create: Sweep::of("volume create data");
    volume_create_without_a_name: Sweep::of("volume create");
    volume_create_nocow: Sweep::of("volume create --nocow data");
    volume_rm: Sweep::of("volume rm data").after("volume create data");
    volume_rm_of_two: Sweep::of("volume rm data more")
        .after("volume create data").after("volume create more").or("volume rm data");
    volume_rm_with_a_container: Sweep::of("volume rm --force data")
        .after("create --name web -v data:/bin base true").or("rm web");
    volume_prune: Sweep::of("volume prune --force").after("volume create data");
    rm_with_a_volume: Sweep::of("rm web").after("create --name web -v /bin base true");
    rm_and_its_volume: Sweep::of("rm -v web").after("create --name web -v /bin base true");
    rm: Sweep::of("rm web").after("create --name web base true");
    rm_of_two: Sweep::of("rm one two")
        .after("create --name one base true").after("create --name two base true").or("rm one");
    rm_force_of_a_running_one: Sweep::of("rm --force web").beside("run --name web base sleep 600")
        .or_as_if("its tupper was killed", Scene::kill_beside);

    // Cleaning up is a command like others.
    gc_of_an_import: Sweep::of("store gc").after_kill("image import --name new tiny.tar", "fsetxattr");
    gc_of_a_snapshot: Sweep::of("store gc").after_kill("snapshot create base web", "ioctl");
    gc_of_a_run: Sweep::of("store gc").after_kill("run --rm --name web base true", "execve");
    gc_of_a_removal: Sweep::of("store gc").after("image import --name it tiny.tar").after_kill("image rm it", "unlinkat");
    the_next_command: Sweep::of("snapshot create base web").after_kill("run --rm --name web base true", "execve");

    store_init: Sweep::of("store init").on(Btrfs);
    store_init_embedded: Sweep::of("store init").on(Ext4);
    // The next command that writes would make another store.
    store_init_on_a_device: Sweep::of("store init --force --device DEVICE").on(Ext4).signless();
    store_umount_of_a_device: Sweep::of("store umount").on(Ext4).after("store init --force --device DEVICE");
    mount_of_a_device: Sweep::of("image ls").on(Ext4).after("store init --force --device DEVICE").after("store umount");
    first_import: Sweep::of("image import --name new tiny.tar").on(Btrfs).or("store init");
    first_import_embedded: Sweep::of("image import --name new tiny.tar").on(Ext4).or("store init");
    store_umount: Sweep::of("store umount").on(Ext4).after("store init");
    store_grow: Sweep::of("store grow +64M").on(Ext4).after("store init");
    mount_by_a_listing: Sweep::of("image ls").on(Ext4).after("store init").after("store umount");
    mount_by_an_import: Sweep::of("image import --name new tiny.tar").on(Ext4).after("store init").after("store umount");
}

/// A sweep can fail: what is not cleaned up is seen.
#[test]
fn what_is_left_is_a_violation() {
    let (points, violations) = Sweep::of("snapshot create base web").points(every, &[Cleaning::None]);
    assert!(violations.len() > points / 2, "{points} points: {violations:#?}");
    assert!(violations.iter().any(|violation| violation.contains("+ entry fs/snapshots/<new>")), "{violations:#?}");
    assert!(violations.iter().any(|violation| violation.contains("+ entry fs/names/web -> ")), "{violations:#?}");
}
