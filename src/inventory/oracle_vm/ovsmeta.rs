//! `.ovsmeta`: the manager's notes on the files of a repository, in JSON.
//!
//! `{"<file name>": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "data"}}`. The file is a hint, and
//! some repositories have none, or one in another format. So nothing in it is an error.

use std::fmt;
use std::io;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::inventory::{FileNote, FileNotes};
use crate::model::layout::OVSMETA;
use crate::sys::folder::Folder;

/// Bytes that are read at most.
const MAX_SIZE: usize = 16 << 20;

/// The `OBJECT_TYPE` of a disk.
const DISK_TYPE: &str = "VIRTUAL_DISK";

/// The notes in the repository `root`; `None` without a readable file in this format.
pub fn read(root: &Folder) -> Option<FileNotes> {
    match root.read_small(OVSMETA, MAX_SIZE) {
        Ok(bytes) => parse(&bytes),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(repository = ?root.path(), %error, "cannot read .ovsmeta: friendly names of disks are unknown");
            None
        }
    }
}

/// `None` where `bytes` are not a JSON object. An entry that is not an object, and a field that is not a string, are
/// left out.
pub fn parse(bytes: &[u8]) -> Option<FileNotes> {
    let mut source = serde_json::Deserializer::from_slice(bytes);
    let notes = source.deserialize_map(NotesVisitor).ok()?;
    source.end().ok()?;
    Some(notes)
}

/// Keeps only the fields that are used, so that a foreign file takes little memory.
struct NotesVisitor;

impl<'de> Visitor<'de> for NotesVisitor {
    type Value = FileNotes;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut source: A) -> Result<FileNotes, A::Error> {
        let mut notes = FileNotes::default();
        while let Some((file, value)) = source.next_entry::<String, &RawValue>()? {
            // An array would be read as the fields in their order.
            let object = Some(value.get()).filter(|text| text.starts_with('{'));
            if let Some(fields) = object.and_then(|text| serde_json::from_str(text).ok()) {
                notes.insert(file, note(fields));
            }
        }
        Ok(notes)
    }
}

#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(rename = "OBJECT_TYPE", borrow, default)]
    object_type: Option<&'a RawValue>,
    #[serde(rename = "SIMPLE_NAME", borrow, default)]
    simple_name: Option<&'a RawValue>,
}

fn note(fields: Fields<'_>) -> FileNote {
    let text = |value: Option<&RawValue>| serde_json::from_str::<String>(value?.get()).ok();
    FileNote {
        friendly_name: text(fields.simple_name),
        other_type: text(fields.object_type).filter(|object_type| object_type != DISK_TYPE),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_and_types_of_files() {
        let notes = parse(
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
            ("disk.img", None, Some("data é")),
            ("cd.iso", Some("VIRTUAL_CDROM"), None),
            ("half.img", None, Some("half")),
            ("odd.img", None, None),
            ("none.img", None, None),
            ("unknown.img", None, None),
        ];
        for (file, other_type, friendly_name) in cases {
            let note = notes.get(file).cloned().unwrap_or_default();
            assert_eq!(
                (note.other_type.as_deref(), note.friendly_name.as_deref()),
                (other_type, friendly_name),
                "{file}"
            );
        }
    }

    #[test]
    fn other_formats_are_ignored() {
        let deep = "[".repeat(100_000);
        let cases: [&[u8]; 8] =
            [b"", b"{", b"[]", b"null", b"\"text\"", b"{} {}", b"OBJECT_TYPE=VIRTUAL_DISK\n", deep.as_bytes()];
        for bytes in cases {
            assert_eq!(parse(bytes), None, "{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(40)]));
        }
        assert_eq!(parse(b"{}"), Some(FileNotes::default()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_accepted(bytes: Vec<u8>) {
            let _ = parse(&bytes);
        }
    }
}
