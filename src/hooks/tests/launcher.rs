//! The hook launcher: calls have the same results as those in the process.

use super::*;
use crate::hooks::launcher::serve;
use crate::sys::passing;

/// A launcher for `directory`, on a thread of this process.
fn start(directory: Option<std::path::PathBuf>) -> Launcher {
    let (ours, theirs) = passing::pair().unwrap();
    std::thread::spawn(move || serve(theirs, directory).unwrap());
    Launcher::Process(Arc::new(ours))
}

fn launched(dir: &HookDir, lines: &str) -> Hooks {
    dir.hooks(lines).with_launcher(start(Some(dir.path().join("hooks"))))
}

#[tokio::test]
async fn a_launched_program_is_called_as_one_of_the_process() {
    let dir = HookDir::new();
    dir.put("10-good", "echo \"$2\" >>$OUT/calls; cat >$OUT/json; echo quiesced; echo oops >&2");
    dir.put("20-bad", "exit 3");
    let (hooks, event) = (launched(&dir, "on_failure = \"continue\""), event());
    let pre = call_pre(&hooks, &event).await;
    assert_eq!(summary(&pre.calls.runs), ["10-good pre ok", "20-bad pre failed"]);
    assert_eq!(pre.calls.runs[1].detail, "exit status: 3");
    assert!(pre.quiesced && pre.programs[0].quiesced && !pre.programs[1].quiesced);
    assert_eq!(dir.read("json").as_bytes(), event.message(CallReason::Pre));
    let posts = call_post(&hooks, &event, &pre, true).await;
    assert_eq!(summary(&posts), ["20-bad post failed", "10-good post ok"]);
    assert_eq!(dir.read("calls"), "pre\npost\n");
}

#[tokio::test]
async fn a_launched_program_ends_at_its_deadline() {
    let dir = HookDir::new();
    dir.put("10-hangs", "trap '' TERM; echo $$ >$OUT/pid; sleep 600 & wait; wait");
    let hooks = launched(&dir, "timeout = \"1s\"");
    let pre = call_pre(&hooks, &event()).await;
    assert_eq!(pre.calls.runs[0].outcome, HookOutcome::Timeout);
    assert!(pre.calls.runs[0].detail.contains("was killed"), "{:?}", pre.calls.runs);
    assert!(!Path::new(&format!("/proc/{}", dir.read("pid").trim())).exists());
}

#[tokio::test]
async fn a_launched_pre_hook_is_cancelled() {
    let dir = HookDir::new();
    dir.put("10-slow", "echo $$ >$OUT/pid; exec sleep 600");
    let hooks = launched(&dir, "");
    let event = event();
    let stop = async {
        while dir.read("pid").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        hooks.cancel_pre_hooks();
    };
    let (pre, ()) = tokio::join!(call_pre(&hooks, &event), stop);
    assert!(pre.calls.runs[0].detail.contains("the service is stopping"), "{:?}", pre.calls.runs);
}

#[tokio::test]
async fn the_launcher_runs_only_programs_of_its_directory() {
    let (dir, other) = (HookDir::new(), HookDir::new());
    dir.put("10-both", "touch $OUT/called");
    other.put("10-both", "touch $OUT/called");
    dir.put("20-one", "touch $OUT/called");
    let hooks = dir.hooks("").with_launcher(start(Some(other.path().join("hooks"))));
    let pre = call_pre(&hooks, &event()).await;
    assert_eq!(summary(&pre.calls.runs), ["10-both pre ok", "20-one pre failed"]);
    assert!(!dir.path().join("called").exists() && other.path().join("called").exists());
    // Without a directory it runs none.
    let hooks = dir.hooks("").with_launcher(start(None));
    let pre = call_pre(&hooks, &event()).await;
    assert!(pre.calls.runs[0].detail.contains("hooks.directory is not set"), "{:?}", pre.calls.runs);
}

#[tokio::test]
async fn the_end_of_the_launcher_is_noticed() {
    let dir = HookDir::new();
    dir.put("10-hook", "touch $OUT/called");
    let (ours, theirs) = passing::pair().unwrap();
    let launcher = Launcher::Process(Arc::new(ours));
    drop(theirs);
    launcher.ended().await;
    let hooks = dir.hooks("").with_launcher(launcher);
    let pre = call_pre(&hooks, &event()).await;
    assert!(pre.refusal.as_ref().is_some_and(|run| run.detail.contains("restart the service")));
    // It is unknown whether the program ran. The snapshot is not quiesced, and the post hook has to be called.
    assert!(!pre.quiesced && pre.programs[0].quiesced);
    let posts = hooks.call_post(&pending(&hooks, &event()), pre, false).await;
    assert_eq!(posts.failed.unwrap().programs, ["10-hook"]);
    assert!(!dir.path().join("called").exists());
}

#[tokio::test]
async fn a_pre_hook_is_not_started_after_the_service_has_given_it_up() {
    let dir = HookDir::new();
    dir.put("10-hook", "echo \"$2\" >>$OUT/calls");
    // A launcher that is stopped, and a service that is killed meanwhile.
    let (ours, theirs) = passing::pair().unwrap();
    let hooks = dir.hooks("").with_launcher(Launcher::Process(Arc::new(ours)));
    let event = event();
    assert!(tokio::time::timeout(Duration::from_millis(500), call_pre(&hooks, &event)).await.is_err());
    let directory = dir.path().join("hooks");
    std::thread::spawn(move || serve(theirs, Some(directory)).unwrap());
    hooks.call_pending(&pending(&hooks, &event)).await;
    assert_eq!(dir.read("calls"), "post\n");
}

#[tokio::test]
async fn a_cancelled_or_late_program_is_not_started() {
    let dir = HookDir::new();
    dir.put("10-hook", NOTE);
    let (ours, theirs) = passing::pair().unwrap();
    let launcher = Launcher::Process(Arc::new(ours));
    let cancelled = dir.hooks("timeout = \"1m\"").with_launcher(launcher.clone());
    let late = dir.hooks("timeout = \"1s\"").with_launcher(launcher);
    let (event, cancel, directory) = (event(), cancelled.cancellation(), dir.path().join("hooks"));
    let (nothing, pending): (Refresh, _) = (Arc::new(|| ()), pending(&cancelled, &event));
    // The launcher is stopped until one call was cancelled and the time of the other one is over.
    let continue_launcher = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cancel.cancel();
        tokio::time::sleep(Duration::from_secs(1)).await;
        std::thread::spawn(move || serve(theirs, Some(directory)).unwrap());
    };
    let calls = (cancelled.call_pre(&pending, &nothing, &cancel), call_pre(&late, &event));
    let (cancelled, late, ()) = tokio::join!(calls.0, calls.1, continue_launcher);
    for (pre, reason) in [(&cancelled, "was cancelled before"), (&late, "its time was over before")] {
        assert_eq!(summary(&pre.calls.runs), ["10-hook pre failed"]);
        assert!(pre.calls.runs[0].detail.contains(reason), "{:?}", pre.calls.runs);
    }
    assert_eq!(dir.read("calls"), "");
}
