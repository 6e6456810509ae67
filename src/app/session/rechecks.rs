//! Asks the manager again whether a user's password is good, some time after the log-in (`jwt.recheck_after`).
//!
//! The manager knows no other question, so the passwords are kept in memory, and nowhere else. A user whose password is
//! not there, as after a restart, has to log in again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::revocations::now;
use crate::auth::Credentials;

/// Log-ins whose passwords are kept. With another one, the one that ends first has to log in again.
const MAX_KEPT: usize = 10_000;

pub(super) struct Rechecks {
    /// How long a check is good.
    after: Duration,
    kept: Mutex<HashMap<u128, Arc<Kept>>>,
}

pub(super) struct Kept {
    pub credentials: Credentials,
    checked: Mutex<Instant>,
    /// Held while the manager is asked, so that the requests of one log-in ask once.
    pub asking: tokio::sync::Mutex<()>,
    /// Seconds since 1970.
    pub ends: u64,
}

impl Rechecks {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, kept: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<u128, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the password of a log-in, which was just checked.
    pub(super) fn keep(&self, log_in: u128, credentials: Credentials, ends: u64) {
        let mut kept = self.kept();
        if kept.len() >= MAX_KEPT {
            let now = now();
            kept.retain(|_, kept| kept.ends > now);
        }
        if kept.len() >= MAX_KEPT {
            let first = kept.iter().min_by_key(|(_, kept)| kept.ends).map(|(id, _)| *id);
            first.and_then(|first| kept.remove(&first));
        }
        let (checked, asking) = (Mutex::new(Instant::now()), tokio::sync::Mutex::default());
        kept.insert(log_in, Arc::new(Kept { credentials, checked, asking, ends }));
    }

    pub(super) fn find(&self, log_in: u128) -> Option<Arc<Kept>> {
        self.kept().get(&log_in).cloned()
    }

    pub(super) fn forget(&self, log_in: u128) {
        self.kept().remove(&log_in);
    }

    /// Forgets all log-ins of a user, or of all.
    pub(super) fn forget_user(&self, user: Option<&str>) {
        self.kept().retain(|_, kept| user.is_some_and(|user| kept.credentials.username != user));
    }

    pub(super) fn is_due(&self, kept: &Kept) -> bool {
        kept.checked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.after
    }
}

impl Kept {
    pub(super) fn is_good(&self) {
        *self.checked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}
