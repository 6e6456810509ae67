//! Questions to file systems that may never answer: frozen, or their servers are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a file system is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long no [`call`] may come back before there are no more. Reads that let others go first take their
/// time.
const LONG: Duration = Duration::from_secs(20);

/// The same where [`MANY`] are under way.
const SHORT: Duration = Duration::from_secs(1);
const MANY: usize = 64;

/// Calls on one file system that are under way, at most: threads that are lost where it hangs.
const MOST: usize = 256;

/// Nothing came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("does not answer; is it frozen, or are its servers gone?")]
pub struct Silent;

/// The mounts that owe an answer. They are not asked again before it came.
static SILENT: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// What `question` finds out on the file system at `mount_point`. It is asked on a thread of its own,
/// which stays behind where nothing comes.
///
/// # Errors
/// [`Silent`].
pub fn ask<T: Send + 'static>(mount_point: &Path, question: impl FnOnce() -> T + Send + 'static) -> Result<T, Silent> {
    ask_for(PATIENCE, mount_point, question)
}

fn ask_for<T: Send + 'static>(
    patience: Duration,
    mount_point: &Path,
    question: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Silent> {
    if is_silent(mount_point) {
        return Err(Silent);
    }
    // Without room: who answers too late is told so, and only after the silence was written down.
    let (answer, answered) = sync_channel(0);
    let (asked, span) = (mount_point.to_owned(), tracing::Span::current());
    let started = std::thread::Builder::new().name("file-system".to_owned()).spawn(move || {
        let _in_span = span.entered();
        if answer.send(question()).is_err() {
            silent().remove(&asked);
            tracing::info!(mount_point = %asked.display(), "answers again");
        }
    });
    started.map_err(|_| Silent)?;
    answered.recv_timeout(patience).map_err(|error| {
        if error == RecvTimeoutError::Disconnected {
            // A bug in the question, which is in the log, and no silence.
            return Silent;
        }
        tracing::error!(mount_point = %mount_point.display(), "does not answer");
        silent().insert(mount_point.to_owned());
        Silent
    })
}

/// Whether the file system at `mount_point` owes an answer.
pub fn is_silent(mount_point: &Path) -> bool {
    silent().contains(mount_point)
}

/// Calls on one file system.
#[derive(Default)]
struct Calls {
    /// When each began that has not come back. Older ones have lower numbers.
    since: BTreeMap<u64, Instant>,
    /// When the last came back.
    back: Option<Instant>,
}

impl Calls {
    /// For how long calls have waited, and none has come back.
    fn nothing_for(&self) -> Duration {
        let oldest = self.since.first_key_value().map(|(_, since)| *since);
        oldest.max(oldest.and(self.back)).map_or(Duration::ZERO, |since| since.elapsed())
    }
}

static CALLS: Mutex<BTreeMap<PathBuf, Calls>> = Mutex::new(BTreeMap::new());

/// Begins `work` on the file system at `mount_point` on the caller's own thread, which hangs where that
/// does. It is not begun where calls there hang already: so not all threads end there.
///
/// # Errors
/// [`Silent`].
pub fn call<T>(mount_point: &Path, work: impl FnOnce() -> T) -> Result<T, Silent> {
    let _call = Call::begin(mount_point, |calls| {
        let (count, nothing_for) = (calls.since.len(), calls.nothing_for());
        nothing_for < LONG && (count < MANY || nothing_for < SHORT) && count < MOST
    })
    .ok_or(Silent)?;
    Ok(work())
}

/// Goes on with what a [`call`] began, whatever others do.
pub fn go_on<T>(mount_point: &Path, work: impl FnOnce() -> T) -> T {
    let _call = Call::begin(mount_point, |_| true);
    work()
}

/// A call that is under way until this is dropped.
struct Call<'a> {
    mount_point: &'a Path,
    number: u64,
}

impl<'a> Call<'a> {
    fn begin(mount_point: &'a Path, may: impl FnOnce(&Calls) -> bool) -> Option<Self> {
        let mut all = all_calls();
        let calls = all.entry(mount_point.to_owned()).or_default();
        if !may(calls) {
            return None;
        }
        let number = calls.since.last_key_value().map_or(0, |(last, _)| last + 1);
        calls.since.insert(number, Instant::now());
        Some(Self { mount_point, number })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(calls) = all_calls().get_mut(self.mount_point) {
            calls.since.remove(&self.number);
            calls.back = Some(Instant::now());
        }
    }
}

fn all_calls() -> MutexGuard<'static, BTreeMap<PathBuf, Calls>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

fn silent() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    SILENT.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_does_not_answer_is_not_asked_again_until_it_does() {
        let mount_point = Path::new("/mnt");
        assert_eq!(ask(mount_point, || 7), Ok(7));
        let (release, hold) = channel::<()>();
        let hanging = move || hold.recv().is_ok();
        assert_eq!(ask_for(Duration::from_millis(10), mount_point, hanging), Err(Silent));
        assert_eq!(ask(mount_point, || unreachable!("it is not asked")), Err::<(), _>(Silent));
        assert_eq!(ask(Path::new("/other"), || 8), Ok(8));
        drop(release);
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while is_silent(mount_point) {
            assert!(std::time::Instant::now() < end, "it answered, and is still called silent");
            std::thread::yield_now();
        }
        assert_eq!(ask(mount_point, || 9), Ok(9));
    }

    #[test]
    fn a_question_that_panics_is_no_silence() {
        let mount_point = Path::new("/panicking");
        assert_eq!(ask(mount_point, || panic!("a bug")), Err::<(), _>(Silent));
        assert_eq!(ask(mount_point, || 7), Ok(7));
    }

    #[test]
    fn few_threads_end_where_a_file_system_hangs() {
        let mount_point = Path::new("/hanging");
        let refused = || call(mount_point, || ()) == Err(Silent);
        let hold = Mutex::new(());
        std::thread::scope(|scope| {
            let release = hold.lock().unwrap();
            for _ in 0..MOST {
                scope.spawn(|| go_on(mount_point, || drop(hold.lock())));
            }
            let end = Instant::now() + Duration::from_secs(60);
            while all_calls().get(mount_point).is_none_or(|calls| calls.since.len() < MOST) {
                assert!(Instant::now() < end, "not all have begun");
                std::thread::yield_now();
            }
            assert!(refused());
            assert_eq!(call(Path::new("/answering"), || 8), Ok(8));
            drop(release);
        });
        assert_eq!(call(mount_point, || 9), Ok(9));
        let under_way = |count: u64, since: Duration, back: Duration| {
            let at = |age: Duration| Instant::now().checked_sub(age).unwrap();
            let since = (0..count).map(|number| (number, at(since))).collect();
            all_calls().insert(mount_point.to_owned(), Calls { since, back: Some(at(back)) });
        };
        // One alone, for long; while others come back; what it has begun goes on.
        under_way(1, 2 * LONG, 3 * LONG);
        assert!(refused());
        assert_eq!(go_on(mount_point, || 10), 10);
        under_way(1, 2 * LONG, SHORT);
        assert!(!refused());
        // Many, for a while.
        under_way(MANY as u64, 2 * SHORT, 3 * SHORT);
        assert!(refused());
        under_way(MANY as u64, 2 * SHORT, Duration::ZERO);
        assert!(!refused());
    }
}
