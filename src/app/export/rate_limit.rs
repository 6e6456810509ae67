//! Bandwidth limits: when bytes may be sent.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Export;

/// How late bytes may come without that their rate suffers: timers wake at whole milliseconds. What was not
/// used by then is lost, so that after a pause there is no burst.
const LATE: Duration = Duration::from_millis(10);

/// Pieces are so short that this many go out in a second: so who shares a rate with many does not wait long.
const TURNS_PER_SECOND: u64 = 10;

/// Pieces are whole pages.
const PAGE: u64 = 4 << 10;

/// A rate that all who hold it share, first come, first served.
#[derive(Debug)]
struct RateLimiter {
    bytes_per_second: NonZero<u64>,
    /// When the next bytes may be sent.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    fn new(bytes_per_second: NonZero<u64>) -> Arc<Self> {
        Arc::new(Self { bytes_per_second, next: Mutex::default() })
    }

    /// When `bytes` may be sent, asked at `now`.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.map_or(now, |next| next.max(now.checked_sub(LATE).unwrap_or(now)));
        *next = Some(at + self.time_for(bytes));
        at.max(now)
    }

    /// Takes back that `bytes` would be sent.
    fn give_back(&self, bytes: u64) {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = next.and_then(|next| next.checked_sub(self.time_for(bytes)));
    }

    fn time_for(&self, bytes: u64) -> Duration {
        Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64)
    }
}

/// The limits of all connections together.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    all: Option<Arc<RateLimiter>>,
    each: Option<NonZero<u64>>,
}

impl Limits {
    /// Those of `[export]`.
    pub fn new(export: &Export) -> Self {
        Self { all: export.max_rate.map(RateLimiter::new), each: export.max_rate_per_connection }
    }

    /// Those that a new connection keeps to.
    pub fn for_connection(&self) -> ConnectionLimits {
        ConnectionLimits(self.all.iter().cloned().chain(self.each.map(RateLimiter::new)).collect())
    }
}

/// The limits that one connection keeps to.
#[derive(Clone, Debug)]
pub struct ConnectionLimits(Arc<[Arc<RateLimiter>]>);

impl ConnectionLimits {
    /// The turn of `bytes`, asked for at `now`.
    pub fn take(&self, bytes: u64, now: Instant) -> Reservation {
        let at = self.0.iter().fold(now, |at, pace| pace.take(bytes, at));
        Reservation { at, bytes, limits: self.clone() }
    }

    /// How many bytes to send at a time, `most` at most.
    pub fn piece(&self, most: u64) -> u64 {
        let turn = |pace: &Arc<RateLimiter>| (pace.bytes_per_second.get() / TURNS_PER_SECOND / PAGE * PAGE).max(PAGE);
        self.0.iter().map(turn).fold(most, u64::min)
    }
}

/// When some bytes may be sent. Dropped before they were, it makes room for others.
#[derive(Debug)]
pub struct Reservation {
    pub at: Instant,
    bytes: u64,
    limits: ConnectionLimits,
}

impl Reservation {
    /// The bytes were sent.
    pub fn was_taken(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // One that has passed is nobody else's any more.
        if self.bytes > 0 && self.at > Instant::now() {
            self.limits.0.iter().for_each(|pace| pace.give_back(self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When bytes that are sent may be.
    fn take(limits: &ConnectionLimits, bytes: u64, now: Instant) -> Instant {
        let turn = limits.take(bytes, now);
        let at = turn.at;
        turn.was_taken();
        at
    }

    #[test]
    fn a_rate_is_shared_and_not_saved_up() {
        let second = Duration::from_secs(1);
        let limits = Limits { all: Some(RateLimiter::new(1000.try_into().unwrap())), each: 500.try_into().ok() };
        let (one, other, start) = (limits.for_connection(), limits.for_connection(), Instant::now());
        assert_eq!(take(&one, 500, start), start);
        // Its own limit, then that of all.
        assert_eq!(take(&one, 500, start), start + second);
        assert_eq!(take(&other, 500, start), start + second);
        assert_eq!(take(&other, 500, start), start + 2 * second);
        // What nobody wants any more is no burden to others.
        let given_up = other.take(500, start);
        assert_eq!(given_up.at, start + 3 * second);
        drop(given_up);
        assert_eq!(take(&limits.for_connection(), 500, start), start + 2 * second);
        // Nothing was sent for a long time.
        let later = start + 100 * second;
        assert_eq!(take(&one, 500, later), later);
        assert_eq!(take(&one, 500, later), later + second - LATE);
        // Without limits nobody waits.
        let free = Limits::default().for_connection();
        assert_eq!((take(&free, u64::MAX, start), take(&free, 1, start)), (start, start));
    }

    #[test]
    fn timers_that_wake_late_cost_no_bandwidth() {
        const PIECE: u64 = 256 << 10;
        for mib in [1, 100, 400, 3000] {
            let pace =
                Limits { all: Some(RateLimiter::new((mib << 20).try_into().unwrap())), each: None }.for_connection();
            let start = Instant::now();
            let mut now = start;
            for _ in 0..4 * mib {
                now = take(&pace, PIECE, now).max(now) + Duration::from_micros(999);
            }
            // A second's worth, and what was late; or a millisecond for each.
            let least = Duration::from_millis(4 * mib);
            let took = now - start;
            assert!(took < Duration::from_millis(1020).max(least), "{mib} MiB at {mib} MiB/s took {took:?}");
            assert!(took > Duration::from_millis(980 - 250 / mib), "{mib} MiB at {mib} MiB/s took {took:?}");
        }
    }

    #[test]
    fn pieces_are_short_where_the_rate_is_low() {
        let piece = |rate: u64, most| Limits { all: None, each: rate.try_into().ok() }.for_connection().piece(most);
        assert_eq!([64 << 10, 1 << 20, 1 << 30].map(|rate| piece(rate, 256 << 10)), [4 << 10, 100 << 10, 256 << 10]);
        assert_eq!(Limits::default().for_connection().piece(7), 7);
    }
}
