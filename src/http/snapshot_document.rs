//! Writes the JSON documents of snapshots while their maps are found.

use serde::Serialize;

use super::json_stream::{JsonWriter, ObjectWriter, WriteError};
use crate::api;
use crate::app::compare::{ChunkPage, DiskMap, MapOptions, Mode};
use crate::app::export::{Digests, DiskChecksum};
use crate::app::retention::InUse;
use crate::app::snapshots::{DiskDocument, MapDocument, SnapshotDocument};

/// Writes the document of a snapshot, an [`api::Snapshot`]. Returns what keeps the snapshot from being swept.
pub(super) fn write(writer: &mut JsonWriter, document: SnapshotDocument) -> Result<Vec<InUse>, WriteError> {
    let SnapshotDocument { snapshot, disks, in_use } = document;
    writer.object(|object| {
        object.members(&snapshot)?;
        object.member("disks", |writer| writer.array_of(disks.into_iter(), write_disk))
    })?;
    Ok(in_use)
}

/// Writes the documents of snapshots as an array.
pub(super) fn write_all(
    writer: &mut JsonWriter,
    documents: impl Iterator<Item = SnapshotDocument>,
) -> Result<Vec<InUse>, WriteError> {
    let mut in_use = Vec::new();
    writer.array_of(documents, |writer, document| {
        in_use.extend(write(writer, document)?);
        Ok(())
    })?;
    Ok(in_use)
}

fn write_disk(writer: &mut JsonWriter, document: DiskDocument) -> Result<(), WriteError> {
    let DiskDocument { disk, map } = document;
    writer.object(|object| {
        object.members(&DiskHead::from(&disk))?;
        let failure = match map {
            MapDocument::Nothing(failure) => failure,
            MapDocument::Totals(mut map) => {
                object.members(&MapHead::of(&map))?;
                write_totals(object, &map)?;
                map.take_failure()
            }
            MapDocument::Chunks(mut map) => {
                object.members(&MapHead::of(&map))?;
                object
                    .member("chunks", |writer| writer.array(map.by_ref().map(|chunk| chunk.map(api::Chunk::from))))?;
                write_totals(object, &map)?;
                map.take_failure()
            }
        };
        let status = if failure.is_none() { api::Status::Ok } else { api::Status::Error };
        object.members(&State { status, status_reason: failure.map(|error| error.to_string()) })
    })
}

/// The members of an [`api::SnapshotDisk`] before its map.
#[derive(Serialize)]
struct DiskHead<'a> {
    parent_path: &'a str,
    path: &'a str,
    snapshot_id: &'a str,
    #[serde(rename = "snapshotID")]
    snapshot_id_legacy: &'a str,
    name: &'a str,
    repo_mountpoint: &'a str,
    size: u64,
}

impl<'a> From<&'a api::SnapshotDisk> for DiskHead<'a> {
    fn from(disk: &'a api::SnapshotDisk) -> Self {
        Self {
            parent_path: &disk.parent_path,
            path: &disk.path,
            snapshot_id: &disk.snapshot_id,
            snapshot_id_legacy: &disk.snapshot_id_legacy,
            name: &disk.name,
            repo_mountpoint: &disk.repo_mountpoint,
            size: disk.size,
        }
    }
}

/// The members of an [`api::SnapshotDisk`] after its map.
#[derive(Serialize)]
struct State {
    status: api::Status,
    #[serde(skip_serializing_if = "Option::is_none")]
    status_reason: Option<String>,
}

/// The members of an [`api::DiskMap`] before its chunks.
#[derive(Serialize)]
struct MapHead {
    mode: api::Mode,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
}

impl MapHead {
    fn of(map: &DiskMap) -> Self {
        Self { mode: mode(map.mode), reason: map.reason }
    }
}

/// The members of an [`api::DiskMap`] after its chunks.
#[derive(Serialize)]
struct MapTotals {
    data_bytes: u64,
    zero_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    refine: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    candidate_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unverified_bytes: Option<u64>,
    #[serde(rename = "widened_bytes", skip_serializing_if = "Option::is_none")]
    unverified_bytes_legacy: Option<u64>,
}

fn write_totals(object: &mut ObjectWriter<'_>, map: &DiskMap) -> Result<(), WriteError> {
    let totals = map.totals();
    let unverified = Some(totals.unverified).filter(|bytes| *bytes > 0);
    object.members(&MapTotals {
        data_bytes: totals.data,
        zero_bytes: totals.zero,
        refine: map.refine,
        candidate_bytes: map.refine.map(|_| totals.candidate),
        unverified_bytes: unverified,
        unverified_bytes_legacy: unverified,
    })
}

/// Converts a page of chunks.
pub(super) fn chunk_page(page: ChunkPage, options: MapOptions) -> api::ChunkPage {
    let ChunkPage { size, mode: of, reason, chunks, next_offset } = page;
    let chunks = chunks.into_iter().map(api::Chunk::from).collect();
    let (mode, reason) = (mode(of), reason.map(str::to_owned));
    api::ChunkPage { size, mode, reason, reverse: options.reverse, chunks, next_offset }
}

fn mode(mode: Mode) -> api::Mode {
    match mode {
        Mode::Full => api::Mode::Full,
        Mode::Incremental => api::Mode::Incremental,
    }
}

/// Writes a checksum, an [`api::Checksum`].
pub(super) fn write_checksum(writer: &mut JsonWriter, checksum: DiskChecksum) -> Result<(), WriteError> {
    let DiskChecksum { algorithm, block_size, range, digests } = checksum;
    let (algorithm, start, length) = (algorithm.name().to_owned(), range.start, range.end - range.start);
    let mut blocks = match digests {
        Digests::One(digest) => {
            let checksum = digest.to_string();
            return writer.value(&api::Checksum { algorithm, block_size, start, length, blocks: None, checksum });
        }
        Digests::Blocks(blocks) => blocks,
    };
    writer.object(|object| {
        object.members(&ChecksumHead { algorithm, block_size, start, length })?;
        object.member("blocks", |writer| {
            let digests = std::iter::from_fn(|| blocks.next().transpose());
            writer.array(digests.map(|digest| digest.map(|digest| digest.to_string())))
        })?;
        let checksum = blocks.finish()?;
        object.member("checksum", |writer| writer.value(&checksum.to_string()))
    })
}

/// The members of an [`api::Checksum`] before its blocks.
#[derive(Serialize)]
struct ChecksumHead {
    algorithm: String,
    block_size: Option<u64>,
    start: u64,
    length: u64,
}
