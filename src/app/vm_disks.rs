//! Which of a VM's disks a snapshot takes, and why not the others.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::App;
use super::claims::{Claim, Claims};
use super::disk_names::{NO_NAME, can_be_named, names_for};
use crate::inventory::ovsmeta::OvsMeta;
use crate::inventory::vm_cfg::{self, DiskLine};
use crate::inventory::{Vm, load_ovsmeta};
use crate::model::{DiskName, DiskSource, RepositoryId, SnapshotId};
use crate::repository::executor::Kind;
use crate::repository::{LocatedDisk, Misplaced, Repository, Unclonable, assign, clone_support, locate};
use crate::sys::folder::Folder;

/// What a snapshot does with a disk.
pub(super) enum Verdict {
    /// Takes it.
    Taken(LocatedDisk),
    /// Leaves it out, as it holds nothing of the VM's own: a CD-ROM, a read-only disk elsewhere.
    LeftOut(String),
    /// Cannot be made at all: leaving this disk out would lose data.
    Prevents(String),
}

/// A disk of a definition, looked at.
pub(super) struct Examined {
    /// Its size, bytes, and the repository it lies in, where it could be opened.
    pub found: Option<(u64, RepositoryId)>,
    /// The name that people gave it.
    pub friendly_name: Option<String>,
    pub verdict: Verdict,
}

/// What a disk's friendly name starts with that no backup takes.
const NO_BACKUP: &str = "[NOBAK]";

impl Examined {
    /// The same, left out where the disk's name says so: for all who do not ask for it.
    pub(super) fn heeding_its_name(mut self) -> Self {
        let says_no = self.friendly_name.as_ref().is_some_and(|name| name.starts_with(NO_BACKUP));
        if says_no && !matches!(self.verdict, Verdict::LeftOut(_)) {
            self.verdict = Verdict::LeftOut(format!("its name starts with {NO_BACKUP}"));
        }
        self
    }
}

/// Why there can be no snapshot, and the disk that is in the way, where it is one.
pub(super) type Hindrance = (Option<usize>, String);

/// Which disks of a VM a snapshot takes, each with its name there, by their places in `disks`. The list of VMs and
/// the creation of a snapshot both ask this, so that what is called compatible is snapshotted.
///
/// # Errors
/// [`Hindrance`].
pub(super) fn choose<'a>(
    disks: impl Iterator<Item = &'a Verdict> + Clone,
) -> Result<Vec<(usize, DiskName)>, Hindrance> {
    let mut taken: Vec<(usize, &DiskSource)> = Vec::new();
    for (index, verdict) in disks.enumerate() {
        match verdict {
            Verdict::Prevents(reason) => return Err((Some(index), reason.clone())),
            // One file that the definition names twice is one disk.
            Verdict::Taken(disk) if taken.iter().any(|(_, source)| **source == disk.source) => {}
            Verdict::Taken(disk) => taken.push((index, &disk.source)),
            Verdict::LeftOut(_) => {}
        }
    }
    if taken.is_empty() {
        return Err((None, "no disk to snapshot".to_owned()));
    }
    let (indices, sources): (Vec<usize>, Vec<&DiskSource>) = taken.into_iter().unzip();
    let names = names_for(&sources).map_err(|unnamed| (Some(indices[unnamed]), NO_NAME.to_owned()))?;
    Ok(indices.into_iter().zip(names).collect())
}

/// Looks at disks, reading what repositories say about their files once.
pub(super) struct Examiner<'a> {
    app: &'a App,
    repositories: Vec<Repository>,
    opened: HashMap<RepositoryId, Opened>,
    claims: Claims,
}

/// A repository that disks are looked at in.
struct Opened {
    /// Its folder, or why it cannot be opened.
    root: Result<Folder, String>,
    notes: Option<OvsMeta>,
    /// Who has the files that have more than one name, once that was looked for.
    linked: Option<HashMap<FileNumber, Owners>>,
}

/// Device and inode.
type FileNumber = (u64, u64);

/// Whose a file is: of VMs, or a snapshot's.
#[derive(Default)]
struct Owners {
    claims: Vec<Claim>,
    snapshot: Option<SnapshotId>,
}

impl<'a> Examiner<'a> {
    /// `vms` are all of the inventory: a disk may be another VM's.
    pub(super) fn new(app: &'a App, vms: &[Arc<Vm>]) -> Self {
        let repositories = app.repositories.answering();
        let claims = Claims::of(vms.iter().map(Arc::as_ref), &repositories);
        Self { app, repositories, opened: HashMap::new(), claims }
    }

    /// Looks at a disk of the VM that is called `vm`.
    pub(super) fn examine(&mut self, vm: &str, line: &DiskLine) -> Examined {
        let nothing_found = |verdict| Examined { found: None, friendly_name: None, verdict };
        let path = match &line.source {
            vm_cfg::DiskSource::File(path) => path,
            vm_cfg::DiskSource::Empty => return nothing_found(Verdict::LeftOut("no medium".to_owned())),
            vm_cfg::DiskSource::Other { scheme, target } => {
                return nothing_found(refused(line, format!("{scheme}:{target} is no file in a repository")));
            }
        };
        let located = match self.locate(Path::new(path)) {
            Ok(located) => located,
            Err(problem) => return nothing_found(refused(line, format!("{path} {problem}"))),
        };
        let file_name = Path::new(&located.source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let notes = self.opened.get(located.repository.id()).and_then(|opened| opened.notes.as_ref());
        let friendly_name = notes.and_then(|notes| notes.simple_name(file_name)).map(str::to_owned);
        let object_type = notes.and_then(|notes| notes.object_type(file_name)).filter(|kind| *kind != "VIRTUAL_DISK");
        let verdict_without_mount = if line.cdrom {
            Some(Verdict::LeftOut("a CD-ROM".to_owned()))
        } else if let Some(kind) = object_type {
            Some(Verdict::LeftOut(format!("the manager calls it {kind}")))
        } else if !line.is_writable() && file_name.ends_with(".iso") {
            Some(Verdict::LeftOut("an ISO image".to_owned()))
        } else {
            None
        };
        Examined {
            found: Some((located.size, located.repository.id().clone())),
            friendly_name,
            verdict: verdict_without_mount.unwrap_or_else(|| {
                let reason = (!can_be_named(&located.source)).then(|| NO_NAME.to_owned());
                let reason = reason.or_else(|| self.another_owner(vm, &located)).or_else(|| self.unclonable(&located));
                match reason {
                    Some(reason) => refused(line, reason),
                    None => Verdict::Taken(located),
                }
            }),
        }
    }

    /// Opens the disk at `path`, or says why it cannot be opened.
    fn locate(&mut self, path: &Path) -> Result<LocatedDisk, String> {
        let assigned = assign(&self.repositories, path).map_err(|misplaced| misplaced.to_string())?;
        let opened = self.opened.entry(assigned.repository.id().clone()).or_insert_with(|| {
            let opened = assigned.repository.run(Kind::SHORT, |_, root| Ok((root.clone(), load_ovsmeta(root))));
            let (root, notes) = opened
                .map_err(|error| Misplaced::from(error).to_string())
                .map_or_else(|error| (Err(error), None), |(root, notes)| (Ok(root), notes));
            Opened { root, notes, linked: None }
        });
        let root = opened.root.clone()?;
        let located = assigned.repository.clone().executor().run(Kind::SHORT, move |_| locate::open(&root, &assigned));
        located.map_err(|error| error.to_string())?.map_err(|misplaced| misplaced.to_string())
    }

    /// Why the disk may not be taken for the VM that is called `vm`: another VM has it, or it is a snapshot's file.
    fn another_owner(&mut self, vm: &str, located: &LocatedDisk) -> Option<String> {
        let id = located.repository.id();
        let by_path = self.claims.on(id, &located.source.path);
        if let Some(reason) = self.claims.conflict(vm, by_path) {
            return Some(reason);
        }
        let found = match located.file.metadata() {
            Ok(found) if found.nlink() == 1 => return None,
            Ok(found) => found,
            Err(error) => return Some(error.to_string()),
        };
        // The file has other names, one of which another VM may name, or a snapshot have.
        let opened = self.opened.get_mut(id)?;
        if opened.linked.is_none() {
            let root = opened.root.clone().ok()?;
            match linked(self.app, &located.repository, root, &self.claims) {
                Ok(linked) => opened.linked = Some(linked),
                Err(error) => return Some(format!("has more than one name, and whose it is cannot be told: {error}")),
            }
        }
        let owners = opened.linked.as_ref()?.get(&(found.dev(), found.ino()))?;
        match owners.snapshot {
            Some(snapshot) => Some(format!("is a file of the snapshot {snapshot}, and no disk of a VM")),
            None => self.claims.conflict(vm, &owners.claims),
        }
    }

    fn unclonable(&self, located: &LocatedDisk) -> Option<String> {
        let root = self.opened.get(located.repository.id()).and_then(|opened| opened.root.as_ref().ok());
        let root_device = root.and_then(|root| root.metadata().ok()).map(|root| root.dev());
        let root = located.repository.mount_point();
        match (root_device, located.file.metadata().map(|file| file.dev())) {
            (Some(root), Ok(file)) if root != file => {
                Some("lies on another file system, mounted inside the repository".to_owned())
            }
            _ => {
                let possible = match self.app.clone_support.of(root) {
                    // A snapshot will fail for what it is.
                    Err(Unclonable::NotNow(_)) => Ok(()),
                    possible => possible,
                };
                let possible = possible.and_then(|()| clone_support::of_disk(&located.file, &located.path));
                possible.err().map(|reason| reason.to_string())
            }
        }
    }
}

/// Whose the files of a repository are that have a VM's or a snapshot's name among others.
fn linked(
    app: &App,
    repository: &Repository,
    root: Folder,
    claims: &Claims,
) -> Result<HashMap<FileNumber, Owners>, String> {
    let snapshots = app.store.snapshots().map_err(|error| error.to_string())?;
    let named: Vec<(PathBuf, Vec<Claim>)> =
        claims.in_repository(repository.id()).map(|(below, claims)| (below.clone(), claims.clone())).collect();
    let looked = repository.executor().run(Kind::SHORT, move |access| {
        let mut linked: HashMap<FileNumber, Owners> = HashMap::new();
        for (below, claims) in named {
            access.moved();
            if let Ok(found) = root.stat(below) {
                linked.entry((found.dev(), found.ino())).or_default().claims.extend(claims);
            }
        }
        let device = root.metadata().map_err(|error| error.to_string())?.dev();
        Ok::<_, String>((linked, device))
    });
    let (mut linked, device) = looked.map_err(|error| error.to_string())??;
    for snapshot in &snapshots {
        for disk in snapshot.disks.iter().filter(|disk| disk.source.repository == *repository.id()) {
            linked.entry((device, disk.identity.inode)).or_default().snapshot = Some(snapshot.id);
        }
    }
    Ok(linked)
}

/// A disk that cannot be taken prevents the snapshot only where the guest can write to it.
fn refused(line: &DiskLine, reason: String) -> Verdict {
    if line.is_writable() && !line.cdrom { Verdict::Prevents(reason) } else { Verdict::LeftOut(reason) }
}
