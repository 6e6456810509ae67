//! What changed between two files, found window by window.
//!
//! In each window the base's map is read, then the target's, then the base's again: only where both
//! readings of the base agree did each of its addresses belong to it while the target was read, so
//! that equal addresses mean equal bytes. Memory is that of a window, whatever the number of extents.

use std::collections::VecDeque;
use std::sync::Arc;

use super::disk_file::{DiskFile, OpenError};
use super::executor::{Executor, Interrupted, Kind};
use super::map::{ATTEMPTS, ExtentSource, FileSource, MapError, MapWindow, MapWindows};
use crate::model::diff::changed_within;
use crate::model::{ByteRange, Chunk, ExtentMap};

/// Why two files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The base is not what was snapshotted.
    #[error("the base cannot be trusted: {0}")]
    Base(MapError),
    /// The target is not what was snapshotted.
    #[error("the target cannot be trusted: {0}")]
    Target(MapError),
    /// Blocks of the base are being moved.
    #[error("the blocks of the base keep moving; is a defragmenter running?")]
    BaseUnstable,
    /// Nobody waits for the answer any more.
    #[error("nobody waits for the answer any more")]
    Abandoned,
}

/// What a target is compared with.
enum Base<S> {
    /// A file on the same device.
    File(BaseFile<S>),
    /// A map that is known without being read.
    Known(ExtentMap),
}

/// A base, read before the target and after it.
struct BaseFile<S> {
    pieces: MapWindows<S>,
    /// A piece that was read before whatever is read next.
    before: Option<MapWindow>,
}

impl<S: ExtentSource> BaseFile<S> {
    /// A piece that goes on past `at`, read before whatever is read next.
    fn before(&mut self, at: u64) -> Result<MapWindow, MapError> {
        match self.before.take().filter(|piece| piece.end > at) {
            Some(piece) => Ok(piece),
            None => self.pieces.from(at),
        }
    }

    /// Up to where the base is known with a piece that ends at `end`: past its own end it is zeros.
    fn known(&self, end: u64) -> u64 {
        if end == self.pieces.size() { u64::MAX } else { end }
    }
}

/// Asked now and then: whether anybody still waits for the changes.
pub type IsWanted = Arc<dyn Fn() -> bool + Send + Sync>;

/// The changes from a base to a target, in order and disjoint. A run of them may be cut where a
/// window ends.
///
/// They are found on the repository's threads, window by window, when the next one is asked for.
pub struct Changes {
    executor: Executor,
    /// None after the end, and where a turn was interrupted.
    windows: Option<Windows<FileSource>>,
    found: VecDeque<Chunk>,
    unverified: u64,
    is_wanted: IsWanted,
}

impl Changes {
    /// What changed from the file `base` to the file `target`, at `from` and after, while it `is_wanted`. Nothing
    /// where they lie on two devices, whose addresses have nothing to do with each other.
    ///
    /// # Errors
    /// [`CompareError`].
    pub fn incremental(
        base: Arc<DiskFile>,
        target: Arc<DiskFile>,
        from: u64,
        is_wanted: IsWanted,
    ) -> Result<Option<Self>, CompareError> {
        Self::new(&Arc::clone(&target), is_wanted, move || {
            let device = |file: &DiskFile| file.device().map_err(MapError::from);
            if device(&base).map_err(CompareError::Base)? != device(&target).map_err(CompareError::Target)? {
                return Ok(None);
            }
            let pieces = MapWindows::of_file(base).map_err(CompareError::Base)?;
            Windows::new(Base::File(BaseFile { pieces, before: None }), target, from).map(Some)
        })
    }

    /// What changed for a client that holds `held`, such as [`ExtentMap::empty`], to the file
    /// `target`, at `from` and after, while it `is_wanted`.
    ///
    /// # Errors
    /// [`CompareError::Target`].
    pub fn full(held: ExtentMap, target: Arc<DiskFile>, from: u64, is_wanted: IsWanted) -> Result<Self, CompareError> {
        let changes =
            Self::new(&Arc::clone(&target), is_wanted, move || Windows::new(Base::Known(held), target, from).map(Some));
        changes?.ok_or(CompareError::Abandoned)
    }

    fn new(
        target: &DiskFile,
        is_wanted: IsWanted,
        open: impl FnOnce() -> Result<Option<Windows<FileSource>>, CompareError> + Send + 'static,
    ) -> Result<Option<Self>, CompareError> {
        let executor = target.executor().clone();
        let opened = executor.submit(Kind::BULK, move |_| open()).wait_while(&*is_wanted);
        let windows = opened??;
        Ok(windows.map(|windows| Self {
            executor,
            windows: Some(windows),
            found: VecDeque::new(),
            unverified: 0,
            is_wanted,
        }))
    }

    /// Bytes that are listed only because the file system's answers about them cannot be trusted.
    pub fn unverified(&self) -> u64 {
        self.unverified
    }

    /// Finds more; nothing after the end.
    fn turn(&mut self) -> Option<Result<Chunk, CompareError>> {
        let windows = self.windows.take()?;
        let turn = self.executor.step(windows, &*self.is_wanted, |access, windows| {
            let first = windows.next(&|| {
                access.moved();
                access.is_wanted()
            });
            (first, std::mem::take(&mut windows.found), windows.unverified)
        });
        let (windows, (first, found, unverified)) = match turn {
            Ok(turn) => turn,
            Err(interrupted) => return Some(Err(interrupted.into())),
        };
        (self.found, self.unverified) = (found, unverified);
        self.windows = Some(windows).filter(|_| matches!(first, Some(Ok(_))));
        first
    }
}

impl From<Interrupted> for CompareError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Unwanted => Self::Abandoned,
            Interrupted::Unresponsive(unresponsive) => Self::Target(OpenError::from(unresponsive).into()),
        }
    }
}

impl Iterator for Changes {
    type Item = Result<Chunk, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.found.pop_front() {
            Some(chunk) => Some(Ok(chunk)),
            None => self.turn(),
        }
    }
}

struct Windows<S> {
    base: Base<S>,
    target: MapWindows<S>,
    /// Up to where the changes are found.
    at: u64,
    found: VecDeque<Chunk>,
    unverified: u64,
}

impl Windows<FileSource> {
    fn new(base: Base<FileSource>, target: Arc<DiskFile>, from: u64) -> Result<Self, CompareError> {
        let target = MapWindows::of_file(target).map_err(CompareError::Target)?;
        Ok(Self { base, target, at: from, found: VecDeque::new(), unverified: 0 })
    }
}

impl<S: ExtentSource> Windows<S> {
    /// Finds the changes of the next window.
    fn advance(&mut self) -> Result<(), CompareError> {
        let (end, unverified) = match &mut self.base {
            Base::Known(held) => {
                let now = self.target.from(self.at).map_err(CompareError::Target)?;
                self.found.extend(changes_in(self.at, now.end, held, &now));
                (now.end, unverified(&now, self.at, now.end))
            }
            // Past its end a base is zeros.
            Base::File(base) if self.at >= base.pieces.size() => {
                let now = self.target.from(self.at).map_err(CompareError::Target)?;
                self.found.extend(changes_in(self.at, now.end, &ExtentMap::empty(), &now));
                (now.end, unverified(&now, self.at, now.end))
            }
            Base::File(base) => {
                let (was, now, end) = settled(base, &mut self.target, self.at)?;
                self.found.extend(changes_in(self.at, end, &was.map, &now));
                base.pieces.verify().map_err(CompareError::Base)?;
                (end, unverified(&was, self.at, end) + unverified(&now, self.at, end))
            }
        };
        self.target.verify().map_err(CompareError::Target)?;
        if end <= self.at {
            let stuck = format!("nothing is known past {}", self.at);
            return Err(CompareError::Target(MapError::Nonsense(stuck)));
        }
        self.unverified += unverified;
        self.at = end;
        Ok(())
    }

    fn next(&mut self, is_wanted: &dyn Fn() -> bool) -> Option<Result<Chunk, CompareError>> {
        while self.found.is_empty() && self.at < self.target.size() {
            let outcome = if is_wanted() { self.advance() } else { Err(CompareError::Abandoned) };
            if let Err(error) = outcome {
                self.at = u64::MAX;
                // Found before the files were known to be good, and nothing may follow the error.
                self.found.clear();
                return Some(Err(error));
            }
        }
        self.found.pop_front().map(Ok)
    }
}

fn changes_in(start: u64, end: u64, was: &ExtentMap, now: &MapWindow) -> Vec<Chunk> {
    ByteRange::new(start, end).map(|window| changed_within(window, was, &now.map)).unwrap_or_default()
}

fn unverified(piece: &MapWindow, start: u64, end: u64) -> u64 {
    ByteRange::new(start, end).map_or(0, |window| piece.unlisted_in(window))
}

/// A piece of the base's map and one of the target's, and up to where the base's was the same before
/// and after the target's was read.
fn settled<S: ExtentSource>(
    base: &mut BaseFile<S>,
    target: &mut MapWindows<S>,
    at: u64,
) -> Result<(MapWindow, MapWindow, u64), CompareError> {
    let mut before = base.before(at).map_err(CompareError::Base)?;
    for _ in 0..ATTEMPTS {
        let now = target.from(at).map_err(CompareError::Target)?;
        let after = base.pieces.from(at).map_err(CompareError::Base)?;
        let end = base.known(before.end).min(base.known(after.end)).min(now.end);
        if ByteRange::new(at, end).is_none_or(|window| before.map.agrees_with(&after.map, window)) {
            // What of it lies further on was read before what comes next, too.
            base.before = (after.end > end).then(|| after.clone());
            return Ok((after, now, end));
        }
        before = after;
    }
    Err(CompareError::BaseUnstable)
}

#[cfg(test)]
#[path = "changes/script.rs"]
mod script;
#[cfg(test)]
#[path = "changes/tests.rs"]
mod tests;
