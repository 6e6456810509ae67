//! Parses arbitrary bytes as `.ovsmeta`, and compares with a parser of JSON values.

#![no_main]

use coriolis_ovm_exporter::fuzzing::ovsmeta;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Some(notes) = ovsmeta::parse(bytes) else { return };
    // A number that does not fit, and a text that is not Unicode, are errors of `Value` only.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    for (file, fields) in value.as_object().expect("an object") {
        let text = |key: &str| fields.get(key).and_then(Value::as_str);
        let note = notes.get(file).cloned().unwrap_or_default();
        assert_eq!(note.friendly_name.as_deref(), text("SIMPLE_NAME"), "{file}");
        assert_eq!(note.other_type.as_deref(), text("OBJECT_TYPE").filter(|kind| *kind != "VIRTUAL_DISK"), "{file}");
    }
});
