//! Servers in the guests: asked before a snapshot, told its end, and never waited for in vain.

use std::fs;

use serde_json::json;

use crate::harness::{Certificates, Guest, HookDir, MB, ServerBehavior, VM, World, eventually, hook_runs, text};
use crate::needs_root;

const SECRET: &str = "a secret of guests, never to be seen in a log";
/// base64 of it
const BEARER: &str = "Bearer YSBzZWNyZXQgb2YgZ3Vlc3RzLCBuZXZlciB0byBiZSBzZWVuIGluIGEgbG9n";

/// A guest with a sync server, a world, and hooks in a directory.
struct Scene {
    guest: Guest,
    world: World,
    hooks: HookDir,
    _certificates: Certificates,
}

impl Scene {
    /// With these lines of `[hooks.sync]`.
    fn new(lines: &str) -> Self {
        let hooks = HookDir::new();
        let certificates = Certificates::new();
        let guest = Guest::start(&certificates, "server");
        let world = World::with(512, |settings| {
            settings.sections = format!(
                "{}[hooks.sync]\nsecret = {SECRET:?}\nca_certificate = {:?}\n{lines}\n",
                hooks.section(""),
                certificates.ca(),
            );
        });
        world.define_vm(&[("a.img", MB)]);
        Self { guest, world, hooks, _certificates: certificates }
    }

    /// Writes the VM's definition with these lines besides.
    fn tag(&self, lines: &str) {
        self.world.define_vm(&[("a.img", MB)]);
        let definition = self.world.repository.join("VirtualMachines").join(VM).join("vm.cfg");
        let text = fs::read_to_string(&definition).unwrap();
        fs::write(definition, text + lines + "\n").unwrap();
    }

    fn description(&self) -> String {
        format!("OVM_description = 'the database xo:notify-on-snapshot={}'", self.guest.url())
    }

    /// What the guest was asked, by its paths; each with the secret.
    fn asked(&self) -> Vec<String> {
        let asked = self.guest.take_requests();
        asked
            .iter()
            .map(|asked| {
                let path = asked.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(BEARER));
                path.unwrap_or_else(|| panic!("{asked}")).trim().to_owned()
            })
            .collect()
    }
}

#[test]
fn tagged_guest_is_called_before_and_after() {
    needs_root!();
    let scene = Scene::new("");
    let client = scene.world.client();
    // Nobody asks for it.
    let plain = client.take_snapshot();
    assert_eq!((&plain["consistency"], hook_runs(&plain, "kind"), scene.asked()), (&json!("crash"), vec![], vec![]));

    let port = scene.guest.port;
    for tag in [scene.description(), format!("OVM_simple_name = 'web-1 xo:notify-on-snapshot={}/'", scene.guest.url())]
    {
        scene.tag(&tag);
        let made = client.take_snapshot();
        assert_eq!(scene.asked(), ["/sync", "/post-sync"], "{tag}");
        assert_eq!(hook_runs(&made, "kind"), ["sync pre ok", "sync post ok"], "{tag}");
        assert_eq!((&made["consistency"], &made["hooks"][0]["name"]), (&json!("quiesced"), &json!(scene.guest.url())));
        assert_eq!(made["hooks"][0]["detail"], "answers 200 OK");
    }
    // The tag alone: nobody knows where, and the snapshot goes ahead and says so.
    scene.tag("OVM_description = 'xo:notify-on-snapshot'");
    let made = client.take_snapshot();
    assert_eq!(
        (hook_runs(&made, "kind"), &made["consistency"]),
        (vec!["sync pre skipped".to_owned()], &json!("crash"))
    );
    assert!(text(&made["hooks"][0]["detail"]).contains("hooks.sync.urls"), "{made}");
    // A deletion is no guest's business.
    client.delete(&format!("/vms/{VM}/snapshots/{}", text(&made["id"])));
    assert_eq!(scene.asked(), Vec::<String>::new());

    // The first address of the definition and the port of the config; then a URL of the config.
    let mut scene = scene;
    scene.world.exporter.settings().sections += &format!("port = {port}\n");
    scene.world.exporter.restart();
    scene.tag("OVM_description = 'xo:notify-on-snapshot'\nvif = ['mac=00:21:f6:aa:bb:cc,ip=127.0.0.1,bridge=b']");
    assert_eq!(scene.world.client().take_snapshot()["consistency"], "quiesced");
    assert_eq!(scene.asked(), ["/sync", "/post-sync"]);
    scene.world.exporter.settings().sections += &format!("[hooks.sync.urls]\n{VM} = \"{}/base\"\n", scene.guest.url());
    scene.world.exporter.restart();
    scene.tag("");
    assert_eq!(scene.world.client().take_snapshot()["consistency"], "quiesced");
    assert_eq!(scene.asked(), ["/base/sync", "/base/post-sync"]);
    let log = scene.world.exporter.log();
    assert!(!log.contains(SECRET) && !log.contains(&BEARER[7..]), "the secret is in the log");
}

#[test]
fn failed_guest_sync_does_not_fail_the_snapshot() {
    needs_root!();
    let scene = Scene::new("timeout = \"1s\"");
    scene.tag(&scene.description());
    let client = scene.world.client();
    for (behavior, outcome, detail) in [
        (ServerBehavior::ServerError, "failed", "answers 500 Internal Server Error"),
        (ServerBehavior::Redirects, "failed", "answers 302 Found, which is not followed"),
        (ServerBehavior::Slow, "timeout", "timed out"),
        (ServerBehavior::StalledBody, "timeout", "timed out"),
        (ServerBehavior::EndlessBody, "failed", "more than 65536 bytes"),
    ] {
        scene.guest.set_behavior(&[behavior]);
        let made = client.take_snapshot();
        assert_eq!(made["consistency"], "crash", "{behavior:?}");
        // What it may have frozen is thawed before the disks are cloned.
        assert_eq!(hook_runs(&made, "kind"), [&format!("sync pre {outcome}"), "sync post ok"], "{behavior:?}");
        assert!(text(&made["hooks"][0]["detail"]).contains(detail), "{made}");
        assert_eq!(scene.asked(), ["/sync", "/post-sync"], "{behavior:?}");
    }
    // One that nobody can vouch for, or that is not there, has seen no secret and has nothing to thaw.
    let others = Certificates::new();
    let stranger = Guest::start(&others, "server");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, detail) in
        [(stranger.url(), "hooks.sync.ca_certificate"), (format!("https://{closed}"), "does the VM run")]
    {
        scene.tag(&format!("OVM_description = 'xo:notify-on-snapshot={url}'"));
        let made = client.take_snapshot();
        assert_eq!(
            (hook_runs(&made, "kind"), &made["consistency"]),
            (vec!["sync pre failed".to_owned()], &json!("crash")),
            "{url}"
        );
        assert!(text(&made["hooks"][0]["detail"]).contains(detail), "{made}");
    }
    assert_eq!(stranger.take_requests(), Vec::<String>::new());
    scene.tag(&format!("OVM_description = 'xo:notify-on-snapshot=http://127.0.0.1:{}'", scene.guest.port));
    let made = client.take_snapshot();
    assert!(text(&made["hooks"][0]["detail"]).contains("in the clear"), "{made}");
    assert_eq!((hook_runs(&made, "kind"), scene.asked()), (vec!["sync pre skipped".to_owned()], vec![]));
}

#[test]
fn guest_sync_is_retried_with_a_thaw_in_between() {
    needs_root!();
    let scene = Scene::new("retries = 2\nretry_delay = \"1s\"");
    scene.tag(&scene.description());
    scene.hooks.put("freeze", "touch $OUT/$2");
    let client = scene.world.client();
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::ServerError, ServerBehavior::Good]);
    let made = client.take_snapshot();
    let expected = [
        "sync pre failed",
        "sync post ok",
        "sync pre failed",
        "sync post ok",
        "sync pre ok",
        // The guest writes out, then the host freezes, and the other way round.
        "directory pre ok",
        "directory post ok",
        "sync post ok",
    ];
    assert_eq!(
        (hook_runs(&made, "kind"), &made["consistency"]),
        (expected.map(str::to_owned).to_vec(), &json!("quiesced"))
    );
    let sum: u64 = made["hooks"].as_array().unwrap().iter().map(|run| run["duration_ms"].as_u64().unwrap()).sum();
    assert!(made["freeze_ms"].as_u64().unwrap() < sum + 1000, "the pauses are no part of it: {made}");
    scene.asked();
    // In vain: a plain one.
    scene.guest.set_behavior(&[ServerBehavior::ServerError]);
    let made = client.take_snapshot();
    assert_eq!(scene.asked(), ["/sync", "/post-sync", "/sync", "/post-sync", "/sync", "/post-sync"]);
    assert_eq!((made["hooks"].as_array().unwrap().len(), &made["consistency"]), (8, &json!("crash")));
}

#[test]
fn abort_on_sync_failure_cancels_the_snapshot() {
    needs_root!();
    let scene = Scene::new("on_failure = \"abort\"");
    scene.tag(&scene.description());
    scene.hooks.put("note", "echo $2 >> $OUT/calls");
    let client = scene.world.client();
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::Good]);
    let answer = client.post(&format!("/vms/{VM}/snapshots"));
    assert_eq!(answer.error(502), "hook_failed");
    let details = text(&answer.json()["details"]);
    assert!(details.contains(&scene.guest.url()) && details.contains("500"), "{details}");
    assert_eq!((scene.asked(), scene.hooks.read("calls")), (vec!["/sync".into(), "/post-sync".into()], String::new()));
    // A program that refuses: the guest is told all the same.
    scene.hooks.put("refuse", "[ $2 = post ]");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(502), "hook_failed");
    assert_eq!(scene.asked(), ["/sync", "/post-sync"]);
    assert_eq!(scene.world.snapshot_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn post_sync_is_sent_after_a_crash() {
    needs_root!();
    let mut scene = Scene::new("");
    scene.tag(&scene.description());
    scene.hooks.put("hang", "touch $OUT/$2; [ $2 = post ] || sleep 600");
    let asking = scene.world.request_snapshot();
    scene.hooks.wait_for("pre");
    scene.world.exporter.kill();
    asking.join().unwrap();
    assert_eq!(scene.asked(), ["/sync"]);
    scene.world.exporter.restart();
    assert_eq!(scene.asked(), ["/post-sync"]);
    assert!(scene.hooks.at("post").exists());
}

#[test]
fn failed_sync_gets_post_sync_or_is_named() {
    needs_root!();
    let mut scene = Scene::new("post_on_failure = false\ntimeout = \"1s\"\nretries = 1\nretry_delay = \"10ms\"");
    scene.tag(&scene.description());
    let client = scene.world.client();
    for (behavior, outcome) in [(ServerBehavior::ServerError, "failed"), (ServerBehavior::Slow, "timeout")] {
        scene.guest.set_behavior(&[behavior, behavior]);
        let made = client.take_snapshot();
        let failed = format!("sync pre {outcome}");
        assert_eq!(hook_runs(&made, "kind"), [&failed, &failed, "sync post ok"], "{behavior:?}");
        assert_eq!((scene.asked(), &made["consistency"]), (owned(&["/sync", "/sync", "/post-sync"]), &json!("crash")));
    }
    // A snapshot that was made, and a guest that does not hear it: it is owed that.
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::ServerError]);
    scene.guest.set_post_sync_behavior(ServerBehavior::ServerError);
    assert_eq!(hook_runs(&client.take_snapshot(), "kind"), ["sync pre failed", "sync pre failed", "sync post failed"]);
    assert_eq!(client.pending_hooks()[0]["hooks"], json!([scene.guest.url()]));
    scene.guest.set_post_sync_behavior(ServerBehavior::Good);
    scene.world.exporter.settings().sections += "on_failure = \"abort\"\n";
    scene.world.exporter.restart();
    let client = scene.world.client();
    eventually("it is told", || client.pending_hooks() == json!([]));
    scene.asked();
    // One that was not made: the guest is not told, as the config has it, and the answer and the log say so.
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::ServerError]);
    let answer = client.post(&format!("/vms/{VM}/snapshots"));
    assert_eq!(answer.error(502), "hook_failed");
    let details = text(&answer.json()["details"]);
    assert!(details.contains("not called: post_on_failure") && details.ends_with(&scene.guest.url()), "{details}");
    assert_eq!(scene.asked(), ["/sync", "/sync"]);
    assert!(scene.world.exporter.log().contains("not called: post_on_failure is false for hooks.sync"));
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().copied().map(str::to_owned).collect()
}

#[test]
fn processes_of_a_successful_hook_survive_a_crash() {
    needs_root!();
    let mut scene = Scene::new("timeout = \"60s\"");
    scene.tag(&scene.description());
    // One in the group of the hook, and one that is the leader of its own.
    scene.hooks.put(
        "agent",
        "[ $2 = pre ] || exit 0; export OUT\n\
         sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT/in-group\n\
         setsid sh -c 'echo $$ > $OUT/in-session; exec sleep 600' </dev/null >/dev/null 2>&1 &\n\
         until [ -s $OUT/in-session ]; do sleep 0.02; done",
    );
    // The programs are over, and the guest is told: nothing of that is written down yet.
    scene.guest.set_post_sync_behavior(ServerBehavior::Slow);
    let asking = scene.world.request_snapshot();
    eventually("the guest is told the end", || scene.asked().contains(&"/post-sync".to_owned()));
    scene.world.exporter.kill();
    asking.join().unwrap();
    scene.guest.set_post_sync_behavior(ServerBehavior::Good);
    scene.world.exporter.restart();
    eventually("what is owed was called", || scene.world.client().get("/status").ok()["owed_hooks"] == json!([]));
    for left in ["in-group", "in-session"] {
        let pid = scene.hooks.read(left).trim().to_owned();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command.starts_with("sleep"), "the process {left} of a hook that had ended well was killed");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
    }
}
