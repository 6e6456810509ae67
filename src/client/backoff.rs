//! When to try again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::error::ClientError;

const FIRST_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(20);
/// The service may ask for longer than this; then it is asked again earlier.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);
/// How often a waiting thread looks for a cancellation.
const POLL: Duration = Duration::from_millis(100);

/// Set once, by a signal or by a failure elsewhere: all work ends at its next step.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Waits until `end`.
    ///
    /// # Errors
    /// [`ClientError::Cancelled`].
    pub fn wait_until(&self, end: Instant) -> Result<(), ClientError> {
        loop {
            self.check()?;
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            thread::sleep(left.min(POLL));
        }
    }

    pub(super) fn check(&self) -> Result<(), ClientError> {
        if self.is_cancelled() { Err(ClientError::Cancelled) } else { Ok(()) }
    }
}

/// The delays of one operation, from its first failure to its next success.
#[derive(Debug)]
pub struct Backoff {
    patience: Duration,
    since: Option<Instant>,
    failures: u32,
    /// Attempts at other hosts since the last delay.
    others: usize,
}

impl Backoff {
    /// Gives up when there was no success for `patience`. Without patience there is one attempt.
    pub fn new(patience: Duration) -> Self {
        Self { patience, since: None, failures: 0, others: 0 }
    }

    /// The operation made progress.
    pub fn reset(&mut self) {
        self.since = None;
        self.failures = 0;
        self.others = 0;
    }

    /// Whether another of `hosts` hosts is asked without a delay: each of them once.
    pub(super) fn skips_delay(&mut self, hosts: usize) -> bool {
        self.since.get_or_insert_with(Instant::now);
        self.others += 1;
        self.others < hosts
    }

    /// Waits after `error`, for as long as the service asked or exponentially longer, with jitter.
    ///
    /// # Errors
    /// `error` itself if another attempt does not help.
    pub fn wait(&mut self, error: ClientError, cancel: &Cancel) -> Result<(), ClientError> {
        cancel.check()?;
        if !error.is_transient() || matches!(error, ClientError::GaveUp { .. }) || self.patience.is_zero() {
            return Err(error);
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        let left = self.patience.saturating_sub(waited);
        let exponential = FIRST_DELAY.saturating_mul(1 << self.failures.min(10)).min(MAX_DELAY);
        self.failures += 1;
        self.others = 0;
        let delay = match error.retry_after() {
            Some(asked) => asked.min(MAX_RETRY_AFTER) + jitter(FIRST_DELAY),
            // The last attempt is at the end of the patience, and not before it.
            None => (exponential / 2 + jitter(exponential / 2)).min(left),
        };
        if left.is_zero() || delay > left {
            return Err(ClientError::GaveUp { waited, last: Box::new(error) });
        }
        tracing::debug!(%error, delay_ms = delay.as_millis(), "trying again");
        cancel.wait_until(Instant::now() + delay)
    }
}

/// A random duration up to `most`.
fn jitter(most: Duration) -> Duration {
    let random = uuid::Uuid::new_v4().as_u128() as u32;
    most.mul_f64(f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::error::Refusal;

    fn refused(status: u16, code: &str) -> ClientError {
        let (code, details, request_id) = (code.to_owned(), String::new(), String::new());
        Refusal { status, code, details, request_id, retry_after: None }.into()
    }

    #[test]
    fn lasting_errors_are_not_retried() {
        let (mut backoff, cancel) = (Backoff::new(Duration::from_secs(60)), Cancel::default());
        for error in [refused(404, "not_found"), refused(502, "hook_failed"), refused(507, "insufficient_space")] {
            let status = error.status();
            assert_eq!(backoff.wait(error, &cancel).unwrap_err().status(), status);
        }
    }

    #[test]
    fn patience_ends() {
        let (mut backoff, cancel) = (Backoff::new(Duration::ZERO), Cancel::default());
        let error = backoff.wait(ClientError::Connection("reset".to_owned()), &cancel).unwrap_err();
        assert_eq!(error.to_string(), "reset");
        let patience = Duration::from_millis(1);
        let (mut backoff, start) = (Backoff::new(patience), Instant::now());
        let mut attempt = || backoff.wait(ClientError::Connection("reset".to_owned()), &cancel);
        attempt().unwrap();
        let error = std::iter::repeat_with(attempt).find_map(Result::err).unwrap();
        assert!(start.elapsed() >= patience, "patience was not used up");
        assert_eq!(error.to_string(), "gave up after 0 s without success; the last error: reset");
        cancel.cancel();
        let mut backoff = Backoff::new(Duration::from_secs(60));
        let error = backoff.wait(ClientError::Connection("reset".to_owned()), &cancel).unwrap_err();
        assert!(matches!(error, ClientError::Cancelled));
    }
}
