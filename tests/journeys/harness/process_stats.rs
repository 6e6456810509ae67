//! What the kernel counts of the service's process.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use super::{Exporter, eventually};

/// CPU time of a process and all its threads, including those that have ended, in clock ticks.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The process name, in parentheses, may contain spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// A number of `/proc/<pid>/status`: `VmRSS` is the memory in use, `VmHWM` its maximum so far.
pub fn memory_kib(pid: u32, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

pub struct ProcessStats {
    pid: u32,
    /// `/proc/<pid>`.
    process: PathBuf,
}

impl ProcessStats {
    pub fn of(exporter: &Exporter) -> Self {
        let pid = exporter.pid();
        Self { pid, process: format!("/proc/{pid}").into() }
    }

    /// Bytes read with read(2) and similar calls.
    pub fn bytes_read(&self) -> u64 {
        let io = fs::read_to_string(self.process.join("io")).unwrap();
        io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap().parse().unwrap()
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(self.process.join("fd")).unwrap().count()
    }

    pub fn threads(&self) -> usize {
        fs::read_dir(self.process.join("task")).unwrap().count()
    }

    pub fn threads_named(&self, name: &str) -> usize {
        let tasks = fs::read_dir(self.process.join("task")).unwrap();
        let names = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("comm")).ok());
        names.filter(|found| found.trim() == name).count()
    }

    /// Waits until the process uses CPU time.
    pub fn wait_until_busy(&self) {
        let before = ticks(self.pid);
        eventually("the service uses CPU time", || ticks(self.pid) > before + 10);
    }

    /// Whether all threads sleep. A thread that waits for a CPU on a loaded machine does not sleep.
    fn is_asleep(&self) -> bool {
        let tasks = fs::read_dir(self.process.join("task")).unwrap();
        // A listed thread may have ended by the time its state is read.
        let states = tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("stat")).ok());
        states.filter_map(|stat| stat.rsplit_once(") ")?.1.chars().next()).all(|state| state == 'S')
    }

    /// Waits until all threads sleep for a moment.
    pub fn wait_until_paused(&self) {
        let mut asleep = 0;
        eventually("the service pauses", || {
            asleep = if self.is_asleep() { asleep + 1 } else { 0 };
            asleep > 3
        });
    }

    /// Waits until the service stays asleep, and neither uses CPU time nor reads.
    pub fn wait_until_idle(&self) {
        eventually("the service is idle", || {
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
