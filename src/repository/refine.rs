//! Candidates turned into what really changed: within them both files are read, and blocks of the
//! same bytes are left out.
//!
//! On OCFS2 a write of 4 KiB copies about 1 MiB, so that maps alone list far too much. Reading is
//! cheaper than sending. What cannot be read stays listed as it was.

mod places;

use std::collections::VecDeque;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use places::Place;

use super::changes::CompareError;
use super::disk_file::DiskFile;
use super::map::MapError;
use crate::model::chunk::append_run;
use crate::model::{ByteRange, Chunk, ChunkKind};

/// Bytes that are read of each file at a time; a multiple of every block size.
const WINDOW: u64 = 1 << 20;

/// Threads that read, at most: the host's processors belong to its guests.
const THREADS: usize = 4;

/// Windows that are on their way for each thread.
const AHEAD: usize = 2;

/// Where a block's bytes were before.
#[derive(Clone, Debug)]
pub enum Held {
    /// In this file; past its end there are zeros.
    File(Arc<DiskFile>),
    /// Nobody knows: every block is listed, and those of zeros as such.
    Unknown,
}

/// Refined changes, in the order of the candidates.
pub struct Refined<C> {
    candidates: C,
    held: Held,
    target: Arc<DiskFile>,
    /// What is left of the candidate at hand.
    rest: Option<Chunk>,
    waiting: VecDeque<Waiting>,
    ready: VecDeque<Chunk>,
    block: NonZero<u64>,
    /// Started with the first window: of an answer of many disks, one is at work.
    team: Option<Team>,
    doubt: Arc<AtomicBool>,
    failed: Option<CompareError>,
    is_done: bool,
    is_abandoned: Box<dyn Fn() -> bool + Send>,
}

/// Threads that compare. They end when this is dropped.
struct Team {
    jobs: SyncSender<Job>,
    /// Windows that may be on their way.
    room: usize,
    _place: Place,
}

/// What comes next, in order.
enum Waiting {
    /// Nothing to read: zeros.
    Known(Chunk),
    /// A window that a thread compares.
    Window(Receiver<Vec<Chunk>>),
}

struct Job {
    candidate: Chunk,
    answer: SyncSender<Vec<Chunk>>,
}

impl<C: Iterator<Item = Result<Chunk, CompareError>>> Refined<C> {
    /// Refines `candidates`, the changes from `held` to `target`, to blocks of `block` bytes, which
    /// is a power of two and not more than 1 MiB. Stops where `is_abandoned` says so.
    pub fn new(
        candidates: C,
        held: Held,
        target: Arc<DiskFile>,
        block: NonZero<u64>,
        is_abandoned: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        Self {
            candidates,
            held,
            target,
            rest: None,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            block,
            team: None,
            doubt: Arc::default(),
            failed: None,
            is_done: false,
            is_abandoned: Box::new(is_abandoned),
        }
    }

    /// Set where something could not be read, and is listed for that.
    pub fn doubt(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.doubt)
    }

    fn start(&self) -> Result<Team, CompareError> {
        let place = Place::take(&self.is_abandoned).ok_or(CompareError::Abandoned)?;
        let threads = thread::available_parallelism().map_or(1, NonZero::get).min(THREADS);
        let room = threads * AHEAD;
        let (jobs, queue) = sync_channel::<Job>(room);
        let queue = Arc::new(Mutex::new(queue));
        for _ in 0..threads {
            let (held, target, doubt) = (self.held.clone(), Arc::clone(&self.target), Arc::clone(&self.doubt));
            let comparer = Comparer { held, target, block: self.block.get(), doubt };
            let queue = Arc::clone(&queue);
            let builder = thread::Builder::new().name("refine".to_owned()).stack_size(128 << 10);
            let started = builder.spawn(move || comparer.run(&queue));
            started.map_err(|error| CompareError::Target(MapError::Io(error)))?;
        }
        Ok(Team { jobs, room, _place: place })
    }

    /// Gives the threads as much as there is room for.
    fn feed(&mut self) {
        if self.team.is_none() && self.failed.is_none() {
            match self.start() {
                Ok(team) => self.team = Some(team),
                Err(error) => self.failed = Some(error),
            }
        }
        let Some(team) = &self.team else { return };
        while self.waiting.len() < team.room && self.failed.is_none() {
            if (self.is_abandoned)() {
                self.failed = Some(CompareError::Abandoned);
                return;
            }
            let candidate = match self.rest.take() {
                Some(rest) => rest,
                None => match self.candidates.next() {
                    Some(Ok(candidate)) => candidate,
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
            let cut = (range.start() + 1).next_multiple_of(WINDOW).min(range.end());
            let part = |start, end| ByteRange::new(start, end).and_then(|range| candidate.within(range));
            self.rest = part(cut, range.end());
            let Some(candidate) = part(range.start(), cut) else { continue };
            let (answer, window) = sync_channel(1);
            // The threads live as long as `jobs`, and there is room for this many.
            if team.jobs.send(Job { candidate, answer }).is_err() {
                self.failed = Some(CompareError::Target(MapError::Io(io::Error::other("the readers are gone"))));
            }
            self.waiting.push_back(Waiting::Window(window));
        }
    }
}

/// Checks that the bytes of both are still those of the snapshots.
///
/// # Errors
/// [`CompareError::Base`], [`CompareError::Target`].
pub fn verify(held: &Held, target: &DiskFile) -> Result<(), CompareError> {
    if let Held::File(base) = held {
        base.verify().map_err(|error| CompareError::Base(error.into()))?;
    }
    target.verify().map_err(|error| CompareError::Target(error.into()))
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
            self.feed();
            match self.waiting.pop_front() {
                Some(Waiting::Known(chunk)) => return Some(Ok(chunk)),
                Some(Waiting::Window(window)) => match window.recv() {
                    Ok(chunks) => self.ready.extend(chunks),
                    Err(_) => {
                        self.is_done = true;
                        let error = io::Error::other("a reader stopped");
                        return Some(Err(CompareError::Target(MapError::Io(error))));
                    }
                },
                None => {
                    self.is_done = true;
                    self.team = None;
                    let outcome = self.failed.take().map_or_else(|| verify(&self.held, &self.target), Err);
                    return outcome.err().map(Err);
                }
            }
        }
    }
}

/// Compares windows on a thread of its own.
struct Comparer {
    held: Held,
    target: Arc<DiskFile>,
    block: u64,
    doubt: Arc<AtomicBool>,
}

impl Comparer {
    fn run(&self, queue: &Mutex<Receiver<Job>>) {
        let (mut was, mut now) = (Vec::new(), Vec::new());
        loop {
            let job = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok(Job { candidate, answer }) = job else { return };
            let chunks = self.compare(&candidate, &mut was, &mut now).unwrap_or_else(|error| {
                tracing::warn!(start = candidate.range.start(), %error, "cannot be compared: listed as changed");
                self.doubt.store(true, Ordering::Relaxed);
                vec![candidate]
            });
            // Nobody waits any more where the client is gone.
            let _ = answer.send(chunks);
        }
    }

    fn compare(&self, candidate: &Chunk, was: &mut Vec<u8>, now: &mut Vec<u8>) -> io::Result<Vec<Chunk>> {
        let (start, length) = (candidate.range.start(), usize::try_from(candidate.range.len()).unwrap_or(usize::MAX));
        now.resize(length, 0);
        self.target.read_exact_at(now, start)?;
        let base = match &self.held {
            Held::Unknown => None,
            Held::File(base) => {
                was.clear();
                was.resize(length, 0);
                let there = usize::try_from(base.size().saturating_sub(start)).unwrap_or(usize::MAX).min(length);
                base.read_exact_at(&mut was[..there], start)?;
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

/// Where `offset` of the file is in a window that starts at `start`.
fn at(start: u64, offset: u64) -> usize {
    usize::try_from(offset - start).unwrap_or(usize::MAX)
}

/// The parts of `range` that lie in one block each, of blocks that are counted from the file's start.
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
