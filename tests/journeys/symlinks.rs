//! Symbolic links in a repository: the service changes nothing through them.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use reqwest::Method;
use tempfile::TempDir;

use crate::harness::{Answer, Clock, HookDir, MB, SNAPSHOTS, VM, World, eventually, snapshot_folders, text, write_at};
use crate::needs_root;

/// A folder outside of all repositories, with files named as the disks.
fn elsewhere(below: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join(below)).unwrap();
    for name in ["a.img", "b.img"] {
        fs::write(dir.path().join(below).join(name), "precious").unwrap();
    }
    dir
}

/// Moves `path` aside and puts a symbolic link to `target` there.
fn replace_with_link(path: &Path, target: &Path) {
    fs::rename(path, path.with_extension("aside")).unwrap();
    symlink(target, path).unwrap();
}

/// Checks that the error and the audit line of a refused deletion name `path` and the symbolic link.
fn check_refusal_names(world: &World, answer: &Answer, path: &Path) {
    assert_eq!(answer.error(409), "not_removed");
    let details = text(&answer.json()["details"]);
    assert!(details.contains(path.to_str().unwrap()) && details.contains("symbolic link"), "{details}");
    let log = world.exporter.log();
    let mut lines = log.lines().filter(|line| line.contains(path.to_str().unwrap()));
    // Those of repeated requests are combined.
    assert!(lines.any(|line| line.contains("audit action=\"delete")), "{path:?} is not in the audit");
}

#[test]
fn deletion_follows_no_symlink() {
    needs_root!();
    let mut world = World::new(512);
    let disks = world.define_vm(&[("a.img", MB), ("b.img", MB)]);
    disks.iter().for_each(|disk| write_at(disk, 0, &[7; 4096]));
    let (repository, snapshots) = (world.repository.clone(), world.repository.join("CoriolisSnapshots"));
    let live: Vec<Vec<u8>> = disks.iter().map(|disk| fs::read(disk).unwrap()).collect();
    let check_live_disks =
        || assert!(disks.iter().zip(&live).all(|(disk, live)| fs::read(disk).is_ok_and(|now| now == *live)));

    let outside = elsewhere("");
    type Place = Box<dyn Fn(&str) -> (PathBuf, PathBuf)>;
    let (to_live, to_outside, of_disk) = (snapshots.clone(), snapshots.clone(), snapshots.clone());
    let (virtual_disks, outside_path, live_disk) =
        (repository.join("VirtualDisks"), outside.path().to_owned(), disks[0].clone());
    let places: [(&str, Place); 3] = [
        ("the snapshot's folder, to the live disks", Box::new(move |id| (to_live.join(id), virtual_disks.clone()))),
        (
            "the snapshot's folder, out of the repository",
            Box::new(move |id| (to_outside.join(id), outside_path.clone())),
        ),
        ("a disk's file", Box::new(move |id| (of_disk.join(id).join("a.img"), live_disk.clone()))),
    ];
    for (what, place) in &places {
        let client = world.client();
        let id = client.take_snapshot_id();
        let (path, target) = place(&id);
        replace_with_link(&path, &target);
        assert_eq!(client.get(&format!("{SNAPSHOTS}/{id}")).error(409), "snapshot_lost", "{what}");
        check_refusal_names(&world, &client.delete(&format!("{SNAPSHOTS}/{id}")), &path);
        check_refusal_names(&world, &client.delete(&format!("{SNAPSHOTS}/{id}")), &path);
        check_refusal_names(&world, &client.delete(SNAPSHOTS), &path);
        // A restart tries the deletion again.
        world.exporter.restart();
        let client = world.client();
        check_live_disks();
        assert!(path.is_symlink(), "{what}: the link was removed");
        for name in ["a.img", "b.img"] {
            assert_eq!(fs::read(outside.path().join(name)).unwrap(), b"precious", "{what}");
        }
        // The operator restores the files.
        fs::remove_file(&path).unwrap();
        fs::rename(path.with_extension("aside"), &path).unwrap();
        assert_eq!(client.delete(&format!("{SNAPSHOTS}/{id}")).status, 200, "{what}");
        assert!(!snapshots.join(&id).exists(), "{what}");
        assert_eq!(client.snapshot_ids(), Vec::<String>::new());
        check_live_disks();
    }

    // The folder of all snapshots is replaced.
    let client = world.client();
    let id = client.take_snapshot_id();
    let outside = elsewhere(&id);
    replace_with_link(&snapshots, outside.path());
    let vm = client.get(&format!("/vms/{VM}")).ok();
    assert_eq!(vm["snapshot_compatible"], false, "{vm}");
    assert!(text(&vm["reason"]).contains("\"CoriolisSnapshots\" is a symbolic link"), "{vm}");
    assert_eq!(client.post(SNAPSHOTS).error(400), "not_snapshottable");
    check_refusal_names(&world, &client.delete(&format!("{SNAPSHOTS}/{id}")), &snapshots);
    world.exporter.restart();
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "a snapshot was made through the link");
    assert_eq!(fs::read_dir(outside.path().join(&id)).unwrap().count(), 2);
    check_live_disks();
}

#[test]
fn sweeper_follows_no_symlink() {
    needs_root!();
    let clock = Clock::new();
    let world = World::with(512, |settings| clock.load_into(settings));
    let disk = &world.define_vm(&[("a.img", MB)])[0];
    write_at(disk, 0, &[7; 4096]);
    let live = fs::read(disk).unwrap();
    let client = world.lasting_client();
    let (expiring, _newest) = (client.take_snapshot_with_ttl("1h"), client.take_snapshot_with_ttl("none"));
    let folder = world.snapshot_folder(&expiring);
    replace_with_link(&folder, &world.repository.join("VirtualDisks"));
    clock.pass(30);
    clock.rounds(&world, 2);
    let log = world.exporter.log();
    let mut audit = log.lines().filter(|line| line.contains("action=\"sweep\"") && line.contains(&expiring));
    assert!(
        audit.any(|line| line.contains(folder.to_str().unwrap())),
        "the audit line of the sweeper does not name the link"
    );
    assert!(fs::read(disk).is_ok_and(|now| now == live), "the live disk is gone");
    assert!(folder.is_symlink());
}

#[test]
fn rollback_follows_no_symlink() {
    needs_root!();
    let hooks = HookDir::new();
    let world = World::with(512, |settings| settings.sections = hooks.section(""));
    let disks = world.define_vm(&[("a.img", MB), ("b.img", MB)]);
    let snapshots = world.repository.join("CoriolisSnapshots");
    let client = world.client();
    let replacements = [
        // The folder by a link to the live disks.
        format!("mv $d $d.aside; ln -s {}/VirtualDisks $d", world.repository.display()),
        // A file by a link to the live disk.
        format!("rm $d/a.img; ln -s {} $d/a.img", disks[0].display()),
        // A file by a hard link to the live disk.
        format!("rm $d/a.img; ln {} $d/a.img", disks[0].display()),
        // A file by another one that looks like the service's.
        "rm $d/a.img; echo precious > $d/a.img; chmod 0440 $d/a.img".to_owned(),
    ];
    for replacement in replacements {
        hooks.put(
            "10-replace",
            &format!("[ $2 = pre ] || exit 0\nfor d in {}/*-*-*; do {replacement}; done\nexit 1", snapshots.display()),
        );
        assert_eq!(client.post(SNAPSHOTS).error(502), "hook_failed", "{replacement}");
        assert!(disks.iter().all(|disk| disk.exists()), "a live disk is gone: {replacement}");
        assert_eq!(client.snapshot_ids(), Vec::<String>::new());
        let left = snapshot_folders(&world.repository);
        assert!(!left.is_empty(), "a foreign file was removed: {replacement}");
        if replacement.contains("precious") {
            assert_eq!(fs::read_to_string(left[0].join("a.img")).unwrap(), "precious\n");
        }
        for path in left {
            let removed = if path.is_symlink() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
            removed.unwrap();
        }
    }
    hooks.remove("10-replace");
    client.take_snapshot();
}

#[test]
fn recovery_follows_no_symlink() {
    needs_root!();
    let hooks = HookDir::new();
    let mut world = World::with(512, |settings| settings.sections = hooks.section(""));
    let disks = world.define_vm(&[("a.img", MB), ("b.img", MB)]);
    hooks.put("10-wait", "[ $2 = pre ] || exit 0\ntouch $OUT/waiting\nsleep 600");
    let client = world.client();
    // Killed during the creation: the service has no record of its own files.
    let request = client.request(Method::POST, &format!("/api/v1{SNAPSHOTS}"));
    std::thread::scope(|scope| {
        let request = scope.spawn(|| client.try_send(request).is_err());
        hooks.wait_for("waiting");
        world.exporter.kill();
        assert!(request.join().unwrap());
    });
    let folder = snapshot_folders(&world.repository).remove(0);
    replace_with_link(&folder, &world.repository.join("VirtualDisks"));
    world.exporter.restart();
    let named = |log: &str| {
        log.lines().any(|line| line.contains("audit action=\"delete\"") && line.contains(folder.to_str().unwrap()))
    };
    eventually("the recovery names the link", || named(&world.exporter.log()));
    assert!(folder.is_symlink() && disks.iter().all(|disk| disk.exists()), "a live disk is gone");
    // After the folder is restored, it is removed.
    fs::remove_file(&folder).unwrap();
    fs::rename(folder.with_extension("aside"), &folder).unwrap();
    world.exporter.restart();
    eventually("the unfinished snapshot is removed", || !folder.exists());
}
