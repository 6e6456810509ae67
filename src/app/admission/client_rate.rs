//! Measures how fast a client takes its download, so that slow clients can be disconnected while others wait.
//!
//! Only time that the service waits for the client counts: from handing a part of the body to the connection until the
//! connection asks for the next one. Time for reading the disk or for rate limits does not count.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The rate is measured over this time.
const MEASURED_TIME: Duration = Duration::from_secs(30);

/// The service must have waited for the client this long within that time; otherwise the client is not the slow side.
const MIN_WAIT: Duration = Duration::from_secs(15);

/// How long the service has waited for a client.
#[derive(Debug)]
pub(super) struct ClientRate {
    started: Instant,
    /// When the current wait began, in microseconds after `started` plus one; 0 without a current wait.
    since: AtomicU64,
    /// The earlier waits together, microseconds.
    waited: AtomicU64,
    /// The measurements of the window, oldest first.
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
        Self { started: Instant::now(), since: AtomicU64::new(0), waited: AtomicU64::new(0), rounds: Mutex::default() }
    }
}

impl ClientRate {
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// The connection got a part of the body: the wait for the client begins.
    pub(crate) fn begin(&self) {
        self.since.store(self.now() + 1, Ordering::Relaxed);
    }

    /// The connection asks for the next part: the wait ends.
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

    /// The rate in the window, bytes per second, if the service waited for the client long enough to tell.
    pub(super) fn rate(&self, bytes: u64) -> Option<f64> {
        self.rate_at(Round { at: Instant::now(), waited: self.waited(), bytes })
    }

    fn rate_at(&self, now: Round) -> Option<f64> {
        let mut rounds = self.rounds.lock().unwrap_or_else(PoisonError::into_inner);
        rounds.push_back(now);
        // Keep one measurement that is at least as old as the window.
        while rounds.get(1).is_some_and(|next| now.at.saturating_duration_since(next.at) >= MEASURED_TIME) {
            rounds.pop_front();
        }
        let first = rounds.front().filter(|first| now.at.saturating_duration_since(first.at) >= MEASURED_TIME)?;
        let waited = now.waited.saturating_sub(first.waited);
        (waited >= MIN_WAIT).then(|| now.bytes.saturating_sub(first.bytes) as f64 / waited.as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_counts_only_time_waiting_for_client() {
        let start = Instant::now();
        // In each second, the service waits `waited_ms` for the client, and the client takes `bytes`.
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
        // The rest of the time went into reading the disk, or into rate limits.
        assert_eq!(rate_after(60, 500, 100), Some(200.0));
        assert_eq!(rate_after(60, 400, 100), None);
        // A burst leaves the window.
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
    fn wait_lasts_until_next_part_is_requested() {
        let client = ClientRate::default();
        assert_eq!(client.waited(), Duration::ZERO);
        client.begin();
        let start = Instant::now();
        while client.waited() < Duration::from_millis(2) {
            assert!(start.elapsed() < Duration::from_secs(60), "the wait is not counted");
        }
        client.end();
        let waited = client.waited();
        assert!(waited >= Duration::from_millis(2));
        client.end();
        assert_eq!(client.waited(), waited, "time without a wait was counted");
    }
}
