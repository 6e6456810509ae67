use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;

use super::*;

fn test_folder() -> (tempfile::TempDir, Folder) {
    let dir = tempfile::tempdir().unwrap();
    let folder = Folder::open(dir.path()).unwrap();
    (dir, folder)
}

fn problem<T: std::fmt::Debug>(outcome: io::Result<T>) -> Option<EntryProblem> {
    UnexpectedEntry::of(&outcome.unwrap_err())
}

#[test]
fn only_regular_files_are_opened_and_nothing_blocks() {
    let (dir, folder) = test_folder();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("a/b")).unwrap();
    fs::write(at("a/b/file"), "bytes").unwrap();
    nix::unistd::mkfifo(&at("pipe"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(at("socket")).unwrap();
    symlink("/dev/zero", at("zero")).unwrap();
    symlink("a/b/file", at("link")).unwrap();
    symlink("nothing", at("dangling")).unwrap();
    assert_eq!(folder.read_small("a/b/file", 5).unwrap(), b"bytes");
    for odd in ["pipe", "socket", "a", "a/b"] {
        assert_eq!(problem(folder.open_file(odd)), Some(EntryProblem::NotAFile), "{odd}");
        assert_eq!(problem(folder.read_small(odd, 5)), Some(EntryProblem::NotAFile), "{odd}");
    }
    for link in ["zero", "link", "dangling"] {
        assert_eq!(problem(folder.open_file(link)), Some(EntryProblem::Link), "{link}");
    }
    assert_eq!(folder.open_file("missing").unwrap_err().kind(), io::ErrorKind::NotFound);
    let error = folder.open_file("link").unwrap_err().to_string();
    assert_eq!(error, "\"link\" is a symbolic link, which is not followed");
}

#[test]
fn links_in_a_path_are_not_followed() {
    let (dir, folder) = test_folder();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("real/inner")).unwrap();
    fs::write(at("real/inner/file"), "x").unwrap();
    symlink(at("real"), at("absolute")).unwrap();
    symlink("real", at("relative")).unwrap();
    fs::write(at("file"), "x").unwrap();
    for link in ["absolute", "relative"] {
        assert_eq!(problem(folder.folder(link)), Some(EntryProblem::Link));
        assert_eq!(problem(folder.folder(format!("{link}/inner"))), Some(EntryProblem::Link));
        assert_eq!(problem(folder.open_file(format!("{link}/inner/file"))), Some(EntryProblem::Link));
    }
    assert_eq!(problem(folder.folder("file")), Some(EntryProblem::NotAFolder));
    assert_eq!(problem(folder.stat("relative/inner")), Some(EntryProblem::Link));
    assert!(folder.stat("real/inner/file").unwrap().is_file() && folder.stat("relative").unwrap().is_symlink());
    assert_eq!(problem(folder.open_file("file/inner")), Some(EntryProblem::NotAFolder));
    // The operator may name a link.
    let named = Folder::open(&at("absolute")).unwrap();
    assert!(named.open_file("inner/file").is_ok());
    assert_eq!(named.resolved().unwrap(), at("real").canonicalize().unwrap());
    // Replacing the directory by a link has no effect: it is open.
    let inner = folder.folder("real/inner").unwrap();
    fs::rename(at("real"), at("moved")).unwrap();
    symlink("/etc", at("real")).unwrap();
    assert!(inner.open_file("file").is_ok());
}

#[test]
fn paths_cannot_leave_the_folder() {
    let (dir, folder) = test_folder();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let inner = folder.folder("a").unwrap();
    let absolute = dir.path().join("file");
    for bad in ["../file", "..", "/etc/passwd", absolute.to_str().unwrap(), ""] {
        assert!(inner.open_file(bad).is_err(), "{bad}");
    }
    assert!(inner.folder("..").is_err() && inner.folder("/").is_err());
    for bad in ["../file", "..", ".", "", "/", "a/b", "a/", "/etc/passwd"] {
        assert!(inner.create_file(bad, 0o600).is_err(), "{bad}");
        assert!(inner.create_folder(bad, 0o700).is_err(), "{bad}");
        assert!(inner.unlink(bad).is_err() && inner.remove_folder(bad).is_err(), "{bad}");
        assert!(inner.rename("x", bad).is_err() && inner.rename(bad, "x").is_err(), "{bad}");
        assert!(inner.path_through(bad).is_err(), "{bad}");
    }
    for bad in ["../file", "..", ".", "", "/", "/etc/passwd", "x/../../file"] {
        assert!(inner.stat(bad).is_err(), "{bad}");
    }
    assert!(dir.path().join("file").exists());
}

#[test]
fn the_limit_counts_the_bytes_that_are_read() {
    let (dir, folder) = test_folder();
    fs::File::create(dir.path().join("sparse")).unwrap().set_len(2 << 30).unwrap();
    fs::write(dir.path().join("exact"), [1; 16]).unwrap();
    assert_eq!(problem(folder.read_small("sparse", 16)), Some(EntryProblem::TooLarge(16)));
    assert_eq!(problem(folder.read_small("exact", 15)), Some(EntryProblem::TooLarge(15)));
    assert_eq!(folder.read_small("exact", 16).unwrap(), [1; 16]);
    // Files that report size 0 and are not empty.
    let process = Folder::open(Path::new("/proc/self")).unwrap();
    assert!(!process.read_small("status", 1 << 16).unwrap().is_empty());
    assert_eq!(problem(process.read_small("status", 4)), Some(EntryProblem::TooLarge(4)));
}

#[test]
fn files_and_folders_are_created_renamed_and_removed() {
    let (dir, folder) = test_folder();
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("precious"), "x").unwrap();
    symlink(outside.path().join("precious"), dir.path().join("link")).unwrap();
    symlink(outside.path(), dir.path().join("links")).unwrap();
    let taken = |error: io::Error| error.kind() == io::ErrorKind::AlreadyExists;
    assert!(folder.create_file("link", 0o600).is_err_and(taken));
    assert!(folder.create_folder("links", 0o700).is_err_and(taken));

    let mut file = folder.create_file("file", 0o440).unwrap();
    file.write_all(b"bytes").unwrap();
    assert!(folder.create_file("file", 0o440).is_err_and(taken));
    assert_eq!(folder.stat("file").unwrap().permissions().mode() & 0o7777, 0o440);
    folder.create_folder("folder", 0o750).unwrap();
    folder.sync().unwrap();
    folder.rename("file", "renamed").unwrap();
    let mut names = folder.entries().unwrap();
    names.sort();
    assert_eq!(names, ["folder", "link", "links", "renamed"]);
    assert!(folder.stat("link").unwrap().is_symlink() && folder.stat("folder").unwrap().is_dir());

    assert!(folder.remove_folder("links").is_err());
    for name in ["link", "links", "renamed"] {
        folder.unlink(name).unwrap();
    }
    folder.remove_folder("folder").unwrap();
    assert!(folder.is_empty().unwrap());
    assert!(outside.path().join("precious").exists());
}

#[test]
fn a_path_through_an_open_folder_stays_in_that_folder() {
    let (dir, folder) = test_folder();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/file"), "ours").unwrap();
    let inner = folder.folder("a").unwrap();
    fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
    fs::create_dir(dir.path().join("a")).unwrap();
    fs::write(dir.path().join("a/file"), "another").unwrap();
    let path = inner.path_through("file").unwrap();
    assert_eq!(fs::read(Path::new(path.to_str().unwrap())).unwrap(), b"ours");
}
