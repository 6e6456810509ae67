//! Whether the service can serve.

use std::sync::Arc;

use crate::api;
use crate::app::{App, Error};

impl App {
    /// What keeps the service from serving, for strangers: the repositories are named by their ids, and no paths are told.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub async fn readiness(self: &Arc<Self>) -> Result<api::Health, Error> {
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
            for (known, mounted) in found.with_mounts() {
                let name = &known.name;
                match (&known.repository, mounted) {
                    (_, Ok((_, mounted))) if mounted.space.is_read_only => {
                        problems.push(format!("the repository {name} is read-only"));
                    }
                    (_, Ok(_)) => {}
                    (Ok(_), Err(absent)) => {
                        tracing::warn!(repository = name, absent, "not ready");
                        problems.push(format!("the repository {name} is not there, or does not answer"));
                    }
                    (Err(_), _) => problems.push(format!("the repository {name} cannot be used")),
                }
            }
            if app.has_lost_snapshots().unwrap_or_default() {
                problems.push("snapshots in a repository are not in the database".to_owned());
            }
            if found.problem.is_some() {
                problems.push("the list of repositories cannot be read".to_owned());
            }
            let status = if problems.is_empty() { api::Status::Ok } else { api::Status::Error };
            Ok(api::Health { status, problems })
        })
        .await
    }
}
