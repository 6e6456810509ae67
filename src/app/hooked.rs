//! Hooks around an operation: before it, and after it whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::{App, Error};
use crate::hooks::{Begun, Event, EventDisk, EventVm, Operation};
use crate::inventory;
use crate::model::{HookRun, Snapshot, SnapshotId};
use crate::repository::SnapshotDir;

/// What was called around an operation.
#[derive(Default)]
pub(super) struct Around {
    /// The calls, in their order.
    pub runs: Vec<HookRun>,
    /// Whether something has put the guest's disks in order.
    pub quiesced: bool,
    /// From the first call that may have held up the guest to the end of the last, where there was one.
    pub held: Option<Duration>,
}

impl App {
    /// Does `work` on the snapshot `id`, between the two halves of its hooks, which are owed by now. There is no way out of here, once the first
    /// is called, but through the second: not by an error, not by a panic. A crash leaves it owed.
    pub(super) async fn within_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        id: SnapshotId,
        event: Event,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
    ) -> (Result<T, Error>, Around) {
        if !self.hooks.concern(&event) {
            return (self.blocking(work).await, Around::default());
        }
        let event = Arc::new(event);
        let (app, told) = (Arc::clone(self), Arc::clone(&event));
        let before = tokio::spawn(async move { app.hooks.before(&told).await }.in_current_span()).await;
        let (mut begun, mut outcome) = match before {
            Ok(begun) => (begun, Ok(())),
            Err(panic) => (Begun::unknown(), Err(Error::Internal(panic.to_string()))),
        };
        if let Some(run) = &begun.refusal {
            outcome = Err(Error::HookFailed {
                hook: run.name.clone(),
                operation: event.operation.as_str(),
                how: run.detail.clone(),
            });
        }
        let outcome = match outcome {
            Ok(()) => self.at_once(work).await,
            Err(error) => Err(error),
        };
        let mut around = Around { runs: std::mem::take(&mut begun.runs), quiesced: begun.quiesced, held: None };
        let (app, told, done, since) = (Arc::clone(self), Arc::clone(&event), outcome.is_ok(), begun.since);
        let after = tokio::spawn(async move { app.hooks.after(&told, &begun, done).await }.in_current_span()).await;
        around.held = since.map(|since| since.elapsed());
        match after {
            Ok(runs) => {
                around.runs.extend(runs);
                self.settle_off_thread(id).await;
            }
            Err(panic) => {
                tracing::error!(%panic, "the hooks after the operation were not all called; the next start does")
            }
        }
        self.metrics.hooks(event.operation.as_str(), &around.runs);
        (outcome, around)
    }

    /// Notes that nothing is owed any more.
    pub(super) fn settle(&self, id: SnapshotId) {
        if let Err(error) = self.store.settle(id) {
            tracing::error!(snapshot = %id, %error, "its post hooks will be called again by the next start");
        }
    }

    async fn settle_off_thread(self: &Arc<Self>, id: SnapshotId) {
        let settled = self.blocking(move |app| {
            app.settle(id);
            Ok(())
        });
        // Its errors are told already.
        drop(settled.await);
    }

    /// Calls what was owed when the service stopped. What it was stopped in is undone later.
    ///
    /// # Errors
    /// Where the database does not answer.
    pub(super) async fn call_owed_hooks(self: &Arc<Self>) -> Result<(), Error> {
        for (id, written) in self.blocking(|app| Ok(app.store.owed()?)).await? {
            match Event::from_bytes(&written) {
                Ok(event) => {
                    let operation = event.operation.as_str();
                    tracing::warn!(snapshot = %id, vm = event.vm.name, operation, "stopped before its post hooks were called");
                    let runs = self.hooks.after_crash(&event).await;
                    self.metrics.hooks(operation, &runs);
                }
                Err(error) => tracing::error!(snapshot = %id, %error, "what hooks it owes cannot be read"),
            }
            self.settle_off_thread(id).await;
        }
        Ok(())
    }

    /// What hooks are told of an `operation` on `snapshot`; `vm` is what the inventory says of its
    /// VM, where that is still in it.
    pub(super) fn event(&self, operation: Operation, snapshot: &Snapshot, vm: Option<&inventory::Vm>) -> Event {
        let disks = snapshot.disks.iter().filter_map(|disk| {
            let repository = self.repository(&disk.source.repository)?;
            Some(EventDisk {
                name: disk.name.to_string(),
                path: repository.mount_point().join(&disk.source.path).display().to_string(),
                snapshot_path: SnapshotDir::new(&repository, snapshot.id).disk(&disk.name).display().to_string(),
                size: disk.identity.size,
            })
        });
        let sync = match (operation, vm) {
            (Operation::SnapshotCreate, Some(vm)) => {
                self.hooks.sync_target(&snapshot.vm, &[&vm.description, &vm.friendly_name], vm.address.as_deref())
            }
            _ => None,
        };
        Event {
            operation,
            snapshot_id: snapshot.id.to_string(),
            vm: EventVm {
                name: snapshot.vm.to_string(),
                uuid: vm.and_then(|vm| vm.uuid.clone()).unwrap_or_else(|| snapshot.vm.dashed()),
                friendly_name: vm.map(|vm| vm.friendly_name.clone()).unwrap_or_default(),
            },
            disks: disks.collect(),
            sync,
        }
    }

    /// What hooks are told of a deletion. A VM that has left the inventory is told by its id.
    pub(super) fn deletion(&self, snapshot: &Snapshot) -> Event {
        let vm = self.find_vm(&snapshot.vm).ok();
        self.event(Operation::SnapshotDelete, snapshot, vm.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn a_panic_between_the_halves_is_thawed_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let (hooks, calls) = (dir.path().join("hooks"), dir.path().join("calls"));
        fs::create_dir(&hooks).unwrap();
        let script = format!("#!/bin/sh\necho $2 >> {}\necho quiesced\n", calls.display());
        fs::write(hooks.join("freeze"), script).unwrap();
        fs::set_permissions(hooks.join("freeze"), Permissions::from_mode(0o755)).unwrap();
        let text = format!(
            "db_file = {:?}\novm_endpoint = \"https://127.0.0.1:1\"\n\
             [jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[manager]\ninsecure_skip_verify = true\n\
             [repositories]\novs_agent_db = \"\"\npaths = [\"/nonexistent/repository\"]\n[hooks]\ndirectory = {hooks:?}\n",
            dir.path().join("db")
        );
        let app = App::start(&config::parse(&text).unwrap()).await.unwrap();
        let id = SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128());
        let event = Event {
            operation: Operation::SnapshotCreate,
            snapshot_id: id.to_string(),
            vm: EventVm { name: String::new(), uuid: String::new(), friendly_name: String::new() },
            disks: Vec::new(),
            sync: None,
        };
        app.store.owe(id, &event.to_bytes()).unwrap();
        let (outcome, around) = app.within_hooks(id, event, |_| -> Result<(), Error> { panic!("in between") }).await;
        assert!(matches!(outcome, Err(Error::Internal(_))));
        assert!(around.runs.len() == 2 && around.held.is_some());
        assert_eq!(fs::read_to_string(&calls).unwrap(), "pre\npost\n");
        assert_eq!(app.store.owed().unwrap(), []);
    }
}
