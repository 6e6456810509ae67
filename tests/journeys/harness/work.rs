//! What the service is doing, as the kernel counts it.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{Exporter, eventually};

/// Processor time of a process and all its threads, those that are gone too: clock ticks.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name before it may hold anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A number of `/proc/<pid>/status`: `VmRSS`, what is in memory now, or `VmHWM`, the most that ever was.
pub fn memory_kib(pid: u32, what: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub struct Work {
    pid: u32,
    /// `/proc/<pid>` of the service.
    process: PathBuf,
}

impl Work {
    pub fn of(exporter: &Exporter) -> Self {
        let pid = exporter.pid();
        Self { pid, process: format!("/proc/{pid}").into() }
    }

    /// Bytes that it has read with read(2) and its like.
    pub fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(self.process.join("io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    /// Threads of this name.
    pub fn threads(&self, name: &str) -> usize {
        let tasks = fs::read_dir(self.process.join("task")).unwrap();
        let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|found| found.trim() == name).count()
    }

    /// Waits until it is at work on what was asked.
    pub fn wait_for_some(&self) {
        let before = ticks(self.pid);
        eventually("the service works", || ticks(self.pid) > before + 10);
    }

    /// Whether each of its threads sleeps: one that waits for a processor on a loaded machine does not.
    fn is_asleep(&self) -> bool {
        let tasks = fs::read_dir(self.process.join("task")).unwrap();
        // A thread may be gone when it is asked about.
        let states = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        states.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).all(|state| state == 'S')
    }

    /// Waits for a moment in which it does nothing.
    pub fn wait_for_pause(&self) {
        let mut asleep = 0;
        eventually("the service pauses", || {
            asleep = if self.is_asleep() { asleep + 1 } else { 0 };
            asleep > 3
        });
    }

    /// Waits until it does nothing any more.
    pub fn wait_for_rest(&self) {
        eventually("the service rests", || {
            let before = (ticks(self.pid), self.bytes_read());
            let is_asleep = (0..15).all(|_| {
                std::thread::sleep(Duration::from_millis(20));
                self.is_asleep()
            });
            let now = (ticks(self.pid), self.bytes_read());
            is_asleep && now.0 <= before.0 + 1 && now.1 <= before.1 + 1000
        });
    }
}
