//! Whether the service can serve.

use std::sync::Arc;

use super::{App, Error};
use crate::wire;

impl App {
    /// What keeps the service from serving, for strangers: the repositories are named by their ids, and no paths are told.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn readiness(self: &Arc<Self>) -> Result<wire::Health, Error> {
        self.blocking(|app| {
            let mut problems = Vec::new();
            if let Err(error) = app.store.check() {
                tracing::error!(%error, "not ready");
                problems.push("the database does not answer".to_owned());
            }
            let found = app.repositories.found();
            for (repository, absent) in found.away() {
                tracing::warn!(repository = %repository.id(), %absent, "not ready");
                problems.push(format!("the repository {} is not there, or does not answer", repository.id()));
            }
            let unusable = found.known.iter().filter(|known| known.repository.is_err());
            problems.extend(unusable.map(|known| format!("the repository {} cannot be used", known.name)));
            if found.problem.is_some() {
                problems.push("the list of repositories cannot be read".to_owned());
            }
            let status = if problems.is_empty() { wire::Status::Ok } else { wire::Status::Error };
            Ok(wire::Health { status, problems })
        })
        .await
    }
}
