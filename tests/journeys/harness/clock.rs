//! Clocks that leap: `clock_shim.c`, between the service and libc.

use std::cell::Cell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::volume::run;
use super::{Client, Settings, Work, World, eventually};

const HOUR: i64 = 3600;

/// The service's clocks, both right at first.
pub struct Clock {
    dir: TempDir,
    file: File,
    /// By how much they are ahead, seconds.
    ahead: Cell<(i64, i64)>,
}

impl Clock {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/clock_shim.c");
        let library = dir.path().join("clock_shim.so");
        run(Command::new("cc").args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source));
        let file = File::create(dir.path().join("clock")).unwrap();
        file.set_len(16).unwrap();
        Self { dir, file, ahead: Cell::default() }
    }

    /// Puts the clocks into the service that these settings start.
    pub fn load_into(&self, settings: &mut Settings) {
        for (name, file) in [("LD_PRELOAD", "clock_shim.so"), ("CLOCK_FILE", "clock")] {
            settings.environment.push((name.to_owned(), self.dir.path().join(file).display().to_string()));
        }
    }

    /// Time passes: both clocks go on by `hours`.
    pub fn pass(&self, hours: i64) {
        let (wall, monotonic) = self.ahead.get();
        self.set(wall + hours * HOUR, monotonic + hours * HOUR);
    }

    /// The wall clock alone leaps by `hours`.
    pub fn leap(&self, hours: i64) {
        let (wall, monotonic) = self.ahead.get();
        self.set(wall + hours * HOUR, monotonic);
    }

    fn set(&self, wall: i64, monotonic: i64) {
        self.ahead.set((wall, monotonic));
        self.file.write_all_at(&wall.to_ne_bytes(), 0).unwrap();
        self.file.write_all_at(&monotonic.to_ne_bytes(), 8).unwrap();
    }

    /// Lets the sweeper run `count` times, a minute between; what it finds is deleted when this
    /// returns. The service's log has to be at `debug`.
    pub fn rounds(&self, world: &World, count: usize) {
        for _ in 0..count {
            let ended = || world.exporter.log().matches("expired snapshots were swept").count();
            let before = ended();
            // Two rounds: the first may have begun before this call, the second has not.
            for round in 1..=2 {
                // What is under way would look as if it had taken a minute.
                Work::of(&world.exporter).wait_for_pause();
                self.leap_minute();
                eventually("the sweeper has ended its round", || {
                    // Its sleep ends when the service wakes up for something else.
                    let client = Client::new(&world.exporter, &world.certificates);
                    client.send(client.request(reqwest::Method::GET, "/healthz"));
                    ended() >= before + round
                });
            }
        }
    }

    fn leap_minute(&self) {
        let (wall, monotonic) = self.ahead.get();
        self.set(wall + 61, monotonic + 61);
    }
}
