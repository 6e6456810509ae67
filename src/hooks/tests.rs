use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;
use tempfile::TempDir;

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
        Hooks::new(config::parse(&text).unwrap().hooks, |_| unreachable!("no server is asked")).unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

/// A script that notes each of its calls.
const NOTE: &str = "echo \"${0##*/} $2\" >> $OUT/calls";

fn event() -> Event {
    Event { sync: None, snapshot_id: uuid::Uuid::new_v4().to_string(), ..event::example() }
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
    let begun = hooks.before(&event).await;
    let after = hooks.after(&event, &begun, true).await;
    assert_eq!((told(&begun.runs), told(&after)), (vec!["10-look pre ok".into()], vec!["10-look post ok".into()]));
    assert!(begun.refusal.is_none() && !begun.quiesced && begun.since.is_some());
    assert_eq!(shelf.read("arguments.pre"), "snapshot-create pre\n");
    assert_eq!(shelf.read("arguments.post"), "snapshot-create post\n");
    assert_eq!(shelf.read("json.pre").as_bytes(), event.message(HookStage::Pre, None));
    assert_eq!(shelf.read("json.post").as_bytes(), event.message(HookStage::Post, Some(true)));
    assert_eq!(shelf.read("pwd"), "/\n");
    let environment = shelf.read("env.pre");
    let names: Vec<_> = environment.lines().map(|line| line.split('=').next().unwrap()).collect();
    // The last is the shell's own.
    let expected = ["EXPORTER_OPERATION", "EXPORTER_SNAPSHOT", "EXPORTER_STAGE", "EXPORTER_VM", "LANG", "PATH", "PWD"];
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
    let begun = hooks.before(&event).await;
    hooks.after(&event, &begun, true).await;
    assert_eq!(shelf.read("calls"), "10 pre\n9 pre\nB pre\nb pre\n10 post\n9 post\nB post\nb post\n");
}

#[tokio::test]
async fn what_a_failure_stops_and_what_is_called_after_it() {
    // Lines of the config; what is called after the second of three has failed; what after a good one.
    for (lines, refused, after_failure) in [
        ("", true, &["1-quiesces post ok"][..]),
        ("post_on_failure = true", true, &["1-quiesces post ok", "2-fails post ok"]),
        ("on_failure = \"continue\"", false, &["1-quiesces post ok"]),
        (
            "on_failure = \"continue\"\npost_on_failure = true",
            false,
            &["1-quiesces post ok", "2-fails post ok", "3-plain post ok"],
        ),
    ] {
        let shelf = Shelf::new();
        shelf.put("1-quiesces", "echo quiesced");
        shelf.put("2-fails", "[ $2 = post ] || exit 3");
        shelf.put("3-plain", "");
        let (hooks, event) = (shelf.hooks(lines), event());
        let begun = hooks.before(&event).await;
        assert!(begun.quiesced);
        assert_eq!(begun.refusal.as_ref().map(|run| run.name.as_str()), refused.then_some("2-fails"), "{lines}");
        assert_eq!(begun.runs[1].detail, "exit status: 3");
        assert_eq!(begun.runs.len(), if refused { 2 } else { 3 });
        assert_eq!(told(&hooks.after(&event, &begun, false).await), after_failure, "{lines}");
        if !refused {
            let all = ["1-quiesces post ok", "2-fails post ok", "3-plain post ok"];
            assert_eq!(told(&hooks.after(&event, &begun, true).await), all, "{lines}");
        }
        // Nobody knows how far it came.
        assert_eq!(hooks.after_crash(&event).await.len(), 3);
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
    let begun = hooks.before(&event).await;
    assert_eq!(told(&begun.runs), ["1-stubborn pre timeout", "2-never pre skipped"]);
    assert_eq!(begun.runs[1].detail, "no time was left for it");
    assert_eq!(begun.runs[0].detail, "took too long, and was killed");
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
    let after = hooks.after_crash(&event).await;
    assert_eq!(told(&after), ["1-stubborn post timeout", "2-never post ok"]);
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
    let begun = hooks.before(&event).await;
    let names = ["1-never-reads", "2-reads-a-part", "3-prints-100-MB", "4-leaves-something"];
    assert_eq!(told(&begun.runs), names.map(|name| format!("{name} pre ok")));
    assert!(begun.quiesced, "a word at the end of much");
    orphans::end(&event.snapshot_id);
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
    let runs = hooks.before(&event()).await.runs;
    let outcomes = [
        "1-no-interpreter pre failed",
        "2-no-program pre failed",
        "3-not-executable pre skipped",
        "4-anybodys pre skipped",
    ];
    assert_eq!(told(&runs), outcomes);
    for (run, reason) in runs.iter().zip(["interpreter", "no program", "chmod +x", "chmod go-w"]) {
        assert!(run.detail.contains(reason), "{run:?}");
    }
    // The same for all of them: where the directory is anybody's, and where there is none.
    shelf.put("5-good", NOTE);
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let begun = shelf.hooks("").before(&event()).await;
    assert_eq!((told(&begun.runs), begun.refusal), (vec![format!("{} pre skipped", path.display())], None));
    fs::remove_dir_all(&path).unwrap();
    let begun = shelf.hooks("").before(&event()).await;
    assert_eq!(told(&begun.runs), [format!("{} pre failed", path.display())]);
    assert!(begun.refusal.is_some_and(|run| run.detail.contains("No such file")));
    assert_eq!(shelf.read("calls"), "");
}

#[tokio::test]
async fn a_service_that_stops_waits_for_no_pre_hook() {
    let shelf = Shelf::new();
    shelf.put("1-slow", "[ $2 = post ] || sleep 600");
    let (hooks, event) = (shelf.hooks(""), event());
    let (begun, ()) = tokio::join!(hooks.before(&event), async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        hooks.hurry();
    });
    assert_eq!(told(&begun.runs), ["1-slow pre failed"]);
    assert!(begun.refusal.is_some());
    assert_eq!(told(&hooks.after_crash(&event).await), ["1-slow post ok"]);
}
