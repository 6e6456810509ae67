//! Comparing the database with what the repositories have: snapshots that only one of them knows.

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
use crate::app::files::FileOpener;
use crate::app::inventory::Inventory;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::model::{RepositoryId, Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::scan::{self, Maker};
use crate::repository::{Folder, Repository, host};
use crate::store::{Store, Trouble};

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long ago a look may have found something lost before it is looked again for somebody who asks.
const FRESH: Duration = Duration::from_secs(5);

/// How many snapshots of one repository the database does not know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Count {
    /// Made by this service: its database has lost them.
    pub lost: usize,
    /// Made by others, the original exporter among them.
    pub others: usize,
}

/// What the looks have found.
#[derive(Default)]
pub(crate) struct UnknownSnapshots {
    found: Mutex<Findings>,
    /// Held by whoever looks: one at a time.
    looking: Mutex<()>,
    /// Wakes the task that looks.
    soon: Arc<Notify>,
}

#[derive(Default)]
struct Findings {
    /// When it was looked last.
    at: Option<Instant>,
    counts: BTreeMap<RepositoryId, Count>,
    /// Who made what is unknown: a manifest does not change.
    makers: HashMap<(RepositoryId, SnapshotId), Maker>,
    /// What was logged last.
    trouble: Option<Trouble>,
}

impl UnknownSnapshots {
    fn lock(&self) -> MutexGuard<'_, Findings> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looking(&self) -> MutexGuard<'_, ()> {
        self.looking.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of a repository, as it was found last; nothing where it was not looked at.
    pub(crate) fn of(&self, repository: &str) -> Option<Count> {
        self.lock().counts.iter().find(|(id, _)| id.as_str() == repository).map(|(_, count)| *count)
    }

    fn is_due(&self) -> bool {
        let found = self.lock();
        let is_lost = found.counts.values().any(|count| count.lost > 0);
        found.at.is_none_or(|at| is_lost && at.elapsed() > FRESH)
    }
}

/// Compares the database with what the repositories have.
pub(crate) struct Reconciler {
    inventory: Arc<Inventory>,
    files: Arc<FileOpener>,
    removals: Arc<Removals>,
    vm_locks: Arc<VmLocks>,
    store: Store,
    /// What this service calls itself in manifests.
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
    pub(crate) fn new(
        (inventory, files): (Arc<Inventory>, Arc<FileOpener>),
        (removals, vm_locks): (Arc<Removals>, Arc<VmLocks>),
        store: Store,
        exporter: String,
        soon: Arc<Notify>,
        tasks: Tasks,
    ) -> Self {
        let findings = UnknownSnapshots { soon, ..UnknownSnapshots::default() };
        Self { inventory, files, removals, vm_locks, store, exporter, findings, tasks }
    }

    /// The snapshots in a repository that the database does not know; nothing if that was not checked yet.
    pub(crate) fn unknown_in(&self, repository: &str) -> Option<Count> {
        self.findings.of(repository)
    }

    /// Looks, now and then until `stop`, whether the database is in its place and knows what the repositories
    /// have.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
                () = self.findings.soon.notified() => {}
            }
            let looked = self.blocking(|reconciler| {
                reconciler.store.retry_failed_write();
                reconciler.look_for_trouble();
                reconciler.look_for_unknown()
            });
            match looked.await {
                Ok(missing) => {
                    for snapshot in missing {
                        self.forget_if_gone(snapshot).await;
                    }
                }
                Err(error) => tracing::error!(%error, "it is not known whether the database knows all snapshots"),
            }
        }
    }

    /// Whether the database has lost snapshots that this service made.
    pub(crate) fn has_lost_snapshots(&self) -> Result<bool, Error> {
        let unknown = &self.findings;
        if unknown.is_due() {
            // While somebody else looks, what was found before is the answer, where there is any.
            let looking = match unknown.looking.try_lock() {
                Ok(looking) => Some(looking),
                Err(TryLockError::Poisoned(looking)) => Some(looking.into_inner()),
                Err(TryLockError::WouldBlock) if unknown.lock().at.is_some() => None,
                Err(TryLockError::WouldBlock) => Some(unknown.looking()),
            };
            if let Some(looking) = looking.filter(|_| unknown.is_due()) {
                self.look(&looking)?;
            }
        }
        Ok(self.findings.lock().counts.values().any(|count| count.lost > 0))
    }

    /// What is wrong with the database's file or its disk. It is logged once.
    pub(crate) fn look_for_trouble(&self) -> Option<Trouble> {
        let trouble = self.store.trouble();
        let mut found = self.findings.lock();
        match &trouble {
            Some(new) if found.trouble != trouble => tracing::error!(problem = %new, remedy = new.remedy()),
            None if found.trouble.is_some() => {
                tracing::info!("the database's file and disk are as they should be again")
            }
            _ => {}
        }
        found.trouble.clone_from(&trouble);
        trouble
    }

    /// Counts the snapshots that the database does not know, in the repositories that answer. Returns those that
    /// it knows and that may be gone.
    pub(crate) fn look_for_unknown(&self) -> Result<Vec<Snapshot>, Error> {
        self.look(&self.findings.looking())
    }

    fn look(&self, _: &MutexGuard<'_, ()>) -> Result<Vec<Snapshot>, Error> {
        let (mut counts, mut listed, mut there) = (BTreeMap::new(), BTreeSet::new(), HashSet::new());
        let mut makers = HashMap::new();
        let found = self.inventory.repositories();
        // All are asked before any is waited for.
        let asked: Vec<_> = found.usable().map(|repository| (repository, ask(repository, scan::ids))).collect();
        for (repository, ids) in asked {
            // What is being made or removed is in the database before and after its folder is there.
            let Some(ids) = ids() else { continue };
            listed.insert(repository.id().clone());
            there.extend(ids.iter().copied());
            let known = self.store.ids()?;
            let mut count = Count::default();
            for id in ids.into_iter().filter(|id| !known.contains(id)) {
                let key = (repository.id().clone(), id);
                let maker = self.findings.lock().makers.get(&key).cloned();
                let maker = maker.or_else(|| ask(repository, move |root| scan::maker(root, id))().flatten());
                let Some(maker) = maker else { continue };
                match &maker {
                    Maker::Service(maker) if host::is_same_service(maker, &self.exporter) => count.lost += 1,
                    _ => count.others += 1,
                }
                makers.insert(key, maker);
            }
            counts.insert(repository.id().clone(), count);
        }
        // Without a manifest it may get one.
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
        self.missing(&listed, &there)
    }

    /// The complete snapshots whose folder is in none of the `listed` repositories, which have folders of the
    /// snapshots `there`. They may have been committed since that was listed.
    pub(crate) fn missing(
        &self,
        listed: &BTreeSet<RepositoryId>,
        there: &HashSet<SnapshotId>,
    ) -> Result<Vec<Snapshot>, Error> {
        let mut snapshots = self.store.snapshots()?;
        snapshots.retain(|snapshot| {
            !there.contains(&snapshot.id) && snapshot.repositories().into_iter().all(|id| listed.contains(id))
        });
        Ok(snapshots)
    }

    /// Forgets a snapshot that another service has deleted, where that is so. While the VM is locked nothing is
    /// decided: its snapshots are being changed.
    pub(crate) async fn forget_if_gone(self: &Arc<Self>, snapshot: Snapshot) {
        let Some(own) = self.vm_locks.try_take(&snapshot.vm) else { return };
        let Ok(turn) = self.vm_locks.try_lock_for_removal(own, &snapshot.vm, &snapshot.repositories()).await else {
            return;
        };
        let forgotten = self.blocking(move |reconciler| {
            let _turn = turn;
            let is_there = reconciler.store.record(snapshot.id)?.is_some_and(|record| record.is_ready());
            if is_there && reconciler.files.is_gone(&snapshot) {
                reconciler.store.forget(&SnapshotFiles::from(&snapshot))?;
                tracing::warn!(
                    snapshot = %snapshot.id, vm = %snapshot.vm,
                    "its files were removed by another service, or by hand: it is forgotten"
                );
                let what = format_args!("{}/{}", snapshot.vm, snapshot.id);
                Actor::service("cleanup").did("forget", what, &Ok::<(), Error>(()));
            }
            Ok(())
        });
        if let Err(error) = forgotten.await {
            tracing::error!(%error, "a snapshot whose files are gone cannot be forgotten");
        }
    }

    /// As [`stray::find`]. A snapshot that was deleted a short time ago is none: a client that repeats the request gets
    /// the same answer, whatever repositories are unavailable.
    ///
    /// # Errors
    /// As [`stray::find`].
    pub(super) fn unknown_snapshot(&self, vm: &VmId, id: SnapshotId) -> Result<Option<Snapshot>, Error> {
        if self.removals.deleted.contains(id) {
            return Ok(None);
        }
        stray::find(&self.inventory.repositories(), vm, id)
    }
}

fn report(repository: &RepositoryId, Count { lost, others }: Count) {
    if lost > 0 {
        tracing::warn!(
            %repository, lost,
            "the database does not know snapshots that this service made: it was emptied, lost or replaced; take \
             them back with: coriolis-ovm-exporter adopt --manifests"
        );
    }
    if others > 0 {
        tracing::warn!(
            %repository, others,
            "the database does not know these snapshots: they are another exporter's, or the database that knew them \
             is lost; then take them over with: coriolis-ovm-exporter adopt --manifests"
        );
    }
    if lost + others == 0 {
        tracing::info!(%repository, "the database knows all snapshots again");
    }
}

/// Asks a repository `question`; returns what waits for the answer. Nothing comes where the repository does not
/// answer, which is said elsewhere.
fn ask<T: Send + 'static>(
    repository: &Repository,
    question: impl FnOnce(&Folder) -> std::io::Result<T> + Send + 'static,
) -> impl FnOnce() -> Option<T> {
    let (asked, id) = (repository.clone(), repository.id().clone());
    let answer = repository.submit(JobKind::SHORT, move |access, root| {
        asked.mounted_now(access)?;
        question(root)
    });
    move || {
        let answer = answer.wait().map_err(crate::repository::Unavailable::from).map_err(std::io::Error::from);
        let answer = answer.and_then(|answer| answer);
        answer.inspect_err(|error| tracing::debug!(repository = %id, %error, "its snapshots cannot be counted")).ok()
    }
}
