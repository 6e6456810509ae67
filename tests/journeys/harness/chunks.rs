//! The chunks of a document, and how a client applies them.

use serde_json::Value;

use super::Client;

/// A range that a client has to fetch or to fill with zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub start: u64,
    pub length: u64,
    pub zero: bool,
}

pub fn data(start: u64, length: u64) -> Chunk {
    Chunk { start, length, zero: false }
}

pub fn zero(start: u64, length: u64) -> Chunk {
    Chunk { start, length, zero: true }
}

/// The chunks of a disk in a document; checks that they are in order, disjoint and inside the disk.
pub fn chunks(disk: &Value) -> Vec<Chunk> {
    let listed = disk["chunks"].as_array().unwrap_or_else(|| panic!("no chunks in {disk}"));
    let mut end = 0;
    let chunk = |chunk: &Value| {
        let (start, length) = (chunk["start"].as_u64().unwrap(), chunk["length"].as_u64().unwrap());
        assert!(start >= end && length > 0, "{chunk} is out of order in {disk}");
        end = start + length;
        assert!(end <= disk["size"].as_u64().unwrap(), "{chunk} exceeds the size of {disk}");
        assert!(chunk["physical_start"].is_u64(), "{chunk}");
        let zero = match chunk["type"].as_str().unwrap() {
            "data" => false,
            "zero" => true,
            other => panic!("unknown chunk type {other}"),
        };
        Chunk { start, length, zero }
    };
    listed.iter().map(chunk).collect()
}

impl Client {
    /// Restores a disk as a client does: truncates `base`, or extends it with zeros, to the size of `disk` (an entry
    /// of a document), and applies the chunks. Data is fetched with Range requests.
    pub fn patched(&self, disk: &Value, base: &[u8]) -> Vec<u8> {
        let (id, name) = (disk["snapshot_id"].as_str().unwrap(), disk["name"].as_str().unwrap());
        let mut bytes = base.to_vec();
        bytes.resize(usize::try_from(disk["size"].as_u64().unwrap()).unwrap(), 0);
        for Chunk { start, length, zero } in chunks(disk) {
            let part = &mut bytes[usize::try_from(start).unwrap()..][..usize::try_from(length).unwrap()];
            if zero {
                part.fill(0);
            } else {
                part.copy_from_slice(&self.disk_range(id, name, start, length));
            }
        }
        bytes
    }
}
