//! Four repositories, two services that share them, and the snapshots whose contents are known.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::tally::{Cause, Moment, Tally};
use crate::harness::{
    Certificates, Client, Clock, Device, Exporter, HookDir, MB, Manager, Settings, Volume, define_vm, eventually, ids,
    make_disk, make_repository, snapshot_folders,
};

pub const DISK_SIZE: u64 = 4 * MB;

/// A repository and what can happen to it.
pub struct Place {
    pub volume: Volume,
    pub device: Option<Device>,
    pub repository: PathBuf,
    pub vms: Vec<Vm>,
    /// A fault of this repository.
    pub trouble: Cause,
}

pub struct Vm {
    pub id: String,
    /// The backup client creates and deletes its snapshots.
    pub is_backed_up: bool,
    pub disk: PathBuf,
    pub disk_name: String,
}

/// A snapshot that a service has confirmed, with the content of its disk.
pub struct Known {
    pub service: usize,
    pub place: usize,
    pub vm: usize,
    pub id: String,
    pub content: Vec<u8>,
    /// Set before the deletion is requested.
    pub deleted: AtomicBool,
}

/// The fields are dropped in this order: the services before their file systems.
pub struct Site {
    pub services: [Exporter; 2],
    pub places: Vec<Place>,
    /// Oldest first.
    pub known: Mutex<Vec<Arc<Known>>>,
    pub tally: Tally,
    pub certificates: Certificates,
    /// It serves until this is dropped.
    _manager: Manager,
    /// The hooks and the clock of the first service.
    pub hooks: HookDir,
    pub failing_hooks: Cause,
    pub clock: Clock,
    pub leap: Cause,
}

impl Site {
    pub fn new() -> Self {
        let sizes = [1024, 512, 512, 320];
        let mut places: Vec<Place> = (0..sizes.len()).map(|number| Place::new(number, sizes[number])).collect();
        places[faulty::HANGING].device = Some(places[faulty::HANGING].volume.behind_a_device());
        let certificates = Certificates::new();
        let manager = Manager::start(&certificates);
        let hooks = HookDir::new();
        hooks.put("10-sometimes", "[ ! -e $OUT/fail ]");
        let freeze =
            r#"[ "$2" = pre ] && touch "$OUT/frozen-$EXPORTER_SNAPSHOT" || rm -f "$OUT/frozen-$EXPORTER_SNAPSHOT""#;
        hooks.put("20-freeze", freeze);
        let clock = Clock::new();
        let repositories: Vec<&Path> = places.iter().map(|place| place.repository.as_path()).collect();
        let settings = || Settings::new(&certificates, &manager, &repositories);
        let mut first = settings();
        first.sections = hooks.section("post_on_failure = true") + "[metrics]\nenabled = true\n";
        clock.load_into(&mut first);
        let services = [Exporter::start(first), Exporter::start(settings())];
        Self {
            services,
            places,
            known: Mutex::default(),
            tally: Tally::default(),
            certificates,
            _manager: manager,
            hooks,
            failing_hooks: Cause::default(),
            clock,
            leap: Cause::default(),
        }
    }

    pub fn client(&self, service: usize) -> Client {
        Client::lasting(&self.services[service], &self.certificates)
    }

    pub fn vm(&self, known: &Known) -> &Vm {
        &self.places[known.place].vms[known.vm]
    }

    /// The snapshots of a VM at a service that are not deleted, oldest first.
    pub fn snapshots_of(&self, service: usize, place: usize, vm: usize) -> Vec<Arc<Known>> {
        let is_its = |known: &&Arc<Known>| {
            (known.service, known.place, known.vm) == (service, place, vm) && !known.deleted.load(Ordering::SeqCst)
        };
        self.known.lock().unwrap().iter().filter(is_its).cloned().collect()
    }

    /// Whether an error with this code is explained, for a request about a VM of this place that began at `moments`.
    pub fn explains(&self, code: &str, place: usize, moments: &Moments) -> bool {
        // Two services work on the same VMs, and the number of downloads and comparisons is limited.
        let always = ["vm_busy", "throttled", "base_unsettled", "snapshot_being_checked"];
        let in_trouble = ["repository_unavailable", "insufficient_space", "io_error", "clone_timeout", "broken"];
        always.contains(&code)
            || self.places[place].trouble.acted_since(moments.place) && in_trouble.contains(&code)
            || self.failing_hooks.acted_since(moments.hooks) && code == "hook_failed"
    }

    pub fn moments(&self, place: usize) -> Moments {
        Moments { place: self.places[place].trouble.now(), hooks: self.failing_hooks.now() }
    }

    /// Deletes all snapshots. Each service has to list exactly those that it has confirmed.
    pub fn delete_all(&self) {
        let all = std::mem::take(&mut *self.known.lock().unwrap());
        for service in [0, 1] {
            let client = self.client(service);
            for (number, place) in self.places.iter().enumerate() {
                for (vm_number, vm) in place.vms.iter().enumerate() {
                    let route = format!("/vms/{}/snapshots", vm.id);
                    let listed: BTreeSet<String> =
                        ids(&client.get(&format!("{route}?chunks=false")).ok()).into_iter().collect();
                    let its = all
                        .iter()
                        .filter(|known| (known.service, known.place, known.vm) == (service, number, vm_number));
                    // A deletion that failed may have removed the snapshot or not.
                    let (deleted, kept): (Vec<_>, Vec<_>) = its.partition(|known| known.deleted.load(Ordering::SeqCst));
                    for known in &kept {
                        assert!(listed.contains(&known.id), "{route} of service {service} lost {}", known.id);
                    }
                    let expected = kept.iter().chain(&deleted);
                    let unknown =
                        listed.iter().find(|id| !vm.is_backed_up && expected.clone().all(|known| known.id != **id));
                    assert_eq!(unknown, None, "{route} of service {service} lists a snapshot that was not confirmed");
                    for id in listed {
                        eventually("the snapshot is deleted", || {
                            matches!(client.delete(&format!("{route}/{id}")).status, 200 | 404)
                        });
                    }
                }
            }
        }
    }

    pub fn assert_nothing_is_left(&self) {
        for place in &self.places {
            eventually("all files are removed", || snapshot_folders(&place.repository).is_empty());
        }
        let client = self.client(0);
        eventually("all post hooks have run", || client.pending_hooks().as_array().is_some_and(Vec::is_empty));
        let left = fs::read_dir(self.hooks.at("")).unwrap().map(|entry| entry.unwrap().file_name());
        let frozen: Vec<_> = left.filter(|name| name.to_string_lossy().starts_with("frozen-")).collect();
        assert!(frozen.is_empty(), "without a post hook: {frozen:?}");
        for service in &self.services {
            let log = service.log();
            let panic = log.lines().find(|line| line.contains("panicked"));
            assert_eq!(panic, None);
        }
    }
}

/// The repositories with faults.
pub mod faulty {
    pub const HANGING: usize = 1;
    pub const DYING: usize = 2;
    pub const FULL: usize = 3;
}

/// When a request began.
pub struct Moments {
    pub place: Moment,
    pub hooks: Moment,
}

impl Place {
    fn new(number: usize, megabytes: u64) -> Self {
        let volume = Volume::xfs(megabytes);
        let repository = make_repository(&volume.mount_point, &format!("0004fb000003000000000000000000{number:02}"));
        // The repository without faults has a VM for the backup client of each service.
        let count = if number == 0 { 4 } else { 2 };
        let vm = |serial: usize| {
            let id = format!("0004fb00000600000000000000000{number}{serial:02}");
            let disk_name = format!("disk-{number}-{serial}.img");
            let disk = make_disk(&repository, &disk_name, DISK_SIZE);
            define_vm(&repository, &id, std::slice::from_ref(&disk));
            Vm { id, is_backed_up: serial >= 2, disk, disk_name }
        };
        let vms = (0..count).map(vm).collect();
        // The death of a repository loses what was not written back.
        volume.sync();
        Self { volume, device: None, repository, vms, trouble: Cause::default() }
    }

    /// Uses up the space of the file system.
    pub fn fill(&self) {
        let filler = fs::File::create(self.repository.join("filler")).unwrap();
        for size in [16 * MB, MB, 64 << 10] {
            let mut end = filler.metadata().unwrap().len();
            while nix::fcntl::posix_fallocate(&filler, end as i64, size as i64).is_ok() {
                end += size;
            }
        }
    }

    pub fn remove_filler(&self) {
        fs::remove_file(self.repository.join("filler")).unwrap();
    }
}
