//! Parses arbitrary bytes as a database, and its values as pickles.

#![no_main]

use coriolis_ovm_exporter::fuzzing::{berkeley_db, pickle};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let counted = berkeley_db::element_count(file);
    if let Ok(pairs) = berkeley_db::pairs(file) {
        assert!(counted.is_ok(), "pairs, but no count");
        // An overflow page belongs to one item, so no bytes are returned twice.
        let len: usize = pairs.iter().map(|(key, value)| key.len() + value.len()).sum();
        assert!(len <= file.len(), "more bytes than the file has");
        assert!(pairs.is_sorted_by(|a, b| a.0 < b.0), "duplicate key");
        for (_, value) in &pairs {
            let _ = pickle::parse(value);
        }
    }
});
