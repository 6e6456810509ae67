//! The retention sweep: deletes snapshots that have expired, are not leased, not in use, and not the newest of their
//! VM.

use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::notice::HeldAlone;
use super::service::Snapshots;
use crate::api::DeletionCause;
use crate::app::Error;
use crate::app::audit::Actor;
use crate::app::notifications::Event;
use crate::app::tasks::{Service, rounds};
use crate::model::{SnapshotFiles, SnapshotId, VmId};

/// The time before a failed deletion is retried.
const PAUSE: Duration = Duration::from_secs(10 * 60);

/// The time between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// The snapshot no longer exists, is no longer due, or its VM is locked.
const NOT_NOW: Error = Error::NotFound("the snapshot cannot be swept now");

/// Deletes expired snapshots, one after the other.
pub struct Sweeper(pub(crate) Arc<Snapshots>);

impl Sweeper {
    /// Sweeps once a minute until `stop`.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            match self.0.blocking(|snapshots| snapshots.retention.due()).await {
                Ok(due) => {
                    let count = due.len();
                    for (vm, id) in due {
                        if stop.is_cancelled() {
                            return;
                        }
                        self.sweep(&vm, id).await;
                    }
                    // Logged after the round, so that its results exist when a reader sees this line.
                    tracing::debug!(due = count, "finished the retention sweep");
                }
                Err(error) => tracing::error!(%error, "cannot list expired snapshots, so none is swept"),
            }
        }
    }

    /// Deletes a snapshot if it is still due. Skips it while the VM's snapshots are being changed.
    async fn sweep(&self, vm: &VmId, id: SnapshotId) {
        let Some(own) = self.0.admission.vm_locks.try_take(vm) else { return };
        let (snapshots, of) = (Arc::clone(&self.0), vm.clone());
        let swept = self.0.tasks().detached(async move {
            let snapshot = snapshots.blocking(move |snapshots| Ok(snapshots.store.snapshot(id)?));
            let Some(snapshot) = snapshot.await? else { return Err(NOT_NOW) };
            // Do not wait: another exporter may be creating the VM's next snapshot.
            let repositories = snapshot.repositories();
            let locked = snapshots.admission.vm_locks.try_lock_for_removal(own, &of, &repositories);
            let Ok(_guard) = locked.await else { return Err(NOT_NOW) };
            let held = snapshots.noticing.hold_alone(&snapshot).await;
            if !matches!(held, Ok(HeldAlone::Unshared | HeldAlone::Held(_))) {
                return Err(NOT_NOW);
            }
            let vm = of.clone();
            if !snapshots.blocking(move |snapshots| Ok(snapshots.retention.due_of(&vm)?.contains(&id))).await? {
                return Err(NOT_NOW);
            }
            snapshots.with_deletion_hooks(snapshot, move |snapshots| delete_expired(snapshots, &of, id)).await
        });
        let outcome = swept.await;
        if outcome.as_ref().is_err_and(|error| matches!(error.cause(), Error::NotFound(_))) {
            return;
        }
        self.0.metrics.snapshot_deleted("expiry", &outcome);
        Actor::service("sweeper").did("sweep", format_args!("{vm}/{id}"), &outcome);
        if let Err(error) = outcome {
            tracing::error!(
                %vm, snapshot = %id, %error,
                "cannot delete an expired snapshot completely; retrying later"
            );
            // A hook that refuses the deletion is not called every minute.
            self.0.retention.postpone(id, PAUSE);
        }
    }
}

/// Deletes a snapshot if it is still due. Otherwise this is an error, so that post hooks are not told of a deletion.
fn delete_expired(snapshots: &Snapshots, vm: &VmId, id: SnapshotId) -> Result<(), Error> {
    if !snapshots.retention.due_of(vm)?.contains(&id) {
        return Err(NOT_NOW);
    }
    let _guard = snapshots.retention.begin_sweep(id).ok_or(NOT_NOW)?;
    let snapshot = snapshots.store.snapshot(id)?.ok_or(NOT_NOW)?;
    let event = Event::snapshot_deleted(&snapshot, DeletionCause::Expired, None);
    let event = snapshots.notifications.prepare(&event);
    if !snapshots.store.retentions().begin_sweep(&snapshot, jiff::Timestamp::now(), event.as_ref())? {
        return Err(NOT_NOW);
    }
    snapshots.notifications.wake();
    tracing::info!(snapshot = %id, %vm, "deleting an expired snapshot");
    snapshots.removals.remove(&SnapshotFiles::from(&snapshot))
}
