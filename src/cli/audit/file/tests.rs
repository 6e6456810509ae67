use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use super::*;
use crate::app::audit::{Place, Summary, Verifier};
use crate::sys::file_lock::LockFile;

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("audit.json")
    }

    fn open_with(&self, max_size: u64) -> io::Result<AuditFile> {
        let rotation = Rotation { max_size, max_files: 100, mode: 0o600, is_exclusive: true, is_durable: true };
        let shared = Arc::new(Shared::default());
        shared.set_key(key());
        AuditFile::open(&self.path(), rotation, shared)
    }

    fn open(&self) -> AuditFile {
        self.open_with(0).unwrap()
    }

    /// The files, from the oldest to the newest.
    fn files(&self) -> Vec<PathBuf> {
        let old = (1..100).rev().map(|n| beside(&self.path(), &n.to_string()));
        old.chain([self.path()]).filter(|path| path.exists()).collect()
    }

    fn verify(&self) -> Summary {
        let key = key();
        let mut verifier = Verifier::new(Some(&key), &[]);
        for (file, path) in self.files().iter().enumerate() {
            for (line, bytes) in fs::read(path).unwrap().split_inclusive(|byte| *byte == b'\n').enumerate() {
                let place = Place { file, line: line as u64 + 1 };
                verifier.line(place, bytes).unwrap_or_else(|found| panic!("{found:?}"));
            }
        }
        verifier.finish().unwrap_or_else(|found| panic!("{found:?}"))
    }
}

fn key() -> AuditKey {
    AuditKey::new(&"a secret of tests".into())
}

fn write(file: &mut AuditFile, numbers: std::ops::Range<usize>) {
    for n in numbers {
        file.write_all(format!("{{\"what\":\"{n}\"}}\n").as_bytes()).unwrap();
    }
}

fn last(summary: &Summary) -> u64 {
    summary.lines.as_ref().map_or(0, |(_, last)| last.seq)
}

#[test]
fn the_chain_continues_over_restarts_and_rotations() {
    let folder = Folder::new();
    for run in 0..10 {
        let mut file = folder.open_with(2000).unwrap();
        let before = (run > 0).then_some(1 + run as u64 * 7);
        write(&mut file, run * 7..run * 7 + 7);
        // A line that may not be on the disk is not published.
        assert_eq!(file.shared.head().map(|head| head.seq), before);
        file.flush().unwrap();
        assert_eq!(file.shared.head().map(|head| head.seq), Some(1 + (run as u64 + 1) * 7));
    }
    assert!(folder.files().len() > 3, "{:?}", folder.files());
    let summary = folder.verify();
    assert_eq!((last(&summary), summary.proven), (71, 71), "one line says that the chain begins");
    assert!(fs::read_to_string(&folder.files()[0]).unwrap().contains("there was no audit file"));
    // Killed in the middle of a rotation: the file was renamed, and there is no new one.
    fs::rename(folder.path(), beside(&folder.path(), "0")).unwrap();
    for n in (0..100).rev() {
        let _ = fs::rename(beside(&folder.path(), &n.to_string()), beside(&folder.path(), &(n + 1).to_string()));
    }
    write(&mut folder.open(), 0..1);
    assert_eq!(last(&folder.verify()), 72);
}

#[test]
fn an_incomplete_line_is_recorded_wherever_the_service_was_killed() {
    let folder = Folder::new();
    write(&mut folder.open(), 0..3);
    let whole = fs::read(folder.path()).unwrap();
    let ends: Vec<usize> = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    for end in ends[1]..=whole.len() {
        fs::write(folder.path(), &whole[..end]).unwrap();
        write(&mut folder.open(), 3..5);
        let summary = folder.verify();
        let lost = u64::from(!ends.contains(&end) && !ends.contains(&(end + 1)));
        assert_eq!(summary.incomplete, lost, "{end}");
        let complete = ends.iter().filter(|at| **at <= end + 1).count() as u64;
        assert_eq!(last(&summary), complete + lost + 2, "{end}");
        // It is recorded once.
        write(&mut folder.open(), 5..6);
        assert_eq!(folder.verify().incomplete, lost);
    }
}

#[test]
fn a_kill_while_an_incomplete_line_is_reported_does_not_break_the_chain() {
    let folder = Folder::new();
    write(&mut folder.open(), 0..2);
    let whole = fs::read(folder.path()).unwrap();
    let torn = &whole[..whole.len() - 9];
    fs::write(folder.path(), torn).unwrap();
    write(&mut folder.open(), 2..3);
    let repaired = fs::read(folder.path()).unwrap();
    for end in torn.len()..=repaired.len() {
        fs::write(folder.path(), &repaired[..end]).unwrap();
        write(&mut folder.open(), 3..4);
        let summary = folder.verify();
        assert!((1..=2).contains(&summary.incomplete), "{end}: {summary:?}");
        assert!(!fs::read_to_string(folder.path()).unwrap().contains("no hash"), "{end}");
    }
}

#[test]
fn an_incomplete_line_may_be_in_the_rotated_file() {
    let folder = Folder::new();
    write(&mut folder.open(), 0..3);
    let whole = fs::read(folder.path()).unwrap();
    fs::write(folder.path(), &whole[..whole.len() - 20]).unwrap();
    write(&mut folder.open_with(whole.len() as u64 - 10).unwrap(), 3..4);
    assert!(folder.files().len() > 1);
    assert_eq!(folder.verify().incomplete, 1);
}

#[test]
fn a_kill_in_the_first_line_after_a_rotation_does_not_break_the_chain() {
    let folder = Folder::new();
    write(&mut folder.open(), 0..3);
    let rotated = fs::read(folder.path()).unwrap();
    write(&mut folder.open_with(rotated.len() as u64).unwrap(), 3..4);
    let first = fs::read(folder.path()).unwrap();
    assert_eq!((folder.files().len(), first.iter().filter(|byte| **byte == b'\n').count()), (2, 1));
    for end in 0..=first.len() {
        fs::write(folder.path(), &first[..end]).unwrap();
        write(&mut folder.open(), 4..6);
        let (lost, whole) = (u64::from((1..first.len() - 1).contains(&end)), u64::from(end + 1 >= first.len()));
        let summary = folder.verify();
        assert_eq!((last(&summary), summary.incomplete), (4 + whole + lost + 2, lost), "{end}");
        assert_eq!(folder.files().len(), 2, "{end}");
    }
    // The rotated file may end with an incomplete line too.
    fs::write(beside(&folder.path(), "1"), &rotated[..rotated.len() - 20]).unwrap();
    fs::write(folder.path(), &first[..20]).unwrap();
    write(&mut folder.open(), 4..5);
    assert_eq!((last(&folder.verify()), folder.verify().incomplete), (5, 2));
}

#[test]
fn a_new_chain_says_why_it_begins() {
    for (content, why) in [
        ("{\"who\":\"admin\"}\n", "the last line of the file has no hash"),
        ("half a line", "the file has no complete line"),
    ] {
        let folder = Folder::new();
        fs::write(folder.path(), content).unwrap();
        write(&mut folder.open(), 0..1);
        let text = fs::read_to_string(folder.path()).unwrap();
        // In a file of its own.
        assert_eq!(fs::read_to_string(beside(&folder.path(), "1")).unwrap(), content);
        let first = text.lines().next().unwrap();
        assert!(first.starts_with("{\"seq\":1,") && first.contains("new-chain") && first.contains(why), "{first}");
        assert_eq!(folder.verify().unchained, 1);
    }
}

#[test]
fn a_file_has_one_writer() {
    let folder = Folder::new();
    let first = folder.open();
    let error = folder.open_with(0).err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
    assert!(error.to_string().contains("audit.json: is in use by another process"), "{error}");
    drop(first);
    folder.open();
}

#[test]
fn logrotate_may_rename_the_file() {
    let folder = Folder::new();
    let mut file = folder.open();
    write(&mut file, 0..2);
    Sink::reopen(&mut file).unwrap();
    write(&mut file, 2..3);
    fs::rename(folder.path(), beside(&folder.path(), "1")).unwrap();
    Sink::reopen(&mut file).unwrap();
    write(&mut file, 3..4);
    assert_eq!((folder.files().len(), last(&folder.verify())), (2, 5));
}

#[test]
fn dropped_lines_are_a_line_of_the_chain() {
    let folder = Folder::new();
    let mut file = folder.open();
    write(&mut file, 0..1);
    file.report_dropped(17).unwrap();
    let text = fs::read_to_string(folder.path()).unwrap();
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(
        (&line["action"], &line["what"], &line["lines"]),
        (&"audit".into(), &"missing-lines".into(), &17.into())
    );
    assert_eq!(last(&folder.verify()), 3);
}

#[test]
fn the_number_of_dropped_lines_is_kept_while_the_disk_is_full() {
    let folder = Folder::new();
    let mut file = folder.open();
    write(&mut file, 0..1);
    // Each write fails, as on a full disk.
    let full = fs::File::options().append(true).open("/dev/full").unwrap();
    let good = file.file.replace(LockFile::new(full));
    assert!(file.report_dropped(17).is_err(), "the queue repeats it");
    file.file.replace(good);
    file.report_dropped(17).unwrap();
    let text = fs::read_to_string(folder.path()).unwrap();
    assert_eq!((text.matches("\"lines\":17").count(), text.matches("\"lines\":").count()), (1, 1), "{text}");
    assert_eq!(last(&folder.verify()), 3);
}

#[test]
fn no_line_is_published_after_lines_that_the_disk_has_not_confirmed() {
    let folder = Folder::new();
    let mut file = folder.open();
    let published = |file: &AuditFile| file.shared.head().map(|head| head.seq);
    // A device whose lines cannot be synced.
    let lose = |file: &mut AuditFile| {
        let device = fs::OpenOptions::new().append(true).open("/dev/null").unwrap();
        file.file.replace(LockFile::new(device))
    };
    write(&mut file, 0..2);
    file.flush().unwrap();
    assert_eq!(published(&file), Some(3));
    let own = lose(&mut file);
    write(&mut file, 2..3);
    file.flush().unwrap();
    assert_eq!(published(&file), Some(3));
    // The next attempt succeeds, although the line is lost.
    file.file.replace(own);
    file.unsynced_since = Some(Instant::now());
    file.flush().unwrap();
    assert_eq!(published(&file), Some(3));
    // A line says so before the next one.
    write(&mut file, 3..4);
    file.flush().unwrap();
    assert_eq!(published(&file), Some(6));
    // The same if another file takes the next lines.
    drop(lose(&mut file));
    write(&mut file, 4..5);
    file.reopen().unwrap();
    write(&mut file, 5..6);
    file.flush().unwrap();
    assert_eq!(published(&file), Some(9));
    let written = fs::read_to_string(folder.path()).unwrap();
    let whats: Vec<String> = written
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["what"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(whats, ["new-chain", "0", "1", "unconfirmed-lines", "3", "unconfirmed-lines", "5"]);
}
