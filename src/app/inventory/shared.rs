//! Shares the result of work among concurrent callers.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Work that is done once for all callers that wait when it starts.
pub(crate) struct Shared<T> {
    state: Mutex<State<T>>,
    ended: Condvar,
}

struct State<T> {
    /// How often the work was started.
    started: u64,
    is_running: bool,
    /// The callers that wait for its end.
    waiting: usize,
    /// The last result and its number. Kept only while callers wait.
    done: Option<(u64, T)>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State { started: 0, is_running: false, waiting: 0, done: None }),
            ended: Condvar::new(),
        }
    }
}

/// Ends the running work, even after a panic; then another caller does the work.
struct Running<'a, T>(&'a Shared<T>);

impl<T> Drop for Running<'_, T> {
    fn drop(&mut self) {
        self.0.state().is_running = false;
        self.0.ended.notify_all();
    }
}

impl<T: Clone> Shared<T> {
    /// Returns the result of `work` that starts after this call. Running work is not shared, because it may not see
    /// what the caller has just changed.
    pub(crate) fn get(&self, work: impl FnOnce() -> T) -> T {
        let mut state = self.state();
        let wanted = state.started + 1;
        while state.is_running {
            state.waiting += 1;
            state = self.ended.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiting -= 1;
            let value = state.done.as_ref().filter(|(number, _)| *number >= wanted).map(|(_, value)| value.clone());
            if state.waiting == 0 {
                state.done = None;
            }
            if let Some(value) = value {
                return value;
            }
        }
        state.started += 1;
        state.is_running = true;
        let number = state.started;
        drop(state);
        let running = Running(self);
        let value = work();
        let mut state = self.state();
        if state.waiting > 0 {
            state.done = Some((number, value.clone()));
        }
        drop(state);
        drop(running);
        value
    }
}

impl<T> Shared<T> {
    fn state(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc::channel;
    use std::time::{Duration, Instant};

    #[test]
    fn concurrent_callers_share_next_work() {
        let (shared, done) = (&Shared::<usize>::default(), AtomicUsize::new(0));
        let count = &|| done.fetch_add(1, Ordering::SeqCst) + 1;
        let (started, wait_for_start) = channel();
        let (release, held) = channel::<()>();
        std::thread::scope(|scope| {
            let first = scope.spawn(move || {
                shared.get(move || {
                    started.send(()).unwrap();
                    let _ = held.recv();
                    count()
                })
            });
            wait_for_start.recv().unwrap();
            let others: Vec<_> = (0..20).map(|_| scope.spawn(|| shared.get(count))).collect();
            let end = Instant::now() + Duration::from_secs(60);
            // They wait while the first work runs.
            while others.iter().any(|other| other.is_finished()) || done.load(Ordering::SeqCst) > 0 {
                assert!(Instant::now() < end);
            }
            release.send(()).unwrap();
            assert_eq!(first.join().unwrap(), 1);
            // They do not get the result of work that was already running.
            for other in others {
                assert!(other.join().unwrap() >= 2);
            }
        });
        assert!(done.load(Ordering::SeqCst) >= 2);
        assert_eq!(shared.get(|| 70), 70);
    }

    #[test]
    fn panic_releases_waiting_callers() {
        let shared = Shared::<u32>::default();
        let run = std::panic::AssertUnwindSafe(|| shared.get(|| panic!("a bug")));
        assert!(std::panic::catch_unwind(run).is_err());
        assert_eq!(shared.get(|| 7), 7);
    }
}
