//! The comparison of one disk. It finds the changes lazily.

use std::num::NonZero;
use std::sync::Arc;

use super::measured::Measured;
use super::refined_cache::{Key, RefinedCache, Refinement};
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::model::chunk::{Joined, joined};
use crate::model::{ByteRange, Chunk, ChunkKind};
use crate::repository::refine::{self, BaseContents, Refined};
use crate::repository::{Changes, CompareError, DiskFile};

/// The copy that the chunks can be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Any: the chunks list the whole disk.
    Full,
    /// A copy of the base's disk.
    Incremental,
}

/// Totals of a whole disk in bytes, even if only a part is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ranges to fetch.
    pub data: u64,
    /// Ranges to fill with zeros.
    pub zero: u64,
    /// Data ranges before refinement.
    pub candidate: u64,
    /// Ranges that are listed only because the file system's map could not be trusted.
    pub unverified: u64,
}

/// The two sides of a comparison, and its options.
pub(super) struct Sides {
    pub changes: Changes,
    pub base: BaseContents,
    pub target: Arc<DiskFile>,
    pub mode: Mode,
    /// Why the comparison is full, although the request names a base.
    pub reason: Option<&'static str>,
    /// Block size of the refinement.
    pub refine: Option<NonZero<u64>>,
    /// The cache for the refinement's result.
    pub cache: Option<(RefinedCache, Key)>,
    /// The offset to start from.
    pub from: u64,
    /// Converts a failure of the comparison to the caller's error.
    pub error: Box<dyn Fn(CompareError) -> Error + Send>,
}

/// The source of the chunks.
enum ChunkSource {
    /// The extent maps only.
    Maps(Joined<Changes, CompareError>),
    /// The extent maps, refined.
    Contents(Joined<Refined<Changes>, CompareError>),
    /// The result of an earlier comparison of the same files.
    Cached { chunks: std::vec::IntoIter<Chunk>, candidate_bytes: u64, is_verified: bool },
}

/// The changes of one disk, in order. Chunks that are contiguous on the device are joined.
pub(super) struct DiskComparison {
    pub mode: Mode,
    pub reason: Option<&'static str>,
    pub refine: Option<NonZero<u64>>,
    pub size: u64,
    source: ChunkSource,
    base: BaseContents,
    target: Arc<DiskFile>,
    totals: Totals,
    /// The chunks for the cache, once all are found.
    keep: Option<(RefinedCache, Key, Vec<Chunk>)>,
    error: Box<dyn Fn(CompareError) -> Error + Send>,
    cancellation: Cancellation,
    /// Only of comparisons with a base.
    measured: Option<Measured>,
}

impl DiskComparison {
    pub fn new(sides: Sides, cancellation: Cancellation) -> Self {
        let Sides { changes, base, target, mode, reason, refine, cache, from, error } = sides;
        let mut keep = None;
        let source = match (refine, cache) {
            (None, _) => ChunkSource::Maps(joined(changes, Chunk::continues_in)),
            (Some(block), cache) => match cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
                Some(known) => ChunkSource::cached(&known, from),
                None => {
                    keep = cache.filter(|_| from == 0).map(|(cache, key)| (cache, key, Vec::new()));
                    let (base, target) = (base.clone(), Arc::clone(&target));
                    let refined = Refined::new(changes, base, target, block, cancellation.is_wanted());
                    ChunkSource::Contents(joined(refined, Chunk::continues_in))
                }
            },
        };
        let (size, totals) = (target.size(), Totals::default());
        let measured = None;
        Self { mode, reason, refine, size, source, base, target, totals, keep, error, cancellation, measured }
    }

    /// As this comparison, counted in the metrics.
    pub fn measured(self, measured: Measured) -> Self {
        Self { measured: Some(measured), ..self }
    }

    /// The totals; complete after the last chunk.
    pub fn totals(&self) -> Totals {
        let zero = match self.mode {
            // All that is not data is zeros, listed or not.
            Mode::Full => self.size.saturating_sub(self.totals.data),
            Mode::Incremental => self.totals.zero,
        };
        Totals { zero, candidate: self.source.candidate_bytes(), unverified: self.source.unverified(), ..self.totals }
    }

    /// Checks that the files are unchanged. For responses that stop before the last chunk, where the iterator checks
    /// it.
    pub fn verify(&self) -> Result<(), Error> {
        refine::verify(&self.base, &self.target).map_err(&self.error)
    }

    /// Collects a chunk for the cache while there is room.
    fn keep(&mut self, chunk: Chunk) {
        match &mut self.keep {
            Some((_, _, chunks)) if RefinedCache::has_room_for(chunks.len() + 1) => chunks.push(chunk),
            keep => *keep = None,
        }
    }

    /// The caller's error for `cause`.
    fn failed(&mut self, cause: CompareError) -> Error {
        let error = (self.error)(cause);
        if let Some(mut measured) = self.measured.take() {
            measured.failed(&error);
        }
        error
    }

    /// Counts and caches the result after the last chunk.
    fn finish(&mut self) {
        if let Some(mut measured) = self.measured.take() {
            measured.finished(self.mode == Mode::Full);
            if matches!(self.source, ChunkSource::Contents(_)) {
                measured.refined(self.source.candidate_bytes(), self.totals.data);
            }
        }
        // An incomplete result is not cached: a later comparison may find a better one.
        let is_final = self.source.unverified() == 0 && !self.source.is_incomplete();
        if let Some((cache, key, chunks)) = self.keep.take().filter(|_| is_final) {
            cache.put(key, Refinement { chunks, candidate_bytes: self.source.candidate_bytes() });
        }
    }
}

impl Iterator for DiskComparison {
    type Item = Result<Chunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.source.next(&self.base, &self.target);
        if next.is_some() && self.cancellation.is_cancelled() {
            // The chunk is lost, so the result is incomplete.
            self.keep = None;
            return Some(Err(self.failed(CompareError::Cancelled)));
        }
        match next {
            None => {
                self.finish();
                None
            }
            Some(Ok(chunk)) => {
                match chunk.kind {
                    ChunkKind::Data => self.totals.data += chunk.range.len(),
                    ChunkKind::Zero => self.totals.zero += chunk.range.len(),
                }
                self.keep(chunk);
                Some(Ok(chunk))
            }
            Some(Err(cause)) => {
                self.keep = None;
                Some(Err(self.failed(cause)))
            }
        }
    }
}

impl ChunkSource {
    /// The chunks of an earlier comparison, from the offset `from` on.
    fn cached(known: &Refinement, from: u64) -> Self {
        let rest = ByteRange::new(from, u64::MAX);
        let chunks: Vec<_> = known.chunks.iter().filter_map(|chunk| chunk.within(rest?)).collect();
        Self::Cached { chunks: chunks.into_iter(), candidate_bytes: known.candidate_bytes, is_verified: false }
    }

    fn next(&mut self, base: &BaseContents, target: &Arc<DiskFile>) -> Option<Result<Chunk, CompareError>> {
        match self {
            Self::Maps(chunks) => chunks.next(),
            Self::Contents(chunks) => chunks.next(),
            Self::Cached { chunks, is_verified, .. } => match chunks.next() {
                Some(chunk) => Some(Ok(chunk)),
                None if *is_verified => None,
                None => {
                    *is_verified = true;
                    refine::verify(base, target).err().map(Err)
                }
            },
        }
    }

    fn candidate_bytes(&self) -> u64 {
        match self {
            Self::Maps(_) => 0,
            Self::Contents(chunks) => chunks.inner().candidate_bytes(),
            Self::Cached { candidate_bytes, .. } => *candidate_bytes,
        }
    }

    fn unverified(&self) -> u64 {
        match self {
            Self::Maps(chunks) => chunks.inner().unverified(),
            Self::Contents(chunks) => chunks.inner().candidates().unverified(),
            Self::Cached { .. } => 0,
        }
    }

    fn is_incomplete(&self) -> bool {
        matches!(self, Self::Contents(chunks) if chunks.inner().is_incomplete())
    }
}
