//! Adopts snapshots that the database does not know.
//!
//! They come from the original exporter, or from a database that was lost. The VM of a folder is found by its disks'
//! names and the inventory, or in its manifest; its time of creation by its files' times. Folders that cannot be
//! assigned to a VM are listed and not changed. Nothing is ever deleted.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::found::{Candidate, Found};
use super::placement::{Origin, PlacedSnapshot, assign_sequence};
use super::reconcile::Reconciler;
use crate::api;
use crate::app::Error;
use crate::app::admission::{VmGuard, VmLocks};
use crate::app::audit::Actor;
use crate::app::common::Common;
use crate::app::files::{self, FileOpener};
use crate::app::inventory::{Inventory, UnsearchedPart};
use crate::app::tasks::{Service, Tasks};
use crate::auth::Session;
use crate::model::{
    Annotations, Described, DiskName, DiskSource, Provenance, Snapshot, SnapshotDisk, SnapshotId, VmId,
};
use crate::repository::executor::JobKind;
use crate::repository::{SnapshotDir, scan};
use crate::store::{Store, StoreError};

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
    /// What must be searched again.
    pub unsearched: Vec<UnsearchedPart>,
}

/// Why a snapshot was not adopted.
#[derive(Debug)]
pub(super) struct NotAdopted {
    pub reason: String,
    /// Whether another attempt may adopt it.
    pub is_temporary: bool,
}

impl From<String> for NotAdopted {
    fn from(reason: String) -> Self {
        Self { reason, is_temporary: false }
    }
}

/// Adopts snapshots that the database does not know.
pub struct Adopter {
    pub(super) inventory: Arc<Inventory>,
    files: Arc<FileOpener>,
    vm_locks: Arc<VmLocks>,
    reconciler: Arc<Reconciler>,
    pub(super) store: Store,
    pub(super) exporter: String,
    tasks: Tasks,
}

impl Service for Adopter {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Adopter {
    pub(crate) fn new(common: &Common, files: Arc<FileOpener>, reconciler: Arc<Reconciler>) -> Self {
        let Common { exporter, inventory, admission, store, tasks, .. } = common.clone();
        let vm_locks = Arc::clone(&admission.vm_locks);
        Self { inventory, files, vm_locks, reconciler, store, exporter, tasks }
    }

    /// Adopts the snapshots in the repositories that the database does not know.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::AgentDb`], [`Error::Store`]. The report lists problems with single folders.
    pub async fn adopt(self: &Arc<Self>, session: &Session, options: AdoptOptions) -> Result<api::Adoption, Error> {
        let (actor, user) = (Actor::from(session), session.subject().to_owned());
        self.detached(async move |adopter| {
            let never = CancellationToken::new();
            let outcome = adopter.adopt_as(&user, options, never).await.map(|(report, _)| report);
            if !options.dry_run {
                actor.did("adopt", "", &outcome);
            }
            outcome
        })
        .await
    }

    /// Adopts the snapshots of this service whose manifests are in the repositories. The database was lost. A problem of
    /// one repository or VM does not keep the others from being adopted.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Cancelled`] after `stop`.
    pub(crate) async fn readopt(self: &Arc<Self>, stop: CancellationToken) -> Result<Readoption, Error> {
        let (actor, options) = (Actor::service("rebuild"), AdoptOptions { dry_run: false, manifests: Manifests::Own });
        let (report, unsearched) = self.adopt_as(actor.user(), options, stop).await?;
        if !report.adopted.is_empty() {
            actor.did("adopt", "", &Ok::<(), Error>(()));
        }
        Ok(Readoption { report, unsearched })
    }

    /// Returns the report, and what must be searched again.
    async fn adopt_as(
        self: &Arc<Self>,
        user: &str,
        options: AdoptOptions,
        stop: CancellationToken,
    ) -> Result<(api::Adoption, Vec<UnsearchedPart>), Error> {
        let (adopter, user) = (Arc::clone(self), user.to_owned());
        let adoption = self.tasks.detached(async move {
            let found = stop.run_until_cancelled(adopter.blocking(move |adopter| adopter.find(options, &user))).await;
            let Found { candidates, mut report, mut unsearched } = found.ok_or(Error::Cancelled)??;
            for (vm, candidates) in candidates {
                let locked = stop.run_until_cancelled(adopter.lock(&vm, &candidates, options)).await;
                let paths: Vec<String> =
                    candidates.iter().flat_map(Candidate::folders).map(|path| path.display().to_string()).collect();
                let adopted = match locked.ok_or(Error::Cancelled)? {
                    Ok(guard) => {
                        let stop = stop.clone();
                        let adopt = move |adopter: &Self| {
                            let _guard = guard;
                            adopter.adopt_all(options, candidates, &stop)
                        };
                        adopter.blocking(adopt).await
                    }
                    Err(error) => Err(error),
                };
                match adopted {
                    Ok(adopted) => {
                        report.adopted.extend(adopted.report.adopted);
                        report.skipped.extend(adopted.report.skipped);
                        unsearched.extend(adopted.unsearched);
                    }
                    // One VM must not keep the others from being rebuilt. The next attempt tries it again.
                    Err(error) if options.manifests == Manifests::Own && !stop.is_cancelled() => {
                        for path in paths {
                            let reason = error.hidden_cause().unwrap_or_else(|| error.to_string());
                            report.skipped.push(api::SkippedFolder { path: path.clone(), reason: reason.clone() });
                            unsearched.push(UnsearchedPart { vm: Some(vm.clone()), path, reason });
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            adopter.reconciler.blocking(Reconciler::find_unknown).await?;
            report.skipped_legacy.clone_from(&report.skipped);
            Ok((report, unsearched))
        });
        adoption.await
    }

    /// Locks the VM in the repositories of its candidates.
    async fn lock(
        self: &Arc<Self>,
        vm: &VmId,
        candidates: &[Candidate],
        options: AdoptOptions,
    ) -> Result<VmGuard, Error> {
        let own = self.vm_locks.take(vm).await;
        // A dry run does not lock, because the lock would leave a file behind.
        let of_each = candidates.iter().map(|candidate| candidate.placed.repositories()).filter(|_| !options.dry_run);
        self.vm_locks.lock_for_removal(own, vm, of_each).await
    }

    /// Adopts the candidates of one VM, which the caller has locked.
    fn adopt_all(
        &self,
        options: AdoptOptions,
        candidates: Vec<Candidate>,
        stop: &CancellationToken,
    ) -> Result<Readoption, Error> {
        let mut report = api::Adoption { dry_run: options.dry_run, ..api::Adoption::default() };
        let mut unsearched = Vec::new();
        let snapshots = match candidates.first() {
            Some(first) => self.store.snapshots_of(&first.placed.vm)?,
            None => Vec::new(),
        };
        let mut existing: Vec<_> = snapshots.iter().map(|snapshot| (snapshot.sequence, snapshot.created_at)).collect();
        for candidate in candidates {
            if stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            let PlacedSnapshot { id, ref vm, created_at, .. } = candidate.placed;
            let sequence = assign_sequence(candidate.placed.sequence(), created_at, &existing);
            let adopted = sequence.map_err(NotAdopted::from).and_then(|sequence| {
                if !options.dry_run {
                    self.adopt_one(&candidate, sequence)?;
                }
                Ok(sequence)
            });
            let paths = candidate.folders().map(|path| path.display().to_string());
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
                Err(NotAdopted { reason, is_temporary }) => {
                    report.skipped.extend(paths.map(|path| api::SkippedFolder { path, reason: reason.clone() }));
                    let again = candidate.folders().map(|path| UnsearchedPart {
                        vm: Some(vm.clone()),
                        path: path.display().to_string(),
                        reason: reason.clone(),
                    });
                    unsearched.extend(again.filter(|_| is_temporary));
                }
            }
        }
        Ok(Readoption { report, unsearched })
    }

    fn adopt_one(&self, candidate: &Candidate, sequence: u64) -> Result<(), NotAdopted> {
        let Candidate { placed, parts } = candidate;
        let (id, kind) = (placed.id, JobKind::CHANGE.exclusive(placed.id.as_u128()));
        let described = match &placed.origin {
            // Its leases may be lost, so it does not expire. Its request may have been repeated since.
            Origin::Manifest(described) => Described {
                snapshot: Snapshot { sequence, ..described.snapshot.clone() },
                expires_at: None,
                request: None,
                ..(**described).clone()
            },
            Origin::Files { created_by, disks } => Described::alone(Snapshot {
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
            }),
        };
        let has_manifest = matches!(placed.origin, Origin::Manifest(_));
        if has_manifest {
            self.check_files(&described.snapshot)?;
        }
        // Record first: a manifest without a record would prevent another attempt.
        if !self.record(&described)? {
            return Err("is already in the database: another request has just adopted it".to_owned().into());
        }
        if !has_manifest {
            for (repository, folder) in parts {
                let (of, exporter) = (described.clone(), self.exporter.clone());
                let sealed = repository.run(kind, move |_, root| SnapshotDir::new(root, id).seal(&of, &exporter));
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

    /// Checks that the snapshot's files are the recorded ones.
    pub(super) fn check_files(&self, snapshot: &Snapshot) -> Result<(), NotAdopted> {
        snapshot.disks.iter().try_for_each(|disk| {
            self.files.open_base(snapshot, disk).map(drop).map_err(|error| {
                let reason = format!("{}: {error}", disk.name);
                NotAdopted { reason, is_temporary: files::temporary(disk, &error.into()).is_some() }
            })
        })
    }

    /// Records the snapshots that the database does not know, in one transaction. Returns the ids of all.
    pub(super) fn record_all(&self, all: Vec<Described>) -> Result<Vec<SnapshotId>, Error> {
        let added = if all.is_empty() { Vec::new() } else { self.store.adopt_all(&all)? };
        for described in all.iter().filter(|described| added.contains(&described.snapshot.id)) {
            let Snapshot { id, ref vm, created_at, .. } = described.snapshot;
            tracing::info!(snapshot = %id, %vm, %created_at, "another exporter has made this snapshot");
        }
        Ok(all.iter().map(|described| described.snapshot.id).collect())
    }

    /// Records the snapshot. Returns false if the database knows it already.
    fn record(&self, described: &Described) -> Result<bool, NotAdopted> {
        let failed = |error: StoreError| NotAdopted { reason: error.to_string(), is_temporary: true };
        let is_new = self.store.adopt(described).map_err(failed)?;
        if is_new {
            let Snapshot { id, ref vm, created_at, .. } = described.snapshot;
            tracing::info!(snapshot = %id, %vm, %created_at, "snapshot adopted");
        }
        Ok(is_new)
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
