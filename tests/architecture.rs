//! Keeps the rooms and floors of ARCHITECTURE.md: imports go down only, `unsafe` stands in `sys`
//! alone, and a file past 400 lines is two ideas.

#![allow(clippy::unwrap_used)] // a test may panic

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms of `src/` by floor, from the ground up. A room imports from the floors below it.
const FLOORS: &[&[&str]] = &[
    &["model"],
    &["config", "metrics", "sys", "wire"],
    &["auth", "hooks", "inventory", "repository", "store"],
    &["app"],
    &["cli", "http"],
];

const LINES: usize = 400;

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn floor_of(room: &str) -> Option<usize> {
    FLOORS.iter().position(|rooms| rooms.contains(&room))
}

/// The rooms that a file names after `crate::`.
fn imported_rooms(text: &str) -> Vec<String> {
    let parts = text.split("crate::").skip(1);
    parts.map(|part| part.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()).collect()
}

#[test]
fn imports_go_down_only() {
    let mut wrong = Vec::new();
    let mut checked = 0;
    for path in sources(&src()) {
        let below = path.strip_prefix(src()).unwrap();
        let Some(room) = below.parent().and_then(|folder| folder.iter().next()) else { continue };
        let room = room.to_str().unwrap();
        let floor = floor_of(room).unwrap_or_else(|| panic!("{room} stands on no floor"));
        for imported in imported_rooms(&fs::read_to_string(&path).unwrap()) {
            // `use crate::{a, b}` would hide rooms from this test.
            let other = floor_of(&imported).unwrap_or_else(|| panic!("{}: crate::{imported}", below.display()));
            checked += 1;
            if imported != room && other >= floor {
                wrong.push(format!("{} imports {imported}", below.display()));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(checked > 50, "only {checked} imports were found: does this test still read the code?");
}

#[test]
fn unsafe_stands_in_sys_alone() {
    for path in sources(&src()) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let unsafe_code = code.filter(|line| line.contains("unsafe")).count();
        assert!(unsafe_code == 0 || path.starts_with(src().join("sys")), "{}", path.display());
    }
}

#[test]
fn migrations_import_nothing_of_the_program() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations");
    for path in sources(&folder) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("crate::") && !text.contains("super::"), "{}", path.display());
    }
}

#[test]
fn a_file_is_one_idea() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for path in sources(&src()).into_iter().chain(sources(&tests)) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LINES, "{} has {lines} lines", path.display());
    }
}

#[test]
fn journeys_wait_for_what_they_see() {
    let journeys = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/journeys");
    // `process_stats.rs` measures over a time; whatever else waits, asks `wait.rs`.
    let sleeps = ["harness/wait.rs", "harness/process_stats.rs"].map(|name| journeys.join(name));
    for path in sources(&journeys).iter().filter(|path| !sleeps.contains(path)) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("thread::sleep"), "{}: use `eventually` of the harness", path.display());
    }
}

/// The lines of the files below `folder` of `src/` that hold one of `words`: what is code, and no test.
fn uses(folder: &str, words: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    for path in sources(&src().join(folder)) {
        if path.ends_with("tests.rs") {
            continue;
        }
        let below = path.strip_prefix(src()).unwrap().display().to_string();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
        // `DiskFile::open` is no `File::open`.
        let stands_alone = |before: &str| !before.ends_with(|c: char| c.is_alphanumeric());
        let held = |line: &str| {
            let word = words.iter().find(|word| {
                line.match_indices(**word).any(|(at, _)| word.starts_with('.') || stands_alone(&line[..at]))
            })?;
            Some(format!("{below}: {word}"))
        };
        found.extend(lines.filter_map(held));
    }
    found.sort();
    found.dedup();
    found
}

/// A repository is foreign ground: a path that is looked up from the root follows whatever links somebody has
/// put there. So files are reached through `sys::folder` alone.
#[test]
fn files_of_repositories_are_reached_through_open_folders() {
    // `std::fs::File` alone is a type: what is open.
    const CALLS: &[&str] = &[
        "use std::fs;",
        "fs::{self",
        "fs::canonicalize",
        "fs::copy",
        "fs::create_dir",
        "fs::exists",
        "fs::hard_link",
        "fs::metadata",
        "fs::read",
        "fs::remove",
        "fs::rename",
        "fs::set_permissions",
        "fs::symlink",
        "fs::write",
        "File::open",
        "File::create",
        "File::options",
        "OpenOptions",
        "DirBuilder",
        "read_dir",
        "read_link",
        "canonicalize",
        "symlink_metadata",
        "exists()",
        ".is_dir()",
        "nix::fcntl",
        "nix::dir",
        "libc::open",
    ];
    let allowed = [
        // The operator's own files, and ovs-agent's.
        "app/check_config.rs: ",
        "app/remembered.rs: ",
        "app/repositories.rs: .is_dir()",
        "app/start_faults.rs: canonicalize",
        "inventory/ovs_agent/steady.rs: ",
        // The mount point, which the operator names.
        "repository/executor/health.rs: fs::read",
    ];
    for folder in ["repository", "inventory", "app"] {
        let mut found = uses(folder, CALLS);
        found.retain(|found| !allowed.iter().any(|allowed| found.starts_with(allowed)));
        assert_eq!(found, Vec::<String>::new());
    }
}

/// What a command prints can hold other people's names.
#[test]
fn commands_print_through_one_place() {
    let mut found = uses("", &["println!", "print!(", "stdout()", "stderr()", "dbg!"]);
    found.retain(|found| !found.starts_with("cli/terminal.rs") && !found.starts_with("cli/log"));
    assert_eq!(found, Vec::<String>::new());
}
