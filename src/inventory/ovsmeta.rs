//! `.ovsmeta`: what the manager says of the files of a repository, where it says it as JSON.
//!
//! `{"<file name>": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "data"}}`. The file is a hint, and
//! there are repositories without it or with another format: nothing in it is an error.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// What is known of the files of one repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OvsMeta {
    files: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    object_type: Option<String>,
    simple_name: Option<String>,
}

impl OvsMeta {
    /// What a file is, such as `VIRTUAL_DISK`; `file` is its name without a folder.
    pub fn object_type(&self, file: &str) -> Option<&str> {
        self.files.get(file)?.object_type.as_deref()
    }

    /// The name that people gave to a file; `file` is its name without a folder.
    pub fn simple_name(&self, file: &str) -> Option<&str> {
        self.files.get(file)?.simple_name.as_deref()
    }
}

/// Reads an `.ovsmeta`: `None` where it is not a JSON object. An entry that is not an object, and a
/// field that is not a string, are left out.
pub fn parse(bytes: &[u8]) -> Option<OvsMeta> {
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let files = source.deserialize_map(Files).ok()?;
    source.end().ok()?;
    Some(OvsMeta { files })
}

/// Keeps of each entry what is asked for, so that a file of anybody's takes little memory.
struct Files;

impl<'de> Visitor<'de> for Files {
    type Value = BTreeMap<String, Entry>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<Self::Value, A::Error> {
        let mut files = BTreeMap::new();
        while let Some((name, value)) = source.next_entry::<String, &RawValue>()? {
            // An array would pass for the fields in their order.
            let object = Some(value.get()).filter(|text| text.starts_with('{'));
            let entry = object.and_then(|text| serde_json::from_str(text).ok()).map(entry);
            if let Some(entry) = entry.filter(|entry| entry.object_type.is_some() || entry.simple_name.is_some()) {
                files.insert(name, entry);
            }
        }
        Ok(files)
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "OBJECT_TYPE", borrow, default)]
    object_type: Option<&'a RawValue>,
    #[serde(rename = "SIMPLE_NAME", borrow, default)]
    simple_name: Option<&'a RawValue>,
}

fn entry(fields: Fields<'_>) -> Entry {
    let text = |value: Option<&RawValue>| serde_json::from_str(value?.get()).ok();
    Entry { object_type: text(fields.object_type), simple_name: text(fields.simple_name) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_types_of_files() {
        let meta = parse(
            br#"{
                "disk.img": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "data \u00e9", "SIZE": 1},
                "cd.iso": {"OBJECT_TYPE": "VIRTUAL_CDROM", "SIMPLE_NAME": null},
                "half.img": {"SIMPLE_NAME": "half"},
                "odd.img": ["VIRTUAL_DISK"],
                "none.img": null
            }"#,
        )
        .unwrap();
        let cases = [
            ("disk.img", Some("VIRTUAL_DISK"), Some("data é")),
            ("cd.iso", Some("VIRTUAL_CDROM"), None),
            ("half.img", None, Some("half")),
            ("odd.img", None, None),
            ("none.img", None, None),
            ("unknown.img", None, None),
        ];
        for (file, object_type, simple_name) in cases {
            assert_eq!((meta.object_type(file), meta.simple_name(file)), (object_type, simple_name), "{file}");
        }
    }

    #[test]
    fn other_formats_are_nothing() {
        let deep = "[".repeat(100_000);
        let cases: [&[u8]; 8] =
            [b"", b"{", b"[]", b"null", b"\"text\"", b"{} {}", b"OBJECT_TYPE=VIRTUAL_DISK\n", deep.as_bytes()];
        for bytes in cases {
            assert_eq!(parse(bytes), None, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
        assert_eq!(parse(b"{}").unwrap().object_type("disk.img"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
