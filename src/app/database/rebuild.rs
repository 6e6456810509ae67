//! Rebuilds the database from the manifests in the repositories, after the damaged one was set aside.

use std::sync::Arc;

use super::Database;
use crate::app::Error;
use crate::app::snapshots::Readoption;
use crate::app::tasks::Service;

impl Database {
    /// Adopts the snapshots that the lost database had, as far as their repositories are available.
    ///
    /// # Errors
    /// The database fails.
    pub(crate) async fn rebuild_after_start(self: &Arc<Self>) -> Result<(), Error> {
        if self.blocking(|database| Ok(database.store.rebuild()?)).await?.started.is_some() {
            tracing::error!(
                "rebuilding the database from the manifests; these are lost: expiry times (rebuilt snapshots never \
                 expire), leases, idempotency keys, checksums, and pending post hooks: check whether guests are still \
                 frozen; which tokens were revoked is lost too, so all users have to log in again"
            );
            self.continue_rebuilding().await;
        }
        Ok(())
    }

    /// Adopts what is left, if the rebuilding is not complete. Repositories may be mounted later.
    pub(super) async fn continue_rebuilding(self: &Arc<Self>) {
        if let Err(error) = self.adopt_the_rest().await {
            tracing::error!(%error, "cannot rebuild the database; trying again in a minute");
        }
    }

    async fn adopt_the_rest(self: &Arc<Self>) -> Result<(), Error> {
        if self.blocking(|database| Ok(database.store.rebuild()?)).await?.started.is_none() {
            return Ok(());
        }
        let Readoption { report, is_complete } = self.adopter.readopt().await?;
        let (adopted, skipped) = (report.adopted.len(), report.skipped.len());
        if !is_complete {
            tracing::warn!(adopted, "not all repositories could be searched; trying again in a minute");
            return Ok(());
        }
        for folder in &report.skipped {
            tracing::warn!(folder = folder.path, reason = folder.reason, "not taken into the rebuilt database");
        }
        self.blocking(|database| Ok(database.store.end_rebuild()?)).await?;
        tracing::info!(adopted, skipped, "the database has been rebuilt");
        Ok(())
    }
}
