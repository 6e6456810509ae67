//! No space, no writing: in a repository, under the database, at any step. The answer says what is
//! wrong, nothing is left, and the service goes on when there is space again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use nix::errno::Errno;
use reqwest::Method;
use tempfile::TempDir;

use crate::harness::{Harm, Trial, chunks, data, snapshot_folders, text};
use crate::needs_root;

const SNAPSHOTS: &str = "/vms/0004fb00000600000000000000000001/snapshots";

/// Takes all space below `folder`, to the last block and the last inode that can be had.
fn fill(folder: &Path) {
    let filler = folder.join("filler");
    fs::create_dir_all(&filler).unwrap();
    let file = fs::File::create(filler.join("large")).unwrap();
    let mut at = 0;
    for size in [16 << 20, 1 << 20, 64 << 10, 4 << 10] {
        let piece = vec![1; size];
        while file.write_all_at(&piece, at).and_then(|()| file.sync_data()).is_ok() {
            at += size as u64;
        }
    }
    // What is left has room for names.
    for number in 0..100_000 {
        if fs::write(filler.join(format!("{number:0200}")), "x").is_err() {
            return;
        }
    }
    panic!("{} does not fill up", folder.display());
}

fn clear(folder: &Path) {
    fs::remove_dir_all(folder.join("filler")).unwrap();
}

#[test]
fn a_full_repository() {
    needs_root!();
    // Without a floor: what is left is to be used up.
    let mut trial = Trial::new(|settings| settings.policy = "min_free_space = 0".to_owned());
    let mount_point = trial.world.volume.mount_point.clone();
    let deleted = trial.take();
    fill(&mount_point);
    for round in ["known to clone", "after a start"] {
        let answer = trial.client.post(SNAPSHOTS);
        assert_eq!(answer.error(507), "insufficient_space", "{round}");
        assert!(text(&answer.json()["details"]).contains("space"), "{round}");
        assert_eq!(trial.check(round, None), None);
        trial.world.exporter.restart();
        trial.client = trial.world.client();
    }
    // Making room is what a full repository needs.
    trial.delete(&deleted);
    assert_eq!(trial.check("full, one deleted", None), None);
    clear(&mount_point);
    trial.take();
    assert_eq!(trial.check("with space again", None), None);
}

#[test]
fn a_repository_that_is_read_only() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    let base = text(&trial.client.get(SNAPSHOTS).ok()[0]["id"]);
    trial.write(1);
    let target = trial.take();
    trial.world.volume.remount("ro");
    for round in ["known to clone", "after a start"] {
        assert_eq!(trial.client.post(SNAPSHOTS).error(503), "read_only", "{round}");
        assert_eq!(trial.check(round, None), None);
        let changes = trial.client.compare(&target, &base);
        assert_eq!(chunks(&changes["disks"][0]), [data(8192, 8192)], "{round}");
        trial.world.exporter.restart();
        trial.client = trial.world.client();
    }
    let path = format!("{SNAPSHOTS}/{target}");
    assert_eq!(trial.client.delete(&path).error(503), "read_only");
    trial.world.volume.remount("rw");
    trial.delete(&target);
    trial.take();
    assert_eq!(trial.check("writable again", None), None);
}

/// A small file system for the database.
struct Tmpfs(TempDir);

impl Tmpfs {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let status = Command::new("mount").args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(dir.path()).status();
        assert!(status.unwrap().success());
        Self(dir)
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(self.0.path()).status();
    }
}

#[test]
fn a_database_without_space() {
    needs_root!();
    let tmpfs = Tmpfs::new();
    let mut trial = Trial::new(|settings| settings.db_file = Some(tmpfs.0.path().join("exporter.db")));
    let folder = trial.world.exporter.db_file().parent().unwrap().to_owned();
    let before = trial.listed();
    for round in 0..3 {
        fill(&folder);
        // It may have space set aside for some more.
        let failed = (0..500).find_map(|_| {
            let now = trial.now();
            let answer = trial.client.post(SNAPSHOTS);
            if answer.status != 200 {
                return Some(answer);
            }
            trial.answered.insert(text(&answer.ok()["id"]), now);
            None
        });
        let failed = failed.expect("the database needs no space");
        assert_eq!(failed.error(503), "database_unavailable", "round {round}");
        let mut ids: Vec<String> = trial.answered.keys().cloned().collect();
        ids.sort();
        let on_disk = snapshot_folders(&trial.world.repository).into_iter();
        let on_disk: Vec<_> = on_disk.map(|path| text(&path.file_name().unwrap().to_str().into())).collect();
        assert_eq!(on_disk, ids, "round {round}: the failed creation left something");
        clear(&folder);
        // The same process, and no start between.
        trial.take();
        assert_eq!(trial.check(&format!("round {round}, with space again"), None), None);
        for id in trial.listed().iter().filter(|id| !before.contains(id)) {
            trial.delete(id);
        }
    }
}

#[test]
fn a_creation_that_fails_at_any_step_leaves_nothing() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    for (errno, status, code) in
        [(Errno::ENOSPC, 507, "insufficient_space"), (Errno::EIO, 500, "io_error"), (Errno::EROFS, 503, "read_only")]
    {
        let (mut of_repository, mut of_database) = (0, 0);
        for n in 1.. {
            let what = format!("creation, step {n} fails with {errno}");
            trial.write(n as u8);
            let now = trial.now();
            let answer = trial.ask(n, Harm::Fail(errno), Method::POST, SNAPSHOTS).unwrap();
            if answer.status == 200 {
                // No such step was left, or it could be done without.
                let id = text(&answer.ok()["id"]);
                trial.answered.insert(id.clone(), now);
                assert_eq!(trial.check(&what, None), None);
                trial.delete(&id);
                if !trial.shim.has_harmed() {
                    break;
                }
                continue;
            }
            if answer.json()["code"] == "database_unavailable" {
                answer.error(503);
                of_database += 1;
            } else {
                assert_eq!(answer.error(status), code, "{what}");
                of_repository += 1;
            }
            assert_eq!(trial.check(&what, None), None);
            let id = trial.take();
            assert_eq!(trial.check(&format!("after {what}"), None), None);
            trial.delete(&id);
        }
        assert!(of_repository > 5 && of_database > 5, "{errno}: {of_repository} and {of_database}");
    }
}

#[test]
fn what_cannot_be_undone_at_once_is_undone_at_the_next_start() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    for n in 1.. {
        let what = format!("creation, from step {n} on all fails");
        trial.write(n as u8);
        let now = trial.now();
        let answer = trial.ask(n, Harm::FailOn(Errno::EIO), Method::POST, SNAPSHOTS).unwrap();
        if !trial.shim.has_harmed() {
            assert_eq!(answer.status, 200);
            break;
        }
        assert_ne!(answer.status, 200, "{what}");
        // Not before the start either: what failed is not there, but for a commit that went through.
        let listed = trial.listed();
        assert!(trial.answered.keys().all(|id| listed.contains(id)), "{what}: {listed:?}");
        trial.restart(Harm::KillBefore);
        if let Some(id) = trial.check(&what, Some(&now)) {
            trial.delete(&id);
        }
    }
}

#[test]
fn a_deletion_that_fails_at_any_step_can_be_asked_again() {
    needs_root!();
    let mut trial = Trial::new(|_| {});
    for harm in [Harm::Fail(Errno::EIO), Harm::FailOn(Errno::EIO)] {
        let mut failed = 0;
        for n in 1.. {
            let what = format!("deletion, step {n}, {harm:?}");
            trial.write(n as u8);
            let id = trial.take();
            let answer = trial.ask(n, harm, Method::DELETE, &format!("{SNAPSHOTS}/{id}")).unwrap();
            trial.answered.remove(&id);
            if answer.status != 200 {
                let code = answer.json()["code"].clone();
                answer.error(if code == "database_unavailable" { 503 } else { 500 });
                failed += 1;
            } else {
                assert!(!trial.listed().contains(&id), "{what}");
            }
            // Again at once, or at the next start: both finish it.
            if n % 2 == 0 {
                trial.restart(Harm::KillBefore);
            }
            trial.delete(&id);
            assert_eq!(trial.check(&what, None), None);
            if !trial.shim.has_harmed() {
                break;
            }
        }
        assert!(failed > 10, "{harm:?}: {failed}");
    }
}
