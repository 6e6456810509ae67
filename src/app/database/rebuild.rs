//! Rebuilds the database from the manifests in the repositories, after the damaged one was set aside.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Database;
use crate::app::Error;
use crate::app::inventory::Unsearched;
use crate::app::snapshots::Readoption;
use crate::app::tasks::Service;

/// How long the start waits for the first attempt. A repository that hangs, or that has many snapshots, must not keep
/// the service from starting.
const START_WAIT: Duration = Duration::from_secs(30);

impl Database {
    /// Adopts the snapshots that the lost database had, as far as their repositories are available, within a bounded
    /// time. The rest is done while the service runs.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn rebuild_after_start(self: &Arc<Self>) -> Result<(), Error> {
        if !self.is_unfinished().await? {
            return Ok(());
        }
        tracing::error!(
            "rebuilding the database from the manifests; these are lost: expiry times (rebuilt snapshots never \
             expire), leases, idempotency keys, checksums, proofs, tickets, and pending post hooks: check whether \
             guests are still frozen; refresh tokens and which tokens were revoked are lost too, so all users have to \
             log in again"
        );
        self.inventory.set_unsearched(Unsearched::Everything);
        let attempt = self.tasks.spawn(Arc::clone(self).continue_rebuilding());
        if tokio::time::timeout(START_WAIT, attempt).await.is_err() {
            tracing::warn!("still rebuilding the database; until it has ended, no snapshot is said not to exist");
        }
        Ok(())
    }

    async fn is_unfinished(self: &Arc<Self>) -> Result<bool, Error> {
        self.blocking(|database| Ok(database.store.rebuild()?.started.is_some())).await
    }

    /// Adopts what is left, if the rebuilding is not complete and another attempt is due. Repositories may be mounted
    /// later.
    pub(super) async fn continue_rebuilding(self: Arc<Self>) {
        // The attempt of the start may still be running.
        let Ok(mut retry) = self.retry.try_lock() else { return };
        match self.is_unfinished().await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::error!(%error, "cannot read whether the database must be rebuilt"),
        }
        let unavailable = self.blocking(|database| {
            let found = database.inventory.repositories();
            Ok(found.unmounted().map(|(repository, _)| repository.id().to_string()).collect::<Vec<_>>())
        });
        let unavailable = unavailable.await.unwrap_or_default();
        if !retry.is_due(Instant::now(), &unavailable) {
            return;
        }
        let left = match self.adopt_the_rest().await {
            Ok(left) => left,
            Err(_) if self.stopping.is_cancelled() => return,
            Err(error) => {
                let cause = error.hidden_cause().unwrap_or_default();
                tracing::error!(%error, cause, "cannot rebuild the database");
                Unsearched::Everything
            }
        };
        self.inventory.set_unsearched(left.clone());
        if left != Unsearched::Nothing {
            for part in left.describe() {
                tracing::warn!(path = part.path, reason = part.reason, "not searched for snapshots");
            }
            let pause = retry.ended(Instant::now(), unavailable, left);
            tracing::warn!(seconds = pause.as_secs(), "the database is not completely rebuilt; trying again later");
        }
    }

    /// Returns what must be searched again.
    async fn adopt_the_rest(self: &Arc<Self>) -> Result<Unsearched, Error> {
        let Readoption { report, unsearched } = self.adopter.readopt(self.stopping.clone()).await?;
        let (adopted, skipped) = (report.adopted.len(), report.skipped.len());
        if !unsearched.is_empty() {
            tracing::info!(adopted, "snapshots adopted into the rebuilt database");
            return Ok(Unsearched::Some(unsearched));
        }
        for folder in &report.skipped {
            tracing::warn!(folder = folder.path, reason = folder.reason, "not taken into the rebuilt database");
        }
        self.blocking(|database| Ok(database.store.end_rebuild()?)).await?;
        tracing::info!(adopted, skipped, "the database has been rebuilt");
        Ok(Unsearched::Nothing)
    }
}
