//! Chains of images, compared with the bytes of a disk in memory.

use std::fs::{self, File};
use std::ops::Range;
use std::path::Path;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::model::ByteRange;
use crate::sys::folder::Folder;

/// One state of a disk, and its differences to the one before it.
#[derive(Clone, Debug)]
struct State {
    size: u64,
    /// Of its image. None leaves the choice to the layout.
    cluster_bits: Option<u32>,
    runs: Vec<(ByteRange, Content)>,
}

/// States whose sizes and runs are multiples of `unit`. Small clusters make many tables.
fn states(unit: u64, count: Range<usize>) -> impl Strategy<Value = Vec<State>> {
    let size = prop_oneof![0..1 + 1_000_000 / unit, 0..1 + 200_000 / unit];
    let content = prop_oneof![3 => Just(Content::Data), 2 => Just(Content::Zero)];
    let length = |max: u64| prop_oneof![0..1 + 20_000 / unit, 0..1 + max / unit];
    let run = (length(300_000), length(200_000), content);
    let cluster_bits = prop::option::of(prop::sample::select(vec![9, 10, 12, 14, 16]));
    let state = (size, cluster_bits, prop::collection::vec(run, 0..30)).prop_map(move |(size, cluster_bits, parts)| {
        let (mut at, mut runs) = (0, Vec::new());
        for (gap, len, content) in parts {
            let start = at + gap * unit;
            at = start + len * unit;
            runs.extend(ByteRange::new(start, at.min(size * unit)).map(|range| (range, content)));
        }
        State { size: size * unit, cluster_bits, runs }
    });
    prop::collection::vec(state, count)
}

fn any_states() -> impl Strategy<Value = Vec<State>> {
    prop_oneof![states(512, 1..5), states(4096, 1..5), states(1, 1..4)]
}

/// The bytes that state number `number` writes. None is zero.
fn data(number: usize, range: ByteRange) -> Vec<u8> {
    (range.start()..range.end()).map(|at| (at / 7 * 31 + at + number as u64 * 101) as u8 | 1).collect()
}

/// The bytes of the disk in this state.
fn apply(disk: &[u8], number: usize, state: &State) -> Vec<u8> {
    let mut disk = disk.to_vec();
    disk.resize(state.size as usize, 0);
    for (range, content) in &state.runs {
        let place = range.start() as usize..range.end() as usize;
        match content {
            Content::Data => disk[place].copy_from_slice(&data(number, *range)),
            Content::Zero => disk[place].fill(0),
        }
    }
    // QEMU counts in sectors.
    disk.resize(disk.len().next_multiple_of(512), 0);
    disk
}

struct Chain {
    folder: TempDir,
    root: Folder,
    disks: Vec<Vec<u8>>,
}

fn file_name(number: usize) -> String {
    format!("{number}.img")
}

impl Chain {
    /// Writes all states, each as an image on top of the one before it. The first is a raw file if `raw` is set.
    fn write(states: &[State], raw: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Folder::open(folder.path()).unwrap();
        let mut chain = Self { folder, root, disks: Vec::new() };
        for (number, state) in states.iter().enumerate() {
            let before = chain.disks.last().cloned().unwrap_or_default();
            let disk = apply(&before, number, state);
            if number == 0 && raw {
                fs::write(chain.path(0), &disk).unwrap();
            } else {
                let backing = number.checked_sub(1).map(|below| chain.open(below, raw));
                let layout = chain.layout(number, state, raw);
                let file = File::options().create(true).truncate(false).write(true).read(true).open(chain.path(number));
                write_image(&file.unwrap(), &layout, number, &state.runs, backing.as_ref());
            }
            chain.disks.push(disk);
        }
        chain
    }

    fn layout(&self, number: usize, state: &State, raw: bool) -> Layout {
        let backing = number.checked_sub(1).map(|below| Backing {
            file: file_name(below),
            format: format(below, raw),
            size: self.open(below, raw).size(),
        });
        match state.cluster_bits {
            Some(bits) => Layout::with_clusters(state.size, state.runs.clone(), backing, &[bits]).unwrap(),
            None => Layout::new(state.size, state.runs.clone(), backing).unwrap(),
        }
    }

    fn path(&self, number: usize) -> std::path::PathBuf {
        self.folder.path().join(file_name(number))
    }

    fn try_open(&self, number: usize, raw: bool) -> Result<Image, ImageError> {
        Image::open(&self.root, Path::new(&file_name(number)), format(number, raw))
    }

    fn open(&self, number: usize, raw: bool) -> Image {
        self.try_open(number, raw).unwrap()
    }
}

fn format(number: usize, raw: bool) -> Format {
    if number == 0 && raw { Format::Raw } else { Format::Qcow2 }
}

/// Writes the data from its end to its start, in pieces, and the tables in between.
fn write_image(file: &File, layout: &Layout, number: usize, runs: &[(ByteRange, Content)], backing: Option<&Image>) {
    let (first, second) = runs.split_at(runs.len() / 2);
    let write = |runs: &[(ByteRange, Content)]| {
        for (range, _) in runs.iter().rev().filter(|(_, content)| *content == Content::Data) {
            for (index, piece) in data(number, *range).chunks(5_000).enumerate().rev() {
                layout.write_at(file, range.start() + index as u64 * 5_000, piece).unwrap();
            }
        }
    };
    write(second);
    layout.write_metadata(file).unwrap();
    write(first);
    layout.fill_gaps(file, backing).unwrap();
    assert_eq!(file.metadata().unwrap().len(), layout.file_len());
    layout.finish(file).unwrap();
}

fn read(image: &Image, range: Range<u64>) -> Vec<u8> {
    let mut bytes = vec![0xaa; (range.end - range.start) as usize];
    image.read_at(range.start, &mut bytes).unwrap();
    bytes
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Reads all that an image has. Returns the first error.
fn read_all(image: &Image) -> Result<(), ImageError> {
    image.runs().try_for_each(|run| run.map(drop))?;
    image.runs_of(1).try_for_each(|run| run.map(drop))?;
    let mut buffer = vec![0; 1 << 16];
    let mut at = 0;
    // A damaged size may be anything.
    while at < image.size().min(8 << 20) {
        let len = (image.size() - at).min(buffer.len() as u64) as usize;
        image.read_at(at, &mut buffer[..len])?;
        at += len as u64;
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_image_of_a_chain_has_the_bytes_of_its_state(states in any_states(), raw: bool, cuts: [u64; 4]) {
        let chain = Chain::write(&states, raw);
        for (number, disk) in chain.disks.iter().enumerate() {
            let image = chain.open(number, raw);
            let size = image.size();
            prop_assert_eq!(size, disk.len() as u64);
            prop_assert!(read(&image, 0..size) == *disk, "image {}", number);
            for pair in cuts.windows(2) {
                let (a, b) = (pair[0] % (size + 1), pair[1] % (size + 1));
                let range = a.min(b)..a.max(b);
                prop_assert!(read(&image, range.clone()) == disk[range.start as usize..range.end as usize]);
            }
            prop_assert!(image.read_at(size, &mut [0]).is_err());
        }
    }

    #[test]
    fn runs_are_joined_and_tell_zeros_from_data(states in any_states(), raw: bool) {
        let chain = Chain::write(&states, raw);
        let number = states.len() - 1;
        let (image, disk) = (chain.open(number, raw), &chain.disks[number]);
        let runs: Vec<_> = image.runs().map(Result::unwrap).collect();
        let mut at = 0;
        for (range, content) in &runs {
            prop_assert_eq!(range.start(), at);
            at = range.end();
            let bytes = &disk[range.start() as usize..range.end() as usize];
            prop_assert!(*content == Content::Data || is_zero(bytes));
            prop_assert_eq!(image.next_run(range.start()).unwrap(), Some((*range, *content)));
        }
        prop_assert_eq!(at, image.size());
        prop_assert!(runs.windows(2).all(|pair| pair[0].1 != pair[1].1));
        prop_assert_eq!(image.next_run(image.size()).unwrap(), None);
    }

    #[test]
    fn own_runs_have_what_was_written(states in states(512, 2..4), raw: bool) {
        let chain = Chain::write(&states, raw);
        let number = states.len() - 1;
        let (image, state) = (chain.open(number, raw), &states[number]);
        let limit = chain.disks[number - 1].len() as u64;
        let cluster = chain.layout(number, state, raw).cluster_size();
        let own: Vec<_> = image.runs_of(1).map(Result::unwrap).collect();
        let at = |at: u64| own.iter().find(|(range, _)| (range.start()..range.end()).contains(&at)).unwrap().1;
        for (range, content) in &state.runs {
            for sector in (range.start()..range.end()).step_by(512) {
                match content {
                    Content::Data => prop_assert_eq!(at(sector), Part::Data),
                    Content::Zero => prop_assert!(sector >= limit || at(sector) != Part::Below),
                }
            }
        }
        // Clusters that no run touches are those of the backing file.
        for start in (0..image.size()).step_by(cluster as usize) {
            let touched = state.runs.iter().any(|(run, _)| run.start() < start + cluster && start < run.end());
            prop_assert!(touched || at(start) == Part::Below);
            prop_assert_eq!(image.next_own_run(start).unwrap().unwrap().1, at(start));
        }
    }

    #[test]
    fn neighbours_of_a_chain_can_be_merged(states in states(512, 2..5), raw: bool) {
        let chain = Chain::write(&states, raw);
        let number = states.len() - 1;
        let image = chain.open(number, raw);
        let parts: Vec<_> = image.runs_of(2).map(Result::unwrap).collect();
        let content = |part| match part {
            Part::Data => Some(Content::Data),
            Part::Zero => Some(Content::Zero),
            Part::Below => None,
        };
        let runs: Vec<_> = parts.iter().filter_map(|(range, part)| content(*part).map(|content| (*range, content))).collect();
        let below = number.checked_sub(2).map(|below| chain.open(below, raw));
        let backing = below.as_ref().map(|image| Backing {
            file: file_name(number - 2),
            format: format(number - 2, raw),
            size: image.size(),
        });
        let layout = Layout::new(image.size(), runs.clone(), backing).unwrap();
        let file = File::create_new(chain.folder.path().join("merged")).unwrap();
        layout.write_metadata(&file).unwrap();
        for (range, _) in runs.iter().filter(|(_, content)| *content == Content::Data) {
            layout.write_at(&file, range.start(), &read(&image, range.start()..range.end())).unwrap();
        }
        layout.fill_gaps(&file, below.as_ref()).unwrap();
        layout.finish(&file).unwrap();
        let merged = Image::open(&chain.root, Path::new("merged"), Format::Qcow2).unwrap();
        prop_assert!(read(&merged, 0..merged.size()) == chain.disks[number]);
    }

    #[test]
    fn damaged_tables_are_an_error_or_other_bytes(
        states in states(4096, 2..3),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8_u32), 1..4),
        at_start: bool,
    ) {
        let chain = Chain::write(&states, false);
        let layout = chain.layout(1, &states[1], false);
        let mut bytes = fs::read(chain.path(1)).unwrap();
        let metadata = if at_start { 160 } else { layout.regions.data };
        for (index, bit) in flips {
            bytes[index.index(metadata as usize)] ^= 1 << bit;
        }
        fs::write(chain.path(1), bytes).unwrap();
        let _ = chain.try_open(1, false).and_then(|image| read_all(&image));
    }

    #[test]
    fn files_that_are_cut_off_are_an_error(states in states(1 << 16, 1..3), cut: prop::sample::Index) {
        let chain = Chain::write(&states, false);
        let number = states.len() - 1;
        let len = fs::metadata(chain.path(number)).unwrap().len();
        File::options().write(true).open(chain.path(number)).unwrap().set_len(cut.index(len as usize) as u64).unwrap();
        let image = chain.try_open(number, false);
        let layout = chain.layout(number, &states[number], false);
        // The refcounts are not read.
        let unread = layout.regions.l2 == layout.regions.end;
        prop_assert!(unread || image.and_then(|image| read_all(&image)).is_err());
    }

    /// In between, the file may be used as it is after a crash.
    #[test]
    fn unfinished_images_are_refused_and_can_be_continued(states in states(512, 1..2), done: prop::sample::Index) {
        let chain = Chain::write(&states, false);
        let finished = fs::read(chain.path(0)).unwrap();
        fs::remove_file(chain.path(0)).unwrap();
        let file = File::create_new(chain.path(0)).unwrap();
        let layout = chain.layout(0, &states[0], false);
        layout.write_metadata(&file).unwrap();
        let some = &states[0].runs[..done.index(states[0].runs.len() + 1)];
        for (range, _) in some.iter().filter(|(_, content)| *content == Content::Data) {
            layout.write_at(&file, range.start(), &data(0, *range)).unwrap();
        }
        let refused = matches!(chain.try_open(0, false).unwrap_err().problem, Problem::NotQcow2);
        prop_assert!(refused);
        write_image(&file, &chain.layout(0, &states[0], false), 0, &states[0].runs, None);
        prop_assert!(fs::read(chain.path(0)).unwrap() == finished);
    }
}

/// The cluster in which the backing file ends has zeros of one run, data of another, and nothing in between.
#[test]
fn data_behind_the_end_of_the_backing_file_shares_a_cluster_with_zeros() {
    let range = |start, end| ByteRange::new(start, end).unwrap();
    let base = State { size: 6144, cluster_bits: Some(12), runs: vec![(range(0, 6144), Content::Data)] };
    for start in [6144, 6656, 8192] {
        let runs = vec![(range(512, 6144), Content::Zero), (range(start, 9216), Content::Data)];
        let grown = State { size: 10_240, cluster_bits: Some(12), runs };
        let chain = Chain::write(&[base.clone(), grown], false);
        assert!(read(&chain.open(1, false), 0..10_240) == chain.disks[1], "data from {start} on");
    }
}
