//! Clocks that the test shifts: `clock_shim.c`, preloaded before libc.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use tempfile::TempDir;

use super::volume::run;
use super::{Client, ProcessStats, Settings, World, eventually};

const HOUR: i64 = 3600;

/// The service's wall clock and monotonic clock; both are correct at first.
pub struct Clock {
    dir: TempDir,
    file: File,
    /// Offsets of the wall clock and of the monotonic clock, in seconds.
    ahead: Mutex<(i64, i64)>,
}

impl Clock {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys/clock_shim.c");
        let library = dir.path().join("clock_shim.so");
        run(Command::new("cc").args(["-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o"]).arg(library).arg(source));
        let file = File::create(dir.path().join("clock")).unwrap();
        file.set_len(16).unwrap();
        Self { dir, file, ahead: Mutex::default() }
    }

    /// Preloads the shim into the service that these settings start.
    pub fn load_into(&self, settings: &mut Settings) {
        settings.confined = false;
        for (name, file) in [("LD_PRELOAD", "clock_shim.so"), ("CLOCK_FILE", "clock")] {
            settings.environment.push((name.to_owned(), self.dir.path().join(file).display().to_string()));
        }
    }

    /// Advances both clocks by `hours`.
    pub fn pass(&self, hours: i64) {
        let (wall, monotonic) = *self.ahead.lock().unwrap();
        self.set(wall + hours * HOUR, monotonic + hours * HOUR);
    }

    /// Moves only the wall clock by `hours`.
    pub fn leap(&self, hours: i64) {
        let (wall, monotonic) = *self.ahead.lock().unwrap();
        self.set(wall + hours * HOUR, monotonic);
    }

    fn set(&self, wall: i64, monotonic: i64) {
        *self.ahead.lock().unwrap() = (wall, monotonic);
        self.file.write_all_at(&wall.to_ne_bytes(), 0).unwrap();
        self.file.write_all_at(&monotonic.to_ne_bytes(), 8).unwrap();
    }

    /// Runs the sweeper `count` times, a minute apart, and waits until it has finished. The service has to log at
    /// `debug`.
    pub fn rounds(&self, world: &World, count: usize) {
        for _ in 0..count {
            let ended = || world.exporter.log().matches("finished the retention sweep").count();
            let before = ended();
            // Two rounds: the first may have begun before this call.
            for round in 1..=2 {
                // Otherwise a request in progress would appear to have taken a minute.
                ProcessStats::of(&world.exporter).wait_until_paused();
                self.leap_minute();
                eventually("the sweeper has ended its round", || {
                    // The runtime notices the new time only when it wakes up, so wake it with a request.
                    let client = Client::new(&world.exporter, &world.certificates);
                    client.send(client.request(reqwest::Method::GET, "/healthz"));
                    ended() >= before + round
                });
            }
        }
    }

    fn leap_minute(&self) {
        let (wall, monotonic) = *self.ahead.lock().unwrap();
        self.set(wall + 61, monotonic + 61);
    }
}
