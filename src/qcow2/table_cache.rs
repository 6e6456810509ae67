//! A cache of the blocks of L1 and L2 tables of all files of a chain, in bounded memory.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// The bytes of a table that are read at once.
pub const BLOCK: u64 = 4096;
/// 4 MiB in all.
const SLOTS: usize = 1024;

/// [`BLOCK`] bytes of a file, or fewer at its end.
pub type Block = Arc<[u8]>;

/// The file's number in its chain, and the number of the block in the file.
type Key = (usize, u64);

/// Each block has one slot, in which it replaces another block.
#[derive(Debug)]
pub struct TableCache {
    slots: Vec<Mutex<Option<(Key, Block)>>>,
}

impl TableCache {
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Mutex::new(None)).collect() }
    }

    /// The block, read by `read` if it is not in the cache.
    pub fn get(&self, key: Key, read: impl FnOnce() -> io::Result<Block>) -> io::Result<Block> {
        let slot = &self.slots[slot_of(key)];
        if let Some((found, block)) = &*slot.lock().unwrap_or_else(PoisonError::into_inner)
            && *found == key
        {
            return Ok(Arc::clone(block));
        }
        let block = read()?;
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some((key, Arc::clone(&block)));
        Ok(block)
    }
}

/// Neighbouring blocks of a file have different slots, and files have theirs at different places.
fn slot_of((file, block): Key) -> usize {
    (block as usize).wrapping_add(file.wrapping_mul(0x9e37_79b1)) % SLOTS
}
