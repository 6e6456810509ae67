//! Compares the database with the repositories, and finds snapshots that only one of them has.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::removal::Removals;
use super::stray;
use crate::app::Error;
use crate::app::admission::VmLocks;
use crate::app::audit::Actor;
use crate::app::common::Common;
use crate::app::files::FileOpener;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::auth::Session;
use crate::model::{Permission, RepositoryId, Snapshot, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::listing;
use crate::repository::scan::{self, Maker};
use crate::repository::{Folder, Repository};
use crate::store::{Store, Trouble};
use crate::sys::host;

/// The time between two scans.
const INTERVAL: Duration = Duration::from_secs(60);

/// A request gets the result of the last scan. If that found lost snapshots, it must be younger than this.
const MAX_AGE: Duration = Duration::from_secs(5);

/// Snapshots of one repository that the database does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Created by this service: its database has lost them.
    pub lost: usize,
    /// Created by others, such as the original exporter.
    pub others: usize,
}

/// The results of the scans.
#[derive(Default)]
pub(crate) struct UnknownSnapshots {
    found: Mutex<Findings>,
    /// Held during a scan: one runs at a time.
    scanning: Mutex<()>,
    /// Wakes the task that scans.
    soon: Arc<Notify>,
}

#[derive(Default)]
struct Findings {
    /// The time of the last scan.
    at: Option<Instant>,
    counts: BTreeMap<RepositoryId, Count>,
    /// The makers of unknown snapshots, cached because a manifest does not change.
    makers: HashMap<(RepositoryId, SnapshotId), Maker>,
    /// The problem that was logged last.
    trouble: Option<Trouble>,
}

impl UnknownSnapshots {
    fn lock(&self) -> MutexGuard<'_, Findings> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn scanning(&self) -> MutexGuard<'_, ()> {
        self.scanning.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last count of a repository. Nothing if it was not scanned.
    pub(crate) fn of(&self, repository: &str) -> Option<Count> {
        self.lock().counts.iter().find(|(id, _)| id.as_str() == repository).map(|(_, count)| *count)
    }

    fn is_due(&self) -> bool {
        let found = self.lock();
        let is_lost = found.counts.values().any(|count| count.lost > 0);
        found.at.is_none_or(|at| is_lost && at.elapsed() > MAX_AGE)
    }
}

/// Compares the database with the repositories.
pub(crate) struct Reconciler {
    inventory: Arc<Inventory>,
    files: Arc<FileOpener>,
    removals: Arc<Removals>,
    vm_locks: Arc<VmLocks>,
    store: Store,
    /// The id of this service in manifests.
    exporter: String,
    findings: UnknownSnapshots,
    tasks: Tasks,
}

impl Service for Reconciler {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Reconciler {
    pub(crate) fn new(common: &Common, files: Arc<FileOpener>, removals: Arc<Removals>, soon: Arc<Notify>) -> Self {
        let Common { exporter, inventory, admission, store, tasks, .. } = common.clone();
        let vm_locks = Arc::clone(&admission.vm_locks);
        let findings = UnknownSnapshots { soon, ..UnknownSnapshots::default() };
        Self { inventory, files, removals, vm_locks, store, exporter, findings, tasks }
    }

    /// The snapshots in a repository that the database does not know; nothing if that was not checked yet.
    pub(crate) fn unknown_in(&self, repository: &str) -> Option<Count> {
        self.findings.of(repository)
    }

    /// Checks regularly, until `stop`, that the database file is in its place and that the database knows the snapshots
    /// in the repositories.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
                () = self.findings.soon.notified() => {}
            }
            let scanned = self.blocking(|reconciler| {
                reconciler.store.retry_failed_write();
                reconciler.check_database();
                reconciler.find_unknown()
            });
            match scanned.await {
                Ok(missing) => {
                    for snapshot in missing {
                        self.remove_record_if_gone(snapshot).await;
                    }
                }
                Err(error) => tracing::error!(%error, "cannot compare the database with the repositories"),
            }
        }
    }

    /// Whether the database has lost snapshots that this service created.
    pub(crate) fn has_lost_snapshots(&self) -> Result<bool, Error> {
        let unknown = &self.findings;
        if unknown.is_due() {
            // While another thread scans, the previous result is used, if there is one.
            let scanning = match unknown.scanning.try_lock() {
                Ok(scanning) => Some(scanning),
                Err(TryLockError::Poisoned(scanning)) => Some(scanning.into_inner()),
                Err(TryLockError::WouldBlock) if unknown.lock().at.is_some() => None,
                Err(TryLockError::WouldBlock) => Some(unknown.scanning()),
            };
            if let Some(scanning) = scanning.filter(|_| unknown.is_due()) {
                self.scan(&scanning)?;
            }
        }
        Ok(self.findings.lock().counts.values().any(|count| count.lost > 0))
    }

    /// The problem with the database's file or its disk, if there is one. It is logged once.
    pub(crate) fn check_database(&self) -> Option<Trouble> {
        let trouble = self.store.trouble();
        let mut found = self.findings.lock();
        match &trouble {
            Some(new) if found.trouble != trouble => tracing::error!(problem = %new, remedy = new.remedy()),
            None if found.trouble.is_some() => {
                tracing::info!("the database's file and disk are usable again")
            }
            _ => {}
        }
        found.trouble.clone_from(&trouble);
        trouble
    }

    /// Counts the snapshots that the database does not know, in the repositories that respond. Returns snapshots of the
    /// database whose files may be gone.
    pub(crate) fn find_unknown(&self) -> Result<Vec<Snapshot>, Error> {
        self.scan(&self.findings.scanning())
    }

    fn scan(&self, _: &MutexGuard<'_, ()>) -> Result<Vec<Snapshot>, Error> {
        let (mut counts, mut listed, mut existing) = (BTreeMap::new(), BTreeSet::new(), HashSet::new());
        let mut makers = HashMap::new();
        let found = self.inventory.repositories();
        // All scans start before the first result is awaited.
        let scans: Vec<_> = found.usable().map(|repository| (repository, query(repository, listing::ids))).collect();
        for (repository, ids) in scans {
            // Read the database after the folders: it has each snapshot before and after its folder exists.
            let Some(ids) = ids() else { continue };
            listed.insert(repository.id().clone());
            existing.extend(ids.iter().copied());
            let known = self.store.ids()?;
            let mut count = Count::default();
            for id in ids.into_iter().filter(|id| !known.contains(id)) {
                let key = (repository.id().clone(), id);
                let maker = self.findings.lock().makers.get(&key).cloned();
                let maker = maker.or_else(|| query(repository, move |root| scan::maker(root, id))().flatten());
                let Some(maker) = maker else { continue };
                match &maker {
                    Maker::Service(maker) if host::is_same_service(maker, &self.exporter) => count.lost += 1,
                    _ => count.others += 1,
                }
                makers.insert(key, maker);
            }
            counts.insert(repository.id().clone(), count);
        }
        // A snapshot without a manifest may get one later.
        makers.retain(|_, maker| *maker != Maker::Unknown);
        let before = {
            let mut found = self.findings.lock();
            (found.at, found.makers) = (Some(Instant::now()), makers);
            std::mem::replace(&mut found.counts, counts.clone())
        };
        for (repository, count) in counts {
            if before.get(&repository).copied().unwrap_or_default() != count {
                report(&repository, count);
            }
        }
        self.missing(&listed, &existing)
    }

    /// The snapshots of the database without a folder in the `listed` repositories, which have folders of the
    /// `existing` snapshots. Some may have been committed after the listing.
    pub(crate) fn missing(
        &self,
        listed: &BTreeSet<RepositoryId>,
        existing: &HashSet<SnapshotId>,
    ) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = self.store.snapshots()?;
        snapshots.retain(|snapshot| {
            !existing.contains(&snapshot.id) && snapshot.repositories().into_iter().all(|id| listed.contains(id))
        });
        Ok(snapshots)
    }

    /// Removes the record of a snapshot if another exporter has deleted it. Does nothing while the VM is locked,
    /// because its snapshots are being changed.
    pub(crate) async fn remove_record_if_gone(self: &Arc<Self>, snapshot: Snapshot) {
        let Some(own) = self.vm_locks.try_take(&snapshot.vm) else { return };
        let Ok(guard) = self.vm_locks.try_lock_for_removal(own, &snapshot.vm, &snapshot.repositories()).await else {
            return;
        };
        let removed = self.blocking(move |reconciler| {
            let _guard = guard;
            let is_ready = reconciler.store.record(snapshot.id)?.is_some_and(|record| record.is_ready());
            if is_ready && reconciler.files.is_gone(&snapshot) {
                reconciler.removals.forget(&snapshot)?;
                tracing::warn!(
                    snapshot = %snapshot.id, vm = %snapshot.vm,
                    "another exporter or an administrator removed the snapshot's files; removing its record"
                );
                let what = format_args!("{}/{}", snapshot.vm, snapshot.id);
                Actor::service("cleanup").did("forget", what, &Ok::<(), Error>(()));
            }
            Ok(())
        });
        if let Err(error) = removed.await {
            tracing::error!(%error, "cannot remove the record of a snapshot whose files are gone");
        }
    }

    /// As [`stray::find`], among the snapshots that the user may see.
    ///
    /// # Errors
    /// As [`stray::find`].
    pub(super) fn unknown_snapshot(
        &self,
        session: &Session,
        vm: &VmId,
        id: SnapshotId,
    ) -> Result<Option<Snapshot>, Error> {
        let is_visible = |found: Option<&Snapshot>| match found {
            Some(found) => self.inventory.may_see(session, &found.vm, Some(&found.annotations)),
            None => session.grants().has_for_all(Permission::View),
        };
        stray::find(&self.inventory.repositories(), vm, id, is_visible)
    }
}

fn report(repository: &RepositoryId, Count { lost, others }: Count) {
    if lost > 0 {
        tracing::warn!(
            %repository, lost,
            "snapshots of this service are not in the database: it was emptied, lost or replaced; adopt them with: \
             coriolis-ovm-exporter adopt --manifests"
        );
    }
    if others > 0 {
        tracing::warn!(
            %repository, others,
            "snapshots of another exporter are not in the database; if that exporter's database is lost, adopt them \
             with: coriolis-ovm-exporter adopt --manifests"
        );
    }
    if lost + others == 0 {
        tracing::info!(%repository, "the database knows all snapshots again");
    }
}

/// Starts `job` in a repository. Returns a function that waits for the result, which is empty if the repository does
/// not respond; that is logged elsewhere.
fn query<T: Send + 'static>(
    repository: &Repository,
    job: impl FnOnce(&Folder) -> std::io::Result<T> + Send + 'static,
) -> impl FnOnce() -> Option<T> {
    let (checked, id) = (repository.clone(), repository.id().clone());
    let pending = repository.submit(JobKind::SHORT, move |access, root| {
        checked.mounted_now(access)?;
        job(root)
    });
    move || {
        let result = pending.wait().map_err(crate::repository::Unavailable::from).map_err(std::io::Error::from);
        let result = result.and_then(|result| result);
        result
            .inspect_err(
                |error| tracing::debug!(repository = %id, %error, "cannot count the snapshots of the repository"),
            )
            .ok()
    }
}
