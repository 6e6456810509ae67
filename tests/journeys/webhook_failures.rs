//! What webhooks hear of creations and deletions that fail or are killed: each is reported, with one id and one cause.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use nix::errno::Errno;
use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Certificates, Fault, FaultTest, HookDir, MB, OTHER_VM, Receiver, SNAPSHOTS, VM, World, define_vm, eventually,
    make_disk, run, snapshot_folders, text,
};
use crate::needs_root;

/// A service with hooks and a webhook for all events.
fn scene(hooks: &HookDir, lines: &str, policy: &str) -> (Receiver, Certificates, World) {
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let sections = hooks.section(lines) + &receiver.section(&certificates, "alerts", "");
    let world = World::with(512, |settings| {
        settings.sections = sections;
        settings.policy = policy.to_owned();
    });
    world.define_vm(&[("a.img", MB)]);
    (receiver, certificates, world)
}

/// The deliveries of events of this kind: for each snapshot the events, each with its id and the time at which it was
/// made.
fn deliveries(receiver: &Receiver, kind: &str) -> BTreeMap<String, BTreeSet<(String, String)>> {
    let mut found: BTreeMap<String, BTreeSet<_>> = BTreeMap::new();
    for request in receiver.requests() {
        let (event, data) = (&request["body"], &request["body"]["data"]);
        if event["event"] == kind {
            let snapshot = if data["snapshot_id"].is_string() { &data["snapshot_id"] } else { &data["id"] };
            found.entry(text(snapshot)).or_default().insert((text(&event["id"]), text(&event["time"])));
        }
    }
    found
}

/// Each of these snapshots has one event.
fn assert_once(deliveries: &BTreeMap<String, BTreeSet<(String, String)>>, what: &str) {
    for (snapshot, events) in deliveries {
        let ids: Vec<_> = events.iter().map(|(id, _)| id.clone()).collect();
        assert_eq!(ids, [format!("{snapshot}-{what}")], "{snapshot} has several events");
    }
}

fn wait_for_empty_queue(world: &World) {
    eventually("nothing waits", || world.client().get("/status").ok()["webhooks"][0]["queued"] == 0);
}

#[test]
fn failed_creation_is_reported_once_with_its_cause_also_if_it_is_undone_later() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, mut world) = scene(&hooks, "", "max_snapshots_per_vm = 1");
    let client = world.client();
    let made = client.take_snapshot_id();
    // Refused before it began: only the client hears of it.
    assert_eq!(client.post(SNAPSHOTS).error(409), "too_many_snapshots");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{made}")).status, 200);
    // Neither the clone nor its removal is possible.
    let folder = format!("{}/CoriolisSnapshots/$EXPORTER_SNAPSHOT", world.repository.display());
    hooks.put("block", &format!("[ $2 = post ] || chattr +i {folder}/a.img"));
    assert_eq!(client.post(SNAPSHOTS).error(500), "io_error");
    let event = receiver.wait_for("snapshot.failed");
    let (id, data) = (text(&event["data"]["snapshot_id"]), &event["data"]);
    assert_eq!((&data["vm_id"], &data["user"], &data["code"]), (&json!(VM), &json!("admin"), &json!("io_error")));
    let file = world.snapshot_folder(&id).join("a.img");
    assert!(file.exists(), "the creation was undone");
    world.exporter.restart();
    assert!(world.exporter.log().contains("removing an unfinished snapshot"));
    assert!(file.exists(), "the creation was undone");
    run(std::process::Command::new("chattr").arg("-i").arg(&file));
    hooks.remove("block");
    world.exporter.restart();
    assert!(!file.exists());
    let last = world.client().take_snapshot_id();
    receiver.wait_for_where("snapshot.created", |data| data["id"] == json!(last));
    let failed = deliveries(&receiver, "snapshot.failed");
    assert_eq!(failed.keys().collect::<Vec<_>>(), [&id]);
    assert_once(&failed, "failed");
}

#[test]
fn failure_of_a_group_is_reported_for_each_vm() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, world) = scene(&hooks, "", "");
    define_vm(&world.repository, OTHER_VM, &[make_disk(&world.repository, "b.img", MB)]);
    hooks.put("refuse", &format!("[ $2 = post ] || [ $EXPORTER_VM != {OTHER_VM} ]"));
    let client = world.client();
    let request = client.request(Method::POST, "/api/v1/snapshots").body(json!({"vms": [VM, OTHER_VM]}).to_string());
    assert_eq!(client.send(request).error(502), "hook_failed");
    let failed = || receiver.events().into_iter().filter(|event| event["event"] == "snapshot.failed");
    eventually("both are reported", || failed().count() == 2);
    let vms: BTreeSet<_> = failed().map(|event| text(&event["data"]["vm_id"])).collect();
    assert_eq!(vms, BTreeSet::from([VM, OTHER_VM].map(str::to_owned)));
    assert!(failed().all(|event| event["data"]["code"] == "hook_failed"));
    let deliveries = deliveries(&receiver, "snapshot.failed");
    assert_eq!(deliveries.len(), 2, "{deliveries:?}");
    assert_once(&deliveries, "failed");
}

#[test]
fn creation_that_timed_out_is_reported_once_also_if_the_service_ends_before_the_clone() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, mut world) = scene(&hooks, "timeout = \"2s\"", "");
    let repository = world.repository.display();
    hooks.put("freeze", &format!("[ $2 = post ] || fsfreeze --freeze {repository}"));
    let volume = &world.volume;
    let frozen = volume.thaw_on_drop();
    assert_eq!(world.client().post(SNAPSHOTS).error(503), "clone_timeout");
    let event = receiver.wait_for("snapshot.failed");
    assert_eq!(event["data"]["code"], "clone_timeout");
    // The clone ends now, in the service or with it.
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(world.exporter.pid().try_into().unwrap()),
        nix::sys::signal::SIGKILL,
    )
    .unwrap();
    drop(frozen);
    hooks.remove("freeze");
    world.exporter.restart();
    let last = world.client().take_snapshot_id();
    receiver.wait_for_where("snapshot.created", |data| data["id"] == json!(last));
    let failed = deliveries(&receiver, "snapshot.failed");
    assert_eq!(failed.keys().collect::<Vec<_>>(), [&text(&event["data"]["snapshot_id"])]);
    assert_once(&failed, "failed");
}

/// Kills the service at each step of a creation, until a step is not reached. Each creation that has begun is reported
/// once.
fn kill_at_every_step(receiver: &Receiver, hooks: &HookDir, test: &mut FaultTest) {
    let mut begun = BTreeSet::new();
    for n in 1.. {
        wait_for_empty_queue(&test.world);
        let answer = test.request_with_fault(n, Fault::KillBefore, Method::POST, SNAPSHOTS);
        begun.extend(hooks.take("begun").lines().map(str::to_owned));
        let folders = snapshot_folders(&test.world.repository).into_iter();
        begun.extend(folders.map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()));
        // Also after an answer: the delivery of the event may have reached the step.
        test.restart(Fault::KillBefore);
        if answer.is_some() {
            assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
            break;
        }
    }
    eventually("each creation is reported", || {
        let (made, failed) = (deliveries(receiver, "snapshot.created"), deliveries(receiver, "snapshot.failed"));
        begun.iter().all(|id| made.contains_key(id) != failed.contains_key(id))
    });
    wait_for_empty_queue(&test.world);
    let (made, failed) = (deliveries(receiver, "snapshot.created"), deliveries(receiver, "snapshot.failed"));
    assert_eq!(BTreeSet::from_iter(test.listed()), made.keys().cloned().collect());
    assert!(made.keys().all(|id| !failed.contains_key(id)), "a snapshot was made and has failed");
    assert_once(&made, "created");
    assert_once(&failed, "failed");
}

fn fault_scene(hooks: &HookDir) -> (Receiver, Certificates, FaultTest) {
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let sections = hooks.section("") + &receiver.section(&certificates, "alerts", "");
    let test = FaultTest::new(|settings| settings.sections = sections);
    (receiver, certificates, test)
}

#[test]
fn events_survive_a_kill_at_every_step() {
    needs_root!();
    let hooks = HookDir::new();
    hooks.put("note", "[ $2 = post ] || echo $EXPORTER_SNAPSHOT >> $OUT/begun");
    let (receiver, _certificates, mut test) = fault_scene(&hooks);
    kill_at_every_step(&receiver, &hooks, &mut test);
    // Deletions, killed at the first steps.
    for n in 1..8 {
        let id = test.take_snapshot();
        test.request_with_fault(n, Fault::KillBefore, Method::DELETE, &format!("{SNAPSHOTS}/{id}"));
        test.restart(Fault::KillBefore);
        let is_listed = test.listed().contains(&id);
        eventually("a deletion is reported, and nothing else is", || {
            deliveries(&receiver, "snapshot.deleted").contains_key(&id) != is_listed
        });
    }
}

#[test]
fn failed_creation_is_reported_once_after_a_kill_at_every_step() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, mut test) = fault_scene(&hooks);
    hooks.put("refuse", "[ $2 = post ] && exit; echo $EXPORTER_SNAPSHOT >> $OUT/begun; exit 1");
    kill_at_every_step(&receiver, &hooks, &mut test);
}

#[test]
fn snapshot_without_files_is_reported_when_its_record_is_removed() {
    needs_root!();
    let hooks = HookDir::new();
    let (receiver, _certificates, mut test) = fault_scene(&hooks);
    let mut ids = BTreeSet::new();
    // Each step fails once, until a step is not reached.
    for n in 1.. {
        let id = test.take_snapshot();
        wait_for_empty_queue(&test.world);
        // First, because the service may look at any time.
        test.shim.arm(n, Fault::Fail(Errno::ENOSPC));
        fs::remove_dir_all(test.world.snapshot_folder(&id)).unwrap();
        // Each request repeats what has failed.
        eventually("the snapshot is gone", || {
            test.client.get(&format!("{SNAPSHOTS}/{id}"));
            !test.listed().contains(&id)
        });
        let is_over = !test.shim.fault_occurred();
        test.shim.disarm();
        test.confirmed.remove(&id);
        ids.insert(id);
        if is_over {
            assert!(n > 3, "only {n} steps: the shim does not see the calls of the service");
            break;
        }
    }
    wait_for_empty_queue(&test.world);
    let deleted = deliveries(&receiver, "snapshot.deleted");
    assert_eq!(deleted.keys().collect::<Vec<_>>(), ids.iter().collect::<Vec<_>>());
    assert_once(&deleted, "deleted");
}
