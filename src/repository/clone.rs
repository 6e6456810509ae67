//! The one moment: all disks of a VM cloned together.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Barrier, OnceLock};
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
    for (index, pair) in pairs.iter().enumerate() {
        pair.source.sync_data().map_err(|error| (index, error))?;
    }
    // Whether all threads are there. Without them all nobody may wait for the others.
    let complete: OnceLock<bool> = OnceLock::new();
    let barrier = Barrier::new(pairs.len());
    let clone_one = |pair: &Pair| {
        if !*complete.wait() {
            return Err(io::Error::other("another disk's thread could not be started"));
        }
        barrier.wait();
        let started = Instant::now();
        reflink::clone_whole(pair.source.as_fd(), pair.target.as_fd())?;
        Ok((started, Instant::now()))
    };
    thread::scope(|scope| {
        let mut running = Vec::with_capacity(pairs.len());
        for (index, pair) in pairs.iter().enumerate() {
            match thread::Builder::new().spawn_scoped(scope, || clone_one(pair)) {
                Ok(thread) => running.push(thread),
                Err(error) => {
                    let _ = complete.set(false);
                    return Err((index, error));
                }
            }
        }
        let _ = complete.set(true);
        // All are waited for, also after one that failed.
        let ended: Vec<_> = running.into_iter().map(|thread| thread.join()).collect();
        let mut window: Option<(Instant, Instant)> = None;
        for (index, ended) in ended.into_iter().enumerate() {
            let ended = ended.unwrap_or_else(|_| Err(io::Error::other("the cloning thread panicked")));
            let (start, end) = ended.map_err(|error| (index, error))?;
            let (first, last) = window.unwrap_or((start, end));
            window = Some((first.min(start), last.max(end)));
        }
        Ok(window.map_or(Duration::ZERO, |(start, end)| end - start))
    })
}
