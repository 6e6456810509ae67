//! Removes unfinished snapshots: after a crash, and if they could not be removed before.
//!
//! This is safe because no client has received the id of an unfinished snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::removal::{Completion, Removals};
use crate::api;
use crate::app::Error;
use crate::app::admission::VmLocks;
use crate::app::audit::Actor;
use crate::app::common::Common;
use crate::app::notifications::Event;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::model::{SnapshotFiles, SnapshotId, VmId};
use crate::store::{Record, Store};

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long to wait for the first round at the start, so that a hung repository does not delay it for longer.
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
    pub(crate) fn new(common: &Common, removals: Arc<Removals>) -> Self {
        let Common { admission, store, tasks, .. } = common.clone();
        let vm_locks = Arc::clone(&admission.vm_locks);
        Self { removals, vm_locks, store, tasks }
    }

    /// Removes what a crash left unfinished, and waits for that within a bounded time.
    pub(crate) async fn run_after_start(self: &Arc<Self>) {
        if let Err(error) = self.blocking(|recovery| recovery.begin_undo_of_interrupted()).await {
            tracing::error!(%error, "cannot record that the end of the service has interrupted creations");
        }
        let round = self.tasks.spawn(Arc::clone(self).clean_up());
        if tokio::time::timeout(FIRST_ROUND, round).await.is_err() {
            tracing::warn!("still removing snapshots that a crash left unfinished");
        }
    }

    /// Commits the creations whose files are complete. Records that others failed because the service ended, and tells
    /// webhooks; their files are removed later. Those in a repository that is not available are left for later.
    fn begin_undo_of_interrupted(&self) -> Result<(), Error> {
        let notifications = &self.removals.notifications;
        let mut interrupted = Vec::new();
        for SnapshotFiles { id, vm, .. } in self.store.unfinished()? {
            let Some(Record::Creating(files)) = self.store.record(id)? else { continue };
            if let Completion::Unfinished = self.removals.complete(&files)? {
                tracing::warn!(snapshot = %id, %vm, "the service ended while it created this snapshot");
                interrupted.push((id, notifications.prepare(&Event::snapshot_interrupted(id, &vm))));
            }
        }
        // The usual start writes nothing.
        if !interrupted.is_empty() {
            self.store.begin_undo(&interrupted)?;
            notifications.wake();
        }
        Ok(())
    }

    /// Removes unfinished snapshots once a minute, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if stop.run_until_cancelled(Arc::clone(&self).clean_up()).await.is_none() {
                return;
            }
        }
    }

    /// One round. Skips snapshots whose VM is locked, because they are being created or removed.
    async fn clean_up(self: Arc<Self>) {
        let unfinished = match self.blocking(|recovery| Ok(recovery.store.unfinished()?)).await {
            Ok(unfinished) => unfinished,
            Err(error) => return tracing::error!(%error, "cannot list unfinished snapshots, so none is removed"),
        };
        // The VMs in parallel, so that a hung repository does not delay the others.
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

    /// Removes snapshots of one VM, one after the other. An error does not stop the others: they may be in another
    /// repository.
    async fn clean_up_some(self: Arc<Self>, snapshots: Vec<SnapshotFiles>) {
        for snapshot in snapshots {
            let Some(own) = self.vm_locks.try_take(&snapshot.vm) else { return };
            match self.vm_locks.try_lock_for_removal(own, &snapshot.vm, &snapshot.repositories()).await {
                Ok(guard) => {
                    drop(self.blocking(move |recovery| recovery.clean_up_one(snapshot.id)).await);
                    drop(guard);
                }
                Err(error) => drop(self.removals.leftovers.set(snapshot.id, error.to_string())),
            }
        }
    }

    /// Removes one snapshot, if it is still unfinished. The caller has locked its VM.
    fn clean_up_one(&self, id: SnapshotId) -> Result<(), Error> {
        let Some(record) = self.store.record(id)?.filter(|record| !record.is_ready()) else { return Ok(()) };
        let before = self.removals.leftovers.reason(id);
        let outcome = self.removals.remove_rest(&record);
        let is_gone = self.store.record(id)?.is_none();
        // An unchanged state is not logged each minute.
        if is_gone || before != self.removals.leftovers.reason(id) {
            let (vm, state) = (record.vm(), record.state());
            tracing::warn!(snapshot = %id, %vm, ?state, is_gone, "removing an unfinished snapshot");
            Actor::service("cleanup").did("delete", format_args!("{vm}/{id}"), &outcome);
        }
        outcome
    }

    /// The snapshots whose files could not be removed yet.
    pub(crate) fn leftovers(&self) -> Result<Vec<api::Leftover>, Error> {
        let leftover = |snapshot: SnapshotFiles| {
            Some(api::Leftover {
                id: snapshot.id.to_string(),
                vm_id: snapshot.vm.to_string(),
                repositories: snapshot.repositories().into_iter().map(ToString::to_string).collect(),
                reason: self.removals.leftovers.reason(snapshot.id)?,
            })
        };
        Ok(self.store.unfinished()?.into_iter().filter_map(leftover).collect())
    }
}
