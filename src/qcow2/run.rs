//! The runs of a disk that are written to an image, and which clusters they need.

use std::ops::Range;

use crate::model::ByteRange;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    Data,
    Zero,
}

/// A run in 24 bytes: there may be millions.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    /// The allocated clusters before the one in which the run starts. The lowest bit says whether the run is data.
    tag: u64,
}

impl Run {
    pub fn new(range: ByteRange, content: Content) -> Self {
        Self { start: range.start(), end: range.end(), tag: u64::from(content == Content::Data) }
    }

    pub fn is_data(&self) -> bool {
        self.tag & 1 == 1
    }

    pub fn allocated_before(&self) -> u64 {
        self.tag >> 1
    }

    pub fn set_allocated_before(&mut self, clusters: u64) {
        self.tag = clusters << 1 | self.tag & 1;
    }

    /// The allocated clusters from the one in which the run starts to the one in which it ends, without the latter. The
    /// run must not end at the end of a cluster.
    pub fn allocated_to_its_last(&self, cluster: u64) -> u64 {
        let touched = self.end / cluster - self.start / cluster;
        if self.is_data() {
            touched
        } else {
            // Zeros cover the others as a whole.
            touched.min(u64::from(!self.start.is_multiple_of(cluster)))
        }
    }
}

/// Neighbouring clusters of the disk with the same kind of entry in the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    pub clusters: Range<u64>,
    pub kind: SpanKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// Stored one after the other. This is the number of the first one, counted over the whole disk.
    Allocated(u64),
    Zero,
}

/// Goes through the runs in order and says which clusters they need. A cluster is allocated if data touches it, or if
/// zeros cover a part of it. A cluster that zeros cover as a whole is only marked.
#[derive(Debug)]
pub struct Allocation {
    /// Bytes.
    cluster: u64,
    /// Where the bytes of the backing file end. Behind it, everything reads as zeros without a mark. Zero runs end here.
    limit: u64,
    /// The first cluster that has no span yet.
    next: u64,
    allocated: u64,
}

impl Allocation {
    pub fn new(cluster: u64, limit: u64) -> Self {
        Self { cluster, limit, next: 0, allocated: 0 }
    }

    /// The allocated clusters before the one in which `run` starts. To be called before the spans of `run`.
    pub fn before(&self, run: &Run) -> u64 {
        // The last run may have ended in the same cluster. Only an allocated one can belong to two runs.
        self.allocated - u64::from(self.next > run.start / self.cluster)
    }

    /// The spans that `run` adds to those of the runs before it.
    pub fn spans(&mut self, run: &Run, following: Option<&Run>) -> impl Iterator<Item = Span> + use<> {
        let touched = run.start / self.cluster..run.end.div_ceil(self.cluster);
        let marked = if run.is_data() { touched.end..touched.end } else { self.marked(run, following) };
        let spans = if marked.is_empty() {
            [self.allocate(touched), None, None]
        } else {
            let head = self.allocate(touched.start..marked.start);
            self.next = marked.end;
            let tail = self.allocate(marked.end..touched.end);
            [head, Some(Span { clusters: marked, kind: SpanKind::Zero }), tail]
        };
        spans.into_iter().flatten()
    }

    /// The clusters that a zero run covers as a whole.
    fn marked(&self, run: &Run, following: Option<&Run>) -> Range<u64> {
        let mut end = run.end / self.cluster;
        let last = run.end.next_multiple_of(self.cluster);
        // The bytes between the limit and the end of the cluster are zeros, unless data follows there.
        if run.end == self.limit && following.is_none_or(|following| following.start >= last) {
            end = last / self.cluster;
        }
        run.start.div_ceil(self.cluster)..end
    }

    fn allocate(&mut self, clusters: Range<u64>) -> Option<Span> {
        let new = self.next.max(clusters.start)..clusters.end;
        if new.is_empty() {
            return None;
        }
        let kind = SpanKind::Allocated(self.allocated);
        self.next = new.end;
        self.allocated += new.end - new.start;
        Some(Span { clusters: new, kind })
    }
}
