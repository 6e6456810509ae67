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

    /// Waits until it does nothing any more.
    pub fn wait_for_rest(&self) {
        eventually("the service rests", || {
            let before = (ticks(self.pid), self.bytes_read());
            std::thread::sleep(Duration::from_millis(300));
            let now = (ticks(self.pid), self.bytes_read());
            now.0 <= before.0 + 1 && now.1 <= before.1 + 1000
        });
    }
}
