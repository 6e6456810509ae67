//! Metrics for Prometheus.
//!
//! There is no global registry: [`Metrics`] is passed to its users. Labels have few values, and are never names or
//! ids.

use std::time::Duration;

use prometheus_client::encoding::text::encode;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::model::HookRun;

/// The media type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Upper bounds of freezes in seconds, from a clone without hooks to hooks that used their whole timeout.
const FREEZE_BUCKETS: [f64; 12] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Names of labels with their values.
type Labels<const N: usize> = [(&'static str, String); N];

pub struct Metrics {
    registry: Registry,
    requests: Family<Labels<3>, Counter>,
    bytes_served: Counter,
    snapshots: Family<Labels<1>, Counter>,
    freeze: Histogram,
    hook_runs: Family<Labels<4>, Counter>,
    database_damaged: Gauge,
    database_checked: Gauge,
    log_lines_dropped: Counter,
    audit_lines_dropped: Counter,
    certificate_ends: Family<Labels<1>, Gauge>,
    log_ins_throttled: Family<Labels<1>, Counter>,
    renewable_log_ins: Gauge,
    revocations: Gauge,
}

/// Why a log-in was not checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttled {
    /// Too many failures of its address.
    Address,
    /// Too many failures of its account.
    Account,
    /// Too many log-ins at once.
    Queue,
}

impl Throttled {
    const ALL: [Self; 3] = [Self::Address, Self::Account, Self::Queue];

    fn labels(self) -> Labels<1> {
        let reason = match self {
            Self::Address => "address",
            Self::Account => "account",
            Self::Queue => "queue",
        };
        [("reason", reason.to_owned())]
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("ovm_exporter"),
            requests: Family::default(),
            bytes_served: Counter::default(),
            snapshots: Family::default(),
            freeze: Histogram::new(FREEZE_BUCKETS),
            hook_runs: Family::default(),
            database_damaged: Gauge::default(),
            database_checked: Gauge::default(),
            log_lines_dropped: Counter::default(),
            audit_lines_dropped: Counter::default(),
            certificate_ends: Family::default(),
            log_ins_throttled: Family::default(),
            renewable_log_ins: Gauge::default(),
            revocations: Gauge::default(),
        };
        let Self {
            registry,
            requests,
            bytes_served,
            snapshots,
            freeze,
            hook_runs,
            database_damaged,
            database_checked,
            log_lines_dropped,
            audit_lines_dropped,
            certificate_ends,
            log_ins_throttled,
            renewable_log_ins,
            revocations,
        } = &mut metrics;
        registry.register("http_requests", "Requests answered, by route and status", requests.clone());
        registry.register_with_unit("served", "Bytes of disks sent", Unit::Bytes, bytes_served.clone());
        registry.register("snapshots", "Snapshot requests, by outcome", snapshots.clone());
        let help = "Longest time that a guest may have been frozen for a snapshot";
        registry.register_with_unit("freeze", help, Unit::Seconds, freeze.clone());
        registry.register("hook_runs", "Hook calls, by kind, stage and outcome", hook_runs.clone());
        let help = "Whether the last check found the database damaged: 1 if so";
        registry.register("database_damaged", help, database_damaged.clone());
        let help = "When the database was last checked, since 1970";
        registry.register_with_unit("database_check_time", help, Unit::Seconds, database_checked.clone());
        registry.register("log_lines_dropped", "Log lines that could not be written", log_lines_dropped.clone());
        let help = "Audit lines that could not be written";
        registry.register("audit_lines_dropped", help, audit_lines_dropped.clone());
        let help = "When a certificate ends, in seconds since 1970";
        registry.register("certificate_expiry_timestamp_seconds", help, certificate_ends.clone());
        let help = "Log-ins answered with 429, by reason";
        registry.register("log_ins_throttled", help, log_ins_throttled.clone());
        registry.register("renewable_log_ins", "Log-ins that can be renewed", renewable_log_ins.clone());
        registry.register("revocations", "Log-ins and users with revoked tokens", revocations.clone());
        Throttled::ALL.iter().for_each(|reason| drop(log_ins_throttled.get_or_create(&reason.labels())));
        // All values exist from the start, because a rate needs a first value.
        for outcome in ["made", "failed"] {
            snapshots.get_or_create(&[("outcome", outcome.to_owned())]).inc_by(0);
        }
        metrics
    }
}

impl Metrics {
    /// Counts an answered request. `route` is its pattern, not its path.
    pub fn request(&self, method: &str, route: &str, status: u16) {
        let labels = [("method", method.to_owned()), ("route", route.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    pub fn bytes_served(&self) -> Counter {
        self.bytes_served.clone()
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

    /// Counts the hook calls of an `operation`.
    pub fn hooks(&self, operation: &str, runs: &[HookRun]) {
        for run in runs {
            let labels = [
                ("operation", operation.to_owned()),
                ("kind", run.kind.as_str().to_owned()),
                ("stage", run.stage.as_str().to_owned()),
                ("outcome", run.outcome.as_str().to_owned()),
            ];
            self.hook_runs.get_or_create(&labels).inc();
        }
    }

    /// Records that the database was checked at `time`, in seconds since 1970.
    pub fn database_checked(&self, time: i64, is_damaged: bool) {
        self.database_checked.set(time);
        self.database_damaged.set(i64::from(is_damaged));
    }

    /// Counts a log-in that was not checked.
    pub fn log_in_throttled(&self, reason: Throttled) {
        self.log_ins_throttled.get_or_create(&reason.labels()).inc();
    }

    /// The log-ins that were not checked.
    pub fn throttled_log_ins(&self) -> u64 {
        Throttled::ALL.iter().map(|reason| self.log_ins_throttled.get_or_create(&reason.labels()).get()).sum()
    }

    /// Records the numbers of log-ins that can be renewed, and of revocations.
    pub fn sessions(&self, renewable: usize, revocations: usize) {
        self.renewable_log_ins.set(i64::try_from(renewable).unwrap_or(i64::MAX));
        self.revocations.set(i64::try_from(revocations).unwrap_or(i64::MAX));
    }

    /// All metrics in the format [`CONTENT_TYPE`].
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_appear_in_the_text() {
        let metrics = Metrics::default();
        assert!(metrics.text().contains("ovm_exporter_snapshots_total{outcome=\"failed\"} 0\n"), "{}", metrics.text());
        metrics.request("GET", "/api/v1/vms/{vm}", 404);
        metrics.request("GET", "/api/v1/vms/{vm}", 404);
        metrics.bytes_served().inc_by(1 << 40);
        metrics.log_lines_dropped().inc_by(3);
        metrics.certificate_ends("api.tls.certificate", 1_800_000_000);
        metrics.snapshot_made(Duration::from_millis(70));
        metrics.snapshot_failed(None);
        metrics.database_checked(1_700_000_000, true);
        metrics.snapshot_failed(Some(Duration::from_secs(7)));
        metrics.log_in_throttled(Throttled::Account);
        metrics.sessions(3, 5);
        let text = metrics.text();
        for line in [
            "# TYPE ovm_exporter_http_requests counter",
            "ovm_exporter_http_requests_total{method=\"GET\",route=\"/api/v1/vms/{vm}\",status=\"404\"} 2",
            "ovm_exporter_served_bytes_total 1099511627776",
            "ovm_exporter_log_lines_dropped_total 3",
            "ovm_exporter_certificate_expiry_timestamp_seconds{key=\"api.tls.certificate\"} 1800000000",
            "ovm_exporter_snapshots_total{outcome=\"made\"} 1",
            "ovm_exporter_snapshots_total{outcome=\"failed\"} 2",
            "ovm_exporter_freeze_seconds_bucket{le=\"0.05\"} 0",
            "ovm_exporter_freeze_seconds_bucket{le=\"0.1\"} 1",
            "ovm_exporter_freeze_seconds_count 2",
            "ovm_exporter_database_damaged 1",
            "ovm_exporter_log_ins_throttled_total{reason=\"account\"} 1",
            "ovm_exporter_log_ins_throttled_total{reason=\"queue\"} 0",
            "ovm_exporter_renewable_log_ins 3",
            "ovm_exporter_revocations 5",
            "ovm_exporter_database_check_time_seconds 1700000000",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
