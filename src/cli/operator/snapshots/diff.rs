//! `snapshots diff`: how much has changed between two snapshots, and where.

use std::ops::Range;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde_json::value::RawValue;

use super::strip::{Strip, legend};
use crate::api::{ChunkPage, ChunkType, Mode, Snapshot};
use crate::backup::api_path;
use crate::cli::client::table::{self, Align, Table};
use crate::cli::operator::args::SnapshotDiffArgs;
use crate::cli::operator::names::{VmName, find_snapshot, find_vm, snapshots_of};
use crate::cli::operator::service::Service;
use crate::cli::terminal::{self, Lines};
use crate::client::ClientError;

/// Of a strip, where standard output is no terminal.
const WIDTH: usize = 80;

/// What changed on one disk. No list of the changes is kept: there can be millions.
struct Changes {
    name: String,
    size: u64,
    /// Why all of the disk counts as changed.
    full: Option<String>,
    data_bytes: u64,
    zero_bytes: u64,
    strip: Strip,
}

pub fn run(args: &SnapshotDiffArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let listed = snapshots_of(&client, &vm)?;
    let (base, target) = ordered(&listed, &vm, args)?;
    if args.json {
        let query = format!("compareTo={}&summary=true&refine={}", base.id, args.refine);
        let path = format!("/vms/{}/snapshots/{}?{query}", vm.id, target.id);
        terminal::print_json(&*client.get::<Box<RawValue>>(&path)?, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let width = terminal::size().map(|(columns, _)| columns);
    let query = format!("&compareTo={}&refine={}", base.id, args.refine);
    let mut disks = Vec::new();
    for disk in &target.disks {
        let path = api_path(&vm.id, &target.id, &disk.name);
        let mut changes = Changes::new(&disk.name, disk.size, width.unwrap_or(WIDTH));
        client.each_page(&path, &query, &mut |page| changes.add(page)).with_context(|| disk.name.clone())?;
        disks.push(changes);
    }
    let ascii = args.ascii || !terminal::is_utf8();
    page(&vm, base, target, &disks, ascii, width).print()?;
    Ok(ExitCode::SUCCESS)
}

/// The older and the newer snapshot, whichever was named first.
fn ordered<'a>(
    listed: &'a [Snapshot],
    vm: &VmName,
    args: &SnapshotDiffArgs,
) -> anyhow::Result<(&'a Snapshot, &'a Snapshot)> {
    let position = |given: &str| -> anyhow::Result<usize> {
        let id = find_snapshot(listed, vm, given)?;
        let position = listed.iter().position(|snapshot| snapshot.id == id);
        position.with_context(|| format!("{} has no snapshot {id}; snapshots list shows those it has", vm.shown))
    };
    let (first, second) = (position(&args.first)?, position(&args.second)?);
    if first == second {
        bail!("both names mean the snapshot {}", listed[first].id);
    }
    Ok((&listed[first.min(second)], &listed[first.max(second)]))
}

impl Changes {
    fn new(name: &str, size: u64, width: usize) -> Self {
        let strip = Strip::new(size, width);
        Self { name: name.to_owned(), size, full: None, data_bytes: 0, zero_bytes: 0, strip }
    }

    fn add(&mut self, page: ChunkPage) -> Result<(), ClientError> {
        if page.mode == Mode::Full {
            self.full = Some(page.reason.unwrap_or_else(|| "no reason is known".to_owned()));
        }
        for chunk in page.chunks {
            let end = chunk.start.checked_add(chunk.length).filter(|end| *end <= self.size);
            let end = end.ok_or_else(|| {
                ClientError::Protocol(format!("{}: the chunk at {} is outside the disk", self.name, chunk.start))
            })?;
            match chunk.kind {
                ChunkType::Data => self.data_bytes += chunk.length,
                ChunkType::Zero => self.zero_bytes += chunk.length,
            }
            self.strip.add(&Range { start: chunk.start, end });
        }
        Ok(())
    }
}

fn page(
    vm: &VmName,
    base: &Snapshot,
    target: &Snapshot,
    disks: &[Changes],
    ascii: bool,
    width: Option<usize>,
) -> Lines {
    let mut lines = Lines::default();
    lines.add(format_args!("changes of {}", vm.shown));
    lines.add(format_args!("from {} of {}", base.id, table::local_text(&base.created_at)));
    lines.add(format_args!("to   {} of {}", target.id, table::local_text(&target.created_at)));
    lines.add("");
    let mut table = Table::new(&[
        ("DISK", Align::Text),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("ZEROS", Align::Right),
        ("CHANGED", Align::Right),
        ("", Align::Text),
    ]);
    for disk in disks {
        let share = (disk.data_bytes + disk.zero_bytes) as f64 * 100.0 / disk.size.max(1) as f64;
        table.row(vec![
            disk.name.clone(),
            table::bytes(disk.size),
            table::bytes(disk.data_bytes),
            table::bytes(disk.zero_bytes),
            format!("{share:.1} %"),
            disk.full.as_ref().map(|reason| format!("all of the disk: {reason}")).unwrap_or_default(),
        ]);
    }
    lines.append(&table.without_empty_columns().lines_within(width));
    for disk in disks {
        lines.add("");
        lines.add(format_args!("{}, {} a character", disk.name, table::bytes(disk.strip.part_bytes())));
        lines.add(disk.strip.draw(ascii));
    }
    if !disks.is_empty() {
        lines.add("");
        lines.add(legend(ascii));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Chunk;

    const BLOCK: u64 = 4096;

    fn page_of(chunks: impl Iterator<Item = (u64, u64, ChunkType)>, size: u64, mode: Mode) -> ChunkPage {
        let chunk = |(start, length, kind)| Chunk { start, length, physical_start: 0, kind };
        ChunkPage { size, mode, reason: None, chunks: chunks.map(chunk).collect(), next_offset: None, reverse: false }
    }

    #[test]
    fn a_million_changes_are_summed_page_by_page() {
        let size = 4_000_000 * BLOCK;
        let mut changes = Changes::new("a.img", size, 40);
        for page in 0..100 {
            let kind = if page % 2 == 0 { ChunkType::Data } else { ChunkType::Zero };
            // Every second block of the first half of the disk.
            let chunks = (0..10_000).map(|index| ((page * 10_000 + index) * 2 * BLOCK, BLOCK, kind));
            changes.add(page_of(chunks, size, Mode::Incremental)).unwrap();
        }
        assert_eq!((changes.data_bytes, changes.zero_bytes), (500_000 * BLOCK, 500_000 * BLOCK));
        assert_eq!(changes.strip.draw(true), format!("{}{}", "+".repeat(20), ".".repeat(20)));
    }

    #[test]
    fn chunks_outside_the_disk_are_refused_and_a_full_disk_is_explained() {
        for (start, length) in [(0, BLOCK + 1), (BLOCK, 1), (u64::MAX, 2)] {
            let chunk = std::iter::once((start, length, ChunkType::Data));
            let error = Changes::new("a.img", BLOCK, 10).add(page_of(chunk, BLOCK, Mode::Incremental)).unwrap_err();
            assert!(error.to_string().ends_with("is outside the disk"), "{error}");
        }
        let mut changes = Changes::new("a.img", BLOCK, 10);
        changes.add(page_of(std::iter::once((0, BLOCK, ChunkType::Data)), BLOCK, Mode::Full)).unwrap();
        assert_eq!(
            (changes.full.as_deref(), changes.strip.draw(true).as_str()),
            (Some("no reason is known"), "##########")
        );
    }
}
