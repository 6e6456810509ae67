//! Reads arbitrary bytes as a manifest. What it describes survives being written and read.

#![no_main]

use std::path::{Component, Path};

use coriolis_ovm_exporter::fuzzing::manifest;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _ = manifest::maker(text);
    let Ok(described) = manifest::decode(text) else { return };
    for disk in &described.snapshot.disks {
        let name = disk.name.as_str();
        assert!(!name.is_empty() && !name.starts_with('.') && !name.contains('/'), "a disk named {name:?}");
        let mut parts = Path::new(&disk.source.path).components();
        assert!(parts.all(|part| matches!(part, Component::Normal(_))), "{:?}", disk.source.path);
    }
    let written = manifest::encode(&described, "this one").expect("it encodes");
    assert_eq!(manifest::decode(&written).expect("it can be read again"), described);
    assert_eq!(manifest::maker(&written).expect("it can be read again").as_deref(), Some("this one"));
});
