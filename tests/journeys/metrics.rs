//! The metrics endpoint.

use std::fs;

use reqwest::Method;
use serde_json::json;

use crate::harness::{Client, HungMount, MB, SNAPSHOTS, Volume, World, eventually, write_at};
use crate::{needs, needs_root};

const ENABLED: &str = "[metrics]\nenabled = true\n";

fn scrape(client: &Client) -> String {
    let answer = client.send(client.request(Method::GET, "/metrics"));
    assert_eq!(answer.status, 200);
    String::from_utf8(answer.body).unwrap()
}

/// Waits until a scrape has this line, without the prefix of its name.
fn wait_for(client: &Client, line: &str) {
    let line = format!("ovm_exporter_{line}");
    eventually(&format!("{line} appears"), || scrape(client).lines().any(|found| found == line));
}

#[test]
fn metrics_count_requests_and_snapshots_if_enabled() {
    needs_root!();
    let mut world = World::with(512, |settings| settings.sections = ENABLED.to_owned());
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

#[test]
fn metrics_show_operations_and_the_state() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.sections = ENABLED.to_owned();
        settings.policy = "min_free_space = \"20MiB\"\n".to_owned();
    });
    let disk = world.define_vm(&[("a.img", MB)]).remove(0);
    write_at(&disk, 0, &[1; 8192]);
    let (client, stranger) = (world.client(), world.anonymous_client());
    let lines = |lines: &[&str]| lines.iter().for_each(|line| wait_for(&stranger, line));
    lines(&["ready 1", "leases 0", "stored_snapshots{age=\"0d-1d\"} 0", "renewable_log_ins 0", "revocations 0"]);
    lines(&["confined{part=\"files\"} 1", "confined{part=\"system-calls\"} 1", "database_damaged 0", "leftovers 0"]);
    assert!(!scrape(&stranger).contains("newest_snapshot"), "there is no snapshot");

    let base = client.take_snapshot_id();
    write_at(&disk, 4096, &[2; 4096]);
    let id = client.take_snapshot_id();
    let get = |query: &str| client.get(&format!("{SNAPSHOTS}/{id}?compareTo={base}{query}"));
    get("&refine=4096").ok();
    client.get(&format!("{SNAPSHOTS}/{base}?compareTo={id}")).error(400);
    let lease = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}/{id}/lease")).json(&json!({"ttl": "1h"}));
    client.send(lease).ok();
    let renewable = json!({"username": "admin", "password": crate::harness::PASSWORD, "refresh": true});
    stranger.send(stranger.request(Method::POST, "/api/v1/auth/login").json(&renewable)).ok();
    stranger.try_log_in("admin", "wrong").error(401);
    client.send(client.request(Method::POST, "/api/v1/auth/revoke").json(&json!({"user": "other"}))).ok();
    lines(&["leases 1", "stored_snapshots{age=\"0d-1d\"} 2", "renewable_log_ins 1", "revocations 1"]);
    lines(&["clone_seconds_count 2", "disk_extents_count 2", "comparisons_total{outcome=\"incremental\"} 1"]);
    lines(&["comparison_duration_seconds_count 1", "refine_data_bytes_total 4096"]);
    lines(&["log_ins_total{outcome=\"done\"} 2", "log_ins_total{outcome=\"refused\"} 1"]);
    lines(&["queue_limit{queue=\"log_ins\"} 16", "queue_running{queue=\"exports\"} 0"]);
    let repository = world.repository.file_name().unwrap().to_str().unwrap().to_owned();
    let of = |name: &str, value: &str| format!("repository_{name}{{repository=\"{repository}\"}} {value}");
    lines(&[&of("up", "1"), &of("snapshots", "2"), &of("min_free_bytes", "20971520"), &of("unknown_snapshots", "0")]);
    assert!(scrape(&stranger).contains("ovm_exporter_newest_snapshot_timestamp_seconds "));

    // The base is lost, so that the comparison is refused.
    fs::remove_file(world.snapshot_folder(&base).join("a.img")).unwrap();
    get("").error(409);
    lines(&["comparisons_total{outcome=\"refused\"} 1"]);
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200);
    lines(&["deletions_total{cause=\"request\",outcome=\"done\"} 1", "leases 0"]);
    // Less space than policy.min_free_space is left.
    let free = crate::harness::volume_space(&world.repository);
    let filler = fs::File::create(world.repository.join("filler")).unwrap();
    nix::fcntl::fallocate(&filler, nix::fcntl::FallocateFlags::empty(), 0, (free - 10 * MB) as i64).unwrap();
    eventually("the metrics show the lack of space", || {
        let text = scrape(&stranger);
        let name = format!("ovm_exporter_repository_free_bytes{{repository=\"{repository}\"}} ");
        let free = text.lines().find_map(|line| line.strip_prefix(&name)).unwrap_or_else(|| panic!("{text}"));
        free.parse::<u64>().unwrap() < 20 * MB
    });
    client.post(SNAPSHOTS).error(507);
    lines(&["snapshots_total{outcome=\"failed\"} 1"]);
}

#[test]
fn scrapes_do_not_wait_for_a_repository_that_hangs() {
    needs_root!();
    needs!(fs::exists("/dev/fuse").unwrap(), "FUSE");
    let volume = Volume::xfs(512);
    let second = crate::harness::make_repository(&volume.mount_point, "0004fb00000300000000000000000002");
    let world = World::with(512, |settings| {
        settings.paths.push(second.clone());
        settings.sections = ENABLED.to_owned();
    });
    let client = world.anonymous_client();
    let up = |value: u8| format!("repository_up{{repository=\"0004fb00000300000000000000000002\"}} {value}");
    wait_for(&client, &up(1));
    let read_at = || {
        let text = scrape(&client);
        let found = text.lines().find_map(|line| line.strip_prefix("ovm_exporter_state_timestamp_seconds "));
        found.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    let before = read_at();
    eventually("the state is read again", || read_at() != before);
    let hung = HungMount::at(&second);
    // The next reading waits for the repository. The scrapes get the state from before.
    wait_for(&client, &up(0));
    wait_for(&client, "ready 0");
    let text = scrape(&client);
    assert!(!text.contains("repository_free_bytes{repository=\"0004fb00000300000000000000000002\"}"), "{text}");
    assert_eq!(text.matches("\novm_exporter_repository_free_bytes{").count(), 1, "{text}");
    drop(hung);
    wait_for(&client, &up(1));
}
