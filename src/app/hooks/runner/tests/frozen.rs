//! What could leave a guest frozen.

use super::*;

#[tokio::test]
async fn removal_that_was_not_written_does_not_erase_the_record_of_a_new_operation() {
    let (dir, scene, key, post_hooks) = scene("echo quiesced").await;
    // The post hooks succeeded, and the disk was full.
    scene.pending.unwritten.lock().insert(key, None);
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
    scene.pending.put_result(key, post_hooks.clone(), post_hooks.hooks.clone());
    assert_eq!(attempts(&scene), [0]);
    scene.pending.call_failed(1).await;
    assert_eq!((fs::read_to_string(dir.path().join("calls")).unwrap().as_str(), attempts(&scene)), ("post\n", vec![2]));
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(2).await;
    assert_eq!(attempts(&scene), [] as [u32; 0]);
}
