//! Private keys and secrets that others may read, and certificates that end soon.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use reqwest::Method;

use crate::harness::{Certificates, Exporter, Manager, Settings, World, eventually};
use crate::needs_root;

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[test]
fn a_key_that_others_may_read_is_refused() {
    needs_root!();
    let certificates = Certificates::new();
    let manager = Manager::start(&certificates);
    let key = certificates.path("server.key");
    let settings = || Settings::new(&certificates, &manager, &[Path::new("/nonexistent/repository")]);
    for mode in [0o644, 0o604, 0o660] {
        set_mode(&key, mode);
        let (status, output) = Exporter::refusal(&settings());
        assert_eq!(status, Some(78), "{output}");
        let remedy = format!("chmod 600 {}", key.display());
        assert!(output.contains("api.tls.key: ") && output.contains(&remedy), "{output}");
        let (status, table) = Exporter::command_alone(&settings(), &["check-config"]);
        assert!(status == Some(1) && table.contains(&remedy), "{table}");
    }
    // A group that root has chosen may read it.
    for mode in [0o600, 0o640, 0o400] {
        set_mode(&key, mode);
        drop(Exporter::start(settings()));
    }
    set_mode(&key, 0o644);
    let mut allowing = settings();
    allowing.tls = "allow_insecure_permissions = true\n".to_owned();
    drop(Exporter::start(allowing));
    set_mode(&key, 0o600);
    std::os::unix::fs::chown(&key, Some(1234), None).unwrap();
    let (_, output) = Exporter::refusal(&settings());
    assert!(output.contains("belongs to the user 1234"), "{output}");
}

#[test]
fn a_renewed_key_that_others_may_read_is_not_loaded() {
    needs_root!();
    let world = World::new(512);
    world.certificates.issue("server");
    set_mode(&world.certificates.path("server.key"), 0o644);
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("cannot reload the certificate");
    world.client().get("/vms").ok();
    set_mode(&world.certificates.path("server.key"), 0o600);
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("certificate reloaded");
}

#[test]
fn a_certificate_that_ends_soon_is_warned_of() {
    needs_root!();
    let world = World::with(512, |settings| {
        settings.sections = "[metrics]\nenabled = true\n".to_owned();
    });
    let warnings = || world.client().get("/status").ok()["warnings"].clone();
    let end = || {
        let client = world.anonymous_client();
        let text = String::from_utf8(client.send(client.request(Method::GET, "/metrics")).body).unwrap();
        let name = "ovm_exporter_certificate_expiry_timestamp_seconds{key=\"api.tls.certificate\"} ";
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{text}"));
        line.parse::<u64>().unwrap()
    };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let days_left = || (end() - now) / 86_400;
    assert_eq!(warnings(), serde_json::json!([]));
    assert!(days_left() > 365, "{}", end());
    world.certificates.issue_for_days("server", 20);
    world.exporter.signal(Signal::SIGHUP);
    world.exporter.wait_for_log("certificate reloaded");
    eventually("the metric shows the new end", || days_left() < 30);
    assert!((19..=20).contains(&days_left()), "{}", end());
    let found = warnings();
    let text = found[0].as_str().unwrap();
    assert!(text.contains("api.tls.certificate") && text.contains("SIGHUP") && text.contains("days"), "{text}");
    world.exporter.wait_for_log(text);
    let (_, status) = world.exporter.command(&["status"]);
    assert!(status.contains("api.tls.certificate"), "{status}");
    world.certificates.issue_for_days("server", 40);
    world.exporter.signal(Signal::SIGHUP);
    eventually("the warning is gone", || warnings() == serde_json::json!([]));
}

#[test]
fn a_config_with_secrets_that_others_may_read_is_warned_of() {
    needs_root!();
    let mut world = World::new(512);
    let config = world.exporter.db_file().with_file_name("config.toml");
    // The harness writes it again before a start, with the mode of the old file.
    set_mode(&config, 0o644);
    world.exporter.restart();
    let warnings = world.client().get("/status").ok()["warnings"].clone();
    let text = warnings[0].as_str().unwrap();
    assert!(text.contains("config.toml") && text.contains("chmod o-rwx"), "{text}");
    world.exporter.wait_for_log("which contains secrets");
    world.exporter.settings().secret.clear();
    world.exporter.restart();
    assert_eq!(world.client().get("/status").ok()["warnings"], serde_json::json!([]));
}
