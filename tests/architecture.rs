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
    // `work.rs` measures over a time; whatever else waits, asks `wait.rs`.
    let sleeps = ["harness/wait.rs", "harness/work.rs"].map(|name| journeys.join(name));
    for path in sources(&journeys).iter().filter(|path| !sleeps.contains(path)) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("thread::sleep"), "{}: use `eventually` of the harness", path.display());
    }
}
