//! The order of post hooks, leftover processes, and how a failed post hook affects `quiesced`.

use super::*;

/// Leaves a process without open streams, and records its pid.
const LEAVE: &str = "sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT";

impl HookDir {
    /// Whether the process runs whose pid a hook has recorded.
    fn runs(&self, name: &str) -> bool {
        let pid = self.read(name).trim().to_owned();
        assert!(!pid.is_empty(), "no hook has recorded {name}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    async fn ends(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.runs(name) {
            assert!(Instant::now() < end, "{name} is still alive");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn post_order_sets_the_order_of_post_hooks() {
    let dir = HookDir::new();
    for name in ["10", "20.sh", "30"] {
        dir.put(name, &format!("{NOTE}; [ $2 = pre ] || [ -e $OUT/repaired ]"));
    }
    for (lines, posts) in
        [("", "30 post\n20.sh post\n10 post\n"), ("post_order = \"same\"", "10 post\n20.sh post\n30 post\n")]
    {
        let (hooks, event) = (dir.hooks(lines), event());
        let written = pending(&hooks, &event);
        let pre = call_pre(&hooks, &event).await;
        let left = hooks.call_post(&written, pre, true).await.failed.unwrap();
        assert_eq!(dir.take("calls"), format!("10 pre\n20.sh pre\n30 pre\n{posts}"));
        // The order is the same after a failure and after a crash.
        hooks.call_pending(&PendingPostHooks { hooks: Some(left), attempts: 1, ..written.clone() }).await;
        assert_eq!(dir.take("calls"), posts);
        hooks.call_pending(&written).await;
        assert_eq!(dir.take("calls"), posts);
        hooks.call_pending(&PendingPostHooks { hooks: None, ..written }).await;
        assert_eq!(dir.take("calls"), posts);
    }
}

#[tokio::test]
async fn killing_a_hook_spares_the_processes_that_another_left() {
    let dir = HookDir::new();
    dir.put("10-agent", &format!("[ $2 = post ] && exit; {LEAVE}/agent"));
    dir.put("20-hangs", &format!("[ $2 = post ] && exit; {LEAVE}/of-hanging; sleep 600"));
    dir.put("30-fails", &format!("[ $2 = pre ] && exit; [ -e $OUT/repaired ] && exit; {LEAVE}/of-failing; exit 1"));
    let hooks = dir.hooks("timeout = \"2s\"\non_failure = \"continue\"");
    let event = event();
    let written = pending(&hooks, &event);
    let nothing: Refresh = Arc::new(|| ());
    let pre = hooks.call_pre(&written, &nothing, &hooks.cancellation()).await;
    assert_eq!(summary(&pre.calls.runs)[..2], ["10-agent pre ok", "20-hangs pre timeout"]);
    dir.ends("of-hanging").await;
    assert!(dir.runs("agent"), "the timeout of one hook killed a process of another");
    // There was no time for the third one. With enough time, its post hook fails.
    let hooks = dir.hooks("on_failure = \"continue\"\npost_on_failure = true");
    let only_fails = PendingHooks { programs: vec!["30-fails".into()], server: false };
    let failing = PendingPostHooks {
        hooks: Some(only_fails),
        attempts: 1,
        finished: pre.calls.finished.clone(),
        ..written.clone()
    };
    let ended = hooks.call_pending(&failing).await;
    assert_eq!(summary(&ended.runs), ["30-fails post failed"]);
    assert!(dir.runs("of-failing") && dir.runs("agent"));
    let succeeded: Vec<bool> = ended.finished.iter().map(|call| call.succeeded).collect();
    assert_eq!(succeeded, [true, false]);
    fs::write(dir.path().join("repaired"), "").unwrap();
    let ended =
        hooks.call_pending(&PendingPostHooks { hooks: ended.failed, finished: ended.finished, ..failing }).await;
    assert!(ended.failed.unwrap().is_empty());
    dir.ends("of-failing").await;
    assert!(dir.runs("agent"), "the retry of one hook killed a process of another");
    let _ = leftover_processes::kill_on_thread(leftover_processes::Selection::Snapshot(event.snapshot_id)).await;
    dir.ends("agent").await;
}

#[tokio::test]
async fn after_a_crash_only_processes_of_the_last_call_are_killed() {
    let dir = HookDir::new();
    dir.put("10-agent", &format!("[ $2 = post ] && exit; {LEAVE}/agent"));
    dir.put("20-hangs", &format!("[ $2 = post ] && exit; {LEAVE}/of-hanging; touch $OUT/hangs; sleep 600"));
    let (hooks, event) = (dir.hooks(""), event());
    let written = pending(&hooks, &event);
    let nothing: Refresh = Arc::new(|| ());
    let never = hooks.cancellation();
    // Dropped before it ends, as in a crash.
    tokio::select! {
        _ = hooks.call_pre(&written, &nothing, &never) => panic!("the hook did not hang"),
        () = async {
            while !dir.path().join("hangs").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    assert_eq!(summary(&hooks.call_pending(&written).await.runs), ["20-hangs post ok", "10-agent post ok"]);
    dir.ends("of-hanging").await;
    assert!(dir.runs("agent"));
    // An earlier version stored no ids of calls, and killed all processes of the snapshot.
    hooks.call_pending(&PendingPostHooks { call_prefix: String::new(), ..written }).await;
    dir.ends("agent").await;
}

#[tokio::test]
async fn a_freeze_whose_thaw_failed_does_not_count_as_quiesced() {
    // The hooks; whether the snapshot counts as quiesced; the post hook because of which it does not.
    for (hooks, quiesced, reason) in [
        (&[("1-a", "echo quiesced")][..], true, None),
        (&[("1-a", "echo quiesced; [ $2 = pre ]")], false, Some("1-a")),
        (&[("1-a", "echo quiesced; [ $2 = pre ]"), ("2-b", "echo quiesced")], false, Some("1-a")),
        (&[("1-a", "echo quiesced"), ("2-b", "echo quiesced; [ $2 = pre ]")], false, Some("2-b")),
        (&[("1-a", "echo quiesced; [ $2 = pre ] || sleep 600")], false, Some("1-a")),
        (&[("1-a", "echo quiesced; rm \"$0\"")], false, Some("1-a")),
        // The second one froze nothing.
        (&[("1-a", "echo quiesced"), ("2-b", "[ $2 = pre ]")], true, None),
        (&[("1-a", "[ $2 = pre ]")], false, None),
    ] {
        let dir = HookDir::new();
        for (name, script) in hooks {
            dir.put(name, script);
        }
        let (of, event) = (dir.hooks("timeout = \"2s\""), event());
        let pre = call_pre(&of, &event).await;
        assert_eq!(pre.quiesced, quiesced || reason.is_some(), "{hooks:?}");
        let ended = of.call_post(&pending(&of, &event), pre.clone(), true).await;
        let disbelieved: Vec<_> = ended.runs.iter().filter(|run| run.denies_quiesced()).collect();
        assert_eq!(ended.quiesced, quiesced, "{hooks:?}: {:?}", ended.runs);
        assert_eq!(disbelieved.iter().map(|run| run.name.as_str()).collect::<Vec<_>>(), Vec::from_iter(reason));
        assert!(disbelieved.iter().all(|run| run.stage == HookStage::Post && run.has_failed()));
        // After a failed operation it does not matter.
        let ended = of.call_post(&pending(&of, &event), pre, false).await;
        assert!(!ended.runs.iter().any(HookRun::denies_quiesced), "{:?}", ended.runs);
    }
}

#[tokio::test]
async fn post_hooks_that_are_not_called_are_named() {
    let dir = HookDir::new();
    dir.put("1-quiesces", "echo quiesced");
    dir.put("2-plain", "");
    dir.put("3-refuses", "[ $2 = post ]");
    let (hooks, event) = (dir.hooks(""), event());
    let pre = call_pre(&hooks, &event).await;
    let ended = hooks.call_post(&pending(&hooks, &event), pre.clone(), false).await;
    assert_eq!(ended.not_called, ["2-plain", "3-refuses"]);
    let skipped: Vec<_> = ended.runs.iter().filter(|run| run.outcome == HookOutcome::Skipped).collect();
    assert!(skipped.len() == 2 && skipped.iter().all(|run| run.detail.contains("not called: post_on_failure")));
    assert!(ended.failed.unwrap().is_empty(), "a hook that is not called is not pending either");
    assert_eq!(hooks.call_post(&pending(&hooks, &event), pre, true).await.not_called, [] as [&str; 0]);
}

#[tokio::test]
async fn after_a_cancellation_no_call_is_made() {
    let dir = HookDir::new();
    dir.put("1-freeze", NOTE);
    let hooks =
        dir.hooks("[hooks.sync]\nsecret = \"hush\"\ninsecure_skip_verify = true\nretries = 10\nretry_delay = \"1ms\"");
    let event = Event { sync: Some(SyncTarget::Url("https://127.0.0.1:1".to_owned())), ..event() };
    // The repository hangs before the second attempt.
    let (cancel, (hung, hangs)) = (hooks.cancellation(), std::sync::mpsc::channel::<()>());
    let (cancelling, hangs) = (cancel.clone(), std::sync::Mutex::new(hangs));
    let refresh: Refresh = Arc::new(move || {
        cancelling.cancel();
        let _ = hangs.lock().unwrap().recv();
    });
    let pre = hooks.call_pre(&pending(&hooks, &event), &refresh, &cancel).await;
    drop(hung);
    let url = "https://127.0.0.1:1 pre failed";
    assert_eq!(summary(&pre.calls.runs), [url, url, "1-freeze pre failed"]);
    for run in &pre.calls.runs[1..] {
        assert!(run.detail.contains("has failed"), "{run:?}");
    }
    assert!(pre.refusal.is_some() && pre.since.is_none() && !pre.server && pre.programs.is_empty());
    assert_eq!(dir.read("calls"), "");
}
