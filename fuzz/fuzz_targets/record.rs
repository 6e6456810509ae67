//! Reads arbitrary bytes as a database record of a snapshot. What it says survives being written and read.

#![no_main]

use coriolis_ovm_exporter::fuzzing::record::{self, Record, State};
use libfuzzer_sys::fuzz_target;

/// The id of the snapshot, which is the key of its record.
const ID: u128 = 7;

fuzz_target!(|bytes: &[u8]| {
    let Ok(found) = record::decode(ID, bytes) else { return };
    let _ = (found.vm(), found.repositories(), found.annotations());
    if let Record::Ready(snapshot) = &found {
        let written = record::encode(State::Ready, snapshot).expect("it encodes");
        assert_eq!(record::decode(ID, &written).expect("it can be read again"), found);
    }
});
