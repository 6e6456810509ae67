//! Whether a file still has its recorded content although its ctime has changed.
//!
//! Links, labels, owners, modes and `touch -a` change the ctime and not the content. A write also changes the mtime,
//! but the mtime can be set back. Addresses cannot: a block that another file shares is copied before it is written.
//! Therefore the file's map must be the recorded one. A block that no other file shares can be written in place, so its
//! address proves nothing.

use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::Repository;
use super::executor::Access;
use super::file_identity::{identity, is_touched_only, modified};
use super::map::{self, TRUSTED_FLAGS};
use super::snapshot_dir::SnapshotDir;
use crate::model::{FileIdentity, Seal, SnapshotDisk, SnapshotId};
use crate::sys::folder::Folder;
use crate::sys::{fiemap, fsinfo, sparse};

/// The most runs of a file that are compared with other files: 32 bytes each.
const MAX_RUNS: usize = 1 << 20;

/// What is recorded of a finished file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    pub identity: FileIdentity,
    pub seal: Seal,
}

/// How much of a file's content is proven.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// All of it.
    Whole,
    /// Its map. Blocks that no other file shares may have been written to. No later snapshot has these blocks, so a
    /// comparison with this one as the base lists them.
    Map,
    /// Nothing.
    None,
}

/// A run of blocks of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BlockRun {
    start: u64,
    end: u64,
    address: u64,
    is_written: bool,
}

impl BlockRun {
    fn continues_in(&self, next: &Self) -> bool {
        self.end == next.start
            && self.address.checked_add(self.end - self.start) == Some(next.address)
            && self.is_written == next.is_written
    }
}

/// Writes a finished file to stable storage, and returns what to record of it. From then on its identity does not
/// change.
pub fn sync_and_seal(file: &File) -> io::Result<Sealed> {
    file.sync_all()?;
    let metadata = file.metadata()?;
    let map = digest(file, metadata.len())?;
    Ok(Sealed { identity: identity(&metadata), seal: Seal { modified_ns: modified(&metadata), map } })
}

/// Another snapshot of the disk.
#[derive(Clone, Debug)]
pub struct OtherSnapshot {
    pub id: SnapshotId,
    pub disk: SnapshotDisk,
    /// Whether it is older than the examined snapshot.
    pub is_earlier: bool,
}

/// Examines the file of `disk` of the snapshot `id`. `others` are other snapshots of that disk. Returns how much is
/// proven, and for which ctime.
///
/// Earlier snapshots vouch for the blocks that they share. The VM's own disk and later snapshots, which are clones of
/// it, do so only if the disk is known to be the snapshotted one and not a copy of the snapshot: see `is_the_original`.
pub fn examine(
    access: &Access<'_>,
    repository: &Repository,
    (id, disk): (SnapshotId, &SnapshotDisk),
    others: &[OtherSnapshot],
) -> io::Result<(Proof, i128)> {
    let root = repository.open(access)?;
    let file = SnapshotDir::new(&root, id).open()?.open_file(disk.name.as_str())?;
    let before = file.metadata()?;
    let changed_ns = identity(&before).changed_ns;
    let recorded = disk.seal.and_then(|seal| seal.map);
    if !is_touched_only(&before, disk) || recorded.is_none() || digest(&file, before.len())? != recorded {
        return Ok((Proof::None, changed_ns));
    }
    let proof = match written_runs(&file, before.len())? {
        Some(runs) => {
            let mut rest = UnsharedRuns(runs);
            let live = root.open_file(Path::new(&disk.source.path));
            let live = live.and_then(|live| Ok(is_the_original(&live, &before, recorded)?.then_some(live)));
            // A disk that cannot be opened vouches for nothing.
            let live = live.unwrap_or_default();
            for other in others.iter().filter(|other| other.is_earlier || live.is_some()) {
                if rest.0.is_empty() {
                    break;
                }
                access.progress();
                let _ = rest.compare_with_snapshot(&root, other.id, &other.disk);
            }
            access.progress();
            if let Some(live) = live {
                let _ = live.metadata().and_then(|metadata| rest.compare_with(&live, metadata.len()));
            }
            if rest.0.is_empty() { Proof::Whole } else { Proof::Map }
        }
        None => Proof::Map,
    };
    let is_settled = identity(&file.metadata()?).changed_ns == changed_ns;
    Ok((if is_settled { proof } else { Proof::None }, changed_ns))
}

/// Whether the VM's own disk is known to be the snapshotted one, so that it has had the shared blocks since the
/// snapshot was taken. A copy of the snapshot (`cp --reflink`, as for a rollback) also shares what was written into the
/// snapshot before the copy.
///
/// A copy into a new file has a later birth time than the snapshot. If the file system keeps no birth times (OCFS2), no
/// disk counts as the original. A copy into the old file has the snapshot's map although its mtime is later. If the VM
/// wrote to that copy, it can no longer be detected: no file system records that.
fn is_the_original(live: &File, snapshot: &Metadata, recorded: Option<[u8; 32]>) -> io::Result<bool> {
    let metadata = live.metadata()?;
    let taken_ns = modified(snapshot);
    let Ok(born) = metadata.created() else { return Ok(false) };
    let born_ns = born.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos().cast_signed());
    let is_same_file = (metadata.dev(), metadata.ino()) == (snapshot.dev(), snapshot.ino());
    if is_same_file || born_ns > taken_ns {
        return Ok(false);
    }
    Ok(modified(&metadata) < taken_ns || digest(live, metadata.len())? != recorded)
}

/// Runs of a file that no other file is known to share.
struct UnsharedRuns(Vec<BlockRun>);

impl UnsharedRuns {
    /// Compares with another snapshot, if that is as it was recorded. Both files have had the shared blocks since then:
    /// a write to either of them would have got a copy.
    fn compare_with_snapshot(&mut self, root: &Folder, id: SnapshotId, disk: &SnapshotDisk) -> io::Result<()> {
        let file = SnapshotDir::new(root, id).open()?.open_file(disk.name.as_str())?;
        let metadata = file.metadata()?;
        let is_as_recorded = identity(&metadata) == disk.identity || {
            let recorded = disk.seal.and_then(|seal| seal.map);
            is_touched_only(&metadata, disk) && recorded.is_some() && digest(&file, metadata.len())? == recorded
        };
        if is_as_recorded { self.compare_with(&file, metadata.len()) } else { Ok(()) }
    }

    /// Removes the runs that `file` has at the same offset and address.
    fn compare_with(&mut self, file: &File, size: u64) -> io::Result<()> {
        let mut others = Vec::new();
        each_run(file, size, &mut |run| {
            if run.is_written && others.len() < MAX_RUNS {
                others.push(run);
            }
        })?;
        self.0 = without(&self.0, &others);
        Ok(())
    }
}

/// The parts of `runs` that are not in `others` at the same offset and address. Both are in order.
fn without(runs: &[BlockRun], others: &[BlockRun]) -> Vec<BlockRun> {
    let (mut rest, mut others) = (Vec::new(), others.iter().peekable());
    for run in runs {
        let mut run = *run;
        while others.next_if(|other| other.end <= run.start).is_some() {}
        while let Some(other) = others.peek().filter(|other| other.start < run.end) {
            let (start, end) = (run.start.max(other.start), run.end.min(other.end));
            let is_shared = run.address + (start - run.start) == other.address + (start - other.start);
            let unshared_end = if is_shared { start } else { end };
            if run.start < unshared_end {
                rest.push(BlockRun { end: unshared_end, ..run });
            }
            run = BlockRun { start: end, address: run.address + (end - run.start), ..run };
            if other.end > end || others.next().is_none() {
                break;
            }
        }
        if run.start < run.end {
            rest.push(run);
        }
    }
    rest
}

/// The written runs of a file. `None` if not all of it has an address, or there are too many runs.
fn written_runs(file: &File, size: u64) -> io::Result<Option<Vec<BlockRun>>> {
    let (mut runs, mut count) = (Vec::new(), 0);
    let is_known = each_run(file, size, &mut |run| {
        count += 1;
        if run.is_written && count <= MAX_RUNS {
            runs.push(run);
        }
    })?;
    Ok(Some(runs).filter(|_| is_known && count <= MAX_RUNS))
}

/// BLAKE3 of a file's map, independent of how runs are split into extents. `None` if not all of it has an address.
fn digest(file: &File, size: u64) -> io::Result<Option<[u8; 32]>> {
    let mut hasher = blake3::Hasher::new();
    let is_known = each_run(file, size, &mut |BlockRun { start, end, address, is_written }| {
        for number in [start, end, address, u64::from(is_written)] {
            hasher.update(&number.to_le_bytes());
        }
    })?;
    Ok(Some(*hasher.finalize().as_bytes()).filter(|_| is_known))
}

/// Calls `each` with the runs of a file, in order and as long as possible. Returns whether they are complete and all
/// have trusted addresses.
fn each_run(file: &File, size: u64, each: &mut dyn FnMut(BlockRun)) -> io::Result<bool> {
    let holes_are_reliable = fsinfo::name_of(file)? == "xfs";
    let (room, is_whole) = map::reader_capacity(file)?;
    let mut reader = fiemap::Reader::new(room);
    let (mut covered, mut last_seen, mut pending) = (0, false, None::<BlockRun>);
    while !last_seen {
        let extents = reader.read(file.as_fd(), if is_whole { 0 } else { covered })?;
        last_seen = extents.is_empty() || is_whole;
        for raw in extents {
            last_seen |= raw.flags & fiemap::LAST != 0;
            let Some(end) = raw.logical.checked_add(raw.length).filter(|_| raw.length > 0) else { return Ok(false) };
            let has_address = raw.flags & !TRUSTED_FLAGS == 0 && raw.physical > 0;
            if raw.logical < covered || !has_address || raw.physical.checked_add(raw.length).is_none() {
                return Ok(false);
            }
            if !holes_are_reliable && has_data(file, covered, raw.logical.min(size))? {
                return Ok(false);
            }
            covered = end;
            let run = BlockRun {
                start: raw.logical,
                end: end.min(size),
                address: raw.physical,
                is_written: raw.flags & fiemap::UNWRITTEN == 0,
            };
            // Space reserved past the end is not part of the file.
            if run.start >= size {
                continue;
            }
            match &mut pending {
                Some(before) if before.continues_in(&run) => before.end = run.end,
                before => before.replace(run).into_iter().for_each(&mut *each),
            }
        }
    }
    pending.into_iter().for_each(each);
    Ok(!has_data(file, covered, size)?)
}

fn has_data(file: &File, from: u64, to: u64) -> io::Result<bool> {
    Ok(from < to && sparse::next_data(file, from)?.is_some_and(|at| at < to))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(start: u64, end: u64, address: u64) -> BlockRun {
        BlockRun { start, end, address, is_written: true }
    }

    #[test]
    fn shared_runs_are_removed() {
        let mine = [run(0, 100, 1000), run(200, 300, 5000)];
        assert_eq!(without(&mine, &[]), mine);
        assert_eq!(without(&mine, &mine), []);
        // The middle of a run; another address; another offset.
        assert_eq!(without(&mine, &[run(20, 40, 1020)]), [run(0, 20, 1000), run(40, 100, 1040), mine[1]]);
        assert_eq!(without(&mine[..1], &[run(0, 100, 9000)]), mine[..1]);
        assert_eq!(without(&mine[..1], &[run(50, 150, 1000)]), mine[..1]);
        // One run that covers both.
        assert_eq!(without(&mine, &[run(0, 400, 1000)]), [mine[1]]);
    }

    proptest! {
        #[test]
        fn the_result_equals_a_comparison_byte_by_byte(mine in runs(), others in runs()) {
            let address_at = |runs: &[BlockRun], at: u64| {
                let found = runs.iter().find(|run| (run.start..run.end).contains(&at));
                found.map(|run| run.address + (at - run.start))
            };
            let rest = without(&mine, &others);
            for at in 0..200 {
                let expected = address_at(&mine, at).filter(|mine| address_at(&others, at) != Some(*mine));
                prop_assert_eq!(address_at(&rest, at), expected, "at {}", at);
            }
        }
    }

    /// Runs in order, each at one of a few addresses.
    fn runs() -> impl Strategy<Value = Vec<BlockRun>> {
        prop::collection::vec((0_u64..10, 1_u64..15, 0_u64..3), 0..8).prop_map(|parts| {
            let mut at = 0;
            let mut runs = Vec::new();
            for (gap, length, shift) in parts {
                let start = at + gap;
                runs.push(run(start, start + length, 1000 * (shift + 1) + start));
                at = start + length;
            }
            runs
        })
    }
}
