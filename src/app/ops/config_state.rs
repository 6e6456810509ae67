//! Whether a changed config could be loaded, for the status.

use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;

use crate::api;

/// What is known about the config in use.
#[derive(Debug)]
pub struct ConfigState(Mutex<Loaded>);

#[derive(Clone, Debug)]
struct Loaded {
    at: Timestamp,
    problem: Option<String>,
    needs_restart: Vec<String>,
}

impl Default for ConfigState {
    /// The config was loaded now.
    fn default() -> Self {
        Self(Mutex::new(Loaded { at: Timestamp::now(), problem: None, needs_restart: Vec::new() }))
    }
}

impl ConfigState {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The config was loaded, except for the keys that need a restart.
    pub fn set_loaded(&self, needs_restart: Vec<String>) {
        *self.loaded() = Loaded { at: Timestamp::now(), problem: None, needs_restart };
    }

    /// The config is wrong, and the former one stays in use.
    pub fn set_problem(&self, problem: String) {
        self.loaded().problem = Some(problem);
    }

    pub(super) fn status(&self) -> api::ConfigStatus {
        let Loaded { at, problem, needs_restart } = self.loaded().clone();
        let status = if problem.is_none() { api::Status::Ok } else { api::Status::Error };
        api::ConfigStatus { loaded_at: api::time(at), status, problem, needs_restart }
    }
}
