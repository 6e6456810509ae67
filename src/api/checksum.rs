//! The checksum of a disk or a part of it.

use serde::{Deserialize, Serialize};

/// Answer to `GET …/checksum`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Checksum {
    pub algorithm: String,
    /// Bytes of a block, if `checksum` is the checksum of the blocks' checksums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// The offset that it starts from, bytes.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// The checksum of each block, in order: hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Vec<String>>,
    /// Hexadecimal digits. It is known after the blocks, so the server writes it last.
    pub checksum: String,
}
