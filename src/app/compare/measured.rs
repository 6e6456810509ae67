//! Counts comparisons in the metrics.

use std::sync::Arc;
use std::time::Instant;

use crate::app::Error;
use crate::metrics::{Compared, Metrics};

/// A comparison that is counted when this is dropped. Until its end is known, the client has read a part of it.
pub(super) struct Measured {
    metrics: Arc<Metrics>,
    started: Instant,
    outcome: Compared,
}

impl Measured {
    pub fn begin(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), started: Instant::now(), outcome: Compared::Partial }
    }

    /// The last chunk was found.
    pub fn finished(&mut self, is_full: bool) {
        self.outcome = if is_full { Compared::Full } else { Compared::Incremental };
    }

    /// It could not start, or not continue.
    pub fn failed(&mut self, error: &Error) {
        self.outcome = match error {
            Error::Cancelled => Compared::Partial,
            error if error.is_refusal() => Compared::Refused,
            _ => Compared::Failed,
        };
    }

    /// Counts bytes whose contents were compared, and those of them that differed.
    pub fn refined(&self, candidate_bytes: u64, data_bytes: u64) {
        self.metrics.refined(candidate_bytes, data_bytes);
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        self.metrics.compared(self.outcome, self.started.elapsed());
    }
}
