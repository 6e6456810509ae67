use std::fs;
use std::os::unix::fs::symlink;

use super::*;
use crate::repository::executor::JobKind;

fn repository(id: &str, mount_point: impl Into<PathBuf>) -> Repository {
    Repository::new(id.parse().unwrap(), mount_point.into())
}

fn open_at(repository: &Repository, path: &Path) -> Result<LocatedDisk, PathError> {
    let assigned = assign([repository], path)?;
    repository.run(JobKind::SHORT, move |_, root| Ok(open(root, &assigned))).unwrap()
}

#[test]
fn a_path_is_assigned_by_its_text() {
    let repositories = [repository("a", "/none/a"), repository("b", "/none/a/b"), repository("c", "/none/c")];
    let cases = [
        ("/none/a/VirtualDisks/x.img", Some(("a", "VirtualDisks/x.img"))),
        ("/none//a/./VirtualDisks/./x.img", Some(("a", "VirtualDisks/x.img"))),
        ("/none/a/VirtualDisks/../Other/x.img", Some(("a", "Other/x.img"))),
        // The innermost repository, by any of its names.
        ("/none/a/b/x.img", Some(("b", "x.img"))),
        ("/none/a/y/../b/x.img", None),
        ("/none/a/b/y/../x.img", Some(("b", "x.img"))),
        ("/none/a", None),
        ("/none/a/", None),
        ("/none/ab/x.img", None),
        ("/none/a/../c/x.img", None),
        ("/none/a/x/../../a/x.img", None),
        ("/none/a/x/..", None),
        ("/none/c/../a/x.img", None),
        ("/elsewhere/x.img", None),
    ];
    for (path, expected) in cases {
        let found = assign(&repositories, Path::new(path)).ok();
        let found = found.as_ref().map(|found| (found.repository.id().as_str(), found.below.to_str().unwrap()));
        assert_eq!(found, expected, "{path}");
    }
}

#[test]
fn only_files_in_a_repository_are_opened() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    let repository = repository("repo", base.join("repo"));
    for folder in ["repo/VirtualDisks", "repo/empty", "repo2", "elsewhere"] {
        fs::create_dir_all(base.join(folder)).unwrap();
    }
    for file in ["repo/VirtualDisks/a.img", "repo2/a.img", "elsewhere/secret", "elsewhere/VirtualDisks"] {
        fs::write(base.join(file), b"x").unwrap();
    }
    symlink(base.join("elsewhere/secret"), base.join("repo/VirtualDisks/link.img")).unwrap();
    symlink(base.join("repo/VirtualDisks/a.img"), base.join("repo/VirtualDisks/inside.img")).unwrap();
    symlink(base.join("elsewhere"), base.join("repo/folder")).unwrap();
    nix::unistd::mkfifo(&base.join("repo/pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();

    let open = |path: &str| open_at(&repository, &base.join(path));
    for path in ["repo/VirtualDisks/a.img", "repo/empty/../VirtualDisks/a.img"] {
        let disk = open(path).unwrap();
        assert_eq!((disk.source.path.as_str(), disk.size), ("VirtualDisks/a.img", 1), "{path}");
    }
    for outside in
        ["repo2/a.img", "elsewhere/secret", "repo/../elsewhere/secret", "repo/VirtualDisks/../../repo2/a.img", "repo"]
    {
        assert!(matches!(open(outside), Err(PathError::Outside)), "{outside}");
    }
    for (odd, reason) in [
        ("repo/VirtualDisks/link.img", "\"link.img\" is a symbolic link"),
        ("repo/VirtualDisks/inside.img", "\"inside.img\" is a symbolic link"),
        ("repo/folder/secret", "\"folder\" is a symbolic link"),
        // The kernel would open another file there.
        ("repo/folder/../VirtualDisks/a.img", "\"folder\" is a symbolic link"),
        ("repo/missing/../VirtualDisks/a.img", "No such file"),
        ("repo/pipe", "not a regular file"),
        ("repo/VirtualDisks", "not a regular file"),
        ("repo/missing", "No such file"),
    ] {
        let error = open(odd).unwrap_err().to_string();
        assert!(error.starts_with("cannot be opened: ") && error.contains(reason), "{odd}: {error}");
    }
}

#[test]
fn a_repository_is_known_by_its_configured_and_its_resolved_path() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().canonicalize().unwrap();
    fs::create_dir_all(base.join("real/VirtualDisks")).unwrap();
    fs::write(base.join("real/VirtualDisks/a.img"), b"x").unwrap();
    symlink(base.join("real"), base.join("link")).unwrap();
    let known = repository("r", base.join("link"));
    let later = repository("r", base.join("later"));
    symlink(base.join("real"), base.join("later")).unwrap();
    assert!(assign([&later], &base.join("real/VirtualDisks/a.img")).is_err());
    later.run(JobKind::SHORT, |_, _| Ok(())).unwrap();
    for (repository, name) in [(&known, "link"), (&later, "later")] {
        for name in [name, "real"] {
            let disk = open_at(repository, &base.join(name).join("VirtualDisks/a.img")).unwrap();
            assert_eq!(disk.source.path, "VirtualDisks/a.img", "{name}");
        }
    }
}

#[test]
fn snapshots_and_definitions_are_not_disks() {
    let no_disk = |path: &str| matches!(check_disk_location(Path::new(path)), Err(PathError::NoDisk(_)));
    for refused in [
        "CoriolisSnapshots/6f2cdd2a-9f3c-4f0e-8a52-0c3f3a1b2c4d/a.img",
        "CoriolisSnapshots/x",
        "inner/CoriolisSnapshots/x",
        ".ovsmeta",
        ".ovsrepo/a.img",
        "VirtualMachines/0004fb00000600000000000000000001/vm.cfg",
        "Templates/x/VM.CFG",
    ] {
        assert!(no_disk(refused), "{refused}");
    }
    for taken in
        ["VirtualDisks/a.img", "VirtualMachines/x/System.img", "Templates/x.img", "x.img", "a/.b/c.img", "a/cfg"]
    {
        assert!(!no_disk(taken), "{taken}");
    }
}
