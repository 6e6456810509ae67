//! The journey of a snapshot's end: written down first, then its files, then its record.

use std::sync::Arc;

use super::service::Snapshots;
use crate::app::Error;
use crate::app::audit::Actor;
use crate::app::error::Refusal;
use crate::app::hooks::GuardedStep;
use crate::app::tasks::Service;
use crate::auth::Session;
use crate::hooks::Operation;
use crate::model::{Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::store::Record;

/// Deletions and creations that may be before a deletion of the same VM: each is small, and no client waits for
/// more.
const WAITING: usize = 64;

const TOO_MANY: Refusal = Refusal::QueueFull("changes of this VM's snapshots");

impl Snapshots {
    /// Deletes the snapshot `id` of the VM that `vm_ref` names. One that is gone already is no
    /// error, nor is one whose files are.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such VM; [`Error::OtherVm`]; [`Error::HookFailed`]: the
    /// snapshot stays; [`Error::Io`] where a file
    /// cannot be removed: the snapshot is gone all the same, and its files are tried again each minute.
    pub async fn delete(self: &Arc<Self>, session: &Session, vm_ref: VmId, id: SnapshotId) -> Result<(), Error> {
        let (snapshots, actor) = (Arc::clone(self), Actor::from(session));
        self.tasks
            .detached(async move {
                let what = format!("{vm_ref}/{id}");
                let deletion = async {
                    // First whose it is, so that a retry can wait for its turn behind the first try.
                    let vm = snapshots.blocking(move |snapshots| snapshots.owner(&vm_ref, id)).await?;
                    let own = snapshots.admission.vm_locks.take_behind(&vm, WAITING).await.ok_or(TOO_MANY)?;
                    let of = vm.clone();
                    let known = snapshots.blocking(move |snapshots| Ok(snapshots.store.record(id)?));
                    let record = match known.await? {
                        Some(record) => Some(record),
                        // Nobody is told that it is gone while its files are there.
                        None => snapshots
                            .blocking(move |snapshots| snapshots.reconciler.unknown_snapshot(&of, id))
                            .await?
                            .map(Record::Ready),
                    };
                    let Some(record) = record else { return Ok(()) };
                    let _turn = snapshots
                        .admission
                        .vm_locks
                        .lock_for_removal(own, &vm, std::iter::once(record.repositories()))
                        .await?;
                    snapshots.delete_one(record, actor.user()).await
                };
                let outcome = deletion.await;
                actor.did("delete", what, &outcome);
                outcome
            })
            .await
    }

    /// Deletes all snapshots of the VM that `vm_ref` names.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such VM; otherwise the first one met, after all of
    /// them have been tried.
    pub async fn delete_all(self: &Arc<Self>, session: &Session, vm_ref: VmId) -> Result<(), Error> {
        let (snapshots, actor) = (Arc::clone(self), Actor::from(session));
        self.tasks
            .detached(async move {
                let what = vm_ref.clone();
                let deletion = async {
                    let vm = snapshots.blocking(move |snapshots| snapshots.inventory.resolve_vm(&vm_ref)).await?;
                    let own = snapshots.admission.vm_locks.take_behind(&vm, WAITING).await.ok_or(TOO_MANY)?;
                    let of = vm.clone();
                    // Also what an earlier try left half gone.
                    let records = snapshots.blocking(move |snapshots| Ok(snapshots.store.records_of(&of)?)).await?;
                    let turn = snapshots
                        .admission
                        .vm_locks
                        .lock_for_removals(own, &vm, records.iter().map(Record::repositories))
                        .await?;
                    let mut outcome = Ok(());
                    for record in records {
                        let deleted = match turn.allows_removal(&record.repositories()) {
                            Ok(()) => snapshots.delete_one(record, actor.user()).await,
                            Err(error) => Err(error),
                        };
                        outcome = outcome.and(deleted);
                    }
                    outcome
                };
                let outcome = deletion.await;
                actor.did("delete-all", what, &outcome);
                outcome
            })
            .await
    }

    /// The VM whose snapshot `id` is, which `vm_ref` has to name.
    fn owner(&self, vm_ref: &VmId, id: SnapshotId) -> Result<VmId, Error> {
        let Some(record) = self.store.record(id)? else { return self.inventory.resolve_vm(vm_ref) };
        let vm = record.vm();
        if vm != vm_ref && self.inventory.resolve_vm(vm_ref)? != *vm {
            return Err(Error::OtherVm(id));
        }
        Ok(vm.clone())
    }

    /// Deletes one snapshot, or what is left of it.
    async fn delete_one(self: &Arc<Self>, record: Record, user: &str) -> Result<(), Error> {
        let snapshot = match record {
            Record::Ready(snapshot) => snapshot,
            Record::Creating(files) | Record::Deleting(files) => {
                return self.blocking(move |snapshots| snapshots.removals.remove(&files)).await;
            }
        };
        let (user, of) = (user.to_owned(), snapshot.clone());
        self.with_deletion_hooks(of, move |snapshots| snapshots.delete_files(&snapshot, &user)).await
    }

    /// Does `work`, which deletes the snapshot, with hooks around it where it is still there.
    pub(crate) async fn with_deletion_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        snapshot: Snapshot,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let debt = self.blocking(move |snapshots| {
            if snapshots.store.record(snapshot.id)?.is_some_and(|record| !record.is_ready()) {
                return Ok(None);
            }
            let Some(mut debt) = snapshots.hooks.hooks.pending_post_hooks(snapshots.hooks.deletion(&snapshot)) else {
                return Ok(None);
            };
            let (key, earlier) = snapshots.hooks.pending.owed_earlier(Operation::SnapshotDelete, snapshot.id)?;
            debt.earlier = earlier;
            snapshots.hooks.pending.record_pending_hooks(key, &debt)?;
            Ok(Some((key, debt)))
        });
        // Removing files takes as long as it takes, and freezes nobody: it is waited for.
        let snapshots = Arc::clone(self);
        let between = GuardedStep {
            work: Box::new(move || work(&snapshots)),
            refresh: Arc::new(|| ()),
            on_late_completion: None,
        };
        let (outcome, around) = self.hooks.with_hooks(debt.await?, between).await;
        outcome.map_err(|error| around.beside(error))
    }

    fn delete_files(&self, snapshot: &Snapshot, user: &str) -> Result<(), Error> {
        let id = snapshot.id;
        // What the database does not know it knows from now on, until nothing is left.
        if self.store.record(id)?.is_none_or(|record| record.is_ready()) {
            if self.store.retentions().of(id)?.leased_until.is_some_and(|until| until > jiff::Timestamp::now()) {
                tracing::warn!(snapshot = %id, vm = %snapshot.vm, %user, "somebody holds a lease on what is deleted");
            }
            self.store.begin_deletion(snapshot)?;
            tracing::info!(snapshot = %id, vm = %snapshot.vm, %user, "snapshot deleted");
        }
        self.removals.remove(&SnapshotFiles::from(snapshot))
    }
}
