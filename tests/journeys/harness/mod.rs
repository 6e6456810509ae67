//! Test fixtures: a repository, a manager, the service, a client.

pub mod access;
mod agent_db;
mod backup;
mod certificates;
mod chunks;
mod client;
mod clock;
mod connection;
pub mod deadline;
mod exporter;
mod fault_test;
mod guest;
mod hook_dir;
mod hung;
mod manager;
pub mod process_stats;
pub mod prometheus;
mod proxy;
mod random;
mod receiver;
mod revocations;
mod service_manager;
mod serving;
mod shim;
mod volume;
mod wait;
mod write_log;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::{self, JoinHandle};

use reqwest::Method;

pub use agent_db::AgentDb;
pub use backup::Backup;
pub use certificates::Certificates;
pub use chunks::{Chunk, chunks, data, zero};
pub use client::{Answer, Client, ids, text};
pub use clock::Clock;
pub use connection::{
    Connection, connect, connect_from, connect_with, ends_completely, raise_descriptor_limit, silent_from, tls_config,
    tls_config_of,
};
pub use exporter::{Exporter, SECRET, Settings, free_port, release_binary};
pub use fault_test::{Bytes, FaultTest};
pub use guest::{Guest, ServerBehavior};
pub use hook_dir::{HookDir, hook_runs};
pub use hung::HungMount;
pub use manager::{Manager, ManagerBehavior, PASSWORD, USER};
pub use process_stats::{ProcessStats, memory_kib};
pub use proxy::Proxy;
pub use random::Random;
pub use receiver::{Receiver, WEBHOOK_SECRET};
pub use service_manager::ServiceManager;
pub use serving::Serving;
pub use shim::{Fault, Shim};
pub use volume::{Device, Tmpfs, Volume, output, run};
pub use wait::{eventually, eventually_ok, eventually_some, eventually_within, for_a_while, perhaps_within};
pub use write_log::WriteLog;

/// The VM that most tests use.
pub const VM: &str = "0004fb00000600000000000000000001";

/// The route of the snapshots of [`VM`].
pub const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";

pub const OTHER_VM: &str = "0004fb00000600000000000000000002";

pub const MB: u64 = 1 << 20;

/// Starts a test: skips it with a message if it cannot run here; with `CI=true` it fails instead.
#[macro_export]
macro_rules! needs {
    ($here:expr, $what:literal) => {
        $crate::harness::deadline::begin();
        if !$here {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run this test, which needs {}", $what);
            // Not with `eprintln!`: the test runner hides that output if the test passes.
            let message = format!("SKIPPED {}:{}: needs {}\n", file!(), line!(), $what);
            let _ = std::io::Write::write_all(&mut std::io::stderr(), message.as_bytes());
            return;
        }
    };
}

/// Skips a test that does not run as root.
#[macro_export]
macro_rules! needs_root {
    () => {
        $crate::needs!(nix::unistd::geteuid().is_root(), "root, to mount XFS")
    };
}

/// The running service with a manager and a repository on a file system of its own.
///
/// The fields are dropped in this order: the service before its file system.
pub struct World {
    pub exporter: Exporter,
    pub manager: Manager,
    pub certificates: Certificates,
    pub repository: PathBuf,
    pub volume: Volume,
}

impl World {
    /// An empty repository on a sparse XFS.
    pub fn new(megabytes: u64) -> Self {
        Self::with(megabytes, |_| {})
    }

    /// As [`Self::new`]; `change` is applied to the settings of the service.
    pub fn with(megabytes: u64, change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(Volume::xfs(megabytes), change)
    }

    pub fn on(volume: Volume, change: impl FnOnce(&mut Settings)) -> Self {
        let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
        let certificates = Certificates::new();
        let manager = Manager::start(&certificates);
        let mut settings = Settings::new(&certificates, &manager, &[&repository]);
        change(&mut settings);
        let exporter = Exporter::start(settings);
        Self { exporter, manager, certificates, repository, volume }
    }

    /// As [`Self::new`], with a second repository on its own XFS.
    pub fn with_two_repositories(megabytes: u64) -> (Volume, PathBuf, Self) {
        Self::with_a_second_on(Volume::xfs(megabytes), megabytes, |_| {})
    }

    /// As [`Self::with_two_repositories`], with the second repository on `volume`.
    pub fn with_a_second_on(
        volume: Volume,
        megabytes: u64,
        change: impl FnOnce(&mut Settings),
    ) -> (Volume, PathBuf, Self) {
        let second = make_repository(&volume.mount_point, "0004fb00000300000000000000000002");
        let world = Self::with(megabytes, |settings| {
            settings.paths.push(second.clone());
            change(settings);
        });
        (volume, second, world)
    }

    /// A service with hooks and metrics, and [`VM`] with these disks of 1 MiB. `lines` are for `[hooks]`.
    pub fn with_hooks(lines: &str, disks: &[&str]) -> (HookDir, Self) {
        let hooks = HookDir::new();
        let sections = hooks.section(lines) + "[metrics]\nenabled = true\n";
        let world = Self::with(512, |settings| settings.sections = sections);
        let disks: Vec<_> = disks.iter().map(|name| (*name, MB)).collect();
        for disk in world.define_vm(&disks) {
            write_at(&disk, 0, &[1; 8192]);
        }
        (hooks, world)
    }

    /// A logged-in client.
    pub fn client(&self) -> Client {
        Client::logged_in(&self.exporter, &self.certificates)
    }

    pub fn anonymous_client(&self) -> Client {
        Client::new(&self.exporter, &self.certificates)
    }

    /// A second service on the same repository, with its own database.
    pub fn second_service(&self, change: impl FnOnce(&mut Settings)) -> Exporter {
        let mut settings = Settings::new(&self.certificates, &self.manager, &[&self.repository]);
        change(&mut settings);
        Exporter::start(settings)
    }

    /// Requests a snapshot of [`VM`] in a thread that ignores the answer, also if the service is killed.
    pub fn request_snapshot(&self) -> JoinHandle<()> {
        let client = self.client();
        thread::spawn(move || drop(client.try_send(client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}")))))
    }

    /// A logged-in client whose token stays valid when the test moves the clocks. It has to be made after each such
    /// move, since the service then closes idle connections.
    pub fn lasting_client(&self) -> Client {
        Client::lasting(&self.exporter, &self.certificates)
    }

    /// Defines [`VM`] with new sparse disks; returns their paths.
    pub fn define_vm(&self, disks: &[(&str, u64)]) -> Vec<PathBuf> {
        let paths: Vec<PathBuf> = disks.iter().map(|(name, size)| make_disk(&self.repository, name, *size)).collect();
        define_vm(&self.repository, VM, &paths);
        paths
    }

    pub fn snapshot_folder(&self, id: &str) -> PathBuf {
        self.repository.join("CoriolisSnapshots").join(id)
    }

    /// All files and folders of snapshots in the repository, sorted, without the lock files.
    pub fn snapshot_files(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut paths = snapshot_folders(&self.repository);
        while let Some(path) = paths.pop() {
            if path.is_dir() {
                paths.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
            found.push(path);
        }
        found.sort();
        found
    }
}

/// The folders of the snapshots in a repository, sorted. The lock files beside them are never removed.
pub fn snapshot_folders(repository: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository.join("CoriolisSnapshots")).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| !path.ends_with(".pool"));
    folders.sort();
    folders
}

/// Makes an empty repository.
pub fn make_repository(parent: &Path, id: &str) -> PathBuf {
    let repository = parent.join(id);
    for folder in ["VirtualDisks", "VirtualMachines", "ISOs"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    repository
}

/// Makes a sparse disk file in a repository.
pub fn make_disk(repository: &Path, name: &str, size: u64) -> PathBuf {
    let path = repository.join("VirtualDisks").join(name);
    File::create(&path).unwrap().set_len(size).unwrap();
    path
}

/// Writes the definition of a VM with writable disks.
pub fn define_vm(repository: &Path, vm: &str, disks: &[PathBuf]) {
    let lines: Vec<String> = disks
        .iter()
        .enumerate()
        .map(|(i, path)| format!("'file:{},xvd{},w'", path.display(), (b'a' + i as u8) as char))
        .collect();
    define_vm_with(repository, vm, &lines);
}

/// Writes the definition of a VM with these entries of the `disk` list, including the quotes.
pub fn define_vm_with(repository: &Path, vm: &str, disk_entries: &[String]) {
    let folder = repository.join("VirtualMachines").join(vm);
    fs::create_dir_all(&folder).unwrap();
    let uuid = format!("{}-{}-{}-{}-{}", &vm[..8], &vm[8..12], &vm[12..16], &vm[16..20], &vm[20..]);
    let text = format!(
        "vif = ['mac=00:21:f6:aa:bb:cc,bridge=10238073c2']\nOVM_simple_name = 'web-1'\n\
         disk = [{}]\nuuid = '{uuid}'\nname = '{vm}'\nmemory = '2048'\n",
        disk_entries.join(",\n        ")
    );
    fs::write(folder.join("vm.cfg"), text).unwrap();
}

/// The free bytes of the file system that contains `folder`.
pub fn volume_space(folder: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(folder).unwrap();
    found.blocks_available() * found.fragment_size()
}

pub fn write_at(disk: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(disk).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Runs commands of xfs_io(8) on `disk`.
pub fn xfs_io(disk: &Path, commands: &[&str]) {
    let mut command = Command::new("xfs_io");
    for text in commands {
        command.args(["-c", text]);
    }
    // xfs_io exits with 0 even if a command fails.
    let output = command.arg(disk).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
