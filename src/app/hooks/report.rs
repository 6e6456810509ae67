//! What the hooks of an operation did.

use std::time::Duration;

use crate::app::Error;
use crate::model::HookRun;

/// The hook calls of an operation.
#[derive(Default)]
pub(crate) struct HookReport {
    pub runs: Vec<HookRun>,
    /// Whether a hook has quiesced the guest.
    pub quiesced: bool,
    /// The time from the first call that may have frozen the guest to the end of the last call.
    pub frozen_for: Option<Duration>,
    /// Hooks whose `post` was not called because the config says so.
    pub not_called: Vec<String>,
}

impl HookReport {
    /// Adds the skipped `post` hooks of all `reports` to the `error` of the operation.
    pub(crate) fn with_skipped_hooks(reports: &[Self], error: Error) -> Error {
        let not_called: Vec<_> =
            reports.iter().flat_map(|report| report.not_called.iter().map(String::as_str)).collect();
        if not_called.is_empty() {
            return error;
        }
        Error::PostHooksSkipped { error: Box::new(error), hooks: not_called.join(", ") }
    }
}
