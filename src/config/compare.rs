//! `[compare]`: defaults for comparisons whose request does not say.

use std::num::NonZero;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::units::size;
use super::validator::Validator;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    pub refine: Refine,
    /// If a disk has more candidates than this, in bytes, their contents are compared only on request.
    pub refine_limit: u64,
}

/// Whether the contents of candidates are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refine {
    /// In blocks of 4 KiB, on a file system that copies more than was written (OCFS2).
    Auto,
    /// In blocks of this many bytes.
    By(NonZero<u64>),
    Never,
}

/// The block sizes in bytes. They must be powers of two.
pub const REFINE_BLOCKS: RangeInclusive<u64> = 512..=1 << 20;

/// A block size in bytes: a power of two in [`REFINE_BLOCKS`].
pub fn block_size(bytes: u64) -> Option<NonZero<u64>> {
    NonZero::new(bytes).filter(|_| bytes.is_power_of_two() && REFINE_BLOCKS.contains(&bytes))
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    /// A number of bytes, or "auto".
    refine: toml::Value,
    refine_limit: toml::Value,
}

impl Default for Keys {
    fn default() -> Self {
        Self { refine: "auto".into(), refine_limit: "1GiB".into() }
    }
}

impl Validator {
    pub(super) fn compare(&mut self, keys: &Keys) -> Compare {
        let refine = match (&keys.refine, keys.refine.as_integer().and_then(|bytes| u64::try_from(bytes).ok())) {
            (toml::Value::String(text), _) if text == "auto" => Some(Refine::Auto),
            (_, Some(0)) => Some(Refine::Never),
            (_, bytes) => bytes.and_then(block_size).map(Refine::By),
        };
        let refine = refine.unwrap_or_else(|| {
            let expected = "expected \"auto\", 0 for never, or a power of two from 512 to 1048576";
            self.problem("compare.refine", format_args!("invalid block size {}; {expected}", keys.refine));
            Refine::Auto
        });
        let limit = &keys.refine_limit;
        let refine_limit = size(limit).unwrap_or_else(|| {
            self.problem("compare.refine_limit", format_args!("invalid size {limit}; expected 4GiB or 4294967296"));
            0
        });
        Compare { refine, refine_limit }
    }
}
