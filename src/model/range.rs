//! Positions in a file ([`ByteRange`]) and on the device ([`PhysAddr`]).

/// A range of bytes of a file: `start` inclusive, `end` exclusive, never empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// `None` if the range would be empty.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    pub fn start(self) -> u64 {
        self.start
    }

    pub fn end(self) -> u64 {
        self.end
    }

    /// At least 1.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// The part of this range before `limit`, if any.
    pub fn clipped(self, limit: u64) -> Option<Self> {
        Self::new(self.start, self.end.min(limit))
    }

    /// This range and `next`, which must start where this one ends.
    pub(super) fn joined(self, next: Self) -> Self {
        debug_assert_eq!(self.end, next.start);
        Self { start: self.start, end: next.end }
    }
}

/// A byte address on the block device: FIEMAP's `fe_physical`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysAddr(pub u64);

impl PhysAddr {
    pub fn advanced(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}
