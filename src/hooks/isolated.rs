//! A thread and a runtime for the hooks of one operation.
//!
//! A shared runtime stalls when all its workers are blocked, and a hung file system can use up its blocking threads.
//! Neither may keep a `post` hook from being called or a timeout from firing.

use std::io;

use tokio::sync::oneshot;
use tracing::Instrument;

/// Runs `work` to its end on a new thread with its own runtime, even if the receiver is dropped. If `work` panics,
/// nothing is received.
///
/// # Errors
/// No thread or runtime can be created; then `work` has not started.
pub fn run_isolated<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = oneshot::channel();
    let work = work.in_current_span();
    let run = move || {
        let outcome = runtime.block_on(work);
        // Without waiting for its blocking tasks, which may hang.
        runtime.shutdown_background();
        // The receiver may be gone.
        let _ = done.send(outcome);
    };
    std::thread::Builder::new().name("hooks".to_owned()).spawn(run)?;
    Ok(ended)
}
