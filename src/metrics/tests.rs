use std::collections::BTreeSet;

use super::*;
use crate::model::{HookKind, HookOutcome, HookStage};

const DOCUMENT: &str = include_str!("../../docs/operations.md");
const DASHBOARD: &str = include_str!("../../examples/monitoring/dashboard.json");
const RECORDING: &str = include_str!("../../examples/monitoring/recording.rules.yml");
const ALERTS: &str = include_str!("../../examples/monitoring/alerts.rules.yml");
const RULE_TESTS: &str = include_str!("../../examples/monitoring/alerts.test.yml");

/// Metrics that have counted each thing at least once.
fn busy() -> Metrics {
    let metrics = Metrics::default();
    metrics.request("GET", "/api/v1/vms/{vm}", 404, Duration::from_millis(30));
    metrics.request("GET", "/api/v1/vms/{vm}", 404, Duration::from_millis(3));
    metrics.bytes_served().inc_by(1 << 40);
    metrics.export_ended("cut");
    metrics.queues(&[QueueLength { name: "exports", running: 3, waiting: 2, limit: 8 }]);
    metrics.log_lines_dropped().inc_by(3);
    metrics.audit_lines_dropped().inc_by(4);
    metrics.certificate_ends("api.tls.certificate", 1_800_000_000);
    metrics.snapshot_made(Duration::from_millis(70));
    metrics.snapshot_failed(None);
    metrics.snapshot_failed(Some(Duration::from_secs(7)));
    metrics.snapshot_deleted("expiry", &Ok::<_, ()>(()));
    metrics.snapshot_deleted("request", &Err(()));
    metrics.cloned(Duration::from_millis(2));
    metrics.disk_extents(1234);
    let run = HookRun {
        name: "10-a".to_owned(),
        kind: HookKind::Directory,
        stage: HookStage::Post,
        outcome: HookOutcome::Timeout,
        duration_ms: 700,
        detail: String::new(),
    };
    metrics.hooks("snapshot-create", &[run]);
    metrics.compared(Compared::Incremental, Duration::from_secs(2));
    metrics.compared(Compared::Partial, Duration::from_secs(2));
    metrics.refined(1 << 20, 4096);
    metrics.database_checked(1_700_000_000, true);
    metrics.log_in_ended("refused");
    metrics.log_in_throttled(Throttled::Account);
    metrics.webhooks.queued("alerts", 7);
    metrics.webhooks.failed("alerts");
    metrics.webhooks.dropped("alerts", 2);
    let repository = RepositoryState {
        id: "r1".to_owned(),
        is_up: true,
        total_bytes: Some(100),
        free_bytes: Some(40),
        min_free_bytes: Some(5),
        snapshots: 7,
        unknown_snapshots: Some(1),
    };
    metrics.observe(State {
        at: 1_700_000_000,
        is_ready: true,
        repositories: vec![repository, RepositoryState { id: "r2".to_owned(), ..RepositoryState::default() }],
        ages: SnapshotAges::at(1_700_000_000, [1_699_999_000, 1_699_000_000].into_iter()),
        owed_hooks: 2,
        leftovers: 6,
        leases: 9,
        renewable_log_ins: 3,
        revocations: 5,
        confined: vec![("files", true), ("system-calls", false)],
    });
    metrics
}

#[test]
fn counts_appear_in_the_text() {
    let text = Metrics::default().text();
    assert!(text.contains("ovm_exporter_snapshots_total{outcome=\"failed\"} 0\n"), "{text}");
    // Nothing is known about the state, which is not the same as zero.
    assert!(!text.contains("ovm_exporter_owed_hooks"), "{text}");
    let text = busy().text();
    for line in [
        "# TYPE ovm_exporter_http_requests counter",
        "ovm_exporter_http_requests_total{method=\"GET\",route=\"/api/v1/vms/{vm}\",status=\"404\"} 2",
        "ovm_exporter_http_request_duration_seconds_bucket{le=\"0.005\",method=\"GET\",route=\"/api/v1/vms/{vm}\",status_class=\"4xx\"} 1",
        "ovm_exporter_http_request_duration_seconds_count{method=\"GET\",route=\"/api/v1/vms/{vm}\",status_class=\"4xx\"} 2",
        "ovm_exporter_served_bytes_total 1099511627776",
        "ovm_exporter_exports_total{outcome=\"cut\"} 1",
        "ovm_exporter_exports_total{outcome=\"done\"} 0",
        "ovm_exporter_queue_waiting{queue=\"exports\"} 2",
        "ovm_exporter_log_lines_dropped_total 3",
        "ovm_exporter_certificate_expiry_timestamp_seconds{key=\"api.tls.certificate\"} 1800000000",
        "ovm_exporter_snapshots_total{outcome=\"made\"} 1",
        "ovm_exporter_snapshots_total{outcome=\"failed\"} 2",
        "ovm_exporter_deletions_total{cause=\"expiry\",outcome=\"done\"} 1",
        "ovm_exporter_deletions_total{cause=\"request\",outcome=\"failed\"} 1",
        "ovm_exporter_freeze_seconds_bucket{le=\"0.05\"} 0",
        "ovm_exporter_freeze_seconds_bucket{le=\"0.1\"} 1",
        "ovm_exporter_freeze_seconds_count 2",
        "ovm_exporter_clone_seconds_bucket{le=\"0.005\"} 1",
        "ovm_exporter_disk_extents_bucket{le=\"1000.0\"} 0",
        "ovm_exporter_disk_extents_bucket{le=\"5000.0\"} 1",
        "ovm_exporter_hook_runs_total{operation=\"snapshot-create\",kind=\"directory\",stage=\"post\",outcome=\"timeout\"} 1",
        "ovm_exporter_hook_duration_seconds_sum{operation=\"snapshot-create\",stage=\"post\"} 0.7",
        "ovm_exporter_comparisons_total{outcome=\"partial\"} 1",
        "ovm_exporter_comparison_duration_seconds_count 1",
        "ovm_exporter_refine_candidate_bytes_total 1048576",
        "ovm_exporter_refine_data_bytes_total 4096",
        "ovm_exporter_database_damaged 1",
        "ovm_exporter_database_check_time_seconds 1700000000",
        "ovm_exporter_log_ins_total{outcome=\"refused\"} 1",
        "ovm_exporter_log_ins_total{outcome=\"throttled\"} 1",
        "ovm_exporter_log_ins_throttled_total{reason=\"account\"} 1",
        "ovm_exporter_log_ins_throttled_total{reason=\"queue\"} 0",
        "# HELP ovm_exporter_ready Whether the service can do its work, as /readyz reports it: 1 if so.",
        "# TYPE ovm_exporter_ready gauge",
        "ovm_exporter_ready 1",
        "ovm_exporter_repository_up{repository=\"r1\"} 1",
        "ovm_exporter_repository_up{repository=\"r2\"} 0",
        "ovm_exporter_repository_free_bytes{repository=\"r1\"} 40",
        "ovm_exporter_stored_snapshots{age=\"0d-1d\"} 1",
        "ovm_exporter_stored_snapshots{age=\"7d-30d\"} 1",
        "ovm_exporter_stored_snapshots{age=\"90d-\"} 0",
        "ovm_exporter_oldest_snapshot_timestamp_seconds 1699000000",
        "ovm_exporter_newest_snapshot_timestamp_seconds 1699999000",
        "ovm_exporter_owed_hooks 2",
        "ovm_exporter_leftovers 6",
        "ovm_exporter_leases 9",
        "ovm_exporter_renewable_log_ins 3",
        "ovm_exporter_revocations 5",
        "ovm_exporter_confined{part=\"system-calls\"} 0",
        "ovm_exporter_webhook_events_queued{webhook=\"alerts\"} 7",
        "ovm_exporter_webhook_events_dropped_total{webhook=\"alerts\"} 2",
        "ovm_exporter_webhook_deliveries_total{webhook=\"alerts\",outcome=\"failed\"} 1",
        "ovm_exporter_webhook_deliveries_total{webhook=\"alerts\",outcome=\"sent\"} 0",
        concat!("ovm_exporter_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"} 1"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("ovm_exporter_repository_free_bytes{repository=\"r2\"}"), "{text}");
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn a_state_that_cannot_be_read_is_not_ready() {
    let metrics = Metrics::default();
    metrics.observe_failure();
    assert!(!metrics.text().contains("ovm_exporter_ready "));
    let metrics = busy();
    metrics.observe_failure();
    let text = metrics.text();
    assert!(text.contains("ovm_exporter_ready 0\n") && text.contains("ovm_exporter_owed_hooks 2\n"), "{text}");
}

/// The metrics of a text in the format of Prometheus, as queries name them; histograms without their suffix.
fn exposed(text: &str) -> BTreeSet<String> {
    let named = |line: &str| {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let suffix = match kind {
            "counter" => "_total",
            "info" => "_info",
            "gauge" | "histogram" => "",
            _ => panic!("{line}"),
        };
        Some([name, suffix].concat())
    };
    text.lines().filter_map(named).collect()
}

/// The metrics that queries in a text name, without those that the recording rules make.
fn used(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices("ovm_exporter_") {
        let name: String = text[at..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
        let is_recorded = text[..at].ends_with(':') || text[at + name.len()..].starts_with(":rate");
        if !is_recorded {
            let base = ["_bucket", "_count", "_sum"].iter().find_map(|suffix| name.strip_suffix(suffix));
            names.insert(base.unwrap_or(&name).to_owned());
        }
    }
    names
}

/// The rest of each line that starts with `key`, after spaces and a dash.
fn values<'a>(text: &'a str, key: &str) -> Vec<&'a str> {
    text.lines().filter_map(|line| line.trim_start_matches([' ', '-']).strip_prefix(key)).map(str::trim).collect()
}

#[test]
fn documents_and_dashboard_have_all_metrics() {
    let exposed = exposed(&busy().text());
    assert!(exposed.len() > 40, "{exposed:?}");
    let rows = DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`'));
    let documented: BTreeSet<_> =
        rows.map(|(name, _)| name.to_owned()).filter(|name| name.starts_with("ovm_exporter_")).collect();
    assert_eq!(documented, exposed, "docs/operations.md");
    // Some are in the dashboard through a recording rule.
    let shown: BTreeSet<_> = used(DASHBOARD).union(&used(RECORDING)).cloned().collect();
    assert_eq!(shown, exposed, "examples/monitoring/dashboard.json");
    let unknown: Vec<_> = used(ALERTS).difference(&exposed).cloned().collect();
    assert_eq!(unknown, Vec::<String>::new(), "examples/monitoring/alerts.rules.yml");
}

#[test]
fn recorded_series_are_used_and_tested() {
    let recorded = values(RECORDING, "record: ");
    assert!(recorded.len() > 5);
    for name in recorded {
        assert!(DASHBOARD.contains(name), "the dashboard does not use {name}");
        assert!(RULE_TESTS.contains(name), "no test of {name}");
    }
}

#[test]
fn alerts_are_documented_and_tested() {
    let (alerts, runbooks) = (values(ALERTS, "alert: "), values(ALERTS, "runbook_url: "));
    assert!(alerts.len() > 20 && alerts.len() == runbooks.len());
    assert_eq!(values(ALERTS, "summary: ").len(), alerts.len());
    assert_eq!(values(ALERTS, "description: ").len(), alerts.len());
    let (_, tests) = RULE_TESTS.split_once("\ntests:\n").unwrap();
    let mut tests = tests.split("\n\n");
    let silent = tests.next().unwrap();
    let firing: Vec<_> = tests.collect();
    assert!(silent.contains("none fires") && !silent.contains("alertname"));
    for (name, runbook) in alerts.iter().zip(runbooks) {
        let heading = name.to_lowercase();
        assert_eq!(runbook, format!("docs/operations.md#{heading}"));
        assert!(DOCUMENT.lines().any(|line| line.strip_prefix("#### ") == Some(name)), "{name} is not documented");
        let expectation = format!("ALERTS{{alertname=\"{name}\", alertstate=\"firing\"");
        assert!(firing.iter().any(|test| test.contains(&expectation)), "no test in which {name} fires");
    }
    // The test in which no alert fires has data for each.
    let missing: Vec<_> = used(ALERTS).difference(&used(silent)).cloned().collect();
    assert_eq!(missing, Vec::<String>::new());
}
