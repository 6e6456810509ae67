//! The checksum of a disk or a part of it.

use std::sync::{Arc, OnceLock};

use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::{Array, StreamAborted};

/// Answer to `GET …/checksum`.
#[derive(Debug, Serialize)]
pub struct Checksum {
    /// How it is made.
    pub algorithm: &'static str,
    /// Bytes of a block, where `checksum` is that of the blocks' checksums.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u64>,
    /// Where it starts, bytes.
    pub start: u64,
    /// Bytes that it is of.
    pub length: u64,
    /// Of each block, in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub blocks: Option<Array<BlockSum>>,
    /// Hexadecimal digits. It stands when the blocks are through, which is why it is behind them.
    pub checksum: Deferred,
}

/// What is known by the time that it is written out, or breaks what is being written.
#[derive(Clone, Debug, Default)]
pub struct Deferred(Arc<OnceLock<String>>);

impl Deferred {
    /// It is known. The first value stays.
    pub fn set(&self, value: String) {
        let _ = self.0.set(value);
    }
}

impl<T: ToString> From<T> for Deferred {
    fn from(value: T) -> Self {
        Self(Arc::new(OnceLock::from(value.to_string())))
    }
}

impl Serialize for Deferred {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.get().ok_or_else(|| S::Error::custom("it did not come to an end"))?)
    }
}

/// The checksum of a block, or that no more can be made. The latter breaks what is being written.
#[derive(Debug)]
pub struct BlockSum(pub Result<String, StreamAborted>);

impl Serialize for BlockSum {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(digits) => serializer.serialize_str(digits),
            Err(StreamAborted) => Err(S::Error::custom("the disk could not be read to its end")),
        }
    }
}
