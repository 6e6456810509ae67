//! Bandwidth limits: they decide when bytes may be sent.

use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Export;

/// Bytes may be this late without losing bandwidth, because timers wake at whole milliseconds. Bandwidth that is unused
/// for longer is lost, so that no burst follows a pause.
const MAX_LATENESS: Duration = Duration::from_millis(10);

/// Pieces are short enough to send this many per second, so that clients that share a rate do not wait long.
const PIECES_PER_SECOND: u64 = 10;

/// Pieces are whole pages.
const PAGE: u64 = 4 << 10;

/// A limit in bytes per second, which may change at any time. 0: none.
#[derive(Clone, Debug, Default)]
struct Rate(Arc<AtomicU64>);

impl Rate {
    fn new(rate: Option<NonZero<u64>>) -> Self {
        Self(Arc::new(rate.map_or(0, NonZero::get).into()))
    }

    fn get(&self) -> Option<NonZero<u64>> {
        NonZero::new(self.0.load(Ordering::Relaxed))
    }

    fn set(&self, rate: Option<NonZero<u64>>) {
        self.0.store(rate.map_or(0, NonZero::get), Ordering::Relaxed);
    }
}

/// A rate that its holders share, first come, first served.
#[derive(Debug, Default)]
struct RateLimiter {
    rate: Rate,
    /// When the next bytes may be sent.
    next: Mutex<Option<Instant>>,
}

impl RateLimiter {
    fn new(rate: Rate) -> Arc<Self> {
        Arc::new(Self { rate, next: Mutex::default() })
    }

    /// Reserves `bytes` at `now`, and returns when they may be sent.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let Some(rate) = self.rate.get() else { return now };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.map_or(now, |next| next.max(now.checked_sub(MAX_LATENESS).unwrap_or(now)));
        *next = Some(at + time_for(bytes, rate));
        at.max(now)
    }

    /// Cancels the reservation of `bytes`.
    fn give_back(&self, bytes: u64) {
        let Some(rate) = self.rate.get() else { return };
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        *next = next.and_then(|next| next.checked_sub(time_for(bytes, rate)));
    }
}

fn time_for(bytes: u64, rate: NonZero<u64>) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.get() as f64)
}

/// The limits of all connections together. Clones are handles of the same limits.
#[derive(Clone, Debug, Default)]
pub struct RateLimits {
    all: Arc<RateLimiter>,
    each: Rate,
}

impl RateLimits {
    /// The limits of section `[export]`.
    pub fn new(export: &Export) -> Self {
        Self { all: RateLimiter::new(Rate::new(export.max_rate)), each: Rate::new(export.max_rate_per_connection) }
    }

    /// Replaces the limits, also those of connections that send now.
    pub fn set(&self, export: &Export) {
        self.all.rate.set(export.max_rate);
        self.each.set(export.max_rate_per_connection);
    }

    /// The limits of a new connection.
    pub fn for_connection(&self) -> ConnectionLimits {
        ConnectionLimits([Arc::clone(&self.all), RateLimiter::new(self.each.clone())])
    }
}

/// The limits of one connection.
#[derive(Clone, Debug)]
pub struct ConnectionLimits([Arc<RateLimiter>; 2]);

impl ConnectionLimits {
    /// Reserves `bytes` at `now`.
    pub fn take(&self, bytes: u64, now: Instant) -> Reservation {
        let at = self.0.iter().fold(now, |at, limiter| limiter.take(bytes, at));
        Reservation { at, bytes, limits: self.clone() }
    }

    /// How many bytes to send at a time, at most `max`.
    pub fn piece(&self, max: u64) -> u64 {
        let piece = |rate: NonZero<u64>| (rate.get() / PIECES_PER_SECOND / PAGE * PAGE).max(PAGE);
        self.0.iter().filter_map(|limiter| limiter.rate.get()).map(piece).fold(max, u64::min)
    }
}

/// Permission to send bytes at a time. Dropping it before that time releases the bandwidth.
#[derive(Debug)]
pub struct Reservation {
    pub at: Instant,
    bytes: u64,
    limits: ConnectionLimits,
}

impl Reservation {
    /// The bytes were sent, so the bandwidth is used.
    pub fn mark_sent(mut self) {
        self.bytes = 0;
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        // After its time, the bandwidth is lost.
        if self.bytes > 0 && self.at > Instant::now() {
            self.limits.0.iter().for_each(|limiter| limiter.give_back(self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(all: u64, each: u64) -> Export {
        Export {
            max_rate: NonZero::new(all),
            max_rate_per_connection: NonZero::new(each),
            min_rate: None,
            is_idle: false,
        }
    }

    fn limits(all: u64, each: u64) -> RateLimits {
        RateLimits::new(&export(all, each))
    }

    #[test]
    fn changed_rates_apply_to_open_connections() {
        let (limits, start) = (limits(0, 0), Instant::now());
        let (one, second) = (limits.for_connection(), Duration::from_secs(1));
        assert_eq!((take(&one, 1 << 30, start), take(&one, 1, start)), (start, start));
        limits.set(&export(0, 1000));
        assert_eq!((take(&one, 2000, start), take(&one, 1, start)), (start, start + 2 * second));
        limits.set(&export(0, 0));
        assert_eq!(take(&one, 1, start), start);
        limits.set(&export(500, 0));
        assert_eq!((take(&one, 500, start), take(&limits.for_connection(), 1, start)), (start, start + second));
    }

    /// When the bytes may be sent. They count as sent.
    fn take(limits: &ConnectionLimits, bytes: u64, now: Instant) -> Instant {
        let reservation = limits.take(bytes, now);
        let at = reservation.at;
        reservation.mark_sent();
        at
    }

    #[test]
    fn rate_is_shared_and_not_saved_up() {
        let second = Duration::from_secs(1);
        let limits = limits(1000, 500);
        let (one, other, start) = (limits.for_connection(), limits.for_connection(), Instant::now());
        assert_eq!(take(&one, 500, start), start);
        // First its own limit applies, then the shared one.
        assert_eq!(take(&one, 500, start), start + second);
        assert_eq!(take(&other, 500, start), start + second);
        assert_eq!(take(&other, 500, start), start + 2 * second);
        // A dropped reservation releases its bandwidth.
        let cancelled = other.take(500, start);
        assert_eq!(cancelled.at, start + 3 * second);
        drop(cancelled);
        assert_eq!(take(&limits.for_connection(), 500, start), start + 2 * second);
        // After a long pause there is no burst.
        let later = start + 100 * second;
        assert_eq!(take(&one, 500, later), later);
        assert_eq!(take(&one, 500, later), later + second - MAX_LATENESS);
        // Without limits, there is no wait.
        let free = RateLimits::default().for_connection();
        assert_eq!((take(&free, u64::MAX, start), take(&free, 1, start)), (start, start));
    }

    #[test]
    fn late_timers_cost_no_bandwidth() {
        const PIECE: u64 = 256 << 10;
        for mib in [1, 100, 400, 3000] {
            let limits = limits(mib << 20, 0).for_connection();
            let start = Instant::now();
            let mut now = start;
            for _ in 0..4 * mib {
                now = take(&limits, PIECE, now).max(now) + Duration::from_micros(999);
            }
            // A second plus the lateness, or a millisecond per piece.
            let least = Duration::from_millis(4 * mib);
            let took = now - start;
            assert!(took < Duration::from_millis(1020).max(least), "{mib} MiB at {mib} MiB/s took {took:?}");
            assert!(took > Duration::from_millis(980 - 250 / mib), "{mib} MiB at {mib} MiB/s took {took:?}");
        }
    }

    #[test]
    fn low_rates_have_short_pieces() {
        let piece = |rate: u64, max| limits(0, rate).for_connection().piece(max);
        assert_eq!([64 << 10, 1 << 20, 1 << 30].map(|rate| piece(rate, 256 << 10)), [4 << 10, 100 << 10, 256 << 10]);
        assert_eq!(RateLimits::default().for_connection().piece(7), 7);
    }
}
