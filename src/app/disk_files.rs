//! What the files of VMs' disks are like: all that the decision about a disk needs to know, looked at in one go
//! for each repository.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::App;
use super::claims::{Claim, Claims};
use crate::inventory::ovsmeta::OvsMeta;
use crate::inventory::vm_cfg::{self, DiskLine};
use crate::inventory::{Vm, load_ovsmeta};
use crate::model::{DiskSource, RepositoryId, SnapshotId, VolumeId};
use crate::repository::executor::{Access, Kind};
use crate::repository::{
    Absent, Assigned, LocatedDisk, Misplaced, Repository, Unclonable, assign, clone_support, locate,
};
use crate::sys::folder::Folder;

/// A disk's file, as it was found.
#[derive(Clone, Debug)]
pub(super) struct DiskFacts {
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
pub(super) enum NoFacts {
    /// There is no such disk.
    Unfit(String),
    /// It cannot be looked at now, which says nothing about the disk.
    Unavailable(String),
}

/// What was found out about a repository that disks lie in.
struct Looked {
    notes: Option<OvsMeta>,
    /// Whose the files are that have more than one name, where there are such files.
    linked: Result<HashMap<FileNumber, Owners>, String>,
    /// Whether files can be cloned there.
    support: Result<(), Unclonable>,
}

/// Whose a file is: of VMs, or a snapshot's.
#[derive(Default)]
struct Owners {
    claims: Vec<Claim>,
    snapshot: Option<SnapshotId>,
}

/// The files of some VMs' disks.
pub(super) struct DiskFiles {
    /// By the path that the definition names.
    facts: HashMap<String, Result<DiskFacts, NoFacts>>,
    looked: HashMap<RepositoryId, Looked>,
    claims: Claims,
    /// The open disks, where they are wanted.
    open: HashMap<DiskSource, LocatedDisk>,
}

/// What a look at the disks in one repository comes to.
type Found = (Vec<(String, Result<(DiskFacts, Option<LocatedDisk>), NoFacts>)>, Option<OvsMeta>);

impl DiskFiles {
    /// Looks at the disks of the VMs that are `wanted`; `all` are those of the inventory, as a disk may be another
    /// VM's as well. Keeps them open where that is wanted too.
    pub(super) fn look_at<'v>(
        app: &App,
        all: impl IntoIterator<Item = &'v Vm>,
        wanted: impl IntoIterator<Item = &'v Vm>,
        keep_open: bool,
    ) -> Self {
        let found = app.repositories.found();
        let repositories: Vec<Repository> = found.usable().cloned().collect();
        let claims = Claims::of(all, &repositories);
        let mut this = Self { facts: HashMap::new(), looked: HashMap::new(), claims, open: HashMap::new() };
        let mut by_repository: BTreeMap<String, (Repository, Vec<(String, Assigned)>)> = BTreeMap::new();
        for path in wanted.into_iter().flat_map(|vm| vm.disks.as_deref().unwrap_or_default()).filter_map(file_path) {
            match assign(&repositories, Path::new(path)) {
                Ok(assigned) => {
                    let repository = assigned.repository.clone();
                    let entry = by_repository.entry(repository.id().to_string());
                    entry.or_insert_with(|| (repository, Vec::new())).1.push((path.to_owned(), assigned));
                }
                Err(misplaced) => drop(this.facts.insert(path.to_owned(), Err(NoFacts::Unfit(misplaced.to_string())))),
            }
        }
        // All are asked before any is waited for.
        let asked: Vec<_> = by_repository
            .into_values()
            .map(|(repository, disks)| {
                let (asked, paths) = (repository.clone(), disks.iter().map(|(path, _)| path.clone()).collect());
                let look = move |access: &Access<'_>, root: &Folder| {
                    asked.mounted_now(access)?;
                    Ok(look_in(access, root, disks, keep_open))
                };
                let pending = repository.submit(Kind::SHORT, look);
                (repository, paths, move || pending.wait().map_err(Absent::from)?)
            })
            .collect();
        for (repository, paths, found) in asked {
            this.enter(app, &repository, paths, found());
        }
        this
    }

    fn enter(&mut self, app: &App, repository: &Repository, paths: Vec<String>, found: io::Result<Found>) {
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
        let linked = if has_links { linked(app, repository, &self.claims) } else { Ok(HashMap::new()) };
        let support = app.clone_support.of(repository.mount_point());
        self.looked.insert(repository.id().clone(), Looked { notes, linked, support });
    }

    /// What is known of the file at the path that a definition names.
    pub(super) fn facts(&self, path: &str) -> Result<&DiskFacts, &NoFacts> {
        static NOT_LOOKED_AT: NoFacts = NoFacts::Unavailable(String::new());
        self.facts.get(path).map_or(Err(&NOT_LOOKED_AT), Result::as_ref)
    }

    /// What the manager noted about the files beside a disk.
    pub(super) fn notes(&self, disk: &DiskFacts) -> Option<&OvsMeta> {
        self.looked.get(&disk.source.repository)?.notes.as_ref()
    }

    /// Why the disk may not be taken for the VM that is called `vm`: another VM has it, or it is a snapshot's file.
    pub(super) fn another_owner(&self, vm: &str, disk: &DiskFacts) -> Option<String> {
        let by_path = self.claims.on(&disk.source.repository, &disk.source.path);
        if let Some(reason) = self.claims.conflict(vm, by_path) {
            return Some(reason);
        }
        if disk.names == 1 {
            return None;
        }
        // The file has other names, one of which another VM may name, or a snapshot have.
        match &self.looked.get(&disk.source.repository)?.linked {
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
    pub(super) fn unclonable(&self, disk: &DiskFacts) -> Option<NoFacts> {
        match &self.looked.get(&disk.source.repository)?.support {
            Err(unresponsive @ Unclonable::Unresponsive(_)) => Some(NoFacts::Unavailable(unresponsive.to_string())),
            // A snapshot will fail for what it is.
            Ok(()) | Err(Unclonable::NotNow(_)) => disk.unfit.clone().map(NoFacts::Unfit),
            Err(reason) => Some(NoFacts::Unfit(reason.to_string())),
        }
    }

    /// The open disk.
    pub(super) fn take(&mut self, source: &DiskSource) -> Option<LocatedDisk> {
        self.open.remove(source)
    }
}

/// The path of a line that names a file.
pub(super) fn file_path(line: &DiskLine) -> Option<&str> {
    match &line.source {
        vm_cfg::DiskSource::File(path) => Some(path),
        vm_cfg::DiskSource::Empty | vm_cfg::DiskSource::Other { .. } => None,
    }
}

fn look_in(access: &Access<'_>, root: &Folder, disks: Vec<(String, Assigned)>, keep_open: bool) -> Found {
    let mut found = Vec::with_capacity(disks.len());
    for (path, assigned) in disks {
        access.moved();
        let looked = look(root, &assigned);
        found.push((path, looked.map(|(facts, disk)| (facts, keep_open.then_some(disk)))));
    }
    (found, load_ovsmeta(root))
}

fn look(root: &Folder, assigned: &Assigned) -> Result<(DiskFacts, LocatedDisk), NoFacts> {
    let disk = locate::open(root, assigned).map_err(|misplaced| match misplaced {
        Misplaced::Unreadable(error) if is_the_file_systems_fault(&error) => NoFacts::Unavailable(error.to_string()),
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

/// Whether an error says nothing about the file that was asked for.
fn is_the_file_systems_fault(error: &io::Error) -> bool {
    use nix::errno::Errno;
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EIO | Errno::ESHUTDOWN | Errno::ENOTCONN | Errno::EUCLEAN | Errno::ETIMEDOUT | Errno::ESTALE)
    )
}

/// Whose the files of a repository are that have a VM's or a snapshot's name among others.
fn linked(app: &App, repository: &Repository, claims: &Claims) -> Result<HashMap<FileNumber, Owners>, String> {
    let snapshots = app.store.snapshots().map_err(|error| error.to_string())?;
    let named: Vec<(PathBuf, Vec<Claim>)> =
        claims.in_repository(repository.id()).map(|(below, claims)| (below.clone(), claims.clone())).collect();
    let looked = repository.run(Kind::SHORT, move |access, root| {
        let mut linked: HashMap<FileNumber, Owners> = HashMap::new();
        for (below, claims) in named {
            access.moved();
            if let Ok(found) = root.stat(below) {
                linked.entry((found.dev(), found.ino())).or_default().claims.extend(claims);
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
