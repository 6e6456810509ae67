//! The client and a service with the API of the original exporter: no capabilities, digests, leases, idempotency keys,
//! versions of files or ranges that became zeros. A filter before the real service stands in for it.

use std::fs;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::harness::{Backup, MB, Random, Serving, VM, Volume, World, text, write_at, xfs_io};
use crate::needs_root;

#[derive(Clone)]
struct Filter {
    http: reqwest::Client,
    url: String,
    /// Requests that the original does not know.
    unknown: Arc<Mutex<Vec<String>>>,
}

async fn pass(State(filter): State<Filter>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let is_known = !["/capabilities", "/lease", "/chunks", "/checksum"].iter().any(|end| path.ends_with(end));
    let answer = |status: StatusCode, body: Bytes| Response::builder().status(status).body(body.into()).unwrap();
    if !is_known {
        filter.unknown.lock().unwrap().push(path);
        return answer(StatusCode::NOT_FOUND, "404 page not found\n".into());
    }
    let query = parts.uri.query().map(|query| format!("?{query}&zero=omit")).unwrap_or("?zero=omit".to_owned());
    let mut onward = filter.http.request(parts.method.clone(), format!("{}{path}{query}", filter.url));
    for name in ["authorization", "range", "content-type"] {
        if let Some(value) = parts.headers.get(name) {
            onward = onward.header(name, value);
        }
    }
    let onward = onward.body(to_bytes(body, 1 << 20).await.unwrap()).send().await.unwrap();
    let status = onward.status();
    let mut response = Response::builder().status(status);
    for name in ["content-type", "content-range", "content-length"] {
        if let Some(value) = onward.headers().get(name) {
            response = response.header(name, value);
        }
    }
    let is_json = onward.headers().get("content-type").is_some_and(|kind| kind == "application/json");
    let body = onward.bytes().await.unwrap();
    if !is_json {
        return response.body(body.into()).unwrap();
    }
    let mut document: Value = serde_json::from_slice(&body).unwrap();
    strip(&mut document);
    answer(status, Bytes::from(document.to_string()))
}

/// Leaves only the fields of the original.
fn strip(document: &mut Value) {
    const KEPT: [&str; 20] = [
        "friendly_name",
        "name",
        "uuid",
        "disks",
        "path",
        "device_name",
        "snapshot_compatible",
        "mode",
        "snapshots",
        "id",
        "vm_id",
        "parent_path",
        "snapshot_id",
        "chunks",
        "start",
        "length",
        "physical_start",
        "repo_mountpoint",
        "token",
        "error",
    ];
    match document {
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(fields) => {
            fields.retain(|name, _| KEPT.contains(&name.as_str()));
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}

#[test]
fn points_of_the_original_exporter_equal_the_disks() {
    needs_root!();
    let world = World::new(1024);
    let target = Volume::xfs(1024);
    let disk = world.define_vm(&[("a.img", 64 * MB)]).remove(0);
    write_at(&disk, MB, &Random(1).bytes(20 * MB));
    let url = format!("https://127.0.0.1:{}", world.exporter.port);
    let filter = Filter { http: world.certificates.http(), url, unknown: Arc::default() };
    let unknown = Arc::clone(&filter.unknown);
    let router = Router::new().fallback(pass).with_state(filter);
    let (port, _serving) = Serving::start(&world.certificates, "server", "127.0.0.1:0", router);
    let backup = Backup::new(&world, &target.mount_point).through(port);
    let assert_is_the_disk = |point: &Value| {
        let out = tempfile::tempdir().unwrap();
        backup.restore(VM, &text(&point["point"]), &out.path().join("o"), &[]);
        assert!(fs::read(out.path().join("o/a.img")).unwrap() == fs::read(&disk).unwrap());
    };
    let full = backup.back_up()["vms"][0].clone();
    assert_eq!((&full["is_full"], &full["transferred_bytes"]), (&true.into(), &json!(20 * MB)), "{full}");
    assert_is_the_disk(&full);
    // The original does not tell that these became zeros.
    xfs_io(&disk, &[&format!("fpunch {} {}", 4 * MB, 8 * MB)]);
    write_at(&disk, 40 * MB, &Random(2).bytes(4096));
    let increment = backup.back_up()["vms"][0].clone();
    assert_eq!((&increment["is_full"], &increment["transferred_bytes"]), (&false.into(), &4096.into()), "{increment}");
    assert_is_the_disk(&increment);
    // A disk that shrank is copied as a whole.
    fs::File::options().write(true).open(&disk).unwrap().set_len(16 * MB).unwrap();
    assert_is_the_disk(&backup.back_up()["vms"][0].clone());
    backup.run(&["verify", backup.directory.to_str().unwrap()]);
    assert_eq!(world.client().snapshot_ids().len(), 1);
    assert!(unknown.lock().unwrap().iter().all(|path| path.ends_with("/capabilities")), "{unknown:?}");
    // What the original cannot do is not left out silently.
    let (status, _, stderr) = backup.try_run(&backup.backup_arguments(&["--label", "a=b"]));
    assert!(status == Some(2) && stderr.contains("does not support --label"), "{stderr}");
}
