//! A directory of hooks, as an operator fills it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::eventually;

/// The directory, and a place where hooks leave their marks.
pub struct Shelf {
    dir: TempDir,
}

impl Shelf {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hooks.d")).unwrap();
        Self { dir }
    }

    /// The directory of the hooks.
    pub fn hooks(&self) -> PathBuf {
        self.at("hooks.d")
    }

    /// `[hooks]` of the config, with these lines besides the directory.
    pub fn section(&self, lines: &str) -> String {
        format!("[hooks]\ndirectory = {:?}\n{lines}\n", self.hooks())
    }

    /// Puts a shell script there, in which `$OUT` is where marks are left.
    pub fn put(&self, name: &str, script: &str) {
        self.put_program(name, &format!("#!/bin/sh\nOUT={}\n{script}\n", self.dir.path().display()));
    }

    /// Puts a program there, word for word.
    pub fn put_program(&self, name: &str, text: &str) {
        let path = self.hooks().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.hooks().join(name)).unwrap();
    }

    /// Where a mark is left.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What a mark says; nothing where it is not left.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// The same, taken away.
    pub fn take(&self, name: &str) -> String {
        let text = self.read(name);
        let _ = fs::remove_file(self.at(name));
        text
    }

    /// Waits until a mark is left.
    pub fn wait_for(&self, name: &str) {
        eventually(&format!("a hook leaves {name}"), || self.at(name).exists());
    }
}
