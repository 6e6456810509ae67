//! The checksum of a disk or of a range of it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::formats;

/// The checksum of a disk or a part of it.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[schema(example = json!({
    "algorithm": "blake3",
    "start": 0,
    "length": 10737418240_u64,
    "checksum": "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
}))]
pub struct Checksum {
    /// How it was computed. `blake3` without blocks gives the same as `b3sum`. `blake2b-256` with blocks of 4194304 gives
    /// what oVirt imageio calls `blake2b`.
    #[schema(value_type = formats::Algorithm)]
    pub algorithm: String,
    /// The block size in bytes, if `checksum` is the checksum of the blocks' checksums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// The offset of the range, bytes.
    pub start: u64,
    /// The length of the range, bytes.
    pub length: u64,
    /// The checksum of each block in order, hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<formats::Digest>>)]
    pub blocks: Option<Vec<String>>,
    /// The checksum. Last, because it is known only after the blocks.
    #[schema(value_type = formats::Digest)]
    pub checksum: String,
}
