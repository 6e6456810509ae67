//! The map of a disk.

use serde::{Deserialize, Serialize};

use crate::model;

/// The map of a disk: what a client must fetch or fill with zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMap {
    /// Whether the chunks list the whole disk, or the changes since the base.
    pub mode: Mode,
    /// Why the mode is full, although the request names a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The ranges, in order and disjoint. Absent if the request asks only for totals.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Vec<Chunk>>,
    /// Bytes of the disk to fetch, including those in ranges that are not listed.
    pub data_bytes: u64,
    /// Bytes of the disk to fill with zeros, including those in ranges that are not listed.
    pub zero_bytes: u64,
    /// The block size of the refinement in bytes, if there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refine: Option<u64>,
    /// Bytes of the data ranges before refinement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate_bytes: Option<u64>,
    /// Bytes that are listed only because the file system's map could not be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unverified_bytes: Option<u64>,
    /// The former name of `unverified_bytes`.
    #[serde(rename = "widened_bytes", skip_serializing_if = "Option::is_none")]
    pub unverified_bytes_legacy: Option<u64>,
}

/// The copy that `chunks` can be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Any copy, or none.
    Full,
    /// A copy of the base's disk.
    Incremental,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    pub start: u64,
    pub length: u64,
    /// The device address of its first byte, or 0 if that is unknown: clients of the original exporter require a
    /// number.
    pub physical_start: u64,
    #[serde(rename = "type")]
    pub kind: ChunkType,
}

/// What a client must do with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChunkType {
    /// Fetch its bytes.
    Data,
    /// Fill it with zeros.
    Zero,
}

impl From<model::Chunk> for Chunk {
    fn from(model::Chunk { range, kind, address }: model::Chunk) -> Self {
        let kind = match kind {
            model::ChunkKind::Data => ChunkType::Data,
            model::ChunkKind::Zero => ChunkType::Zero,
        };
        let physical_start = address.map_or(0, |address| address.0);
        Self { start: range.start(), length: range.len(), physical_start, kind }
    }
}

/// A page of the chunks of a disk.
#[derive(Debug, Serialize, Deserialize)]
pub struct ChunkPage {
    /// Size of the disk, bytes.
    pub size: u64,
    pub mode: Mode,
    /// Why the mode is full, although the request names a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Whether the chunks lead back to the base, whose size this is.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub reverse: bool,
    /// In order and disjoint.
    pub chunks: Vec<Chunk>,
    /// The offset of the next page, if there is one.
    pub next_offset: Option<u64>,
}
