//! Finds the VM of a snapshot folder, and its sequence among the VM's snapshots.

use std::collections::{HashMap, HashSet};

use crate::model::{Described, DiskName, DiskSource, RepositoryId, Snapshot, SnapshotId, VmId};
use crate::repository::Repository;
use crate::repository::scan::FoundFolder;
use crate::store::{FIRST_SEQUENCE, LAST_SEQUENCE};

/// A younger folder may still be under construction.
const MIN_AGE: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// The folders of one snapshot, one per repository.
pub(super) type Parts = Vec<(Repository, FoundFolder)>;

/// The disks of the inventory, by repository and file name.
pub(super) type Owners = HashMap<(RepositoryId, String), HashSet<(VmId, DiskSource)>>;

/// A snapshot with a known VM and time of creation.
pub(super) struct PlacedSnapshot {
    pub id: SnapshotId,
    pub vm: VmId,
    pub created_at: jiff::Timestamp,
    pub origin: Origin,
}

/// The source of a snapshot's VM and time.
pub(super) enum Origin {
    Manifest(Box<Described>),
    /// The names of its files, whose identities are not recorded yet.
    Files {
        created_by: String,
        disks: Vec<(DiskName, DiskSource)>,
    },
}

impl PlacedSnapshot {
    pub fn repositories(&self) -> Vec<&RepositoryId> {
        match &self.origin {
            Origin::Manifest(described) => described.snapshot.repositories(),
            Origin::Files { disks, .. } => disks.iter().map(|(_, source)| &source.repository).collect(),
        }
    }

    /// The sequence in its manifest.
    pub fn sequence(&self) -> Option<u64> {
        match &self.origin {
            Origin::Manifest(described) => Some(described.snapshot.sequence),
            Origin::Files { .. } => None,
        }
    }
}

/// Finds the VM of the snapshot whose folders are `parts`.
pub(super) fn place(
    parts: &Parts,
    owners: &Owners,
    with_manifests: bool,
    user: &str,
) -> Result<PlacedSnapshot, String> {
    if parts.iter().any(|(_, folder)| folder.is_unfinished) {
        return Err("is being created, or is unfinished: it has the marker .making".to_owned());
    }
    let youngest = parts.iter().map(|(_, folder)| folder.touched_at).max().unwrap_or_default();
    // This version writes the manifest last.
    let is_finished = parts.iter().all(|(_, folder)| folder.maker.is_some());
    if !is_finished && jiff::Timestamp::now().duration_since(youngest) < MIN_AGE {
        return Err(format!(
            "was changed less than {} minutes ago, so it may still be under construction",
            MIN_AGE.as_mins()
        ));
    }
    if let Some(manifest) = parts.iter().find_map(|(_, folder)| folder.manifest.as_ref()) {
        if !with_manifests {
            return Err(
                "has a manifest: it belongs to another exporter, unless its database was lost (adopt --manifests)"
                    .to_owned(),
            );
        }
        let described = manifest.as_ref().map_err(|error| format!("its manifest cannot be read: {error}"))?;
        let snapshot = &described.snapshot;
        let is_its_own = parts.iter().all(|(_, folder)| folder.id == snapshot.id);
        if !is_its_own {
            return Err("its manifest belongs to another snapshot".to_owned());
        }
        let Snapshot { id, ref vm, created_at, .. } = *snapshot;
        return Ok(PlacedSnapshot {
            id,
            vm: vm.clone(),
            created_at,
            origin: Origin::Manifest(Box::new(described.clone())),
        });
    }
    let mut vm: Option<&VmId> = None;
    let mut disks = Vec::new();
    for (repository, folder) in parts {
        for name in &folder.files {
            let (owner, source) = owner_of(repository, name, owners)?;
            if vm.is_some_and(|vm| vm != owner) {
                return Err("its disks belong to more than one VM".to_owned());
            }
            vm = Some(owner);
            if disks.iter().any(|(other, _)| other == name) {
                return Err(format!("has {name} in two repositories"));
            }
            disks.push((name.clone(), source.clone()));
        }
    }
    let (Some(vm), Some((_, first))) = (vm, parts.first()) else { return Err("contains no disk".to_owned()) };
    Ok(PlacedSnapshot {
        id: first.id,
        vm: vm.clone(),
        created_at: parts.iter().map(|(_, folder)| folder.made_at).min().unwrap_or_default(),
        origin: Origin::Files { created_by: user.to_owned(), disks },
    })
}

pub(super) fn owner_of<'a>(
    repository: &Repository,
    name: &DiskName,
    owners: &'a Owners,
) -> Result<(&'a VmId, &'a DiskSource), String> {
    let owners = owners.get(&(repository.id().clone(), name.as_str().to_owned()));
    let mut owners = owners.into_iter().flatten();
    match (owners.next(), owners.next()) {
        (Some((vm, source)), None) => Ok((vm, source)),
        (Some(_), Some(_)) => Err(format!("{name} matches more than one disk of the inventory")),
        (None, _) => Err(format!("no readable VM of the inventory has a disk {name} in this repository")),
    }
}

/// Assigns a sequence to an adopted snapshot among the `existing` ones (sequence and time): before all that this
/// service has created. It keeps the sequence `named` in its manifest, if there is one and it fits.
///
/// # Errors
/// If no sequence puts the snapshots in the order of their times.
pub(super) fn assign_sequence(
    named: Option<u64>,
    created_at: jiff::Timestamp,
    existing: &[(u64, jiff::Timestamp)],
) -> Result<u64, String> {
    let is_in_order = |sequence: u64| {
        existing.iter().all(|(other, at)| *other != sequence && (*other < sequence) == (*at <= created_at))
    };
    // After a lost database, another snapshot may have got the manifest's sequence.
    if let Some(named) = named.filter(|named| (1..=LAST_SEQUENCE).contains(named) && is_in_order(*named)) {
        return Ok(named);
    }
    let second = u64::try_from(created_at.as_second()).unwrap_or_default();
    let older = existing.iter().filter(|(_, at)| *at <= created_at);
    let after = older.map(|(other, _)| other + 1).filter(|after| *after < FIRST_SEQUENCE).max();
    let sequence = second.max(after.unwrap_or_default());
    if !is_in_order(sequence) {
        return Err("is newer than snapshots that this service has created of the VM".to_owned());
    }
    Ok(sequence)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> jiff::Timestamp {
        jiff::Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn adopted_snapshot_gets_sequence_by_time() {
        let place = |second: i64, named: Option<u64>, existing: &[(u64, jiff::Timestamp)]| {
            assign_sequence(named, at(second), existing)
        };
        let (own, other) = ((FIRST_SEQUENCE + 7, at(5000)), (1000, at(1000)));
        for none in [None, Some(0)] {
            assert_eq!(place(1000, none, &[]), Ok(1000));
            assert_eq!(place(1000, none, &[own]), Ok(1000));
            // Two in the same second.
            assert_eq!(place(1000, none, &[other, own]), Ok(1001));
            assert_eq!(place(900, none, &[other, own]), Ok(900));
            // Newer than a snapshot of this service: it cannot follow that one.
            assert!(place(6000, none, &[own]).is_err());
        }
        // With a sequence in its manifest.
        assert_eq!(place(4000, Some(FIRST_SEQUENCE + 3), &[own]), Ok(FIRST_SEQUENCE + 3));
        // Taken by another snapshot, or damaged: the sequence follows from the time.
        for taken in [FIRST_SEQUENCE + 7, FIRST_SEQUENCE + 8, u64::MAX] {
            assert_eq!(place(4000, Some(taken), &[own]), Ok(4000));
        }
        assert!(place(6000, Some(FIRST_SEQUENCE + 3), &[own]).is_err());
    }
}
