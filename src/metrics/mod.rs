//! Metrics for Prometheus.
//!
//! There is no global registry: [`Metrics`] is passed to its users. Labels have few values. They are never names, ids or
//! paths, except the ids of repositories and the names of webhooks, of which there are few. [`Metrics::text`] reads memory
//! only.

mod labels;
mod register;
mod state;
mod webhooks;

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::text::encode;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::model::HookRun;
pub use labels::{Compared, QueueLength, Throttled};
use register::{Counters, Gauges, Histograms, add, add_bytes, add_seconds, histograms};
use state::StateCollector;
pub use state::{RepositoryState, SnapshotAges, State};
pub use webhooks::WebhookMetrics;

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of freezes and clones in seconds, from a clone without hooks to hooks that used their whole timeout.
const FREEZE_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Upper bounds of the time until a response begins, in seconds: from a cached answer to a snapshot that waits for hooks.
const REQUEST_BUCKETS: [f64; 8] = [0.005, 0.025, 0.1, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Upper bounds of hook calls in seconds.
const HOOK_BUCKETS: [f64; 8] = [0.01, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];

/// Upper bounds of comparisons in seconds: they take as long as the client that reads them.
const COMPARISON_BUCKETS: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0];

/// Upper bounds of the extents of a disk. From 100 000 on, a clone stalls the guest.
const EXTENT_BUCKETS: [f64; 9] = [10.0, 100.0, 1e3, 5e3, 1e4, 5e4, 1e5, 5e5, 1e6];

pub struct Metrics {
    registry: Registry,
    requests: Counters<3>,
    request_seconds: Histograms<3>,
    bytes_served: Counter,
    exports: Counters<1>,
    queue_running: Gauges<1>,
    queue_waiting: Gauges<1>,
    queue_limit: Gauges<1>,
    snapshots: Counters<1>,
    deletions: Counters<2>,
    freeze: Histogram,
    clone: Histogram,
    disk_extents: Histogram,
    hook_runs: Counters<4>,
    hook_seconds: Histograms<2>,
    comparisons: Counters<1>,
    comparison_seconds: Histogram,
    refine_candidates: Counter,
    refine_data: Counter,
    database_damaged: Gauge,
    database_checked: Gauge,
    log_lines_dropped: Counter,
    audit_lines_dropped: Counter,
    certificate_ends: Gauges<1>,
    log_ins: Counters<1>,
    log_ins_throttled: Counters<1>,
    state: Arc<StateCollector>,
    pub webhooks: WebhookMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("ovm_exporter");
        let r = &mut registry;
        register::add_build_info(r);
        let started: Gauge = add(r, "start_timestamp_seconds", "When the service was started, since 1970");
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        started.set(i64::try_from(now.as_secs()).unwrap_or(i64::MAX));
        let state = Arc::<StateCollector>::default();
        r.register_collector(Box::new(Arc::clone(&state)));
        let metrics = Self {
            requests: add(r, "http_requests", "Requests answered, by route and status"),
            request_seconds: register::add_this(
                r,
                "http_request_duration_seconds",
                "Time from a request to the begin of its response, by route and class of status",
                histograms(|| Histogram::new(REQUEST_BUCKETS)),
            ),
            bytes_served: add_bytes(r, "served", "Bytes of disks sent"),
            exports: add(r, "exports", "Downloads, by outcome"),
            queue_running: add(r, "queue_running", "Requests that hold a concurrency slot, by queue"),
            queue_waiting: add(r, "queue_waiting", "Requests that wait for a concurrency slot, by queue"),
            queue_limit: add(r, "queue_limit", "Concurrency slots, by queue"),
            snapshots: add(r, "snapshots", "Snapshot requests, by outcome"),
            deletions: add(r, "deletions", "Deletions of snapshots, by cause and outcome"),
            freeze: add_seconds(
                r,
                "freeze",
                "Longest time that a guest may have been frozen for a snapshot",
                Histogram::new(FREEZE_BUCKETS),
            ),
            clone: add_seconds(
                r,
                "clone",
                "Time to clone all disks of a snapshot, or of its group",
                Histogram::new(FREEZE_BUCKETS),
            ),
            disk_extents: register::add_this(
                r,
                "disk_extents",
                "Extents of a disk before its clone",
                Histogram::new(EXTENT_BUCKETS),
            ),
            hook_runs: add(r, "hook_runs", "Hook calls, by kind, stage and outcome"),
            hook_seconds: register::add_this(
                r,
                "hook_duration_seconds",
                "Time of a hook call",
                histograms(|| Histogram::new(HOOK_BUCKETS)),
            ),
            comparisons: add(r, "comparisons", "Comparisons of a disk in two snapshots, by outcome"),
            comparison_seconds: register::add_this(
                r,
                "comparison_duration_seconds",
                "Time of a comparison, from its begin to the last change",
                Histogram::new(COMPARISON_BUCKETS),
            ),
            refine_candidates: add_bytes(r, "refine_candidate", "Bytes whose contents were compared"),
            refine_data: add_bytes(r, "refine_data", "Bytes that differed when their contents were compared"),
            database_damaged: add(r, "database_damaged", "Whether the last check found the database damaged: 1 if so"),
            database_checked: add_seconds(
                r,
                "database_check_time",
                "When the database was last checked, since 1970",
                Gauge::default(),
            ),
            log_lines_dropped: add(r, "log_lines_dropped", "Log lines that could not be written"),
            audit_lines_dropped: add(r, "audit_lines_dropped", "Audit lines that could not be written"),
            certificate_ends: add(
                r,
                "certificate_expiry_timestamp_seconds",
                "When a certificate ends, in seconds since 1970",
            ),
            log_ins: add(r, "log_ins", "Log-ins, by outcome"),
            log_ins_throttled: add(r, "log_ins_throttled", "Log-ins answered with 429, by reason"),
            webhooks: WebhookMetrics::new(r),
            state,
            registry,
        };
        metrics.start_at_zero();
        metrics
    }
}

impl Metrics {
    /// Creates the values of all known labels, because a rate needs a first value.
    fn start_at_zero(&self) {
        let zero = |family: &Counters<1>, label, values: &[&str]| {
            values.iter().for_each(|value| drop(family.get_or_create(&[(label, (*value).to_owned())])));
        };
        zero(&self.snapshots, "outcome", &["made", "failed"]);
        zero(&self.exports, "outcome", &["done", "cut", "refused", "failed"]);
        zero(&self.log_ins, "outcome", &["done", "refused", "throttled", "failed"]);
        zero(&self.log_ins_throttled, "reason", &Throttled::ALL.map(Throttled::as_str));
        zero(&self.comparisons, "outcome", &Compared::ALL.map(Compared::as_str));
        for cause in ["request", "expiry"] {
            for outcome in ["done", "failed"] {
                drop(self.deletions.get_or_create(&[("cause", cause.to_owned()), ("outcome", outcome.to_owned())]));
            }
        }
        for operation in ["snapshot-create", "snapshot-delete"] {
            for kind in ["directory", "sync"] {
                for stage in ["pre", "post"] {
                    for outcome in ["ok", "failed", "timeout", "skipped"] {
                        drop(self.hook_runs.get_or_create(&hook_labels(operation, kind, stage, outcome)));
                    }
                }
            }
        }
    }

    /// Counts an answered request. `route` is its pattern, not its path. Its response began after `time`.
    pub fn request(&self, method: &str, route: &str, status: u16, time: Duration) {
        let labels = |name, status| [("method", method.to_owned()), ("route", route.to_owned()), (name, status)];
        self.requests.get_or_create(&labels("status", status.to_string())).inc();
        let class = labels("status_class", format!("{}xx", status / 100));
        self.request_seconds.get_or_create(&class).observe(time.as_secs_f64());
    }

    pub fn bytes_served(&self) -> Counter {
        self.bytes_served.clone()
    }

    /// Counts a download that ended. `outcome` is that of the audit.
    pub fn export_ended(&self, outcome: &'static str) {
        self.exports.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// Records the lengths of the admission queues.
    pub fn queues(&self, lengths: &[QueueLength]) {
        for QueueLength { name, running, waiting, limit } in lengths {
            let labels = [("queue", (*name).to_owned())];
            let set = |gauges: &Gauges<1>, number: usize| {
                gauges.get_or_create(&labels).set(i64::try_from(number).unwrap_or(i64::MAX));
            };
            set(&self.queue_running, *running);
            set(&self.queue_waiting, *waiting);
            set(&self.queue_limit, *limit);
        }
    }

    pub fn log_lines_dropped(&self) -> Counter {
        self.log_lines_dropped.clone()
    }

    pub fn audit_lines_dropped(&self) -> Counter {
        self.audit_lines_dropped.clone()
    }

    /// The certificate of this key of the config ends at this time, in seconds since 1970.
    pub fn certificate_ends(&self, key: &'static str, seconds: i64) {
        self.certificate_ends.get_or_create(&[("key", key.to_owned())]).set(seconds);
    }

    /// Counts a snapshot for which the guest was frozen for `freeze` at most.
    pub fn snapshot_made(&self, freeze: Duration) {
        self.snapshots.get_or_create(&[("outcome", "made".to_owned())]).inc();
        self.freeze.observe(freeze.as_secs_f64());
    }

    /// Counts a failed snapshot for which the guest was frozen for `freeze` at most, if at all.
    pub fn snapshot_failed(&self, freeze: Option<Duration>) {
        if let Some(freeze) = freeze {
            self.freeze.observe(freeze.as_secs_f64());
        }
        self.snapshots.get_or_create(&[("outcome", "failed".to_owned())]).inc();
    }

    /// Counts the deletion of a snapshot. `cause` is `request` or `expiry`.
    pub fn snapshot_deleted<E>(&self, cause: &'static str, outcome: &Result<(), E>) {
        let outcome = if outcome.is_ok() { "done" } else { "failed" };
        self.deletions.get_or_create(&[("cause", cause.to_owned()), ("outcome", outcome.to_owned())]).inc();
    }

    /// Records the time that the clones of a snapshot took.
    pub fn cloned(&self, time: Duration) {
        self.clone.observe(time.as_secs_f64());
    }

    /// Records how many extents a disk has that is to be cloned.
    pub fn disk_extents(&self, extents: u32) {
        self.disk_extents.observe(f64::from(extents));
    }

    /// Counts a comparison that began `time` ago.
    pub fn compared(&self, outcome: Compared, time: Duration) {
        self.comparisons.get_or_create(&[("outcome", outcome.as_str().to_owned())]).inc();
        if matches!(outcome, Compared::Incremental | Compared::Full) {
            self.comparison_seconds.observe(time.as_secs_f64());
        }
    }

    /// Counts bytes whose contents were compared, and those of them that differed.
    pub fn refined(&self, candidate_bytes: u64, data_bytes: u64) {
        self.refine_candidates.inc_by(candidate_bytes);
        self.refine_data.inc_by(data_bytes);
    }

    /// Counts the hook calls of an `operation`.
    pub fn hooks(&self, operation: &str, runs: &[HookRun]) {
        for run in runs {
            let (kind, stage, outcome) = (run.kind.as_str(), run.stage.as_str(), run.outcome.as_str());
            self.hook_runs.get_or_create(&hook_labels(operation, kind, stage, outcome)).inc();
            if outcome != "skipped" {
                let labels = [("operation", operation.to_owned()), ("stage", stage.to_owned())];
                self.hook_seconds.get_or_create(&labels).observe(run.duration_ms as f64 / 1e3);
            }
        }
    }

    /// Records that the database was checked at `time`, in seconds since 1970.
    pub fn database_checked(&self, time: i64, is_damaged: bool) {
        self.database_checked.set(time);
        self.database_damaged.set(i64::from(is_damaged));
    }

    /// Counts a log-in that ended. `outcome` is that of the audit.
    pub fn log_in_ended(&self, outcome: &'static str) {
        self.log_ins.get_or_create(&[("outcome", outcome.to_owned())]).inc();
    }

    /// Counts a log-in that was not checked.
    pub fn log_in_throttled(&self, reason: Throttled) {
        self.log_in_ended("throttled");
        self.log_ins_throttled.get_or_create(&[("reason", reason.as_str().to_owned())]).inc();
    }

    /// The log-ins that were not checked.
    pub fn throttled_log_ins(&self) -> u64 {
        let count =
            |reason: &Throttled| self.log_ins_throttled.get_or_create(&[("reason", reason.as_str().to_owned())]).get();
        Throttled::ALL.iter().map(count).sum()
    }

    /// Replaces the state, which the service reads regularly.
    pub fn observe(&self, state: State) {
        self.state.set(state);
    }

    /// The state could not be read: the service is not ready. The rest of the last state stays, with its time.
    pub fn observe_failure(&self) {
        self.state.set_not_ready();
    }

    /// All metrics in the format [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn hook_labels(operation: &str, kind: &str, stage: &str, outcome: &str) -> register::Labels<4> {
    [
        ("operation", operation.to_owned()),
        ("kind", kind.to_owned()),
        ("stage", stage.to_owned()),
        ("outcome", outcome.to_owned()),
    ]
}

#[cfg(test)]
mod tests;
