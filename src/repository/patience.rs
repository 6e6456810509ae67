//! Questions to file systems that may never answer: frozen, or their servers are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a file system is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long a [`call`] may take before there are no more. Reads that let others go first take their time.
const LONG: Duration = Duration::from_secs(20);

/// Calls on one file system that are under way, at most: threads that are lost where it hangs.
const CALLS: usize = 64;

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
    answered.recv_timeout(patience).map_err(|_| {
        tracing::error!(mount_point = %mount_point.display(), "does not answer");
        silent().insert(mount_point.to_owned());
        Silent
    })
}

/// Whether the file system at `mount_point` owes an answer.
pub fn is_silent(mount_point: &Path) -> bool {
    silent().contains(mount_point)
}

/// When each call began that has not come back, by mount. Older ones have lower numbers.
static UNDER_WAY: Mutex<BTreeMap<PathBuf, BTreeMap<u64, Instant>>> = Mutex::new(BTreeMap::new());

/// Does `work` on the file system at `mount_point` on the caller's own thread, which hangs where that does.
/// It is not done where another call has hung for long, or very many are under way: so not all threads
/// end there.
///
/// # Errors
/// [`Silent`].
pub fn call<T>(mount_point: &Path, work: impl FnOnce() -> T) -> Result<T, Silent> {
    let _call = Call::begin(mount_point)?;
    Ok(work())
}

/// A call that is under way until this is dropped.
struct Call<'a> {
    mount_point: &'a Path,
    number: u64,
}

impl<'a> Call<'a> {
    fn begin(mount_point: &'a Path) -> Result<Self, Silent> {
        if is_silent(mount_point) {
            return Err(Silent);
        }
        let mut all = under_way();
        if !all.contains_key(mount_point) {
            all.insert(mount_point.to_owned(), BTreeMap::new());
        }
        let calls = all.get_mut(mount_point).ok_or(Silent)?;
        let hangs = calls.first_key_value().is_some_and(|(_, since)| since.elapsed() > LONG);
        if hangs || calls.len() >= CALLS {
            return Err(Silent);
        }
        let number = calls.last_key_value().map_or(0, |(last, _)| last + 1);
        calls.insert(number, Instant::now());
        Ok(Self { mount_point, number })
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        if let Some(calls) = under_way().get_mut(self.mount_point) {
            calls.remove(&self.number);
        }
    }
}

fn under_way() -> MutexGuard<'static, BTreeMap<PathBuf, BTreeMap<u64, Instant>>> {
    UNDER_WAY.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn few_threads_end_where_a_file_system_hangs() {
        let mount_point = Path::new("/hanging");
        let hold = Mutex::new(());
        std::thread::scope(|scope| {
            let release = hold.lock().unwrap();
            for _ in 0..CALLS {
                scope.spawn(|| call(mount_point, || drop(hold.lock())));
            }
            let end = Instant::now() + Duration::from_secs(60);
            while under_way().get(mount_point).is_none_or(|calls| calls.len() < CALLS) {
                assert!(Instant::now() < end, "not all have begun");
                std::thread::yield_now();
            }
            assert_eq!(call(mount_point, || unreachable!("it is not called")), Err::<(), _>(Silent));
            assert_eq!(call(Path::new("/answering"), || 8), Ok(8));
            drop(release);
        });
        assert_eq!(call(mount_point, || 9), Ok(9));
        // One alone, for long.
        if let Some(long_ago) = Instant::now().checked_sub(2 * LONG) {
            under_way().get_mut(mount_point).unwrap().insert(0, long_ago);
            assert_eq!(call(mount_point, || unreachable!("it is not called")), Err::<(), _>(Silent));
        }
    }
}
