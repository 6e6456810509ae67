//! Which of a VM's disks a snapshot takes, and why not the others.

use std::path::Path;

use super::disk_files::{DiskFacts, DiskFiles, NoFacts};
use super::disk_names::{NO_NAME, can_be_named, names_for};
use crate::inventory::{Disk, DiskRole, Medium};
use crate::model::{DiskName, DiskSource, RepositoryId};

/// What a snapshot does with a disk.
#[derive(Clone, Debug)]
pub(crate) enum DiskDecision {
    /// Takes it.
    Taken(DiskFacts),
    /// Leaves it out, as it holds nothing of the VM's own: a CD-ROM, a read-only disk elsewhere.
    LeftOut(String),
    /// Cannot be made at all: leaving this disk out would lose data.
    Prevents(String),
    /// Cannot be made now: nobody can say what the disk is.
    NotKnown(String),
}

/// A disk of a definition, looked at.
pub(crate) struct ClassifiedDisk {
    /// Its size, bytes, and the repository it lies in, where it could be opened.
    pub found: Option<(u64, RepositoryId)>,
    /// The name that people gave it.
    pub friendly_name: Option<String>,
    pub decision: DiskDecision,
}

/// What a disk's friendly name starts with that no backup takes.
const NO_BACKUP: &str = "[NOBAK]";

impl ClassifiedDisk {
    /// The same, left out where the disk's name says so: for all who do not ask for it.
    pub(crate) fn apply_nobackup_tag(mut self) -> Self {
        let says_no = self.friendly_name.as_ref().is_some_and(|name| name.starts_with(NO_BACKUP));
        if says_no && !matches!(self.decision, DiskDecision::LeftOut(_)) {
            self.decision = DiskDecision::LeftOut(format!("its name starts with {NO_BACKUP}"));
        }
        self
    }
}

/// Why there can be no snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// The place of the disk that is in the way, where it is one.
    pub disk: Option<usize>,
    pub reason: String,
    /// Whether it is only that nobody can say now.
    pub is_passing: bool,
}

/// Which disks of a VM a snapshot takes, each with its name there, by their places in `disks`. The list of VMs and
/// the creation of a snapshot both ask this, so that what is called compatible is snapshotted.
///
/// # Errors
/// [`Obstacle`].
pub(crate) fn choose<'a>(
    disks: impl Iterator<Item = &'a DiskDecision> + Clone,
) -> Result<Vec<(usize, DiskName)>, Obstacle> {
    let obstacle = |disk, reason: &str, is_passing| Obstacle { disk, reason: reason.to_owned(), is_passing };
    let mut taken: Vec<(usize, &DiskSource)> = Vec::new();
    for (index, decision) in disks.enumerate() {
        match decision {
            DiskDecision::Prevents(reason) => return Err(obstacle(Some(index), reason, false)),
            DiskDecision::NotKnown(reason) => return Err(obstacle(Some(index), reason, true)),
            // One file that the definition names twice is one disk.
            DiskDecision::Taken(disk) if taken.iter().any(|(_, source)| **source == disk.source) => {}
            DiskDecision::Taken(disk) => taken.push((index, &disk.source)),
            DiskDecision::LeftOut(_) => {}
        }
    }
    if taken.is_empty() {
        return Err(obstacle(None, "no disk to snapshot", false));
    }
    let (indices, sources): (Vec<usize>, Vec<&DiskSource>) = taken.into_iter().unzip();
    let names = names_for(&sources).map_err(|unnamed| obstacle(Some(indices[unnamed]), NO_NAME, false))?;
    Ok(indices.into_iter().zip(names).collect())
}

/// Decides about a disk of the VM that is called `vm`.
pub(crate) fn classify(files: &DiskFiles<'_>, vm: &str, disk: &Disk) -> ClassifiedDisk {
    let nothing_found = |decision| ClassifiedDisk { found: None, friendly_name: None, decision };
    let path = match &disk.medium {
        Medium::File(path) => path,
        Medium::Absent => return nothing_found(DiskDecision::LeftOut("no medium".to_owned())),
        Medium::Other { scheme, target } => {
            return nothing_found(refused(disk, format!("{scheme}:{target} is no file in a repository")));
        }
    };
    let facts = match files.facts(path) {
        Ok(facts) => facts,
        Err(NoFacts::Unfit(problem)) => return nothing_found(refused(disk, format!("{path} {problem}"))),
        Err(NoFacts::Unavailable(problem)) => {
            return nothing_found(not_known(disk, format!("{path} cannot be looked at: {problem}")));
        }
    };
    let file_name = Path::new(&facts.source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let note = files.notes(facts).and_then(|notes| notes.get(file_name));
    let friendly_name = note.and_then(|note| note.friendly_name.clone());
    let decision = if disk.role == DiskRole::Cdrom {
        DiskDecision::LeftOut("a CD-ROM".to_owned())
    } else if let Some(other_type) = note.and_then(|note| note.other_type.as_deref()) {
        DiskDecision::LeftOut(format!("the manager calls it {other_type}"))
    } else if !disk.writable && file_name.ends_with(".iso") {
        DiskDecision::LeftOut("an ISO image".to_owned())
    } else if !can_be_named(&facts.source) {
        refused(disk, NO_NAME.to_owned())
    } else if let Some(reason) = files.another_owner(vm, facts) {
        refused(disk, reason)
    } else {
        match files.unclonable(facts) {
            None => DiskDecision::Taken(facts.clone()),
            Some(NoFacts::Unfit(reason)) => refused(disk, reason),
            Some(NoFacts::Unavailable(reason)) => not_known(disk, reason),
        }
    };
    ClassifiedDisk { found: Some((facts.size, facts.source.repository.clone())), friendly_name, decision }
}

/// A disk that cannot be taken prevents the snapshot only where the guest can write to it.
fn refused(disk: &Disk, reason: String) -> DiskDecision {
    if is_the_vms_own(disk) { DiskDecision::Prevents(reason) } else { DiskDecision::LeftOut(reason) }
}

fn not_known(disk: &Disk, reason: String) -> DiskDecision {
    if is_the_vms_own(disk) { DiskDecision::NotKnown(reason) } else { DiskDecision::LeftOut(reason) }
}

fn is_the_vms_own(disk: &Disk) -> bool {
    disk.writable && disk.role != DiskRole::Cdrom
}
