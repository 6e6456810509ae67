//! Hooks around an operation: before it, and after it whatever becomes of it.

use std::sync::Arc;
use std::time::Duration;

use tracing::Instrument;

use super::{App, Error};
use crate::hooks::{Debt, Event, EventDisk, EventVm, Operation, Refresh};
use crate::inventory;
use crate::model::{HookRun, Snapshot, SnapshotId};

/// What was called around an operation.
#[derive(Default)]
pub(super) struct Around {
    /// The calls, in their order.
    pub runs: Vec<HookRun>,
    /// Whether something has put the guest's disks in order.
    pub quiesced: bool,
    /// From the first call that may have held up the guest to the end of the last, where there was one.
    pub held: Option<Duration>,
}

/// What blocks.
type Step<T> = Box<dyn FnOnce(&App) -> T + Send>;

/// What is done between the two halves.
pub(super) struct Between<T> {
    pub work: Step<Result<T, Error>>,
    /// What is done once more before another attempt to quiesce.
    pub refresh: Refresh,
    /// What is done when the work ends after it was given up; nothing: it is waited for.
    pub late: Option<Step<()>>,
}

impl App {
    /// Does the work between the two halves of its hooks, where there are any: then what they owe is written
    /// down by now, under `key`. There is no way out of here, once the first is called, but through the
    /// second: not by an error, not by a panic, not by a file system that hangs. A crash leaves it owed.
    pub(super) async fn within_hooks<T: Send + 'static>(
        self: &Arc<Self>,
        key: SnapshotId,
        debt: Option<Debt>,
        between: Between<T>,
    ) -> (Result<T, Error>, Around) {
        let Between { work, refresh, late } = between;
        let Some(debt) = debt else { return (self.blocking(work).await, Around::default()) };
        let _held = self.held.token();
        let debt = Arc::new(debt);
        let (app, told) = (Arc::clone(self), Arc::clone(&debt));
        let before = tokio::spawn(async move { app.hooks.before(&told, &refresh).await }.in_current_span()).await;
        let mut around = Around::default();
        let (begun, outcome) = match before {
            Ok(begun) => {
                around.quiesced = begun.quiesced;
                let refused = begun.refusal.as_ref().map(|run| Error::HookFailed {
                    hook: run.name.clone(),
                    operation: debt.event.operation.as_str(),
                    how: run.detail.clone(),
                });
                (Some(begun), refused.map_or(Ok(()), Err))
            }
            Err(panic) => (None, Err(Error::Internal(panic.to_string()))),
        };
        let outcome = match (outcome, late) {
            (Err(error), _) => Err(error),
            (Ok(()), None) => self.at_once(work).await,
            (Ok(()), Some(late)) => self.in_time(work, late).await,
        };
        let (done, since) = (outcome.is_ok(), begun.as_ref().and_then(|begun| begun.since));
        let (app, told) = (Arc::clone(self), Arc::clone(&debt));
        let after = async move {
            match begun {
                Some(begun) => app.hooks.after(&told.event, begun, done).await,
                None => app.hooks.again(&told).await,
            }
        };
        let after = tokio::spawn(after.in_current_span()).await;
        around.held = since.map(|since| since.elapsed());
        let left = match after {
            Ok(ended) => {
                around.runs = ended.runs;
                ended.left
            }
            Err(panic) => {
                tracing::error!(%panic, "the hooks after the operation were not all called");
                debt.owed.clone()
            }
        };
        self.metrics.hooks(debt.event.operation.as_str(), &around.runs);
        self.enter(key, Debt { done, ..Debt::clone(&debt) }, left).await;
        (outcome, around)
    }

    /// Does `work` at once, and gives it up where it takes longer than something may be held for it: a file
    /// system that hangs lets go of no thread. What it comes to then is for `late`.
    async fn in_time<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, Error> + Send + 'static,
        late: impl FnOnce(&Self) + Send + 'static,
    ) -> Result<T, Error> {
        let (app, patience) = (Arc::clone(self), self.hooks.patience());
        let mut doing = Box::pin(async move { app.at_once(work).await });
        if let Ok(outcome) = tokio::time::timeout(patience, &mut doing).await {
            return outcome;
        }
        let app = Arc::clone(self);
        // Nobody waits for it, not even the service's end: then the next start does what is to be done.
        let waiting = async move {
            drop(doing.await);
            let undone = app.blocking(move |app| {
                late(app);
                Ok(())
            });
            drop(undone.await);
        };
        tokio::spawn(waiting.in_current_span());
        Err(Error::CloneTimeout { seconds: patience.as_secs_f64() })
    }

    /// What hooks are told of an `operation` on `snapshot`; `vm` is what the inventory says of its
    /// VM, where that is still in it.
    pub(super) fn event(&self, operation: Operation, snapshot: &Snapshot, vm: Option<&inventory::Vm>) -> Event {
        let disks = snapshot.disks.iter().filter_map(|disk| {
            let repository = self.repository(&disk.source.repository)?;
            Some(EventDisk {
                name: disk.name.to_string(),
                path: repository.mount_point().join(&disk.source.path).display().to_string(),
                snapshot_path: repository.snapshot_path(snapshot.id, &disk.name).display().to_string(),
                size: disk.identity.size,
            })
        });
        let sync = match (operation, vm) {
            (Operation::SnapshotCreate, Some(vm)) => {
                self.hooks.sync_target(&snapshot.vm, &[&vm.description, &vm.friendly_name], vm.address.as_deref())
            }
            _ => None,
        };
        Event {
            operation,
            snapshot_id: snapshot.id.to_string(),
            vm: EventVm {
                name: snapshot.vm.to_string(),
                uuid: vm.and_then(|vm| vm.uuid.clone()).unwrap_or_else(|| snapshot.vm.dashed()),
                friendly_name: vm.map(|vm| vm.friendly_name.clone()).unwrap_or_default(),
            },
            disks: disks.collect(),
            sync,
        }
    }

    /// What hooks are told of a deletion. A VM that has left the inventory is told by its id.
    pub(super) fn deletion(&self, snapshot: &Snapshot) -> Event {
        let vm = self.find_vm(&snapshot.vm).ok();
        self.event(Operation::SnapshotDelete, snapshot, vm.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    /// A service whose hook notes its calls.
    async fn scene(script: &str) -> (tempfile::TempDir, Arc<App>, SnapshotId, Debt) {
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
             [hooks]\ndirectory = {hooks:?}\ntimeout = \"1s\"\n",
            dir.path().join("db")
        );
        let app = App::start(&config::parse(&text).unwrap()).await.unwrap();
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
        let debt = app.hooks.debt(event).unwrap();
        app.store.owe(id, &debt.to_bytes()).unwrap();
        (dir, app, id, debt)
    }

    fn between(work: impl FnOnce(&App) -> Result<(), Error> + Send + 'static, late: Option<Step<()>>) -> Between<()> {
        Between { work: Box::new(work), refresh: Arc::new(|| ()), late }
    }

    fn attempts(app: &App) -> Vec<u32> {
        let owed = app.store.owed().unwrap();
        owed.iter().map(|(_, written)| Debt::from_bytes(written).unwrap().attempts).collect()
    }

    #[tokio::test]
    async fn a_panic_between_the_halves_is_thawed_all_the_same() {
        let (dir, app, id, debt) = scene("echo quiesced").await;
        let (outcome, around) = app.within_hooks(id, Some(debt), between(|_| panic!("in between"), None)).await;
        assert!(matches!(outcome, Err(Error::Internal(_))));
        assert!(around.runs.len() == 2 && around.held.is_some());
        assert_eq!(fs::read_to_string(dir.path().join("calls")).unwrap(), "pre\npost\n");
        assert_eq!(app.store.owed().unwrap(), []);
    }

    #[tokio::test]
    async fn work_that_hangs_is_given_up_thawed_and_taken_back_when_it_ends() {
        let (dir, app, id, debt) = scene("echo quiesced").await;
        let (go_on, hangs) = std::sync::mpsc::channel::<()>();
        let (done, undone) = tokio::sync::oneshot::channel();
        let calls = dir.path().join("calls");
        let late = move |_: &App| done.send(()).unwrap();
        let work = move |_: &App| {
            let _ = hangs.recv();
            Ok(())
        };
        let (outcome, around) = app.within_hooks(id, Some(debt), between(work, Some(Box::new(late)))).await;
        assert!(matches!(outcome, Err(Error::CloneTimeout { .. })), "{outcome:?}");
        assert!(around.held.is_some());
        assert_eq!(fs::read_to_string(calls).unwrap(), "pre\npost\n");
        assert_eq!(app.store.owed().unwrap(), []);
        let mut undone = undone;
        assert!(undone.try_recv().is_err(), "taken back while it is still under way");
        go_on.send(()).unwrap();
        undone.await.unwrap();
    }

    #[tokio::test]
    async fn a_post_that_fails_is_called_again_until_it_does_not() {
        let (dir, app, id, debt) = scene("[ $2 = pre ] || [ -e mended ]").await;
        let calls = || fs::read_to_string(dir.path().join("calls")).unwrap();
        let (outcome, _) = app.within_hooks(id, Some(debt), between(|_| Ok(()), None)).await;
        assert!(outcome.is_ok(), "{outcome:?}");
        assert_eq!(attempts(&app), [1]);
        // While the VM's turn is another's, its guest may be frozen for that.
        let turn = app.turns.take(&"0004fb00000600000000000000000001".parse().unwrap()).await;
        app.call_failed(1).await;
        assert_eq!((calls().as_str(), attempts(&app)), ("pre\npost\n", vec![1]));
        drop(turn);
        app.call_failed(1).await;
        assert_eq!((calls().as_str(), attempts(&app)), ("pre\npost\npost\n", vec![2]));
        // After an hour once a day; after a week no more.
        let (key, written) = app.store.owed().unwrap().remove(0);
        let with = |attempts| {
            let debt = Debt { attempts, ..Debt::from_bytes(&written).unwrap() };
            app.store.owe(key, &debt.to_bytes()).unwrap();
        };
        with(61);
        app.call_failed(1).await;
        assert_eq!(attempts(&app), [61]);
        app.call_failed(24 * 60).await;
        assert_eq!(attempts(&app), [62]);
        with(67);
        app.call_failed(0).await;
        assert_eq!(attempts(&app), [] as [u32; 0]);
        with(3);
        fs::write(dir.path().join("mended"), "").unwrap();
        app.call_failed(1).await;
        assert_eq!(app.store.owed().unwrap(), []);
        let before = calls();
        app.call_failed(0).await;
        assert_eq!(calls(), before);
        // What is under way is nobody's to call.
        with(0);
        app.call_failed(0).await;
        assert_eq!((calls(), attempts(&app)), (before, vec![0]));
    }
}
