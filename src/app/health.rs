//! Whether the service can serve.

use std::sync::Arc;

use super::{App, Error};
use crate::wire;

impl App {
    /// What keeps the service from serving, for strangers: no names, no paths.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn readiness(self: &Arc<Self>) -> Result<wire::Health, Error> {
        self.blocking(|app| {
            let mut problems = Vec::new();
            if let Err(error) = app.store.check() {
                tracing::error!(%error, "not ready");
                problems.push("the database does not answer");
            }
            let found = app.repositories.found();
            if found.known.iter().any(|known| !known.repository.as_ref().is_ok_and(|one| one.mounted().is_ok())) {
                problems.push("a repository is not there");
            }
            if found.problem.is_some() {
                problems.push("the list of repositories cannot be read");
            }
            let status = if problems.is_empty() { wire::Status::Ok } else { wire::Status::Error };
            Ok(wire::Health { status, problems })
        })
        .await
    }
}
