//! Parses arbitrary bytes as a pickle.

#![no_main]

use coriolis_ovm_exporter::fuzzing::pickle::{self, MAX_DEPTH, MAX_VALUES, Value};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    match pickle::parse(source) {
        Ok(value) => {
            assert!(size(&value, 0) <= MAX_VALUES, "too many values");
            let _ = (value.get("mount_point"), value.to_text());
        }
        Err(error) => assert!(error.offset <= source.len(), "{error}"),
    }
});

fn size(value: &Value, depth: usize) -> usize {
    let inner = |items: &[Value]| items.iter().map(|item| size(item, depth + 1)).sum::<usize>();
    let items = match value {
        Value::List(items) | Value::Tuple(items) => inner(items),
        Value::Dict(pairs) => pairs.iter().map(|(key, value)| size(key, depth + 1) + size(value, depth + 1)).sum(),
        _ => return 1,
    };
    assert!(depth < MAX_DEPTH, "too deep");
    items + 1
}
