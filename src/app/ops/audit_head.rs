//! Logs the newest line of the audit file regularly, so that a copy of the log on another host shows whether lines were
//! removed from the end of the file.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::app::audit;
use crate::app::tasks::rounds;

const INTERVAL: Duration = Duration::from_secs(60);

/// Logs the newest line while lines are added, until `stop`.
pub(crate) async fn log_audit_head(stop: CancellationToken) {
    let (mut logged, mut rounds) = (None, rounds(INTERVAL));
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        let head = audit::head();
        if head != logged {
            head.iter().for_each(audit::log_head);
            logged = head;
        }
    }
}
