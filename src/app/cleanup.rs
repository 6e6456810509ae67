//! Removal of what is half made or half gone: after a crash, and where it could not be removed before.
//!
//! No client was told of a snapshot that was still being made, so nobody misses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use super::audit::Actor;
use super::{App, Error};
use crate::model::{Snapshot, SnapshotId};
use crate::wire;

/// Between two rounds.
const INTERVAL: Duration = Duration::from_secs(60);

/// How long the start waits for the first round. A repository that hangs does not hold it up for longer.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// Why the files of each snapshot could not be removed yet.
#[derive(Default)]
pub(super) struct Leftovers(Mutex<HashMap<SnapshotId, String>>);

impl Leftovers {
    /// Notes why files are still there. Says whether that is news.
    pub(super) fn note(&self, id: SnapshotId, reason: String) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.insert(id, reason.clone()).is_none_or(|before| before != reason)
    }

    /// Notes that nothing is left.
    pub(super) fn forget(&self, id: SnapshotId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }

    fn reason(&self, id: SnapshotId) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }
}

impl App {
    /// Removes what a crash left unfinished, and waits for it as long as a start may take.
    pub(super) async fn clean_up_after_start(self: &Arc<Self>) {
        let round = self.runtime.spawn(Arc::clone(self).clean_up());
        if tokio::time::timeout(FIRST_ROUND, round).await.is_err() {
            tracing::warn!("what a crash left unfinished is still being removed");
        }
    }

    /// Removes what is unfinished, once a minute, until `stop`.
    pub async fn clean_up_until(self: Arc<Self>, stop: CancellationToken) {
        let mut rounds = tokio::time::interval(INTERVAL);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while stop.run_until_cancelled(rounds.tick()).await.is_some() {
            if stop.run_until_cancelled(Arc::clone(&self).clean_up()).await.is_none() {
                return;
            }
        }
    }

    /// One round. A snapshot that is just being made or removed is not touched, nor one whose VM another service
    /// has locked: the turn of its VM is taken.
    async fn clean_up(self: Arc<Self>) {
        let unfinished = match self.blocking(|app| Ok(app.store.unfinished()?)).await {
            Ok(unfinished) => unfinished,
            Err(error) => return tracing::error!(%error, "what is unfinished is not known, and stays"),
        };
        // Side by side, so that a repository that hangs does not hold up the others.
        let removals: Vec<_> = unfinished
            .into_iter()
            .filter_map(|(_, snapshot)| {
                let turn = self.turns.try_take(&snapshot.vm)?;
                let app = Arc::clone(&self);
                Some(self.runtime.spawn(async move {
                    let Ok(_turn) = app.try_lock_for_removal(turn, &snapshot).await else { return };
                    drop(app.blocking(move |app| app.clean_up_one(snapshot.id)).await);
                }))
            })
            .collect();
        for removal in removals {
            drop(removal.await);
        }
    }

    /// Removes one snapshot that is unfinished, where it still is: the turn of its VM is the caller's.
    fn clean_up_one(&self, id: SnapshotId) -> Result<(), Error> {
        let found = self.store.record(id)?.filter(|(state, _)| *state != crate::store::State::Ready);
        let Some((state, snapshot)) = found else { return Ok(()) };
        let before = self.leftovers.reason(id);
        let outcome = self.remove(&snapshot);
        let is_gone = self.store.record(id)?.is_none();
        // What goes on as it was is not told each minute.
        if is_gone || before != self.leftovers.reason(id) {
            tracing::warn!(snapshot = %id, vm = %snapshot.vm, ?state, is_gone, "it was left unfinished");
            Actor::service("cleanup").did("delete", format_args!("{}/{id}", snapshot.vm), &outcome);
        }
        outcome
    }

    /// What could not be removed yet.
    pub(super) fn leftovers(&self) -> Result<Vec<wire::Leftover>, Error> {
        let told = |snapshot: Snapshot| {
            Some(wire::Leftover {
                id: snapshot.id.to_string(),
                vm_id: snapshot.vm.to_string(),
                repositories: snapshot.repositories().into_iter().map(ToString::to_string).collect(),
                reason: self.leftovers.reason(snapshot.id)?,
            })
        };
        Ok(self.store.unfinished()?.into_iter().filter_map(|(_, snapshot)| told(snapshot)).collect())
    }
}
