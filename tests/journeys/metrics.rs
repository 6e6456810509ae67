//! The metrics endpoint.

use reqwest::Method;

use crate::harness::{World, write_at};
use crate::needs_root;

#[test]
fn metrics_count_requests_and_snapshots_if_enabled() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.sections = "[metrics]\nenabled = true\n".to_owned());
    let disk = &world.define_vm(&[("a.img", 1 << 20)])[0];
    write_at(disk, 0, &[1; 65536]);
    let client = world.client();
    let id = client.take_snapshot_id();
    client.disk(&id, "a.img");
    client.disk_range(&id, "a.img", 100, 1000);
    client.get("/vms/x").error(404);
    client.get("/nowhere").error(404);
    client.send(client.request(Method::from_bytes(b"BREW").unwrap(), "/api/v1/vms")).error(405);

    let stranger = world.anonymous_client();
    let ask = |path: &str| stranger.send(stranger.request(Method::GET, path));
    let answer = ask("/metrics");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("application/openmetrics-text"), "{answer:?}");
    let counted = String::from_utf8(answer.body).unwrap();
    let disk = "/api/v1/vms/{vm}/snapshots/{snapshot}/disks/{disk}";
    for line in [
        "ovm_exporter_http_requests_total{method=\"POST\",route=\"/api/v1/vms/{vm}/snapshots\",status=\"200\"} 1",
        &format!("ovm_exporter_http_requests_total{{method=\"GET\",route=\"{disk}\",status=\"200\"}} 1"),
        &format!("ovm_exporter_http_requests_total{{method=\"GET\",route=\"{disk}\",status=\"206\"}} 1"),
        "ovm_exporter_http_requests_total{method=\"GET\",route=\"/api/v1/vms/{vm}\",status=\"404\"} 1",
        "ovm_exporter_http_requests_total{method=\"GET\",route=\"none\",status=\"404\"} 1",
        "ovm_exporter_http_requests_total{method=\"other\",route=\"/api/v1/vms\",status=\"405\"} 1",
        "ovm_exporter_served_bytes_total 1049576",
        "ovm_exporter_snapshots_total{outcome=\"made\"} 1",
        "ovm_exporter_freeze_seconds_count 1",
    ] {
        assert!(counted.lines().any(|counted| counted == line), "{line} is not in\n{counted}");
    }
    assert!(!counted.contains(&id) && counted.ends_with("# EOF\n"));
    assert_eq!(ask("/metrics/").status, 200);

    world.exporter.settings().sections.clear();
    world.exporter.restart();
    assert_eq!(ask("/metrics").error(404), "not_found");
}
