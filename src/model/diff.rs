//! The diff: which bytes of a disk may differ from an older state of it.

use super::chunk::{Chunk, append_run};
use super::extent_map::ExtentMap;
use super::range::ByteRange;

/// The parts of `window` in which `target` may differ from `base`, in order and disjoint. Parts that are adjacent on the
/// device are joined.
///
/// Bytes are the same if both files read as zeros, or if both store them at one address: a copy-on-write file system
/// never rewrites a block that two files share. Past its end `base` reads as zeros, like a client's copy after it is
/// extended.
///
/// The chunks fulfil the restore invariant (docs/api.md#comparison).
///
/// Outside the window the maps need not be complete. One pass over both maps: O(n + m).
pub fn changed_within(window: ByteRange, base: &ExtentMap, target: &ExtentMap) -> Vec<Chunk> {
    let mut chunks = Vec::new();
    let (mut base_cursor, mut target_cursor) = (base.cursor(), target.cursor());
    let mut at = window.start();
    while at < window.end() {
        let (was, was_end) = base_cursor.backing_at(at);
        let (now, now_end) = target_cursor.backing_at(at);
        let end = was_end.min(now_end).min(window.end());
        if let Some(range) = ByteRange::new(at, end)
            && !was.certainly_equals(now)
        {
            append_run(&mut chunks, Chunk::of(range, now));
        }
        at = end;
    }
    chunks
}

/// [`changed_within`] the whole target.
#[cfg(test)]
pub fn changed(base: &ExtentMap, target: &ExtentMap) -> Vec<Chunk> {
    ByteRange::new(0, target.size()).map(|all| changed_within(all, base, target)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::chunk::{ChunkKind, joined, squash};
    use crate::model::extent_map::{Backing, Extent};
    use crate::model::range::PhysAddr;
    use proptest::prelude::*;

    // A small block makes more histories fit into a test. No result depends on its size.
    const BLOCK: u64 = 64;

    /// A model of a copy-on-write file system. A file is a list of blocks. A block is a hole, unwritten, or stored at
    /// an address, and its content is the address itself. A write gives blocks new addresses; an address is never
    /// reused while a file has it.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Block {
        Hole,
        Unwritten,
        At(u64),
        /// Data without a usable address, with its content.
        Opaque(u64),
    }

    #[derive(Clone, Debug, Default)]
    struct File {
        size: u64,
        blocks: Vec<Block>,
    }

    impl File {
        fn bytes(&self) -> Vec<u64> {
            // Each byte is one number, derived from the block's content. 0 is a zero byte.
            let mut bytes = Vec::new();
            for offset in 0..self.size {
                let within = offset % BLOCK;
                bytes.push(match self.blocks.get((offset / BLOCK) as usize) {
                    None | Some(Block::Hole | Block::Unwritten) => 0,
                    Some(Block::At(content) | Block::Opaque(content)) => content * BLOCK + within,
                });
            }
            bytes
        }

        /// The map as FIEMAP reports it: whole blocks, with unwritten ones, merged where they are one run.
        fn map(&self) -> ExtentMap {
            let mut extents: Vec<Extent> = Vec::new();
            for (i, block) in self.blocks.iter().enumerate() {
                let start = i as u64 * BLOCK;
                let backing = match block {
                    Block::Hole => continue,
                    Block::Unwritten => Backing::Zero,
                    Block::At(address) => Backing::Stored(PhysAddr(address * BLOCK)),
                    Block::Opaque(_) => Backing::Opaque,
                };
                match extents.last_mut() {
                    Some(last) if last.range.end() == start && last.backing.advanced(last.range.len()) == backing => {
                        last.range = ByteRange::new(last.range.start(), start + BLOCK).unwrap();
                    }
                    _ => extents.push(Extent { range: ByteRange::new(start, start + BLOCK).unwrap(), backing }),
                }
            }
            ExtentMap::new(self.size, extents).unwrap()
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Write { first: usize, count: usize, opaque: bool },
        Punch { first: usize, count: usize },
        Preallocate { first: usize, count: usize },
        Resize { size: u64 },
    }

    fn apply(file: &mut File, op: &Op, next_address: &mut u64) {
        let mut set = |first: usize, count: usize, make: &mut dyn FnMut(Block) -> Block| {
            if file.blocks.len() < first + count {
                file.blocks.resize(first + count, Block::Hole);
                file.size = file.size.max((first + count) as u64 * BLOCK);
            }
            for block in &mut file.blocks[first..first + count] {
                *block = make(*block);
            }
        };
        match *op {
            Op::Write { first, count, opaque } => set(first, count, &mut |_| {
                *next_address += 1;
                if opaque { Block::Opaque(*next_address) } else { Block::At(*next_address) }
            }),
            Op::Punch { first, count } => set(first, count, &mut |_| Block::Hole),
            Op::Preallocate { first, count } => set(first, count, &mut |was| match was {
                Block::Hole => Block::Unwritten,
                kept => kept,
            }),
            Op::Resize { size } => {
                if size < file.size {
                    file.blocks.truncate(size.div_ceil(BLOCK) as usize);
                    // A file system zeroes the tail of the last block through copy-on-write.
                    let tail = (size / BLOCK) as usize;
                    if size % BLOCK != 0
                        && let Some(block @ (Block::At(_) | Block::Opaque(_))) = file.blocks.get_mut(tail)
                    {
                        *next_address += 1;
                        *block = Block::At(*next_address);
                    }
                }
                file.size = size;
            }
        }
    }

    fn op() -> impl Strategy<Value = Op> {
        let place = (0..24usize, 1..6usize);
        prop_oneof![
            4 => (place.clone(), prop::bool::weighted(0.15))
                .prop_map(|((first, count), opaque)| Op::Write { first, count, opaque }),
            2 => place.clone().prop_map(|(first, count)| Op::Punch { first, count }),
            1 => place.prop_map(|(first, count)| Op::Preallocate { first, count }),
            1 => (0..30 * BLOCK).prop_map(|size| Op::Resize { size }),
            1 => (0..30u64).prop_map(|blocks| Op::Resize { size: blocks * BLOCK }),
        ]
    }

    fn patched(base: &File, target: &File, chunks: &[Chunk]) -> Vec<u64> {
        let source = target.bytes();
        let mut bytes = base.bytes();
        bytes.resize(target.size as usize, 0);
        for chunk in chunks {
            let range = chunk.range.start() as usize..chunk.range.end() as usize;
            match chunk.kind {
                ChunkKind::Data => bytes[range.clone()].copy_from_slice(&source[range]),
                ChunkKind::Zero => bytes[range].fill(0),
            }
        }
        bytes
    }

    fn is_sorted_and_disjoint(chunks: &[Chunk]) -> bool {
        chunks.windows(2).all(|pair| pair[0].range.end() <= pair[1].range.start())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn patching_the_base_gives_the_target(
            history in prop::collection::vec(prop::collection::vec(op(), 0..8), 3..5)
        ) {
            let mut next_address = 0;
            let mut file = File::default();
            let mut snapshots = vec![file.clone()];
            for step in &history {
                for op in step {
                    apply(&mut file, op, &mut next_address);
                }
                snapshots.push(file.clone());
            }
            // In both directions: the base may be newer than the target.
            for base in &snapshots {
                for target in &snapshots {
                    let chunks = changed(&base.map(), &target.map());
                    let squashed = squash(chunks.clone());
                    // Window by window the result is the same.
                    let at = target.size / 3;
                    let windows = [ByteRange::new(0, at), ByteRange::new(at, target.size)];
                    let parts = windows.into_iter().flatten();
                    let parts = parts.flat_map(|window| changed_within(window, &base.map(), &target.map()));
                    let rejoined: Vec<_> = joined(parts.map(Ok::<_, ()>), Chunk::continues_in).map(Result::unwrap).collect();
                    prop_assert_eq!(&rejoined, &chunks);
                    for listed in [&chunks, &squashed] {
                        prop_assert!(is_sorted_and_disjoint(listed));
                        prop_assert!(listed.iter().all(|chunk| chunk.range.end() <= target.size));
                        prop_assert_eq!(patched(base, target, listed), target.bytes());
                    }
                    prop_assert!(squashed.windows(2).all(|pair|
                        pair[0].range.end() < pair[1].range.start() || pair[0].kind != pair[1].kind));
                    // No unchanged block is listed.
                    for chunk in &squashed {
                        let blocks = chunk.range.start() / BLOCK..chunk.range.end().div_ceil(BLOCK);
                        for block in blocks {
                            let was = base.blocks.get(block as usize).copied().unwrap_or(Block::Hole);
                            let now = target.blocks.get(block as usize).copied().unwrap_or(Block::Hole);
                            let both_zero = matches!(was, Block::Hole | Block::Unwritten)
                                && matches!(now, Block::Hole | Block::Unwritten);
                            let one_address = matches!((was, now), (Block::At(a), Block::At(b)) if a == b);
                            let base_ended_inside = base.size < (block + 1) * BLOCK && base.size < target.size;
                            prop_assert!(!both_zero, "block {} was and is zeros", block);
                            prop_assert!(!one_address || base_ended_inside, "block {} did not change", block);
                        }
                    }
                    // A client with an unknown base reaches the target, too.
                    let everything = changed(&ExtentMap::unknown(), &target.map());
                    prop_assert_eq!(patched(base, target, &everything), target.bytes());
                }
            }
        }
    }

    #[test]
    fn a_disk_against_itself_has_not_changed() {
        let map = File { size: 3 * BLOCK, blocks: vec![Block::At(7), Block::Hole, Block::At(9)] }.map();
        assert_eq!(changed(&map, &map), []);
    }

    #[test]
    fn a_full_listing_is_the_difference_from_nothing() {
        let map = File { size: 3 * BLOCK, blocks: vec![Block::At(7), Block::Hole, Block::At(9)] }.map();
        let chunks = changed(&ExtentMap::empty(), &map);
        let ranges: Vec<_> = chunks.iter().map(|c| (c.range.start(), c.range.len(), c.address)).collect();
        let at = |block: u64| Some(PhysAddr(block * BLOCK));
        assert_eq!(ranges, [(0, BLOCK, at(7)), (2 * BLOCK, BLOCK, at(9))]);
    }
}
