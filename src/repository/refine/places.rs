//! How many comparisons by content run at a time: the host's processors and disks are its guests'.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Comparisons at a time. One more waits.
const AT_ONCE: usize = 8;

/// How often who waits looks whether anybody still waits for it.
const LOOK: Duration = Duration::from_millis(200);

static TAKEN: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// A place to compare, free again when this is dropped.
pub(super) struct Place(());

impl Place {
    /// Waits for a place; nothing where `is_abandoned` says that it is not wanted any more.
    pub(super) fn take(is_abandoned: &dyn Fn() -> bool) -> Option<Self> {
        let mut taken = TAKEN.lock().unwrap_or_else(PoisonError::into_inner);
        while *taken >= AT_ONCE {
            if is_abandoned() {
                return None;
            }
            (taken, _) = FREED.wait_timeout(taken, LOOK).unwrap_or_else(PoisonError::into_inner);
        }
        *taken += 1;
        Some(Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *TAKEN.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_wanted_any_more_waits_no_longer() {
        let places: Vec<_> = (0..AT_ONCE).map(|_| Place::take(&|| false).unwrap()).collect();
        assert!(Place::take(&|| true).is_none());
        let waiting = std::thread::spawn(|| Place::take(&|| false).is_some());
        drop(places);
        assert!(waiting.join().unwrap());
    }
}
