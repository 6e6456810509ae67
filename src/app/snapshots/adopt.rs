//! Adopts snapshots that the database does not know.
//!
//! They come from the original exporter, or from a database that was lost. The VM of a folder is found by its disks'
//! names and the inventory, or in its manifest; its time of creation by its files' times. Folders that cannot be
//! assigned to a VM are listed and not changed. Nothing is ever deleted.

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
use crate::model::{Annotations, DiskName, DiskSource, Provenance, Snapshot, SnapshotDisk, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan;
use crate::repository::{LocatedDisk, PathError, Repository, SnapshotDir, assign, locate};
use crate::store::Store;
use crate::sys::host;

/// The options of an adoption.
#[derive(Clone, Copy, Debug, Default)]
pub struct AdoptOptions {
    /// Only report what would be adopted.
    pub dry_run: bool,
    pub manifests: Manifests,
}

/// Which snapshots with a manifest are adopted. They belong to another exporter, unless its database was lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Manifests {
    #[default]
    None,
    /// All of them, and also folders without one.
    All,
    /// Those of this service, and nothing else.
    Own,
}

/// An adoption without a request: the database is rebuilt.
#[derive(Debug)]
pub(crate) struct Readoption {
    pub report: api::Adoption,
    /// Whether all repositories were searched.
    pub is_complete: bool,
}

/// VMs with disks in unmounted repositories, with the reason.
type Partial = HashMap<VmId, String>;

/// What was found in the repositories.
#[derive(Default)]
struct Found {
    /// By VM, and oldest first.
    candidates: BTreeMap<VmId, Vec<Candidate>>,
    /// The folders that cannot be adopted.
    report: api::Adoption,
    /// Whether a repository could not be searched.
    is_partial: bool,
}

/// A snapshot with a known VM, before it is adopted.
struct Candidate {
    placed: PlacedSnapshot,
    parts: Parts,
}

/// Adopts snapshots that the database does not know.
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

    /// Adopts the snapshots in the repositories that the database does not know.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::AgentDb`], [`Error::Store`]. The report lists problems with single folders.
    pub async fn adopt(self: &Arc<Self>, session: &Session, options: AdoptOptions) -> Result<api::Adoption, Error> {
        let actor = Actor::from(session);
        let outcome = self.adopt_as(session.subject(), options).await.map(|(report, _)| report);
        if !options.dry_run {
            actor.did("adopt", "", &outcome);
        }
        outcome
    }

    /// Adopts the snapshots of this service whose manifests are in the repositories. The database was lost.
    ///
    /// # Errors
    /// Those of [`Adopter::adopt`].
    pub(crate) async fn readopt(self: &Arc<Self>) -> Result<Readoption, Error> {
        let (actor, options) = (Actor::service("rebuild"), AdoptOptions { dry_run: false, manifests: Manifests::Own });
        let (report, is_partial) = self.adopt_as(actor.user(), options).await?;
        if !report.adopted.is_empty() {
            actor.did("adopt", "", &Ok::<(), Error>(()));
        }
        Ok(Readoption { report, is_complete: !is_partial })
    }

    /// Returns the report, and whether a repository could not be searched.
    async fn adopt_as(self: &Arc<Self>, user: &str, options: AdoptOptions) -> Result<(api::Adoption, bool), Error> {
        let (adopter, user) = (Arc::clone(self), user.to_owned());
        let adoption = self.tasks.detached(async move {
            let Found { candidates, mut report, mut is_partial } =
                adopter.blocking(move |adopter| adopter.find(options, &user)).await?;
            for (vm, candidates) in candidates {
                let own = adopter.vm_locks.take(&vm).await;
                // A dry run does not lock, because the lock would leave a file behind.
                let of_each =
                    candidates.iter().map(|candidate| candidate.placed.repositories()).filter(|_| !options.dry_run);
                let _guard = match adopter.vm_locks.lock_for_removal(own, &vm, of_each).await {
                    Ok(guard) => guard,
                    // One VM must not keep the others from being rebuilt. The next attempt tries it again.
                    Err(error) if options.manifests == Manifests::Own => {
                        is_partial = true;
                        for (_, folder) in candidates.iter().flat_map(|candidate| &candidate.parts) {
                            let path = folder.path.display().to_string();
                            report.skipped.push(api::SkippedFolder { path, reason: error.to_string() });
                        }
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                let adopted = adopter.blocking(move |adopter| adopter.adopt_all(options, candidates)).await?;
                report.adopted.extend(adopted.adopted);
                report.skipped.extend(adopted.skipped);
            }
            adopter.reconciler.blocking(Reconciler::find_unknown).await?;
            report.skipped_legacy.clone_from(&report.skipped);
            Ok((report, is_partial))
        });
        adoption.await
    }

    /// Finds the snapshots that can be adopted.
    fn find(&self, options: AdoptOptions, user: &str) -> Result<Found, Error> {
        let mut report = api::Adoption { dry_run: options.dry_run, ..api::Adoption::default() };
        let mut skip = |path: &Path, reason: String| {
            report.skipped.push(api::SkippedFolder { path: path.display().to_string(), reason });
        };
        let found = self.inventory.repositories();
        // If ovs-agent's list cannot be read, there may be others.
        let mut is_partial = found.problem.is_some();
        let mut by_id: BTreeMap<u128, Parts> = BTreeMap::new();
        for (known, mounted) in found.with_mounts() {
            let Ok(repository) = &known.repository else { continue };
            if let Err(cause) = mounted {
                is_partial = true;
                skip(repository.mount_point(), format!("{cause}: its folders were not scanned"));
                continue;
            }
            match repository.run(JobKind::SHORT, |access, root| scan::scan(root, &|| access.progress())) {
                Ok((folders, unrecognized)) => {
                    for folder in folders {
                        by_id.entry(folder.id.as_u128()).or_default().push((repository.clone(), folder));
                    }
                    unrecognized.iter().for_each(|entry| skip(&entry.path, entry.reason.clone()));
                }
                Err(error) => {
                    is_partial = true;
                    skip(repository.mount_point(), format!("cannot be scanned: {error}"));
                }
            }
        }
        let (owners, partial) = self.owners_of_disks()?;
        let mut candidates: BTreeMap<VmId, Vec<Candidate>> = BTreeMap::new();
        for (id, parts) in by_id {
            // The database knows it, perhaps as one that is being created or removed.
            if let Some(known) = self.store.record(SnapshotId::from_u128(id))? {
                let foreign = parts.iter().filter(|(repository, _)| !known.repositories().contains(&repository.id()));
                foreign.for_each(|(_, folder)| {
                    skip(&folder.path, "does not belong to the snapshot of this id".to_owned())
                });
                continue;
            }
            let with_manifests = options.manifests != Manifests::None;
            let assigned = match options.manifests {
                Manifests::Own if !self.is_own(&parts) => Err("was not made by this service".to_owned()),
                _ => place(&parts, &owners, with_manifests, user),
            };
            let assigned = assigned.and_then(|snapshot| match partial.get(&snapshot.vm) {
                // Without all repositories, a part of the snapshot would be adopted as the whole.
                Some(reason) => Err(reason.clone()),
                None => Ok(snapshot),
            });
            match assigned {
                Ok(placed) => candidates.entry(placed.vm.clone()).or_default().push(Candidate { placed, parts }),
                Err(reason) => parts.iter().for_each(|(_, folder)| skip(&folder.path, reason.clone())),
            }
        }
        for candidates in candidates.values_mut() {
            candidates.sort_by_key(|candidate| (candidate.placed.created_at, candidate.placed.sequence()));
        }
        Ok(Found { candidates, report, is_partial })
    }

    /// Whether the manifest of the snapshot names this service.
    fn is_own(&self, parts: &Parts) -> bool {
        let mut makers = parts.iter().filter_map(|(_, folder)| folder.maker.as_deref());
        makers.any(|maker| host::is_same_service(maker, &self.exporter))
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
                // Disks that cannot be snapshotted today count too.
                let Ok(disk) = located(&repositories, path) else { continue };
                let name = disk.source.path.rsplit('/').next().unwrap_or_default().to_owned();
                let owner = (id.clone(), disk.source.clone());
                owners.entry((disk.source.repository, name)).or_default().insert(owner);
            }
        }
        Ok((owners, partial))
    }

    /// Adopts the candidates of one VM, which the caller has locked.
    fn adopt_all(&self, options: AdoptOptions, candidates: Vec<Candidate>) -> Result<api::Adoption, Error> {
        let mut report = api::Adoption { dry_run: options.dry_run, ..api::Adoption::default() };
        let snapshots = match candidates.first() {
            Some(first) => self.store.snapshots_of(&first.placed.vm)?,
            None => Vec::new(),
        };
        let mut existing: Vec<_> = snapshots.iter().map(|snapshot| (snapshot.sequence, snapshot.created_at)).collect();
        for candidate in candidates {
            let PlacedSnapshot { id, ref vm, created_at, .. } = candidate.placed;
            let adopted = assign_sequence(candidate.placed.sequence(), created_at, &existing).and_then(|sequence| {
                if !options.dry_run {
                    self.adopt_one(&candidate, sequence)?;
                }
                Ok(sequence)
            });
            let paths = candidate.parts.iter().map(|(_, folder)| folder.path.display().to_string());
            match adopted {
                Ok(sequence) => {
                    report.adopted.push(api::AdoptedSnapshot {
                        id: id.to_string(),
                        vm_id: vm.to_string(),
                        created_at: created_at.to_string(),
                        paths: paths.collect(),
                    });
                    existing.push((sequence, created_at));
                }
                Err(reason) => {
                    report.skipped.extend(paths.map(|path| api::SkippedFolder { path, reason: reason.clone() }));
                }
            }
        }
        Ok(report)
    }

    fn adopt_one(&self, candidate: &Candidate, sequence: u64) -> Result<(), String> {
        let Candidate { placed, parts } = candidate;
        let (id, kind) = (placed.id, JobKind::CHANGE.exclusive(placed.id.as_u128()));
        let snapshot = match &placed.origin {
            Origin::Manifest(described) => Snapshot { sequence, ..described.snapshot.clone() },
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
                annotations: Annotations::default(),
            },
        };
        let (has_manifest, definition) = match &placed.origin {
            Origin::Manifest(described) => (true, described.definition.as_ref()),
            Origin::Files { .. } => (false, None),
        };
        for disk in snapshot.disks.iter().filter(|_| has_manifest) {
            self.files.open_base(&snapshot, disk).map_err(|error| format!("{}: {error}", disk.name))?;
        }
        // Record first: a manifest without a record would prevent another attempt.
        if !self.store.adopt(&snapshot, definition).map_err(|error| error.to_string())? {
            return Err("is already in the database: another request has just adopted it".to_owned());
        }
        tracing::info!(
            snapshot = %snapshot.id, vm = %snapshot.vm, created_at = %snapshot.created_at,
            "snapshot adopted"
        );
        if !has_manifest {
            for (repository, folder) in parts {
                let (of, exporter) = (snapshot.clone(), self.exporter.clone());
                let sealed = repository.run(kind, move |_, root| SnapshotDir::new(root, id).seal(&of, None, &exporter));
                if let Err(error) = sealed {
                    tracing::warn!(
                        folder = %folder.path.display(), %error,
                        "snapshot adopted, but writing its manifest failed"
                    );
                }
            }
        }
        Ok(())
    }

    /// Records the current identity of the file that was found for the disk `name`.
    fn seal_found(&self, id: SnapshotId, name: &DiskName, source: &DiskSource) -> Result<SnapshotDisk, String> {
        let repository = self.inventory.repository(&source.repository).ok_or("its repository is no longer listed")?;
        let (kind, file) = (JobKind::CHANGE.exclusive(id.as_u128()), name.clone());
        let sealed = repository.run(kind, move |_, root| scan::seal_found(root, id, &file));
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
