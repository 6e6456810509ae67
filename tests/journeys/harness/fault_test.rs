//! A service with injected faults, and a record of the snapshots that it must preserve.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::Value;

use super::{Answer, Client, Fault, SNAPSHOTS, Settings, Shim, VM, Volume, World, ids, perhaps_within, write_at};

const DISKS: [&str; 2] = ["a.img", "b.img"];
const SIZE: u64 = 256 << 10;

/// The contents of the disks.
pub type Bytes = [Vec<u8>; 2];

pub struct FaultTest {
    pub world: World,
    pub client: Client,
    pub shim: Shim,
    pub disks: Vec<PathBuf>,
    /// The snapshots whose creation was confirmed to a client, with their expected contents.
    pub confirmed: BTreeMap<String, Bytes>,
    /// Snapshots of another service, which this one does not know.
    pub strangers: Vec<String>,
}

impl FaultTest {
    /// A VM with two disks and one snapshot; `change` is applied to the settings of the service.
    pub fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(Volume::xfs(512), change)
    }

    pub fn on(volume: Volume, change: impl FnOnce(&mut Settings)) -> Self {
        let shim = Shim::new();
        let world = World::on(volume, |settings| {
            shim.load_into(settings);
            change(settings);
        });
        let disks = world.define_vm(&DISKS.map(|name| (name, SIZE)));
        let client = world.client();
        let mut test = Self { world, client, shim, disks, confirmed: BTreeMap::new(), strangers: Vec::new() };
        test.write(0xaa);
        // A later power cut loses only what the service itself writes.
        test.world.volume.sync();
        test.take_snapshot();
        test
    }

    pub fn write(&self, byte: u8) {
        for (disk, add) in self.disks.iter().zip(0..) {
            write_at(disk, 8192 * u64::from(byte % 16), &[byte.wrapping_add(add); 8192]);
        }
    }

    pub fn disk_contents(&self) -> Bytes {
        [0, 1].map(|i| fs::read(&self.disks[i]).unwrap())
    }

    /// Takes a snapshot without a fault.
    pub fn take_snapshot(&mut self) -> String {
        let contents = self.disk_contents();
        let id = self.client.take_snapshot_id();
        self.confirmed.insert(id.clone(), contents);
        id
    }

    /// Deletes a snapshot without a fault.
    pub fn delete(&mut self, id: &str) {
        assert_eq!(self.client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
        self.confirmed.remove(id);
        assert!(!self.listed().contains(&id.to_owned()));
    }

    pub fn listed(&self) -> Vec<String> {
        ids(&self.client.get(SNAPSHOTS).ok())
    }

    /// Sends a request with a fault at the `n`-th step; returns the answer, or `None` if the service was killed.
    pub fn request_with_fault(&mut self, n: u32, fault: Fault, method: Method, path: &str) -> Option<Answer> {
        self.shim.arm(n, fault);
        let request = self.client.request(method, &format!("/api/v1{path}"));
        let answer = self.client.try_send(request).ok();
        if answer.is_none() {
            let status = self.world.exporter.wait(Duration::from_secs(20));
            let killed = self.world.exporter.killed_by() == Some(Signal::SIGKILL as i32);
            assert!(killed, "the service ended, but not by the injected SIGKILL: {status}");
        }
        self.shim.disarm();
        answer
    }

    /// Restarts the service; after `KillAfter` a power cut comes first.
    pub fn restart(&mut self, fault: Fault) {
        if matches!(fault, Fault::KillAfter) {
            self.world.volume.cut_power();
        }
        self.world.exporter.restart();
        self.client = self.world.client();
    }

    /// Checks that all confirmed snapshots exist and are complete, and that no other files exist, except possibly
    /// one more complete snapshot with the contents `optional`. Returns the id of that one.
    pub fn check(&self, what: &str, optional: Option<&Bytes>) -> Option<String> {
        let listed = self.listed();
        let vm: Value = self.client.get(&format!("/vms/{VM}")).ok();
        assert_eq!(vm["snapshots"], serde_json::json!(listed), "{what}");
        let mut files = Vec::new();
        let mut extra = None;
        for id in &listed {
            let expected = self.confirmed.get(id).or_else(|| {
                assert!(extra.replace(id.clone()).is_none(), "{what}: {listed:?}");
                optional
            });
            let expected = expected.unwrap_or_else(|| panic!("{what}: an unexpected snapshot"));
            self.client.get(&format!("{SNAPSHOTS}/{id}")).ok();
            for (name, bytes) in DISKS.iter().zip(expected) {
                assert!(self.client.disk(id, name) == *bytes, "{what}: {name} of {id} has the wrong content");
            }
            let folder = self.world.snapshot_folder(id);
            let manifest = fs::read(folder.join(".manifest.json")).unwrap();
            let manifest: Value = serde_json::from_slice(&manifest).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_eq!(manifest["snapshot_id"], *id, "{what}");
            files.extend(files_in(folder));
        }
        for id in &self.strangers {
            assert!(!listed.contains(id), "{what}: {id} was not adopted");
            files.extend(files_in(self.world.snapshot_folder(id)));
        }
        for id in self.confirmed.keys() {
            assert!(listed.contains(id), "{what}: {id} was confirmed and is gone");
        }
        files.sort();
        // Leftovers of a crash are removed in the background.
        perhaps_within(Duration::from_secs(60), || self.world.snapshot_files() == files);
        assert_eq!(self.world.snapshot_files(), files, "{what}");
        extra
    }
}

/// The folder of a snapshot, and its files.
fn files_in(folder: PathBuf) -> [PathBuf; 4] {
    let [manifest, a, b] = [".manifest.json", "a.img", "b.img"].map(|name| folder.join(name));
    [manifest, a, b, folder]
}
