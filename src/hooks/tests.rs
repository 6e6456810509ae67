use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use super::*;
use crate::model::HookOutcome;
use tempfile::TempDir;

mod rules;

/// A directory of hooks, and a place where they leave their marks.
struct Shelf {
    dir: TempDir,
}

impl Shelf {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hooks")).unwrap();
        Self { dir }
    }

    /// A shell script; `$OUT` is where it may leave files.
    fn put(&self, name: &str, script: &str) {
        let path = self.dir.path().join("hooks").join(name);
        fs::write(&path, format!("#!/bin/sh\nOUT={}\n{script}\n", self.dir.path().display())).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    /// Hooks with these lines of `[hooks]`.
    fn hooks(&self, lines: &str) -> Hooks {
        let text = format!(
            "[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[hooks]\ndirectory = {:?}\n{lines}\n",
            self.dir.path().join("hooks")
        );
        Hooks::new(config::parse(&text).unwrap().hooks).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    fn take(&self, name: &str) -> String {
        let text = self.read(name);
        let _ = fs::remove_file(self.dir.path().join(name));
        text
    }
}

/// A script that notes each of its calls.
const NOTE: &str = "echo \"${0##*/} $2\" >> $OUT/calls";

fn event() -> Event {
    Event { sync: None, snapshot_id: uuid::Uuid::new_v4().to_string(), ..event::example() }
}

/// What is written down before the event.
fn debt(hooks: &Hooks, event: &Event) -> PendingPostHooks {
    hooks.debt(event.clone()).unwrap()
}

async fn begin(hooks: &Hooks, event: &Event) -> Begun {
    let nothing: Refresh = Arc::new(|| ());
    hooks.before(&debt(hooks, event), &nothing).await
}

/// The calls of the second half.
async fn after(hooks: &Hooks, event: &Event, begun: &Begun, done: bool) -> Vec<HookRun> {
    let mut runs = hooks.after(&debt(hooks, event), begun.clone(), done).await.runs;
    runs.retain(|run| run.stage == HookStage::Post);
    runs
}

async fn after_crash(hooks: &Hooks, event: &Event) -> Vec<HookRun> {
    hooks.again(&debt(hooks, event)).await.runs
}

fn told(runs: &[HookRun]) -> Vec<String> {
    runs.iter().map(|run| format!("{} {} {}", run.name, run.stage.as_str(), run.outcome.as_str())).collect()
}

#[tokio::test]
async fn a_program_gets_arguments_json_and_a_short_environment() {
    let shelf = Shelf::new();
    shelf.put(
        "10-look",
        "echo \"$@\" > $OUT/arguments.$2; cat > $OUT/json.$2; env | sort > $OUT/env.$2; pwd > $OUT/pwd",
    );
    let (hooks, event) = (shelf.hooks(""), event());
    let begun = begin(&hooks, &event).await;
    let posts = after(&hooks, &event, &begun, true).await;
    assert_eq!(
        (told(&begun.calls.runs), told(&posts)),
        (vec!["10-look pre ok".into()], vec!["10-look post ok".into()])
    );
    assert!(begun.refusal.is_none() && !begun.quiesced && begun.since.is_some());
    assert_eq!(shelf.read("arguments.pre"), "snapshot-create pre\n");
    assert_eq!(shelf.read("arguments.post"), "snapshot-create post\n");
    assert_eq!(shelf.read("json.pre").as_bytes(), event.message(HookStage::Pre, None));
    assert_eq!(shelf.read("json.post").as_bytes(), event.message(HookStage::Post, Some(true)));
    assert_eq!(shelf.read("pwd"), "/\n");
    let environment = shelf.read("env.pre");
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
    let shelf = Shelf::new();
    for name in ["b", "10", "9", "B"] {
        shelf.put(name, NOTE);
    }
    let (hooks, event) = (shelf.hooks(""), event());
    let begun = begin(&hooks, &event).await;
    after(&hooks, &event, &begun, true).await;
    assert_eq!(shelf.read("calls"), "10 pre\n9 pre\nB pre\nb pre\nb post\nB post\n9 post\n10 post\n");
}

#[tokio::test]
async fn what_a_failure_stops_and_what_is_called_after_it() {
    // Lines of the config; what is called after the second of three has failed; what after a good one.
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
        let shelf = Shelf::new();
        shelf.put("1-quiesces", "echo quiesced");
        shelf.put("2-fails", "[ $2 = post ] || exit 3");
        shelf.put("3-plain", "");
        let (hooks, event) = (shelf.hooks(lines), event());
        let begun = begin(&hooks, &event).await;
        assert!(begun.quiesced);
        assert_eq!(begun.refusal.as_ref().map(|run| run.name.as_str()), refused.then_some("2-fails"), "{lines}");
        assert_eq!(begun.calls.runs[1].detail, "exit status: 3");
        assert_eq!(begun.calls.runs.len(), if refused { 2 } else { 3 });
        assert_eq!(told(&after(&hooks, &event, &begun, false).await), after_failure, "{lines}");
        if !refused {
            let all = ["3-plain post ok", "2-fails post ok", "1-quiesces post ok"];
            assert_eq!(told(&after(&hooks, &event, &begun, true).await), all, "{lines}");
        }
        // Nobody knows how far it came.
        assert_eq!(after_crash(&hooks, &event).await.len(), 3);
    }
}

#[tokio::test]
async fn a_program_that_ignores_its_end_is_killed_with_all_it_has_started() {
    let shelf = Shelf::new();
    shelf.put(
        "1-stubborn",
        "trap '' TERM\nsh -c 'trap \"\" TERM; sleep 600' &\nsleep 600 &\necho $$ > $OUT/pid\nwait; wait",
    );
    shelf.put("2-never", NOTE);
    let (hooks, event) = (shelf.hooks("timeout = \"1s\"\non_failure = \"continue\""), event());
    let begun = begin(&hooks, &event).await;
    assert_eq!(told(&begun.calls.runs), ["1-stubborn pre timeout", "2-never pre skipped"]);
    assert_eq!(begun.calls.runs[1].detail, "no time was left for it");
    assert_eq!(begun.calls.runs[0].detail, "took too long, and was killed");
    let pid = shelf.read("pid").trim().parse().unwrap();
    let group = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), None);
    // Killed ones are collected by init, which may not have come round to it.
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
        assert!(Instant::now() < end, "something of its group lives on");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(shelf.read("calls"), "");
    // Each post has all its time: what hangs keeps nothing frozen that another thaws.
    shelf.put("1-stubborn", "sleep 600");
    let after = after_crash(&hooks, &event).await;
    assert_eq!(told(&after), ["2-never post ok", "1-stubborn post timeout"]);
}

#[tokio::test]
async fn whoever_reads_or_says_too_much_or_too_little_holds_up_nobody() {
    let shelf = Shelf::new();
    shelf.put("1-never-reads", "exec <&-; sleep 0.1");
    shelf.put("2-reads-a-part", "head -c 1 > /dev/null");
    shelf.put("3-prints-100-MB", "head -c 100000000 /dev/zero; echo; echo quiesced; head -c 100000000 /dev/zero >&2");
    shelf.put("4-leaves-something", "sleep 600 & echo $! > $OUT/left");
    let hooks = shelf.hooks("");
    let mut event = event();
    // More than a pipe holds.
    event.disks = vec![event.disks[0].clone(); 5000];
    assert!(event.message(HookStage::Pre, None).len() > 500_000);
    let begun = begin(&hooks, &event).await;
    let names = ["1-never-reads", "2-reads-a-part", "3-prints-100-MB", "4-leaves-something"];
    assert_eq!(told(&begun.calls.runs), names.map(|name| format!("{name} pre ok")));
    assert!(begun.quiesced, "a word at the end of much");
    leftover_processes::end_on_a_thread(leftover_processes::Which::Snapshot(event.snapshot_id.clone())).await;
    let left = shelf.read("left").trim().to_owned();
    assert!(!fs::read_to_string(format!("/proc/{left}/environ")).unwrap_or_default().contains(&event.snapshot_id));
}

#[tokio::test]
async fn what_cannot_be_started_is_told_with_its_reason() {
    let shelf = Shelf::new();
    shelf.put("1-no-interpreter", "");
    let path = shelf.dir.path().join("hooks");
    fs::write(path.join("1-no-interpreter"), "#!/nonexistent/sh\n").unwrap();
    shelf.put("2-no-program", "");
    fs::write(path.join("2-no-program"), [0; 100]).unwrap();
    shelf.put("3-not-executable", NOTE);
    fs::set_permissions(path.join("3-not-executable"), Permissions::from_mode(0o644)).unwrap();
    shelf.put("4-anybodys", NOTE);
    fs::set_permissions(path.join("4-anybodys"), Permissions::from_mode(0o777)).unwrap();
    let hooks = shelf.hooks("on_failure = \"continue\"");
    let begun = begin(&hooks, &event()).await;
    let runs = &begun.calls.runs;
    let outcomes = [
        "1-no-interpreter pre failed",
        "2-no-program pre failed",
        "3-not-executable pre skipped",
        "4-anybodys pre skipped",
    ];
    assert_eq!(told(runs), outcomes);
    for (run, reason) in runs.iter().zip(["interpreter", "no program", "chmod +x", "chmod go-w"]) {
        assert!(run.detail.contains(reason), "{run:?}");
    }
    // The same for all of them: where the directory is anybody's, and where there is none.
    shelf.put("5-good", NOTE);
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let begun = begin(&shelf.hooks(""), &event()).await;
    assert_eq!((told(&begun.calls.runs), begun.refusal), (vec![format!("{} pre skipped", path.display())], None));
    fs::remove_dir_all(&path).unwrap();
    let begun = begin(&shelf.hooks(""), &event()).await;
    assert_eq!(told(&begun.calls.runs), [format!("{} pre failed", path.display())]);
    assert!(begun.refusal.is_some_and(|run| run.detail.contains("No such file")));
    assert_eq!(shelf.read("calls"), "");
}

#[tokio::test]
async fn a_service_that_stops_waits_for_no_pre_hook() {
    let shelf = Shelf::new();
    shelf.put("1-slow", "[ $2 = post ] || sleep 600");
    let (hooks, event) = (shelf.hooks(""), event());
    let (begun, ()) = tokio::join!(begin(&hooks, &event), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        hooks.cancel_pre_hooks();
    });
    assert_eq!(told(&begun.calls.runs), ["1-slow pre failed"]);
    assert!(begun.refusal.is_some());
    assert_eq!(told(&after_crash(&hooks, &event).await), ["1-slow post ok"]);
}

#[tokio::test]
async fn a_hook_that_is_ended_freezes_nothing_later_in_a_group_of_its_own() {
    let shelf = Shelf::new();
    // timeout(1) makes a process group of its own, and so does setsid(1).
    let later = "trap \"\" TERM; sleep 8; touch $OUT/frozen";
    shelf.put(
        "1-freeze",
        &format!("export OUT; [ $2 = post ] && exit\nsetsid sh -c '{later}' & timeout 600 sh -c '{later}'"),
    );
    let (hooks, event) = (shelf.hooks("timeout = \"2s\"\npost_on_failure = true"), event());
    let begun = begin(&hooks, &event).await;
    assert_eq!(told(&begun.calls.runs), ["1-freeze pre timeout"]);
    assert_eq!(told(&after(&hooks, &event, &begun, false).await), ["1-freeze post ok"]);
    tokio::time::sleep(Duration::from_secs(9)).await;
    assert!(!shelf.dir.path().join("frozen").exists(), "it was frozen after its thaw");
}

#[tokio::test]
async fn a_post_that_cannot_be_called_or_fails_stays_owed() {
    let shelf = Shelf::new();
    let names = ["1-goes", "2-fails", "3-vanishes", "4-is-opened", "5-good"];
    for name in names {
        shelf.put(name, NOTE);
    }
    shelf.put("2-fails", "[ $2 = pre ] || [ -e $OUT/mended ]");
    let (path, event) = (shelf.dir.path().join("hooks"), event());
    let hooks = shelf.hooks("");
    let written = debt(&hooks, &event);
    let begun = begin(&hooks, &event).await;
    assert_eq!(begun.calls.runs.len(), names.len());
    fs::remove_file(path.join("3-vanishes")).unwrap();
    fs::set_permissions(path.join("4-is-opened"), Permissions::from_mode(0o777)).unwrap();
    // One that was never begun is not called.
    shelf.put("6-new", NOTE);
    let ended = hooks.after(&written, begun.clone(), true).await;
    let posts = [
        "5-good post ok",
        "4-is-opened post failed",
        "3-vanishes post failed",
        "2-fails post failed",
        "1-goes post ok",
    ];
    assert_eq!(told(&ended.runs[names.len()..]), posts);
    let left = ended.left.unwrap();
    assert_eq!(
        (&left.programs[..], left.server),
        (&["2-fails".into(), "3-vanishes".into(), "4-is-opened".into()][..], false)
    );

    // Called again, they are mended one after the other.
    let owing = |owed: &PendingHooks| PendingPostHooks { owed: Some(owed.clone()), attempts: 1, ..written.clone() };
    fs::set_permissions(path.join("4-is-opened"), Permissions::from_mode(0o755)).unwrap();
    fs::write(shelf.dir.path().join("mended"), "").unwrap();
    let ended = hooks.again(&owing(&left)).await;
    assert_eq!(told(&ended.runs), ["4-is-opened post ok", "3-vanishes post failed", "2-fails post ok"]);
    let left = ended.left.unwrap();
    let of_nothing = Hooks::new(config::parse("[jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n").unwrap().hooks);
    let ended = of_nothing.unwrap().again(&owing(&left)).await;
    assert!(ended.runs[0].detail.contains("hooks.directory is not set any more"), "{:?}", ended.runs);
    assert_eq!(ended.left.as_ref(), Some(&left));
    shelf.put("3-vanishes", NOTE);
    assert!(hooks.again(&owing(&left)).await.left.unwrap().is_nothing());

    // The whole directory.
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let ended = hooks.after(&written, begun.clone(), true).await;
    assert_eq!((ended.runs.len(), ended.left.unwrap().programs.len()), (2 * names.len(), names.len()));
    // After a crash, what was there when it was written down is owed, and nothing else.
    assert_eq!(hooks.again(&written).await.left, written.owed);
    // What cannot be told stays owed as that.
    assert_eq!(hooks.again(&PendingPostHooks { owed: None, ..written.clone() }).await.left, None);
    fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
    assert_eq!(told(&hooks.again(&written).await.runs).len(), names.len());
    assert_eq!(told(&hooks.again(&PendingPostHooks { owed: None, ..written }).await.runs).len(), names.len() + 1);
}

#[tokio::test]
async fn what_an_earlier_try_owes_is_called_with_this_one() {
    let shelf = Shelf::new();
    shelf.put("1-refuses", "[ $2 = post ]");
    shelf.put("2-owes", NOTE);
    let (hooks, event) = (shelf.hooks(""), event());
    let nothing: Refresh = Arc::new(|| ());
    let debt = PendingPostHooks { earlier: vec!["2-owes".into()], ..debt(&hooks, &event) };
    let begun = hooks.before(&debt, &nothing).await;
    assert_eq!(told(&begun.calls.runs), ["1-refuses pre failed"]);
    assert_eq!(told(&after(&hooks, &event, &begun, false).await), ["2-owes post ok", "1-refuses post skipped"]);
    // Where it fails once more, it is owed once more.
    fs::remove_file(shelf.dir.path().join("hooks/2-owes")).unwrap();
    assert_eq!(hooks.after(&debt, begun, false).await.left.unwrap().programs, ["2-owes"]);
}
