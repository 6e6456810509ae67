//! Compares two files by what FIEMAP answers, and checks the changes against a model that knows the content of each
//! block.
//!
//! The files share blocks as clones do. Their blocks are holes, unwritten, at an address, or data without a usable
//! address. The answers come in pages of any length. They may cut extents, carry flags of any kind, leave out data, end
//! early, or be interrupted by a defragmenter that moves blocks while the files are compared.

#![no_main]

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use coriolis_ovm_exporter::fuzzing::fiemap::{LAST, MERGED, RawExtent, SHARED, UNWRITTEN};
use coriolis_ovm_exporter::fuzzing::{Chunk, ChunkKind, ExtentSource, OpenError, changes_of_sources};
use libfuzzer_sys::arbitrary::{self, Unstructured};
use libfuzzer_sys::fuzz_target;

const BLOCK: u64 = 4096;
const MAX_BLOCKS: usize = 40;

/// Flags with which an address says nothing: unknown, not yet placed, compressed, inline, and one of a later kernel.
const OPAQUE: [u32; 5] = [0x2, 0x4 | UNWRITTEN, 0x8, 0x200, 0x8000];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Place {
    Hole,
    Unwritten,
    /// The number of a block of the device.
    At(u64),
    /// Without a usable address. The number chooses how FIEMAP says so.
    Opaque(u8),
}

#[derive(Clone, Copy, Debug)]
struct Block {
    place: Place,
    /// 0 is zeros. Blocks with different numbers have different bytes.
    content: u64,
    /// Whether FIEMAP reports it together with the block before it, if it can.
    is_joined: bool,
    /// Flags that do not change what an extent means.
    flags: u32,
}

#[derive(Debug)]
struct File {
    blocks: Vec<Block>,
    size: u64,
}

impl File {
    fn has_data(&self, at: u64) -> bool {
        let block = self.blocks.get((at / BLOCK) as usize);
        at < self.size && block.is_some_and(|block| matches!(block.place, Place::At(_) | Place::Opaque(_)))
    }

    fn next(&self, from: u64, is_data: bool) -> Option<u64> {
        let starts = (from / BLOCK + 1..=self.size / BLOCK).map(|block| block * BLOCK);
        std::iter::once(from).chain(starts).filter(|at| *at < self.size).find(|at| self.has_data(*at) == is_data)
    }

    /// The byte at an offset, as a number that stands for its content. Past the end it is zero.
    fn content(&self, at: u64) -> u64 {
        match self.blocks.get((at / BLOCK) as usize) {
            Some(block) if at < self.size => block.content,
            _ => 0,
        }
    }

    fn place(&self, at: u64) -> Place {
        match self.blocks.get((at / BLOCK) as usize) {
            Some(block) if at < self.size => block.place,
            _ => Place::Hole,
        }
    }

    fn extents(&self) -> Vec<RawExtent> {
        let mut extents: Vec<RawExtent> = Vec::new();
        for (number, block) in self.blocks.iter().enumerate() {
            let start = number as u64 * BLOCK;
            let (physical, flags) = match block.place {
                Place::Hole => continue,
                // Unwritten space has an address too, which must not count.
                Place::Unwritten => (BLOCK * (1 + block.content), UNWRITTEN),
                Place::At(address) => (BLOCK * address, 0),
                Place::Opaque(how) => match OPAQUE.get(usize::from(how)) {
                    // The address of a block of the other file.
                    Some(flag) => (BLOCK * (1 + u64::from(how)), *flag),
                    None => (0, 0),
                },
            };
            let flags = flags | block.flags;
            match extents.last_mut() {
                Some(last)
                    if block.is_joined
                        && last.flags == flags
                        && last.logical + last.length == start
                        && (flags & !(MERGED | SHARED) != 0 || last.physical + last.length == physical) =>
                {
                    last.length += BLOCK;
                }
                _ => extents.push(RawExtent::new(start, physical, BLOCK, flags)),
            }
        }
        if let Some(last) = extents.last_mut() {
            last.flags |= LAST;
        }
        extents
    }
}

/// Both files, and what disturbs their comparison.
struct World<'a> {
    base: File,
    target: File,
    input: Unstructured<'a>,
    next_address: u64,
    /// Free addresses that a file had.
    left: Vec<u64>,
    /// All addresses that the base ever had. It never returns to one: no reading could tell.
    of_base: Vec<u64>,
    has_moves: bool,
    has_lies: bool,
    /// Moves that are left, so that the work ends.
    moves: u32,
}

impl World<'_> {
    fn file(&self, is_base: bool) -> &File {
        if is_base { &self.base } else { &self.target }
    }

    fn byte(&mut self) -> u8 {
        self.input.arbitrary().unwrap_or_default()
    }

    /// A defragmenter moves blocks.
    fn perhaps_move(&mut self) {
        while self.has_moves && self.moves > 0 && self.byte() % 2 == 0 {
            self.moves -= 1;
            let (how, number) = (self.byte() % 3, usize::from(self.byte()) % self.target.blocks.len().max(1));
            match how {
                0 => drop(self.move_block(true, number, None)),
                1 => {
                    let reused = if self.byte() % 2 == 0 { self.left.pop() } else { None };
                    self.move_block(false, number, reused);
                }
                // The base gets the address that the target had at the same offset.
                _ => {
                    self.move_block(false, number, None);
                    let free = self.left.last().copied().filter(|address| !self.of_base.contains(address));
                    if free.is_some() && self.move_block(true, number, free).is_some() {
                        self.left.retain(|address| Some(*address) != free);
                    }
                }
            }
        }
    }

    /// Moves a block to this address, or to a fresh one. Returns the old address, which may be free then.
    fn move_block(&mut self, is_base: bool, number: usize, new: Option<u64>) -> Option<u64> {
        let file = if is_base { &mut self.base } else { &mut self.target };
        let block = file.blocks.get_mut(number)?;
        let Place::At(old) = block.place else { return None };
        let address = new.unwrap_or(self.next_address);
        self.next_address += u64::from(new.is_none());
        block.place = Place::At(address);
        if is_base {
            self.of_base.push(address);
        }
        let uses = |file: &File| file.blocks.iter().any(|block| block.place == Place::At(old));
        if !uses(&self.base) && !uses(&self.target) {
            self.left.push(old);
        }
        Some(old)
    }

    fn page(&mut self, is_base: bool, start: u64) -> Vec<RawExtent> {
        self.perhaps_move();
        let room = usize::from(self.byte() % 8) + 1;
        let extents = self.file(is_base).extents().into_iter();
        let mut page: Vec<RawExtent> = extents.filter(|raw| raw.logical + raw.length > start).take(room).collect();
        if let Some(first) = page.first_mut().filter(|first| first.logical < start)
            && self.byte() % 2 == 0
        {
            // Some file systems cut the first extent.
            let cut = start - first.logical;
            let physical = if first.physical == 0 { 0 } else { first.physical + cut };
            *first = RawExtent::new(start, physical, first.length - cut, first.flags);
        }
        if self.has_lies && self.byte() % 4 == 0 {
            let kept = usize::from(self.byte()) % (page.len() + 1);
            page.truncate(kept);
            if let Some(last) = page.last_mut()
                && self.byte() % 2 == 0
            {
                last.flags |= LAST;
            }
        }
        if self.has_lies && self.byte() % 4 == 0 && !page.is_empty() {
            let lost = usize::from(self.byte()) % page.len();
            page.remove(lost);
        }
        page
    }
}

struct Source<'a> {
    world: Rc<RefCell<World<'a>>>,
    is_base: bool,
}

impl ExtentSource for Source<'_> {
    fn page(&mut self, start: u64, page: &mut Vec<RawExtent>) -> io::Result<()> {
        page.extend(self.world.borrow_mut().page(self.is_base, start));
        Ok(())
    }

    fn next_data(&self, from: u64) -> io::Result<Option<u64>> {
        Ok(self.world.borrow().file(self.is_base).next(from, true))
    }

    fn next_hole(&self, from: u64) -> io::Result<Option<u64>> {
        let world = self.world.borrow();
        let file = world.file(self.is_base);
        Ok(file.next(from, false).or(Some(file.size)))
    }

    fn holes_are_reliable(&self) -> bool {
        !self.world.borrow().has_lies
    }

    fn verify(&self) -> Result<(), OpenError> {
        Ok(())
    }
}

/// A base, and a target that shares blocks with it.
fn world<'a>(mut input: Unstructured<'a>) -> arbitrary::Result<World<'a>> {
    let [base_len, target_len] = [input.int_in_range(0..=MAX_BLOCKS)?, input.int_in_range(0..=MAX_BLOCKS)?];
    let (mut next_address, mut next_content) = (100, 1);
    let mut fresh = |input: &mut Unstructured<'_>, before: Option<&Block>| -> arbitrary::Result<Block> {
        next_content += 1;
        let kind = input.int_in_range(0..=9_u8)?;
        let is_next = input.ratio(2, 3)?;
        let place = match (kind, before.map(|block| block.place)) {
            (0 | 1, _) => Place::Hole,
            (2, _) => Place::Unwritten,
            (3, _) => Place::Opaque(input.int_in_range(0..=OPAQUE.len() as u8)?),
            // The next address, unless another block may have it.
            (_, Some(Place::At(address))) if is_next && address + 1 == next_address => Place::At(address + 1),
            _ => {
                next_address += 3;
                Place::At(next_address)
            }
        };
        if let Place::At(address) = place {
            next_address = address + 1;
        }
        let is_zero = matches!(place, Place::Hole | Place::Unwritten) || input.ratio(1, 8)?;
        let flags = [0, 0, SHARED, MERGED, SHARED | MERGED][usize::from(input.int_in_range(0..=4_u8)?)];
        let content = if is_zero { 0 } else { next_content };
        Ok(Block { place, content, is_joined: input.ratio(3, 4)?, flags })
    };
    let mut base: Vec<Block> = Vec::new();
    for _ in 0..base_len {
        let block = fresh(&mut input, base.last())?;
        base.push(block);
    }
    let mut target: Vec<Block> = Vec::new();
    for number in 0..target_len {
        let block = match (input.int_in_range(0..=7_u8)?, base.get(number)) {
            // Cloned, or without a usable address now, with the same content.
            (0..=3, Some(block)) => Block { is_joined: input.ratio(3, 4)?, ..*block },
            (4, Some(block)) if block.content != 0 => Block { place: Place::Opaque(0), ..*block },
            // Cloned from elsewhere in the base.
            (5, _) if !base.is_empty() => *input.choose(&base)?,
            _ => fresh(&mut input, target.last())?,
        };
        target.push(block);
    }
    let size = |input: &mut Unstructured<'_>, blocks: usize| -> arbitrary::Result<u64> {
        let whole = blocks as u64 * BLOCK;
        // Within the last block, on its edge, or with space behind the end.
        Ok(match input.int_in_range(0..=3_u8)? {
            0 => input.int_in_range(0..=whole)?,
            1 => whole.saturating_sub(u64::from(input.int_in_range(0..=4095_u16)?)),
            2 => whole + u64::from(input.int_in_range(0..=9999_u16)?),
            _ => whole,
        })
    };
    let (base_size, target_size) = (size(&mut input, base_len)?, size(&mut input, target_len)?);
    let (has_moves, has_lies) = (input.arbitrary()?, input.arbitrary()?);
    let at = |block: &Block| if let Place::At(address) = block.place { Some(address) } else { None };
    Ok(World {
        of_base: base.iter().filter_map(at).collect(),
        base: File { blocks: base, size: base_size },
        target: File { blocks: target, size: target_size },
        input,
        next_address: 1 << 20,
        left: Vec::new(),
        has_moves,
        has_lies,
        moves: 12,
    })
}

/// The offsets at which something may begin: each block, and the ends of the files. Between two of them nothing changes.
fn edges(base: &File, target: &File, from: u64) -> Vec<u64> {
    let mut edges: Vec<u64> = (0..=target.size / BLOCK).map(|block| block * BLOCK).collect();
    edges.extend([base.size, target.size, from]);
    edges.retain(|at| (from..=target.size).contains(at));
    edges.sort_unstable();
    edges.dedup();
    edges
}

fn check(world: &World<'_>, before: &[Place], from: u64, chunks: &[Chunk], has_failed: bool) {
    let (base, target) = (&world.base, &world.target);
    let mut end = from;
    for chunk in chunks {
        assert!(chunk.range.start() >= end && chunk.range.end() <= target.size, "{chunk:?} after {end}");
        end = chunk.range.end();
        let is_zero = |at: u64| target.content(at) == 0;
        let blocks = (chunk.range.start() / BLOCK..=(end - 1) / BLOCK).map(|block| block * BLOCK);
        let mut starts = blocks.map(|at| at.max(chunk.range.start()));
        assert!(chunk.kind != ChunkKind::Zero || starts.all(is_zero), "{chunk:?} is not zeros");
    }
    if has_failed {
        return;
    }
    for pair in edges(base, target, from).windows(2) {
        let (at, end) = (pair[0], pair[1]);
        let listed = chunks.iter().find(|chunk| chunk.range.start() <= at && at < chunk.range.end());
        let is_listed = listed.is_some();
        assert!(listed.is_none_or(|chunk| end <= chunk.range.end()), "a part of {at} to {end} is listed");
        assert!(is_listed || base.content(at) == target.content(at), "{at} to {end} has changed and is not listed");
        if world.has_moves || world.has_lies {
            continue;
        }
        // Nothing else is listed than what may differ.
        let was = if at < base.size { before[(at / BLOCK) as usize] } else { Place::Hole };
        let is_same = match (was, target.place(at)) {
            (Place::Hole | Place::Unwritten, Place::Hole | Place::Unwritten) => true,
            (Place::At(was), Place::At(now)) => was == now,
            _ => false,
        };
        assert_eq!(is_listed, !is_same, "{at} to {end}: {was:?}, then {:?}", target.place(at));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Unstructured::new(input);
    let from_byte: u16 = input.arbitrary().unwrap_or_default();
    let Ok(world) = world(input) else { return };
    let sizes = (world.base.size, world.target.size);
    let from = match from_byte % 3 {
        0 => u64::from(from_byte) * 7 % (sizes.1 + 1),
        _ => 0,
    };
    let before: Vec<Place> = (0..=sizes.0 / BLOCK).map(|block| world.base.place(block * BLOCK)).collect();
    let is_quiet = !world.has_moves && !world.has_lies;
    let world = Rc::new(RefCell::new(world));
    let source = |is_base| Source { world: Rc::clone(&world), is_base };
    let (chunks, error) = changes_of_sources((source(true), sizes.0), (source(false), sizes.1), from);
    assert!(error.is_none() || !is_quiet, "{error:?}");
    check(&world.borrow(), &before, from, &chunks, error.is_some());
});
