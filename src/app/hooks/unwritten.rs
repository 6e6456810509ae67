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

    /// Begins a record with `write`. Drops an older change of the same key: written later, it would undo the record,
    /// and the post hooks of the new operation would not be called after a crash.
    ///
    /// # Errors
    /// Those of `write`. Then nothing has changed.
    pub(super) fn begin(&self, key: PendingHooksKey, write: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        // An older change that is just being written must not end later.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write()?;
        self.lock().remove(&key);
        Ok(())
    }

    /// Makes a change, and writes it.
    pub(super) fn set(
        &self,
        key: PendingHooksKey,
        change: Option<PendingPostHooks>,
        write: impl Fn(PendingHooksKey, Option<&PendingPostHooks>) -> Result<(), Error>,
    ) {
        self.lock().insert(key, change);
        self.write_one(key, write);
    }

    /// Writes the newest change of `key`, if there is one.
    pub(super) fn write_one(
        &self,
        key: PendingHooksKey,
        write: impl Fn(PendingHooksKey, Option<&PendingPostHooks>) -> Result<(), Error>,
    ) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    #[test]
    fn new_record_is_written_after_an_older_change_of_its_key_and_drops_waiting_ones() {
        let (unwritten, key) = (Arc::new(Unwritten::default()), PendingHooksKey::from_u128(1));
        let written = Arc::new(Mutex::new(Vec::new()));
        let ((has_begun, begun), (go_on, may_go_on)) = (channel(), channel::<()>());
        let (old, log) = (Arc::clone(&unwritten), Arc::clone(&written));
        let may_go_on = Mutex::new(may_go_on);
        let old = std::thread::spawn(move || {
            old.set(key, None, |_, _| {
                has_begun.send(()).unwrap();
                may_go_on.lock().unwrap().recv().unwrap();
                // The other thread has tried to write since, or will.
                (0..1000).for_each(|_| std::thread::yield_now());
                log.lock().unwrap().push("old");
                // As on a full disk: the change stays unwritten.
                Err(Error::Internal("full".to_owned()))
            });
        });
        begun.recv().unwrap();
        let (new, log) = (Arc::clone(&unwritten), Arc::clone(&written));
        let new = std::thread::spawn(move || {
            go_on.send(()).unwrap();
            new.begin(key, || {
                log.lock().unwrap().push("new");
                Ok(())
            })
        });
        old.join().unwrap();
        new.join().unwrap().unwrap();
        unwritten.write_all(|_, _| {
            written.lock().unwrap().push("stale");
            Ok(())
        });
        assert_eq!(*written.lock().unwrap(), ["old", "new"]);
        // A record that could not be written drops nothing.
        unwritten.lock().insert(key, None);
        assert!(unwritten.begin(key, || Err(Error::Internal("full".to_owned()))).is_err());
        assert!(unwritten.lock().contains_key(&key));
    }
}
