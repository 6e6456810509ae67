//! The map of a disk.

use serde::{Deserialize, Serialize};

use crate::model;

/// What a client has to do with a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskMap {
    /// Whether the chunks patch the base, or make the disk from nothing.
    pub mode: Mode,
    /// Why it is full, although a base was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The ranges, in order and disjoint; absent if only the totals were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chunks: Option<Vec<Chunk>>,
    /// Bytes of the disk to fetch, whatever is listed.
    pub data_bytes: u64,
    /// Bytes of the disk to fill with zeros, whatever is listed.
    pub zero_bytes: u64,
    /// Bytes of a block, if contents were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refine: Option<u64>,
    /// Bytes of the data ranges before contents were compared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub candidate_bytes: Option<u64>,
    /// Bytes that are listed only because the file system's map of them cannot be trusted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unverified_bytes: Option<u64>,
    /// The same, by its old name.
    #[serde(rename = "widened_bytes", skip_serializing_if = "Option::is_none")]
    pub unverified_bytes_legacy: Option<u64>,
}

/// What `chunks` are to be applied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing, or whatever is there.
    Full,
    /// The disk of the snapshot compared to.
    Incremental,
}

/// A range of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chunk {
    /// Bytes.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// Where its first byte is stored on the device; 0 if that is not known. The original's clients read a number here.
    pub physical_start: u64,
    #[serde(rename = "type")]
    pub kind: ChunkType,
}

/// What a client has to do with a range.
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
    /// Why it is full, although a base was named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// In order and disjoint.
    pub chunks: Vec<Chunk>,
    /// The offset of the next page, if there is one.
    pub next_offset: Option<u64>,
}
