//! Changes that the database has not accepted yet.

use super::*;

#[tokio::test]
async fn waiting_writes_of_the_database_delay_no_post_hook() {
    let (dir, scene, first, post_hooks) = scene("").await;
    let failed = PendingPostHooks { attempts: 1, ..post_hooks };
    // Two of the same VM, and a change that the database has not accepted.
    let second = PendingHooksKey::of_creation(SnapshotId::from_u128(2));
    scene.store.pending_hooks().record(first, &failed.to_bytes().unwrap(), &[]).unwrap();
    scene.pending.unwritten.put(second, Some(failed).into());
    let (called, calls) = (Arc::clone(&scene.pending), dir.path().join("calls"));
    let (store, runtime) = (scene.store.clone(), tokio::runtime::Handle::current());
    let round = tokio::task::spawn_blocking(move || {
        store.while_writes_wait(|| {
            let round = runtime.spawn(async move { called.call_failed(1).await });
            while fs::read_to_string(&calls).unwrap_or_default() != "post\npost\n" {
                assert!(!round.is_finished(), "the round ended without the calls");
                std::thread::yield_now();
            }
            round
        })
    });
    round.await.unwrap().await.unwrap();
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    assert!(scene.pending.unwritten.lock().is_empty());
}

#[tokio::test]
async fn unwritten_changes_are_retried_and_override_database() {
    let (dir, scene, id, post_hooks) = scene("[ $2 = pre ] || [ -e mended ]").await;
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
    // As if the database is full: its record says that the operation is still running.
    let failed = PendingPostHooks { attempts: 1, ..post_hooks.clone() };
    scene.pending.unwritten.put(id, Some(failed.clone()).into());
    assert_eq!(scene.pending.entries().unwrap().readable, [(id, failed)]);
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("post\n", vec![2]));
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(2).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("post\npost\n", vec![]));
    // A removal that could not be written: the hooks are not called again.
    scene
        .store
        .pending_hooks()
        .record(id, &PendingPostHooks { attempts: 1, ..post_hooks }.to_bytes().unwrap(), &[])
        .unwrap();
    scene.pending.unwritten.put(id, None.into());
    scene.pending.call_failed(3).await;
    assert_eq!((calls().as_str(), scene.store.pending_hooks().all().unwrap()), ("post\npost\n", vec![]));
    assert!(scene.pending.unwritten.lock().is_empty());
}
