//! The law in every view of a comparison: refined, in pages, as lines, from anywhere. Refined, it lists
//! exactly what differs.

use reqwest::Method;
use serde_json::Value;

use crate::harness::{Chunk, Client, Random, VM, chunks};

/// A comparison whose two states are known.
pub struct Compared<'a> {
    pub client: &'a Client,
    /// Ids of base and target.
    pub ids: (&'a str, &'a str),
    /// What the disk held at the base, and at the target.
    pub bytes: (&'a [u8], &'a [u8]),
    pub disk: &'a str,
    /// What to say where it fails.
    pub what: &'a str,
}

impl Compared<'_> {
    /// Checks the views of this comparison.
    pub fn check(&self) {
        // By extent: what is compared is never more than a block, nor more than an extent.
        let plain = self.document("refine=0&squashChunks=false");
        let mut random = Random(self.bytes.1.len() as u64);
        for block in [None, Some(512), Some(4096), Some(65536)] {
            let refine = block.map_or_else(|| "refine=0".to_owned(), |block| format!("refine={block}"));
            // From somewhere before the whole, which may be remembered.
            let from = random.below(self.bytes.1.len() as u64 + 1);
            let rest = self.page(&format!("{refine}&startingOffset={from}&maxResults=100000"));
            let whole = self.document(&refine);
            let listed = chunks(&whole);
            let expected: Vec<Chunk> = listed.iter().filter_map(|chunk| after(chunk, from)).collect();
            assert_eq!(chunks(&rest), expected, "{}: {refine} from {from} on", self.what);

            assert_eq!(listed, self.refined(&chunks(&plain), block), "{}: {refine}", self.what);
            self.check_law(&listed, &refine);
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

    fn document(&self, query: &str) -> Value {
        let (base, target) = self.ids;
        self.client.get(&format!("/vms/{VM}/snapshots/{target}?compareTo={base}&{query}")).ok()["disks"][0].clone()
    }

    fn route(&self, query: &str) -> String {
        let (base, target) = self.ids;
        format!("/vms/{VM}/snapshots/{target}/disks/{}/chunks?compareTo={base}&{query}", self.disk)
    }

    fn page(&self, query: &str) -> Value {
        self.client.get(&self.route(query)).ok()
    }

    /// All chunks, `at_most` a page.
    fn paged(&self, query: &str, at_most: usize) -> Vec<Value> {
        let (mut found, mut next) = (Vec::new(), Some(0));
        while let Some(offset) = next {
            let page = self.page(&format!("{query}&startingOffset={offset}&maxResults={at_most}"));
            let chunks = page["chunks"].as_array().unwrap();
            assert!(chunks.len() <= at_most && (chunks.len() == at_most || page["next_offset"].is_null()), "{page}");
            found.extend(chunks.iter().cloned());
            next = page["next_offset"].as_u64();
            assert!(next.is_none_or(|next| next > offset), "{page} goes on at or before {offset}");
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

    /// The bytes of the base and of the target in a range; past its end the base is zeros.
    fn both(&self, start: u64, end: u64) -> (Vec<u8>, &[u8]) {
        let (start, end) = (usize::try_from(start).unwrap(), usize::try_from(end).unwrap());
        let (base, target) = self.bytes;
        let mut was = base[start.min(base.len())..end.min(base.len())].to_vec();
        was.resize(end - start, 0);
        (was, &target[start..end])
    }

    /// What is left of `candidates` where blocks of the same bytes are left out, joined.
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

    /// The base, patched, is the target.
    fn check_law(&self, listed: &[Chunk], query: &str) {
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

    /// The data that is listed is, of all blocks of the disk, those that differ and are not zeros now.
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

/// What of `chunk` lies at `from` and after.
fn after(chunk: &Chunk, from: u64) -> Option<Chunk> {
    let (start, end) = (chunk.start.max(from), chunk.start + chunk.length);
    (start < end).then(|| Chunk { start, length: end - start, ..*chunk })
}

/// Whether a block, which is not larger than the largest here, is zeros.
fn is_zero(bytes: &[u8]) -> bool {
    // Byte by byte would be slow in a guest that is emulated.
    bytes == &[0; 65536][..bytes.len()]
}
