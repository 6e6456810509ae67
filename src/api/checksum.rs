//! The checksum of a disk or of a range of it.

use serde::{Deserialize, Serialize};

/// Response to `GET …/checksum`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checksum {
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
    pub blocks: Option<Vec<String>>,
    /// Hexadecimal. The server writes it last, because it is known only after the blocks.
    pub checksum: String,
}
