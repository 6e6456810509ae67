//! A thread and a runtime for one operation's hooks.
//!
//! A runtime that is shared stalls when all its workers are blocked, and its pool of blocking threads can be used
//! up by a file system that hangs. Neither may keep a `post` from being called or a timeout from firing.

use std::io;

use tokio::sync::oneshot;
use tracing::Instrument;

/// Runs `work` to its end on a thread with a runtime of its own, whatever becomes of the receiver. Nothing is
/// received where `work` panics.
///
/// # Errors
/// Where no thread or no runtime can be made; then nothing has begun.
pub fn run_isolated<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> io::Result<oneshot::Receiver<T>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (done, ended) = oneshot::channel();
    let work = work.in_current_span();
    let run = move || {
        let outcome = runtime.block_on(work);
        // Not waited for: a blocking task of it may hang.
        runtime.shutdown_background();
        // Nobody may be waiting any more.
        let _ = done.send(outcome);
    };
    std::thread::Builder::new().name("hooks".to_owned()).spawn(run)?;
    Ok(ended)
}
