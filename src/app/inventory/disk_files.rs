//! Examines the files of VMs' disks. Each repository is examined in one job, which collects all facts for the decisions
//! about its disks.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claims::{Claim, Claims};
use crate::app::error::{Named, Reason};
use crate::inventory::{Disk, FileNotes, Platform, Vm};
use crate::model::{DiskSource, RepositoryId, SnapshotId, VolumeId};
use crate::repository::executor::{Access, JobKind};
use crate::repository::{
    AssignedPath, CloneSupport, Folder, LocatedDisk, PathError, Repository, Unavailable, Unclonable, UnexpectedEntry,
    assign, clone_support, locate,
};
use crate::store::Store;

/// The facts about a disk's file.
#[derive(Clone, Debug)]
pub(crate) struct DiskFacts {
    pub source: DiskSource,
    pub size: u64,
    /// Its file system.
    pub volume: Option<VolumeId>,
    /// The reason why it cannot be cloned, if that is in the file itself.
    pub unfit: Option<String>,
    number: FileNumber,
    names: u64,
}

/// Device and inode.
type FileNumber = (u64, u64);

/// The reason why there are no facts about a disk's file.
#[derive(Clone, Debug)]
pub(crate) enum NoFacts {
    /// The path is not a usable disk.
    Unfit(String),
    /// The file cannot be examined now. This does not concern the disk itself.
    Unavailable(String),
}

/// The facts about a repository with disks.
struct RepositoryFacts {
    notes: Option<FileNotes>,
    /// The owners of files with more than one name, if there are such files.
    linked: Option<Result<HashMap<FileNumber, Owners>, String>>,
    /// Whether files can be cloned there.
    support: Result<(), Unclonable>,
}

/// The owners of a file: VMs or a snapshot.
#[derive(Default)]
struct Owners {
    claims: Vec<Claim>,
    snapshot: Option<SnapshotId>,
}

/// The files of VMs' disks.
pub(crate) struct DiskFiles<'a> {
    platform: Platform,
    clone_support: &'a CloneSupport,
    store: &'a Store,
    repositories: Vec<Repository>,
    /// By the path in the definition.
    facts: HashMap<String, Result<DiskFacts, NoFacts>>,
    repository_facts: HashMap<RepositoryId, RepositoryFacts>,
    claims: Claims,
    keep_open: bool,
    /// The open disks, if `keep_open` is set.
    open: HashMap<DiskSource, LocatedDisk>,
}

/// The disks of one repository, each with its path in the definition.
type Disks = Vec<(String, AssignedPath)>;

/// The result of examining one disk.
type InspectedFile = Result<(DiskFacts, Option<LocatedDisk>), NoFacts>;

/// The result of examining the disks of a repository, with the manager's notes on its files if they were requested.
type FoundFiles = (Vec<(String, InspectedFile)>, Option<FileNotes>);

impl<'a> DiskFiles<'a> {
    /// Examines nothing yet. `all` are the VMs of the inventory: a disk may belong to another VM too.
    pub(super) fn new(
        platform: Platform,
        (repositories, clone_support, store): (Vec<Repository>, &'a CloneSupport, &'a Store),
        all: &[Arc<Vm>],
        keep_open: bool,
    ) -> Self {
        let claims = Claims::of(all, &repositories);
        Self {
            platform,
            clone_support,
            store,
            repositories,
            facts: HashMap::new(),
            repository_facts: HashMap::new(),
            claims,
            keep_open,
            open: HashMap::new(),
        }
    }

    /// Examines the disks of `vms`, and drops the facts about earlier ones.
    pub(crate) fn inspect(&mut self, vms: &[Arc<Vm>]) {
        self.facts.clear();
        let mut by_repository: BTreeMap<String, (Repository, Disks)> = BTreeMap::new();
        for path in vms.iter().flat_map(|vm| vm.disks.as_deref().unwrap_or_default()).filter_map(Disk::file) {
            match assign(&self.repositories, Path::new(path)) {
                Ok(assigned) => {
                    let repository = assigned.repository.clone();
                    let entry = by_repository.entry(repository.id().to_string());
                    entry.or_insert_with(|| (repository, Vec::new())).1.push((path.to_owned(), assigned));
                }
                Err(error) => drop(self.facts.insert(path.to_owned(), Err(NoFacts::Unfit(error.to_string())))),
            }
        }
        // All jobs start before the first result is awaited.
        let jobs: Vec<_> = by_repository
            .into_values()
            .map(|(repository, disks)| {
                let paths = disks.iter().map(|(path, _)| path.clone()).collect();
                let is_new = !self.repository_facts.contains_key(repository.id());
                let (checked, keep_open, platform) = (repository.clone(), self.keep_open, self.platform);
                let examine = move |access: &Access<'_>, root: &Folder| {
                    checked.mounted_now(access)?;
                    let found = examine_all(access, root, disks, keep_open);
                    Ok((found, is_new.then(|| platform.read_file_notes(root)).flatten()))
                };
                let pending = repository.submit(JobKind::SHORT, examine);
                (repository, paths, move || pending.wait().map_err(Unavailable::from)?)
            })
            .collect();
        for (repository, paths, found) in jobs {
            self.add(&repository, paths, found());
        }
    }

    fn add(&mut self, repository: &Repository, paths: Vec<String>, found: io::Result<FoundFiles>) {
        let (found, notes) = match found {
            Ok(found) => found,
            Err(error) => {
                let reason = format!("the repository {} {error}", repository.id());
                self.facts.extend(paths.into_iter().map(|path| (path, Err(NoFacts::Unavailable(reason.clone())))));
                return;
            }
        };
        let mut has_links = false;
        for (path, facts) in found {
            let facts = facts.map(|(facts, disk)| {
                has_links |= facts.names > 1;
                self.open.extend(disk.map(|disk| (facts.source.clone(), disk)));
                facts
            });
            self.facts.insert(path, facts);
        }
        let facts = self.repository_facts.entry(repository.id().clone()).or_insert_with(|| RepositoryFacts {
            notes,
            linked: None,
            support: self.clone_support.of(repository.mount_point()),
        });
        if has_links && facts.linked.is_none() {
            let named = self.claims.in_repository(repository, &self.repositories);
            facts.linked = Some(linked(self.store, repository, named));
        }
    }

    /// The facts about the file at a path in a definition.
    pub(crate) fn facts(&self, path: &str) -> Result<&DiskFacts, &NoFacts> {
        static NOT_EXAMINED: NoFacts = NoFacts::Unavailable(String::new());
        self.facts.get(path).map_or(Err(&NOT_EXAMINED), Result::as_ref)
    }

    /// The manager's notes on the files of the disk's repository.
    pub(crate) fn notes(&self, disk: &DiskFacts) -> Option<&FileNotes> {
        self.repository_facts.get(&disk.source.repository)?.notes.as_ref()
    }

    /// The reason why the disk cannot be snapshotted for the VM `vm`: another VM uses it, or it belongs to a snapshot.
    pub(crate) fn another_owner(&self, vm: &str, disk: &DiskFacts) -> Option<Reason> {
        let by_path = self.claims.on(&disk.source);
        if let Some(reason) = self.claims.conflict(vm, by_path) {
            return Some(reason);
        }
        if disk.names == 1 {
            return None;
        }
        // The file has other names, which another VM or a snapshot may use.
        match self.repository_facts.get(&disk.source.repository)?.linked.as_ref()? {
            Err(error) => Some(format!("has more than one name, and its owner cannot be determined: {error}").into()),
            Ok(linked) => {
                let owners = linked.get(&disk.number)?;
                match owners.snapshot {
                    Some(snapshot) => {
                        let after = ", so it is not a disk of a VM";
                        Some(Reason::naming("belongs to ", Named::Snapshot(snapshot), after))
                    }
                    None => self.claims.conflict(vm, &owners.claims),
                }
            }
        }
    }

    /// The reason why the disk cannot be cloned.
    pub(crate) fn unclonable(&self, disk: &DiskFacts) -> Option<NoFacts> {
        match &self.repository_facts.get(&disk.source.repository)?.support {
            Err(reason @ (Unclonable::Unresponsive(_) | Unclonable::TrialFailed(_))) => {
                Some(NoFacts::Unavailable(reason.to_string()))
            }
            // Cloning is supported but fails now. Creating the snapshot reports that error.
            Ok(()) | Err(Unclonable::NotNow(_)) => disk.unfit.clone().map(NoFacts::Unfit),
            Err(reason) => Some(NoFacts::Unfit(reason.to_string())),
        }
    }

    /// Takes out the open disk.
    pub(crate) fn take(&mut self, source: &DiskSource) -> Option<LocatedDisk> {
        self.open.remove(source)
    }
}

fn examine_all(access: &Access<'_>, root: &Folder, disks: Disks, keep_open: bool) -> Vec<(String, InspectedFile)> {
    let mut found = Vec::with_capacity(disks.len());
    for (path, assigned) in disks {
        access.progress();
        let examined = examine(root, &assigned);
        found.push((path, examined.map(|(facts, disk)| (facts, keep_open.then_some(disk)))));
    }
    found
}

fn examine(root: &Folder, assigned: &AssignedPath) -> Result<(DiskFacts, LocatedDisk), NoFacts> {
    let disk = locate::open(root, assigned).map_err(|error| match error {
        PathError::Unreadable(error) if !is_about_the_file(&error) => NoFacts::Unavailable(error.to_string()),
        error => NoFacts::Unfit(error.to_string()),
    })?;
    let failed = |error: io::Error| NoFacts::Unavailable(error.to_string());
    let (file, root) = (disk.file.metadata().map_err(failed)?, root.metadata().map_err(failed)?);
    let unfit = if file.dev() == root.dev() {
        clone_support::of_disk(&disk.file, &disk.path).err().map(|reason| reason.to_string())
    } else {
        Some("is on another file system, mounted inside the repository".to_owned())
    };
    let number = (file.dev(), file.ino());
    let (source, size, volume) = (disk.source.clone(), disk.size, disk.volume);
    Ok((DiskFacts { source, size, volume, unfit, number, names: file.nlink() }, disk))
}

/// Whether the error concerns the file itself. After other errors, the file may be usable later.
fn is_about_the_file(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw);
    UnexpectedEntry::of(error).is_some()
        || matches!(errno, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::ENAMETOOLONG))
}

/// Finds the owners of the files in a repository that VMs or snapshots use. `named` are the paths of VMs.
fn linked(
    store: &Store,
    repository: &Repository,
    named: Vec<(Claim, PathBuf)>,
) -> Result<HashMap<FileNumber, Owners>, String> {
    let snapshots = store.snapshots().map_err(|error| error.to_string())?;
    let found = repository.run(JobKind::SHORT, move |access, root| {
        let mut linked: HashMap<FileNumber, Owners> = HashMap::new();
        for (claim, below) in named {
            access.progress();
            if let Ok(found) = root.stat(below) {
                linked.entry((found.dev(), found.ino())).or_default().claims.push(claim);
            }
        }
        Ok((linked, root.metadata()?.dev()))
    });
    let (mut linked, device) = found.map_err(|error| error.to_string())?;
    for snapshot in &snapshots {
        for disk in snapshot.disks.iter().filter(|disk| disk.source.repository == *repository.id()) {
            linked.entry((device, disk.identity.inode)).or_default().snapshot = Some(snapshot.id);
        }
    }
    Ok(linked)
}
