//! Hooks: their input, their effect on the operation, and post hooks after failures.

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::harness::{Client, MB, SECRET, SNAPSHOTS, VM, World, connect, eventually, hook_runs, ids, text};
use crate::needs_root;

/// Writes a line per call with the outcome of the operation.
const NOTE: &str =
    "outcome=$(sed -n 's/.*\"outcome\":\"\\([a-z]*\\)\".*/ \\1/p'); echo \"${0##*/} $1 $2$outcome\" >> $OUT/calls";

fn listed(client: &Client) -> Vec<String> {
    ids(&client.get(SNAPSHOTS).ok())
}

fn metrics(client: &Client) -> String {
    let answer = client.send(client.request(reqwest::Method::GET, "/metrics"));
    String::from_utf8(answer.body).unwrap()
}

#[test]
fn snapshot_document_lists_the_hook_runs() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img", "b.img"]);
    hooks.put("10-freeze", "[ $2 = pre ] && echo quiesced && sleep 0.2; exit 0");
    hooks.put("20-look", "cat > $OUT/$2.json");
    fs::write(hooks.directory().join("README"), "no hook").unwrap();
    let client = world.client();
    let made = client.take_snapshot();
    let id = text(&made["id"]);
    let calls = ["10-freeze pre ok", "20-look pre ok", "README pre skipped", "20-look post ok", "10-freeze post ok"];
    assert_eq!(hook_runs(&made, "name"), calls);
    let first = &made["hooks"][0];
    assert_eq!((&first["kind"], &first["detail"]), (&json!("directory"), &json!("")));
    assert_eq!(first.as_object().unwrap().len(), 6, "{first}");
    assert_eq!(made["consistency"], "quiesced");
    // The freeze lasts at least as long as the first hook sleeps.
    assert!(made["freeze_ms"].as_u64() >= first["duration_ms"].as_u64() && first["duration_ms"].as_u64() >= Some(200));
    for expected in
        ["freeze_ms=", "consistency=\"quiesced\"", "hook=\"10-freeze\"", "line=\"quiesced\"", "is not executable"]
    {
        assert!(world.exporter.log().contains(expected), "the log does not contain {expected}");
    }

    let message: Value = serde_json::from_str(&hooks.read("pre.json")).unwrap();
    assert_eq!((&message["action"], &message["stage"]), (&json!("snapshot-create"), &json!("pre")));
    let data = &message["data"];
    assert_eq!(
        data["vm"],
        json!({"name": VM, "uuid": "0004fb00-0006-0000-0000-000000000001", "friendly_name": "web-1"})
    );
    assert_eq!(data["snapshot_id"], id);
    let disk = |name: &str| {
        json!({
            "name": name, "size": MB, "path": world.repository.join("VirtualDisks").join(name),
            "snapshot_path": world.snapshot_folder(&id).join(name),
        })
    };
    assert_eq!(data["disks"], json!([disk("a.img"), disk("b.img")]));
    let post: Value = serde_json::from_str(&hooks.read("post.json")).unwrap();
    assert_eq!((&post["stage"], &post["data"]["outcome"]), (&json!("post"), &json!("ok")));
    assert_eq!(post["data"]["disks"], data["disks"]);

    // The document stays the same, also in the manifest and after a restart.
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}?squashChunks=false")).ok(), made);
    let manifest = world.snapshot_folder(&id).join(".manifest.json");
    let manifest: Value = serde_json::from_slice(&fs::read(manifest).unwrap()).unwrap();
    assert_eq!((&manifest["hooks"], &manifest["consistency"]), (&made["hooks"], &made["consistency"]));
    let counted = metrics(&client);
    for line in [
        "ovm_exporter_hook_runs_total{operation=\"snapshot-create\",kind=\"directory\",stage=\"pre\",outcome=\"ok\"} 2",
        "ovm_exporter_hook_runs_total{operation=\"snapshot-create\",kind=\"directory\",stage=\"pre\",outcome=\"skipped\"} 1",
        "ovm_exporter_freeze_seconds_count 1",
        "ovm_exporter_freeze_seconds_bucket{le=\"0.1\"} 0",
        "ovm_exporter_snapshots_total{outcome=\"made\"} 1",
    ] {
        assert!(counted.lines().any(|counted| counted == line), "{line} is not in\n{counted}");
    }
    world.exporter.restart();
    let client = world.client();
    assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}?squashChunks=false")).ok(), made);

    // Without hooks the snapshot is crash-consistent, and `freeze_ms` is the time of the clones.
    hooks.remove("10-freeze");
    hooks.remove("20-look");
    hooks.remove("README");
    let plain = client.take_snapshot();
    assert_eq!((&plain["hooks"], &plain["consistency"]), (&json!([]), &json!("crash")));
    assert!(plain["freeze_ms"].is_u64(), "{plain}");
}

#[test]
fn only_clones_are_made_between_pre_and_post() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img", "b.img"]);
    // Lists the files of the snapshot with their sizes.
    let look = "cd ${REPO}/CoriolisSnapshots/$EXPORTER_SNAPSHOT && stat -c '%n %s' .manifest.json * > $OUT/$2";
    let descriptors = "ls -l /proc/$$/fd > $OUT/descriptors";
    hooks.put("look", &format!("REPO={}\n{descriptors}; {look} 2>&1; exit 0", world.repository.display()));
    let id = world.client().take_snapshot_id();
    let absent = "stat: cannot statx '.manifest.json': No such file or directory\n";
    assert_eq!(
        hooks.read("pre"),
        format!("{absent}a.img 0\nb.img 0\n"),
        "before the clones there are only empty files"
    );
    assert_eq!(
        hooks.read("post"),
        format!("{absent}a.img {MB}\nb.img {MB}\n"),
        "the manifest is written after the post hooks"
    );
    assert!(world.snapshot_folder(&id).join(".manifest.json").exists());
    let descriptors = hooks.read("descriptors");
    assert!(descriptors.contains("pipe:"), "{descriptors}");
    for internal in ["socket:", "exporter.db", "VirtualDisks", "CoriolisSnapshots"] {
        assert!(!descriptors.contains(internal), "a hook inherits a descriptor of the service:\n{descriptors}");
    }
}

#[test]
fn failed_pre_hook_cancels_the_operation() {
    needs_root!();
    let (hooks, world) = World::with_hooks("post_on_failure = true", &["a.img", "b.img"]);
    let client = world.client();
    hooks.put("1-note", NOTE);
    hooks.put("2-refuses", &format!("{NOTE}; echo the clock is wrong >&2; [ $2 = post ] || exit 7"));
    hooks.put("3-never", NOTE);
    for _ in 0..2 {
        let answer = client.post(SNAPSHOTS);
        assert_eq!(answer.error(502), "hook_failed");
        let details = text(&answer.json()["details"]);
        assert!(
            details.contains("2-refuses") && details.contains("exit status: 7") && details.contains("log"),
            "{details}"
        );
        assert!(!details.contains("clock"), "the output of a hook belongs into the log only: {details}");
        assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
        assert_eq!(listed(&client), Vec::<String>::new());
        assert_eq!(
            hooks.take("calls"),
            "1-note snapshot-create pre\n2-refuses snapshot-create pre\n\
             2-refuses snapshot-create post failed\n1-note snapshot-create post failed\n"
        );
    }
    assert!(world.exporter.log().contains("the clock is wrong"));
    let counted = metrics(&client);
    assert!(counted.contains("ovm_exporter_snapshots_total{outcome=\"failed\"} 2\n"), "{counted}");

    // A deletion is cancelled, too.
    hooks.remove("2-refuses");
    let (first, second) = (client.take_snapshot_id(), client.take_snapshot_id());
    hooks.put("2-refuses", &format!("{NOTE}; [ $1 $2 != 'snapshot-delete pre' ]"));
    hooks.take("calls");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).error(502), "hook_failed");
    assert_eq!(client.delete(SNAPSHOTS).error(502), "hook_failed");
    assert_eq!(listed(&client), [first.clone(), second.clone()]);
    client.disk(&first, "a.img");
    hooks.remove("2-refuses");
    hooks.take("calls");
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    let calls = "1-note snapshot-delete pre\n3-never snapshot-delete pre\n\
                 3-never snapshot-delete post ok\n1-note snapshot-delete post ok\n";
    assert_eq!(hooks.take("calls"), calls);
    // A repeated deletion calls no hooks.
    assert_eq!(client.delete(&format!("{SNAPSHOTS}/{first}")).status, 200);
    assert_eq!(hooks.take("calls"), "");
    assert_eq!(client.delete(SNAPSHOTS).status, 200);
    assert_eq!(hooks.take("calls"), calls);
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}

#[test]
fn post_hook_runs_after_a_failed_clone() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img", "b.img"]);
    // A clone into an immutable file fails.
    let repository = world.repository.display();
    hooks.put(
        "freeze",
        &format!(
            "{NOTE}; [ $2 = pre ] && flag=+i || flag=-i\n\
             chattr $flag {repository}/CoriolisSnapshots/$EXPORTER_SNAPSHOT/b.img; echo quiesced"
        ),
    );
    hooks.put("plain", NOTE);
    let client = world.client();
    assert_eq!(client.post(SNAPSHOTS).error(500), "io_error");
    let calls = "freeze snapshot-create pre\nplain snapshot-create pre\nfreeze snapshot-create post failed\n";
    assert_eq!(hooks.read("calls"), calls, "only the hook that printed \"quiesced\" gets a post call");
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
}

#[test]
fn unsafe_hooks_are_skipped_and_hung_hooks_are_killed() {
    needs_root!();
    let (hooks, world) = World::with_hooks("timeout = \"1s\"", &["a.img", "b.img"]);
    let client = world.client();
    for (name, mode, owner) in [("1-writable", 0o775, 0), ("2-data", 0o644, 0), ("3-stranger", 0o755, 1234)] {
        hooks.put(name, NOTE);
        let path = hooks.directory().join(name);
        std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let made = client.take_snapshot();
    assert_eq!(hook_runs(&made, "name"), ["1-writable pre skipped", "2-data pre skipped", "3-stranger pre skipped"]);
    assert_eq!((hooks.read("calls"), &made["consistency"]), (String::new(), &json!("crash")));
    assert!(text(&made["hooks"][0]["detail"]).contains("0775"), "{made}");

    hooks.put("4-hangs", "trap '' TERM; while :; do sleep 1; done");
    let answer = client.post(SNAPSHOTS);
    assert_eq!(answer.error(502), "hook_failed");
    assert!(text(&answer.json()["details"]).contains("took too long, and was killed"), "{answer:?}");
    hooks.put_program("4-hangs", "no program");
    let details = text(&client.post(SNAPSHOTS).json()["details"]);
    assert!(details.contains("it is not a program"), "{details}");
    fs::remove_dir_all(hooks.directory()).unwrap();
    let answer = client.post(SNAPSHOTS);
    assert_eq!(answer.error(502), "hook_failed");
    assert!(text(&answer.json()["details"]).contains("No such file"), "{answer:?}");
    assert_eq!(listed(&client).len(), 1);
}

#[test]
fn post_hook_runs_after_the_client_disconnects() {
    needs_root!();
    let (hooks, world) = World::with_hooks("", &["a.img", "b.img"]);
    hooks.put("freeze", "touch $OUT/$2; [ $2 = post ] || while [ ! -e $OUT/go ]; do sleep 0.05; done");
    let client = world.client();
    let mut connection = connect(&world.exporter, &world.certificates);
    let request = format!(
        "POST /api/v1{SNAPSHOTS} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
        client.token
    );
    connection.write_all(request.as_bytes()).unwrap();
    connection.flush().unwrap();
    hooks.wait_for("pre");
    drop(connection);
    fs::write(hooks.at("go"), "").unwrap();
    hooks.wait_for("post");
    eventually("the snapshot is finished", || !listed(&client).is_empty());
}

#[test]
fn post_hooks_run_at_the_start_after_a_kill() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img", "b.img"]);
    // If the hook outlived the service, it would freeze after the post hook, and stay frozen.
    hooks.put(
        "freeze",
        "[ $2 = post ] || echo $$ > $OUT/hook; echo $2 >> $OUT/calls; [ $2 = post ] && rm -f $OUT/frozen && exit
         sleep 2; touch $OUT/frozen",
    );
    let request = world.request_snapshot();
    hooks.wait_for("calls");
    world.exporter.kill();
    request.join().unwrap();
    assert_eq!(hooks.read("calls"), "pre\n");
    world.exporter.restart();
    assert_eq!(
        hooks.take("calls"),
        "pre\npost\n",
        "the post hook was not called exactly once before the service listened"
    );
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());
    let log = world.exporter.log();
    assert!(log.contains("the service stopped before this operation's post hooks were called"), "{log}");
    assert!(log.find("stopped before").unwrap() < log.find("removing an unfinished snapshot").unwrap(), "{log}");
    let hook = Path::new("/proc").join(hooks.read("hook").trim());
    eventually("the hook of the killed service ends", || !hook.exists());
    assert!(!hooks.at("frozen").exists(), "a hook of the killed service froze after the thaw");

    // Killed during the post hook: it is called again, once.
    hooks.put("freeze", "echo $2 >> $OUT/calls; [ $2 = pre ] || [ -e $OUT/go ] || { touch $OUT/in-post; sleep 600; }");
    let request = world.request_snapshot();
    hooks.wait_for("in-post");
    world.exporter.kill();
    request.join().unwrap();
    fs::write(hooks.at("go"), "").unwrap();
    world.exporter.restart();
    assert_eq!(hooks.read("calls"), "pre\npost\npost\n");
    world.exporter.restart();
    assert_eq!(hooks.take("calls"), "pre\npost\npost\n");
    assert_eq!(world.snapshot_files(), Vec::<PathBuf>::new());

    // Killed during the pre hook of a deletion: the post hook is called, and the snapshot stays.
    let client = world.client();
    let id = client.take_snapshot_id();
    hooks.put("freeze", "echo $1 $2 >> $OUT/deletion; [ $2 = post ] || sleep 600");
    let path = format!("/api/v1{SNAPSHOTS}/{id}");
    let request = std::thread::spawn(move || drop(client.try_send(client.request(reqwest::Method::DELETE, &path))));
    hooks.wait_for("deletion");
    world.exporter.kill();
    request.join().unwrap();
    world.exporter.restart();
    assert_eq!(hooks.read("deletion"), "snapshot-delete pre\nsnapshot-delete post\n");
    assert_eq!(listed(&world.client()), [id]);
}

#[test]
fn shutdown_finishes_the_operation_and_its_post_hooks() {
    needs_root!();
    let (hooks, mut world) = World::with_hooks("", &["a.img", "b.img"]);
    hooks.put("freeze", "touch $OUT/$2; [ $2 = post ] || sleep 1");
    let request = world.request_snapshot();
    hooks.wait_for("pre");
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    request.join().unwrap();
    assert!(hooks.at("post").exists());
    world.exporter.restart();
    let client = world.client();
    assert_eq!(listed(&client).len(), 1);

    // A pre hook that takes too long is killed at shutdown, and its post hook is called.
    hooks.put("freeze", "touch $OUT/slow-$2; echo quiesced; [ $2 = post ] || sleep 600");
    let request = world.request_snapshot();
    hooks.wait_for("slow-pre");
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    request.join().unwrap();
    assert!(hooks.at("slow-post").exists());
    assert!(!world.exporter.log().contains(SECRET));
    world.exporter.restart();
    assert_eq!(listed(&world.client()).len(), 1);
}
