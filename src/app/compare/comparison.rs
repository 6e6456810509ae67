//! What changed on a disk, as a stream: found, refined, counted, joined, cut to what was asked for.

use std::num::NonZero;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

use crate::api::{Array, ChunkStream, DiskMap, DiskState, Mode, StreamAborted, Totals, WireChunk};
use crate::app::Error;
use crate::app::compare::refined_cache::{Key, RefinedCache, Refinement};
use crate::app::retention::uses::InUse;
use crate::app::snapshots::document::MapOptions;
use crate::model::chunk::{joined, same_kind};
use crate::model::{ByteRange, Chunk, ChunkKind};
use crate::repository::changes::IsWanted;
use crate::repository::refine::{self, BaseContents, Refined};
use crate::repository::{Changes, CompareError, DiskFile};

/// Ends the streams of one answer: because nobody waits for it any more, or because one broke. Holds the
/// snapshots that they read until the answer is complete or given up.
#[derive(Clone, Debug, Default)]
pub struct Cancellation {
    /// Cancelled where the client is gone.
    pub cancel: CancellationToken,
    broken: Arc<Mutex<Option<Error>>>,
    held: Arc<Mutex<Vec<InUse>>>,
}

impl Cancellation {
    /// Holds a snapshot until the answer's end.
    pub(crate) fn hold(&self, held: InUse) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(held);
    }

    /// Why a stream broke.
    pub fn cause(&self) -> Option<Error> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The same; there is one wherever a stream broke.
    pub(crate) fn cause_or_internal(&self) -> Error {
        self.cause().unwrap_or_else(|| Error::Internal("a stream broke, and nobody knows why".to_owned()))
    }

    /// Tells whether anybody still waits.
    pub(crate) fn is_wanted(&self) -> IsWanted {
        let cancel = self.cancel.clone();
        Arc::new(move || !cancel.is_cancelled())
    }

    pub(crate) fn broke(&self, error: Error) -> StreamAborted {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        StreamAborted
    }
}

/// The changes of one disk, before they are put as a client asked.
pub(crate) struct DiskComparison {
    /// What may have changed.
    pub changes: Changes,
    /// What the changes are from.
    pub held: BaseContents,
    /// What the changes are to.
    pub target: Arc<DiskFile>,
    pub mode: Mode,
    /// Why it is not an incremental one.
    pub reason: Option<&'static str>,
    /// Block size to compare contents by.
    pub refine: Option<NonZero<u64>>,
    /// Where what that finds is kept.
    pub cache: Option<(RefinedCache, Key)>,
    /// From where on.
    pub from: u64,
    /// What a caller is told where the files cannot be compared.
    pub error: Box<dyn Fn(CompareError) -> Error + Send>,
}

impl DiskComparison {
    /// The map as `view` wants it, to be written out while it is found.
    ///
    /// With a `state` it never breaks: the rest of the disk is data then, and `state` says why.
    pub(crate) fn into_map(
        self,
        view: MapOptions,
        stop: &Cancellation,
        state: Option<&DiskState>,
    ) -> Result<DiskMap, Error> {
        let (mode, reason, refine, size) = (self.mode, self.reason, self.refine, self.target.size());
        let totals = Arc::new(Totals::default());
        let mut stream = self.stream(Arc::clone(&totals), stop.clone())?;
        if let Some(state) = state.cloned() {
            let stop = stop.clone();
            stream =
                or_the_rest(stream, size, move || state.fail(stop.cause().map(|e| e.to_string()).unwrap_or_default()));
        }
        let checksums = ChunkTotals { totals: Arc::clone(&totals), rest_is_zero: (mode == Mode::Full).then_some(size) };
        let stream = checksums.of(stream);
        let chunks = if view.summary {
            for chunk in stream {
                chunk.map_err(|StreamAborted| stop.cause_or_internal())?;
            }
            None
        } else {
            Some(Array::new(as_asked(stream, view).map(WireChunk)))
        };
        Ok(DiskMap { mode, reason, refine: refine.map(NonZero::get), chunks, totals })
    }

    /// What tells, when it is called, whether the files still are what they were.
    pub(crate) fn verification(&self) -> impl FnOnce() -> Result<(), CompareError> + Send + 'static + use<> {
        let (held, target) = (self.held.clone(), Arc::clone(&self.target));
        move || refine::verify(&held, &target)
    }

    /// The chunks, joined where they are one run on the device.
    pub(crate) fn stream(self, totals: Arc<Totals>, stop: Cancellation) -> Result<ChunkStream, Error> {
        let Self { changes, held, target, refine, cache, from, error, .. } = self;
        let chunks: Box<dyn Iterator<Item = Result<Chunk, CompareError>> + Send> = match (refine, cache) {
            (None, _) => Box::new(joined(Candidates { changes, totals }, Chunk::continues_in)),
            (Some(block), cache) => {
                if let Some(known) = cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
                    Box::new(again(&known, from, &totals, held, target))
                } else {
                    let checksums = Arc::clone(&totals);
                    let candidates = Candidates { changes, totals };
                    let refined = Refined::new(candidates, held, target, block, stop.is_wanted());
                    let incomplete = refined.incomplete();
                    let refined = joined(refined, Chunk::continues_in);
                    match cache.filter(|_| from == 0) {
                        Some((cache, key)) => Box::new(remembering(refined, checksums, incomplete, cache, key)),
                        None => Box::new(refined),
                    }
                }
            }
        };
        Ok(Box::new(chunks.map(move |chunk| {
            if stop.cancel.is_cancelled() {
                return Err(stop.broke(error(CompareError::Cancelled)));
            }
            chunk.map_err(|cause| stop.broke(error(cause)))
        })))
    }
}

/// What a comparison found, once more, from an offset on; and at the end that the files still are what
/// they were.
fn again(
    known: &Refinement,
    from: u64,
    totals: &Totals,
    held: BaseContents,
    target: Arc<DiskFile>,
) -> impl Iterator<Item = Result<Chunk, CompareError>> + use<> {
    add(&totals.candidate, known.candidate_bytes);
    let rest = ByteRange::new(from, u64::MAX);
    let chunks: Vec<_> = known.chunks.iter().filter_map(|chunk| chunk.within(rest?)).map(Ok).collect();
    chunks.into_iter().chain(
        std::iter::once_with(move || refine::verify(&held, &target)).filter_map(|verified| verified.err().map(Err)),
    )
}

/// Passes `chunks` on, and keeps them when all have been found.
fn remembering(
    chunks: impl Iterator<Item = Result<Chunk, CompareError>>,
    totals: Arc<Totals>,
    incomplete: Arc<AtomicBool>,
    cache: RefinedCache,
    key: Key,
) -> impl Iterator<Item = Result<Chunk, CompareError>> {
    let (mut chunks, mut kept, mut key) = (chunks, Vec::new(), Some(key));
    std::iter::from_fn(move || {
        let next = chunks.next();
        match &next {
            Some(Ok(chunk)) if key.is_some() && RefinedCache::has_room_for(kept.len() + 1) => kept.push(*chunk),
            Some(_) => {
                key = None;
                kept = Vec::new();
            }
            None => {
                let candidate_bytes = totals.candidate.load(Ordering::Relaxed);
                let found = Refinement { chunks: std::mem::take(&mut kept), candidate_bytes };
                // What could not be trusted today may be another day.
                let is_sure = totals.unverified.load(Ordering::Relaxed) == 0 && !incomplete.load(Ordering::Relaxed);
                if let Some(key) = key.take().filter(|_| is_sure) {
                    cache.put(key, found);
                }
            }
        }
        next
    })
}

/// Candidates, counted.
struct Candidates {
    changes: Changes,
    totals: Arc<Totals>,
}

impl Iterator for Candidates {
    type Item = Result<Chunk, CompareError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.changes.next();
        if let Some(Ok(chunk)) = &next
            && chunk.kind == ChunkKind::Data
        {
            add(&self.totals.candidate, chunk.range.len());
        }
        self.totals.unverified.store(self.changes.unverified(), Ordering::Relaxed);
        next
    }
}

/// Counts chunks as they pass.
struct ChunkTotals {
    totals: Arc<Totals>,
    /// Where what is not data is zeros, whether or not it is listed: the size.
    rest_is_zero: Option<u64>,
}

impl ChunkTotals {
    fn of(self, chunks: ChunkStream) -> ChunkStream {
        let Self { totals, rest_is_zero } = self;
        totals.zero.store(rest_is_zero.unwrap_or_default(), Ordering::Relaxed);
        Box::new(chunks.inspect(move |chunk| match chunk {
            Ok(Chunk { range, kind: ChunkKind::Data, .. }) => {
                add(&totals.data, range.len());
                if rest_is_zero.is_some() {
                    totals.zero.fetch_sub(range.len(), Ordering::Relaxed);
                }
            }
            Ok(Chunk { range, kind: ChunkKind::Zero, .. }) if rest_is_zero.is_none() => add(&totals.zero, range.len()),
            _ => {}
        }))
    }
}

fn add(sum: &AtomicU64, bytes: u64) {
    sum.fetch_add(bytes, Ordering::Relaxed);
}

/// Leaves out what `view` does not want, and joins what it wants joined.
pub(crate) fn as_asked(chunks: ChunkStream, view: MapOptions) -> ChunkStream {
    let zeros = view.zeros.unwrap_or(view.compare_to.is_some());
    let chunks = chunks.filter(move |chunk| zeros || !matches!(chunk, Ok(Chunk { kind: ChunkKind::Zero, .. })));
    if view.squash { Box::new(joined(chunks, same_kind)) } else { Box::new(chunks) }
}

/// `chunks`, and where they break, all the rest of a disk of `size` bytes as data; `failed` is told.
fn or_the_rest(chunks: ChunkStream, size: u64, failed: impl FnOnce() + Send + 'static) -> ChunkStream {
    let (mut at, mut failed) = (0, Some(failed));
    Box::new(chunks.map_while(move |chunk| match chunk {
        Ok(chunk) => {
            at = chunk.range.end();
            Some(Ok(chunk))
        }
        Err(StreamAborted) => {
            failed.take()?();
            let rest = ByteRange::new(at, size)?;
            Some(Ok(Chunk { range: rest, kind: ChunkKind::Data, address: None }))
        }
    }))
}
