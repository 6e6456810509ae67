//! The journey of snapshots that others made into the database.
//!
//! The original exporter leaves folders of snapshots behind, and so does a lost database. Which VM a
//! folder is of is told by its disks' names and the inventory, or by its manifest; when it was made,
//! by its files' times. What cannot be placed is listed and left as it is; nothing is ever deleted.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::placement::{Origin, Owners, Parts, PlacedSnapshot, assign_sequence, place};
use super::reconcile::Reconciler;
use crate::api;
use crate::app::Error;
use crate::app::admission::VmLocks;
use crate::app::audit::Actor;
use crate::app::files::FileOpener;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::inventory::Disk;
use crate::model::{DiskName, DiskSource, Provenance, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan;
use crate::repository::{LocatedDisk, PathError, Repository, SnapshotDir, assign, locate};
use crate::store::Store;

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Adoption {
    /// Only say what would be done.
    pub dry_run: bool,
    /// Also those with a manifest, which are another exporter's unless its database is lost.
    pub manifests: bool,
}

/// VMs of which not all disks can be seen, and why.
type Partial = HashMap<VmId, String>;

/// A snapshot that was placed, before it is taken over.
struct Candidate {
    placed: PlacedSnapshot,
    parts: Parts,
}

/// Takes over snapshots that the database does not know.
pub struct Adopter {
    inventory: Arc<Inventory>,
    files: Arc<FileOpener>,
    vm_locks: Arc<VmLocks>,
    reconciler: Arc<Reconciler>,
    store: Store,
    exporter: String,
    tasks: Tasks,
}

impl Service for Adopter {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Adopter {
    pub(crate) fn new(
        (inventory, files): (Arc<Inventory>, Arc<FileOpener>),
        (vm_locks, reconciler): (Arc<VmLocks>, Arc<Reconciler>),
        store: Store,
        exporter: String,
        tasks: Tasks,
    ) -> Self {
        Self { inventory, files, vm_locks, reconciler, store, exporter, tasks }
    }

    /// Takes over the snapshots found in the repositories that the database does not know.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::AgentDb`], [`Error::Store`]. What goes wrong with one folder
    /// is told beside it.
    pub async fn adopt(self: &Arc<Self>, session: &Session, what: Adoption) -> Result<api::Adoption, Error> {
        let (adopter, user, actor) = (Arc::clone(self), session.subject().to_owned(), Actor::from(session));
        let outcome = self.tasks.detached(async move {
            let (candidates, mut report) = adopter.blocking(move |adopter| adopter.candidates(what, &user)).await?;
            for (vm, candidates) in candidates {
                let own = adopter.vm_locks.take(&vm).await;
                // The lock would leave a file behind.
                let of_each =
                    candidates.iter().map(|candidate| candidate.placed.repositories()).filter(|_| !what.dry_run);
                let _turn = adopter.vm_locks.lock_for_removal(own, &vm, of_each).await?;
                let taken = adopter.blocking(move |adopter| adopter.take_over(what, candidates)).await?;
                report.adopted.extend(taken.adopted);
                report.skipped.extend(taken.skipped);
            }
            adopter.reconciler.blocking(Reconciler::look_for_unknown).await?;
            report.skipped_legacy.clone_from(&report.skipped);
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
        let mut report = api::Adoption { dry_run: what.dry_run, ..api::Adoption::default() };
        let mut left = |path: &Path, reason: String| {
            report.skipped.push(api::SkippedFolder { path: path.display().to_string(), reason });
        };
        let mut by_id: BTreeMap<u128, Parts> = BTreeMap::new();
        for repository in self.inventory.repositories().usable().filter(|repository| repository.mounted().is_ok()) {
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
        let found = self.inventory.repositories();
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
            let placed_as = place(&parts, &owners, what.manifests, user);
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
        let found = self.inventory.repositories();
        let unmounted: Vec<_> = found.unmounted().map(|(repository, _)| repository.mount_point()).collect();
        let repositories: Vec<_> = found.usable().cloned().collect();
        for vm in &self.inventory.vms()?.vms {
            let (Some(id), Ok(disks)) = (&vm.id, &vm.disks) else { continue };
            for path in disks.iter().filter_map(Disk::file).map(Path::new) {
                if let Some(missing) = unmounted.iter().find(|mount_point| path.starts_with(mount_point)) {
                    let reason = format!("its VM has a disk in {}, where nothing is mounted", missing.display());
                    partial.insert(id.clone(), reason);
                }
                // Whether or not it could be snapshotted today.
                let Ok(disk) = located(&repositories, path) else { continue };
                let name = disk.source.path.rsplit('/').next().unwrap_or_default().to_owned();
                let owner = (id.clone(), disk.source.clone());
                owners.entry((disk.source.repository, name)).or_default().insert(owner);
            }
        }
        Ok((owners, partial))
    }

    /// Takes over snapshots of one VM, whose turn it is.
    fn take_over(&self, what: Adoption, candidates: Vec<Candidate>) -> Result<api::Adoption, Error> {
        let mut report = api::Adoption { dry_run: what.dry_run, ..api::Adoption::default() };
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
                    report.skipped.extend(paths.map(|path| api::SkippedFolder { path, reason: reason.clone() }));
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
            self.files.open_base(&snapshot, disk).map_err(|error| format!("{}: {error}", disk.name))?;
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
        let repository = self.inventory.repository(&source.repository).ok_or("its repository is gone")?;
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
