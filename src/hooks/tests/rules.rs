//! In which order posts run, what of a hook's processes is ended, and what a failed post makes of `quiesced`.

use super::*;

/// Leaves a process that keeps nothing open, and notes its number.
const LEAVE: &str = "sleep 600 </dev/null >/dev/null 2>&1 & echo $! > $OUT";

impl Shelf {
    /// The process whose number a hook has noted, and whether it runs.
    fn runs(&self, name: &str) -> bool {
        let pid = self.read(name).trim().to_owned();
        assert!(!pid.is_empty(), "no hook has noted {name}");
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z'))
    }

    async fn ends(&self, name: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.runs(name) {
            assert!(Instant::now() < end, "{name} lives on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn posts_run_in_the_order_of_pres_where_the_config_says_so() {
    let shelf = Shelf::new();
    for name in ["10", "20.sh", "30"] {
        shelf.put(name, &format!("{NOTE}; [ $2 = pre ] || [ -e $OUT/mended ]"));
    }
    for (lines, posts) in
        [("", "30 post\n20.sh post\n10 post\n"), ("post_order = \"same\"", "10 post\n20.sh post\n30 post\n")]
    {
        let (hooks, event) = (shelf.hooks(lines), event());
        let written = debt(&hooks, &event);
        let begun = begin(&hooks, &event).await;
        let left = hooks.after(&written, begun, true).await.left.unwrap();
        assert_eq!(shelf.take("calls"), format!("10 pre\n20.sh pre\n30 pre\n{posts}"));
        // So do those that are called again, after a failure and after a crash.
        hooks.again(&PendingPostHooks { owed: Some(left), attempts: 1, ..written.clone() }).await;
        assert_eq!(shelf.take("calls"), posts);
        hooks.again(&written).await;
        assert_eq!(shelf.take("calls"), posts);
        hooks.again(&PendingPostHooks { owed: None, ..written }).await;
        assert_eq!(shelf.take("calls"), posts);
    }
}

#[tokio::test]
async fn ending_a_hook_leaves_alone_what_another_has_left_running() {
    let shelf = Shelf::new();
    shelf.put("10-agent", &format!("[ $2 = post ] && exit; {LEAVE}/agent"));
    shelf.put("20-hangs", &format!("[ $2 = post ] && exit; {LEAVE}/of-hanging; sleep 600"));
    shelf.put("30-fails", &format!("[ $2 = pre ] && exit; [ -e $OUT/mended ] && exit; {LEAVE}/of-failing; exit 1"));
    let hooks = shelf.hooks("timeout = \"2s\"\non_failure = \"continue\"");
    let event = event();
    let written = debt(&hooks, &event);
    let nothing: Refresh = Arc::new(|| ());
    let begun = hooks.before(&written, &nothing).await;
    assert_eq!(told(&begun.calls.runs)[..2], ["10-agent pre ok", "20-hangs pre timeout"]);
    shelf.ends("of-hanging").await;
    assert!(shelf.runs("agent"), "the timeout of one hook has ended what another had left");
    // No time was left for the third one; with time, its post fails.
    let hooks = shelf.hooks("on_failure = \"continue\"\npost_on_failure = true");
    let owed = PendingHooks { programs: vec!["30-fails".into()], server: false };
    let failing = PendingPostHooks { owed: Some(owed), attempts: 1, past: begun.calls.past.clone(), ..written.clone() };
    let ended = hooks.again(&failing).await;
    assert_eq!(told(&ended.runs), ["30-fails post failed"]);
    assert!(shelf.runs("of-failing") && shelf.runs("agent"));
    let well: Vec<bool> = ended.past.iter().map(|call| call.well).collect();
    assert_eq!(well, [true, false, false]);
    fs::write(shelf.dir.path().join("mended"), "").unwrap();
    let ended = hooks.again(&PendingPostHooks { owed: ended.left, past: ended.past, ..failing }).await;
    assert!(ended.left.unwrap().is_nothing());
    shelf.ends("of-failing").await;
    assert!(shelf.runs("agent"), "the retry of one hook has ended what another had left");
    leftover_processes::end_on_a_thread(leftover_processes::Which::Snapshot(event.snapshot_id)).await;
    shelf.ends("agent").await;
}

#[tokio::test]
async fn after_a_crash_only_the_last_call_counts_as_under_way() {
    let shelf = Shelf::new();
    shelf.put("10-agent", &format!("[ $2 = post ] && exit; {LEAVE}/agent"));
    shelf.put("20-hangs", &format!("[ $2 = post ] && exit; {LEAVE}/of-hanging; touch $OUT/hangs; sleep 600"));
    let (hooks, event) = (shelf.hooks(""), event());
    let written = debt(&hooks, &event);
    let nothing: Refresh = Arc::new(|| ());
    // Dropped in the middle, as by a crash.
    tokio::select! {
        _ = hooks.before(&written, &nothing) => panic!("it does not hang"),
        () = async {
            while !shelf.dir.path().join("hangs").exists() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        } => {}
    }
    assert_eq!(told(&hooks.again(&written).await.runs), ["20-hangs post ok", "10-agent post ok"]);
    shelf.ends("of-hanging").await;
    assert!(shelf.runs("agent"));
    // What an earlier version has written down names no calls: then all of it is ended, as that version did.
    hooks.again(&PendingPostHooks { id: String::new(), ..written }).await;
    shelf.ends("agent").await;
}

#[tokio::test]
async fn a_freeze_whose_thaw_failed_does_not_count_as_quiesced() {
    // The hooks, whether the snapshot counts as quiesced, and the post that is the reason why not.
    for (hooks, quiesced, reason) in [
        (&[("1-a", "echo quiesced")][..], true, None),
        (&[("1-a", "echo quiesced; [ $2 = pre ]")], false, Some("1-a")),
        (&[("1-a", "echo quiesced; [ $2 = pre ]"), ("2-b", "echo quiesced")], false, Some("1-a")),
        (&[("1-a", "echo quiesced"), ("2-b", "echo quiesced; [ $2 = pre ]")], false, Some("2-b")),
        (&[("1-a", "echo quiesced; [ $2 = pre ] || sleep 600")], false, Some("1-a")),
        (&[("1-a", "echo quiesced; rm \"$0\"")], false, Some("1-a")),
        // The other one has frozen nothing.
        (&[("1-a", "echo quiesced"), ("2-b", "[ $2 = pre ]")], true, None),
        (&[("1-a", "[ $2 = pre ]")], false, None),
    ] {
        let shelf = Shelf::new();
        for (name, script) in hooks {
            shelf.put(name, script);
        }
        let (of, event) = (shelf.hooks("timeout = \"2s\""), event());
        let begun = begin(&of, &event).await;
        assert_eq!(begun.quiesced, quiesced || reason.is_some(), "{hooks:?}");
        let ended = of.after(&debt(&of, &event), begun.clone(), true).await;
        let disbelieved: Vec<_> = ended.runs.iter().filter(|run| run.denies_quiesced()).collect();
        assert_eq!(ended.quiesced, quiesced, "{hooks:?}: {:?}", ended.runs);
        assert_eq!(disbelieved.iter().map(|run| run.name.as_str()).collect::<Vec<_>>(), Vec::from_iter(reason));
        assert!(disbelieved.iter().all(|run| run.stage == HookStage::Post && run.has_failed()));
        // Nobody asks that of an operation that failed.
        let ended = of.after(&debt(&of, &event), begun, false).await;
        assert!(!ended.runs.iter().any(HookRun::denies_quiesced), "{:?}", ended.runs);
    }
}

#[tokio::test]
async fn posts_that_are_not_called_are_named() {
    let shelf = Shelf::new();
    shelf.put("1-quiesces", "echo quiesced");
    shelf.put("2-plain", "");
    shelf.put("3-refuses", "[ $2 = post ]");
    let (hooks, event) = (shelf.hooks(""), event());
    let begun = begin(&hooks, &event).await;
    let ended = hooks.after(&debt(&hooks, &event), begun.clone(), false).await;
    assert_eq!(ended.not_called, ["2-plain", "3-refuses"]);
    let skipped: Vec<_> = ended.runs.iter().filter(|run| run.outcome == HookOutcome::Skipped).collect();
    assert!(skipped.len() == 2 && skipped.iter().all(|run| run.detail.contains("not called: post_on_failure")));
    assert!(ended.left.unwrap().is_nothing(), "what is not called is not owed either");
    assert_eq!(hooks.after(&debt(&hooks, &event), begun, true).await.not_called, [] as [&str; 0]);
}
