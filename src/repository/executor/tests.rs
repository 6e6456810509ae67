//! A hanging file system is a closure that waits for a channel.

use std::sync::mpsc::{Sender, channel};

use super::callers::MAX_CALLER_THREADS;
use super::*;

fn with_stall_timeout(stall_timeout: Duration) -> JobKind {
    JobKind { stall_timeout, ..JobKind::SHORT }
}

const MOMENT: Duration = Duration::from_millis(50);

fn executor(name: &str) -> Executor {
    Executor::of(&PathBuf::from(format!("/test/{name}/{}", uuid::Uuid::new_v4())))
}

/// Work that hangs until the sender is dropped.
fn hanging() -> (impl FnOnce(&Access<'_>) + Send + 'static, Sender<()>) {
    let (release, held) = channel::<()>();
    (
        move |_: &Access<'_>| {
            let _ = held.recv();
        },
        release,
    )
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < end, "not {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn work_is_run_and_its_result_returned() {
    let executor = executor("plain");
    assert_eq!(executor.run(JobKind::SHORT, |_| 7), Ok(7));
    let many: Vec<_> = (0..100).map(|number| executor.submit(JobKind::BULK, move |_| number)).collect();
    let results: Vec<_> = many.into_iter().map(|pending| pending.wait().unwrap()).collect();
    assert_eq!(results, (0..100).collect::<Vec<_>>());
    assert_eq!(executor.run_here(|_| 8), Ok(8));
    // A result arrives before its call ends.
    wait_until("idle", || executor.calls() == 0);
}

#[test]
fn a_hanging_file_system_refuses_work_until_it_responds() {
    let (hangs, other) = (executor("hangs"), executor("other"));
    let (work, release) = hanging();
    assert_eq!(hangs.run(with_stall_timeout(MOMENT), work), Err(Unresponsive));
    assert!(!hangs.is_responsive());
    assert_eq!(hangs.run(JobKind::SHORT, |_| unreachable!("it must not start")), Err::<(), _>(Unresponsive));
    assert_eq!(hangs.run_here(|_| unreachable!("it must not start")), Err::<(), _>(Unresponsive));
    // Started work goes on.
    assert_eq!(hangs.run_here_started(|_| 7), 7);
    assert_eq!(other.run(JobKind::SHORT, |_| 8), Ok(8));
    drop(release);
    wait_until("answering", || hangs.calls() == 0);
    assert_eq!(hangs.run(JobKind::SHORT, |_| 9), Ok(9));
}

#[test]
fn work_with_progress_is_waited_for() {
    let executor = executor("slow");
    let slow = |access: &Access<'_>| {
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(10));
            access.progress();
        }
        7
    };
    // Far less than the work takes, and far more than any pause in it.
    assert_eq!(executor.run(with_stall_timeout(Duration::from_millis(250)), slow), Ok(7));
}

#[test]
fn a_single_hanging_call_does_not_affect_others() {
    let executor = executor("one");
    let (work, release) = hanging();
    let hangs = executor.submit(with_stall_timeout(MOMENT), work);
    wait_until("begun", || executor.calls() == 1);
    thread::sleep(2 * MOMENT);
    // A call that was started before ends later, so the file system responds.
    assert_eq!(executor.run_here_started(|_| 7), 7);
    assert!(executor.is_responsive());
    assert_eq!(executor.run(JobKind::SHORT, |_| 8), Ok(8));
    assert_eq!(hangs.wait(), Err(Unresponsive));
    assert_eq!(executor.run(JobKind::SHORT, |_| 9), Ok(9));
    drop(release);
}

#[test]
fn the_number_of_hanging_threads_is_bounded() {
    let executor = executor("few");
    let (release, held) = channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let stuck: Vec<_> = (0..200)
        .map(|_| {
            let held = Arc::clone(&held);
            executor.submit(JobKind::SHORT, move |_| {
                let _ = held.lock().unwrap().recv();
            })
        })
        .collect();
    wait_until("all taken", || executor.calls() == Lane::Short.limit());
    assert!(executor.0.state().short.all <= MAX_THREADS);
    drop(stuck);
    drop(release);
    // Jobs that had not started and are no longer wanted are not run.
    wait_until("done", || executor.calls() == 0 && executor.0.state().short.queue.is_empty());
}

#[test]
fn work_is_refused_when_all_threads_hang() {
    let executor = executor("exhausted");
    let (mut releases, mut stuck) = (Vec::new(), Vec::new());
    while stuck.len() < MAX_THREADS {
        let (work, release) = hanging();
        releases.push(release);
        stuck.push(executor.submit(with_stall_timeout(MOMENT), work));
        wait_until("begun", || {
            executor.start_threads(&mut executor.0.state(), Lane::Short);
            executor.calls() == stuck.len()
        });
        // All other calls end, as if only single files hang.
        thread::sleep(2 * MOMENT);
        executor.run_here_started(|_| ());
    }
    assert!(executor.is_responsive());
    assert_eq!(executor.run(JobKind::SHORT, |_| unreachable!("no thread is free")), Err::<(), _>(Unresponsive));
    assert_eq!(executor.run(JobKind::BULK, |_| 7), Ok(7), "the other lane is free");
    drop(releases);
    wait_until("free", || executor.calls() == 0);
    assert_eq!(executor.run(JobKind::SHORT, |_| 8), Ok(8));
}

#[test]
fn an_abandoned_job_is_dropped_outside_the_lock() {
    struct HangsWhenDropped(std::sync::mpsc::Receiver<()>);
    impl Drop for HangsWhenDropped {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    let executor = executor("abandoned");
    let (work, release) = hanging();
    let first = executor.submit(JobKind::SHORT.exclusive(1), work);
    wait_until("begun", || executor.calls() == 1);
    let (finish_drop, held) = channel();
    let file = HangsWhenDropped(held);
    drop(executor.submit(JobKind::SHORT.exclusive(1), move |_| drop(file)));
    drop(release);
    assert_eq!(first.wait(), Ok(()));
    wait_until("the drop to start", || executor.calls() == 1);
    assert_eq!(executor.run(JobKind::SHORT, |_| 7), Ok(7));
    drop(finish_drop);
    wait_until("gone", || executor.calls() == 0);
}

#[test]
fn the_number_of_hanging_callers_is_bounded() {
    let executor = executor("lent");
    let hold = Mutex::new(());
    thread::scope(|scope| {
        let release = hold.lock().unwrap();
        for _ in 0..MAX_CALLER_THREADS {
            scope.spawn(|| executor.run_here_started(|_| drop(hold.lock())));
        }
        wait_until("all begun", || executor.calls() == MAX_CALLER_THREADS);
        assert_eq!(executor.run_here(|_| 7), Err(Unresponsive));
        drop(release);
    });
    assert_eq!(executor.run_here(|_| 8), Ok(8));
}

#[test]
fn short_calls_run_on_the_callers_thread_only_while_the_file_system_responds() {
    let executor = executor("short");
    let id = || thread::current().id();
    let runs_here = || executor.run_short_here(move |_| id()).unwrap() == id();
    assert!(!runs_here(), "nothing was known about the file system");
    wait_until("the next one runs here", runs_here);
    let (work, release) = hanging();
    let pending = executor.submit(JobKind::BULK, work);
    wait_until("a call that hangs keeps the others away", || !runs_here());
    drop(release);
    assert_eq!(pending.wait(), Ok(()));
    wait_until("it responds again", runs_here);
}

#[test]
fn jobs_with_one_key_run_one_after_the_other() {
    let executor = executor("keys");
    let (work, release) = hanging();
    let first = executor.submit(JobKind::CHANGE.exclusive(1), work);
    wait_until("begun", || executor.calls() == 1);
    let done = Arc::new(Mutex::new(false));
    let second = {
        let done = Arc::clone(&done);
        executor.submit(JobKind::CHANGE.exclusive(1), move |_| *done.lock().unwrap() = true)
    };
    assert_eq!(executor.run(JobKind::CHANGE.exclusive(2), |_| 7), Ok(7));
    assert!(!*done.lock().unwrap(), "the key is taken");
    // Even if no one waits for the first one any more.
    drop(first);
    drop(release);
    assert_eq!(second.wait(), Ok(()));
    assert!(*done.lock().unwrap());
}

#[test]
fn a_key_whose_job_hangs_is_refused() {
    let executor = executor("key-hangs");
    let (work, release) = hanging();
    let kind = with_stall_timeout(MOMENT).exclusive(1);
    assert_eq!(executor.run(kind, work), Err(Unresponsive));
    // Others end, so it is not the file system that hangs.
    assert_eq!(executor.run_here_started(|_| 7), 7);
    assert_eq!(executor.run(kind, |_| unreachable!("it must not start")), Err::<(), _>(Unresponsive));
    drop(release);
    wait_until("free", || executor.calls() == 0);
    assert_eq!(executor.run(kind, |_| 8), Ok(8));
}

#[test]
fn a_job_sees_that_its_caller_stopped_waiting() {
    let executor = executor("wanted");
    let (seen, saw) = channel();
    let begun = || executor.calls() == 1;
    let work = move |access: &Access<'_>| {
        while access.is_wanted() {
            thread::sleep(Duration::from_millis(5));
        }
        seen.send(()).unwrap();
    };
    assert_eq!(executor.submit(JobKind::BULK, work).wait_while(|| !begun()), Err(Interrupted::Cancelled));
    saw.recv_timeout(Duration::from_secs(60)).unwrap();
}

#[test]
fn a_panic_reaches_the_caller_and_no_thread_is_lost() {
    let executor = executor("panics");
    for _ in 0..2 * MAX_THREADS {
        let run = std::panic::AssertUnwindSafe(|| executor.run(JobKind::SHORT, |_| panic!("a bug")));
        assert!(std::panic::catch_unwind(run).is_err());
    }
    assert_eq!(executor.run(JobKind::SHORT, |_| 7), Ok(7));
}

#[test]
fn one_mount_point_has_one_executor() {
    let path = Path::new("/test/one/mount/point");
    let executor = Executor::of(path);
    assert!(Arc::ptr_eq(&executor.0, &Executor::of(path).0));
    assert!(!Arc::ptr_eq(&executor.0, &Executor::of(Path::new("/test/another")).0));
}
