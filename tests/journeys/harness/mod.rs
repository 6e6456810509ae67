//! What every journey needs: a repository, a manager, the service, a client.

mod agent_db;
mod certificates;
mod chunks;
mod client;
mod clock;
mod exporter;
mod guest;
mod hung;
mod manager;
mod random;
mod serving;
mod shelf;
mod shim;
mod trial;
mod volume;
mod wait;
pub mod work;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

pub use agent_db::AgentDb;
pub use certificates::Certificates;
pub use chunks::{Chunk, chunks, data, zero};
pub use client::{Answer, Client, connect, connect_from, text};
pub use clock::Clock;
pub use exporter::{Exporter, SECRET, Settings};
pub use guest::{Guest, Manners};
pub use hung::HungMount;
pub use manager::{Behaviour, Manager, PASSWORD, USER};
pub use random::Random;
pub use shelf::Shelf;
pub use shim::{Harm, Shim};
pub use trial::Trial;
pub use volume::{Volume, output, run};
pub use wait::{eventually, eventually_ok, eventually_some, eventually_within, perhaps_within};
pub use work::{Work, memory_kib};

/// The VM that most journeys are about.
pub const VM: &str = "0004fb00000600000000000000000001";

/// Returns from a test that cannot run here, loudly; under `CI=true` that is a failure.
#[macro_export]
macro_rules! needs {
    ($here:expr, $what:literal) => {
        if !$here {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must run this test, and it needs {}", $what);
            // Past the test runner, which keeps what `eprintln!` says of a test that passes.
            let told = format!("SKIPPED {}:{}: needs {}\n", file!(), line!(), $what);
            let _ = std::io::Write::write_all(&mut std::io::stderr(), told.as_bytes());
            return;
        }
    };
}

/// The same for what most tests need.
#[macro_export]
macro_rules! needs_root {
    () => {
        $crate::needs!(nix::unistd::geteuid().is_root(), "root, to mount XFS")
    };
}

/// A repository on a file system of its own, a manager, and the service: ready to be asked.
///
/// Fields are dropped in their order: the service before the file system that it works on.
pub struct World {
    pub exporter: Exporter,
    pub manager: Manager,
    pub certificates: Certificates,
    pub repository: PathBuf,
    pub volume: Volume,
}

impl World {
    /// One XFS of `megabytes` (sparse) with one empty repository in it.
    pub fn new(megabytes: u64) -> Self {
        Self::with(megabytes, |_| {})
    }

    /// The same, with `change` made to the settings of the service.
    pub fn with(megabytes: u64, change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(Volume::xfs(megabytes), change)
    }

    /// The same on `volume`.
    pub fn on(volume: Volume, change: impl FnOnce(&mut Settings)) -> Self {
        let repository = make_repository(&volume.mount_point, "0004fb0000030000a1b2c3d4e5f60718");
        let certificates = Certificates::new();
        let manager = Manager::start(&certificates);
        let mut settings = Settings::new(&certificates, &manager, &[&repository]);
        change(&mut settings);
        let exporter = Exporter::start(settings);
        Self { exporter, manager, certificates, repository, volume }
    }

    /// The same with a second repository, on an XFS of its own.
    pub fn with_two_repositories(megabytes: u64) -> (Volume, PathBuf, Self) {
        Self::with_a_second_on(Volume::xfs(megabytes), megabytes)
    }

    /// The same with the second on `volume`.
    pub fn with_a_second_on(volume: Volume, megabytes: u64) -> (Volume, PathBuf, Self) {
        let second = make_repository(&volume.mount_point, "0004fb00000300000000000000000002");
        let world = Self::with(megabytes, |settings| settings.paths.push(second.clone()));
        (volume, second, world)
    }

    /// A client that is logged in.
    pub fn client(&self) -> Client {
        let mut client = Client::new(&self.exporter, &self.certificates);
        client.log_in();
        client
    }

    /// A client on a new connection, since those that are idle are closed when the clocks leap, with a token that
    /// stays valid then.
    pub fn lasting_client(&self) -> Client {
        let lifetime = std::time::Duration::from_secs(40 * 31_536_000);
        let tokens = coriolis_ovm_exporter::auth::Tokens::new(&SECRET.into(), lifetime);
        let mut client = Client::new(&self.exporter, &self.certificates);
        client.token = tokens.issue("admin", std::time::SystemTime::now()).unwrap();
        client
    }

    /// Defines [`VM`] with new, sparse disks; returns their paths.
    pub fn define_vm(&self, disks: &[(&str, u64)]) -> Vec<PathBuf> {
        let paths: Vec<PathBuf> = disks.iter().map(|(name, size)| make_disk(&self.repository, name, *size)).collect();
        define_vm(&self.repository, VM, &paths);
        paths
    }

    /// Everything below CoriolisSnapshots but the locks, sorted: what a snapshot leaves, and what nothing may.
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

/// The folders of snapshots in a repository, sorted; none where there is no place for them. The locks beside them
/// are never removed.
pub fn snapshot_folders(repository: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(repository.join("CoriolisSnapshots")).into_iter().flatten();
    let mut folders: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| !path.ends_with(".pool"));
    folders.sort();
    folders
}

/// Makes the folders of a repository.
pub fn make_repository(parent: &Path, id: &str) -> PathBuf {
    let repository = parent.join(id);
    for folder in ["VirtualDisks", "VirtualMachines", "ISOs"] {
        fs::create_dir_all(repository.join(folder)).unwrap();
    }
    repository
}

/// Makes a sparse disk in a repository.
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

/// Writes the definition of a VM whose `disk` list has these entries, quotes and all.
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

/// Bytes that can still be written to the file system that `folder` lies on.
pub fn volume_space(folder: &Path) -> u64 {
    let found = nix::sys::statvfs::statvfs(folder).unwrap();
    found.blocks_available() * found.fragment_size()
}

/// Writes `bytes` at `offset`, as a guest would.
pub fn write_at(disk: &Path, offset: u64, bytes: &[u8]) {
    File::options().write(true).open(disk).unwrap().write_all_at(bytes, offset).unwrap();
}

/// Runs commands of xfs_io(8) on `disk`.
pub fn xfs_io(disk: &Path, commands: &[&str]) {
    let mut command = Command::new("xfs_io");
    for text in commands {
        command.args(["-c", text]);
    }
    // It fails with the status of a success.
    let output = command.arg(disk).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}
