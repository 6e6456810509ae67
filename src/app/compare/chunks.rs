//! The journey to the chunks of one disk: a page of them, or all, as they are found.

use std::sync::Arc;

use crate::api::{self, ChunkStream, Mode, StreamAborted, Totals};
use crate::app::compare::comparison::{Cancellation, as_asked};
use crate::app::snapshots::document::MapOptions;
use crate::app::{App, Error};
use crate::auth::Session;
use crate::config::Refine;
use crate::model::{ByteRange, Chunk, ChunkKind, DiskName, SnapshotId, SnapshotPair, VmId};

/// Which chunks of a disk are wanted.
#[derive(Clone, Copy, Debug)]
pub struct ChunkQuery {
    /// How they are put. Zeros are listed as it says.
    pub view: MapOptions,
    /// Only those of one kind.
    pub kind: Option<ChunkKind>,
    /// From where on: an offset, bytes.
    pub from: u64,
    /// How many at a time.
    pub at_most: usize,
}

/// The chunks of a disk, not yet found.
pub struct DiskChunks {
    /// The chunks, from where they were asked for.
    pub chunks: ChunkStream,
    /// Tells, when the last one was taken, whether the files still are what they were.
    verified: Box<dyn FnOnce() -> Result<(), StreamAborted> + Send>,
    /// Whether they patch the base, or make the disk from nothing.
    pub mode: Mode,
    /// Why they are not from the base that was named.
    pub reason: Option<&'static str>,
    /// Size of the disk, bytes.
    pub size: u64,
}

/// Of which disk: VM, snapshot, disk.
pub type DiskRef = (VmId, SnapshotId, DiskName);

impl App {
    /// The chunks of a disk as they are found, in order.
    ///
    /// # Errors
    /// Those of [`App::snapshot`]; [`Error::BadRequest`] for an offset past the end.
    pub async fn chunks(
        self: &Arc<Self>,
        _session: &Session,
        place: DiskRef,
        wanted: ChunkQuery,
        stop: Cancellation,
    ) -> Result<DiskChunks, Error> {
        self.blocking(move |app| app.find_chunks(&place, wanted, stop)).await
    }

    /// One page of the chunks of a disk.
    ///
    /// # Errors
    /// As [`App::chunks`].
    pub async fn chunk_page(
        self: &Arc<Self>,
        _session: &Session,
        place: DiskRef,
        wanted: ChunkQuery,
        stop: Cancellation,
    ) -> Result<api::ChunkPage, Error> {
        self.blocking(move |app| {
            let found = app.find_chunks(&place, wanted, stop.clone())?;
            found.page(wanted.at_most).map_err(|StreamAborted| stop.cause_or_internal())
        })
        .await
    }

    fn find_chunks(
        &self,
        (vm_ref, id, name): &DiskRef,
        wanted: ChunkQuery,
        stop: Cancellation,
    ) -> Result<DiskChunks, Error> {
        self.hold_viewed(*id, wanted.view, &stop)?;
        let snapshot = self.snapshot_of(vm_ref, *id)?;
        let disk = snapshot.disk(name).ok_or(Error::NotFound("the snapshot has no such disk"))?;
        let size = disk.identity.size;
        if wanted.from > size {
            let text = format!("startingOffset={} is past the end of the disk, which is at {size}", wanted.from);
            return Err(Error::BadRequest(text));
        }
        // Blocks are compared whole, so that they are listed the same from anywhere.
        let start = match wanted.view.refine {
            Some(Refine::By(block)) => wanted.from - wanted.from % block,
            _ => wanted.from,
        };
        let base = self.base_of(wanted.view)?;
        let pair = base.as_ref().map(|base| SnapshotPair::new(base, &snapshot)).transpose()?;
        let found = self.find(&snapshot, pair.as_ref(), disk, wanted.view, start, &stop)?;
        let (mode, reason) = (found.mode, found.reason);
        let verify = found.verification();
        let broken = stop.clone();
        // What is cut off before its end is not checked by its end.
        let verified = move || verify().map_err(|error| broken.broke(Error::Internal(error.to_string())));
        let chunks = found.stream(Arc::<Totals>::default(), stop)?;
        let rest = ByteRange::new(wanted.from, u64::MAX);
        let chunks = chunks.filter_map(move |chunk| chunk.map(|chunk| chunk.within(rest?)).transpose());
        let chunks = as_asked(Box::new(chunks), wanted.view);
        let is_wanted = move |chunk: &Result<Chunk, StreamAborted>| match (chunk, wanted.kind) {
            (Ok(chunk), Some(kind)) => chunk.kind == kind,
            _ => true,
        };
        let verified = Box::new(verified);
        Ok(DiskChunks { chunks: Box::new(chunks.filter(is_wanted)), verified, mode, reason, size })
    }
}

impl DiskChunks {
    /// The first `at_most` of them, and [`StreamAborted`] after them where the files are not what they were.
    pub fn first(self, at_most: usize) -> impl Iterator<Item = Result<Chunk, StreamAborted>> + Send {
        let verified = self.verified;
        self.chunks.take(at_most).chain(std::iter::once_with(verified).filter_map(|verified| verified.err().map(Err)))
    }

    fn page(mut self, at_most: usize) -> Result<api::ChunkPage, StreamAborted> {
        let chunks: Result<Vec<Chunk>, StreamAborted> = self.chunks.by_ref().take(at_most).collect();
        let chunks = chunks?.into_iter().map(|chunk| api::WireChunk(Ok(chunk))).collect();
        // The next page finds this one anew.
        let next = self.chunks.next().transpose()?;
        let next_offset = next.map(|chunk| chunk.range.start());
        (self.verified)()?;
        Ok(api::ChunkPage { size: self.size, mode: self.mode, reason: self.reason, chunks, next_offset })
    }
}
