//! Bandwidth limits: when bytes may be sent.

use std::num::NonZero;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Export;

/// A rate that all who hold it share, first come, first served. What was not used is lost: after a pause
/// there is no burst.
#[derive(Debug)]
struct Pace {
    bytes_per_second: NonZero<u64>,
    /// When the next bytes may be sent.
    next: Mutex<Option<Instant>>,
}

impl Pace {
    fn new(bytes_per_second: NonZero<u64>) -> Arc<Self> {
        Arc::new(Self { bytes_per_second, next: Mutex::default() })
    }

    /// When `bytes` may be sent, asked at `now`.
    fn take(&self, bytes: u64, now: Instant) -> Instant {
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let at = next.map_or(now, |next| next.max(now));
        *next = Some(at + Duration::from_secs_f64(bytes as f64 / self.bytes_per_second.get() as f64));
        at
    }
}

/// The limits of all connections together.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    all: Option<Arc<Pace>>,
    each: Option<NonZero<u64>>,
}

impl Limits {
    /// Those of `[export]`.
    pub fn new(export: &Export) -> Self {
        Self { all: export.max_rate.map(Pace::new), each: export.max_rate_per_connection }
    }

    /// Those that a new connection keeps to.
    pub(super) fn for_connection(&self) -> Paces {
        Paces(self.all.iter().cloned().chain(self.each.map(Pace::new)).collect())
    }
}

/// The limits that one connection keeps to.
#[derive(Clone, Debug)]
pub(super) struct Paces(Arc<[Arc<Pace>]>);

impl Paces {
    /// When `bytes` may be sent, asked at `now`.
    pub(super) fn take(&self, bytes: u64, now: Instant) -> Instant {
        self.0.iter().fold(now, |at, pace| pace.take(bytes, at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_shared_and_not_saved_up() {
        let second = Duration::from_secs(1);
        let limits = Limits { all: Some(Pace::new(1000.try_into().unwrap())), each: 500.try_into().ok() };
        let (one, other, start) = (limits.for_connection(), limits.for_connection(), Instant::now());
        assert_eq!(one.take(500, start), start);
        // Its own limit, then that of all.
        assert_eq!(one.take(500, start), start + second);
        assert_eq!(other.take(500, start), start + second);
        assert_eq!(other.take(500, start), start + 2 * second);
        // Nothing was sent for a long time.
        let later = start + 100 * second;
        assert_eq!(one.take(500, later), later);
        assert_eq!(one.take(500, later), later + second);
        // Without limits nobody waits.
        let free = Limits::default().for_connection();
        assert_eq!((free.take(u64::MAX, start), free.take(1, start)), (start, start));
    }
}
