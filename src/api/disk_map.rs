//! The map of a disk.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model;

/// The map of a disk: what a client must fetch or fill with zeros.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskMap {
    /// Whether the chunks list the whole disk, or the changes since the base.
    pub mode: Mode,
    /// Why the mode is `full`, although the request names a base.
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

/// The copy that `chunks` can be applied to: any copy or none (`full`), or a copy of the base's disk (`incremental`). With
/// `full`, after a comparison the chunks cover the whole disk, including ranges of zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Any copy, or none.
    Full,
    /// A copy of the base's disk.
    Incremental,
}

/// A range of a disk, and what a client must do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({"start": 0, "length": 65536, "physical_start": 1073741824, "type": "data"}))]
pub struct Chunk {
    /// The first byte.
    pub start: u64,
    /// The number of bytes.
    #[schema(minimum = 1)]
    pub length: u64,
    /// The address of its first byte on the device, bytes (`fe_physical` of FIEMAP); 0 if it has none.
    pub physical_start: u64,
    /// What to do with it.
    #[serde(rename = "type")]
    pub kind: ChunkType,
}

/// What a client must do with a range: fetch its bytes (`data`), or fill it with zeros (`zero`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "size": 10737418240_u64,
    "mode": "incremental",
    "chunks": [
        {"start": 0, "length": 65536, "physical_start": 1073741824, "type": "data"},
        {"start": 1048576, "length": 4096, "physical_start": 0, "type": "zero"}
    ],
    "next_offset": null
}))]
pub struct ChunkPage {
    /// Size of the disk, bytes.
    pub size: u64,
    /// Whether the chunks list the whole disk, or the changes since the base.
    pub mode: Mode,
    /// Why the mode is `full`, although the request names a base.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// `true` if the chunks lead back to the base, whose size this is; otherwise missing.
    #[serde(default, skip_serializing_if = "super::is_false")]
    pub reverse: bool,
    /// In order and disjoint.
    pub chunks: Vec<Chunk>,
    /// The `startingOffset` of the next page; `null` on the last page.
    #[schema(required)]
    pub next_offset: Option<u64>,
}
