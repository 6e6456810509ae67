//! Reads arbitrary bytes as a qcow2 image.

#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, OnceLock};

use coriolis_ovm_exporter::fuzzing::table_cache::TableCache;
use coriolis_ovm_exporter::fuzzing::tables::{Place, Tables};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let file = scratch_file();
    file.set_len(0).unwrap();
    file.write_all_at(image, 0).unwrap();
    let len = image.len() as u64;
    let Ok(tables) = Tables::open(file.try_clone().unwrap(), 0, Arc::new(TableCache::new())) else { return };
    let size = tables.header().size;
    let (mut at, mut extents) = (0, 0);
    while at < size {
        let Ok(extent) = tables.extent_at(at) else { return };
        assert!(extent.range.start == at && at < extent.range.end && extent.range.end <= size, "{extent:?}");
        if let Place::Stored(offset) = extent.place {
            assert!(offset + (extent.range.end - at) <= len, "{extent:?} is outside of the file");
        }
        at = extent.range.end;
        extents += 1;
        // Each ends with an entry of an L1 or L2 table, and the file has room for both.
        assert!(extents <= len / 4, "more extents than table entries");
    }
});

/// A file without a name, used again for each input.
fn scratch_file() -> &'static File {
    static FILE: OnceLock<File> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("fuzz-qcow2-{}", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        fs::remove_file(path).unwrap();
        file
    })
}
