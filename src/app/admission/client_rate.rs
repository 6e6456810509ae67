//! How fast clients take what is sent to them, and which of them are cut while others wait.
//!
//! Only the time counts in which the service waited for the client: from a piece of a body that was handed to the
//! connection until the connection asks for the next. Reading the disk and keeping to a limit of ours is not its time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Over how long the rate is measured.
const WINDOW: Duration = Duration::from_secs(30);

/// How much of that the service must have waited for the client: with less, it is not the client that is slow.
const ENOUGH: Duration = Duration::from_secs(15);

/// How long a client was waited for.
#[derive(Debug)]
pub(super) struct ClientRate {
    begun: Instant,
    /// Since when it is waited for, microseconds after it was begun, and one more; 0: it is not.
    since: AtomicU64,
    /// How long it was waited for before, microseconds.
    waited: AtomicU64,
    /// What was known at each round of the window, oldest first.
    rounds: Mutex<VecDeque<Round>>,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    at: Instant,
    waited: Duration,
    bytes: u64,
}

impl Default for ClientRate {
    fn default() -> Self {
        Self { begun: Instant::now(), since: AtomicU64::new(0), waited: AtomicU64::new(0), rounds: Mutex::default() }
    }
}

impl ClientRate {
    fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// The connection has a piece: now it is the client's turn.
    pub(crate) fn begin(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
    }

    /// The connection asks for the next piece.
    pub(crate) fn end(&self) {
        let since = self.since.swap(0, Ordering::Relaxed);
        if since > 0 {
            self.waited.fetch_add((self.now() + 1).saturating_sub(since), Ordering::Relaxed);
        }
    }

    fn waited(&self) -> Duration {
        let since = self.since.load(Ordering::Relaxed);
        let now = if since > 0 { (self.now() + 1).saturating_sub(since) } else { 0 };
        Duration::from_micros(self.waited.load(Ordering::Relaxed) + now)
    }

    /// The rate of the last half minute, bytes a second, where the client was what was waited for.
    pub(super) fn rate(&self, bytes: u64) -> Option<f64> {
        self.rate_at(Round { at: Instant::now(), waited: self.waited(), bytes })
    }

    fn rate_at(&self, now: Round) -> Option<f64> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.push_back(now);
        // The last one that is as old as the window stays.
        while rounds.get(1).is_some_and(|next| now.at.saturating_duration_since(next.at) >= WINDOW) {
            rounds.pop_front();
        }
        let first = rounds.front().filter(|first| now.at.saturating_duration_since(first.at) >= WINDOW)?;
        let waited = now.waited.saturating_sub(first.waited);
        (waited >= ENOUGH).then(|| now.bytes.saturating_sub(first.bytes) as f64 / waited.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_of_the_time_in_which_the_client_was_waited_for() {
        let start = Instant::now();
        // After each second: how much of it the client was waited for, and how many bytes it took.
        let rate_after = |seconds: u64, waited_ms: u64, bytes: u64| {
            let client = ClientRate::default();
            let round = |n: u64| {
                let (at, waited) = (start + Duration::from_secs(n), Duration::from_millis(n * waited_ms));
                client.rate_at(Round { at, waited, bytes: n * bytes })
            };
            (0..=seconds).map(round).last().flatten()
        };
        assert_eq!(rate_after(29, 1000, 100), None, "too early to tell");
        assert_eq!(rate_after(30, 1000, 100), Some(100.0));
        assert_eq!(rate_after(500, 1000, 100), Some(100.0));
        // The rest of the time went into the disk, or into a limit of ours.
        assert_eq!(rate_after(60, 500, 100), Some(200.0));
        assert_eq!(rate_after(60, 400, 100), None);
        // A burst is forgotten.
        let client = ClientRate::default();
        let rates: Vec<_> = (0..=60)
            .map(|n| {
                let (at, waited) = (start + Duration::from_secs(n), Duration::from_secs(n));
                client.rate_at(Round { at, waited, bytes: if n == 0 { 0 } else { 3000 } })
            })
            .collect();
        assert_eq!((rates[30], rates[31], rates[60]), (Some(100.0), Some(0.0), Some(0.0)));
        assert!(client.rounds.lock().unwrap().len() <= 31);
    }

    #[test]
    fn a_client_is_waited_for_from_a_piece_to_the_next() {
        let client = ClientRate::default();
        assert_eq!(client.waited(), Duration::ZERO);
        client.begin();
        let waits = Instant::now();
        while client.waited() < Duration::from_millis(2) {
            assert!(waits.elapsed() < Duration::from_secs(60), "the time does not count");
        }
        client.end();
        let waited = client.waited();
        assert!(waited >= Duration::from_millis(2));
        client.end();
        assert_eq!(client.waited(), waited, "the time goes on while the service is at work");
    }
}
