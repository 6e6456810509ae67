//! The chunks of one disk: one after the other, or as a page.

use super::comparison::Mode;
use super::disk_map::DiskMap;
use crate::app::Error;
use crate::app::retention::InUse;
use crate::model::{Chunk, ChunkKind};

/// The chunks of one disk, found lazily.
pub struct DiskChunks {
    map: DiskMap,
    /// Only chunks of this kind.
    kind: Option<ChunkKind>,
    /// Keeps the snapshots from being swept.
    _in_use: Vec<InUse>,
}

/// A page of the chunks of one disk.
pub struct ChunkPage {
    /// Size of the disk, bytes.
    pub size: u64,
    pub mode: Mode,
    /// Why the list is full, although the request names a base.
    pub reason: Option<&'static str>,
    pub chunks: Vec<Chunk>,
    /// The offset of the next page, if there is one.
    pub next_offset: Option<u64>,
}

impl DiskChunks {
    pub(super) fn new(map: DiskMap, kind: Option<ChunkKind>, in_use: Vec<InUse>) -> Self {
        Self { map, kind, _in_use: in_use }
    }

    /// The next chunk of the requested kind.
    fn find(&mut self) -> Option<Result<Chunk, Error>> {
        let is_wanted = |chunk: &Chunk| self.kind.is_none_or(|kind| chunk.kind == kind);
        self.map.find(|chunk| chunk.as_ref().map_or(true, is_wanted))
    }

    /// The first `limit` chunks, followed by an error if the files have changed.
    pub fn first(self, limit: usize) -> impl Iterator<Item = Result<Chunk, Error>> + Send {
        let (mut chunks, mut remaining, mut is_over) = (self, limit, false);
        std::iter::from_fn(move || {
            if is_over {
                return None;
            }
            let next = if remaining > 0 { chunks.find() } else { None };
            remaining = remaining.saturating_sub(1);
            next.or_else(|| {
                is_over = true;
                // Only reaching the end of the disk checks the files; the limit may come first.
                chunks.map.verify().err().map(Err)
            })
        })
    }

    /// The first `limit` chunks as a page.
    pub(super) fn page(mut self, limit: usize) -> Result<ChunkPage, Error> {
        let mut chunks = Vec::new();
        let mut next_offset = None;
        while let Some(chunk) = self.find() {
            let chunk = chunk?;
            if chunks.len() == limit {
                // The next page starts with this chunk.
                next_offset = Some(chunk.range.start());
                break;
            }
            chunks.push(chunk);
        }
        self.map.verify()?;
        let DiskMap { size, mode, reason, .. } = self.map;
        Ok(ChunkPage { size, mode, reason, chunks, next_offset })
    }
}
