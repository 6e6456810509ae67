//! A file system that hangs is a closure that waits for a channel.

use std::sync::mpsc::{Sender, channel};

use super::*;

/// A short job of which a stop of `stall_timeout` is too long.
fn with_stall_timeout(stall_timeout: Duration) -> JobKind {
    JobKind { stall_timeout, ..JobKind::SHORT }
}

const MOMENT: Duration = Duration::from_millis(50);

fn executor(name: &str) -> Executor {
    Executor::of(&PathBuf::from(format!("/test/{name}/{}", uuid::Uuid::new_v4())))
}

/// Work that hangs until the sender is dropped, and the sender.
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
fn work_is_done_and_its_result_comes_back() {
    let executor = executor("plain");
    assert_eq!(executor.run(JobKind::SHORT, |_| 7), Ok(7));
    let many: Vec<_> = (0..100).map(|number| executor.submit(JobKind::BULK, move |_| number)).collect();
    let results: Vec<_> = many.into_iter().map(|pending| pending.wait().unwrap()).collect();
    assert_eq!(results, (0..100).collect::<Vec<_>>());
    assert_eq!(executor.run_here(|_| 8), Ok(8));
    assert_eq!(executor.calls(), 0);
}

#[test]
fn a_file_system_that_hangs_is_refused_at_once_and_taken_again_when_it_answers() {
    let (hangs, other) = (executor("hangs"), executor("other"));
    let (work, release) = hanging();
    assert_eq!(hangs.run(with_stall_timeout(MOMENT), work), Err(Unresponsive));
    assert!(!hangs.is_responsive());
    assert_eq!(hangs.run(JobKind::SHORT, |_| unreachable!("it is not begun")), Err::<(), _>(Unresponsive));
    assert_eq!(hangs.run_here(|_| unreachable!("it is not begun")), Err::<(), _>(Unresponsive));
    // What has begun goes on.
    assert_eq!(hangs.run_here_started(|_| 7), 7);
    assert_eq!(other.run(JobKind::SHORT, |_| 8), Ok(8));
    drop(release);
    wait_until("answering", || hangs.calls() == 0);
    assert_eq!(hangs.run(JobKind::SHORT, |_| 9), Ok(9));
}

#[test]
fn work_that_moves_is_waited_for() {
    let executor = executor("slow");
    let slow = |access: &Access<'_>| {
        for _ in 0..30 {
            thread::sleep(Duration::from_millis(10));
            access.progress();
        }
        7
    };
    // Far less than it takes, and far more than it ever stands still.
    assert_eq!(executor.run(with_stall_timeout(Duration::from_millis(250)), slow), Ok(7));
}

#[test]
fn a_call_that_hangs_alone_takes_nothing_from_the_others() {
    let executor = executor("one");
    let (work, release) = hanging();
    let hangs = executor.submit(with_stall_timeout(MOMENT), work);
    wait_until("begun", || executor.calls() == 1);
    thread::sleep(2 * MOMENT);
    // A call that was let through before ends later: the file system answers.
    assert_eq!(executor.run_here_started(|_| 7), 7);
    assert!(executor.is_responsive());
    assert_eq!(executor.run(JobKind::SHORT, |_| 8), Ok(8));
    assert_eq!(hangs.wait(), Err(Unresponsive));
    assert_eq!(executor.run(JobKind::SHORT, |_| 9), Ok(9));
    drop(release);
}

#[test]
fn threads_that_hang_are_few() {
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
    // What did not begin, and nobody waits for, is not done.
    wait_until("done", || executor.calls() == 0 && executor.0.state().short.queue.is_empty());
}

#[test]
fn where_all_threads_hang_nothing_waits_for_one() {
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
        // All other calls are answered, as where single files hang.
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
fn what_nobody_wants_is_let_go_outside_the_lock() {
    struct HangsWhenDropped(std::sync::mpsc::Receiver<()>);
    impl Drop for HangsWhenDropped {
        fn drop(&mut self) {
            let _ = self.0.recv();
        }
    }
    let executor = executor("let-go");
    let (work, release) = hanging();
    let first = executor.submit(JobKind::SHORT.exclusive(1), work);
    wait_until("begun", || executor.calls() == 1);
    let (let_go, held) = channel();
    let file = HangsWhenDropped(held);
    drop(executor.submit(JobKind::SHORT.exclusive(1), move |_| drop(file)));
    drop(release);
    assert_eq!(first.wait(), Ok(()));
    wait_until("being let go", || executor.calls() == 1);
    assert_eq!(executor.run(JobKind::SHORT, |_| 7), Ok(7));
    drop(let_go);
    wait_until("gone", || executor.calls() == 0);
}

#[test]
fn lent_threads_that_hang_are_few() {
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
fn work_with_one_key_is_done_one_after_the_other() {
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
    // Also where nobody waits for the first any more.
    drop(first);
    drop(release);
    assert_eq!(second.wait(), Ok(()));
    assert!(*done.lock().unwrap());
}

#[test]
fn a_key_whose_work_hangs_is_refused_at_once() {
    let executor = executor("key-hangs");
    let (work, release) = hanging();
    let kind = with_stall_timeout(MOMENT).exclusive(1);
    assert_eq!(executor.run(kind, work), Err(Unresponsive));
    // Others are answered, so that it is not the file system that hangs.
    assert_eq!(executor.run_here_started(|_| 7), 7);
    assert_eq!(executor.run(kind, |_| unreachable!("it is not begun")), Err::<(), _>(Unresponsive));
    drop(release);
    wait_until("free", || executor.calls() == 0);
    assert_eq!(executor.run(kind, |_| 8), Ok(8));
}

#[test]
fn whoever_waits_can_stop_waiting_and_the_work_can_see_it() {
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
fn a_panic_reaches_whoever_waits_and_no_thread_is_lost() {
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
