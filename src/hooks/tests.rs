use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::model::HookOutcome;
use tempfile::TempDir;

mod launcher;
mod rules;

/// A directory of hooks, and files that they write.
struct HookDir {
    temp: TempDir,
}

impl HookDir {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        fs::create_dir(temp.path().join("hooks")).unwrap();
        Self { temp }
    }

    fn path(&self) -> &Path {
        self.temp.path()
    }

    /// Adds a shell script, in which `$OUT` is a folder for its files.
    fn put(&self, name: &str, script: &str) {
        let path = self.path().join("hooks").join(name);
        fs::write(&path, format!("#!/bin/sh\nOUT={}\n{script}\n", self.path().display())).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    /// The hooks with these lines in `[hooks]`.
    fn hooks(&self, lines: &str) -> Hooks {
        let text = format!(
            "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[hooks]\ndirectory = {:?}\n{lines}\n",
            self.path().join("hooks")
        );
        Hooks::new(config::parse(&text).unwrap().hooks).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_default()
    }

    fn take(&self, name: &str) -> String {
        let text = self.read(name);
        let _ = fs::remove_file(self.path().join(name));
        text
    }
}

/// A script that records its calls.
const NOTE: &str = "echo \"${0##*/} $2\" >> $OUT/calls";

fn event() -> Event {
    Event { sync: None, snapshot_id: uuid::Uuid::new_v4().to_string(), ..event::example() }
}

fn pending(hooks: &Hooks, event: &Event) -> PendingPostHooks {
    hooks.pending_post_hooks(event.clone()).unwrap()
}

async fn call_pre(hooks: &Hooks, event: &Event) -> pre::PreResult {
    let nothing: Refresh = Arc::new(|| ());
    hooks.call_pre(&pending(hooks, event), &nothing, &hooks.cancellation()).await
}

/// The calls of post hooks.
async fn call_post(hooks: &Hooks, event: &Event, pre: &pre::PreResult, succeeded: bool) -> Vec<HookRun> {
    let mut runs = hooks.call_post(&pending(hooks, event), pre.clone(), succeeded).await.runs;
    runs.retain(|run| run.stage == HookStage::Post);
    runs
}

async fn after_crash(hooks: &Hooks, event: &Event) -> Vec<HookRun> {
    hooks.call_pending(&pending(hooks, event)).await.runs
}

fn summary(runs: &[HookRun]) -> Vec<String> {
    runs.iter().map(|run| format!("{} {} {}", run.name, run.stage.as_str(), run.outcome.as_str())).collect()
}

#[tokio::test]
async fn a_program_gets_arguments_json_and_a_short_environment() {
    let dir = HookDir::new();
    dir.put("10-look", "echo \"$@\" > $OUT/arguments.$2; cat > $OUT/json.$2; env | sort > $OUT/env.$2; pwd > $OUT/pwd");
    let (hooks, event) = (dir.hooks(""), event());
    let pre = call_pre(&hooks, &event).await;
    let posts = call_post(&hooks, &event, &pre, true).await;
    assert_eq!(
        (summary(&pre.calls.runs), summary(&posts)),
        (vec!["10-look pre ok".into()], vec!["10-look post ok".into()])
    );
    assert!(pre.refusal.is_none() && !pre.quiesced && pre.since.is_some());
    assert_eq!(dir.read("arguments.pre"), "snapshot-create pre\n");
    assert_eq!(dir.read("arguments.post"), "snapshot-create post\n");
    assert_eq!(dir.read("json.pre").as_bytes(), event.message(CallReason::Pre));
    assert_eq!(dir.read("json.post").as_bytes(), event.message(CallReason::PostSuccess));
    assert_eq!(dir.read("pwd"), "/\n");
    let environment = dir.read("env.pre");
    let names: Vec<_> = environment.lines().map(|line| line.split('=').next().unwrap()).collect();
    // The last is the shell's own.
    let expected = [
        "EXPORTER_CALL",
        "EXPORTER_OPERATION",
        "EXPORTER_SNAPSHOT",
        "EXPORTER_STAGE",
        "EXPORTER_VM",
        "LANG",
        "PATH",
        "PWD",
    ];
    assert_eq!(names, expected, "{environment}");
    assert!(environment.contains(&format!("EXPORTER_SNAPSHOT={}\n", event.snapshot_id)));
}

#[tokio::test]
async fn programs_are_called_in_the_order_of_their_names() {
    let dir = HookDir::new();
    for name in ["b", "10", "9", "B"] {
        dir.put(name, NOTE);
    }
    let (hooks, event) = (dir.hooks(""), event());
    let pre = call_pre(&hooks, &event).await;
    call_post(&hooks, &event, &pre, true).await;
    assert_eq!(dir.read("calls"), "10 pre\n9 pre\nB pre\nb pre\nb post\nB post\n9 post\n10 post\n");
}

#[tokio::test]
async fn a_failed_pre_stops_the_operation_as_configured() {
    // The config; whether the failure of the second of three programs forbids the operation; the post calls after it.
    for (lines, refused, after_failure) in [
        ("", true, &["1-quiesces post ok", "2-fails post skipped"][..]),
        ("post_on_failure = true", true, &["2-fails post ok", "1-quiesces post ok"]),
        ("on_failure = \"continue\"", false, &["1-quiesces post ok", "2-fails post skipped", "3-plain post skipped"]),
        (
            "on_failure = \"continue\"\npost_on_failure = true",
            false,
            &["3-plain post ok", "2-fails post ok", "1-quiesces post ok"],
        ),
    ] {
        let dir = HookDir::new();
        dir.put("1-quiesces", "echo quiesced");
        dir.put("2-fails", "[ $2 = post ] || exit 3");
        dir.put("3-plain", "");
        let (hooks, event) = (dir.hooks(lines), event());
        let pre = call_pre(&hooks, &event).await;
        assert!(pre.quiesced);
        assert_eq!(pre.refusal.as_ref().map(|run| run.name.as_str()), refused.then_some("2-fails"), "{lines}");
        assert_eq!(pre.calls.runs[1].detail, "exit status: 3");
        assert_eq!(pre.calls.runs.len(), if refused { 2 } else { 3 });
        assert_eq!(summary(&call_post(&hooks, &event, &pre, false).await), after_failure, "{lines}");
        if !refused {
            let all = ["3-plain post ok", "2-fails post ok", "1-quiesces post ok"];
            assert_eq!(summary(&call_post(&hooks, &event, &pre, true).await), all, "{lines}");
        }
        // After a crash all are called.
        assert_eq!(after_crash(&hooks, &event).await.len(), 3);
    }
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_is_killed_with_its_descendants() {
    let dir = HookDir::new();
    dir.put(
        "1-stubborn",
        "trap '' TERM\nsh -c 'trap \"\" TERM; sleep 600' &\nsleep 600 &\necho $$ > $OUT/pid\nwait; wait",
    );
    dir.put("2-never", NOTE);
    let (hooks, event) = (dir.hooks("timeout = \"1s\"\non_failure = \"continue\""), event());
    let pre = call_pre(&hooks, &event).await;
    assert_eq!(summary(&pre.calls.runs), ["1-stubborn pre timeout", "2-never pre skipped"]);
    assert_eq!(pre.calls.runs[1].detail, "no time was left for it");
    assert_eq!(pre.calls.runs[0].detail, "took too long, and was killed");
    let pid = dir.read("pid").trim().parse().unwrap();
    let group = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), None);
    // Killed processes are zombies until init reaps them.
    let end = Instant::now() + Duration::from_secs(60);
    while group.is_ok() && nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), None).is_ok() {
        let alive = fs::read_dir("/proc").unwrap().flatten().any(|entry| {
            let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
            let after_name: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            after_name.get(2) == Some(&pid.to_string().as_str()) && after_name.first() != Some(&"Z")
        });
        if !alive {
            break;
        }
        assert!(Instant::now() < end, "a process of its group is still alive");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(dir.read("calls"), "");
    // Each post hook has the whole timeout, so that a hanging one does not keep another from thawing.
    dir.put("1-stubborn", "sleep 600");
    let after = after_crash(&hooks, &event).await;
    assert_eq!(summary(&after), ["2-never post ok", "1-stubborn post timeout"]);
}

#[tokio::test]
async fn programs_need_not_read_and_may_print_a_lot() {
    let dir = HookDir::new();
    dir.put("1-never-reads", "exec <&-; sleep 0.1");
    dir.put("2-reads-a-part", "head -c 1 > /dev/null");
    dir.put("3-prints-100-MB", "head -c 100000000 /dev/zero; echo; echo quiesced; head -c 100000000 /dev/zero >&2");
    dir.put("4-leaves-something", "sleep 600 & echo $! > $OUT/left");
    let hooks = dir.hooks("");
    let mut event = event();
    // The message is larger than a pipe.
    event.disks = vec![event.disks[0].clone(); 5000];
    assert!(event.message(CallReason::Pre).len() > 500_000);
    let pre = call_pre(&hooks, &event).await;
    let names = ["1-never-reads", "2-reads-a-part", "3-prints-100-MB", "4-leaves-something"];
    assert_eq!(summary(&pre.calls.runs), names.map(|name| format!("{name} pre ok")));
    assert!(pre.quiesced, "quiesced between much output");
    let _ =
        leftover_processes::kill_on_thread(leftover_processes::Selection::Snapshot(event.snapshot_id.clone())).await;
    let left = dir.read("left").trim().to_owned();
    assert!(!fs::read_to_string(format!("/proc/{left}/environ")).unwrap_or_default().contains(&event.snapshot_id));
}

#[tokio::test]
async fn a_program_that_cannot_be_started_is_reported_with_the_reason() {
    let dir = HookDir::new();
    dir.put("1-no-interpreter", "");
    let path = dir.path().join("hooks");
    fs::write(path.join("1-no-interpreter"), "#!/nonexistent/sh\n").unwrap();
    dir.put("2-no-program", "");
    fs::write(path.join("2-no-program"), [0; 100]).unwrap();
    dir.put("3-not-executable", NOTE);
    fs::set_permissions(path.join("3-not-executable"), Permissions::from_mode(0o644)).unwrap();
    dir.put("4-writable", NOTE);
    fs::set_permissions(path.join("4-writable"), Permissions::from_mode(0o777)).unwrap();
    let hooks = dir.hooks("on_failure = \"continue\"");
    let pre = call_pre(&hooks, &event()).await;
    let runs = &pre.calls.runs;
    let outcomes = [
        "1-no-interpreter pre failed",
        "2-no-program pre failed",
        "3-not-executable pre skipped",
        "4-writable pre skipped",
    ];
    assert_eq!(summary(runs), outcomes);
    for (run, reason) in runs.iter().zip(["interpreter", "not a program", "chmod +x", "chmod go-w"]) {
        assert!(run.detail.contains(reason), "{run:?}");
    }
    // A directory that others can change, and none at all.
    dir.put("5-good", NOTE);
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let pre = call_pre(&dir.hooks(""), &event()).await;
    assert_eq!((summary(&pre.calls.runs), pre.refusal), (vec![format!("{} pre skipped", path.display())], None));
    fs::remove_dir_all(&path).unwrap();
    let pre = call_pre(&dir.hooks(""), &event()).await;
    assert_eq!(summary(&pre.calls.runs), [format!("{} pre failed", path.display())]);
    assert!(pre.refusal.is_some_and(|run| run.detail.contains("No such file")));
    assert_eq!(dir.read("calls"), "");
}

#[tokio::test]
async fn a_service_that_stops_does_not_wait_for_pre_hooks() {
    let dir = HookDir::new();
    dir.put("1-slow", "[ $2 = post ] || sleep 600");
    let (hooks, event) = (dir.hooks(""), event());
    let (pre, ()) = tokio::join!(call_pre(&hooks, &event), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        hooks.cancel_pre_hooks();
    });
    assert_eq!(summary(&pre.calls.runs), ["1-slow pre failed"]);
    assert!(pre.refusal.is_some());
    assert_eq!(summary(&after_crash(&hooks, &event).await), ["1-slow post ok"]);
}

#[tokio::test]
async fn a_killed_hook_freezes_nothing_later_from_another_process_group() {
    let dir = HookDir::new();
    // timeout(1) and setsid(1) create process groups.
    let later = "trap \"\" TERM; sleep 8; touch $OUT/frozen";
    dir.put(
        "1-freeze",
        &format!("export OUT; [ $2 = post ] && exit\nsetsid sh -c '{later}' & timeout 600 sh -c '{later}'"),
    );
    let (hooks, event) = (dir.hooks("timeout = \"2s\"\npost_on_failure = true"), event());
    let pre = call_pre(&hooks, &event).await;
    assert_eq!(summary(&pre.calls.runs), ["1-freeze pre timeout"]);
    assert_eq!(summary(&call_post(&hooks, &event, &pre, false).await), ["1-freeze post ok"]);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!dir.path().join("frozen").exists(), "frozen after the thaw");
}

#[tokio::test]
async fn a_post_hook_that_fails_stays_pending() {
    let dir = HookDir::new();
    let names = ["1-goes", "2-fails", "3-vanishes", "4-is-opened", "5-good"];
    for name in names {
        dir.put(name, NOTE);
    }
    dir.put("2-fails", "[ $2 = pre ] || [ -e $OUT/repaired ]");
    let (path, event) = (dir.path().join("hooks"), event());
    let hooks = dir.hooks("");
    let written = pending(&hooks, &event);
    let pre = call_pre(&hooks, &event).await;
    assert_eq!(pre.calls.runs.len(), names.len());
    fs::remove_file(path.join("3-vanishes")).unwrap();
    fs::set_permissions(path.join("4-is-opened"), Permissions::from_mode(0o777)).unwrap();
    // Its pre hook was not called.
    dir.put("6-new", NOTE);
    let ended = hooks.call_post(&written, pre.clone(), true).await;
    let posts = [
        "5-good post ok",
        "4-is-opened post failed",
        "3-vanishes post failed",
        "2-fails post failed",
        "1-goes post ok",
    ];
    assert_eq!(summary(&ended.runs[names.len()..]), posts);
    let left = ended.failed.unwrap();
    assert_eq!(
        (&left.programs[..], left.server),
        (&["2-fails".into(), "3-vanishes".into(), "4-is-opened".into()][..], false)
    );

    // They are repaired one after the other.
    let retry = |hooks: &PendingHooks| PendingPostHooks { hooks: Some(hooks.clone()), attempts: 1, ..written.clone() };
    fs::set_permissions(path.join("4-is-opened"), Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("repaired"), "").unwrap();
    let ended = hooks.call_pending(&retry(&left)).await;
    assert_eq!(summary(&ended.runs), ["4-is-opened post ok", "3-vanishes post failed", "2-fails post ok"]);
    let left = ended.failed.unwrap();
    let without_directory =
        Hooks::new(config::parse("[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n").unwrap().hooks);
    let ended = without_directory.unwrap().call_pending(&retry(&left)).await;
    assert!(ended.runs[0].detail.contains("hooks.directory is no longer set"), "{:?}", ended.runs);
    assert_eq!(ended.failed.as_ref(), Some(&left));
    dir.put("3-vanishes", NOTE);
    assert!(hooks.call_pending(&retry(&left)).await.failed.unwrap().is_empty());

    // The whole directory is refused.
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let ended = hooks.call_post(&written, pre.clone(), true).await;
    assert_eq!((ended.runs.len(), ended.failed.unwrap().programs.len()), (2 * names.len(), names.len()));
    // After a crash, the stored hooks are pending, and no others.
    assert_eq!(hooks.call_pending(&written).await.failed, written.hooks);
    // Unknown hooks stay unknown.
    assert_eq!(hooks.call_pending(&PendingPostHooks { hooks: None, ..written.clone() }).await.failed, None);
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(summary(&hooks.call_pending(&written).await.runs).len(), names.len());
    assert_eq!(
        summary(&hooks.call_pending(&PendingPostHooks { hooks: None, ..written }).await.runs).len(),
        names.len() + 1
    );
}

#[tokio::test]
async fn pending_hooks_of_an_earlier_attempt_are_called_with_this_one() {
    let dir = HookDir::new();
    dir.put("1-refuses", "[ $2 = post ]");
    dir.put("2-pending", NOTE);
    let (hooks, event) = (dir.hooks(""), event());
    let nothing: Refresh = Arc::new(|| ());
    let pending = PendingPostHooks { earlier: vec!["2-pending".into()], ..pending(&hooks, &event) };
    let pre = hooks.call_pre(&pending, &nothing, &hooks.cancellation()).await;
    assert_eq!(summary(&pre.calls.runs), ["1-refuses pre failed"]);
    assert_eq!(summary(&call_post(&hooks, &event, &pre, false).await), ["2-pending post ok", "1-refuses post skipped"]);
    // If it fails again, it is pending again.
    fs::remove_file(dir.path().join("hooks/2-pending")).unwrap();
    assert_eq!(hooks.call_post(&pending, pre, false).await.failed.unwrap().programs, ["2-pending"]);
}
