//! `[compare]`.

use std::num::NonZero;

use super::Check;
use super::file;
use super::log::size;

/// `[compare]`: how comparisons are made that do not say it themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compare {
    /// `refine`.
    pub refine: Refine,
    /// `refine_limit`: with more candidates on a disk, bytes, contents are not compared unless it was
    /// asked for.
    pub refine_limit: u64,
}

/// Whether the contents of candidates are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refine {
    /// Where a file system copies more than was written: on OCFS2, by blocks of 4 KiB.
    Auto,
    /// By blocks of so many bytes.
    By(NonZero<u64>),
    /// Not at all.
    Never,
}

/// A block size, bytes: a power of two from 512 to 1 MiB.
pub fn block_size(bytes: u64) -> Option<NonZero<u64>> {
    NonZero::new(bytes).filter(|_| bytes.is_power_of_two() && (512..=1 << 20).contains(&bytes))
}

impl Check {
    pub(super) fn compare(&mut self, compare: &file::Compare) -> Compare {
        let refine = match (&compare.refine, compare.refine.as_integer().and_then(|bytes| u64::try_from(bytes).ok())) {
            (toml::Value::String(text), _) if text == "auto" => Some(Refine::Auto),
            (_, Some(0)) => Some(Refine::Never),
            (_, bytes) => bytes.and_then(block_size).map(Refine::By),
        };
        let refine = refine.unwrap_or_else(|| {
            let remedy = "write \"auto\", 0 for never, or a power of two from 512 to 1048576";
            self.problem("compare.refine", format_args!("{} is no block size; {remedy}", compare.refine));
            Refine::Auto
        });
        let limit = &compare.refine_limit;
        let refine_limit = size(limit).unwrap_or_else(|| {
            self.problem("compare.refine_limit", format_args!("{limit} is no size; write it as 4GiB or 4294967296"));
            0
        });
        Compare { refine, refine_limit }
    }
}
