//! The service's checksums of a disk's blocks.

use std::ops::Range;

use super::blocks::{BLOCK, Digest};
use super::error::Result;
use crate::client::Client;

/// Bytes of a disk whose checksums one request asks for.
const PART_BYTES: u64 = 4 << 30;

/// Calls `each` with the parts of a disk in order, and with the checksums of the blocks of each. The service reads the
/// disk for them; a broken request is made again.
pub fn for_each_part(
    client: &Client,
    path: &str,
    size: u64,
    each: &mut dyn FnMut(Range<u64>, Vec<Digest>) -> Result<()>,
) -> Result<()> {
    let mut start = 0;
    while start < size {
        let range = start..size.min(start + PART_BYTES);
        let mut backoff = client.server().backoff();
        let digests = loop {
            let mut digests = Vec::new();
            match client.block_checksums(path, &range, BLOCK, &mut |digest| digests.push(digest)) {
                Ok(()) => break digests,
                Err(error) => client.wait(&mut backoff, error)?,
            }
        };
        start = range.end;
        each(range, digests)?;
    }
    Ok(())
}
