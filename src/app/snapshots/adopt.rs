//! The journey of snapshots that others made into the database.
//!
//! The original exporter leaves folders of snapshots behind, and so does a lost database. Which VM a
//! folder is of is told by its disks' names and the inventory, or by its manifest; when it was made,
//! by its files' times. What cannot be placed is listed and left as it is; nothing is ever deleted.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use crate::api;
use crate::app::audit::Actor;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::inventory::vm_cfg;
use crate::model::{DiskName, DiskSource, Provenance, RepositoryId, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, FoundFolder};
use crate::repository::{LocatedDisk, PathError, Repository, SnapshotDir, assign, locate};
use crate::store::{FIRST_SEQUENCE, LAST_SEQUENCE};

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adoption {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Also those with a manifest, which are another exporter's unless its database is lost.
    pub manifests: bool,
}

/// A folder that was touched this short a time ago may be one that is still being made.
const MIN_AGE: jiff::SignedDuration = jiff::SignedDuration::from_mins(10);

/// The folders of one snapshot, one a repository.
type Parts = Vec<(Repository, FoundFolder)>;

/// The disks of the inventory: by repository and file name, whose it is.
type Owners = HashMap<(RepositoryId, String), HashSet<(VmId, DiskSource)>>;

/// VMs of which not all disks can be seen, and why.
type Partial = HashMap<VmId, String>;

/// A snapshot that was placed, before it is taken.
struct Candidate {
    placed: PlacedSnapshot,
    parts: Parts,
}

/// A snapshot of which it is known whose it is and when it was made.
struct PlacedSnapshot {
    id: SnapshotId,
    vm: VmId,
    created_at: jiff::Timestamp,
    origin: Origin,
}

/// How a snapshot was placed.
enum Origin {
    Manifest(Snapshot),
    /// By its files' names. Their identities are not recorded yet.
    Files {
        created_by: String,
        disks: Vec<(DiskName, DiskSource)>,
    },
}

impl PlacedSnapshot {
    fn repositories(&self) -> Vec<&RepositoryId> {
        match &self.origin {
            Origin::Manifest(snapshot) => snapshot.repositories(),
            Origin::Files { disks, .. } => disks.iter().map(|(_, source)| &source.repository).collect(),
        }
    }

    /// The place in the order that its manifest names.
    fn sequence(&self) -> Option<u64> {
        match &self.origin {
            Origin::Manifest(snapshot) => Some(snapshot.sequence),
            Origin::Files { .. } => None,
        }
    }
}

impl App {
    /// Takes over the snapshots found in the repositories that the database does not know.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::AgentDb`], [`Error::Store`]. What goes wrong with one folder
    /// is told beside it.
    pub async fn adopt(self: &Arc<Self>, session: &Session, what: Adoption) -> Result<api::Adoption, Error> {
        let (app, user, actor) = (Arc::clone(self), session.user().to_owned(), Actor::from(session));
        let outcome = self.detached(async move {
            let (candidates, mut report) = app.blocking(move |app| app.candidates(what, &user)).await?;
            for (vm, candidates) in candidates {
                let own = app.vm_locks.take(&vm).await;
                // The lock would leave a file behind.
                let of_each =
                    candidates.iter().map(|candidate| candidate.placed.repositories()).filter(|_| !what.dry_run);
                let _turn = app.lock_for_removal(own, &vm, of_each).await?;
                let taken = app.blocking(move |app| app.take_over(what, candidates)).await?;
                report.adopted.extend(taken.adopted);
                report.left.extend(taken.left);
            }
            app.blocking(App::look_for_unknown).await?;
            Ok(report)
        });
        let outcome = outcome.await;
        if !what.dry_run {
            actor.did("adopt", "", &outcome);
        }
        outcome
    }

    /// What can be placed, by VM and oldest first, and what cannot.
    fn candidates(&self, what: Adoption, user: &str) -> Result<(BTreeMap<VmId, Vec<Candidate>>, api::Adoption), Error> {
        let mut report = api::Adoption { dry_run: what.dry_run, adopted: Vec::new(), left: Vec::new() };
        let mut left = |path: &Path, reason: String| {
            report.left.push(api::LeftFolder { path: path.display().to_string(), reason });
        };
        let mut by_id: BTreeMap<u128, Parts> = BTreeMap::new();
        for repository in self.repositories.found().usable().filter(|repository| repository.mounted().is_ok()) {
            match repository.run(JobKind::SHORT, |access, root| scan::scan(root, &|| access.progress())) {
                Ok((folders, odd)) => {
                    for folder in folders {
                        by_id.entry(folder.id.as_u128()).or_default().push((repository.clone(), folder));
                    }
                    odd.iter().for_each(|odd| left(&odd.path, odd.reason.clone()));
                }
                Err(error) => left(repository.mount_point(), format!("cannot be looked through: {error}")),
            }
        }
        let found = self.repositories.found();
        for (repository, absent) in found.unmounted() {
            left(repository.mount_point(), format!("{absent}: what lies in it is not looked through"));
        }
        let (owners, partial) = self.owners_of_disks()?;
        let mut placed: BTreeMap<VmId, Vec<Candidate>> = BTreeMap::new();
        for (id, parts) in by_id {
            // Known already, perhaps as one that is being made or removed.
            if let Some(known) = self.store.record(SnapshotId::from_u128(id))? {
                let strange = parts.iter().filter(|(repository, _)| !known.repositories().contains(&repository.id()));
                strange.for_each(|(_, folder)| left(&folder.path, "is no part of the snapshot of this id".to_owned()));
                continue;
            }
            let placed_as = place(&parts, &owners, what, user);
            let placed_as = placed_as.and_then(|snapshot| match partial.get(&snapshot.vm) {
                // A part of it would be taken for the whole, and the rest never be found again.
                Some(reason) => Err(reason.clone()),
                None => Ok(snapshot),
            });
            match placed_as {
                Ok(new) => placed.entry(new.vm.clone()).or_default().push(Candidate { placed: new, parts }),
                Err(reason) => parts.iter().for_each(|(_, folder)| left(&folder.path, reason.clone())),
            }
        }
        for candidates in placed.values_mut() {
            candidates.sort_by_key(|candidate| (candidate.placed.created_at, candidate.placed.sequence()));
        }
        Ok((placed, report))
    }

    fn owners_of_disks(&self) -> Result<(Owners, Partial), Error> {
        let (mut owners, mut partial) = (Owners::new(), Partial::new());
        let found = self.repositories.found();
        let unmounted: Vec<_> = found.unmounted().map(|(repository, _)| repository.mount_point()).collect();
        let repositories: Vec<_> = found.usable().cloned().collect();
        for vm in &self.inventory()?.vms {
            let (Some(id), Ok(lines)) = (&vm.id, &vm.disks) else { continue };
            for line in lines {
                if let vm_cfg::DiskSource::File(path) = &line.source
                    && let Some(missing) = unmounted.iter().find(|mount_point| Path::new(path).starts_with(mount_point))
                {
                    let reason = format!("its VM has a disk in {}, where nothing is mounted", missing.display());
                    partial.insert(id.clone(), reason);
                }
                let vm_cfg::DiskSource::File(path) = &line.source else { continue };
                // Whether or not it could be snapshotted today.
                let Ok(disk) = located(&repositories, Path::new(path)) else { continue };
                let name = disk.source.path.rsplit('/').next().unwrap_or_default().to_owned();
                let owner = (id.clone(), disk.source.clone());
                owners.entry((disk.source.repository, name)).or_default().insert(owner);
            }
        }
        Ok((owners, partial))
    }

    /// Takes over snapshots of one VM, whose turn it is.
    fn take_over(&self, what: Adoption, candidates: Vec<Candidate>) -> Result<api::Adoption, Error> {
        let mut report = api::Adoption { dry_run: what.dry_run, adopted: Vec::new(), left: Vec::new() };
        let snapshots = match candidates.first() {
            Some(first) => self.store.snapshots_of(&first.placed.vm)?,
            None => Vec::new(),
        };
        let mut there: Vec<_> = snapshots.iter().map(|snapshot| (snapshot.sequence, snapshot.created_at)).collect();
        for candidate in candidates {
            let PlacedSnapshot { id, ref vm, created_at, .. } = candidate.placed;
            let taken = assign_sequence(candidate.placed.sequence(), created_at, &there).and_then(|sequence| {
                if !what.dry_run {
                    self.take_one(&candidate, sequence)?;
                }
                Ok(sequence)
            });
            let paths = candidate.parts.iter().map(|(_, folder)| folder.path.display().to_string());
            match taken {
                Ok(sequence) => {
                    report.adopted.push(api::AdoptedSnapshot {
                        id: id.to_string(),
                        vm_id: vm.to_string(),
                        created_at: created_at.to_string(),
                        paths: paths.collect(),
                    });
                    there.push((sequence, created_at));
                }
                Err(reason) => {
                    report.left.extend(paths.map(|path| api::LeftFolder { path, reason: reason.clone() }));
                }
            }
        }
        Ok(report)
    }

    fn take_one(&self, candidate: &Candidate, sequence: u64) -> Result<(), String> {
        let Candidate { placed, parts } = candidate;
        let (id, kind) = (placed.id, JobKind::CHANGE.exclusive(placed.id.as_u128()));
        let snapshot = match &placed.origin {
            Origin::Manifest(snapshot) => Snapshot { sequence, ..snapshot.clone() },
            Origin::Files { created_by, disks } => Snapshot {
                id,
                vm: placed.vm.clone(),
                sequence,
                created_at: placed.created_at,
                created_by: created_by.clone(),
                disks: disks
                    .iter()
                    .map(|(name, source)| self.seal_found(id, name, source))
                    .collect::<Result<_, _>>()?,
                provenance: Provenance::crash_consistent(),
            },
        };
        let has_manifest = matches!(placed.origin, Origin::Manifest(_));
        for disk in snapshot.disks.iter().filter(|_| has_manifest) {
            self.open_base(&snapshot, disk).map_err(|error| format!("{}: {error}", disk.name))?;
        }
        // First the record: a manifest without one would keep the next try from taking it.
        if !self.store.adopt(&snapshot).map_err(|error| error.to_string())? {
            return Err("is known already: somebody else has just adopted it".to_owned());
        }
        tracing::info!(snapshot = %snapshot.id, vm = %snapshot.vm, created_at = %snapshot.created_at, "snapshot adopted");
        if !has_manifest {
            for (repository, folder) in parts {
                let (of, exporter) = (snapshot.clone(), self.exporter.clone());
                let sealed = repository.run(kind, move |_, root| SnapshotDir::new(root, id).seal(&of, &exporter));
                if let Err(error) = sealed {
                    tracing::warn!(folder = %folder.path.display(), %error, "adopted, but its manifest cannot be written");
                }
            }
        }
        Ok(())
    }

    /// The disk whose file was found, with the file's identity from now on.
    fn seal_found(&self, id: SnapshotId, name: &DiskName, source: &DiskSource) -> Result<SnapshotDisk, String> {
        let repository = self.repository(&source.repository).ok_or("its repository is gone")?;
        let (kind, asked) = (JobKind::CHANGE.exclusive(id.as_u128()), name.clone());
        let sealed = repository.run(kind, move |_, root| scan::seal_found(root, id, &asked));
        let sealed = sealed.map_err(|error| format!("{name}: {error}"))?;
        let (name, source) = (name.clone(), source.clone());
        Ok(SnapshotDisk { name, source, identity: sealed.identity, volume: None, seal: Some(sealed.seal) })
    }
}

fn located(repositories: &[Repository], path: &Path) -> Result<LocatedDisk, PathError> {
    let assigned = assign(repositories, path)?;
    let repository = assigned.repository.clone();
    repository.run(JobKind::SHORT, move |_, root| Ok(locate::open(root, &assigned)))?
}

/// The snapshot that `parts` are.
fn place(parts: &Parts, owners: &Owners, what: Adoption, user: &str) -> Result<PlacedSnapshot, String> {
    if parts.iter().any(|(_, folder)| folder.is_unfinished) {
        return Err("is being made, or was left half made: it carries the marker .making".to_owned());
    }
    let youngest = parts.iter().map(|(_, folder)| folder.touched_at).max().unwrap_or_default();
    // A manifest of this version is in place only when all else is.
    let is_finished = parts.iter().all(|(_, folder)| folder.maker.is_some());
    if !is_finished && jiff::Timestamp::now().duration_since(youngest) < MIN_AGE {
        return Err(format!("was touched less than {} minutes ago: it may be being made", MIN_AGE.as_mins()));
    }
    if let Some(manifest) = parts.iter().find_map(|(_, folder)| folder.manifest.as_ref()) {
        if !what.manifests {
            return Err(
                "has a manifest: it is another exporter's, unless its database is lost (adopt --manifests)".to_owned()
            );
        }
        let snapshot = manifest.as_ref().map_err(|error| format!("its manifest cannot be read: {error}"))?;
        let is_its_own = parts.iter().all(|(_, folder)| folder.id == snapshot.id);
        if !is_its_own {
            return Err("its manifest is another snapshot's".to_owned());
        }
        let Snapshot { id, ref vm, created_at, .. } = *snapshot;
        return Ok(PlacedSnapshot { id, vm: vm.clone(), created_at, origin: Origin::Manifest(snapshot.clone()) });
    }
    let mut vm: Option<&VmId> = None;
    let mut disks = Vec::new();
    for (repository, folder) in parts {
        for name in &folder.files {
            let (owner, source) = owner_of(repository, name, owners)?;
            if vm.is_some_and(|vm| vm != owner) {
                return Err("its disks are of more than one VM".to_owned());
            }
            vm = Some(owner);
            if disks.iter().any(|(other, _)| other == name) {
                return Err(format!("has {name} in two repositories"));
            }
            disks.push((name.clone(), source.clone()));
        }
    }
    let (Some(vm), Some((_, first))) = (vm, parts.first()) else { return Err("holds no disk".to_owned()) };
    Ok(PlacedSnapshot {
        id: first.id,
        vm: vm.clone(),
        created_at: parts.iter().map(|(_, folder)| folder.made_at).min().unwrap_or_default(),
        origin: Origin::Files { created_by: user.to_owned(), disks },
    })
}

fn owner_of<'a>(
    repository: &Repository,
    name: &DiskName,
    owners: &'a Owners,
) -> Result<(&'a VmId, &'a DiskSource), String> {
    let owners = owners.get(&(repository.id().clone(), name.as_str().to_owned()));
    let mut owners = owners.into_iter().flatten();
    match (owners.next(), owners.next()) {
        (Some((vm, source)), None) => Ok((vm, source)),
        (Some(_), Some(_)) => Err(format!("{name} may be of more than one disk of the inventory")),
        (None, _) => Err(format!("no VM of the inventory has a disk {name} in this repository, as far as can be read")),
    }
}

/// The place of an adopted snapshot among those that are `there`, each with its place and its time: before all that
/// this service made. One with a place, from its manifest, keeps it.
///
/// # Errors
/// Where that would not be the order of their times.
fn assign_sequence(
    named: Option<u64>,
    created_at: jiff::Timestamp,
    there: &[(u64, jiff::Timestamp)],
) -> Result<u64, String> {
    let is_in_order = |sequence: u64| {
        there.iter().all(|(other, at)| *other != sequence && (*other < sequence) == (*at <= created_at))
    };
    // That of a manifest may have been given anew since its database was lost.
    if let Some(named) = named.filter(|named| (1..=LAST_SEQUENCE).contains(named) && is_in_order(*named)) {
        return Ok(named);
    }
    let second = u64::try_from(created_at.as_second()).unwrap_or_default();
    let older = there.iter().filter(|(_, at)| *at <= created_at);
    let after = older.map(|(other, _)| other + 1).filter(|after| *after < FIRST_SEQUENCE).max();
    let sequence = second.max(after.unwrap_or_default());
    if !is_in_order(sequence) {
        return Err("is not older than snapshots that this service has made of the VM".to_owned());
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
    fn an_adopted_snapshot_gets_the_place_of_its_time() {
        let place = |second: i64, named: Option<u64>, there: &[(u64, jiff::Timestamp)]| {
            assign_sequence(named, at(second), there)
        };
        let (made, other) = ((FIRST_SEQUENCE + 7, at(5000)), (1000, at(1000)));
        for none in [None, Some(0)] {
            assert_eq!(place(1000, none, &[]), Ok(1000));
            assert_eq!(place(1000, none, &[made]), Ok(1000));
            // Two of one second.
            assert_eq!(place(1000, none, &[other, made]), Ok(1001));
            assert_eq!(place(900, none, &[other, made]), Ok(900));
            // Newer than what this service has made: it cannot stand after it.
            assert!(place(6000, none, &[made]).is_err());
        }
        // With a place of its own.
        assert_eq!(place(4000, Some(FIRST_SEQUENCE + 3), &[made]), Ok(FIRST_SEQUENCE + 3));
        // Given anew since, or damaged: the place of its time.
        for taken in [FIRST_SEQUENCE + 7, FIRST_SEQUENCE + 8, u64::MAX] {
            assert_eq!(place(4000, Some(taken), &[made]), Ok(4000));
        }
        assert!(place(6000, Some(FIRST_SEQUENCE + 3), &[made]).is_err());
    }
}
