//! Deletes snapshots: records the deletion, removes the files, then the record.

use std::fmt::Display;
use std::sync::Arc;

use super::service::Snapshots;
use crate::api::DeletionCause;
use crate::app::Error;
use crate::app::audit::{Actor, Outcome};
use crate::app::hooks::{GuardedOperation, GuardedStep, HookReport};
use crate::app::inventory::NO_SUCH_SNAPSHOT;
use crate::app::notifications::Event;
use crate::app::tasks::Service;
use crate::auth::Session;
use crate::hooks::Operation;
use crate::model::{Permission, Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::store::Record;

impl Snapshots {
    /// Deletes the snapshot `id` of the VM `vm_ref`. Succeeds if the snapshot or its files do not exist, unless the user
    /// may not see all snapshots: then there may be one, and a success would be wrong.
    ///
    /// # Errors
    /// [`Error::Forbidden`]; [`Error::NotFound`]; [`Error::OtherVm`]; [`Error::HookFailed`]: the snapshot was kept;
    /// [`Error::Io`] if a file cannot be removed: the snapshot is deleted nevertheless, and removing its files is
    /// retried each minute.
    pub async fn delete(self: &Arc<Self>, session: &Session, vm_ref: VmId, id: SnapshotId) -> Result<(), Error> {
        let (snapshots, session) = (Arc::clone(self), session.clone());
        self.tasks
            .detached(async move {
                let (what, mut actor) = (format!("{vm_ref}/{id}"), Actor::from(&session));
                let deletion = async {
                    // The VM is found first, so that a repeated request waits for the VM behind the first one.
                    let by = session.clone();
                    let vm = snapshots.blocking(move |snapshots| snapshots.owner(&by, &vm_ref, id)).await?;
                    let own = snapshots.admission.admit_deletion(&vm).await?;
                    let (of, by) = (vm.clone(), session.clone());
                    let found = snapshots.blocking(move |snapshots| snapshots.to_delete(&by, &of, id));
                    let Some((record, by)) = found.await? else { return Ok(false) };
                    actor = Actor::from(&by);
                    let _guard = snapshots
                        .admission
                        .vm_locks
                        .lock_for_removal(own, &vm, std::iter::once(record.repositories()))
                        .await?;
                    snapshots.delete_one(record, actor.user()).await.map(|()| true)
                };
                let outcome = deletion.await;
                snapshots.record(&actor, "delete", what, outcome)
            })
            .await
    }

    /// Deletes all snapshots of the VM `vm_ref`.
    ///
    /// # Errors
    /// [`Error::Forbidden`] if the user may not delete one of them, and none is deleted; [`Error::NotFound`] if there is no
    /// such VM; [`Error::Rebuilding`]; otherwise the first error, after all snapshots were tried.
    pub async fn delete_all(self: &Arc<Self>, session: &Session, vm_ref: VmId) -> Result<(), Error> {
        let (snapshots, session) = (Arc::clone(self), session.clone());
        self.tasks
            .detached(async move {
                let (what, mut actor) = (vm_ref.clone(), Actor::from(&session));
                let deletion = async {
                    let by = session.clone();
                    let vm = snapshots.blocking(move |snapshots| {
                        let vm = snapshots.inventory.resolve_vm(&by, &vm_ref)?;
                        snapshots.inventory.check_all_known(&vm)?;
                        snapshots.check_deletions(&by, &snapshots.store.records_of(&vm)?)?;
                        Ok(vm)
                    });
                    let vm = vm.await?;
                    let own = snapshots.admission.admit_deletion(&vm).await?;
                    let of = vm.clone();
                    // Including half deleted snapshots.
                    let records = snapshots.blocking(move |snapshots| Ok(snapshots.store.records_of(&of)?)).await?;
                    let guard = snapshots
                        .admission
                        .vm_locks
                        .lock_for_removals(own, &vm, records.iter().map(Record::repositories))
                        .await?;
                    // Another user may have created a snapshot since.
                    let by = session.clone();
                    let check = move |snapshots: &Self| Ok((snapshots.check_deletions(&by, &records)?, records));
                    let (by, records) = snapshots.blocking(check).await?;
                    actor = Actor::from(&by);
                    let mut outcome = Ok(!records.is_empty());
                    for record in records {
                        let deleted = match guard.allows_removal(&record.repositories()) {
                            Ok(()) => snapshots.delete_one(record, actor.user()).await,
                            Err(error) => Err(error),
                        };
                        outcome = outcome.and_then(|any| deleted.map(|()| any));
                    }
                    outcome
                };
                let outcome = deletion.await;
                snapshots.record(&actor, "delete-all", what, outcome)
            })
            .await
    }

    /// Records a deletion in the audit. `outcome` has whether there was something to delete.
    fn record(
        &self,
        actor: &Actor,
        action: &'static str,
        what: impl Display,
        outcome: Result<bool, Error>,
    ) -> Result<(), Error> {
        match outcome {
            Ok(false) => self.trail.without_effect(actor, action, what, Outcome::DONE),
            _ => self.trail.change(actor, action, what, &outcome),
        }
        outcome.map(drop)
    }

    /// The VM `vm_ref`. Fails if the user may see the snapshot `id`, and it belongs to another VM or must stay.
    fn owner(&self, session: &Session, vm_ref: &VmId, id: SnapshotId) -> Result<VmId, Error> {
        let Some(record) = self.store.record(id)? else { return self.inventory.resolve_vm(session, vm_ref) };
        let vm = record.vm();
        let wanted = if vm == vm_ref { vm.clone() } else { self.inventory.resolve_vm(session, vm_ref)? };
        let checked = if wanted == *vm {
            self.check_deletion(session, &record).map(drop)
        } else {
            Err(self.inventory.of_other_vm(session, (vm, id), record.annotations()))
        };
        match checked {
            // The user cannot see it: from here on, as if there were none.
            Ok(()) | Err(Error::NotFound(_)) => Ok(wanted),
            Err(error) => Err(error),
        }
    }

    /// The snapshot `id` of `vm`, with the session that has the permission to delete it. Nothing if there is none.
    fn to_delete(&self, session: &Session, vm: &VmId, id: SnapshotId) -> Result<Option<(Record, Session)>, Error> {
        if let Some(record) = self.store.record(id)?.filter(|record| record.vm() == vm) {
            match self.check_deletion(session, &record) {
                Ok(by) => return Ok(Some((record, by))),
                Err(Error::NotFound(_)) => {}
                Err(error) => return Err(error),
            }
        }
        if self.removals.deleted.contains(vm, id) {
            return Ok(None);
        }
        // A client must not get success while files of the snapshot exist.
        match self.reconciler.unknown_snapshot(session, vm, id)?.map(Record::Ready) {
            Some(record) => self.check_deletion(session, &record).map(|by| Some((record, by))),
            None if session.grants().has_for_all(Permission::View) => Ok(None),
            None => Err(self.inventory.unknown_snapshot(NO_SUCH_SNAPSHOT)),
        }
    }

    /// Checks that the user may delete the snapshot. Returns the session with the permission that this needs.
    fn check_deletion(&self, session: &Session, record: &Record) -> Result<Session, Error> {
        self.inventory.check(session, record.vm(), record.annotations())?;
        let Record::Ready(snapshot) = record else {
            // It is no longer, or not yet, a snapshot: the service removes it even without a request.
            return Ok(session.clone());
        };
        if snapshot.created_by == session.subject() {
            return Ok(session.clone());
        }
        let session = session.needing(Permission::Administer);
        self.inventory.check_snapshot(&session, snapshot).map_err(|error| match error {
            Error::Forbidden { role, .. } => Error::Forbidden { role, what: "to delete snapshots of other users" },
            error => error,
        })?;
        Ok(session)
    }

    /// Checks that the user may delete all of these snapshots. If one of them must stay, all do. Returns the session with
    /// the permission that this needs.
    fn check_deletions(&self, session: &Session, records: &[Record]) -> Result<Session, Error> {
        let mut needed = session.clone();
        for record in records {
            match self.check_deletion(session, record) {
                Ok(by) if by.permission() == Permission::Administer => needed = by,
                Ok(_) => {}
                // The user cannot see it, and the request would delete it.
                Err(Error::NotFound(_)) => {
                    return Err(Error::forbidden(Permission::Administer, "to delete all snapshots of this VM"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(needed)
    }

    /// Deletes one snapshot, or the rest of it.
    async fn delete_one(self: &Arc<Self>, record: Record, user: &str) -> Result<(), Error> {
        let outcome = match record {
            Record::Ready(snapshot) => {
                let (user, of) = (user.to_owned(), snapshot.clone());
                self.with_deletion_hooks(of, move |snapshots| snapshots.delete_files(&snapshot, &user)).await
            }
            rest @ (Record::Creating(_) | Record::Deleting(_)) => {
                self.blocking(move |snapshots| snapshots.removals.remove_rest(&rest)).await
            }
        };
        self.metrics.snapshot_deleted("request", &outcome);
        outcome
    }

    /// Does `work`, which deletes the snapshot. Calls the hooks if the snapshot is not half deleted yet.
    pub(crate) async fn with_deletion_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        snapshot: Snapshot,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let pending = self.blocking(move |snapshots| {
            if snapshots.store.record(snapshot.id)?.is_some_and(|record| !record.is_ready()) {
                return Ok(None);
            }
            let Some(mut post_hooks) = snapshots.hooks.hooks.pending_post_hooks(snapshots.hooks.deletion(&snapshot))
            else {
                return Ok(None);
            };
            let (key, earlier) = snapshots.hooks.pending.pending_earlier(Operation::SnapshotDelete, snapshot.id)?;
            post_hooks.earlier = earlier;
            snapshots.hooks.pending.begin(key, &post_hooks)?;
            Ok(Some((key, post_hooks)))
        });
        // No timeout: removing files may take long, but freezes no guest.
        let snapshots = Arc::clone(self);
        let step = GuardedStep { work: Box::new(move || work(&snapshots)), on_late_completion: None };
        let operation = GuardedOperation { hooks: pending.await?, refresh: Arc::new(|| ()), requires_quiesced: false };
        let (outcome, reports) = self.hooks.with_hooks(vec![operation], step).await;
        outcome.map_err(|error| HookReport::with_skipped_hooks(&reports, error))
    }

    fn delete_files(&self, snapshot: &Snapshot, user: &str) -> Result<(), Error> {
        let id = snapshot.id;
        // This also records a snapshot that the database did not know, until nothing of it is left.
        if self.store.record(id)?.is_none_or(|record| record.is_ready()) {
            if self.store.retentions().of(id)?.leased_until.is_some_and(|until| until > jiff::Timestamp::now()) {
                tracing::warn!(snapshot = %id, vm = %snapshot.vm, %user, "deleting a snapshot with an active lease");
            }
            let event = Event::snapshot_deleted(snapshot, DeletionCause::Request, Some(user));
            self.store.begin_deletion(snapshot, self.notifications.prepare(&event).as_ref())?;
            self.notifications.wake();
            tracing::info!(snapshot = %id, vm = %snapshot.vm, %user, "snapshot deleted");
        }
        self.removals.remove(&SnapshotFiles::from(snapshot))
    }
}
