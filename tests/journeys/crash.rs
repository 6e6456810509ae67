//! The service is killed at every step, with and without a power cut: confirmed snapshots are complete, others leave
//! no files.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::harness::{Fault, FaultTest, HookDir, SNAPSHOTS, text};
use crate::needs_root;

#[test]
fn snapshots_survive_a_kill_at_every_step_of_a_creation() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for n in 1.. {
            let what = format!("creation, step {n}, {fault:?}");
            test.write(n as u8);
            let contents = test.disk_contents();
            if let Some(answer) = test.request_with_fault(n, fault, Method::POST, SNAPSHOTS) {
                let id = text(&answer.ok()["id"]);
                test.confirmed.insert(id.clone(), contents);
                assert_eq!(test.check(&what, None), None);
                test.delete(&id);
                eprintln!("a creation has {} steps", n - 1);
                assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
                break;
            }
            test.restart(fault);
            // A creation without an answer has made a complete snapshot, or none.
            if let Some(id) = test.check(&what, Some(&contents)) {
                test.delete(&id);
            }
            let id = test.take_snapshot();
            assert_eq!(test.check(&format!("after {what}"), None), None);
            test.delete(&id);
        }
    }
}

#[test]
fn snapshots_survive_a_kill_at_every_step_of_a_deletion() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for n in 1.. {
            let what = format!("deletion, step {n}, {fault:?}");
            test.write(n as u8);
            let id = test.take_snapshot();
            let path = format!("{SNAPSHOTS}/{id}");
            let answer = test.request_with_fault(n, fault, Method::DELETE, &path);
            let bytes = test.confirmed.remove(&id).unwrap();
            if let Some(answer) = answer {
                assert_eq!(answer.status, 200);
                assert_eq!(test.check(&what, None), None);
                eprintln!("a deletion has {} steps", n - 1);
                assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
                break;
            }
            test.restart(fault);
            // A deletion without an answer has left a complete snapshot, or none.
            let left = test.check(&what, Some(&bytes));
            assert!(left.is_none_or(|left| left == id), "{what}");
            test.delete(&id);
            assert_eq!(test.check(&format!("after {what}"), None), None);
        }
    }
}

#[test]
fn snapshots_survive_a_kill_at_every_step_of_a_start() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    // The last step before the commit: here a rollback has most to do.
    let steps_before = |test: &mut FaultTest| {
        (1..).find(|n| {
            let answer = test.request_with_fault(*n, Fault::KillBefore, Method::POST, SNAPSHOTS);
            let manifests = test.world.snapshot_files().iter().filter(|path| path.ends_with(".manifest.json")).count();
            if answer.is_none() {
                test.restart(Fault::KillBefore);
            }
            assert!(answer.is_none(), "the creation completed before a manifest was seen");
            manifests > 1
        })
    };
    let last_made = steps_before(&mut test).unwrap();
    for fault in [Fault::KillBefore, Fault::KillAfter] {
        for n in 1.. {
            let what = format!("start, step {n}, {fault:?}");
            assert!(test.request_with_fault(last_made, Fault::KillBefore, Method::POST, SNAPSHOTS).is_none());
            assert!(test.world.snapshot_files().len() > 4, "nothing to roll back");
            test.shim.arm(n, fault);
            let started = test.world.exporter.try_restart();
            test.shim.disarm();
            match started {
                Ok(()) => {
                    test.client = test.world.client();
                    assert_eq!(test.check(&what, None), None);
                    eprintln!("a start has {} steps", n - 1);
                    assert!(n > 10, "only {n} steps: the shim does not see the calls of the service");
                    break;
                }
                Err(status) => assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{what}: {status}"),
            }
            test.restart(fault);
            assert_eq!(test.check(&what, None), None);
        }
    }
    test.take_snapshot();
    assert_eq!(test.check("after all", None), None);
}

#[test]
fn post_hooks_run_after_a_kill_at_every_step() {
    needs_root!();
    let hooks = HookDir::new();
    let mut test = FaultTest::new(|settings| settings.sections = hooks.section(""));
    hooks.put("freeze", "[ $2 = pre ] && touch $OUT/frozen $OUT/was-frozen || rm -f $OUT/frozen");
    let mut found_frozen = 0;
    for n in 1.. {
        let what = format!("creation with hooks, step {n}");
        let contents = test.disk_contents();
        if let Some(answer) = test.request_with_fault(n, Fault::KillBefore, Method::POST, SNAPSHOTS) {
            test.confirmed.insert(text(&answer.ok()["id"]), contents);
            break;
        }
        found_frozen += u32::from(hooks.at("frozen").exists());
        test.restart(Fault::KillBefore);
        assert!(!hooks.at("frozen").exists(), "{what}");
        if let Some(id) = test.check(&what, Some(&contents)) {
            test.delete(&id);
        }
    }
    assert!(found_frozen > 1, "only {found_frozen} kills happened while frozen, but there are two clones");
    // A pending post hook runs once.
    fs::remove_file(hooks.at("was-frozen")).unwrap();
    fs::write(hooks.at("frozen"), "").unwrap();
    test.restart(Fault::KillBefore);
    assert!(hooks.at("frozen").exists() && !hooks.at("was-frozen").exists());
    assert_eq!(test.check("after all", None), None);
}

#[test]
fn confirmed_changes_survive_a_power_cut() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    test.write(1);
    let (stays, gone, foreign) = (test.take_snapshot(), test.take_snapshot(), test.take_snapshot());
    let folder = test.world.snapshot_folder(&foreign);
    fs::write(folder.join("notes.txt"), "not ours").unwrap();
    test.world.volume.sync();
    test.write(2);
    test.take_snapshot();
    test.delete(&gone);
    // This deletion comes last: a later sync would also write it to the device.
    test.delete(&foreign);
    test.world.exporter.kill();
    test.restart(Fault::KillAfter);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"], "files of a deleted snapshot came back");
    fs::remove_dir_all(&folder).unwrap();
    assert!(test.confirmed.contains_key(&stays));
    assert_eq!(test.check("after the power cut", None), None);
}

#[test]
fn database_in_the_repository_survives_a_power_cut() {
    needs_root!();
    let mut test = FaultTest::new(|settings| settings.db_file = Some(settings.paths[0].join("exporter.db")));
    for byte in 1..4 {
        let gone = test.take_snapshot();
        test.write(byte);
        test.take_snapshot();
        test.delete(&gone);
        test.world.exporter.kill();
        test.restart(Fault::KillAfter);
        assert_eq!(test.check("after the power cut", None), None);
    }
}
