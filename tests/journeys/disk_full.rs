//! Full and read-only file systems under a repository or the database, and write errors at every step: the error says
//! what is wrong, no files are left, and the service recovers when there is space again.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use nix::errno::Errno;
use reqwest::Method;

use crate::harness::{Fault, FaultTest, SNAPSHOTS, Tmpfs, chunks, data, snapshot_folders, text};
use crate::needs_root;

/// Uses up all blocks and inodes of the file system of `folder`.
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
    // The remaining space is used up by names.
    for number in 0..100_000 {
        if fs::write(filler.join(format!("{number:0200}")), "x").is_err() {
            return;
        }
    }
    panic!("{} does not fill up", folder.display());
}

fn remove_filler(folder: &Path) {
    fs::remove_dir_all(folder.join("filler")).unwrap();
}

#[test]
fn full_repository_refuses_snapshots_and_allows_deletions() {
    needs_root!();
    // Without the policy's minimum of free space.
    let mut test = FaultTest::new(|settings| settings.policy = "min_free_space = 0".to_owned());
    let mount_point = test.world.volume.mount_point.clone();
    let deleted = test.take_snapshot();
    fill(&mount_point);
    for round in ["known to clone", "after a start"] {
        let answer = test.client.post(SNAPSHOTS);
        assert_eq!(answer.error(507), "insufficient_space", "{round}");
        assert!(text(&answer.json()["details"]).contains("the file system is full"), "{round}");
        assert_eq!(test.check(round, None), None);
        test.world.exporter.restart();
        test.client = test.world.client();
    }
    // A deletion has to work on a full repository.
    test.delete(&deleted);
    assert_eq!(test.check("full, one deleted", None), None);
    remove_filler(&mount_point);
    test.take_snapshot();
    assert_eq!(test.check("with space again", None), None);
}

#[test]
fn read_only_repository_refuses_changes_and_allows_comparisons() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    let base = text(&test.client.get(SNAPSHOTS).ok()[0]["id"]);
    test.write(1);
    let target = test.take_snapshot();
    test.world.volume.remount("ro");
    for round in ["known to clone", "after a start"] {
        assert_eq!(test.client.post(SNAPSHOTS).error(503), "read_only", "{round}");
        assert_eq!(test.check(round, None), None);
        let changes = test.client.compare(&target, &base);
        assert_eq!(chunks(&changes["disks"][0]), [data(8192, 8192)], "{round}");
        test.world.exporter.restart();
        test.client = test.world.client();
    }
    let path = format!("{SNAPSHOTS}/{target}");
    assert_eq!(test.client.delete(&path).error(503), "read_only");
    test.world.volume.remount("rw");
    test.delete(&target);
    test.take_snapshot();
    assert_eq!(test.check("writable again", None), None);
}

#[test]
fn database_without_space_refuses_snapshots_and_recovers() {
    needs_root!();
    let tmpfs = Tmpfs::new("size=6m");
    let mut test = FaultTest::new(|settings| settings.db_file = Some(tmpfs.path().join("exporter.db")));
    let folder = test.world.exporter.db_file().parent().unwrap().to_owned();
    let before = test.listed();
    for round in 0..3 {
        fill(&folder);
        // The database may have reserved space for some more records.
        let failed = (0..500).find_map(|_| {
            let contents = test.disk_contents();
            let answer = test.client.post(SNAPSHOTS);
            if answer.status != 200 {
                return Some(answer);
            }
            test.confirmed.insert(text(&answer.ok()["id"]), contents);
            None
        });
        let failed = failed.expect("500 snapshots fit into a full file system");
        assert_eq!(failed.error(503), "database_unavailable", "round {round}");
        let mut ids: Vec<String> = test.confirmed.keys().cloned().collect();
        ids.sort();
        let on_disk = snapshot_folders(&test.world.repository).into_iter();
        let on_disk: Vec<_> = on_disk.map(|path| text(&path.file_name().unwrap().to_str().into())).collect();
        assert_eq!(on_disk, ids, "round {round}: the failed creation left something");
        remove_filler(&folder);
        // The service recovers without a restart.
        test.take_snapshot();
        assert_eq!(test.check(&format!("round {round}, with space again"), None), None);
        for id in test.listed().iter().filter(|id| !before.contains(id)) {
            test.delete(id);
        }
    }
}

#[test]
fn failed_creation_leaves_nothing() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    for (errno, status, code) in
        [(Errno::ENOSPC, 507, "insufficient_space"), (Errno::EIO, 500, "io_error"), (Errno::EROFS, 503, "read_only")]
    {
        let (mut of_repository, mut of_database) = (0, 0);
        for n in 1.. {
            let what = format!("creation, step {n} fails with {errno}");
            test.write(n as u8);
            let contents = test.disk_contents();
            let answer = test.request_with_fault(n, Fault::Fail(errno), Method::POST, SNAPSHOTS).unwrap();
            if answer.status == 200 {
                // There is no such step, or its failure was tolerated.
                let id = text(&answer.ok()["id"]);
                test.confirmed.insert(id.clone(), contents);
                assert_eq!(test.check(&what, None), None);
                test.delete(&id);
                if !test.shim.fault_occurred() {
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
            assert_eq!(test.check(&what, None), None);
            let id = test.take_snapshot();
            assert_eq!(test.check(&format!("after {what}"), None), None);
            test.delete(&id);
        }
        assert!(of_repository > 5 && of_database > 5, "{errno}: {of_repository} and {of_database}");
    }
}

#[test]
fn failed_rollback_is_finished_at_the_next_start() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    for n in 1.. {
        let what = format!("creation, all calls fail from step {n} on");
        test.write(n as u8);
        let contents = test.disk_contents();
        let answer = test.request_with_fault(n, Fault::FailFrom(Errno::EIO), Method::POST, SNAPSHOTS).unwrap();
        if !test.shim.fault_occurred() {
            assert_eq!(answer.status, 200);
            break;
        }
        assert_ne!(answer.status, 200, "{what}");
        // Before the restart only confirmed snapshots are listed, except for a commit that succeeded.
        let listed = test.listed();
        assert!(test.confirmed.keys().all(|id| listed.contains(id)), "{what}: {listed:?}");
        test.restart(Fault::KillBefore);
        if let Some(id) = test.check(&what, Some(&contents)) {
            test.delete(&id);
        }
    }
}

#[test]
fn failed_deletion_can_be_repeated() {
    needs_root!();
    let mut test = FaultTest::new(|_| {});
    for fault in [Fault::Fail(Errno::EIO), Fault::FailFrom(Errno::EIO)] {
        let mut failed = 0;
        for n in 1.. {
            let what = format!("deletion, step {n}, {fault:?}");
            test.write(n as u8);
            let id = test.take_snapshot();
            let answer = test.request_with_fault(n, fault, Method::DELETE, &format!("{SNAPSHOTS}/{id}")).unwrap();
            test.confirmed.remove(&id);
            if answer.status != 200 {
                let code = answer.json()["code"].clone();
                answer.error(if code == "database_unavailable" { 503 } else { 500 });
                failed += 1;
            } else {
                assert!(!test.listed().contains(&id), "{what}");
            }
            // A repeated deletion or a restart finishes it.
            if n % 2 == 0 {
                test.restart(Fault::KillBefore);
            }
            test.delete(&id);
            assert_eq!(test.check(&what, None), None);
            if !test.shim.fault_occurred() {
                break;
            }
        }
        assert!(failed > 10, "{fault:?}: {failed}");
    }
}
