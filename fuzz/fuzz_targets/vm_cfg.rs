//! Parses arbitrary text as a `vm.cfg`, and masks its secrets.

#![no_main]

use coriolis_ovm_exporter::fuzzing::definition::describe;
use coriolis_ovm_exporter::fuzzing::python_literal::{self, Value};
use coriolis_ovm_exporter::fuzzing::vm_cfg;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|source: &[u8]| {
    let source = String::from_utf8_lossy(source);
    let assignments = python_literal::parse_assignments(&source);
    assert!(assignments.is_ok() || vm_cfg::parse(&source).is_err(), "a definition that is no list of assignments");
    let described = describe(&source);
    assert_eq!(described.is_ok(), assignments.is_ok(), "a snapshot keeps what can be parsed");
    let (Ok(assignments), Ok(definition)) = (assignments, described) else { return };
    // A masked text still parses, to the same values but for the mask.
    if let Some(text) = &definition.text {
        let masked = python_literal::parse_assignments(text).expect("the masked text parses");
        assert_eq!(masked.keys().collect::<Vec<_>>(), assignments.keys().collect::<Vec<_>>());
        for (name, value) in &masked {
            assert!(has_shape_of(value, &assignments[name]), "{name}: {value:?}, was {:?}", assignments[name]);
        }
        // What is masked has nothing left to mask.
        let again = describe(text).expect("the masked text parses").text;
        assert_eq!(again.as_ref(), Some(text));
    }
});

/// Whether a value is another one, in which scalars may be masked.
fn has_shape_of(masked: &Value, value: &Value) -> bool {
    let same = |masked: &[Value], values: &[Value]| {
        masked.len() == values.len() && masked.iter().zip(values).all(|(masked, value)| has_shape_of(masked, value))
    };
    match (masked, value) {
        (Value::List(masked), Value::List(values)) | (Value::Tuple(masked), Value::Tuple(values)) => {
            same(masked, values)
        }
        (Value::Dict(masked), Value::Dict(values)) => {
            masked.len() == values.len()
                && masked
                    .iter()
                    .zip(values)
                    .all(|(masked, value)| has_shape_of(&masked.0, &value.0) && has_shape_of(&masked.1, &value.1))
        }
        (_, Value::List(_) | Value::Tuple(_) | Value::Dict(_)) => false,
        (Value::Str(text), _) if text.contains("***") => true,
        // Not a number equals itself here.
        _ => format!("{masked:?}") == format!("{value:?}"),
    }
}
