//! Removal of what is half made or half gone: after a crash, and where it could not be removed before.
//!
//! No client was told of a snapshot that was still being made, so nobody misses it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::removal::Removals;
use crate::api;
use crate::app::Error;
use crate::app::admission::VmLocks;
use crate::app::audit::Actor;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::model::{SnapshotFiles, SnapshotId, VmId};
use crate::store::{Record, Store};

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long the start waits for the first round. A repository that hangs does not hold it up for longer.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// Removes unfinished snapshots.
pub(crate) struct Recovery {
    removals: Arc<Removals>,
    vm_locks: Arc<VmLocks>,
    store: Store,
    tasks: Tasks,
}

impl Service for Recovery {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Recovery {
    pub(crate) fn new(removals: Arc<Removals>, vm_locks: Arc<VmLocks>, store: Store, tasks: Tasks) -> Self {
        Self { removals, vm_locks, store, tasks }
    }

    /// Removes what a crash left unfinished, and waits for it as long as a start may take.
    pub(crate) async fn run_after_start(self: &Arc<Self>) {
        let round = self.tasks.spawn(Arc::clone(self).clean_up());
        if tokio::time::timeout(FIRST_ROUND, round).await.is_err() {
            tracing::warn!("what a crash left unfinished is still being removed");
        }
    }

    /// Removes what is unfinished, once a minute, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if stop.run_until_cancelled(Arc::clone(&self).clean_up()).await.is_none() {
                return;
            }
        }
    }

    /// One round. A snapshot that is just being made or removed is not touched, nor one whose VM another service
    /// has locked: the turn of its VM is taken.
    async fn clean_up(self: Arc<Self>) {
        let unfinished = match self.blocking(|recovery| Ok(recovery.store.unfinished()?)).await {
            Ok(unfinished) => unfinished,
            Err(error) => return tracing::error!(%error, "what is unfinished is not known, and stays"),
        };
        // VM by VM side by side, so that a repository that hangs does not hold up the others.
        let mut by_vm: BTreeMap<VmId, Vec<SnapshotFiles>> = BTreeMap::new();
        for snapshot in unfinished {
            by_vm.entry(snapshot.vm.clone()).or_default().push(snapshot);
        }
        let removals: Vec<_> =
            by_vm.into_values().map(|snapshots| self.tasks.spawn(Arc::clone(&self).clean_up_some(snapshots))).collect();
        for removal in removals {
            drop(removal.await);
        }
    }

    /// Removes snapshots of one VM, one after the other. Where one cannot be removed, the others are all the same:
    /// they may lie elsewhere.
    async fn clean_up_some(self: Arc<Self>, snapshots: Vec<SnapshotFiles>) {
        for snapshot in snapshots {
            let Some(turn) = self.vm_locks.try_take(&snapshot.vm) else { return };
            match self.vm_locks.try_lock_for_removal(turn, &snapshot.vm, &snapshot.repositories()).await {
                Ok(turn) => {
                    drop(self.blocking(move |recovery| recovery.clean_up_one(snapshot.id)).await);
                    drop(turn);
                }
                Err(error) => drop(self.removals.leftovers.note(snapshot.id, error.to_string())),
            }
        }
    }

    /// Removes one snapshot that is unfinished, where it still is: the turn of its VM is the caller's.
    fn clean_up_one(&self, id: SnapshotId) -> Result<(), Error> {
        let (state, snapshot) = match self.store.record(id)? {
            None | Some(Record::Ready(_)) => return Ok(()),
            Some(Record::Creating(files)) => ("Creating", files),
            Some(Record::Deleting(files)) => ("Deleting", files),
        };
        let before = self.removals.leftovers.reason(id);
        let outcome = self.removals.remove(&snapshot);
        let is_gone = self.store.record(id)?.is_none();
        // What goes on as it was is not told each minute.
        if is_gone || before != self.removals.leftovers.reason(id) {
            tracing::warn!(snapshot = %id, vm = %snapshot.vm, %state, is_gone, "it was left unfinished");
            Actor::service("cleanup").did("delete", format_args!("{}/{id}", snapshot.vm), &outcome);
        }
        outcome
    }

    /// What could not be removed yet.
    pub(crate) fn leftovers(&self) -> Result<Vec<api::Leftover>, Error> {
        let told = |snapshot: SnapshotFiles| {
            Some(api::Leftover {
                id: snapshot.id.to_string(),
                vm_id: snapshot.vm.to_string(),
                repositories: snapshot.repositories().into_iter().map(ToString::to_string).collect(),
                reason: self.removals.leftovers.reason(snapshot.id)?,
            })
        };
        Ok(self.store.unfinished()?.into_iter().filter_map(told).collect())
    }
}
