//! What could leave a guest frozen.

use super::*;

#[tokio::test]
async fn removal_that_was_not_written_does_not_erase_the_record_of_a_new_operation() {
    let (dir, scene, key, post_hooks) = scene("echo quiesced").await;
    // The post hooks succeeded, and the disk was full.
    scene.pending.unwritten.put(key, None.into());
    // The next operation of this kind on the same snapshot.
    scene.pending.begin(key, &post_hooks).unwrap();
    let pending = Arc::clone(&scene.pending);
    let (store, expected) = (scene.store.clone(), vec![(key, post_hooks.to_bytes().unwrap())]);
    let work = move || {
        pending.write_unwritten();
        assert_eq!(store.pending_hooks().all().unwrap(), expected, "a crash now would leave the guest frozen");
        Ok(())
    };
    let (outcome, _) = scene.run(key, post_hooks, step(work, None)).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), "pre\npost\n");
}

#[tokio::test]
async fn result_that_no_thread_could_write_is_retried() {
    let (dir, scene, key, post_hooks) = scene("[ -e mended ]").await;
    // As if no thread could be started to write it.
    scene.pending.put_result(key, post_hooks.clone(), post_hooks.hooks.clone(), &[]);
    assert_eq!(attempts(&scene), [0]);
    scene.pending.call_failed(1).await;
    assert_eq!((fs::read_to_string(dir.path().join("calls")).unwrap().as_str(), attempts(&scene)), ("post\n", vec![2]));
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(2).await;
    assert_eq!(attempts(&scene), [] as [u32; 0]);
}

#[tokio::test]
async fn group_that_has_failed_does_not_wait_for_the_hooks_of_other_vms() {
    let script = "[ $2 = post ] && exit; touch begun-$EXPORTER_VM\n\
                  case $EXPORTER_VM in\n\
                  *1) echo quiesced;;\n\
                  *2) until [ -e begun-${EXPORTER_VM%2}1 ] && [ -e begun-${EXPORTER_VM%2}3 ]; do sleep 0.01; done; exit 3;;\n\
                  *3) exec sleep 600;;\n\
                  esac";
    let (dir, scene, _, post_hooks) = scene_with(script, "1m").await;
    let operations = (1..=3).map(|number| {
        let mut post_hooks = post_hooks.clone();
        post_hooks.event.vm.name = format!("0004fb0000060000000000000000000{number}");
        post_hooks.call_prefix = uuid::Uuid::new_v4().to_string();
        let key = PendingHooksKey::of_creation(SnapshotId::from_u128(number));
        scene.pending.begin(key, &post_hooks).unwrap();
        GuardedOperation { hooks: Some((key, post_hooks)), refresh: Arc::new(|| ()), requires_quiesced: false }
    });
    let (outcome, reports) =
        scene.runner.with_hooks(operations.collect(), step(|| panic!("the work was done"), None)).await;
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("00002") && error.contains("exit status: 3"), "{error}");
    let calls: Vec<Vec<_>> = reports
        .iter()
        .map(|report| report.runs.iter().map(|run| (run.stage.as_str(), run.outcome.as_str())).collect())
        .collect();
    assert_eq!(calls[0], [("pre", "ok"), ("post", "ok")]);
    assert_eq!(calls[1], [("pre", "failed"), ("post", "skipped")]);
    // It was cancelled, and did not run until its timeout.
    assert_eq!(calls[2], [("pre", "failed"), ("post", "skipped")]);
    assert!(reports[2].runs[0].detail.contains("this group of VMs has failed"), "{:?}", reports[2].runs);
    assert!(dir.path().join("begun-0004fb00000600000000000000000003").exists());
}

#[tokio::test]
async fn no_guest_is_frozen_after_the_service_has_stopped_waiting_for_guests() {
    let (dir, scene, key, post_hooks) = scene("echo quiesced").await;
    // The operation was planned meanwhile.
    assert_eq!(scene.pending.release_guests().await.unwrap(), 1);
    let (outcome, report) = scene.run(key, post_hooks, step(|| panic!("the work was done"), None)).await;
    assert!(outcome.unwrap_err().to_string().contains("the service is stopping"));
    assert!(report.runs.is_empty() && !dir.path().join("calls").exists());
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}
