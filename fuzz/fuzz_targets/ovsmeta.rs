//! Parses arbitrary bytes as `.ovsmeta`, and compares with a parser of JSON values.

#![no_main]

use coriolis_ovm_exporter::fuzzing::ovsmeta;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some(notes) = ovsmeta::parse(bytes) else { return };
    // A number that does not fit is an error of `Value` only.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let files = value.as_object().expect("an object");
    for (file, fields) in files {
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        if let Some(note) = notes.get(file) {
            assert!(note.friendly_name.is_some() || note.other_type.is_some(), "an empty note");
            // Of repeated keys both parsers may keep another one.
            let is_plain = bytes.windows(11).filter(|window| *window == b"SIMPLE_NAME").count() <= files.len();
            if is_plain && let Some(name) = &note.friendly_name {
                assert!(text("SIMPLE_NAME").is_none_or(|text| text == name), "{file}");
            }
            assert_ne!(note.other_type.as_deref(), Some("VIRTUAL_DISK"));
        }
    }
});
