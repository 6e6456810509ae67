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
            match (app.look_for_trouble(), app.store.check()) {
                (None, Ok(())) => {}
                (Some(trouble), _) => problems.push(trouble.to_string()),
                (None, Err(error)) => {
                    tracing::error!(%error, "not ready");
                    problems.push("the database does not answer".to_owned());
                }
            }
            let found = app.repositories.found();
            let mounts = found.known.iter().map(|known| known.repository.as_ref().ok()?.mounted().ok());
            let mounts: Vec<_> = mounts.collect();
            if mounts.iter().any(Option::is_none) {
                problems.push("a repository is not there".to_owned());
            }
            if mounts.iter().flatten().any(|mounted| mounted.space.is_read_only) {
                problems.push("a repository is read-only".to_owned());
            }
            if app.has_lost_snapshots().unwrap_or_default() {
                problems.push("snapshots in a repository are not in the database".to_owned());
            }
            if found.problem.is_some() {
                problems.push("the list of repositories cannot be read".to_owned());
            }
            let status = if problems.is_empty() { wire::Status::Ok } else { wire::Status::Error };
            Ok(wire::Health { status, problems })
        })
        .await
    }
}
