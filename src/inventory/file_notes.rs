//! What a platform's manager notes about the files of a repository. It is a hint: every part of it may be missing.

use std::collections::BTreeMap;

/// The notes of one repository.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileNotes {
    files: BTreeMap<String, FileNote>,
}

/// The note about one file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FileNote {
    /// The name that a user gave the disk.
    pub friendly_name: Option<String>,
    /// What the manager calls a file that is not a disk, such as `VIRTUAL_CDROM`.
    pub other_type: Option<String>,
}

impl FileNotes {
    /// `file` is a name without a folder.
    pub fn get(&self, file: &str) -> Option<&FileNote> {
        self.files.get(file)
    }

    /// Replaces the note about a file. An empty one is not kept.
    pub fn insert(&mut self, file: String, note: FileNote) {
        if note == FileNote::default() {
            self.files.remove(&file);
        } else {
            self.files.insert(file, note);
        }
    }
}
