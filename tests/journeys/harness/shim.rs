//! Fault injection at the n-th call with which the service changes files: `crash_shim.c`, preloaded before libc.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use tempfile::TempDir;

use super::Settings;
use super::volume::run;

#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// SIGKILL before the call.
    KillBefore,
    /// SIGKILL after the call.
    KillAfter,
    /// The call fails; later calls succeed.
    Fail(Errno),
    /// The call and all later calls fail.
    FailFrom(Errno),
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

    /// Preloads the shim into the service that these settings start.
    pub fn load_into(&self, settings: &mut Settings) {
        settings.confined = false;
        settings.environment.extend(self.environment());
    }

    /// The environment of a process that has the shim preloaded.
    pub fn environment(&self) -> [(String, String); 2] {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        [("LD_PRELOAD".to_owned(), path("crash_shim.so")), ("CRASH_ARM".to_owned(), path("armed"))]
    }

    /// Starts counting calls from 1, and injects the fault at the `n`-th.
    pub fn arm(&self, n: u32, fault: Fault) {
        let (word, errno) = match fault {
            Fault::KillBefore => ("before", 0),
            Fault::KillAfter => ("after", 0),
            Fault::Fail(errno) => ("fail", errno as i32),
            Fault::FailFrom(errno) => ("fail-from", errno as i32),
        };
        let _ = std::fs::remove_file(self.done_file());
        self.serial.set(self.serial.get() + 1);
        let draft = self.dir.path().join("draft");
        std::fs::write(&draft, format!("{n} {word} {errno} {}", self.serial.get())).unwrap();
        std::fs::rename(draft, self.arm_file()).unwrap();
    }

    pub fn disarm(&self) {
        std::fs::remove_file(self.arm_file()).unwrap();
    }

    pub fn fault_occurred(&self) -> bool {
        self.done_file().exists()
    }

    fn done_file(&self) -> PathBuf {
        self.dir.path().join("armed.done")
    }

    fn arm_file(&self) -> PathBuf {
        self.dir.path().join("armed")
    }
}
