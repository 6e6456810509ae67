//! Whether it lives, whether it can serve, what it can do.

use std::process::Command;

use serde_json::json;

use crate::harness::{Client, World};
use crate::needs_root;

#[test]
fn strangers_learn_whether_it_serves_and_no_more() {
    needs_root!();
    let world = World::new(512);
    let stranger = Client::new(&world.exporter, &world.certificates);
    let ask = |path: &str| stranger.send(stranger.request(reqwest::Method::GET, path));
    for path in ["/healthz", "/healthz/", "/readyz", "/readyz/"] {
        assert_eq!(ask(path).ok(), json!({"status": "ok", "problems": []}), "{path}");
    }
    assert_eq!(stranger.get("/capabilities").error(401), "unauthorized");
    let capabilities = world.client().get("/capabilities").ok();
    assert_eq!(capabilities["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(capabilities["limits"]["ranges_per_request"], 64);

    let status = Command::new("umount").arg("--lazy").arg(&world.xfs.mount_point).status().unwrap();
    assert!(status.success());
    assert_eq!(ask("/healthz").status, 200);
    let answer = ask("/readyz");
    assert_eq!(answer.status, 503);
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    assert!(text.contains("a repository is not there"), "{text}");
    assert!(!text.contains("/tmp") && !text.contains("0004fb"), "a stranger is told a path: {text}");
}
