use super::*;
use crate::app::admission::Admission;
use crate::app::audit::AuditTrail;
use crate::app::changeable::Changeable;
use crate::app::common::Common;
use crate::app::inventory::Repositories;
use crate::app::notifications::Notifications;
use crate::app::retention::Retention;
use crate::config;
use crate::repository::executor::JobKind;
use crate::store::Store;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

mod events;
mod frozen;
mod unwritten;

/// A hook runner with its dependencies.
struct Scene {
    runner: Arc<HookRunner>,
    pending: Arc<PendingHooks>,
    admission: Arc<Admission>,
    inventory: Arc<Inventory>,
    store: Store,
}

/// A scene with a hook that records its calls.
async fn scene(script: &str) -> (tempfile::TempDir, Arc<Scene>, PendingHooksKey, PendingPostHooks) {
    scene_with(script, "1s").await
}

/// As [`scene`], with another `hooks.timeout`.
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
         [hooks]\ndirectory = {hooks:?}\ntimeout = \"{timeout}\"\n\
         [[notifications.webhooks]]\nname = \"a\"\nurl = \"https://127.0.0.1:1\"\n\
         secret = \"whsec_QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE=\"\n",
        dir.path().join("db")
    );
    let config = config::parse(&text).unwrap();
    let (store, tasks) = (Store::open(&config.db_file).unwrap(), Tasks::new());
    let repositories = Repositories::new(&config.repositories).unwrap();
    let inventory = Arc::new(Inventory::new(repositories, store.clone(), tasks.clone()));
    let admission = Admission::new(&config, Changeable::new(config.export), &inventory, store.clone(), tasks.clone());
    let (metrics, trail) = (Arc::new(Metrics::default()), Arc::new(AuditTrail::default()));
    let (s, t, grace) = (store.clone(), tasks.clone(), config.policy.superseded_grace);
    let retention = Arc::new(Retention::new(Arc::clone(&inventory), s, (grace, false), Arc::clone(&trail), t));
    let (exporter, s, m, t) = ("one".to_owned(), store.clone(), Arc::clone(&metrics), tasks.clone());
    let notifications = Notifications::new(&config.notifications, exporter.clone(), s, m, t).unwrap();
    let (admission, notifications) = (Arc::new(admission), Arc::new(notifications));
    let common = Common { exporter, inventory, retention, admission, notifications, trail, metrics, store, tasks };
    let pending = Arc::new(PendingHooks::new(&common, Hooks::new(config.hooks.clone()).unwrap()));
    let runner = Arc::new(HookRunner::new(&common, Arc::clone(&pending)));
    let Common { inventory, admission, store, .. } = common;
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
    let post_hooks = scene.runner.hooks.pending_post_hooks(event).unwrap();
    let key = Operation::SnapshotCreate.pending_hooks_key(id);
    scene.store.pending_hooks().record(key, &post_hooks.to_bytes().unwrap(), &[]).unwrap();
    (dir, scene, key, post_hooks)
}

fn step(
    work: impl FnOnce() -> Result<(), Error> + Send + 'static,
    on_late_completion: Option<Step<()>>,
) -> GuardedStep<()> {
    GuardedStep { work: Box::new(work), on_late_completion }
}

impl Scene {
    /// Does the work of `step` as the one operation with these hooks.
    async fn run(
        &self,
        key: PendingHooksKey,
        post_hooks: PendingPostHooks,
        step: GuardedStep<()>,
    ) -> (Result<(), Error>, HookReport) {
        let hooks = Some((key, post_hooks));
        let operation = GuardedOperation { hooks, refresh: Arc::new(|| ()), requires_quiesced: false };
        let (outcome, mut reports) = self.runner.with_hooks(vec![operation], step).await;
        assert_eq!(reports.len(), 1);
        (outcome, reports.remove(0))
    }
}

fn attempts(scene: &Scene) -> Vec<u32> {
    let pending = scene.store.pending_hooks().all().unwrap();
    pending.iter().map(|(_, written)| PendingPostHooks::from_bytes(written).unwrap().attempts).collect()
}

#[tokio::test]
async fn guest_is_thawed_after_panic() {
    let (dir, scene, id, post_hooks) = scene("echo quiesced").await;
    let (outcome, report) = scene.run(id, post_hooks, step(|| panic!("in step"), None)).await;
    assert!(matches!(outcome, Err(Error::Internal(_))));
    assert!(report.runs.len() == 2 && report.frozen_for.is_some());
    assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), "pre\npost\n");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}

#[tokio::test]
async fn hung_work_times_out_thaws_guest_and_is_undone_when_it_ends() {
    let (dir, scene, id, post_hooks) = scene("echo quiesced").await;
    let (release, hangs) = std::sync::mpsc::channel::<()>();
    let (done, undone) = tokio::sync::oneshot::channel();
    let calls = dir.path().join("calls");
    let late = move || done.send(()).unwrap();
    let work = move || {
        let _ = hangs.recv();
        Ok(())
    };
    let (outcome, report) = scene.run(id, post_hooks, step(work, Some(Box::new(late)))).await;
    assert!(matches!(outcome, Err(Error::CloneTimeout { .. })), "{outcome:?}");
    assert!(report.frozen_for.is_some());
    assert_eq!(fs::read_to_string(calls).unwrap(), "pre\npost\n");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    let mut undone = undone;
    assert!(undone.try_recv().is_err(), "undone while it is still running");
    release.send(()).unwrap();
    undone.await.unwrap();
}

#[tokio::test]
async fn failed_post_is_retried_until_it_succeeds() {
    let (dir, scene, id, post_hooks) = scene("[ $2 = pre ] || [ -e mended ]").await;
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap();
    let (outcome, _) = scene.run(id, post_hooks, step(|| Ok(()), None)).await;
    assert!(outcome.is_ok(), "{outcome:?}");
    assert_eq!(attempts(&scene), [1]);
    // While another operation holds the VM lock, it may have frozen the guest.
    let guard = scene.admission.vm_locks.take(&"0004fb00000600000000000000000001".parse().unwrap()).await;
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("pre\npost\n", vec![1]));
    drop(guard);
    scene.pending.call_failed(1).await;
    assert_eq!((calls().as_str(), attempts(&scene)), ("pre\npost\npost\n", vec![2]));
    // After an hour, one retry a day; after a week, none.
    let (key, written) = scene.store.pending_hooks().all().unwrap().remove(0);
    let with = |attempts| {
        let post_hooks = PendingPostHooks { attempts, ..PendingPostHooks::from_bytes(&written).unwrap() };
        scene.store.pending_hooks().record(key, &post_hooks.to_bytes().unwrap(), &[]).unwrap();
    };
    with(61);
    scene.pending.call_failed(1).await;
    assert_eq!(attempts(&scene), [61]);
    scene.pending.call_failed(24 * 60).await;
    assert_eq!(attempts(&scene), [62]);
    // Restarts do not end the retries before the week is over.
    with(67);
    scene.pending.call_failed(0).await;
    assert_eq!(attempts(&scene), [68]);
    let (key, written) = scene.store.pending_hooks().all().unwrap().remove(0);
    let post_hooks = PendingPostHooks::from_bytes(&written).unwrap();
    let a_week_ago = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(7 * 24)).as_millisecond();
    let post_hooks = PendingPostHooks { failing_since_ms: Some(a_week_ago), ..post_hooks };
    scene.store.pending_hooks().record(key, &post_hooks.to_bytes().unwrap(), &[]).unwrap();
    scene.pending.call_failed(0).await;
    assert_eq!(attempts(&scene), [] as [u32; 0]);
    with(3);
    fs::write(dir.path().join("mended"), "").unwrap();
    scene.pending.call_failed(1).await;
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    let before = calls();
    scene.pending.call_failed(0).await;
    assert_eq!(calls(), before);
    // Hooks of a running operation are not called.
    with(0);
    scene.pending.call_failed(0).await;
    assert_eq!((calls(), attempts(&scene)), (before, vec![0]));
}

#[test]
fn hooks_and_timeouts_do_not_wait_for_stalled_runtime() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(4).enable_all().build().unwrap();
    let script = "[ $2 = post ] || until [ -e go ]; do sleep 0.01; done; echo quiesced";
    let (dir, scene, id, post_hooks) = runtime.block_on(scene_with(script, "10s"));
    let calls = || fs::read_to_string(dir.path().join("calls")).unwrap_or_default();
    let wait_for = |expected: &str| {
        let end = std::time::Instant::now() + Duration::from_secs(120);
        while calls() != expected {
            assert!(std::time::Instant::now() < end, "{expected:?} was not called: {:?}", calls());
            std::thread::sleep(Duration::from_millis(10));
        }
    };
    let (_keep_hanging, hangs) = std::sync::mpsc::channel::<()>();
    let work = move || {
        let _ = hangs.recv();
        Ok(())
    };
    let report = {
        let scene = Arc::clone(&scene);
        runtime.spawn(async move { scene.run(id, post_hooks, step(work, Some(Box::new(|| ())))).await })
    };
    wait_for("pre\n");
    // All workers and blocking threads are blocked, as if a file system hangs.
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
    // The hook ends, the hung work times out, and the guest is thawed.
    wait_for("pre\npost\n");
    drop(hold);
    let (outcome, report) = runtime.block_on(report).unwrap();
    assert!(matches!(outcome, Err(Error::CloneTimeout { .. })), "{outcome:?}");
    assert!(report.frozen_for.is_some());
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}

#[tokio::test]
async fn unreadable_record_stays_and_is_reported() {
    let (_dir, scene, creation, _) = scene("").await;
    let id = SnapshotId::from_u128(creation.as_u128());
    let key = PendingHooksKey::of_deletion(id);
    scene.store.pending_hooks().clear(creation, &[]).unwrap();
    scene.store.pending_hooks().record(key, b"from another version", &[]).unwrap();
    scene.pending.call_after_start().await.unwrap();
    scene.pending.call_failed(0).await;
    // Another deletion of that snapshot gets a free key.
    let (other, earlier) = scene.pending.pending_earlier(Operation::SnapshotDelete, id).unwrap();
    assert!(other != key && earlier.is_empty());
    let entries = scene.pending.entries().unwrap();
    assert_eq!((entries.readable, entries.unreadable.len(), entries.unreadable[0].0), (Vec::new(), 1, key));
    assert_eq!(scene.store.pending_hooks().all().unwrap(), [(key, b"from another version".to_vec())]);
    // A stop does not wait for it.
    assert_eq!(scene.pending.release_guests().await.unwrap(), 0);
}

#[tokio::test]
async fn hanging_hooks_of_one_guest_do_not_delay_others() {
    let script = "[ $EXPORTER_VM = 0004fb00000600000000000000000002 ] && exec touch other\n\
                  until [ -e other ]; do sleep 0.01; done; touch first";
    let (dir, scene, _, post_hooks) = scene_with(script, "1m").await;
    let mut other = post_hooks.clone();
    other.event.vm.name = "0004fb00000600000000000000000002".to_owned();
    // Another operation: leftover processes of the same one are ended first.
    other.call_prefix = uuid::Uuid::new_v4().to_string();
    // Its key sorts after the first.
    scene.store.pending_hooks().record(PendingHooksKey::from_u128(u128::MAX), &other.to_bytes().unwrap(), &[]).unwrap();
    scene.pending.call_after_start().await.unwrap();
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
    assert!(dir.path().join("first").exists());
}

/// The pending post hooks of another VM, with a disk in the repository.
fn of_vm(post_hooks: &PendingPostHooks, vm: &str, attempts: u32) -> PendingPostHooks {
    let mut post_hooks =
        PendingPostHooks { attempts, call_prefix: uuid::Uuid::new_v4().to_string(), ..post_hooks.clone() };
    post_hooks.event.vm.name = vm.to_owned();
    post_hooks.event.disks.push(EventDisk {
        name: "a.img".to_owned(),
        path: "/nonexistent/repository/VirtualDisks/a.img".to_owned(),
        snapshot_path: String::new(),
        size: 0,
    });
    post_hooks
}

#[test]
fn pending_post_hooks_do_not_wait_for_blocking_thread_pool() {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime.worker_threads(2).max_blocking_threads(2).enable_all().build().unwrap();
    let (dir, scene, id, post_hooks) = runtime.block_on(scene(""));
    // All blocking threads are blocked, as if repositories hang.
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
    let limit = Duration::from_secs(120);
    for (attempts, calls) in [(0, "post\n"), (1, "post\npost\n")] {
        let post_hooks = of_vm(&post_hooks, "0004fb00000600000000000000000001", attempts);
        scene.store.pending_hooks().record(id, &post_hooks.to_bytes().unwrap(), &[]).unwrap();
        runtime.block_on(async {
            // At the start, in a round, and at the end of the service.
            tokio::time::timeout(limit, scene.pending.call_after_start()).await.expect("waited for the pool").unwrap();
            tokio::time::timeout(limit, scene.pending.call_failed(1)).await.expect("waited for the pool");
            assert_eq!(scene.pending.release_guests().await.unwrap(), 0);
        });
        assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), calls);
    }
    drop(hold);
}

#[tokio::test]
async fn hung_repository_does_not_delay_pending_post_hooks_elsewhere() {
    let (dir, scene, id, post_hooks) = scene("echo $EXPORTER_VM >> calls").await;
    let (hung, healthy) = ("0004fb00000600000000000000000001", "0004fb00000600000000000000000002");
    let of_healthy = PendingPostHooks {
        event: Event { disks: Vec::new(), ..of_vm(&post_hooks, healthy, 1).event },
        ..of_vm(&post_hooks, healthy, 1)
    };
    scene.store.pending_hooks().record(id, &of_vm(&post_hooks, hung, 1).to_bytes().unwrap(), &[]).unwrap();
    scene
        .store
        .pending_hooks()
        .record(PendingHooksKey::from_u128(u128::MAX), &of_healthy.to_bytes().unwrap(), &[])
        .unwrap();
    // All threads of the repository hang.
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
    assert!(at(healthy) < at(hung), "the VM without a hung repository waited for the other one: {calls}");
    assert_eq!(scene.store.pending_hooks().all().unwrap(), []);
}
