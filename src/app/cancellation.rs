//! Cancelling the work for a response when its client disconnects.

use std::sync::Arc;

use tokio_util::sync::{CancellationToken, DropGuard};

use crate::repository::changes::IsWanted;

/// Cancels the work for one response.
#[derive(Clone, Debug, Default)]
pub struct Cancellation(CancellationToken);

impl Cancellation {
    /// Cancels the work when the guard is dropped.
    pub fn on_drop(&self) -> DropGuard {
        self.0.clone().drop_guard()
    }

    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// A check whether the client still waits for the response.
    pub(crate) fn is_wanted(&self) -> IsWanted {
        let cancel = self.0.clone();
        Arc::new(move || !cancel.is_cancelled())
    }
}
