//! Changes of pending post hooks on their way to the database.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::app::Error;
use crate::hooks::PendingPostHooks;
use crate::model::PendingHooksKey;

/// By key: the new pending post hooks, or their removal.
pub(super) type Changes = HashMap<PendingHooksKey, Option<PendingPostHooks>>;

/// Changes that the database does not have yet, because it is being asked or did not accept them. They override it, so
/// that a slow database delays no reader: a guest may be frozen.
#[derive(Default)]
pub(super) struct Unwritten {
    changes: Mutex<Changes>,
    /// Held while one is written, so that a newer change is written later.
    writing: Mutex<()>,
}

impl Unwritten {
    pub(super) fn lock(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a change, and writes it.
    pub(super) fn set(
        &self,
        key: PendingHooksKey,
        change: Option<PendingPostHooks>,
        write: impl Fn(PendingHooksKey, Option<&PendingPostHooks>) -> Result<(), Error>,
    ) {
        self.lock().insert(key, change);
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(key, &write, &writing);
    }

    /// Writes the changes that were not accepted. Does nothing while another change is written.
    pub(super) fn write_all(&self, write: impl Fn(PendingHooksKey, Option<&PendingPostHooks>) -> Result<(), Error>) {
        let writing = match self.writing.try_lock() {
            Ok(writing) => writing,
            Err(TryLockError::Poisoned(writing)) => writing.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let keys: Vec<_> = self.lock().keys().copied().collect();
        keys.into_iter().for_each(|key| self.write(key, &write, &writing));
    }

    fn write(
        &self,
        key: PendingHooksKey,
        write: &impl Fn(PendingHooksKey, Option<&PendingPostHooks>) -> Result<(), Error>,
        _: &MutexGuard<'_, ()>,
    ) {
        // If there is none, another call has written it.
        let Some(change) = self.lock().get(&key).cloned() else { return };
        match write(key, change.as_ref()) {
            Ok(()) => {
                let mut changes = self.lock();
                // A newer one is written by the call that made it.
                if changes.get(&key) == Some(&change) {
                    changes.remove(&key);
                }
            }
            Err(error) => {
                let cause = error.hidden_cause().unwrap_or_default();
                tracing::error!(%key, %error, cause, "cannot record pending post hooks; retrying each minute");
            }
        }
    }
}
