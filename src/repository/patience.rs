//! Questions to file systems that may never answer: frozen, or their servers are gone.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc::sync_channel;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a file system is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// Nothing came in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file system does not answer; is it frozen, or are its servers gone?")]
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
}
