//! What the files of VMs' disks are like: all that the decision about a disk needs to know, looked at in one go
//! for each repository.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::claims::{Claim, Claims};
use crate::inventory::{Disk, FileNotes, Platform, Vm};
use crate::model::{DiskSource, RepositoryId, SnapshotId, VolumeId};
use crate::repository::executor::{Access, JobKind};
use crate::repository::{
    AssignedPath, CloneSupport, Folder, LocatedDisk, PathError, Repository, Unavailable, Unclonable, UnexpectedEntry,
    assign, clone_support, locate,
};
use crate::store::Store;

/// A disk's file, as it was found.
#[derive(Clone, Debug)]
pub(crate) struct DiskFacts {
    pub source: DiskSource,
    /// Bytes.
    pub size: u64,
    /// The file system that it lies on.
    pub volume: Option<VolumeId>,
    /// Why it cannot be cloned, as far as the file itself tells.
    pub unfit: Option<String>,
    number: FileNumber,
    names: u64,
}

/// Device and inode.
type FileNumber = (u64, u64);

/// Why nothing is known of a disk's file.
#[derive(Clone, Debug)]
pub(crate) enum NoFacts {
    /// There is no such disk.
    Unfit(String),
    /// It cannot be looked at now, which says nothing about the disk.
    Unavailable(String),
}

/// What was found out about a repository that disks lie in.
struct Looked {
    notes: Option<FileNotes>,
    /// Whose the files are that have more than one name, where there are such files.
    linked: Option<Result<HashMap<FileNumber, Owners>, String>>,
    /// Whether files can be cloned there.
    support: Result<(), Unclonable>,
}

/// Whose a file is: of VMs, or a snapshot's.
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
    /// By the path that the definition names.
    facts: HashMap<String, Result<DiskFacts, NoFacts>>,
    looked: HashMap<RepositoryId, Looked>,
    claims: Claims,
    keep_open: bool,
    /// The open disks, where they are wanted.
    open: HashMap<DiskSource, LocatedDisk>,
}

/// The disks of one repository, each with the path that the definition names.
type Disks = Vec<(String, AssignedPath)>;

/// What a look at a disk comes to.
type InspectedFile = Result<(DiskFacts, Option<LocatedDisk>), NoFacts>;

/// What a look at them comes to, and what the manager noted about them where that was asked for.
type FoundFiles = (Vec<(String, InspectedFile)>, Option<FileNotes>);

impl<'a> DiskFiles<'a> {
    /// None yet. `all` are the VMs of the inventory, as a disk may be another VM's as well.
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
            looked: HashMap::new(),
            claims,
            keep_open,
            open: HashMap::new(),
        }
    }

    /// Looks at the disks of `vms`, and forgets those that were looked at before.
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
                Err(misplaced) => drop(self.facts.insert(path.to_owned(), Err(NoFacts::Unfit(misplaced.to_string())))),
            }
        }
        // All are asked before any is waited for.
        let asked: Vec<_> = by_repository
            .into_values()
            .map(|(repository, disks)| {
                let paths = disks.iter().map(|(path, _)| path.clone()).collect();
                let is_new = !self.looked.contains_key(repository.id());
                let (asked, keep_open, platform) = (repository.clone(), self.keep_open, self.platform);
                let look = move |access: &Access<'_>, root: &Folder| {
                    asked.mounted_now(access)?;
                    let found = look_in(access, root, disks, keep_open);
                    Ok((found, is_new.then(|| platform.read_file_notes(root)).flatten()))
                };
                let pending = repository.submit(JobKind::SHORT, look);
                (repository, paths, move || pending.wait().map_err(Unavailable::from)?)
            })
            .collect();
        for (repository, paths, found) in asked {
            self.enter(&repository, paths, found());
        }
    }

    fn enter(&mut self, repository: &Repository, paths: Vec<String>, found: io::Result<FoundFiles>) {
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
        let looked = self.looked.entry(repository.id().clone()).or_insert_with(|| Looked {
            notes,
            linked: None,
            support: self.clone_support.of(repository.mount_point()),
        });
        if has_links && looked.linked.is_none() {
            let named = self.claims.in_repository(repository, &self.repositories);
            looked.linked = Some(linked(self.store, repository, named));
        }
    }

    /// What is known of the file at the path that a definition names.
    pub(crate) fn facts(&self, path: &str) -> Result<&DiskFacts, &NoFacts> {
        static NOT_LOOKED_AT: NoFacts = NoFacts::Unavailable(String::new());
        self.facts.get(path).map_or(Err(&NOT_LOOKED_AT), Result::as_ref)
    }

    /// What the manager noted about the files beside a disk.
    pub(crate) fn notes(&self, disk: &DiskFacts) -> Option<&FileNotes> {
        self.looked.get(&disk.source.repository)?.notes.as_ref()
    }

    /// Why the disk may not be taken for the VM that is called `vm`: another VM has it, or it is a snapshot's file.
    pub(crate) fn another_owner(&self, vm: &str, disk: &DiskFacts) -> Option<String> {
        let by_path = self.claims.on(&disk.source);
        if let Some(reason) = self.claims.conflict(vm, by_path) {
            return Some(reason);
        }
        if disk.names == 1 {
            return None;
        }
        // The file has other names, one of which another VM may name, or a snapshot have.
        match self.looked.get(&disk.source.repository)?.linked.as_ref()? {
            Err(error) => Some(format!("has more than one name, and whose it is cannot be told: {error}")),
            Ok(linked) => {
                let owners = linked.get(&disk.number)?;
                match owners.snapshot {
                    Some(snapshot) => Some(format!("is a file of the snapshot {snapshot}, and no disk of a VM")),
                    None => self.claims.conflict(vm, &owners.claims),
                }
            }
        }
    }

    /// Why the disk cannot be cloned.
    pub(crate) fn unclonable(&self, disk: &DiskFacts) -> Option<NoFacts> {
        match &self.looked.get(&disk.source.repository)?.support {
            Err(reason @ (Unclonable::Unresponsive(_) | Unclonable::TrialFailed(_))) => {
                Some(NoFacts::Unavailable(reason.to_string()))
            }
            // A snapshot will fail for what it is.
            Ok(()) | Err(Unclonable::NotNow(_)) => disk.unfit.clone().map(NoFacts::Unfit),
            Err(reason) => Some(NoFacts::Unfit(reason.to_string())),
        }
    }

    /// The open disk.
    pub(crate) fn take(&mut self, source: &DiskSource) -> Option<LocatedDisk> {
        self.open.remove(source)
    }
}

fn look_in(access: &Access<'_>, root: &Folder, disks: Disks, keep_open: bool) -> Vec<(String, InspectedFile)> {
    let mut found = Vec::with_capacity(disks.len());
    for (path, assigned) in disks {
        access.progress();
        let looked = look(root, &assigned);
        found.push((path, looked.map(|(facts, disk)| (facts, keep_open.then_some(disk)))));
    }
    found
}

fn look(root: &Folder, assigned: &AssignedPath) -> Result<(DiskFacts, LocatedDisk), NoFacts> {
    let disk = locate::open(root, assigned).map_err(|misplaced| match misplaced {
        PathError::Unreadable(error) if !is_about_the_file(&error) => NoFacts::Unavailable(error.to_string()),
        misplaced => NoFacts::Unfit(misplaced.to_string()),
    })?;
    let failed = |error: io::Error| NoFacts::Unavailable(error.to_string());
    let (file, root) = (disk.file.metadata().map_err(failed)?, root.metadata().map_err(failed)?);
    let unfit = if file.dev() == root.dev() {
        clone_support::of_disk(&disk.file, &disk.path).err().map(|reason| reason.to_string())
    } else {
        Some("lies on another file system, mounted inside the repository".to_owned())
    };
    let number = (file.dev(), file.ino());
    let (source, size, volume) = (disk.source.clone(), disk.size, disk.volume);
    Ok((DiskFacts { source, size, volume, unfit, number, names: file.nlink() }, disk))
}

/// Whether an error tells what the file that was asked for is. Any other says that it is not known now.
fn is_about_the_file(error: &io::Error) -> bool {
    use nix::errno::Errno;
    let told = error.raw_os_error().map(Errno::from_raw);
    UnexpectedEntry::of(error).is_some()
        || matches!(told, Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EACCES | Errno::ENAMETOOLONG))
}

/// Whose the files of a repository are that have a VM's or a snapshot's name among others; `named` are those of VMs.
fn linked(
    store: &Store,
    repository: &Repository,
    named: Vec<(Claim, PathBuf)>,
) -> Result<HashMap<FileNumber, Owners>, String> {
    let snapshots = store.snapshots().map_err(|error| error.to_string())?;
    let looked = repository.run(JobKind::SHORT, move |access, root| {
        let mut linked: HashMap<FileNumber, Owners> = HashMap::new();
        for (claim, below) in named {
            access.progress();
            if let Ok(found) = root.stat(below) {
                linked.entry((found.dev(), found.ino())).or_default().claims.push(claim);
            }
        }
        Ok((linked, root.metadata()?.dev()))
    });
    let (mut linked, device) = looked.map_err(|error| error.to_string())?;
    for snapshot in &snapshots {
        for disk in snapshot.disks.iter().filter(|disk| disk.source.repository == *repository.id()) {
            linked.entry((device, disk.identity.inode)).or_default().snapshot = Some(snapshot.id);
        }
    }
    Ok(linked)
}
