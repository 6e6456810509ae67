use super::*;
use crate::app::admission::Admission;
use crate::app::inventory::Repositories;
use crate::config;
use crate::repository::executor::JobKind;
use crate::store::Store;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// What runs hooks, and what it stands on.
struct Scene {
    runner: Arc<HookRunner>,
    pending: Arc<PendingHooks>,
    admission: Admission,
    inventory: Arc<Inventory>,
    store: Store,
}

/// A hook that notes its calls.
async fn scene(script: &str) -> (tempfile::TempDir, Arc<Scene>, PendingHooksKey, PendingPostHooks) {
    scene_with(script, "1s").await
}

/// The same with another `hooks.timeout`.
async fn scene_with(script: &str, timeout: &str) -> (tempfile::TempDir, Arc<Scene>, PendingHooksKey, PendingPostHooks) {
    let dir = tempfile::tempdir().unwrap();
    let (hooks, calls) = (dir.path().join("hooks"), dir.path().join("calls"));
    fs::create_dir(&hooks).unwrap();
    let script = format!("#!/bin/sh\ncd {}\necho $2 >> {}\n{script}\n", dir.path().display(), calls.display());
    fs::write(hooks.join("freeze"), script).unwrap();
    fs::set_permissions(hooks.join("freeze"), Permissions::from_mode(0o755)).unwrap();
    let text = format!(
        "db_file = {:?}\novm_endpoint = \"https://127.0.0.1:1\"\n\
         [jwt]\nsecret = \"0123456789abcdef0123456789abcdef\"\n[manager]\ninsecure_skip_verify = true\n\
         [repositories]\novs_agent_db = \"\"\npaths = [\"/nonexistent/repository\"]\n\
         [hooks]\ndirectory = {hooks:?}\ntimeout = \"{timeout}\"\n",
        dir.path().join("db")
    );
    let config = config::parse(&text).unwrap();
    let (store, tasks) = (Store::open(&config.db_file).unwrap(), Tasks::new());
    let repositories = Repositories::new(&config.repositories).unwrap();
    let inventory = Arc::new(Inventory::new(repositories, store.clone(), tasks.clone()));
    let admission = Admission::new(&config, &inventory, store.clone(), tasks.clone());
    let (vm_locks, metrics) = (Arc::clone(&admission.vm_locks), Arc::new(Metrics::default()));
    let hooks = Hooks::new(config.hooks.clone()).unwrap();
    let pending = PendingHooks::new(hooks, store.clone(), vm_locks, Arc::clone(&inventory), Arc::clone(&metrics));
    let pending = Arc::new(pending);
    let runner = Arc::new(HookRunner::new(Arc::clone(&pending), Arc::clone(&inventory), metrics, tasks));
    let scene = Arc::new(Scene { runner, pending, admission, inventory, store });
    let id = SnapshotId::from_u128(uuid::Uuid::new_v4().as_u128());
    let event = Event {
        operation: Operation::SnapshotCreate,
        snapshot_id: id.to_string(),
        vm: EventVm {
            name: "0004fb00000600000000000000000001".to_owned(),
            uuid: String::new(),
            friendly_name: String::new(),
        },
        disks: Vec::new(),
        sync: None,
    };
    let debt = scene.runner.hooks.pending_post_hooks(event).unwrap();
    let key = Operation::SnapshotCreate.pending_hooks_key(id);
    scene.store.pending_hooks().record(key, &debt.to_bytes().unwrap()).unwrap();
    (dir, scene, key, debt)
}

fn between(
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
    on_late_completion: Option<Step<()>>,
) -> GuardedStep<()> {
    GuardedStep { work: Box::new(work), refresh: Arc::new(|| ()), on_late_completion }
}

fn attempts(scene: &Scene) -> Vec<u32> {
    let owed = scene.store.pending_hooks().all().unwrap();
    owed.iter().map(|(_, written)| PendingPostHooks::from_bytes(written).unwrap().attempts).collect()
}

#[tokio::test]
async fn a_panic_between_the_halves_is_thawed_all_the_same() {
    let (dir, scene, id, debt) = scene("echo quiesced").await;
    let (outcome, around) = scene.runner.with_hooks(Some((id, debt)), between(|| panic!("in between"), None)).await;
    assert!(matches!(outcome, Err(Error::Internal(_))));
    assert!(around.runs.len() == 2 && around.held.is_some());
    assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), "pre\npost\n");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}

#[tokio::test]
async fn work_that_hangs_is_given_up_thawed_and_taken_back_when_it_ends() {
    let (dir, scene, id, debt) = scene("echo quiesced").await;
    let (go_on, hangs) = std::sync::mpsc::channel::<()>();
    let (done, undone) = tokio::sync::oneshot::channel();
    let calls = dir.path().join("calls");
    let late = move || done.send(()).unwrap();
    let work = move || {
        let _ = hangs.recv();
        Ok(())
    };
    let (outcome, around) = scene.runner.with_hooks(Some((id, debt)), between(work, Some(Box::new(late)))).await;
    assert!(matches!(outcome, Err(Error::CloneTimeout { .. })), "{outcome:?}");
    assert!(around.held.is_some());
    assert_eq!(fs::read_to_string(calls).unwrap(), "pre\npost\n");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    let mut undone = undone;
    assert!(undone.try_recv().is_err(), "taken back while it is still under way");
    go_on.send(()).unwrap();
    undone.await.unwrap();
}

#[tokio::test]
async fn a_post_that_fails_is_called_again_until_it_does_not() {
    let (dir, scene, id, debt) = scene("[ $2 = pre ] || [ -e mended ]").await;
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap();
    let (outcome, _) = scene.runner.with_hooks(Some((id, debt)), between(|| Ok(()), None)).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(attempts(&scene), [1]);
    // While the VM's turn is another's, its guest may be frozen for that.
    let turn = scene.admission.vm_locks.take(&"0004fb00000600000000000000000001".parse().unwrap()).await;
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("pre\npost\n", vec![1]));
    drop(turn);
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("pre\npost\npost\n", vec![2]));
    // After an hour once a day; after a week no more.
    let (key, written) = scene.store.pending_hooks().all().unwrap().remove(0);
    let with = |attempts| {
        let debt = PendingPostHooks { attempts, ..PendingPostHooks::from_bytes(&written).unwrap() };
        scene.store.pending_hooks().record(key, &debt.to_bytes().unwrap()).unwrap();
    };
    with(61);
    scene.pending.call_failed(1).await;
    assert_eq!(attempts(&scene), [61]);
    scene.pending.call_failed(24 * 60).await;
    assert_eq!(attempts(&scene), [62]);
    with(67);
    scene.pending.call_failed(0).await;
    assert_eq!(attempts(&scene), [] as [u32; 0]);
    with(3);
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(1).await;
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    let before = calls();
    scene.pending.call_failed(0).await;
    assert_eq!(calls(), before);
    // What is under way is nobody's to call.
    with(0);
    scene.pending.call_failed(0).await;
    assert_eq!((calls(), attempts(&scene)), (before, vec![0]));
}

#[test]
fn hooks_and_their_timeouts_do_not_wait_for_a_runtime_that_is_stalled() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all().build().unwrap();
    let script = "[ $2 = post ] || until [ -e go ]; do sleep 0.01; done; echo quiesced";
    let (dir, scene, id, debt) = runtime.block_on(scene_with(script, "10s"));
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
    let wait_for = |expected: &str| {
        let end = std::time::Instant::now() + Duration::from_secs(120);
        while calls() != expected {
            assert!(std::time::Instant::now() < end, "{expected:?} was not called: {:?}", calls());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let (_hangs_on, hangs) = std::sync::mpsc::channel::<()>();
    let work = move || {
        let _ = hangs.recv();
        Ok(())
    };
    let around = {
        let scene = Arc::clone(&scene);
        runtime
            .spawn(async move { scene.runner.with_hooks(Some((id, debt)), between(work, Some(Box::new(|| ())))).await })
    };
    wait_for("pre\n");
    // All workers and all blocking threads are taken, as by a file system that hangs.
    let ((blocked, is_blocked), release) = (std::sync::mpsc::channel(), Arc::new(std::sync::RwLock::new(())));
    let hold = release.write().unwrap();
    for n in 0..6 {
        let (blocked, release) = (blocked.clone(), Arc::clone(&release));
        let block = move || {
            blocked.send(()).unwrap();
            drop(release.read());
        };
        if n < 4 {
            drop(runtime.spawn_blocking(block));
        } else {
            drop(runtime.spawn(async move { block() }));
        }
    }
    (0..6).for_each(|_| is_blocked.recv().unwrap());
    fs::write(dir.path().join("go"), "").unwrap();
    // The hook ends, the work hangs and is given up in time, and what is frozen is thawed.
    wait_for("pre\npost\n");
    drop(hold);
    let (outcome, around) = runtime.block_on(around).unwrap();
    assert!(matches!(outcome, Err(Error::CloneTimeout { .. })), "{outcome:?}");
    assert!(around.held.is_some());
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}

#[tokio::test]
async fn what_cannot_be_read_of_a_debt_stays_and_is_reported() {
    let (_dir, scene, creation, _) = scene("").await;
    let id = SnapshotId::from_u128(creation.as_u128());
    let key = PendingHooksKey::of_deletion(id);
    scene.store.pending_hooks().clear(creation).unwrap();
    scene.store.pending_hooks().record(key, b"from another version").unwrap();
    scene.pending.call_after_start().await.unwrap();
    scene.pending.call_failed(0).await;
    // The deletion of that snapshot may owe something as well.
    let (other, earlier) = scene.pending.owed_earlier(Operation::SnapshotDelete, id).unwrap();
    assert!(other != key && earlier.is_empty());
    let debts = scene.pending.debts().unwrap();
    assert_eq!((debts.readable, debts.unreadable.len(), debts.unreadable[0].0), (Vec::new(), 1, key));
    assert_eq!(scene.store.pending_hooks().all().unwrap(), [(key, b"from another version".to_vec())]);
    // It is nothing that a stop could wait for.
    assert_eq!(scene.pending.release_guests().await.unwrap(), 0);
}

#[tokio::test]
async fn what_could_not_be_written_down_is_tried_again_and_called_again() {
    let (dir, scene, id, debt) = scene("[ $2 = pre ] || [ -e mended ]").await;
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
    // As where the database is full: it says that the operation is still under way.
    let failed = PendingPostHooks { attempts: 1, ..debt.clone() };
    scene.pending.unwritten.lock().insert(id, Some(failed.clone()));
    assert_eq!(scene.pending.debts().unwrap().readable, [(id, failed)]);
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("post\n", vec![2]));
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(2).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("post\npost\n", vec![]));
    // The same for what is settled: it is not called any more.
    scene.store.pending_hooks().record(id, &PendingPostHooks { attempts: 1, ..debt }.to_bytes().unwrap()).unwrap();
    scene.pending.unwritten.lock().insert(id, None);
    scene.pending.call_failed(3).await;
    assert_eq!((calls().as_str(), scene.store.pending_hooks().all().unwrap()), ("post\npost\n", vec![]));
    assert!(scene.pending.unwritten.lock().is_empty());
}

#[tokio::test]
async fn a_guest_whose_hooks_hang_does_not_hold_up_the_thaw_of_another() {
    let script = "[ $EXPORTER_VM = 0004fb00000600000000000000000002 ] && exec touch other\n\
                  until [ -e other ]; do sleep 0.01; done; touch first";
    let (dir, scene, _, debt) = scene_with(script, "1m").await;
    let mut other = debt.clone();
    other.event.vm.name = "0004fb00000600000000000000000002".to_owned();
    // Of another operation: what calls of the same one have left is ended first.
    other.call_prefix = uuid::Uuid::new_v4().to_string();
    // After the first one, by its key.
    scene.store.pending_hooks().record(PendingHooksKey::from_u128(u128::MAX), &other.to_bytes().unwrap()).unwrap();
    scene.pending.call_after_start().await.unwrap();
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    assert!(dir.path().join("first").exists());
}

/// The same debt of another VM, with a disk in the repository.
fn of_vm(debt: &PendingPostHooks, vm: &str, attempts: u32) -> PendingPostHooks {
    let mut debt = PendingPostHooks { attempts, call_prefix: uuid::Uuid::new_v4().to_string(), ..debt.clone() };
    debt.event.vm.name = vm.to_owned();
    debt.event.disks.push(EventDisk {
        name: "a.img".to_owned(),
        path: "/nonexistent/repository/VirtualDisks/a.img".to_owned(),
        snapshot_path: String::new(),
        size: 0,
    });
    debt
}

#[test]
fn owed_posts_do_not_wait_for_the_pool_of_blocking_threads() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(2).enable_all().build().unwrap();
    let (dir, scene, id, debt) = runtime.block_on(scene(""));
    // All blocking threads are taken, as by repositories that hang.
    let ((blocked, is_blocked), release) = (std::sync::mpsc::channel(), Arc::new(std::sync::RwLock::new(())));
    let hold = release.write().unwrap();
    for _ in 0..2 {
        let (blocked, release) = (blocked.clone(), Arc::clone(&release));
        drop(runtime.spawn_blocking(move || {
            blocked.send(()).unwrap();
            drop(release.read());
        }));
    }
    (0..2).for_each(|_| is_blocked.recv().unwrap());
    let long = Duration::from_secs(120);
    for (attempts, calls) in [(0, "post\n"), (1, "post\npost\n")] {
        let debt = of_vm(&debt, "0004fb00000600000000000000000001", attempts);
        scene.store.pending_hooks().record(id, &debt.to_bytes().unwrap()).unwrap();
        runtime.block_on(async {
            // As at the start, as in each round, and as at the end.
            tokio::time::timeout(long, scene.pending.call_after_start()).await.expect("it waits for the pool").unwrap();
            tokio::time::timeout(long, scene.pending.call_failed(1)).await.expect("it waits for the pool");
            assert_eq!(scene.pending.release_guests().await.unwrap(), 0);
        });
        assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), calls);
    }
    drop(hold);
}

#[tokio::test]
async fn a_repository_that_hangs_does_not_hold_up_owed_posts_elsewhere() {
    let (dir, scene, id, debt) = scene("echo $EXPORTER_VM >> calls").await;
    let (silent, sound) = ("0004fb00000600000000000000000001", "0004fb00000600000000000000000002");
    let of_sound = PendingPostHooks {
        event: Event { disks: Vec::new(), ..of_vm(&debt, sound, 1).event },
        ..of_vm(&debt, sound, 1)
    };
    scene.store.pending_hooks().record(id, &of_vm(&debt, silent, 1).to_bytes().unwrap()).unwrap();
    scene.store.pending_hooks().record(PendingHooksKey::from_u128(u128::MAX), &of_sound.to_bytes().unwrap()).unwrap();
    // All threads that the repository may have hang.
    let repository = scene.inventory.repository(&"repository".parse().unwrap()).unwrap();
    let (hold, release) = std::sync::mpsc::channel::<()>();
    let release = Arc::new(std::sync::Mutex::new(release));
    let hanging: Vec<_> = (0..64)
        .map(|_| {
            let release = Arc::clone(&release);
            repository.executor().submit(JobKind::SHORT, move |_| release.lock().unwrap().recv())
        })
        .collect();
    scene.pending.call_failed(1).await;
    drop((hold, hanging));
    let calls = fs::read_to_string(dir.path().join("calls")).unwrap();
    let at = |vm| calls.find(vm).unwrap_or_else(|| panic!("{vm} is not called: {calls}"));
    assert!(at(sound) < at(silent), "the VM in a sound repository waits for the other one: {calls}");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}
