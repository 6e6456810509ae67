//! Sync servers in guests: called before and after a snapshot, with retries, timeouts and pending post hooks.

use std::fs;

use reqwest::Method;
use serde_json::json;

use crate::harness::{
    Certificates, Client, Guest, HookDir, MB, OTHER_VM, ServerBehavior, VM, World, define_vm, eventually, hook_runs,
    make_disk, text,
};
use crate::needs_root;

const SECRET: &str = "a secret of guests, never to be seen in a log";
/// SECRET in base64.
const BEARER: &str = "Bearer YSBzZWNyZXQgb2YgZ3Vlc3RzLCBuZXZlciB0byBiZSBzZWVuIGluIGEgbG9n";

/// A service with `[hooks.sync]`, a guest with a sync server, and a hook directory.
struct Scene {
    guest: Guest,
    world: World,
    hooks: HookDir,
    _certificates: Certificates,
}

impl Scene {
    /// `lines` are for `[hooks.sync]`.
    fn new(lines: &str) -> Self {
        Self::with("", lines)
    }

    /// `hook_lines` are for `[hooks]`.
    fn with(hook_lines: &str, lines: &str) -> Self {
        let hooks = HookDir::new();
        let certificates = Certificates::new();
        let guest = Guest::start(&certificates, "server");
        let world = World::with(512, |settings| {
            settings.sections = format!(
                "{}[hooks.sync]\nsecret = {SECRET:?}\nca_certificate = {:?}\n{lines}\n",
                hooks.section(hook_lines),
                certificates.ca(),
            );
        });
        world.define_vm(&[("a.img", MB)]);
        Self { guest, world, hooks, _certificates: certificates }
    }

    /// Adds these lines to the VM's definition.
    fn tag(&self, lines: &str) {
        self.world.define_vm(&[("a.img", MB)]);
        let definition = self.world.repository.join("VirtualMachines").join(VM).join("vm.cfg");
        let text = fs::read_to_string(&definition).unwrap();
        fs::write(definition, text + lines + "\n").unwrap();
    }

    fn description(&self) -> String {
        format!("OVM_description = 'the database xo:notify-on-snapshot={}'", self.guest.url())
    }

    /// The paths requested from the guest; checks that each request has the secret.
    fn take_paths(&self) -> Vec<String> {
        let requests = self.guest.take_requests();
        requests
            .iter()
            .map(|request| {
                let path = request.strip_prefix("GET ").and_then(|rest| rest.strip_suffix(BEARER));
                path.unwrap_or_else(|| panic!("{request}")).trim().to_owned()
            })
            .collect()
    }
}

#[test]
fn tagged_guest_is_called_before_and_after() {
    needs_root!();
    let scene = Scene::new("");
    let client = scene.world.client();
    // No tag, no request.
    let plain = client.take_snapshot();
    assert_eq!(
        (&plain["consistency"], hook_runs(&plain, "kind"), scene.take_paths()),
        (&json!("crash"), vec![], vec![])
    );

    let port = scene.guest.port;
    for tag in [scene.description(), format!("OVM_simple_name = 'web-1 xo:notify-on-snapshot={}/'", scene.guest.url())]
    {
        scene.tag(&tag);
        let made = client.take_snapshot();
        assert_eq!(scene.take_paths(), ["/sync", "/post-sync"], "{tag}");
        assert_eq!(hook_runs(&made, "kind"), ["sync pre ok", "sync post ok"], "{tag}");
        assert_eq!((&made["consistency"], &made["hooks"][0]["name"]), (&json!("quiesced"), &json!(scene.guest.url())));
        assert_eq!(made["hooks"][0]["detail"], "answers 200 OK");
    }
    // A tag without an address: the snapshot is made without a sync, and says so.
    scene.tag("OVM_description = 'xo:notify-on-snapshot'");
    let made = client.take_snapshot();
    assert_eq!(
        (hook_runs(&made, "kind"), &made["consistency"]),
        (vec!["sync pre skipped".to_owned()], &json!("crash"))
    );
    assert!(text(&made["hooks"][0]["detail"]).contains("hooks.sync.urls"), "{made}");
    // A deletion does not call the guest.
    client.delete(&format!("/vms/{VM}/snapshots/{}", text(&made["id"])));
    assert_eq!(scene.take_paths(), Vec::<String>::new());

    // The first address in the definition with the port in the config; then a URL in the config.
    let mut scene = scene;
    scene.world.exporter.settings().sections += &format!("port = {port}\n");
    scene.world.exporter.restart();
    scene.tag("OVM_description = 'xo:notify-on-snapshot'\nvif = ['mac=00:21:f6:aa:bb:cc,ip=127.0.0.1,bridge=b']");
    assert_eq!(scene.world.client().take_snapshot()["consistency"], "quiesced");
    assert_eq!(scene.take_paths(), ["/sync", "/post-sync"]);
    scene.world.exporter.settings().sections += &format!("[hooks.sync.urls]\n{VM} = \"{}/base\"\n", scene.guest.url());
    scene.world.exporter.restart();
    scene.tag("");
    assert_eq!(scene.world.client().take_snapshot()["consistency"], "quiesced");
    assert_eq!(scene.take_paths(), ["/base/sync", "/base/post-sync"]);
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
        (ServerBehavior::Redirects, "failed", "answers 302 Found; redirects are not followed"),
        (ServerBehavior::Slow, "timeout", "timed out"),
        (ServerBehavior::StalledBody, "timeout", "timed out"),
        (ServerBehavior::EndlessBody, "failed", "more than 65536 bytes"),
    ] {
        scene.guest.set_behavior(&[behavior]);
        let made = client.take_snapshot();
        assert_eq!(made["consistency"], "crash", "{behavior:?}");
        // The guest is told to thaw before the disks are cloned.
        assert_eq!(hook_runs(&made, "kind"), [&format!("sync pre {outcome}"), "sync post ok"], "{behavior:?}");
        assert!(text(&made["hooks"][0]["detail"]).contains(detail), "{made}");
        assert_eq!(scene.take_paths(), ["/sync", "/post-sync"], "{behavior:?}");
    }
    // An untrusted or unreachable server gets no secret and no post call.
    let others = Certificates::new();
    let stranger = Guest::start(&others, "server");
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for (url, detail) in
        [(stranger.url(), "hooks.sync.ca_certificate"), (format!("https://{closed}"), "check that the VM")]
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
    assert_eq!((hook_runs(&made, "kind"), scene.take_paths()), (vec!["sync pre skipped".to_owned()], vec![]));
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
        // First the guest syncs, then the host freezes; the post hooks run in reverse.
        "directory pre ok",
        "directory post ok",
        "sync post ok",
    ];
    assert_eq!(
        (hook_runs(&made, "kind"), &made["consistency"]),
        (expected.map(str::to_owned).to_vec(), &json!("quiesced"))
    );
    let sum: u64 = made["hooks"].as_array().unwrap().iter().map(|run| run["duration_ms"].as_u64().unwrap()).sum();
    assert!(made["freeze_ms"].as_u64().unwrap() < sum + 1000, "freeze_ms includes the pauses between retries: {made}");
    scene.take_paths();
    // All attempts fail: the snapshot is crash-consistent.
    scene.guest.set_behavior(&[ServerBehavior::ServerError]);
    let made = client.take_snapshot();
    assert_eq!(scene.take_paths(), ["/sync", "/post-sync", "/sync", "/post-sync", "/sync", "/post-sync"]);
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
    assert_eq!(
        (scene.take_paths(), scene.hooks.read("calls")),
        (vec!["/sync".into(), "/post-sync".into()], String::new())
    );
    // After a failed pre hook of the directory, the guest gets its post call.
    scene.hooks.put("refuse", "[ $2 = post ]");
    assert_eq!(client.post(&format!("/vms/{VM}/snapshots")).error(502), "hook_failed");
    assert_eq!(scene.take_paths(), ["/sync", "/post-sync"]);
    assert_eq!(scene.world.snapshot_files(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn failed_group_does_not_wait_for_the_retries_of_a_guest() {
    needs_root!();
    // The retries take ten minutes.
    let mut scene = Scene::with("timeout = \"1m\"", "retries = 10\nretry_delay = \"1m\"");
    scene.tag(&scene.description());
    let disk = make_disk(&scene.world.repository, "b.img", MB);
    define_vm(&scene.world.repository, OTHER_VM, &[disk]);
    scene.guest.set_behavior(&[ServerBehavior::ServerError]);
    let create = |client: &Client| {
        let body = json!({"vms": [VM, OTHER_VM]}).to_string();
        let answer = client.send(client.request(Method::POST, "/api/v1/snapshots").body(body));
        assert_eq!(answer.error(502), "hook_failed");
        text(&answer.json()["details"])
    };
    // The hook of the other VM refuses, after it has frozen its guest.
    scene.hooks.put("freeze", "echo $EXPORTER_VM $2 >> $OUT/calls; echo quiesced; [ $2 = post ]");
    let details = create(&scene.world.client());
    assert!(details.starts_with(&format!("VM {OTHER_VM}: hook freeze refused")), "{details}");
    assert_eq!(scene.hooks.take("calls"), format!("{OTHER_VM} pre\n{OTHER_VM} post\n"));
    scene.take_paths();
    // The other guest is frozen at the time limit of the group.
    scene.hooks.put("freeze", "echo quiesced; echo $EXPORTER_VM $2 >> $OUT/calls");
    let sections = &mut scene.world.exporter.settings().sections;
    *sections = sections.replace("timeout = \"1m\"", "timeout = \"3s\"");
    scene.world.exporter.restart();
    let details = create(&scene.world.client());
    assert!(details.contains("the hooks of all VMs together took longer than 3 s"), "{details}");
    let calls = scene.hooks.take("calls");
    assert!(calls.is_empty() || calls.ends_with(&format!("{OTHER_VM} post\n")), "{calls}");
    assert_eq!(scene.take_paths(), ["/sync", "/post-sync"]);
    assert_eq!(scene.world.client().pending_hooks(), json!([]));
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
    assert_eq!(scene.take_paths(), ["/sync"]);
    scene.world.exporter.restart();
    assert_eq!(scene.take_paths(), ["/post-sync"]);
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
        assert_eq!(
            (scene.take_paths(), &made["consistency"]),
            (owned(&["/sync", "/sync", "/post-sync"]), &json!("crash"))
        );
    }
    // A snapshot whose post call failed: the call is pending.
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::ServerError]);
    scene.guest.set_post_sync_behavior(ServerBehavior::ServerError);
    assert_eq!(hook_runs(&client.take_snapshot(), "kind"), ["sync pre failed", "sync pre failed", "sync post failed"]);
    assert_eq!(client.pending_hooks()[0]["hooks"], json!([scene.guest.url()]));
    scene.guest.set_post_sync_behavior(ServerBehavior::Good);
    scene.world.exporter.settings().sections += "on_failure = \"abort\"\n";
    scene.world.exporter.restart();
    let client = scene.world.client();
    eventually("no post hook is pending", || client.pending_hooks() == json!([]));
    scene.take_paths();
    // A snapshot that was not made: with post_on_failure = false the guest gets no post call; error and log say so.
    scene.guest.set_behavior(&[ServerBehavior::ServerError, ServerBehavior::ServerError]);
    let answer = client.post(&format!("/vms/{VM}/snapshots"));
    assert_eq!(answer.error(502), "hook_failed");
    let details = text(&answer.json()["details"]);
    assert!(details.contains("post_on_failure is false") && details.ends_with(&scene.guest.url()), "{details}");
    assert_eq!(scene.take_paths(), ["/sync", "/sync"]);
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
    // One process in the process group of the hook, and one in its own session.
    scene.hooks.put(
        "agent",
        "[ $2 = pre ] || exit 0; export OUT\n\
         sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT/in-group\n\
         setsid sh -c 'echo $$ > $OUT/in-session; exec sleep 600' </dev/null >/dev/null 2>&1 &\n\
         until [ -s $OUT/in-session ]; do sleep 0.02; done",
    );
    // The hooks have ended and the post call runs; the database has no record of that yet.
    scene.guest.set_post_sync_behavior(ServerBehavior::Slow);
    let asking = scene.world.request_snapshot();
    eventually("the guest gets the post call", || scene.take_paths().contains(&"/post-sync".to_owned()));
    scene.world.exporter.kill();
    asking.join().unwrap();
    scene.guest.set_post_sync_behavior(ServerBehavior::Good);
    scene.world.exporter.restart();
    eventually("no post hook is pending", || scene.world.client().pending_hooks() == json!([]));
    for left in ["in-group", "in-session"] {
        let pid = scene.hooks.read(left).trim().to_owned();
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        assert!(command.starts_with("sleep"), "the process {left} of a successful hook was killed");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), nix::sys::signal::Signal::SIGKILL)
            .unwrap();
    }
}

#[test]
fn required_quiescing_fails_with_the_guest_sync() {
    needs_root!();
    let scene = Scene::new("");
    scene.tag(&scene.description());
    let client = scene.world.client();
    let create = |quiesce: &str| {
        let request = client.request(Method::POST, &format!("/api/v1/vms/{VM}/snapshots"));
        client.send(request.body(json!({"quiesce": quiesce}).to_string()))
    };
    assert_eq!(create("require").ok()["consistency"], "quiesced");
    assert_eq!(create("skip").ok()["consistency"], "crash");
    assert_eq!(scene.take_paths(), ["/sync", "/post-sync"]);
    scene.guest.set_behavior(&[ServerBehavior::ServerError]);
    let answer = create("require");
    assert_eq!(answer.error(409), "not_quiesced");
    let details = text(&answer.json()["details"]);
    assert!(details.contains(&scene.guest.url()) && details.contains("500 Internal Server Error"), "{details}");
    assert_eq!(client.snapshot_ids().len(), 2);
}
