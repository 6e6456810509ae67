//! The option --digests behind a proxy that ends TLS and damages bytes, which TLS cannot notice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use axum::Router;
use axum::body::{Bytes, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use serde_json::json;

use crate::harness::{Backup, MB, Random, Serving, Volume, World, write_at};
use crate::needs_root;

#[derive(Clone)]
struct Damage {
    http: reqwest::Client,
    url: String,
    /// Responses with bytes of a disk that are still to be damaged.
    left: Arc<AtomicU32>,
}

async fn pass(State(damage): State<Damage>, request: Request) -> Response {
    let (mut parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().unwrap().as_str();
    parts.headers.remove("host");
    let onward = damage.http.request(parts.method.clone(), format!("{}{path}", damage.url)).headers(parts.headers);
    let onward = onward.body(to_bytes(body, 1 << 20).await.unwrap()).send().await.unwrap();
    let mut response = Response::builder().status(onward.status());
    *response.headers_mut().unwrap() = onward.headers().clone();
    let has_digest = onward.headers().contains_key("content-digest");
    let body = onward.bytes().await.unwrap();
    let is_left = |left: u32| left.checked_sub(1);
    if !has_digest || damage.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_left).is_err() {
        return response.body(body.into()).unwrap();
    }
    let mut damaged = body.to_vec();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    response.body(Bytes::from(damaged).into()).unwrap()
}

#[test]
fn bytes_with_a_wrong_digest_are_not_written() {
    needs_root!();
    let world = World::new(512);
    let target = Volume::xfs(512);
    let disk = world.define_vm(&[("a.img", 16 * MB)]).remove(0);
    write_at(&disk, 0, &Random(1).bytes(8 * MB));
    let url = format!("https://127.0.0.1:{}", world.exporter.port);
    let left = Arc::new(AtomicU32::new(3));
    let router = Router::new().fallback(pass).with_state(Damage {
        http: world.certificates.http(),
        url,
        left: Arc::clone(&left),
    });
    let (port, _serving) = Serving::start(&world.certificates, "server", "127.0.0.1:0", router);
    let backup = Backup::new(&world, &target.mount_point).through(port);
    // A long range, and then many short ones in each response.
    let (status, stdout, stderr) = backup.try_run(&backup.backup_arguments(&["--digests", "--json"]));
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stderr.contains("trying again") && stderr.contains("digest"), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!((left.load(Ordering::Relaxed), &result["vms"][0]["transferred_bytes"]), (0, &json!(8 * MB)));
    backup.assert_newest_equals(&disk);
    (0..100).for_each(|n| write_at(&disk, n * 100_000, &[n as u8; 512]));
    left.store(3, Ordering::Relaxed);
    backup.run(&backup.backup_arguments(&["--digests"]));
    assert_eq!(left.load(Ordering::Relaxed), 0);
    backup.assert_newest_equals(&disk);
}
