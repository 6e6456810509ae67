//! A hook directory, and a folder in which the hooks leave files for the test.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::Value;
use tempfile::TempDir;

use super::{eventually, text};

const KILL: &str = "\
kill_service() {
    service=$PPID
    [ \"$(cat /proc/$PPID/comm)\" != hook-launcher ] || service=$(awk '/^PPid:/ { print $2 }' /proc/$PPID/status)
    kill -9 \"$service\"
}";

pub struct HookDir {
    dir: TempDir,
}

impl HookDir {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hooks.d")).unwrap();
        Self { dir }
    }

    pub fn directory(&self) -> PathBuf {
        self.at("hooks.d")
    }

    /// `[hooks]` of the config, with `lines` after the directory.
    pub fn section(&self, lines: &str) -> String {
        format!("[hooks]\ndirectory = {:?}\n{lines}\n", self.directory())
    }

    /// Installs a shell script, in which `$OUT` is the folder for output files, and `kill_service` kills the service:
    /// the parent, or the parent of the hook launcher.
    pub fn put(&self, name: &str, script: &str) {
        self.put_program(name, &format!("#!/bin/sh\nOUT={}\n{KILL}\n{script}\n", self.dir.path().display()));
    }

    /// Installs an executable file with exactly this content.
    pub fn put_program(&self, name: &str, text: &str) {
        let path = self.directory().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }

    pub fn remove(&self, name: &str) {
        fs::remove_file(self.directory().join(name)).unwrap();
    }

    /// The path of an output file.
    pub fn at(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The content of an output file; empty if the file is missing.
    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_default()
    }

    /// Reads and removes an output file.
    pub fn take(&self, name: &str) -> String {
        let text = self.read(name);
        let _ = fs::remove_file(self.at(name));
        text
    }

    pub fn wait_for(&self, name: &str) {
        eventually(&format!("a hook writes {name}"), || self.at(name).exists());
    }
}

/// The hook runs of a snapshot document, as "<field> <stage> <outcome>".
pub fn hook_runs(document: &Value, field: &str) -> Vec<String> {
    let run = |run: &Value| format!("{} {} {}", text(&run[field]), text(&run["stage"]), text(&run["outcome"]));
    document["hooks"].as_array().unwrap().iter().map(run).collect()
}
