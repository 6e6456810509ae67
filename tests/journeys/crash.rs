//! Killed at every step, with and without the power going: what was answered is there and whole,
//! what was not leaves nothing behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;

use crate::harness::{Answer, Client, Harm, Shim, VM, World, text, write_at};
use crate::needs_root;

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";
const DISKS: [&str; 2] = ["a.img", "b.img"];
const SIZE: u64 = 256 << 10;

/// What the disks hold.
type Bytes = [Vec<u8>; 2];

struct Trial {
    world: World,
    client: Client,
    shim: Shim,
    disks: Vec<PathBuf>,
    /// Snapshots that a client was told of, and what they have to hold.
    answered: BTreeMap<String, Bytes>,
}

impl Trial {
    /// A VM of two disks with one snapshot, and a service that can be harmed.
    fn new() -> Self {
        let shim = Shim::new();
        let world = World::with(512, |settings| shim.load_into(settings));
        let disks = world.define_vm(&DISKS.map(|name| (name, SIZE)));
        let client = world.client();
        let mut trial = Self { world, client, shim, disks, answered: BTreeMap::new() };
        trial.write(0xaa);
        trial.sync();
        trial.take();
        trial
    }

    /// Everything so far is on the device: only what the service does is at stake.
    fn sync(&self) {
        assert!(Command::new("sync").arg("--file-system").arg(&self.world.repository).status().unwrap().success());
    }

    fn write(&self, byte: u8) {
        for (disk, add) in self.disks.iter().zip(0..) {
            write_at(disk, 8192 * u64::from(byte % 16), &[byte.wrapping_add(add); 8192]);
        }
    }

    fn now(&self) -> Bytes {
        [0, 1].map(|i| fs::read(&self.disks[i]).unwrap())
    }

    /// Takes a snapshot, unharmed.
    fn take(&mut self) -> String {
        let now = self.now();
        let id = text(&self.client.take_snapshot()["id"]);
        self.answered.insert(id.clone(), now);
        id
    }

    /// Deletes a snapshot, unharmed.
    fn delete(&mut self, id: &str) {
        assert_eq!(self.client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
        self.answered.remove(id);
        assert!(!self.listed().contains(&id.to_owned()));
    }

    fn listed(&self) -> Vec<String> {
        let list = self.client.get(SNAPSHOTS).ok();
        list.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"])).collect()
    }

    /// Asks, harmed at the `n`-th step: the answer, or nothing where the service was killed.
    fn ask(&mut self, n: u32, harm: Harm, method: Method, path: &str) -> Option<Answer> {
        self.shim.arm(n, harm);
        let request = self.client.request(method, &format!("/api/v1{path}"));
        let answer = self.client.try_send(request).ok();
        if answer.is_none() {
            let status = self.world.exporter.wait(Duration::from_secs(20));
            assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "it ended, and not by our hand: {status}");
        }
        self.shim.disarm();
        answer
    }

    /// Starts the service again: after a kill that follows a step, the power has gone too.
    fn restart(&mut self, harm: Harm) {
        if matches!(harm, Harm::KillAfter) {
            self.world.xfs.cut_power();
        }
        self.world.exporter.restart();
        self.client = self.world.client();
    }

    /// Checks that the answered snapshots are there and whole, and nothing else is, but for
    /// `perhaps`, which then is whole too.
    fn check(&self, what: &str, perhaps: Option<&Bytes>) -> Option<String> {
        let listed = self.listed();
        let vm: Value = self.client.get(&format!("/vms/{VM}")).ok();
        assert_eq!(vm["snapshots"], serde_json::json!(listed), "{what}");
        let mut files = Vec::new();
        let mut extra = None;
        for id in &listed {
            let expected = self.answered.get(id).or_else(|| {
                assert!(extra.replace(id.clone()).is_none(), "{what}: {listed:?}");
                perhaps
            });
            let expected = expected.unwrap_or_else(|| panic!("{what}: a snapshot that nobody asked for"));
            self.client.get(&format!("{SNAPSHOTS}/{id}")).ok();
            for (name, bytes) in DISKS.iter().zip(expected) {
                assert!(self.client.disk(id, name) == *bytes, "{what}: {name} of {id} is not whole");
            }
            let folder = self.world.repository.join("CoriolisSnapshots").join(id);
            files.extend([".manifest.json", "a.img", "b.img"].map(|name| folder.join(name)));
            files.push(folder);
        }
        for id in self.answered.keys() {
            assert!(listed.contains(id), "{what}: {id} was answered and is gone");
        }
        files.sort();
        assert_eq!(self.world.snapshot_files(), files, "{what}");
        extra
    }
}

#[test]
fn killed_at_every_step_of_a_creation() {
    needs_root!();
    let mut trial = Trial::new();
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
    let mut trial = Trial::new();
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
    let mut trial = Trial::new();
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
fn what_was_answered_outlives_the_power() {
    needs_root!();
    let mut trial = Trial::new();
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
