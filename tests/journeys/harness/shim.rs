//! Harm at the n-th call with which the service changes files: `crash_shim.c`, between it and libc.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use tempfile::TempDir;

use super::Settings;
use super::volume::run;

/// What happens at the call.
#[derive(Clone, Copy, Debug)]
pub enum Harm {
    /// SIGKILL, before it is made.
    KillBefore,
    /// SIGKILL, after it was made.
    KillAfter,
    /// It fails; those after it do not.
    Fail(Errno),
    /// It fails, and so do all after it.
    FailOn(Errno),
}

pub struct Shim {
    dir: TempDir,
    serial: Cell<u32>,
}

impl Shim {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/crash_shim.c");
        let library = dir.path().join("crash_shim.so");
        let flags = ["-std=gnu11", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"];
        run(Command::new("cc").args(flags).arg(library).arg(source).args(["-ldl", "-lpthread"]));
        Self { dir, serial: Cell::new(0) }
    }

    /// Puts the shim into the service that these settings start.
    pub fn load_into(&self, settings: &mut Settings) {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        settings.environment.push(("LD_PRELOAD".to_owned(), path("crash_shim.so")));
        settings.environment.push(("CRASH_ARM".to_owned(), path("armed")));
    }

    /// From now on calls are counted, and the `n`-th is harmed.
    pub fn arm(&self, n: u32, harm: Harm) {
        let (word, errno) = match harm {
            Harm::KillBefore => ("before", 0),
            Harm::KillAfter => ("after", 0),
            Harm::Fail(errno) => ("fail", errno as i32),
            Harm::FailOn(errno) => ("fail-on", errno as i32),
        };
        let _ = std::fs::remove_file(self.mark());
        self.serial.set(self.serial.get() + 1);
        let draft = self.dir.path().join("draft");
        std::fs::write(&draft, format!("{n} {word} {errno} {}", self.serial.get())).unwrap();
        std::fs::rename(draft, self.order()).unwrap();
    }

    pub fn disarm(&self) {
        std::fs::remove_file(self.order()).unwrap();
    }

    /// Whether the call came, and was harmed.
    pub fn has_harmed(&self) -> bool {
        self.mark().exists()
    }

    fn mark(&self) -> PathBuf {
        self.dir.path().join("armed.done")
    }

    fn order(&self) -> PathBuf {
        self.dir.path().join("armed")
    }
}
