//! The map of a disk: written out chunk by chunk as it is found, so that no memory holds it all.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use serde::ser::{Error as _, SerializeStruct};
use serde::{Serialize, Serializer};

use super::{Array, Status};
use crate::model::{Chunk, ChunkKind};

/// The map could not be read to its end; whoever made the stream knows why.
#[derive(Clone, Copy, Debug)]
pub struct StreamAborted;

/// Chunks as they are found.
pub type ChunkStream = Box<dyn Iterator<Item = Result<Chunk, StreamAborted>> + Send>;

/// What a client has to do with a disk.
#[derive(Debug)]
pub struct DiskMap {
    /// Whether the chunks patch the base, or make the disk from nothing.
    pub mode: Mode,
    /// Why a full listing was given where an incremental one was asked for.
    pub reason: Option<&'static str>,
    /// Bytes of a block whose content was compared, where that was done.
    pub refine: Option<u64>,
    /// The ranges, in order, disjoint; nothing where only the sums were asked for.
    pub chunks: Option<Array<WireChunk>>,
    /// Sums over all of the disk, also of what is not listed. They stand when the chunks are through.
    pub totals: Arc<Totals>,
}

/// Sums of bytes.
#[derive(Debug, Default)]
pub struct Totals {
    /// Of the ranges to fetch.
    pub data: AtomicU64,
    /// Of the ranges to make zeros.
    pub zero: AtomicU64,
    /// Of the data ranges before blocks were compared.
    pub candidate: AtomicU64,
    /// Of what is listed only because the file system's map could not be trusted.
    pub unverified: AtomicU64,
}

impl Serialize for DiskMap {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_struct("DiskMap", 8)?;
        map.serialize_field("mode", &self.mode)?;
        if let Some(reason) = self.reason {
            map.serialize_field("reason", reason)?;
        }
        if let Some(chunks) = &self.chunks {
            map.serialize_field("chunks", chunks)?;
        }
        let sum = |of: &AtomicU64| of.load(Ordering::Relaxed);
        map.serialize_field("data_bytes", &sum(&self.totals.data))?;
        map.serialize_field("zero_bytes", &sum(&self.totals.zero))?;
        if let Some(block) = self.refine {
            map.serialize_field("refine", &block)?;
            map.serialize_field("candidate_bytes", &sum(&self.totals.candidate))?;
        }
        match sum(&self.totals.unverified) {
            0 => {}
            unverified => map.serialize_field("widened_bytes", &unverified)?,
        }
        map.end()
    }
}

/// A page of the chunks of a disk.
#[derive(Debug, Serialize)]
pub struct ChunkPage {
    /// Size of the disk, bytes.
    pub size: u64,
    /// Whether the chunks patch the base, or make the disk from nothing.
    pub mode: Mode,
    /// Why a full listing was given where an incremental one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// The chunks, in order, disjoint.
    pub chunks: Vec<WireChunk>,
    /// Where the next page starts; nothing where there is none.
    pub next_offset: Option<u64>,
}

/// What `chunks` are to be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing, or whatever is there.
    Full,
    /// The disk of the snapshot compared to.
    Incremental,
}

/// Whether a disk's file is there and is the one that was taken, and why not.
#[derive(Clone, Debug, Default)]
pub struct DiskState(Arc<OnceLock<String>>);

impl DiskState {
    /// It is not. The first reason stays.
    pub fn fail(&self, reason: String) {
        let _ = self.0.set(reason);
    }
}

impl Serialize for DiskState {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut state = serializer.serialize_struct("DiskState", 2)?;
        match self.0.get() {
            None => state.serialize_field("status", &Status::Ok)?,
            Some(reason) => {
                state.serialize_field("status", &Status::Error)?;
                state.serialize_field("status_reason", reason)?;
            }
        }
        state.end()
    }
}

/// A range of a disk, or that no more can be found. The latter breaks what is being written.
#[derive(Debug)]
pub struct WireChunk(pub Result<Chunk, StreamAborted>);

impl Serialize for WireChunk {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let Self(Ok(Chunk { range, kind, address })) = self else {
            return Err(S::Error::custom("the map could not be read to its end"));
        };
        let mut chunk = serializer.serialize_struct("Chunk", 4)?;
        chunk.serialize_field("start", &range.start())?;
        chunk.serialize_field("length", &range.len())?;
        // Clients of the original read a number here; what has no address says 0.
        chunk.serialize_field("physical_start", &address.map_or(0, |address| address.0))?;
        let kind = match kind {
            ChunkKind::Data => "data",
            ChunkKind::Zero => "zero",
        };
        chunk.serialize_field("type", kind)?;
        chunk.end()
    }
}
