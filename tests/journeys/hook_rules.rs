//! Which hooks run, how skipped hooks are reported, and which processes of hooks are killed.

use std::fs;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use reqwest::Method;
use serde_json::{Value, json};

use crate::confinement::launcher;
use crate::harness::{Fault, FaultTest, HookDir, SNAPSHOTS, World, eventually, hook_runs, text};
use crate::needs_root;

const NOTE: &str = "echo \"${0##*/} $1 $2\" >> $OUT/calls";

/// Leaves a background process that keeps no descriptor open, and writes its pid to a file.
const LEAVE: &str = "sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT";

/// Whether the process runs whose pid a hook has written to the file `name`.
fn is_running(hooks: &HookDir, name: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", hooks.read(name).trim())).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
}

#[test]
fn backup_copies_of_hooks_are_skipped() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-freeze", NOTE);
    hooks.put("20-script.sh", NOTE);
    for copy in ["~", ".bak", ".orig", ".rpmsave", ".rpmnew", ".dpkg-old", ".ucf-dist", ".sample", ".swp", ".disabled"]
    {
        hooks.put(&format!("10-freeze{copy}"), NOTE);
    }
    hooks.put(".10-freeze.swp", NOTE);
    hooks.put("#10-freeze#", NOTE);
    let made = world.client().take_snapshot();
    assert_eq!(
        hooks.read("calls"),
        "10-freeze snapshot-create pre\n20-script.sh snapshot-create pre\n\
         20-script.sh snapshot-create post\n10-freeze snapshot-create post\n"
    );
    let skipped: Vec<_> = hook_runs(&made, "name").into_iter().filter(|run| run.ends_with("skipped")).collect();
    assert!(skipped.len() == 11 && skipped.contains(&"10-freeze.rpmsave pre skipped".to_owned()), "{skipped:?}");
}

#[test]
fn error_and_log_name_the_skipped_post_hooks() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-says-nothing", NOTE);
    hooks.put("20-says-so", &format!("echo quiesced; {NOTE}"));
    hooks.put("30-refuses", &format!("{NOTE}; [ $2 = post ]"));
    let client = world.client();
    let id = {
        hooks.remove("30-refuses");
        let id = client.take_snapshot_id();
        hooks.put("30-refuses", &format!("{NOTE}; [ $2 = post ]"));
        id
    };
    hooks.take("calls");
    for (method, path, operation) in [
        (Method::POST, SNAPSHOTS.to_owned(), "snapshot-create"),
        (Method::DELETE, format!("{SNAPSHOTS}/{id}"), "snapshot-delete"),
    ] {
        let answer = client.send(client.request(method, &format!("/api/v1{path}")));
        assert_eq!(answer.error(502), "hook_failed");
        let details = text(&answer.json()["details"]);
        assert!(details.contains("post was not called for these hooks"), "{details}");
        assert!(details.ends_with("10-says-nothing, 30-refuses"), "{details}");
        let calls = hooks.take("calls");
        assert!(calls.ends_with(&format!("pre\n20-says-so {operation} post\n")), "{calls}");
    }
    let log = world.exporter.log();
    for hook in ["10-says-nothing", "30-refuses"] {
        let names_hook = |line: &&str| line.contains(hook) && line.contains("not called: post_on_failure");
        assert_eq!(
            log.lines().filter(|line| line.contains("outcome=\"skipped\"")).filter(names_hook).count(),
            2,
            "{log}"
        );
    }
    // A failed clone: its error lists the skipped post hooks, too.
    let repository = world.repository.display();
    hooks.put(
        "30-refuses",
        &format!("[ $2 = pre ] && f=+i || f=-i; chattr $f {repository}/CoriolisSnapshots/$EXPORTER_SNAPSHOT/a.img; echo quiesced"),
    );
    let answer = client.post(SNAPSHOTS);
    assert_eq!(answer.error(500), "io_error");
    assert!(text(&answer.json()["details"]).ends_with("post_on_failure is false: 10-says-nothing"), "{answer:?}");
}

#[test]
fn failed_post_hook_makes_the_snapshot_crash_consistent() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-freeze", "[ $2 = pre ] && echo quiesced && exit; echo freeze expired >&2; exit 3");
    let client = world.client();
    let made = client.take_snapshot();
    let id = text(&made["id"]);
    assert_eq!(made["consistency"], "crash", "{made}");
    let reason = text(&made["consistency_reason"]);
    assert!(reason.contains("10-freeze") && reason.contains("exit status: 3"), "{reason}");
    assert!(text(&made["hooks"][1]["detail"]).contains("does not count as quiesced"), "{made}");
    // The document stays the same after a restart, and so does the manifest.
    world.exporter.restart();
    let later = world.client().get(&format!("{SNAPSHOTS}/{id}?squashChunks=false")).ok();
    assert_eq!((&later["consistency"], &later["consistency_reason"]), (&json!("crash"), &json!(reason)));
    let manifest = world.snapshot_folder(&id).join(".manifest.json");
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    assert_eq!((&manifest["consistency"], &manifest["hooks"]), (&json!("crash"), &made["hooks"]));
    // A snapshot that no hook called quiesced has no reason.
    hooks.put("10-freeze", "[ $2 = pre ]");
    let plain = world.client().take_snapshot();
    assert!(plain["consistency"] == "crash" && plain.get("consistency_reason").is_none(), "{plain}");
}

#[test]
fn restart_ends_the_interrupted_hook_and_runs_post_hooks() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-agent", &format!("{NOTE}; [ $2 = post ] && exit; {LEAVE}/agent"));
    hooks.put("20-plain", NOTE);
    hooks.put("30-hangs", &format!("{NOTE}; [ $2 = post ] && exit; {LEAVE}/of-hanging; touch $OUT/hangs; sleep 600"));
    let request = world.request_snapshot();
    hooks.wait_for("hangs");
    world.exporter.kill();
    request.join().unwrap();
    hooks.take("calls");
    world.exporter.restart();
    assert_eq!(
        hooks.take("calls"),
        "30-hangs snapshot-create post\n20-plain snapshot-create post\n10-agent snapshot-create post\n"
    );
    eventually("the background process of the interrupted hook is killed", || !is_running(&hooks, "of-hanging"));
    assert!(is_running(&hooks, "agent"), "the background process of a successful hook was killed");

    // The same for a failed post hook that is retried.
    hooks.put("30-hangs", &format!("[ $2 = post ] || exit 0; [ -e $OUT/mended ] && exit; {LEAVE}/of-failing; exit 1"));
    world.client().take_snapshot();
    assert!(is_running(&hooks, "agent") && is_running(&hooks, "of-failing"));
    fs::write(hooks.at("mended"), "").unwrap();
    world.exporter.restart();
    eventually("the background process of the failed hook is killed", || !is_running(&hooks, "of-failing"));
    assert!(is_running(&hooks, "agent"), "a retry has killed the background process of another hook");
    let pid = hooks.read("agent").trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn pending_post_hooks_survive_a_database_failure() {
    needs_root!();
    let hooks = HookDir::new();
    let mut test = FaultTest::new(|settings| settings.sections = hooks.section(""));
    hooks.put(
        "10-freeze",
        "echo $2 >> $OUT/calls; [ $2 = pre ] && echo quiesced && exit; [ -e $OUT/mended ] && exit\n\
         touch $OUT/in-post; until [ -e $OUT/go ]; do sleep 0.02; done; exit 1",
    );
    // The record cannot be written before the pre hook: then no hook runs.
    test.shim.arm(1, Fault::FailFrom(Errno::ENOSPC));
    assert_eq!(test.client.post(SNAPSHOTS).error(503), "database_unavailable");
    let id = test.confirmed.keys().next().unwrap().clone();
    assert_eq!(test.client.delete(&format!("{SNAPSHOTS}/{id}")).error(503), "database_unavailable");
    test.shim.disarm();
    assert_eq!(hooks.read("calls"), "");

    // The record cannot be updated after the post hook: it is kept in memory, and the hook is retried.
    let client = test.world.client();
    let request = std::thread::spawn(move || client.post(SNAPSHOTS));
    hooks.wait_for("in-post");
    test.shim.arm(1, Fault::FailFrom(Errno::ENOSPC));
    fs::write(hooks.at("go"), "").unwrap();
    assert_ne!(request.join().unwrap().status, 200);
    assert!(test.shim.fault_occurred());
    let log = test.world.exporter.log();
    assert!(log.contains("cannot record pending post hooks"), "{log}");
    test.shim.disarm();
    eventually("the post hook is pending", || test.client.pending_hooks()[0]["hooks"] == json!(["10-freeze"]));
    let calls = || hooks.read("calls").lines().filter(|call| *call == "post").count();
    let before = calls();
    eventually("the post hook is retried", || calls() > before);
    fs::write(hooks.at("mended"), "").unwrap();
    eventually("no post hook is pending", || test.client.pending_hooks() == json!([]));
    test.world.exporter.signal(Signal::SIGTERM);
    assert_eq!(test.world.exporter.wait(Duration::from_secs(120)).code(), Some(0));
}

#[test]
fn launcher_without_free_descriptors_loses_the_call_and_goes_on() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img"]);
    hooks.put("10-freeze", "echo $2 >> $OUT/calls; echo quiesced");
    let (client, launcher) = (world.client(), launcher(world.exporter.pid()).unwrap());
    let limit = |limit: &str| {
        let status = Command::new("prlimit").args(["--pid", &launcher.to_string(), limit]).status();
        assert!(status.unwrap().success());
    };
    limit("--nofile=0:");
    let answer = client.post(SNAPSHOTS);
    assert_eq!(answer.error(502), "hook_failed");
    assert!(text(&answer.json()["details"]).contains("the hook launcher does not respond"), "{answer:?}");
    world.exporter.wait_for_log("no free descriptor for a request");
    assert_eq!(hooks.read("calls"), "");
    limit("--nofile=1000:");
    assert_eq!(client.take_snapshot()["consistency"], "quiesced");
    // The post hook that is pending may be called too.
    let calls = hooks.read("calls");
    assert!(calls.contains("pre\npost\n") && calls.matches("pre").count() == 1, "{calls}");
}

#[test]
fn a_service_that_may_write_its_hooks_says_so() {
    needs_root!();
    let hooks = HookDir::new();
    let log = hooks.at("exporter.log");
    let world = World::with(512, |settings| {
        settings.sections = hooks.section("");
        settings.top = format!("log_file = {log:?}\n");
    });
    let problems = world.client().get("/status").ok()["confinement"]["problems"].to_string();
    assert!(problems.contains("hooks.directory") && problems.contains("which the service may write"), "{problems}");
}
