//! Refines changes by content: reads both files where the maps differ, and drops blocks with the same bytes.
//!
//! On OCFS2 a write of 4 KiB copies about 1 MiB, so the maps list far too much. Reading costs less than sending. A
//! range that cannot be read stays listed.

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::changes::{CompareError, IsWanted};
use super::disk_file::DiskFile;
use super::executor::{Access, Interrupted, JobKind, Pending};
use crate::model::chunk::append_run;
use crate::model::{ByteRange, Chunk, ChunkKind};

/// Bytes of each file that are read at a time: a multiple of every block size.
const WINDOW_BYTES: u64 = 1 << 20;

/// Windows of one comparison that are queued or running.
const MAX_PENDING_WINDOWS: usize = 8;

/// The base's contents, to compare with.
#[derive(Clone, Debug)]
pub enum BaseContents {
    /// Past its end a file reads as zeros.
    File(Arc<DiskFile>),
    /// Unknown contents: every block is listed, blocks of zeros as zeros.
    Unknown,
}

/// Refined changes, in the order of the candidates. Files are read on the repository's threads.
pub struct Refined<C> {
    candidates: C,
    comparer: Arc<Comparer>,
    /// What is left of the current candidate.
    rest: Option<Chunk>,
    waiting: VecDeque<Waiting>,
    ready: VecDeque<Chunk>,
    failed: Option<CompareError>,
    /// Bytes of the data candidates so far.
    candidate_bytes: u64,
    is_done: bool,
    is_wanted: IsWanted,
}

/// The next results, in order.
enum Waiting {
    /// A candidate of zeros: there is nothing to read.
    Known(Chunk),
    /// A window that is being compared.
    Window(Pending<Vec<Chunk>>),
}

impl<C: Iterator<Item = Result<Chunk, CompareError>>> Refined<C> {
    /// Refines `candidates`, the changes from `base` to `target`, to blocks of `block` bytes. The block size must be a
    /// power of two, and at most 1 MiB.
    pub fn new(
        candidates: C,
        base: BaseContents,
        target: Arc<DiskFile>,
        block: NonZero<u64>,
        is_wanted: IsWanted,
    ) -> Self {
        let (incomplete, buffers) = (AtomicBool::default(), Mutex::default());
        let comparer = Arc::new(Comparer { base, target, block: block.get(), incomplete, buffers });
        let (waiting, ready) = (VecDeque::new(), VecDeque::new());
        Self {
            candidates,
            comparer,
            rest: None,
            waiting,
            ready,
            failed: None,
            candidate_bytes: 0,
            is_done: false,
            is_wanted,
        }
    }

    /// Whether a range could not be read, and was listed for that reason.
    pub fn is_incomplete(&self) -> bool {
        self.comparer.incomplete.load(Ordering::Relaxed)
    }

    /// Bytes of the data candidates; all of them are known after the last chunk.
    pub fn candidate_bytes(&self) -> u64 {
        self.candidate_bytes
    }

    /// Where the candidates come from.
    pub fn candidates(&self) -> &C {
        &self.candidates
    }

    fn queue_windows(&mut self) {
        while self.waiting.len() < MAX_PENDING_WINDOWS && self.failed.is_none() {
            let candidate = match self.rest.take() {
                Some(rest) => rest,
                None => match self.candidates.next() {
                    Some(Ok(candidate)) => {
                        if candidate.kind == ChunkKind::Data {
                            self.candidate_bytes += candidate.range.len();
                        }
                        candidate
                    }
                    Some(Err(error)) => {
                        self.failed = Some(error);
                        return;
                    }
                    None => return,
                },
            };
            if candidate.kind == ChunkKind::Zero {
                self.waiting.push_back(Waiting::Known(candidate));
                continue;
            }
            let range = candidate.range;
            let cut = (range.start() + 1).next_multiple_of(WINDOW_BYTES).min(range.end());
            let part = |start, end| ByteRange::new(start, end).and_then(|range| candidate.within(range));
            self.rest = part(cut, range.end());
            let Some(candidate) = part(range.start(), cut) else { continue };
            let comparer = Arc::clone(&self.comparer);
            let window = move |access: &Access<'_>| comparer.compare_or_list(access, candidate);
            self.waiting.push_back(Waiting::Window(self.comparer.target.executor().submit(JobKind::BULK, window)));
        }
    }

    fn take(&mut self, window: Pending<Vec<Chunk>>) -> Result<(), CompareError> {
        let chunks = window.wait_while(&*self.is_wanted)?;
        self.ready.extend(chunks);
        Ok(())
    }

    /// Verifies the files after the last candidate.
    fn end(&mut self) -> Result<(), CompareError> {
        match self.failed.take() {
            Some(error) => Err(error),
            None => verify(&self.comparer.base, &self.comparer.target),
        }
    }
}

/// Checks that both files have not changed since they were opened.
///
/// # Errors
/// [`CompareError::Base`], [`CompareError::Target`].
pub fn verify(base: &BaseContents, target: &Arc<DiskFile>) -> Result<(), CompareError> {
    let (base, file) = (base.clone(), Arc::clone(target));
    let verify = move |_: &Access<'_>| {
        if let BaseContents::File(base) = base {
            base.verify().map_err(|error| CompareError::Base(error.into()))?;
        }
        file.verify().map_err(|error| CompareError::Target(error.into()))
    };
    target.executor().run(JobKind::SHORT, verify).map_err(|error| CompareError::from(Interrupted::from(error)))?
}

impl<C: Iterator<Item = Result<Chunk, CompareError>>> Iterator for Refined<C> {
    type Item = Result<Chunk, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(chunk) = self.ready.pop_front() {
                return Some(Ok(chunk));
            }
            if self.is_done {
                return None;
            }
            self.queue_windows();
            let ended = match self.waiting.pop_front() {
                Some(Waiting::Known(chunk)) => return Some(Ok(chunk)),
                Some(Waiting::Window(window)) => self.take(window).err(),
                None => {
                    self.is_done = true;
                    return self.end().err().map(Err);
                }
            };
            if let Some(error) = ended {
                self.is_done = true;
                return Some(Err(error));
            }
        }
    }
}

/// Compares windows, on several threads.
struct Comparer {
    base: BaseContents,
    target: Arc<DiskFile>,
    block: u64,
    incomplete: AtomicBool,
    /// Buffers for a window of each file, reused.
    buffers: Mutex<Vec<[Vec<u8>; 2]>>,
}

impl Comparer {
    /// The changes in a window. If it cannot be read, the whole window.
    fn compare_or_list(&self, access: &Access<'_>, candidate: Chunk) -> Vec<Chunk> {
        if !access.is_wanted() {
            return Vec::new();
        }
        let buffers = || self.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let [mut was, mut now] = buffers().pop().unwrap_or_default();
        let chunks = self.compare(access, &candidate, &mut was, &mut now).unwrap_or_else(|error| {
            tracing::warn!(start = candidate.range.start(), %error, "cannot compare contents; listing the range as changed");
            self.incomplete.store(true, Ordering::Relaxed);
            vec![candidate]
        });
        buffers().push([was, now]);
        chunks
    }

    fn compare(
        &self,
        access: &Access<'_>,
        candidate: &Chunk,
        was: &mut Vec<u8>,
        now: &mut Vec<u8>,
    ) -> io::Result<Vec<Chunk>> {
        let (start, length) = (candidate.range.start(), usize::try_from(candidate.range.len()).unwrap_or(usize::MAX));
        now.resize(length, 0);
        self.target.read_exact_at(access, now, start)?;
        let base = match &self.base {
            BaseContents::Unknown => None,
            BaseContents::File(base) => {
                was.clear();
                was.resize(length, 0);
                let there = usize::try_from(base.size().saturating_sub(start)).unwrap_or(usize::MAX).min(length);
                base.read_exact_at(access, &mut was[..there], start)?;
                Some(&was[..])
            }
        };
        let mut chunks = Vec::new();
        for range in blocks(candidate.range, self.block) {
            let within = at(start, range.start())..at(start, range.end());
            if base.is_some_and(|base| base[within.clone()] == now[within.clone()]) {
                continue;
            }
            let Some(chunk) = candidate.within(range) else { continue };
            let is_zero = now[within].iter().all(|byte| *byte == 0);
            let zero = Chunk { kind: ChunkKind::Zero, address: None, ..chunk };
            append_run(&mut chunks, if is_zero { zero } else { chunk });
        }
        Ok(chunks)
    }
}

/// The index of the file offset `offset` in a window that starts at `start`.
fn at(start: u64, offset: u64) -> usize {
    usize::try_from(offset - start).unwrap_or(usize::MAX)
}

/// The parts of `range` by block. Blocks are counted from the start of the file.
fn blocks(range: ByteRange, block: u64) -> impl Iterator<Item = ByteRange> {
    let mut start = range.start();
    std::iter::from_fn(move || {
        let end = (start + 1).next_multiple_of(block).min(range.end());
        let found = ByteRange::new(start, end);
        start = end;
        found
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_from_the_start_of_the_file() {
        let range = ByteRange::new(100, 1600).unwrap();
        let found: Vec<_> = blocks(range, 512).map(|range| (range.start(), range.end())).collect();
        assert_eq!(found, [(100, 512), (512, 1024), (1024, 1536), (1536, 1600)]);
    }
}
