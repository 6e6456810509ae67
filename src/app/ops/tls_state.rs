//! Whether the files of `[api.tls]` could be loaded, for the status.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::api;

/// What is known about the loaded files.
#[derive(Debug, Default)]
pub struct TlsState(Mutex<Loaded>);

#[derive(Clone, Debug, Default)]
struct Loaded {
    at: Option<SystemTime>,
    revocations_end: Option<SystemTime>,
    /// Why newer files could not be loaded.
    problem: Option<String>,
}

impl TlsState {
    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The files were loaded. The first of the revocation lists, if there are any, ends at the time given.
    pub fn set_loaded(&self, revocations_end: Option<SystemTime>) {
        *self.loaded() = Loaded { at: Some(SystemTime::now()), revocations_end, problem: None };
    }

    /// The files could not be loaded, and the former ones stay in use.
    pub fn set_problem(&self, problem: String) {
        self.loaded().problem = Some(problem);
    }

    /// Whether a revocation list has ended, so that no certificate of its authority is accepted. Those of other authorities
    /// still are.
    pub(super) fn has_expired_list(&self) -> bool {
        self.loaded().revocations_end.is_some_and(|end| end <= SystemTime::now())
    }

    pub(super) fn status(&self) -> api::TlsStatus {
        let Loaded { at, revocations_end, problem } = self.loaded().clone();
        let time = |time: SystemTime| jiff::Timestamp::try_from(time).ok().map(api::time);
        let problem = match problem {
            None if self.has_expired_list() => Some(
                "a revocation list (api.tls.client_crl) has expired: no certificate of its authority is accepted"
                    .to_owned(),
            ),
            problem => problem,
        };
        api::TlsStatus {
            loaded_at: at.and_then(time),
            revocations_end: revocations_end.and_then(time),
            status: if problem.is_none() { api::Status::Ok } else { api::Status::Error },
            problem,
        }
    }
}
