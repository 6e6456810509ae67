//! The rules and the dashboard of `examples/monitoring`, with a real Prometheus.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::prometheus::{Prometheus, monitoring, program};
use crate::harness::{Certificates, Client, HookDir, MB, Receiver, SNAPSHOTS, World, eventually, text, write_at};
use crate::{needs, needs_root};

fn promtool(arguments: &[&str]) {
    let output = Command::new(program("promtool")).args(arguments).current_dir(monitoring()).output().unwrap();
    let printed = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success() && !printed.contains("WARN"), "promtool {arguments:?}: {printed}");
}

#[test]
fn promtool_accepts_the_rules_and_their_tests() {
    needs!(program("promtool").is_file(), "promtool: make deps-test");
    promtool(&["check", "config", "prometheus.yml"]);
    promtool(&["check", "rules", "--lint=all", "--lint-fatal", "recording.rules.yml", "alerts.rules.yml"]);
    promtool(&["test", "rules", "alerts.test.yml"]);
}

/// The queries of the dashboard, with values for its variables.
fn dashboard_queries() -> Vec<String> {
    let dashboard = fs::read_to_string(monitoring().join("dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|panel| panel["targets"].as_array().cloned().unwrap_or_default());
    let query = |target: Value| {
        let query = text(&target["expr"]).replace("$__rate_interval", "1m").replace("$__range", "1h");
        query.replace("$instance", ".*").replace("$repository", ".*")
    };
    targets.map(query).collect()
}

/// One round of work of each kind.
fn work(world: &World, client: &Client, disk: &std::path::Path, round: u8) {
    write_at(disk, 0, &[round; 8192]);
    let base = client.take_snapshot_id();
    write_at(disk, 4096, &[round + 1; 4096]);
    let id = client.take_snapshot_id();
    client.get(&format!("{SNAPSHOTS}/{id}?compareTo={base}&refine=4096")).ok();
    client.disk(&id, "a.img");
    client.disk_range(&id, "a.img", 0, 4096);
    let lease = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease")).json(&json!({"ttl": "1h"}));
    client.send(lease).ok();
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{base}")).status, 200);
    client.get("/vms/unknown").error(404);
    world.anonymous_client().try_log_in("admin", "wrong").error(401);
}

#[test]
fn prometheus_gets_data_for_the_dashboard_and_fires_the_right_alerts() {
    needs_root!();
    needs!(program("prometheus").is_file(), "prometheus: make deps-test");
    let hooks = HookDir::new();
    hooks.put("10-good", "true");
    let certificates = Certificates::new();
    let receiver = Receiver::start(&certificates, "server");
    let webhook = receiver.section(&certificates, "alerts", "events = [\"snapshot.*\"]");
    let sections = hooks.section("") + "[metrics]\nenabled = true\nrequire_token = true\n" + &webhook;
    let world = World::with(512, |settings| settings.sections = sections);
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    let client = world.client();
    let prometheus = Prometheus::start(&world.exporter, &world.certificates, &client.token);
    let has = |query: &str| !prometheus.query(query).is_empty();
    eventually("Prometheus has scraped the service", || has("ovm_exporter_owed_hooks"));

    // A rate needs a value from before the work, also that of labels that appear with the first request.
    work(&world, &client, &disk, 1);
    let count = "ovm_exporter_http_request_duration_seconds_count{method=\"DELETE\"}";
    eventually("Prometheus has seen the first round", || has(count));
    work(&world, &client, &disk, 5);
    eventually("all queries of the dashboard return data", || {
        let is_data = |query: &String| prometheus.query(query).iter().any(|(_, value)| value.is_finite());
        let empty: Vec<_> = dashboard_queries().into_iter().filter(|query| !is_data(query)).collect();
        if !empty.is_empty() {
            eprintln!("without data: {empty:#?}");
        }
        empty.is_empty()
    });
    let firing = || -> BTreeSet<String> {
        prometheus.firing().iter().map(|alert| text(&alert["labels"]["alertname"])).collect()
    };
    let broken = |rule: &Value| rule["health"] != "ok" && rule["health"] != "unknown";
    let broken: Vec<_> = prometheus.rules().into_iter().filter(broken).collect();
    assert_eq!(broken, Vec::<Value>::new());
    assert_eq!(firing(), BTreeSet::new());

    // A post hook fails: the snapshot too, and the guest may be frozen.
    hooks.put("20-bad", "[ $2 != post ]");
    client.post(SNAPSHOTS);
    let expected = ["OvmExporterHooksOwed", "OvmExporterPostHookFailed"].map(str::to_owned);
    eventually("the alerts fire", || expected.iter().all(|name| firing().contains(name)));
    assert_eq!(firing(), BTreeSet::from(expected));
    for alert in prometheus.firing() {
        let description = text(&alert["annotations"]["description"]);
        let instance = format!("127.0.0.1:{}", world.exporter.port);
        assert!(description.contains(&instance) && !description.contains("error expanding"), "{alert}");
    }
}
