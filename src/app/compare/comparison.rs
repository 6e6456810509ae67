//! What changed on one disk, found while it is asked for.

use std::num::NonZero;
use std::sync::Arc;

use super::refined_cache::{Key, RefinedCache, Refinement};
use crate::app::Error;
use crate::app::cancellation::Cancellation;
use crate::model::chunk::{Joined, joined};
use crate::model::{ByteRange, Chunk, ChunkKind};
use crate::repository::refine::{self, BaseContents, Refined};
use crate::repository::{Changes, CompareError, DiskFile};

/// What the chunks are to be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Anything: they list the whole disk.
    Full,
    /// The disk of the base.
    Incremental,
}

/// Totals of a whole disk, in bytes, whatever of it is listed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Ranges to fetch.
    pub data: u64,
    /// Ranges to fill with zeros.
    pub zero: u64,
    /// Data ranges before contents were compared.
    pub candidate: u64,
    /// Ranges that are listed only because the file system's map of them cannot be trusted.
    pub unverified: u64,
}

/// The two sides of a comparison, and how it is made.
pub(super) struct Sides {
    pub changes: Changes,
    pub base: BaseContents,
    pub target: Arc<DiskFile>,
    pub mode: Mode,
    /// Why it is not incremental, although a base was named.
    pub reason: Option<&'static str>,
    /// Block size to compare contents by.
    pub refine: Option<NonZero<u64>>,
    /// Where the result of comparing contents is kept.
    pub cache: Option<(RefinedCache, Key)>,
    /// The offset that it starts from.
    pub from: u64,
    /// What the caller hears if the comparison fails.
    pub error: Box<dyn Fn(CompareError) -> Error + Send>,
}

/// Where the chunks come from.
enum Found {
    /// The maps alone.
    Maps(Joined<Changes, CompareError>),
    /// The maps, and the contents of what they list.
    Contents(Joined<Refined<Changes>, CompareError>),
    /// An earlier comparison of the same files.
    Cached { chunks: std::vec::IntoIter<Chunk>, candidate_bytes: u64, is_verified: bool },
}

/// The changes of one disk, in order, joined where they are one run on the device.
pub(super) struct DiskComparison {
    pub mode: Mode,
    pub reason: Option<&'static str>,
    pub refine: Option<NonZero<u64>>,
    pub size: u64,
    found: Found,
    base: BaseContents,
    target: Arc<DiskFile>,
    totals: Totals,
    /// What is kept for the next client, if all of it is found.
    keep: Option<(RefinedCache, Key, Vec<Chunk>)>,
    error: Box<dyn Fn(CompareError) -> Error + Send>,
    cancellation: Cancellation,
}

impl DiskComparison {
    pub fn new(sides: Sides, cancellation: Cancellation) -> Self {
        let Sides { changes, base, target, mode, reason, refine, cache, from, error } = sides;
        let mut keep = None;
        let found = match (refine, cache) {
            (None, _) => Found::Maps(joined(changes, Chunk::continues_in)),
            (Some(block), cache) => match cache.as_ref().and_then(|(cache, key)| cache.get(key)) {
                Some(known) => Found::cached(&known, from),
                None => {
                    keep = cache.filter(|_| from == 0).map(|(cache, key)| (cache, key, Vec::new()));
                    let (base, target) = (base.clone(), Arc::clone(&target));
                    let refined = Refined::new(changes, base, target, block, cancellation.is_wanted());
                    Found::Contents(joined(refined, Chunk::continues_in))
                }
            },
        };
        let (size, totals) = (target.size(), Totals::default());
        Self { mode, reason, refine, size, found, base, target, totals, keep, error, cancellation }
    }

    /// The totals; complete after the last chunk.
    pub fn totals(&self) -> Totals {
        let zero = match self.mode {
            // What is not data is zeros, whether or not it is listed.
            Mode::Full => self.size.saturating_sub(self.totals.data),
            Mode::Incremental => self.totals.zero,
        };
        Totals { zero, candidate: self.found.candidate_bytes(), unverified: self.found.unverified(), ..self.totals }
    }

    /// Checks that the files still are what they were: for an answer that stops before the last chunk.
    pub fn verify(&self) -> Result<(), Error> {
        refine::verify(&self.base, &self.target).map_err(|error| Error::Internal(error.to_string()))
    }

    /// Keeps a chunk for the next client, as long as there is room.
    fn keep(&mut self, chunk: Chunk) {
        match &mut self.keep {
            Some((_, _, chunks)) if RefinedCache::has_room_for(chunks.len() + 1) => chunks.push(chunk),
            keep => *keep = None,
        }
    }

    /// All chunks are found.
    fn finish(&mut self) {
        // What cannot be trusted now may be trusted another day.
        let is_sure = self.found.unverified() == 0 && !self.found.is_incomplete();
        if let Some((cache, key, chunks)) = self.keep.take().filter(|_| is_sure) {
            cache.put(key, Refinement { chunks, candidate_bytes: self.found.candidate_bytes() });
        }
    }
}

impl Iterator for DiskComparison {
    type Item = Result<Chunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.found.next(&self.base, &self.target);
        if next.is_some() && self.cancellation.is_cancelled() {
            return Some(Err((self.error)(CompareError::Cancelled)));
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
                Some(Err((self.error)(cause)))
            }
        }
    }
}

impl Found {
    /// What an earlier comparison found, from the offset `from` on.
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
