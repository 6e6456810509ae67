use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tempfile::TempDir;

use super::*;
use crate::cli::log_queue::LogQueue;
use crate::metrics::Counter;

/// A line of 10 bytes.
fn line(n: usize) -> String {
    format!("line {n:04}\n")
}

fn write(log: &mut LogFile, lines: impl IntoIterator<Item = usize>) {
    for n in lines {
        log.append(line(n).as_bytes()).unwrap();
    }
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn log(&self) -> PathBuf {
        self.0.path().join("log")
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.0.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.0.path().join(name)).unwrap()
    }
}

fn lines(numbers: impl IntoIterator<Item = usize>) -> String {
    numbers.into_iter().map(line).collect()
}

#[test]
fn the_newest_files_are_kept_with_whole_lines() {
    let folder = Folder::new();
    let mut log = LogFile::open(&folder.log(), 30, 2).unwrap();
    write(&mut log, 0..10);
    assert_eq!(folder.names(), ["log", "log.1", "log.2"]);
    for (name, numbers) in [("log", 9..10), ("log.1", 6..9), ("log.2", 3..6)] {
        assert_eq!(folder.read(name), lines(numbers), "{name}");
    }
    // A line that is larger than max_size has a file of its own.
    log.append(&[b'x'; 50]).unwrap();
    assert_eq!((folder.read("log").len(), folder.read("log.1")), (50, lines(9..10)));
    for name in folder.names() {
        let mode = fs::metadata(folder.0.path().join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777 & !0o640, 0, "{name} has mode {mode:o}");
    }
    // Another start appends, and keeps fewer files.
    drop(log);
    let mut log = LogFile::open(&folder.log(), 70, 1).unwrap();
    write(&mut log, [10]);
    assert!(folder.read("log").ends_with(&line(10)));
    write(&mut log, 11..13);
    assert_eq!(folder.names(), ["log", "log.1"]);
}

#[test]
fn zero_disables_rotation() {
    let folder = Folder::new();
    write(&mut LogFile::open(&folder.log(), 0, 2).unwrap(), 0..100);
    assert_eq!((folder.names(), folder.read("log")), (vec!["log".to_owned()], lines(0..100)));
}

#[test]
fn many_threads_write_whole_lines() {
    let folder = Folder::new();
    let log = LogFile::open(&folder.log(), 1000, 100).unwrap();
    let queue = LogQueue::start(log, Counter::default()).unwrap();
    thread::scope(|scope| {
        for thread in 0..8 {
            let mut log = &queue;
            scope.spawn(move || {
                (thread * 100..(thread + 1) * 100).for_each(|n| log.write_all(line(n).as_bytes()).unwrap());
            });
        }
    });
    assert!(queue.flush(Duration::from_secs(120)));
    let mut found: Vec<String> = folder
        .names()
        .iter()
        .flat_map(|name| folder.read(name).lines().map(str::to_owned).collect::<Vec<_>>())
        .collect();
    found.sort();
    assert_eq!(found.iter().map(|found| format!("{found}\n")).collect::<String>(), lines(0..800));
    assert_eq!(folder.names().len(), 8);
}

#[test]
fn logrotate_may_rename_or_truncate_the_file() {
    let folder = Folder::new();
    let mut log = LogFile::open(&folder.log(), 50, 3).unwrap();
    write(&mut log, 0..2);
    fs::rename(folder.log(), folder.0.path().join("log-2026")).unwrap();
    write(&mut log, 2..3);
    assert_eq!(folder.read("log-2026"), lines(0..3), "until it is reopened");
    log.reopen().unwrap();
    write(&mut log, 3..4);
    assert_eq!(folder.read("log"), lines(3..4));
    // Renamed and full before the service reopens it: it keeps its new name.
    fs::rename(folder.log(), folder.0.path().join("log-2027")).unwrap();
    write(&mut log, 4..9);
    assert_eq!(folder.read("log-2027"), lines(3..8));
    assert_eq!(folder.read("log"), lines(8..9));
    // copytruncate: the next line is at the start, not after a hole.
    write(&mut log, 9..12);
    File::options().write(true).open(folder.log()).unwrap().set_len(0).unwrap();
    write(&mut log, 12..16);
    assert_eq!(folder.read("log"), lines(12..16));
    assert_eq!(folder.names(), ["log", "log-2026", "log-2027"]);
}

#[test]
fn a_failed_rotation_is_retried_without_losing_lines() {
    let folder = Folder::new();
    let mut log = LogFile::open(&folder.log(), 30, 3).unwrap();
    write(&mut log, 0..9);
    assert_eq!(folder.names(), ["log", "log.1", "log.2"]);
    // A folder has the name of the next file.
    fs::create_dir(folder.0.path().join("log.new")).unwrap();
    write(&mut log, 9..100);
    assert_eq!(folder.read("log"), lines(6..100), "it grows on");
    assert_eq!(folder.read("log.2"), lines(0..3));
    fs::remove_dir(folder.0.path().join("log.new")).unwrap();
    log.file.rotate_after = Some(Instant::now());
    write(&mut log, 100..101);
    assert_eq!(folder.read("log"), lines(100..101));
    assert_eq!(folder.read("log.3"), lines(0..3));

    // A failed attempt left a gap in the numbers: no file is deleted for it.
    fs::rename(folder.0.path().join("log.1"), folder.0.path().join("aside")).unwrap();
    write(&mut log, 101..104);
    assert_eq!(folder.read("log.1"), lines(100..103));
    assert_eq!(folder.read("log.3"), lines(0..3));

    // The folder was deleted: lines go to the open file.
    fs::remove_dir_all(folder.0.path()).unwrap();
    write(&mut log, 104..110);
    let error = log.reopen().unwrap_err().to_string();
    assert!(error.contains("log: No such file"), "{error}");
    assert_eq!(log.file.file().metadata().unwrap().len(), 70);
}

#[test]
fn an_incomplete_line_is_ended() {
    let folder = Folder::new();
    let mut log = LogFile::open(&folder.log(), 0, 1).unwrap();
    log.append(b"half a li").unwrap();
    log.file.set_torn();
    log.missed = 2;
    write(&mut log, 0..2);
    let report = "2 lines could not be written here; they went to standard error\n";
    assert_eq!(folder.read("log"), format!("half a li\n{report}{}", lines(0..2)));
}

#[test]
fn only_regular_files_are_accepted() {
    let folder = Folder::new();
    let at = |name: &str| folder.0.path().join(name);
    fs::create_dir(at("folder")).unwrap();
    fs::write(at("file"), "").unwrap();
    symlink(at("file"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
    for (path, expected) in [
        (at("folder"), "is a folder; name a file in it"),
        (at("link"), "is a symbolic link"),
        (at("dangling"), "is a symbolic link"),
        (at("pipe"), "is a pipe"),
        (PathBuf::from("/dev/null"), "is not a regular file"),
        (at("missing/log"), "No such file"),
    ] {
        let error = LogFile::open(&path, 0, 1).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "{error}");
    }
    assert!(!at("nowhere").exists());
}
