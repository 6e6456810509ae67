use std::fs;
use std::num::NonZero;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use super::*;
use crate::model::{DiskSource, FileIdentity};
use crate::repository::seal;

fn id() -> SnapshotId {
    SnapshotId::from_u128(7)
}

/// A repository with a snapshot's folder and a live disk.
struct Scene {
    dir: tempfile::TempDir,
    folder: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["VirtualDisks", "VirtualMachines"] {
            fs::create_dir(dir.path().join(folder)).unwrap();
        }
        fs::write(dir.path().join("VirtualDisks/a.img"), "live").unwrap();
        let root = Folder::open(dir.path()).unwrap();
        SnapshotDir::new(&root, id()).create().unwrap();
        let folder = dir.path().join(SNAPSHOTS).join(id().to_string());
        Self { dir, folder }
    }

    fn snapshots(&self) -> PathBuf {
        self.dir.path().join(SNAPSHOTS)
    }

    fn live(&self) -> PathBuf {
        self.dir.path().join("VirtualDisks/a.img")
    }

    /// Makes a file of the snapshot as the service does.
    fn make(&self, name: &str) -> SnapshotFile {
        let root = Folder::open(self.dir.path()).unwrap();
        let mut file = SnapshotDir::new(&root, id()).open().unwrap().create_file(name, 0o440).unwrap();
        file.write_all(b"snapshot").unwrap();
        file_of(name, NonZero::new(seal::sync_and_seal(&file).unwrap().identity.inode))
    }

    fn remove(&self, disks: &[SnapshotFile]) -> Result<Removal, RemoveError> {
        let root = Folder::open(self.dir.path()).unwrap();
        SnapshotDir::new(&root, id()).remove(disks)
    }

    /// The entries that a removal refuses.
    fn refused(&self, disks: &[SnapshotFile]) -> Vec<(PathBuf, String)> {
        match self.remove(disks) {
            Err(RemoveError::Foreign(left)) => left.into_iter().map(|one| (one.path, one.reason)).collect(),
            other => panic!("{other:?}"),
        }
    }
}

fn volume() -> Option<VolumeId> {
    volume::id_of(Folder::open(Path::new("/tmp")).unwrap()).unwrap().map(VolumeId)
}

fn file_of(name: &str, inode: Option<NonZero<u64>>) -> SnapshotFile {
    SnapshotFile { name: name.parse().unwrap(), repository: "r".parse().unwrap(), volume: volume(), inode }
}

/// The file of a disk of an unfinished snapshot.
fn unknown(name: &str) -> SnapshotFile {
    file_of(name, None)
}

#[test]
fn existing_files_of_the_service_are_removed() {
    let scene = Scene::new();
    let disks = [scene.make("a.img"), scene.make("b.img")];
    fs::write(scene.folder.join(manifest::FILE_NAME), "{}").unwrap();
    fs::remove_file(scene.folder.join("b.img")).unwrap();
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    assert!(!scene.folder.exists());
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    fs::remove_dir(scene.snapshots()).unwrap();
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    // On another file system nothing is known about it.
    let mut elsewhere = disks;
    elsewhere.iter_mut().for_each(|disk| disk.volume = Some(VolumeId([7; 16])));
    assert_eq!(scene.remove(&elsewhere).unwrap(), Removal::RepositoryUnavailable);
}

#[test]
fn links_are_not_followed_by_a_removal() {
    let live = |scene: &Scene| fs::read(scene.live()).unwrap() == b"live";
    // The snapshot's folder is a link.
    let scene = Scene::new();
    let disks = [scene.make("a.img")];
    fs::rename(&scene.folder, scene.folder.with_extension("away")).unwrap();
    symlink(scene.dir.path().join("VirtualDisks"), &scene.folder).unwrap();
    for disks in [&disks[..], &[unknown("a.img")]] {
        let reason = "is a symbolic link, which is not followed".to_owned();
        assert_eq!(scene.refused(disks), [(scene.folder.clone(), reason)]);
        assert!(live(&scene) && scene.folder.is_symlink());
    }
    // After the operator has removed the link, nothing is left.
    fs::remove_file(&scene.folder).unwrap();
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);

    // The folder of all snapshots is a link.
    let scene = Scene::new();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::create_dir(elsewhere.path().join(id().to_string())).unwrap();
    let precious = elsewhere.path().join(id().to_string()).join("a.img");
    fs::write(&precious, "x").unwrap();
    fs::rename(scene.snapshots(), scene.snapshots().with_extension("away")).unwrap();
    symlink(elsewhere.path(), scene.snapshots()).unwrap();
    assert_eq!(scene.refused(&[unknown("a.img")])[0].0, scene.snapshots());
    assert!(precious.exists());
    let root = Folder::open(scene.dir.path()).unwrap();
    assert!(SnapshotDir::new(&root, SnapshotId::from_u128(8)).create().is_err());

    // A disk's file and the manifest are links.
    let scene = Scene::new();
    let disks = [scene.make("a.img"), scene.make("b.img")];
    let (file, manifest) = (scene.folder.join("a.img"), scene.folder.join(manifest::FILE_NAME));
    symlink(scene.live(), &manifest).unwrap();
    fs::remove_file(&file).unwrap();
    symlink(scene.live(), &file).unwrap();
    for link in [&file, &manifest] {
        let refused: Vec<_> = scene.refused(&disks).into_iter().map(|(path, _)| path).collect();
        assert_eq!(refused, std::slice::from_ref(link));
        assert!(live(&scene) && link.is_symlink() && !scene.folder.join("b.img").exists());
        fs::remove_file(link).unwrap();
    }
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    assert!(live(&scene) && !scene.folder.exists());
}

#[test]
fn only_the_recorded_file_is_removed() {
    let scene = Scene::new();
    let disks = [scene.make("a.img")];
    fs::rename(scene.folder.join("a.img"), scene.folder.join("ours")).unwrap();
    fs::copy(scene.folder.join("ours"), scene.folder.join("a.img")).unwrap();
    let reason = "is not the file that was snapshotted".to_owned();
    assert_eq!(scene.refused(&disks), [(scene.folder.join("a.img"), reason)]);
    assert!(scene.folder.join("ours").exists());
    // Under another name it stays; under the snapshot's it is removed.
    fs::rename(scene.folder.join("ours"), scene.folder.join("a.img")).unwrap();
    fs::hard_link(scene.folder.join("a.img"), scene.dir.path().join("kept")).unwrap();
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    assert!(scene.dir.path().join("kept").exists());
}

#[test]
fn files_of_other_names_stay_with_the_folder() {
    let scene = Scene::new();
    let disks = [scene.make("a.img")];
    fs::write(scene.folder.join(manifest::FILE_NAME), "{}").unwrap();
    fs::write(scene.folder.join("notes"), "x").unwrap();
    assert_eq!(scene.remove(&disks).unwrap(), Removal::Done);
    let left: Vec<_> = fs::read_dir(&scene.folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["notes"]);
}

#[test]
fn an_error_names_at_most_ten_files() {
    let foreign_entry =
        |number: usize| ForeignEntry { path: format!("/r/{number}\n").into(), reason: "is odd".to_owned() };
    let message = RemoveError::Foreign((0..12).map(foreign_entry).collect()).to_string();
    assert!(message.starts_with("\"/r/0\\n\" is odd; ") && message.ends_with("; and 2 more"), "{message}");
}

#[test]
fn of_an_unfinished_snapshot_only_files_like_ours_are_removed() {
    type Change = fn(&Path, &Path);
    let foreign: [(&str, Change); 5] = [
        ("a disk that can be written to", |file, live| fs::rename(live, file).unwrap()),
        ("a hard link to the disk", |file, live| {
            fs::set_permissions(live, fs::Permissions::from_mode(0o440)).unwrap();
            fs::hard_link(live, file).unwrap();
        }),
        ("a link", |file, live| symlink(live, file).unwrap()),
        ("a folder", |file, _| fs::create_dir(file).unwrap()),
        ("a pipe", |file, _| nix::unistd::mkfifo(file, nix::sys::stat::Mode::S_IRWXU).unwrap()),
    ];
    for (what, change) in foreign {
        let scene = Scene::new();
        scene.make("b.img");
        let file = scene.folder.join("a.img");
        change(&file, &scene.live());
        let refused = scene.refused(&[unknown("a.img"), unknown("b.img")]);
        assert_eq!((refused.len(), &refused[0].0), (1, &file), "{what}");
        assert!(fs::symlink_metadata(&file).is_ok() && !scene.folder.join("b.img").exists(), "{what}");
    }
}

#[test]
fn without_a_recorded_volume_the_repository_must_be_in_use() {
    let scene = Scene::new();
    let root = Folder::open(scene.dir.path()).unwrap();
    assert!(is_in_use(&root).unwrap());
    fs::remove_dir_all(scene.snapshots()).unwrap();
    // Like a stray folder at a mount point.
    assert!(!is_in_use(&root).unwrap());
    assert!(is_in_use(&Folder::open(Path::new("/proc")).unwrap()).unwrap(), "something is mounted there");
    let source = DiskSource { repository: "r".parse().unwrap(), path: "VirtualDisks/a.img".to_owned() };
    let identity = FileIdentity { inode: 1, size: 8, changed_ns: 1 };
    let recorded = SnapshotDisk { name: "a.img".parse().unwrap(), source, identity, volume: volume(), seal: None };
    let dir = SnapshotDir::new(&root, id());
    assert!(dir.is_gone([&recorded]).unwrap() || recorded.volume.is_none());
    assert!(!dir.is_gone([&SnapshotDisk { volume: None, ..recorded }]).unwrap());
}
