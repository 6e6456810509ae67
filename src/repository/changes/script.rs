//! A scripted FIEMAP: files that move, and answers that lie or fail.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;

use crate::model::{Backing, ByteRange, Extent, ExtentMap, PhysAddr};
use crate::repository::disk_file::OpenError;
use crate::repository::map::{ExtentSource, MapWindows};
use crate::sys::fiemap::{LAST, RawExtent, UNWRITTEN};

pub(super) const K: u64 = 1 << 10;
pub(super) const BLOCK: u64 = 4 * K;

/// `FIEMAP_EXTENT_UNKNOWN`.
pub(super) const UNKNOWN: u32 = 0x0002;

/// The backing of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Block {
    Hole,
    Unwritten,
    At(u64),
    Opaque,
}

pub(super) use Block::{At, Hole, Opaque, Unwritten};

#[derive(Clone, Debug)]
pub(super) struct File {
    pub(super) size: u64,
    pub(super) blocks: Vec<Block>,
}

impl File {
    pub(super) fn of(blocks: &[Block]) -> Self {
        Self { size: blocks.len() as u64 * BLOCK, blocks: blocks.to_vec() }
    }

    /// As FIEMAP reports it: merged where blocks are one run.
    pub(super) fn raws(&self) -> Vec<RawExtent> {
        let mut raws: Vec<RawExtent> = Vec::new();
        for (block, start) in self.blocks.iter().zip((0..).step_by(BLOCK as usize)) {
            let (physical, flags) = match block {
                Hole => continue,
                Unwritten => (1 << 50, UNWRITTEN),
                At(address) => (address * BLOCK, 0),
                Opaque => (0, UNKNOWN),
            };
            match raws.last_mut() {
                Some(last)
                    if last.flags == flags
                        && last.logical + last.length == start
                        && (flags != 0 || last.physical + last.length == physical) =>
                {
                    last.length += BLOCK;
                }
                _ => raws.push(RawExtent::new(start, physical, BLOCK, flags)),
            }
        }
        if let Some(last) = raws.last_mut() {
            last.flags |= LAST;
        }
        raws
    }

    pub(super) fn map(&self) -> ExtentMap {
        let extent = |raw: &RawExtent| Extent {
            range: ByteRange::new(raw.logical, raw.logical + raw.length).unwrap(),
            backing: match raw.flags & !LAST {
                0 => Backing::Stored(PhysAddr(raw.physical)),
                UNWRITTEN => Backing::Zero,
                _ => Backing::Opaque,
            },
        };
        ExtentMap::new(self.size, self.raws().iter().map(extent).collect()).unwrap()
    }

    pub(super) fn has_data(&self, at: u64) -> bool {
        matches!(self.blocks.get((at / BLOCK) as usize), Some(At(_) | Opaque)) && at < self.size
    }

    pub(super) fn next(&self, from: u64, data: bool) -> Option<u64> {
        let blocks = std::iter::once(from).chain((from / BLOCK + 1..=self.size / BLOCK).map(|block| block * BLOCK));
        let mut places = blocks.filter(|at| *at < self.size);
        places.find(|at| self.has_data(*at) == data).or((!data).then_some(self.size))
    }
}

/// Changes an answer, given the number of the request from 1 on, its start, and the answer.
type Fault = Box<dyn FnMut(u32, u64, Vec<RawExtent>) -> io::Result<Vec<RawExtent>>>;

/// A file whose map is read.
pub(super) struct ScriptedFile {
    pub(super) file: Rc<RefCell<File>>,
    /// Extents in one answer.
    pub(super) room: usize,
    pub(super) requests: Rc<Cell<u32>>,
    pub(super) fault: Fault,
    pub(super) holes_are_reliable: bool,
    pub(super) is_replaced: Rc<Cell<bool>>,
}

impl ScriptedFile {
    pub(super) fn new(file: &File, room: usize) -> Self {
        Self {
            file: Rc::new(RefCell::new(file.clone())),
            room,
            requests: Rc::default(),
            fault: Box::new(|_, _, page| Ok(page)),
            holes_are_reliable: false,
            is_replaced: Rc::default(),
        }
    }

    pub(super) fn with_fault(
        mut self,
        fault: impl FnMut(u32, u64, Vec<RawExtent>) -> io::Result<Vec<RawExtent>> + 'static,
    ) -> Self {
        self.fault = Box::new(fault);
        self
    }

    pub(super) fn windows(self) -> MapWindows<Self> {
        let size = self.file.borrow().size;
        MapWindows::new(self, size)
    }
}

impl ExtentSource for ScriptedFile {
    fn page(&mut self, start: u64, page: &mut Vec<RawExtent>) -> io::Result<()> {
        self.requests.set(self.requests.get() + 1);
        let raws = self.file.borrow().raws();
        let rest = raws.into_iter().filter(|raw| raw.logical + raw.length > start).take(self.room).collect();
        page.extend((self.fault)(self.requests.get(), start, rest)?);
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(self.file.borrow().next(from, true))
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(self.file.borrow().next(from, false))
    }

    fn holes_are_reliable(&self) -> bool {
        self.holes_are_reliable
    }

    fn verify(&self) -> Result<(), OpenError> {
        if self.is_replaced.get() { Err(OpenError::Replaced) } else { Ok(()) }
    }
}
