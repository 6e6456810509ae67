//! The chain of the audit file: over rotations, restarts and a full disk, and what `audit verify` finds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::{Client, Exporter, SNAPSHOTS, Settings, Tmpfs, World, eventually, text};
use crate::needs_root;

/// A request that has a line of its own each time.
const DATABASE: &str = "/database";

/// A service that writes its audit file in this folder.
fn world(folder: &Path, more: &str) -> (World, PathBuf) {
    let file = folder.join("audit.json");
    let world = World::with(512, |settings| {
        settings.sections = format!("[audit]\nfile = {file:?}\n{more}\n");
    });
    world.define_vm(&[("a.img", 1 << 20)]);
    (world, file)
}

fn fill(client: &Client, lines: usize) {
    for _ in 0..lines {
        assert_eq!(client.get(DATABASE).status, 200);
    }
}

/// The audit file and the rotated ones, from the oldest to the newest.
fn files(file: &Path) -> Vec<PathBuf> {
    let old = (1..100).rev().map(|n| PathBuf::from(format!("{}.{n}", file.display())));
    old.chain([file.to_owned()]).filter(|path| path.exists()).collect()
}

fn lines(file: &Path) -> Vec<Value> {
    let texts = files(file).into_iter().map(|path| fs::read_to_string(path).unwrap());
    texts.flat_map(|text| text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect::<Vec<_>>()).collect()
}

/// The newest line, as `SEQ:HASH`.
fn newest(file: &Path) -> String {
    let all = lines(file);
    let last = all.last().unwrap();
    format!("{}:{}", last["seq"], text(&last["hash"]))
}

fn verify(exporter: &Exporter, arguments: &[&str]) -> (Option<i32>, String) {
    exporter.command(&[&["audit", "verify"], arguments].concat())
}

#[test]
fn audit_chain_continues_over_rotation_restart_and_kill() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (mut world, file) = world(folder.path(), "max_size = \"8KiB\"\nmax_files = 50");
    let client = world.client();
    client.take_snapshot();
    fill(&client, 40);
    // It verifies while the service runs, which shows the newest line to those who keep it elsewhere.
    eventually("the lines are written", || lines(&file).len() == 44);
    let (status, report) = verify(&world.exporter, &[]);
    assert_eq!(status, Some(0), "{report}");
    let seen = newest(&file);
    // As soon as it is on the disk.
    eventually("the status has the newest line", || {
        let audit = client.get("/status").ok()["audit"].clone();
        !audit.is_null() && format!("{}:{}", audit["seq"], text(&audit["hash"])) == seen
    });
    assert!(report.contains(&format!("newest line: {seen}")) && report.contains("proven"), "{report}");

    // Stopped, killed while it writes, and killed inside a line.
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    let (seq, hash) = newest(&file).split_once(':').map(|(seq, hash)| (seq.to_owned(), hash.to_owned())).unwrap();
    let logged = format!("newest line of the audit file seq={seq} hash={hash}");
    assert!(world.exporter.log().contains(&logged), "{logged} is not in the log");
    assert_eq!(lines(&file).last().unwrap()["action"], "stop");
    world.exporter.restart();
    let client = world.client();
    let writer = std::thread::spawn(move || {
        while client.try_send(client.request(reqwest::Method::GET, &format!("/api/v1{DATABASE}"))).is_ok() {}
    });
    let before = lines(&file).len();
    eventually("lines are being written", || lines(&file).len() > before + 20);
    world.exporter.kill();
    writer.join().unwrap();
    let size = fs::metadata(&file).unwrap().len();
    File::options().write(true).open(&file).unwrap().set_len(size - 7).unwrap();
    let (status, report) = verify(&world.exporter, &[]);
    assert!(status == Some(0) && report.contains("ends with an incomplete line"), "{report}");
    world.exporter.restart();
    fill(&world.client(), 30);
    world.exporter.signal(Signal::SIGTERM);
    assert_eq!(world.exporter.wait(Duration::from_secs(60)).code(), Some(0));
    let (status, report) = verify(&world.exporter, &["--expect", &seen, "--expect", &format!("{seq}:{hash}")]);
    assert!(status == Some(0) && report.contains("1 lines are incomplete"), "{report}");
    assert!(files(&file).len() > 5, "{:?}", files(&file));

    let all = lines(&file);
    let numbers: Vec<u64> = all.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (1..=all.len() as u64).collect::<Vec<_>>());
    let with = |action: &str| all.iter().filter(|line| line["action"] == action).count();
    assert_eq!((with("start"), with("stop")), (3, 2));
    let whats: Vec<&str> =
        all.iter().filter(|line| line["action"] == "audit").map(|line| line["what"].as_str().unwrap()).collect();
    assert_eq!(whats, ["new-chain", "incomplete-lines"]);
}

/// Verifies the files after `edit` has changed their lines, and puts them back.
fn verify_edited(world: &World, file: &Path, edit: impl Fn(&mut Vec<String>)) -> (Option<i32>, String) {
    let before = fs::read_to_string(file).unwrap();
    let mut lines: Vec<String> = before.split_inclusive('\n').map(str::to_owned).collect();
    edit(&mut lines);
    fs::write(file, lines.concat()).unwrap();
    let found = verify(&world.exporter, &[]);
    fs::write(file, before).unwrap();
    found
}

#[test]
fn audit_verify_names_the_first_difference() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (mut world, file) = world(folder.path(), "max_size = \"8KiB\"\nmax_files = 50");
    fill(&world.client(), 40);
    world.exporter.signal(Signal::SIGTERM);
    world.exporter.wait(Duration::from_secs(60));
    let of = files(&file);
    let (oldest, middle, current) = (&of[0], &of[1], &of[of.len() - 1]);
    assert!(of.len() > 2 && verify(&world.exporter, &[]).0 == Some(0), "{of:?}");
    let change = |lines: &mut Vec<String>| lines[2] = lines[2].replace("\"who\":\"", "\"who\":\"x");
    let edits: [(&PathBuf, u64, &str, &dyn Fn(&mut Vec<String>)); 7] = [
        (oldest, 3, "was changed", &change),
        (middle, 3, "was changed", &change),
        (middle, 1, "removed or moved", &|lines| drop(lines.remove(0))),
        (middle, 4, "removed or moved", &|lines| drop(lines.drain(3..5))),
        (middle, 2, "removed or moved", &|lines| lines.swap(1, 2)),
        (current, 2, "repeats the line before it", &|lines| lines.insert(1, lines[0].clone())),
        (current, 1, "has no hash", &|lines| lines.insert(0, "{\"who\":\"admin\"}\n".to_owned())),
    ];
    for (file, line, what, edit) in edits {
        let (status, report) = verify_edited(&world, file, edit);
        let expected = format!("{}:{line}: ", file.display());
        assert!(status == Some(4) && report.starts_with(&expected) && report.contains(what), "{what}: {report}");
    }
    // A whole file is missing.
    fs::rename(middle, folder.path().join("aside")).unwrap();
    let (status, report) = verify(&world.exporter, &[]);
    assert!(status == Some(4) && report.contains("removed or moved"), "{report}");
    fs::rename(folder.path().join("aside"), middle).unwrap();

    // The newest lines: only a head that is known from elsewhere shows that.
    let newest = newest(&file);
    let whole = fs::read_to_string(&file).unwrap();
    let (rest, _) = whole.trim_end().rsplit_once('\n').unwrap();
    fs::write(&file, format!("{rest}\n")).unwrap();
    assert_eq!(verify(&world.exporter, &[]).0, Some(0));
    let (status, report) = verify(&world.exporter, &["--expect", &newest]);
    assert!(status == Some(4) && report.contains("is missing"), "{report}");
    fs::write(&file, whole).unwrap();

    // Named files, in any order, with and without the key.
    let mut names: Vec<&str> = of.iter().map(|path| path.to_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(verify(&world.exporter, &names).0, Some(0));
    let (status, report) = verify(&world.exporter, &[&["--without-key"], &names[..]].concat());
    assert!(status == Some(0) && report.contains("the proofs were not checked"), "{report}");
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.secret = "another secret, which has not proven the lines".to_owned();
    let (status, report) = Exporter::command_alone(&settings, &[&["audit", "verify"], &names[..]].concat());
    assert!(status == Some(4) && report.contains("has not the key of this service"), "{report}");
    // What cannot be read is no difference.
    let (status, report) = verify(&world.exporter, &["/nonexistent/audit.json"]);
    assert!(status == Some(1) && report.contains("/nonexistent/audit.json"), "{report}");
    let (status, report) = Exporter::command_alone(&settings, &["audit", "verify"]);
    assert!(status == Some(1) && report.contains("audit.file is not set"), "{report}");
    let mut unreadable = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    unreadable.top = "no_such_key = 1\n".to_owned();
    let (status, report) = Exporter::command_alone(&unreadable, &["audit", "verify", of[0].to_str().unwrap()]);
    assert!(status == Some(1) && report.contains("no_such_key") && report.contains("--without-key"), "{report}");
    fs::write(&file, "").unwrap();
    let (status, report) = verify(&world.exporter, &[file.to_str().unwrap()]);
    assert!(status == Some(1) && report.contains("nothing can be verified"), "{report}");
}

#[test]
fn full_disk_does_not_break_the_audit_chain() {
    needs_root!();
    let disk = Tmpfs::new("size=256k");
    let (world, file) = world(disk.path(), "max_size = 0");
    let client = world.client();
    fill(&client, 1);
    // Only a part of a line fits.
    let filler = disk.path().join("filler");
    eventually("the disk is full", || {
        Command::new("dd")
            .args(["if=/dev/zero", "bs=1k", "oflag=append", "conv=notrunc"])
            .arg(format!("of={}", filler.display()))
            .output()
            .unwrap();
        crate::harness::volume_space(disk.path()) == 0
    });
    fill(&client, 30);
    eventually("lines go to standard error", || world.exporter.log().contains("{\"time\":"));
    fs::remove_file(&filler).unwrap();
    fill(&client, 2);
    let reported =
        || lines(&file).iter().any(|line| line["what"] == "missing-lines" && line["lines"].as_u64() > Some(0));
    eventually("the file says that lines are missing", reported);
    let (status, report) = verify(&world.exporter, &[]);
    assert_eq!(status, Some(0), "{report}");
}

#[test]
fn two_services_cannot_share_an_audit_file() {
    needs_root!();
    let folder = tempfile::tempdir().unwrap();
    let (world, file) = world(folder.path(), "");
    let mut settings = Settings::new(&world.certificates, &world.manager, &[&world.repository]);
    settings.sections = format!("[audit]\nfile = {file:?}\n");
    let (status, output) = Exporter::refusal(&settings);
    assert_eq!(status, Some(1), "{output}");
    assert!(output.contains("audit.file") && output.contains("in use") && output.contains("needs its own"), "{output}");
    let client = world.client();
    assert_eq!(client.get(SNAPSHOTS).status, 200);
    assert_eq!(verify(&world.exporter, &[]).0, Some(0));
}
