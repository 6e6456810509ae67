//! The restore invariant with all options of a comparison: refined, in pages, as lines, from any offset. A refined
//! comparison lists exactly the blocks that differ.

use reqwest::Method;
use serde_json::Value;

use crate::harness::{Chunk, Client, Random, VM, chunks};

/// A comparison of two snapshots with known contents.
pub struct Compared<'a> {
    pub client: &'a Client,
    /// The ids of base and target.
    pub ids: (&'a str, &'a str),
    /// Whether the base is the newer one: the way back.
    pub reverse: bool,
    /// The contents of base and target.
    pub bytes: (&'a [u8], &'a [u8]),
    pub disk: &'a str,
    /// The context for failure messages.
    pub what: &'a str,
}

impl Compared<'_> {
    /// Checks all options.
    pub fn check(&self) {
        // Without squashing: a compared range is at most a block, and inside one extent.
        let plain = self.document("refine=0&squashChunks=false");
        let mut random = Random(self.bytes.1.len() as u64);
        for block in [None, Some(512), Some(4096), Some(65536)] {
            let refine = block.map_or_else(|| "refine=0".to_owned(), |block| format!("refine={block}"));
            // From a random offset first, since the complete answer may be cached.
            let from = random.below(self.bytes.1.len() as u64 + 1);
            let rest = self.page(&format!("{refine}&startingOffset={from}&maxResults=100000"));
            let whole = self.document(&refine);
            let listed = chunks(&whole);
            let expected: Vec<Chunk> = listed.iter().filter_map(|chunk| after(chunk, from)).collect();
            assert_eq!(chunks(&rest), expected, "{}: {refine} from {from} on", self.what);

            assert_eq!(listed, self.refined(&chunks(&plain), block), "{}: {refine}", self.what);
            self.check_invariant(&listed, &refine);
            if let Some(block @ (512 | 4096)) = block {
                self.check_minimality(&listed, block);
            }
            let squash = if block.is_none() { &["true", "false"][..] } else { &["true"] };
            for squash in squash {
                let query = format!("{refine}&squashChunks={squash}");
                let whole = self.document(&query)["chunks"].as_array().unwrap().clone();
                assert_eq!(self.paged(&query, whole.len() / 3 + 1), whole, "{}: {query}, paged", self.what);
                assert_eq!(self.lines(&query), whole, "{}: {query}, as lines", self.what);
            }
        }
    }

    /// The id for the path, and the parameter after `compareTo=`.
    fn newer_and_older(&self) -> (&str, String) {
        let (base, target) = self.ids;
        if self.reverse { (base, format!("{target}&reverse=true")) } else { (target, base.to_owned()) }
    }

    fn document(&self, query: &str) -> Value {
        let (newer, older) = self.newer_and_older();
        self.client.get(&format!("/vms/{VM}/snapshots/{newer}?compareTo={older}&{query}")).ok()["disks"][0].clone()
    }

    fn route(&self, query: &str) -> String {
        let (newer, older) = self.newer_and_older();
        format!("/vms/{VM}/snapshots/{newer}/disks/{}/chunks?compareTo={older}&{query}", self.disk)
    }

    fn page(&self, query: &str) -> Value {
        self.client.get(&self.route(query)).ok()
    }

    /// All chunks, in pages of `at_most`.
    fn paged(&self, query: &str, at_most: usize) -> Vec<Value> {
        let (mut found, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let page = self.page(&format!("{query}&startingOffset={offset}&maxResults={at_most}"));
            let chunks = page["chunks"].as_array().unwrap();
            assert!(chunks.len() <= at_most && (chunks.len() == at_most || page["next_offset"].is_null()), "{page}");
            found.extend(chunks.iter().cloned());
            next = page["next_offset"].as_u64();
            assert!(next.is_none_or(|next| next > offset), "{page} continues at or before {offset}");
        }
        found
    }

    fn lines(&self, query: &str) -> Vec<Value> {
        let request = self.client.request(Method::GET, &format!("/api/v1{}", self.route(query)));
        let answer = self.client.send(request.header("Accept", "application/x-ndjson"));
        assert_eq!((answer.status, answer.header("content-type")), (200, "application/x-ndjson"));
        let text = String::from_utf8(answer.body).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The bytes of base and target in a range; past its end the base is zeros.
    fn both(&self, start: u64, end: u64) -> (Vec<u8>, &[u8]) {
        let (start, end) = (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
        let (base, target) = self.bytes;
        let mut was = base[start.min(base.len())..end.min(base.len())].to_vec();
        was.resize(end - start, 0);
        (was, &target[start..end])
    }

    /// `candidates` without the equal blocks, with adjacent chunks joined.
    fn refined(&self, candidates: &[Chunk], block: Option<u64>) -> Vec<Chunk> {
        let mut left: Vec<Chunk> = Vec::new();
        let mut add = |next: Chunk| match left.last_mut() {
            Some(last) if last.start + last.length == next.start && last.zero == next.zero => {
                last.length += next.length;
            }
            _ => left.push(next),
        };
        for candidate in candidates {
            let Some(block) = block else {
                add(*candidate);
                continue;
            };
            let end = candidate.start + candidate.length;
            let mut start = candidate.start;
            while start < end {
                let cut = ((start / block + 1) * block).min(end);
                let (was, now) = self.both(start, cut);
                if candidate.zero || was != now {
                    add(Chunk { start, length: cut - start, zero: candidate.zero || is_zero(now) });
                }
                start = cut;
            }
        }
        left
    }

    /// Checks that the patched base equals the target.
    fn check_invariant(&self, listed: &[Chunk], query: &str) {
        let (base, target) = self.bytes;
        let mut patched = base.to_vec();
        patched.resize(target.len(), 0);
        for Chunk { start, length, zero } in listed {
            let range = usize::try_from(*start).unwrap()..usize::try_from(start + length).unwrap();
            if *zero {
                patched[range].fill(0);
            } else {
                patched[range.clone()].copy_from_slice(&target[range]);
            }
        }
        assert!(patched == target, "{}: {query} does not give the target", self.what);
    }

    /// Checks that the listed data is exactly the blocks that differ and are not zero.
    fn check_minimality(&self, listed: &[Chunk], block: u64) {
        let size = self.bytes.1.len() as u64;
        let mut differing = 0;
        for start in (0..size).step_by(usize::try_from(block).unwrap()) {
            let end = (start + block).min(size);
            let (was, now) = self.both(start, end);
            if was != now && !is_zero(now) {
                differing += end - start;
            }
        }
        let data: u64 = listed.iter().filter(|chunk| !chunk.zero).map(|chunk| chunk.length).sum();
        assert_eq!(data, differing, "{}: refine={block}", self.what);
    }
}

/// The part of `chunk` from `from` on.
fn after(chunk: &Chunk, from: u64) -> Option<Chunk> {
    let (start, end) = (chunk.start.max(from), chunk.start + chunk.length);
    (start < end).then(|| Chunk { start, length: end - start, ..*chunk })
}

/// Whether a block, of at most 64 KiB, is all zeros.
fn is_zero(bytes: &[u8]) -> bool {
    // A loop over bytes would be slow in the emulated guest.
    bytes == &[0; 65536][..bytes.len()]
}
