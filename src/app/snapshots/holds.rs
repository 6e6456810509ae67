//! Holds the snapshots that clients use here against the sweepers of other exporters.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::Error;
use crate::app::common::Common;
use crate::app::inventory::Inventory;
use crate::app::retention::Retention;
use crate::app::tasks::{Service, Tasks, rounds};
use crate::model::{Snapshot, SnapshotId};
use crate::repository::executor::JobKind;
use crate::repository::hold::{self, Hold, Sharing};
use crate::store::Store;

/// The time between two rounds. A use that has just begun is not held for so long: an expired snapshot may be deleted
/// then, as if it had been asked for a moment later.
const INTERVAL: Duration = Duration::from_secs(1);

/// Holds snapshots.
pub(crate) struct Holds {
    inventory: Arc<Inventory>,
    retention: Arc<Retention>,
    store: Store,
    held: Mutex<HashMap<SnapshotId, Hold>>,
    tasks: Tasks,
}

impl Service for Holds {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Holds {
    pub(crate) fn new(common: &Common) -> Self {
        let Common { inventory, retention, store, tasks, .. } = common.clone();
        Self { inventory, retention, store, held: Mutex::default(), tasks }
    }

    /// Holds what is in use, until `stop`.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = rounds(INTERVAL);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            let round = self.blocking(|holds| holds.hold_used());
            if let Some(Err(error)) = stop.run_until_cancelled(round).await {
                tracing::warn!(%error, "cannot hold the snapshots in use against other exporters");
            }
        }
    }

    fn hold_used(&self) -> Result<(), Error> {
        let used = self.retention.used();
        let (ended, known) = {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            let ended: Vec<_> = held.extract_if(|id, _| !used.contains(id)).map(|(_, held)| held).collect();
            (ended, held.keys().copied().collect::<Vec<_>>())
        };
        ended.into_iter().for_each(Self::release);
        for id in used.into_iter().filter(|id| !known.contains(id)) {
            let Some(snapshot) = self.store.snapshot(id)? else { continue };
            match self.try_hold(&snapshot, Sharing::Shared) {
                Ok(Some(hold)) => {
                    self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(id, hold);
                }
                Ok(None) => {}
                Err(error) => tracing::debug!(snapshot = %id, %error, "cannot hold a snapshot in use"),
            }
        }
        Ok(())
    }

    /// Holds the snapshot in its first repository, if that is possible at once.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`].
    pub(super) fn try_hold(&self, snapshot: &Snapshot, sharing: Sharing) -> Result<Option<Hold>, Error> {
        let repository = self.inventory.first_repository(snapshot)?;
        let (of, checked) = (snapshot.id, repository.clone());
        let held = repository.run(JobKind::SHORT, move |access, root| {
            checked.mounted_now(access)?;
            hold::try_hold(root, of, sharing)
        });
        held.map_err(|error| Error::of_step("holding the snapshot", error))
    }

    /// Closing a file may hang with its file system, so another thread does it.
    pub(super) fn release(hold: Hold) {
        if let Err(error) = std::thread::Builder::new().name("release".to_owned()).spawn(move || drop(hold)) {
            tracing::warn!(%error, "no thread releases a snapshot");
        }
    }
}
