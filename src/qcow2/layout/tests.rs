use super::*;

const TIB: u64 = 1 << 40;

fn run(start: u64, end: u64, content: Content) -> (ByteRange, Content) {
    (ByteRange::new(start, end).unwrap(), content)
}

fn backing(size: u64) -> Option<Backing> {
    Some(Backing { file: "base".to_owned(), format: Format::Raw, size })
}

#[test]
fn a_million_runs_need_24_bytes_each() {
    assert_eq!(size_of::<Run>(), 24);
    let count = 1_000_000;
    let step = TIB / count;
    let runs = (0..count).map(|index| run(index * step, index * step + 4096, Content::Data));
    let layout = Layout::new(TIB, runs, backing(TIB)).unwrap();
    assert_eq!(layout.runs.capacity(), count as usize);
    assert_eq!(layout.cluster_size(), 4096);
    // Few of the runs are aligned, so most have a gap at both ends.
    let aligned = (0..count).filter(|index| (index * step).is_multiple_of(4096)).count();
    assert_eq!(layout.gaps().count(), 2 * (count as usize - aligned));
    let clusters: u64 = layout.located_gaps().map(|gap| gap.guest.len()).sum::<u64>() + count * 4096;
    assert_eq!(layout.regions.end - layout.regions.data, clusters);
}

/// The bytes of gaps and runs have different places, which are all in the data clusters.
#[test]
fn every_allocated_byte_has_one_place() {
    let data = |start, end| run(start, end, Content::Data);
    let zero = |start, end| run(start, end, Content::Zero);
    let runs = vec![
        data(100, 200),
        zero(300, 400),
        data(4000, 4200),
        zero(4200, 20_000),
        zero(20_500, 20_600),
        zero(30_000, 40_960),
        zero(41_000, 45_056),
        data(50_000, 50_001),
    ];
    let layout = Layout::with_clusters(60_000, runs.clone(), backing(60_000), &[12]).unwrap();
    let placed = runs.iter().filter(|(_, content)| *content == Content::Data);
    let placed = placed.map(|(range, _)| (layout.place(*range).unwrap(), range.len()));
    let mut places: Vec<_> = placed.chain(layout.located_gaps().map(|gap| (gap.place, gap.guest.len()))).collect();
    places.sort_unstable();
    assert!(places.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{places:?}");
    assert!(places.iter().all(|(place, len)| layout.regions.data <= *place && place + len <= layout.regions.end));
    let gaps: Vec<_> = layout.gaps().map(|gap| (gap.start(), gap.end())).collect();
    let expected = [
        (0, 100),
        (200, 300),
        (400, 4000),
        (20_000, 20_480),
        (20_480, 20_500),
        (20_600, 24_576),
        (28_672, 30_000),
        (40_960, 41_000),
        (49_152, 50_000),
        (50_001, 53_248),
    ];
    assert_eq!(gaps, expected);
}

#[test]
fn wrong_input_is_refused() {
    let error = |size, runs: &[(ByteRange, Content)], name: &str| {
        let backing = Backing { file: name.to_owned(), format: Format::Raw, size: 0 };
        Layout::new(size, runs.iter().copied(), Some(backing)).unwrap_err().to_string()
    };
    let overlapping = [run(0, 10, Content::Data), run(9, 20, Content::Data)];
    assert!(error(100, &overlapping, "base").contains("starts before the one ahead of it ends"));
    assert!(error(100, &[run(0, 101, Content::Zero)], "base").contains("past the end of the disk, 100"));
    assert!(error((2 << 50) + 1, &[], "base").contains("is too large"));
    assert!(error(u64::MAX, &[], "base").contains("is too large"));
    for name in ["", "/base", "nbd:base", "json:{}", "two\nlines", &"n".repeat(1024)] {
        assert!(error(100, &[], name).contains("cannot name a backing file"), "{name}");
    }
    assert!(Layout::new(2 << 50, [], None).is_ok());
}

#[test]
fn only_data_runs_can_be_written() {
    let runs = [run(0, 10, Content::Data), run(10, 20, Content::Data), run(20, 30, Content::Zero)];
    let layout = Layout::new(1000, runs, backing(1000)).unwrap();
    let file = tempfile::tempfile().unwrap();
    assert!(layout.write_at(&file, 5, &[1; 15]).is_ok());
    assert_eq!(layout.write_at(&file, 19, &[1; 2]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    assert!(layout.write_at(&file, 25, &[1]).is_err());
    assert!(layout.write_at(&file, 40, &[1]).is_err());
    assert!(layout.fill_gaps(&file, None).is_err());
}
