//! The journey of a snapshot's end: written down first, then its files, then its record.

use std::sync::Arc;

use crate::app::admission::policy::Refusal;
use crate::app::audit::Actor;
use crate::app::hooks::with_hooks::GuardedStep;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::hooks::Operation;
use crate::model::{RepositoryId, Snapshot, SnapshotFiles, SnapshotId, VmId};
use crate::repository::executor::JobKind;
use crate::repository::{Removal, RemoveError, SnapshotDir, Unavailable};
use crate::store::Record;

/// Deletions and creations that may be before a deletion of the same VM: each is small, and no client waits for
/// more.
const WAITING: usize = 64;

const TOO_MANY: Refusal = Refusal::QueueFull("changes of this VM's snapshots");

impl App {
    /// Deletes the snapshot `id` of the VM that `vm_ref` names. One that is gone already is no
    /// error, nor is one whose files are.
    ///
    /// # Errors
    /// [`Error::NotFound`] where there is no such VM; [`Error::OtherVm`]; [`Error::HookFailed`]: the
    /// snapshot stays; [`Error::Io`] where a file
    /// cannot be removed: the snapshot is gone all the same, and its files are tried again each minute.
    pub async fn delete_snapshot(
        self: &Arc<Self>,
        session: &Session,
        vm_ref: VmId,
        id: SnapshotId,
    ) -> Result<(), Error> {
        let (app, actor) = (Arc::clone(self), Actor::from(session));
        self.detached(async move {
            let what = format!("{vm_ref}/{id}");
            let deletion = async {
                // First whose it is, so that a retry can wait for its turn behind the first try.
                let vm = app.blocking(move |app| app.owner(&vm_ref, id)).await?;
                let own = app.vm_locks.take_behind(&vm, WAITING).await.ok_or(TOO_MANY)?;
                let of = vm.clone();
                let known = app.blocking(move |app| Ok(app.store.record(id)?));
                let record = match known.await? {
                    Some(record) => Some(record),
                    // Nobody is told that it is gone while its files are there.
                    None => app.blocking(move |app| app.unknown_snapshot(&of, id)).await?.map(Record::Ready),
                };
                let Some(record) = record else { return Ok(()) };
                let _turn = app.lock_for_removal(own, &vm, std::iter::once(record.repositories())).await?;
                app.delete_one(record, actor.user()).await
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
    pub async fn delete_all_snapshots(self: &Arc<Self>, session: &Session, vm_ref: VmId) -> Result<(), Error> {
        let (app, actor) = (Arc::clone(self), Actor::from(session));
        self.detached(async move {
            let what = vm_ref.clone();
            let deletion = async {
                let vm = app.blocking(move |app| app.resolve_vm(&vm_ref)).await?;
                let own = app.vm_locks.take_behind(&vm, WAITING).await.ok_or(TOO_MANY)?;
                let of = vm.clone();
                // Also what an earlier try left half gone.
                let records = app.blocking(move |app| Ok(app.store.records_of(&of)?)).await?;
                let turn = app.lock_for_removals(own, &vm, records.iter().map(Record::repositories)).await?;
                let mut outcome = Ok(());
                for record in records {
                    let deleted = match turn.allows_removal(&record.repositories()) {
                        Ok(()) => app.delete_one(record, actor.user()).await,
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
        let Some(record) = self.store.record(id)? else { return self.resolve_vm(vm_ref) };
        let vm = record.vm();
        if vm != vm_ref && self.resolve_vm(vm_ref)? != *vm {
            return Err(Error::OtherVm(id));
        }
        Ok(vm.clone())
    }

    /// Deletes one snapshot, or what is left of it.
    async fn delete_one(self: &Arc<Self>, record: Record, user: &str) -> Result<(), Error> {
        let snapshot = match record {
            Record::Ready(snapshot) => snapshot,
            Record::Creating(files) | Record::Deleting(files) => {
                return self.blocking(move |app| app.remove(&files)).await;
            }
        };
        let (user, of) = (user.to_owned(), snapshot.clone());
        self.within_deletion_hooks(of, move |app| app.delete(&snapshot, &user)).await
    }

    /// Does `work`, which deletes the snapshot, with hooks around it where it is still there.
    pub(crate) async fn within_deletion_hooks(
        self: &Arc<Self>,
        snapshot: Snapshot,
        work: impl FnOnce(&Self) -> Result<(), Error> + Send + 'static,
    ) -> Result<(), Error> {
        let debt = self.blocking(move |app| {
            if app.store.record(snapshot.id)?.is_some_and(|record| !record.is_ready()) {
                return Ok(None);
            }
            let Some(mut debt) = app.hooks.debt(app.deletion(&snapshot)) else { return Ok(None) };
            let (key, earlier) = app.owed_earlier(Operation::SnapshotDelete, snapshot.id)?;
            debt.earlier = earlier;
            app.record_pending_hooks(key, &debt)?;
            Ok(Some((key, debt)))
        });
        // Removing files takes as long as it takes, and freezes nobody: it is waited for.
        let between = GuardedStep { work: Box::new(work), refresh: Arc::new(|| ()), on_late_completion: None };
        let (outcome, around) = self.with_hooks(debt.await?, between).await;
        outcome.map_err(|error| around.beside(error))
    }

    fn delete(&self, snapshot: &Snapshot, user: &str) -> Result<(), Error> {
        let id = snapshot.id;
        // What the database does not know it knows from now on, until nothing is left.
        if self.store.record(id)?.is_none_or(|record| record.is_ready()) {
            if self.store.retentions().of(id)?.leased_until.is_some_and(|until| until > jiff::Timestamp::now()) {
                tracing::warn!(snapshot = %id, vm = %snapshot.vm, %user, "somebody holds a lease on what is deleted");
            }
            self.store.begin_deletion(snapshot)?;
            tracing::info!(snapshot = %id, vm = %snapshot.vm, %user, "snapshot deleted");
        }
        self.remove(&SnapshotFiles::from(snapshot))
    }

    /// Removes the files of `snapshot` and then its record. Where a repository is absent the record
    /// stays, unseen, and the files are tried again each minute.
    pub(crate) fn remove(&self, snapshot: &SnapshotFiles) -> Result<(), Error> {
        self.refined_cache.forget(snapshot.id);
        let mut absent = Vec::new();
        let mut first_error = None;
        for id in snapshot.repositories() {
            match self.remove_in(id, snapshot) {
                Ok(Removal::Done) => {}
                Ok(Removal::RepositoryUnavailable) => absent.push(id.as_str()),
                Err(error) => {
                    first_error.get_or_insert(error);
                }
            }
        }
        let outcome = match first_error {
            None if absent.is_empty() => {
                self.store.forget(snapshot)?;
                self.deleted.note(snapshot.id);
                self.leftovers.forget(snapshot.id);
                return Ok(());
            }
            None => Ok(()),
            Some(RemoveError::Io(error)) => Err(Error::of_step("removing the snapshot's files", error)),
            Some(strangers @ RemoveError::Foreign(_)) => {
                Err(Error::NotRemoved { snapshot: snapshot.id, left: strangers.to_string() })
            }
        };
        let reason = match &outcome {
            Ok(()) => format!("not there, or not answering: {}", absent.join(", ")),
            Err(error) => error.to_string(),
        };
        if self.leftovers.note(snapshot.id, reason.clone()) {
            tracing::warn!(snapshot = %snapshot.id, reason, "files of it stay; they are tried again each minute");
        }
        outcome
    }

    /// Removes the files that the snapshot has in one repository.
    fn remove_in(&self, id: &RepositoryId, snapshot: &SnapshotFiles) -> Result<Removal, RemoveError> {
        let Some(repository) = self.repository(id) else { return Ok(Removal::RepositoryUnavailable) };
        // Asked first, as a removal has more patience than a question.
        if repository.mounted().is_err() {
            return Ok(Removal::RepositoryUnavailable);
        }
        let files = snapshot.files.iter().filter(|file| file.repository == *id);
        let (files, snapshot) = (files.cloned().collect::<Vec<_>>(), snapshot.id);
        let kind = JobKind::CHANGE.exclusive(snapshot.as_u128());
        let removal = repository.run(kind, move |access, root| {
            // Each file may take its time.
            Ok(SnapshotDir::new(root, snapshot).remove(files.iter().inspect(|_| access.progress())))
        });
        match removal {
            Err(error) if Unavailable::of(&error).is_some() => Ok(Removal::RepositoryUnavailable),
            removal => removal?,
        }
    }
}
