//! Killed at every step, with and without the power going: what was answered is there and whole,
//! what was not leaves nothing behind.

use std::fs;
use std::os::unix::process::ExitStatusExt;

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::harness::{Harm, Shelf, Trial, text};
use crate::needs_root;

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";

#[test]
fn killed_at_every_step_of_a_creation() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    for harm in [Harm::KillBefore, Harm::KillAfter] {
        for n in 1.. {
            let what = format!("creation, step {n}, {harm:?}");
            trial.write(n as u8);
            let now = trial.now();
            if let Some(answer) = trial.ask(n, harm, Method::POST, SNAPSHOTS) {
                let id = text(&answer.ok()["id"]);
                trial.answered.insert(id.clone(), now);
                assert_eq!(trial.check(&what, None), None);
                trial.delete(&id);
                eprintln!("a creation has {} steps", n - 1);
                assert!(n > 10, "only {n} steps: the shim does not see what the service does");
                break;
            }
            trial.restart(harm);
            // Made and not answered: there, and whole, or gone.
            if let Some(id) = trial.check(&what, Some(&now)) {
                trial.delete(&id);
            }
            let id = trial.take();
            assert_eq!(trial.check(&format!("after {what}"), None), None);
            trial.delete(&id);
        }
    }
}

#[test]
fn killed_at_every_step_of_a_deletion() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    for harm in [Harm::KillBefore, Harm::KillAfter] {
        for n in 1.. {
            let what = format!("deletion, step {n}, {harm:?}");
            trial.write(n as u8);
            let id = trial.take();
            let path = format!("{SNAPSHOTS}/{id}");
            let answer = trial.ask(n, harm, Method::DELETE, &path);
            let bytes = trial.answered.remove(&id).unwrap();
            if let Some(answer) = answer {
                assert_eq!(answer.status, 200);
                assert_eq!(trial.check(&what, None), None);
                eprintln!("a deletion has {} steps", n - 1);
                assert!(n > 10, "only {n} steps: the shim does not see what the service does");
                break;
            }
            trial.restart(harm);
            // Not answered: still there, and whole, or gone.
            let left = trial.check(&what, Some(&bytes));
            assert!(left.is_none_or(|left| left == id), "{what}");
            trial.delete(&id);
            assert_eq!(trial.check(&format!("after {what}"), None), None);
        }
    }
}

#[test]
fn killed_at_every_step_of_a_start() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    // Where there is most to take back: all is made, and the commit is about to come.
    let steps_before = |trial: &mut Trial| {
        (1..).find(|n| {
            let answer = trial.ask(*n, Harm::KillBefore, Method::POST, SNAPSHOTS);
            let manifests = trial.world.snapshot_files().iter().filter(|path| path.ends_with(".manifest.json")).count();
            if answer.is_none() {
                trial.restart(Harm::KillBefore);
            }
            assert!(answer.is_none(), "no manifest was seen before the end");
            manifests > 1
        })
    };
    let last_made = steps_before(&mut trial).unwrap();
    for harm in [Harm::KillBefore, Harm::KillAfter] {
        for n in 1.. {
            let what = format!("start, step {n}, {harm:?}");
            assert!(trial.ask(last_made, Harm::KillBefore, Method::POST, SNAPSHOTS).is_none());
            assert!(trial.world.snapshot_files().len() > 4, "nothing to take back");
            trial.shim.arm(n, harm);
            let started = trial.world.exporter.try_restart();
            trial.shim.disarm();
            match started {
                Ok(()) => {
                    trial.client = trial.world.client();
                    assert_eq!(trial.check(&what, None), None);
                    eprintln!("a start has {} steps", n - 1);
                    assert!(n > 10, "only {n} steps: the shim does not see what the service does");
                    break;
                }
                Err(status) => assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{what}: {status}"),
            }
            trial.restart(harm);
            assert_eq!(trial.check(&what, None), None);
        }
    }
    trial.take();
    assert_eq!(trial.check("after all", None), None);
}

#[test]
fn killed_at_every_step_nothing_stays_frozen() {
    needs_root!();
    let shelf = Shelf::new();
    let mut trial = Trial::new(|settings| settings.sections = shelf.section(""));
    shelf.put("freeze", "[ $2 = pre ] && touch $OUT/frozen $OUT/was-frozen || rm -f $OUT/frozen");
    let mut found_frozen = 0;
    for n in 1.. {
        let what = format!("creation with hooks, step {n}");
        let now = trial.now();
        if let Some(answer) = trial.ask(n, Harm::KillBefore, Method::POST, SNAPSHOTS) {
            trial.answered.insert(text(&answer.ok()["id"]), now);
            break;
        }
        found_frozen += u32::from(shelf.at("frozen").exists());
        trial.restart(Harm::KillBefore);
        assert!(!shelf.at("frozen").exists(), "{what}");
        if let Some(id) = trial.check(&what, Some(&now)) {
            trial.delete(&id);
        }
    }
    assert!(found_frozen > 1, "{found_frozen} kills met something frozen: the clones are two steps");
    // What is owed is called once.
    fs::remove_file(shelf.at("was-frozen")).unwrap();
    fs::write(shelf.at("frozen"), "").unwrap();
    trial.restart(Harm::KillBefore);
    assert!(shelf.at("frozen").exists() && !shelf.at("was-frozen").exists());
    assert_eq!(trial.check("after all", None), None);
}

#[test]
fn what_was_answered_outlives_the_power() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    trial.write(1);
    let (stays, gone, foreign) = (trial.take(), trial.take(), trial.take());
    let folder = trial.world.repository.join("CoriolisSnapshots").join(&foreign);
    fs::write(folder.join("notes.txt"), "not ours").unwrap();
    trial.sync();
    trial.write(2);
    trial.take();
    trial.delete(&gone);
    // Last: whatever is written out after it would bring it to the device as well.
    trial.delete(&foreign);
    trial.world.exporter.kill();
    trial.restart(Harm::KillAfter);
    let left: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes.txt"], "files of a deleted snapshot came back");
    fs::remove_dir_all(&folder).unwrap();
    assert!(trial.answered.contains_key(&stays));
    assert_eq!(trial.check("after the power cut", None), None);
}

#[test]
fn the_database_and_its_repository_lose_power_together() {
    needs_root!();
    let mut trial = Trial::new(|settings| settings.db_file = Some(settings.paths[0].join("exporter.db")));
    for byte in 1..4 {
        let gone = trial.take();
        trial.write(byte);
        trial.take();
        trial.delete(&gone);
        trial.world.exporter.kill();
        trial.restart(Harm::KillAfter);
        assert_eq!(trial.check("after the power cut", None), None);
    }
}
