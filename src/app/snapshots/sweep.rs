//! The sweeper: deletes what has expired, is not leased, not read, and not the newest of its VM.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::audit::Actor;
use crate::app::{App, Error};
use crate::model::retention::{Candidate, Moment, Retention};
use crate::model::{Snapshot, SnapshotFiles, SnapshotId, VmId};

/// Before what could not be swept is tried again.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

impl App {
    /// Sweeps now and then, until `stop`.
    pub async fn sweep_until(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = crate::app::rounds(INTERVAL);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = rounds.tick() => {}
            }
            match self.blocking(App::due).await {
                Ok(due) => {
                    let count = due.len();
                    for (vm, id) in due {
                        if stop.is_cancelled() {
                            return;
                        }
                        self.sweep(&vm, id).await;
                    }
                    // At the end of the round: whoever reads this line may look at the result.
                    tracing::debug!(due = count, "expired snapshots were swept");
                }
                Err(error) => tracing::error!(%error, "nothing is swept: what has expired is not known"),
            }
        }
    }

    fn moment(&self) -> Moment {
        Moment { wall: jiff::Timestamp::now(), monotonic: self.started.elapsed() }
    }

    /// Looks at a snapshot whose retention is new: from now on the monotonic clock counts.
    pub(crate) fn watch(&self, snapshot: &Snapshot) -> Result<(), Error> {
        let retention = self.store.retentions().of(snapshot.id)?;
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        watch.observe(self.moment(), snapshot.id, snapshot.created_at, retention);
        Ok(())
    }

    /// Watches a snapshot that was committed just now, and starts the grace of the one before it.
    pub(crate) fn watch_new(&self, snapshot: &Snapshot) -> Result<(), Error> {
        self.watch(snapshot)?;
        let of_vm = self.store.snapshots_of(&snapshot.vm)?;
        if let Some(former) = of_vm.iter().rev().find(|other| other.sequence < snapshot.sequence) {
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.supersede(self.moment(), former.id, snapshot.id);
        }
        Ok(())
    }

    /// What may be swept now.
    fn due(&self) -> Result<Vec<(VmId, SnapshotId)>, Error> {
        self.uses.forget_old();
        let expiring = self.store.retentions().expiring()?;
        self.watch.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| expiring.contains(&id));
        if expiring.is_empty() {
            return Ok(Vec::new());
        }
        let mut due = Vec::new();
        for (vm, ids) in self.store.snapshot_ids()? {
            if ids.iter().any(|id| expiring.contains(id)) {
                match self.due_of(&vm) {
                    Ok(ids) => due.extend(ids.into_iter().map(|id| (vm.clone(), id))),
                    // Which is its newest cannot be told then.
                    Err(error) => tracing::error!(%vm, %error, "nothing of this VM is swept"),
                }
            }
        }
        Ok(due)
    }

    fn due_of(&self, vm: &VmId) -> Result<Vec<SnapshotId>, Error> {
        let candidate = |snapshot: Snapshot| {
            let Snapshot { id, created_at, .. } = snapshot;
            let retention: Retention = self.store.retentions().of(id)?;
            Ok(Candidate { id, created_at, retention, in_use: self.uses.counts(id) })
        };
        let candidates: Result<Vec<_>, Error> = self.store.snapshots_of(vm)?.into_iter().map(candidate).collect();
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(watch.sweepable(self.moment(), &candidates?))
    }

    /// Deletes one that was due, where it still is. A VM whose snapshots are being changed comes later:
    /// nobody waits for it.
    async fn sweep(self: &Arc<Self>, vm: &VmId, id: SnapshotId) {
        let Some(turn) = self.vm_locks.try_take(vm) else { return };
        let (app, of) = (Arc::clone(self), vm.clone());
        let swept = self.detached(async move {
            const NEXT_ROUND: Error = Error::NotFound("it cannot be swept now");
            let record = app.blocking(move |app| Ok(app.store.snapshot(id)?)).await?.ok_or(NEXT_ROUND)?;
            // Another service may be making the next snapshot of the VM. That is no reason to wait for long.
            let Ok(_turn) = app.try_lock_for_removal(turn, &of, &record.repositories()).await else {
                return Err(NEXT_ROUND);
            };
            let vm = of.clone();
            if app.blocking(move |app| Ok(app.due_of(&vm)?.contains(&id))).await? {
                app.within_deletion_hooks(record, move |app| app.sweep_now(&of, id)).await
            } else {
                Err(Error::NotFound("it is needed again"))
            }
        });
        let outcome = swept.await;
        if outcome.as_ref().is_err_and(|error| matches!(error.cause(), Error::NotFound(_))) {
            return; // somebody needs it again
        }
        Actor::service("sweeper").did("sweep", format_args!("{vm}/{id}"), &outcome);
        if let Err(error) = outcome {
            tracing::error!(%vm, snapshot = %id, %error, "not swept, or not all of it; it is tried again later");
            // A hook that refuses is not asked every minute.
            let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
            watch.postpone(self.moment(), id, PAUSE);
        }
    }

    /// Deletes one that still is due.
    ///
    /// # Errors
    /// [`Error::NotFound`] where it is gone, or is needed again.
    fn sweep_now(&self, vm: &VmId, id: SnapshotId) -> Result<(), Error> {
        const NEEDED: Error = Error::NotFound("it is gone, or is needed again");
        if !self.due_of(vm)?.contains(&id) {
            return Err(NEEDED);
        }
        let _swept = self.uses.sweep(id).ok_or(NEEDED)?;
        let snapshot = self.store.snapshot(id)?.ok_or(NEEDED)?;
        if !self.store.retentions().begin_sweep(&snapshot, jiff::Timestamp::now())? {
            return Err(NEEDED);
        }
        tracing::info!(snapshot = %id, %vm, "snapshot has expired and is deleted");
        self.remove(&SnapshotFiles::from(&snapshot))
    }
}
