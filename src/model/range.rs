//! Where bytes are: in a file ([`ByteRange`]) and on the device ([`PhysAddr`]).

/// A range of bytes of a file, `start` inclusive, `end` exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range from `start` to `end` (exclusive), or nothing where that is empty.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// Offset of the first byte.
    pub fn start(self) -> u64 {
        self.start
    }

    /// Offset after the last byte.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Bytes in the range, at least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// This range without what lies at or past `limit`; nothing where all of it does.
    pub fn clipped(self, limit: u64) -> Option<Self> {
        Self::new(self.start, self.end.min(limit))
    }

    /// This range and `next`, which starts where this one ends, as one.
    pub(super) fn joined(self, next: Self) -> Self {
        debug_assert_eq!(self.end, next.start);
        Self { start: self.start, end: next.end }
    }
}

/// An address on the block device, in bytes, as FIEMAP's `fe_physical` gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    /// The address `bytes` further on.
    pub fn advanced(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}
