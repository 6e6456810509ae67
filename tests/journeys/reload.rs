//! SIGHUP: what of a changed config has an effect at once, what needs a restart, and what a wrong config does.

use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::access::rule;
use crate::harness::{Client, MB, ServiceManager, Settings, VM, World, eventually};
use crate::needs_root;

struct Scene {
    world: World,
    manager: ServiceManager,
}

impl Scene {
    fn new() -> Self {
        let manager = ServiceManager::default();
        let world = World::with(512, |settings| manager.set(settings, None));
        world.define_vm(&[("a.img", MB)]);
        Self { world, manager }
    }

    /// Changes the config, sends SIGHUP and waits until the reload has ended. Returns `config` of the status.
    fn reload(&mut self, change: impl FnOnce(&mut Settings)) -> Value {
        change(self.world.exporter.settings());
        self.world.exporter.write_config();
        self.manager.forget();
        self.world.exporter.signal(Signal::SIGHUP);
        let heard = |start: &str| self.manager.heard().iter().any(|message| message.starts_with(start));
        eventually("the service has reloaded", || heard("RELOADING=1\nMONOTONIC_USEC=") && heard("READY=1\nSTATUS="));
        self.local().get("/status").ok()["config"].clone()
    }

    fn local(&self) -> Client {
        Client::local(&self.world.exporter)
    }

    fn limits(&self) -> Value {
        self.local().get("/capabilities").ok()["limits"].clone()
    }
}

#[test]
fn policy_limits_and_roles_change_without_a_restart() {
    needs_root!();
    let mut scene = Scene::new();
    let client = scene.world.client();
    let snapshots = format!("/vms/{VM}/snapshots");
    let id = client.take_snapshot_id();
    let tickets = format!("/api/v1{snapshots}/{id}/disks/a.img/tickets");
    let make_ticket = || client.send(client.request(Method::POST, &tickets).json(&json!({})));
    make_ticket().ok();
    let config = scene.reload(|settings| {
        settings.policy = "max_snapshots_per_vm = 1\nexport_concurrency = 3\nsnapshot_concurrency = 5\n\
                           default_ttl = \"2h\"\nmax_ticket_ttl = \"0\"\n"
            .to_owned();
        settings.sections = format!(
            "[export]\nmin_rate = 0\n[login]\nfailures_per_account = 1\n[access]\ndefault_role = \"none\"\n{}",
            rule("admin", "operator", "")
        );
    });
    assert_eq!((&config["status"], &config["needs_restart"]), (&json!("ok"), &json!([])), "{config}");
    let limits = scene.limits();
    for (key, expected) in [
        ("max_snapshots_per_vm", json!(1)),
        ("export_concurrency", json!(3)),
        ("export_spare", json!(1)),
        ("snapshot_concurrency", json!(5)),
        ("default_ttl_seconds", json!(7200)),
        ("export_min_rate", Value::Null),
        ("ticket_seconds", Value::Null),
    ] {
        assert_eq!(limits.get(key).unwrap_or(&Value::Null), &expected, "{key}: {limits}");
    }
    // What the status says is so. The token is still valid, with the role of the new rule.
    assert_eq!(client.post(&snapshots).error(409), "too_many_snapshots");
    assert_eq!(make_ticket().error(400), "bad_request");
    assert_eq!(client.post("/adopt?dryRun=true").error(403), "forbidden");
    let wrong = |user: &str| client.try_log_in(user, "wrong").status;
    assert_eq!([wrong("guessed"), wrong("guessed"), wrong("guessed"), wrong("guessed")], [401, 401, 401, 429]);
    // And back.
    scene.reload(|settings| (settings.policy, settings.sections) = (String::new(), String::new()));
    assert_eq!(scene.limits()["export_concurrency"], 12);
    assert!(client.post(&snapshots).ok()["expires_at"].is_null());
    client.post("/adopt?dryRun=true").ok();
    assert_eq!(wrong("guessed"), 401);
}

#[test]
fn a_wrong_config_changes_nothing_and_is_reported() {
    needs_root!();
    let mut scene = Scene::new();
    let wrong = |settings: &mut Settings| {
        settings.policy = "max_snapshots_per_vm = 1\nsnapshot_concurrency = 0\n".to_owned();
        settings.sections = "[access]\ndefault_role = \"viewer\"\n".to_owned();
    };
    let config = scene.reload(wrong);
    let problem = "policy.snapshot_concurrency: invalid number 0; expected 1 to 1000";
    assert!(config["status"] == "error" && config["problem"].as_str().unwrap().contains(problem), "{config}");
    assert!(scene.manager.status().contains(problem), "{}", scene.manager.status());
    assert!(scene.world.exporter.log().contains(problem));
    let (status, page) = scene.world.exporter.command(&["status"]);
    assert!(status == Some(0) && page.contains(problem), "{page}");
    // Neither the keys that are right nor the roles have changed.
    let client = scene.world.client();
    client.take_snapshot();
    client.take_snapshot();
    assert_eq!(scene.limits().get("max_snapshots_per_vm").unwrap_or(&Value::Null), &Value::Null);
    let config = scene.reload(|settings| (settings.policy, settings.sections) = (String::new(), String::new()));
    assert_eq!((&config["status"], config.get("problem")), (&json!("ok"), None), "{config}");
    assert!(!scene.manager.status().contains("config"), "{}", scene.manager.status());
}

#[test]
fn keys_that_need_a_restart_are_named() {
    needs_root!();
    let mut scene = Scene::new();
    let config = scene.reload(|settings| {
        settings.bind = "0.0.0.0".to_owned();
        settings.policy = "max_snapshots_per_vm = 1\n".to_owned();
        settings.sections = "[hooks]\ntimeout = \"2m\"\n[metrics]\nenabled = true\n".to_owned();
    });
    assert_eq!(config["needs_restart"], json!(["api.bind", "hooks.timeout", "metrics.enabled"]));
    let named = "needs a restart: api.bind, hooks.timeout, metrics.enabled";
    assert!(scene.manager.status().contains(named), "{}", scene.manager.status());
    scene.world.exporter.wait_for_log("keys=\"api.bind, hooks.timeout, metrics.enabled\"");
    // The others have an effect.
    assert_eq!(scene.limits()["max_snapshots_per_vm"], 1);
    let (_, page) = scene.world.exporter.command(&["status"]);
    assert!(page.contains("api.bind"), "{page}");
    scene.manager.forget();
    scene.world.exporter.restart();
    assert_eq!(scene.local().get("/status").ok()["config"]["needs_restart"], json!([]));
}
