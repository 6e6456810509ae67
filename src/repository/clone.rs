//! The one moment: all disks of a VM cloned together.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use crate::sys::reflink;

/// A disk and the new, empty file that is to share its blocks.
#[derive(Debug)]
pub struct Pair {
    /// The live disk.
    pub source: File,
    /// The new file.
    pub target: File,
}

/// Clones all `pairs`, one thread each, started together; returns how long that took from the
/// first start to the last end. Nothing else happens inside that window.
///
/// What a guest has left in the page cache is written out before: FICLONE would do it inside the
/// window, and hold off the guest's writes meanwhile.
///
/// # Errors
/// The index of a disk that failed, and its errno. Others may have been cloned: the caller undoes.
pub fn clone_all(pairs: &[Pair]) -> Result<Duration, (usize, io::Error)> {
    let barrier = Barrier::new(pairs.len());
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            running.push(scope.spawn({
                let barrier = &barrier;
                move || {
                    let flushed = pair.source.sync_data();
                    barrier.wait();
                    let started = Instant::now();
                    let cloned = flushed.and_then(|()| reflink::clone_whole(pair.source.as_fd(), pair.target.as_fd()));
                    cloned.map(|()| (started, Instant::now())).map_err(|error| (index, error))
                }
            }));
        }
        let mut window: Option<(Instant, Instant)> = None;
        let mut failure = None;
        for (index, thread) in running.into_iter().enumerate() {
            match thread.join() {
                Ok(Ok((start, end))) => {
                    let (first, last) = window.unwrap_or((start, end));
                    window = Some((first.min(start), last.max(end)));
                }
                Ok(Err(error)) => failure = Some(error),
                Err(_) => failure = Some((index, io::Error::other("the cloning thread panicked"))),
            }
        }
        match failure {
            Some(failure) => Err(failure),
            None => Ok(window.map_or(Duration::ZERO, |(start, end)| end - start)),
        }
    })
}
