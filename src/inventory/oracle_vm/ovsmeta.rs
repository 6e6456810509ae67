//! `.ovsmeta`: the manager's notes on the files of a repository, in JSON.
//!
//! `{"<file name>": {"OBJECT_TYPE": "VIRTUAL_DISK", "SIMPLE_NAME": "data"}}`. The file is a hint, and
//! some repositories have none, or one in another format. So nothing in it is an error.

use std::fmt;
use std::io;

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
/// left out. Of repeated keys the last one counts, as in most parsers of JSON.
pub fn parse(bytes: &[u8]) -> Option<FileNotes> {
    let mut notes = FileNotes::default();
    for_each_entry(bytes, |file, entry| notes.insert(file, note(entry)))?;
    Some(notes)
}

/// The note in `entry`; an empty one where it is not an object.
fn note(entry: &RawValue) -> FileNote {
    let mut note = FileNote::default();
    let text = |value: &RawValue| serde_json::from_str::<String>(value.get()).ok();
    let whole = for_each_entry(entry.get().as_bytes(), |key, value| match key.as_str() {
        "SIMPLE_NAME" => note.friendly_name = text(value),
        "OBJECT_TYPE" => note.other_type = text(value).filter(|object_type| object_type != DISK_TYPE),
        _ => {}
    });
    whole.map(|()| note).unwrap_or_default()
}

/// Calls `f` for each entry of the JSON object `bytes`, and keeps none, so that a foreign file takes little memory.
/// `None` where `bytes` are not an object: `f` may have been called by then.
fn for_each_entry(bytes: &[u8], f: impl FnMut(String, &RawValue)) -> Option<()> {
    let mut source = serde_json::Deserializer::from_slice(bytes);
    source.deserialize_map(EntryVisitor(f)).ok()?;
    source.end().ok()
}

struct EntryVisitor<F>(F);

impl<'de, F: FnMut(String, &RawValue)> Visitor<'de> for EntryVisitor<F> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut source: A) -> Result<(), A::Error> {
        while let Some((key, value)) = source.next_entry::<String, &RawValue>()? {
            self.0(key, value);
        }
        Ok(())
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
    fn of_repeated_keys_the_last_one_counts() {
        let name = |text: &str| parse(text.as_bytes()).unwrap().get("a").and_then(|note| note.friendly_name.clone());
        assert_eq!(name(r#"{"a": {"SIMPLE_NAME": "1"}, "a": {"SIMPLE_NAME": "2"}}"#).as_deref(), Some("2"));
        assert_eq!(name(r#"{"a": {"SIMPLE_NAME": "1"}, "\u0061": 2}"#), None);
        assert_eq!(name(r#"{"a": {"SIMPLE_NAME": "1"}, "a": {}}"#), None);
        assert_eq!(name(r#"{"a": {"SIMPLE_NAME": "1", "SIMPLE_NAM\u0045": "2"}}"#).as_deref(), Some("2"));
        assert_eq!(name(r#"{"a": {"SIMPLE_NAME": "1", "SIMPLE_NAME": 2}}"#), None);
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
