//! Decides which disks of a VM are in a snapshot.

use std::path::Path;

use super::disk_files::{DiskFacts, DiskFiles, NoFacts};
use super::disk_names::{NO_NAME, can_be_named, names_for};
use crate::app::error::Reason;
use crate::inventory::{Disk, DiskFormat, DiskRole, Medium};
use crate::model::{DiskName, DiskSource, RepositoryId};

/// The decision about a disk.
#[derive(Clone, Debug)]
pub(crate) enum DiskDecision {
    /// The snapshot includes the disk.
    Taken(DiskFacts),
    /// The snapshot omits the disk, because it has no data of the VM: a CD-ROM, or a foreign read-only disk.
    LeftOut(Reason),
    /// No snapshot is possible: omitting this disk would lose data.
    Prevents(Reason),
    /// No snapshot is possible now, because the disk cannot be examined.
    NotKnown(Reason),
}

/// An examined disk of a definition.
pub(crate) struct ClassifiedDisk {
    /// Its size in bytes and its repository, if it could be opened.
    pub found: Option<(u64, RepositoryId)>,
    /// The name that users gave it.
    pub friendly_name: Option<String>,
    pub decision: DiskDecision,
}

/// The friendly name of a disk that backups omit starts with this.
const NO_BACKUP: &str = "[NOBAK]";

impl ClassifiedDisk {
    /// Omits the disk if its name has the tag. For requests that do not name the disk.
    pub(crate) fn apply_nobackup_tag(mut self) -> Self {
        let has_tag = self.friendly_name.as_ref().is_some_and(|name| name.starts_with(NO_BACKUP));
        if has_tag && !matches!(self.decision, DiskDecision::LeftOut(_)) {
            self.decision = DiskDecision::LeftOut(format!("its name starts with {NO_BACKUP}").into());
        }
        self
    }
}

/// The reason why no snapshot is possible.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Obstacle {
    /// The index of the disk that prevents the snapshot, if one does.
    pub disk: Option<usize>,
    pub reason: Reason,
    /// Whether the cause is only that the disk cannot be examined now.
    pub is_temporary: bool,
}

/// Selects the disks of a VM for a snapshot. Returns their indices in `disks`, and their names in the snapshot. The
/// list of VMs and the creation of snapshots share this function, so that VMs that are listed as compatible can be
/// snapshotted.
pub(crate) fn choose<'a>(
    disks: impl Iterator<Item = &'a DiskDecision> + Clone,
) -> Result<Vec<(usize, DiskName)>, Obstacle> {
    let obstacle = |disk, reason, is_temporary| Obstacle { disk, reason, is_temporary };
    let mut taken: Vec<(usize, &DiskSource)> = Vec::new();
    for (index, decision) in disks.enumerate() {
        match decision {
            DiskDecision::Prevents(reason) => return Err(obstacle(Some(index), reason.clone(), false)),
            DiskDecision::NotKnown(reason) => return Err(obstacle(Some(index), reason.clone(), true)),
            // A file that is listed twice in the definition is one disk.
            DiskDecision::Taken(disk) if taken.iter().any(|(_, source)| **source == disk.source) => {}
            DiskDecision::Taken(disk) => taken.push((index, &disk.source)),
            DiskDecision::LeftOut(_) => {}
        }
    }
    if taken.is_empty() {
        return Err(obstacle(None, "no disk to snapshot".into(), false));
    }
    let (indices, sources): (Vec<usize>, Vec<&DiskSource>) = taken.into_iter().unzip();
    let names = names_for(&sources).map_err(|unnamed| obstacle(Some(indices[unnamed]), NO_NAME.into(), false))?;
    Ok(indices.into_iter().zip(names).collect())
}

/// What the user of the API or of a command can do about a disk that can never be in a snapshot.
const EXCLUDE: &str = "exclude it (exclude_disks, --exclude-disks)";

/// Decides about a disk of the VM `vm`.
pub(crate) fn classify(files: &DiskFiles<'_>, vm: &str, disk: &Disk) -> ClassifiedDisk {
    let nothing_found = |decision| ClassifiedDisk { found: None, friendly_name: None, decision };
    let path = match &disk.medium {
        Medium::File(path) => path,
        Medium::Absent => return nothing_found(DiskDecision::LeftOut("no medium".into())),
        Medium::Other { scheme, target } => {
            return nothing_found(refused(disk, format!("{scheme}:{target} is not a file in a repository; {EXCLUDE}")));
        }
    };
    match disk.format {
        DiskFormat::Raw => {}
    }
    let facts = match files.facts(path) {
        Ok(facts) => facts,
        Err(NoFacts::Unfit(problem)) => return nothing_found(refused(disk, format!("{path} {problem}"))),
        Err(NoFacts::Unavailable(problem)) => {
            return nothing_found(not_known(disk, format!("{path} cannot be examined: {problem}")));
        }
    };
    let file_name = Path::new(&facts.source.path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let note = files.notes(facts).and_then(|notes| notes.get(file_name));
    let friendly_name = note.and_then(|note| note.friendly_name.clone());
    let decision = if disk.role == DiskRole::Cdrom {
        DiskDecision::LeftOut("a CD-ROM".into())
    } else if let Some(other_type) = note.and_then(|note| note.other_type.as_deref()) {
        DiskDecision::LeftOut(format!("the manager lists it as {other_type}").into())
    } else if !disk.writable && file_name.ends_with(".iso") {
        DiskDecision::LeftOut("an ISO image".into())
    } else if !can_be_named(&facts.source) {
        refused(disk, NO_NAME)
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

/// A disk that cannot be snapshotted prevents the snapshot only if the guest can write to it.
fn refused(disk: &Disk, reason: impl Into<Reason>) -> DiskDecision {
    let reason = reason.into();
    if is_own_data(disk) { DiskDecision::Prevents(reason) } else { DiskDecision::LeftOut(reason) }
}

fn not_known(disk: &Disk, reason: String) -> DiskDecision {
    let reason = reason.into();
    if is_own_data(disk) { DiskDecision::NotKnown(reason) } else { DiskDecision::LeftOut(reason) }
}

fn is_own_data(disk: &Disk) -> bool {
    disk.writable && disk.role != DiskRole::Cdrom
}
