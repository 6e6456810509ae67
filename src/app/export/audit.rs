//! Records downloads in the audit.

use std::sync::atomic::Ordering;

use crate::app::admission::{AdmissionQueue, Export};
use crate::app::audit::{AuditTrail, Outcome, Sent};

/// The action in the audit's lines.
pub(super) const EXPORT: &str = "export";

/// Records a download that has ended. Returns its outcome.
pub(super) fn record_end(trail: &AuditTrail, export: &Export) -> &'static str {
    let details = &export.details;
    let is_complete = export.done.load(Ordering::Relaxed) == details.total;
    let outcome = if is_complete { Outcome::DONE } else { Outcome::cut(export.cut_reason()) };
    let name = outcome.name;
    let sent = Sent { bytes: export.take_unaudited(), ranges: details.ranges };
    trail.add(&details.actor, EXPORT, export.name(), outcome, Some(sent));
    if details.is_whole_disk {
        trail.write_of(&details.actor, EXPORT, &export.name());
    }
    name
}

/// Records the bytes that running downloads have sent since the last call.
pub(super) fn record_running(trail: &AuditTrail, exports: &AdmissionQueue<Export>) {
    exports.each(|entry| {
        let export = &entry.work;
        let sent = Sent { bytes: if entry.is_running { export.take_unaudited() } else { 0 }, ranges: 0 };
        if sent.bytes > 0 {
            let outcome = Outcome { name: "under way", ..Outcome::DONE };
            trail.add(&export.details.actor, EXPORT, export.name(), outcome, Some(sent));
        }
    });
}

/// Records downloads that the end of the service cuts.
pub(super) fn record_stop(trail: &AuditTrail, exports: &AdmissionQueue<Export>) {
    exports.each(|entry| {
        let export = &entry.work;
        if entry.is_running {
            let sent = Sent { bytes: export.take_unaudited(), ranges: export.details.ranges };
            let stopped = Outcome::cut(Some("the service stopped".to_owned()));
            trail.add(&export.details.actor, EXPORT, export.name(), stopped, Some(sent));
        }
    });
}
