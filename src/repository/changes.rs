//! What changed between two files, found window by window.
//!
//! For each window the base's map is read, then the target's, then the base's again. If both readings of the base
//! agree, the base owned each of its addresses while the target was read, so equal addresses mean equal bytes.
//! Memory is bounded by one window, whatever the number of extents.

use std::collections::VecDeque;
use std::sync::Arc;

use super::disk_file::{DiskFile, OpenError};
use super::executor::{Executor, Interrupted, JobKind};
use super::map::{ExtentSource, FileSource, MAX_READS, MapError, MapWindow, MapWindows};
use crate::model::diff::changed_within;
use crate::model::{ByteRange, Chunk, ExtentMap};

/// Why two files cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    #[error("the base cannot be trusted: {0}")]
    Base(MapError),
    #[error("the target cannot be trusted: {0}")]
    Target(MapError),
    /// Every reading of the base's map differed from the one before.
    #[error("the blocks of the base keep moving; is a defragmenter running?")]
    BaseUnstable,
    #[error("the client has disconnected")]
    Cancelled,
}

/// What a target is compared with.
enum Base<S> {
    /// A file on the same device.
    File(BaseFile<S>),
    /// A map that need not be read.
    Map(ExtentMap),
}

/// A base whose map is read before and after the target's.
struct BaseFile<S> {
    windows: MapWindows<S>,
    /// The last base window, if it reaches past the current offset. It also serves as the first reading for the next
    /// window.
    read_before: Option<MapWindow>,
}

impl<S: ExtentSource> BaseFile<S> {
    fn new(windows: MapWindows<S>) -> Self {
        Self { windows, read_before: None }
    }

    /// A window that reaches past `at` and is read before the target.
    fn before(&mut self, at: u64) -> Result<MapWindow, MapError> {
        match self.read_before.take().filter(|window| window.end > at) {
            Some(window) => Ok(window),
            None => self.windows.read_from(at),
        }
    }

    /// How far the base is known, given a window that ends at `end`. Past its own end a base reads as zeros.
    fn known_to(&self, end: u64) -> u64 {
        if end == self.windows.size() { u64::MAX } else { end }
    }
}

/// Called now and then. If it returns false, the work stops with an error that says so.
pub type IsWanted = Arc<dyn Fn() -> bool + Send + Sync>;

/// The changes from a base to a target, in order and disjoint. A run of changes may be cut where a window ends.
///
/// Each window is read on the repository's threads, when its first chunk is asked for.
pub struct Changes {
    executor: Executor,
    /// `None` after the end, and after an error.
    finder: Option<ChangeFinder<FileSource>>,
    found: VecDeque<Chunk>,
    unverified: u64,
    is_wanted: IsWanted,
}

impl Changes {
    /// The changes from the file `base` to the file `target`, from the offset `from` on. `None` if the files lie on
    /// two devices: their addresses cannot be compared.
    pub fn incremental(
        base: Arc<DiskFile>,
        target: Arc<DiskFile>,
        from: u64,
        is_wanted: IsWanted,
    ) -> Result<Option<Self>, CompareError> {
        Self::open(&Arc::clone(&target), is_wanted, move || {
            let device = |file: &DiskFile| file.device().map_err(MapError::from);
            if device(&base).map_err(CompareError::Base)? != device(&target).map_err(CompareError::Target)? {
                return Ok(None);
            }
            let base = BaseFile::new(MapWindows::of_file(base).map_err(CompareError::Base)?);
            ChangeFinder::of_files(Base::File(base), target, from).map(Some)
        })
    }

    /// The changes from `base`, such as [`ExtentMap::empty`], to the file `target`, from the offset `from` on.
    ///
    /// # Errors
    /// [`CompareError::Target`], [`CompareError::Cancelled`].
    pub fn full(base: ExtentMap, target: Arc<DiskFile>, from: u64, is_wanted: IsWanted) -> Result<Self, CompareError> {
        let changes = Self::open(&Arc::clone(&target), is_wanted, move || {
            ChangeFinder::of_files(Base::Map(base), target, from).map(Some)
        });
        changes?.ok_or(CompareError::Cancelled)
    }

    fn open(
        target: &DiskFile,
        is_wanted: IsWanted,
        open: impl FnOnce() -> Result<Option<ChangeFinder<FileSource>>, CompareError> + Send + 'static,
    ) -> Result<Option<Self>, CompareError> {
        let executor = target.executor().clone();
        let opened = executor.submit(JobKind::BULK, move |_| open()).wait_while(&*is_wanted);
        let finder = opened??;
        Ok(finder.map(|finder| Self {
            executor,
            finder: Some(finder),
            found: VecDeque::new(),
            unverified: 0,
            is_wanted,
        }))
    }

    /// Bytes so far that are listed only because FIEMAP did not list data that `SEEK_DATA` found.
    pub fn unverified(&self) -> u64 {
        self.unverified
    }

    /// Reads windows until one has a change. `None` after the end.
    fn step(&mut self) -> Option<Result<Chunk, CompareError>> {
        let finder = self.finder.take()?;
        let step = self.executor.step(finder, &*self.is_wanted, |access, finder| {
            let first = finder.next(&|| {
                access.progress();
                access.is_wanted()
            });
            (first, std::mem::take(&mut finder.found), finder.unverified)
        });
        let (finder, (first, found, unverified)) = match step {
            Ok(step) => step,
            Err(interrupted) => return Some(Err(interrupted.into())),
        };
        (self.found, self.unverified) = (found, unverified);
        self.finder = Some(finder).filter(|_| matches!(first, Some(Ok(_))));
        first
    }
}

impl From<Interrupted> for CompareError {
    fn from(interrupted: Interrupted) -> Self {
        match interrupted {
            Interrupted::Cancelled => Self::Cancelled,
            Interrupted::Unresponsive(unresponsive) => Self::Target(OpenError::from(unresponsive).into()),
        }
    }
}

impl Iterator for Changes {
    type Item = Result<Chunk, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.found.pop_front() {
            Some(chunk) => Some(Ok(chunk)),
            None => self.step(),
        }
    }
}

/// Finds the changes of one window after the other.
struct ChangeFinder<S> {
    base: Base<S>,
    target: MapWindows<S>,
    /// Where the next window starts.
    at: u64,
    found: VecDeque<Chunk>,
    unverified: u64,
}

impl ChangeFinder<FileSource> {
    fn of_files(base: Base<FileSource>, target: Arc<DiskFile>, from: u64) -> Result<Self, CompareError> {
        let target = MapWindows::of_file(target).map_err(CompareError::Target)?;
        Ok(Self::new(base, target, from))
    }
}

impl<S: ExtentSource> ChangeFinder<S> {
    fn new(base: Base<S>, target: MapWindows<S>, at: u64) -> Self {
        Self { base, target, at, found: VecDeque::new(), unverified: 0 }
    }

    fn find_in_next_window(&mut self) -> Result<(), CompareError> {
        let (end, unverified) = match &mut self.base {
            Base::Map(base) => {
                let target = self.target.read_from(self.at).map_err(CompareError::Target)?;
                self.found.extend(changes_in(self.at, target.end, base, &target));
                (target.end, unverified(&target, self.at, target.end))
            }
            // Past its end a base reads as zeros.
            Base::File(base) if self.at >= base.windows.size() => {
                let target = self.target.read_from(self.at).map_err(CompareError::Target)?;
                self.found.extend(changes_in(self.at, target.end, &ExtentMap::empty(), &target));
                (target.end, unverified(&target, self.at, target.end))
            }
            Base::File(base) => {
                let stable = read_stable(base, &mut self.target, self.at)?;
                self.found.extend(changes_in(self.at, stable.end, &stable.base.map, &stable.target));
                base.windows.verify().map_err(CompareError::Base)?;
                let of = |window| unverified(window, self.at, stable.end);
                (stable.end, of(&stable.base) + of(&stable.target))
            }
        };
        self.target.verify().map_err(CompareError::Target)?;
        if end <= self.at {
            let stuck = format!("nothing is known past {}", self.at);
            return Err(CompareError::Target(MapError::Inconsistent(stuck)));
        }
        self.unverified += unverified;
        self.at = end;
        Ok(())
    }

    fn next(&mut self, is_wanted: &dyn Fn() -> bool) -> Option<Result<Chunk, CompareError>> {
        while self.found.is_empty() && self.at < self.target.size() {
            let outcome = if is_wanted() { self.find_in_next_window() } else { Err(CompareError::Cancelled) };
            if let Err(error) = outcome {
                self.at = u64::MAX;
                // These chunks were found before the files were verified. Nothing may follow the error.
                self.found.clear();
                return Some(Err(error));
            }
        }
        self.found.pop_front().map(Ok)
    }
}

/// The changes from a base to a target whose maps come from these sources, each with the size of its file, and the error
/// that ended them. For the fuzz target: [`Changes::incremental`] does the same for files.
#[cfg(fuzzing)]
pub fn changes_of_sources<S: ExtentSource>(
    (base, base_size): (S, u64),
    (target, target_size): (S, u64),
    from: u64,
) -> (Vec<Chunk>, Option<CompareError>) {
    let base = Base::File(BaseFile::new(MapWindows::new(base, base_size)));
    let mut finder = ChangeFinder::new(base, MapWindows::new(target, target_size), from);
    let mut found = Vec::new();
    while let Some(next) = finder.next(&|| true) {
        match next {
            Ok(chunk) => found.push(chunk),
            Err(error) => return (found, Some(error)),
        }
    }
    (found, None)
}

fn changes_in(start: u64, end: u64, base: &ExtentMap, target: &MapWindow) -> Vec<Chunk> {
    ByteRange::new(start, end).map(|window| changed_within(window, base, &target.map)).unwrap_or_default()
}

fn unverified(window: &MapWindow, start: u64, end: u64) -> u64 {
    ByteRange::new(start, end).map_or(0, |range| window.unverified_in(range))
}

/// Windows of both maps. Up to `end` the base's map was the same before and after the target's was read.
struct StableWindows {
    base: MapWindow,
    target: MapWindow,
    end: u64,
}

fn read_stable<S: ExtentSource>(
    base: &mut BaseFile<S>,
    target: &mut MapWindows<S>,
    at: u64,
) -> Result<StableWindows, CompareError> {
    let mut before = base.before(at).map_err(CompareError::Base)?;
    for _ in 0..MAX_READS {
        let target = target.read_from(at).map_err(CompareError::Target)?;
        let after = base.windows.read_from(at).map_err(CompareError::Base)?;
        let end = base.known_to(before.end).min(base.known_to(after.end)).min(target.end);
        if ByteRange::new(at, end).is_none_or(|window| before.map.agrees_with(&after.map, window)) {
            // Keep the rest: it is read before the target's next window.
            base.read_before = (after.end > end).then(|| after.clone());
            return Ok(StableWindows { base: after, target, end });
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
