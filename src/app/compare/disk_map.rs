//! The map of a disk, with the options of the client's request.

use super::comparison::{DiskComparison, Mode, Totals};
use super::options::MapOptions;
use crate::app::Error;
use crate::model::chunk::{Joined, joined, same_kind};
use crate::model::{ByteRange, Chunk, ChunkKind};

/// The map of a disk. Chunks are found lazily, so that they are never all in memory.
pub struct DiskMap {
    pub mode: Mode,
    /// Why the map is full, although the request names a base.
    pub reason: Option<&'static str>,
    /// Block size of the refinement, bytes.
    pub refine: Option<u64>,
    /// Size of the disk, bytes.
    pub size: u64,
    chunks: Chunks,
}

enum Chunks {
    /// Adjacent chunks of one kind are joined.
    Squashed(Joined<Listed, Error>),
    AsFound(Listed),
}

/// The chunks that are listed.
struct Listed {
    source: Source,
    /// Lists only what is at this offset and after it.
    from: u64,
    zeros: bool,
    on_failure: OnFailure,
}

enum Source {
    Comparison(Box<DiskComparison>),
    /// The disk could not be read: it is one data chunk.
    Everything(Option<Chunk>),
}

enum OnFailure {
    /// A failure ends the map with an error.
    Fail,
    /// After a failure, the rest of the disk is listed as data. Clients that do not read `status` then request those
    /// bytes, and get an error.
    ListRest { at: u64, failure: Option<Error> },
}

impl DiskMap {
    /// The map from `comparison`, from the offset `from` on. A failure ends it.
    pub(super) fn new(comparison: DiskComparison, options: MapOptions, from: u64) -> Self {
        Self::of(comparison, options, from, OnFailure::Fail)
    }

    /// As [`DiskMap::new`], but after a failure the rest of the disk is listed as data.
    pub(super) fn infallible(comparison: DiskComparison, options: MapOptions) -> Self {
        Self::of(comparison, options, 0, OnFailure::ListRest { at: 0, failure: None })
    }

    fn of(comparison: DiskComparison, options: MapOptions, from: u64, on_failure: OnFailure) -> Self {
        let DiskComparison { mode, reason, refine, size, .. } = comparison;
        let source = Source::Comparison(Box::new(comparison));
        let listed = Listed { source, from, zeros: options.lists_zeros(), on_failure };
        let chunks = if options.squash { Chunks::Squashed(joined(listed, same_kind)) } else { Chunks::AsFound(listed) };
        Self { mode, reason, refine: refine.map(std::num::NonZero::get), size, chunks }
    }

    /// The map of a disk of `size` bytes that could not be read because of `failure`: all of it is data.
    pub(super) fn everything(size: u64, failure: Error) -> Self {
        let all = ByteRange::new(0, size).map(|range| Chunk { range, kind: ChunkKind::Data, address: None });
        let on_failure = OnFailure::ListRest { at: size, failure: Some(failure) };
        let chunks = Chunks::AsFound(Listed { source: Source::Everything(all), from: 0, zeros: false, on_failure });
        Self { mode: Mode::Full, reason: None, refine: None, size, chunks }
    }

    fn listed(&self) -> &Listed {
        match &self.chunks {
            Chunks::Squashed(chunks) => chunks.inner(),
            Chunks::AsFound(chunks) => chunks,
        }
    }

    /// Totals of the whole disk; complete after the last chunk.
    pub fn totals(&self) -> Totals {
        match &self.listed().source {
            Source::Comparison(comparison) => {
                let totals = comparison.totals();
                match &self.listed().on_failure {
                    OnFailure::ListRest { at, failure: Some(_) } => {
                        let rest = self.size.saturating_sub(*at);
                        Totals { data: totals.data + rest, zero: totals.zero.saturating_sub(rest), ..totals }
                    }
                    _ => totals,
                }
            }
            Source::Everything(_) => Totals { data: self.size, ..Totals::default() },
        }
    }

    /// The failure after which an infallible map lists the rest of the disk as data. Takes it out of the map.
    pub fn take_failure(&mut self) -> Option<Error> {
        let listed = match &mut self.chunks {
            Chunks::Squashed(chunks) => chunks.inner_mut(),
            Chunks::AsFound(chunks) => chunks,
        };
        match &mut listed.on_failure {
            OnFailure::ListRest { failure, .. } => failure.take(),
            OnFailure::Fail => None,
        }
    }

    /// Finds all chunks, so that the totals are complete.
    pub(super) fn exhaust(&mut self) -> Result<(), Error> {
        self.try_for_each(|chunk| chunk.map(drop))
    }

    /// Checks that the files are unchanged.
    pub(super) fn verify(&self) -> Result<(), Error> {
        match &self.listed().source {
            Source::Comparison(comparison) => comparison.verify(),
            Source::Everything(_) => Ok(()),
        }
    }
}

impl Iterator for DiskMap {
    type Item = Result<Chunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match &mut self.chunks {
            Chunks::Squashed(chunks) => chunks.next(),
            Chunks::AsFound(chunks) => chunks.next(),
        }
    }
}

impl Iterator for Listed {
    type Item = Result<Chunk, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if matches!(self.on_failure, OnFailure::ListRest { failure: Some(_), .. })
            && matches!(self.source, Source::Comparison(_))
        {
            return None;
        }
        loop {
            let comparison = match &mut self.source {
                Source::Everything(all) => return all.take().map(Ok),
                Source::Comparison(comparison) => comparison,
            };
            match (comparison.next(), &mut self.on_failure) {
                (Some(Ok(chunk)), on_failure) => {
                    if let OnFailure::ListRest { at, .. } = on_failure {
                        *at = chunk.range.end();
                    }
                    let listed = ByteRange::new(self.from, u64::MAX).and_then(|rest| chunk.within(rest));
                    if let Some(chunk) = listed.filter(|chunk| self.zeros || chunk.kind != ChunkKind::Zero) {
                        return Some(Ok(chunk));
                    }
                }
                (Some(Err(error)), OnFailure::ListRest { at, failure }) => {
                    *failure = Some(error);
                    let rest = ByteRange::new(*at, comparison.size)?;
                    return Some(Ok(Chunk { range: rest, kind: ChunkKind::Data, address: None }));
                }
                (next, _) => return next,
            }
        }
    }
}
