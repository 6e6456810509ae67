//! An unfinished snapshot is never taken for a finished one, and a manifest is never incomplete.

use std::fs;

use reqwest::Method;

use crate::harness::{Clock, Fault, FaultTest, HookDir, SNAPSHOTS, World, snapshot_folders, text};
use crate::needs_root;

#[test]
fn unfinished_snapshot_is_never_adopted() {
    needs_root!();
    let (clock, hooks) = (Clock::new(), HookDir::new());
    let mut world = World::with(512, |settings| {
        clock.load_into(settings);
        settings.sections = hooks.section("");
    });
    world.define_vm(&[("a.img", 1 << 20)]);
    let client = world.lasting_client();
    let [finished, marked] = std::array::from_fn(|_| client.take_snapshot_id());
    // The service dies after the clones and before the manifest.
    hooks.put("die", "[ $2 = pre ] || kill_service");
    assert!(client.try_send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"))).is_err());
    let mut folders = snapshot_folders(&world.repository).into_iter();
    let unfinished = folders.find(|path| !path.ends_with(&finished) && !path.ends_with(&marked));
    let unfinished = unfinished.expect("no unfinished folder");
    assert!(unfinished.join("a.img").exists() && !unfinished.join(".manifest.json").exists());
    assert!(unfinished.join(".making").exists());
    // As after a crash between writing the manifest and removing the marker.
    fs::write(world.snapshot_folder(&marked).join(".making"), "").unwrap();

    fs::remove_file(world.exporter.db_file()).unwrap();
    world.exporter.settings().sections = String::new();
    clock.pass(24 * 30);
    world.exporter.restart();
    let client = world.lasting_client();
    let adoption = client.post("/adopt?manifests=true").ok();
    let adopted: Vec<_> = adoption["adopted"].as_array().unwrap().iter().map(|one| text(&one["id"])).collect();
    assert_eq!(adopted, [finished], "{adoption}");
    let left = adoption["left"].as_array().unwrap();
    assert_eq!(left.len(), 2, "{adoption}");
    assert!(left.iter().all(|one| text(&one["reason"]).contains(".making")), "{adoption}");
}

#[test]
fn manifest_is_complete_or_missing_at_every_step() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    let mut seen = 0;
    for n in 1.. {
        if let Some(answer) = test.request_with_fault(n, Fault::KillBefore, Method::POST, SNAPSHOTS) {
            answer.ok();
            break;
        }
        let manifests = test.world.snapshot_files().into_iter().filter(|path| path.ends_with(".manifest.json"));
        for path in manifests {
            let text = fs::read(&path).unwrap();
            serde_json::from_slice::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("step {n}: {error}"));
            seen += 1;
        }
        test.restart(Fault::KillBefore);
        // Killed between the commit and the answer: the snapshot exists.
        if let Some(id) = test.check(&format!("step {n}"), Some(&test.disk_contents())) {
            test.delete(&id);
        }
    }
    assert!(seen > 0);
}
