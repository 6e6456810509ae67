//! Parses arbitrary text as the config file.

#![no_main]

use coriolis_ovm_exporter::fuzzing::parse_with_faults;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let text = String::from_utf8_lossy(text);
    let (config, faults) = parse_with_faults(&text);
    assert!(faults.iter().all(|fault| fault.contains(' ')), "a fault without an explanation: {faults:?}");
    // A config without faults can be shown, and shows no secret.
    let shown = format!("{config:?}");
    assert!(!faults.is_empty() || !shown.contains("a secret of"), "{shown}");
});
