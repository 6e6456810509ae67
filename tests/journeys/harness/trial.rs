//! A service that is harmed in the middle of its work, and the accounts that are kept of it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;

use super::{Answer, Client, Harm, Settings, Shim, VM, Volume, World, perhaps_within, text, write_at};

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";
const DISKS: [&str; 2] = ["a.img", "b.img"];
const SIZE: u64 = 256 << 10;

/// What the disks hold.
pub type Bytes = [Vec<u8>; 2];

/// A service that can be harmed, and what it owes its clients.
pub struct Trial {
    pub world: World,
    pub client: Client,
    pub shim: Shim,
    pub disks: Vec<PathBuf>,
    /// Snapshots that a client was told of, and what they have to hold.
    pub answered: BTreeMap<String, Bytes>,
}

impl Trial {
    /// A VM of two disks with one snapshot, and a service that can be harmed; `change` is made to
    /// its settings.
    pub fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(Volume::xfs(512), change)
    }

    /// The same on `volume`.
    pub fn on(volume: Volume, change: impl FnOnce(&mut Settings)) -> Self {
        let shim = Shim::new();
        let world = World::on(volume, |settings| {
            shim.load_into(settings);
            change(settings);
        });
        let disks = world.define_vm(&DISKS.map(|name| (name, SIZE)));
        let client = world.client();
        let mut trial = Self { world, client, shim, disks, answered: BTreeMap::new() };
        trial.write(0xaa);
        trial.sync();
        trial.take();
        trial
    }

    /// Everything so far is on the device: only what the service does is at stake.
    pub fn sync(&self) {
        assert!(Command::new("sync").arg("--file-system").arg(&self.world.repository).status().unwrap().success());
    }

    pub fn write(&self, byte: u8) {
        for (disk, add) in self.disks.iter().zip(0..) {
            write_at(disk, 8192 * u64::from(byte % 16), &[byte.wrapping_add(add); 8192]);
        }
    }

    pub fn now(&self) -> Bytes {
        [0, 1].map(|i| fs::read(&self.disks[i]).unwrap())
    }

    /// Takes a snapshot, unharmed.
    pub fn take(&mut self) -> String {
        let now = self.now();
        let id = text(&self.client.take_snapshot()["id"]);
        self.answered.insert(id.clone(), now);
        id
    }

    /// Deletes a snapshot, unharmed.
    pub fn delete(&mut self, id: &str) {
        assert_eq!(self.client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
        self.answered.remove(id);
        assert!(!self.listed().contains(&id.to_owned()));
    }

    pub fn listed(&self) -> Vec<String> {
        let list = self.client.get(SNAPSHOTS).ok();
        list.as_array().unwrap().iter().map(|snapshot| text(&snapshot["id"])).collect()
    }

    /// Asks, harmed at the `n`-th step: the answer, or nothing where the service was killed.
    pub fn ask(&mut self, n: u32, harm: Harm, method: Method, path: &str) -> Option<Answer> {
        self.shim.arm(n, harm);
        let request = self.client.request(method, &format!("/api/v1{path}"));
        let answer = self.client.try_send(request).ok();
        if answer.is_none() {
            let status = self.world.exporter.wait(Duration::from_secs(20));
            let killed = self.world.exporter.killed_by() == Some(Signal::SIGKILL as i32);
            assert!(killed, "it ended, and not by our hand: {status}");
        }
        self.shim.disarm();
        answer
    }

    /// Starts the service again: after a kill that follows a step, the power has gone too.
    pub fn restart(&mut self, harm: Harm) {
        if matches!(harm, Harm::KillAfter) {
            self.world.volume.cut_power();
        }
        self.world.exporter.restart();
        self.client = self.world.client();
    }

    /// Checks that the answered snapshots are there and whole, and nothing else is, but for
    /// `perhaps`, which then is whole too.
    pub fn check(&self, what: &str, perhaps: Option<&Bytes>) -> Option<String> {
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
            let manifest = fs::read(folder.join(".manifest.json")).unwrap();
            let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(manifest["snapshot_id"], *id, "{what}");
            files.extend([".manifest.json", "a.img", "b.img"].map(|name| folder.join(name)));
            files.push(folder);
        }
        for id in self.answered.keys() {
            assert!(listed.contains(id), "{what}: {id} was answered and is gone");
        }
        files.sort();
        // What a crash left unfinished is removed in the background.
        perhaps_within(Duration::from_secs(60), || self.world.snapshot_files() == files);
        assert_eq!(self.world.snapshot_files(), files, "{what}");
        extra
    }
}
