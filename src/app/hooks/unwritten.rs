//! Changes of pending post hooks on their way to the database.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crate::app::Error;
use crate::app::notifications::Event;
use crate::hooks::PendingPostHooks;
use crate::model::PendingHooksKey;

/// A change of the pending post hooks of an operation.
#[derive(Clone)]
pub(super) struct Change {
    /// The new ones, or their removal.
    pub post_hooks: Option<PendingPostHooks>,
    /// What webhooks hear of it. The first attempt to write the change takes them.
    pub events: Vec<Event>,
}

#[cfg(test)]
impl From<Option<PendingPostHooks>> for Change {
    fn from(post_hooks: Option<PendingPostHooks>) -> Self {
        Self { post_hooks, events: Vec::new() }
    }
}

pub(super) type Changes = HashMap<PendingHooksKey, Change>;

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

    /// Adds a change, to be written by [`Self::write_one`] or [`Self::write_all`]. The events of an older one stay.
    pub(super) fn put(&self, key: PendingHooksKey, change: Change) {
        let mut changes = self.lock();
        let mut events = changes.remove(&key).map(|older| older.events).unwrap_or_default();
        events.extend(change.events);
        changes.insert(key, Change { events, ..change });
    }

    fn take_events(&self, key: PendingHooksKey) -> Vec<Event> {
        self.lock().get_mut(&key).map(|change| std::mem::take(&mut change.events)).unwrap_or_default()
    }

    /// Begins a record with `write`. Drops an older change of the same key: written later, it would undo the record,
    /// and the post hooks of the new operation would not be called after a crash. `write` gets its events.
    ///
    /// # Errors
    /// Those of `write`. Then only the events are taken.
    pub(super) fn begin(
        &self,
        key: PendingHooksKey,
        write: impl FnOnce(&[Event]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // An older change that is just being written must not end later.
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        write(&self.take_events(key))?;
        self.lock().remove(&key);
        Ok(())
    }

    /// Writes the newest change of `key`, if there is one.
    pub(super) fn write_one(
        &self,
        key: PendingHooksKey,
        write: impl Fn(PendingHooksKey, &Change) -> Result<(), Error>,
    ) {
        let writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write(key, &write, &writing);
    }

    /// Writes the changes that were not accepted. Does nothing while another change is written.
    pub(super) fn write_all(&self, write: impl Fn(PendingHooksKey, &Change) -> Result<(), Error>) {
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
        write: &impl Fn(PendingHooksKey, &Change) -> Result<(), Error>,
        _: &MutexGuard<'_, ()>,
    ) {
        // If there is none, another call has written it.
        let Some(change) = self.lock().get_mut(&key).map(|change| {
            let events = std::mem::take(&mut change.events);
            Change { events, ..change.clone() }
        }) else {
            return;
        };
        match write(key, &change) {
            Ok(()) => {
                let mut changes = self.lock();
                // A newer one is written by the call that made it.
                let is_same = |newest: &Change| newest.post_hooks == change.post_hooks && newest.events.is_empty();
                if changes.get(&key).is_some_and(is_same) {
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
            old.put(key, None.into());
            old.write_one(key, |_, _| {
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
            new.begin(key, |_| {
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
        unwritten.put(key, None.into());
        assert!(unwritten.begin(key, |_| Err(Error::Internal("full".to_owned()))).is_err());
        assert!(unwritten.lock().contains_key(&key));
    }
}
