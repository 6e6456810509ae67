//! Keeps the structure that ARCHITECTURE.md describes: modules import downwards only and in no circle, system calls and
//! `unsafe` stay in `sys`, and each external crate stays where it belongs.

#![allow(clippy::unwrap_used)] // a test may panic

mod crates;
mod source;

use std::collections::BTreeSet;
use std::fs;

use crates::{COMMON_CRATES, CRATES};
use source::{files_named, imports, modules, root, rust_files, src};

/// The modules of `src/` by layer, from the bottom up. A module imports from the layers below it.
const LAYERS: &[&[&str]] = &[
    &["model"],
    &["api", "config", "metrics", "sys"],
    &["dns", "inventory", "qcow2", "repository", "store", "tls"],
    &["auth", "client", "hooks", "webhooks"],
    &["app", "backup"],
    &["http"],
    &["service"],
    &["cli"],
];

/// The services of `app/` by layer, from the bottom up.
const APP_LAYERS: &[&[&str]] = &[
    &["changeable", "error", "tasks", "cancellation", "confinement", "file_cache", "audit"],
    &["notifications"],
    &["inventory"],
    &["retention"],
    &["admission"],
    &["common"],
    &["files", "session"],
    &["tickets"],
    &["hooks"],
    &["compare"],
    &["export"],
    &["snapshots"],
    &["database"],
    &["ops"],
    &["opened"],
    &["start"],
];

/// The modules that use `sys` themselves, and what of it; nothing stands for all. The others go through these.
const SYS_USERS: &[(&str, &[&str])] = &[
    (
        "app",
        &["sys::call_filter", "sys::capabilities", "sys::file_access", "sys::host", "sys::io_priority", "sys::mounts"],
    ),
    ("auth", &["sys::sync"]),
    ("backup", &["sys::file_lock", "sys::folder", "sys::page_cache", "sys::reflink", "sys::sync"]),
    ("cli", &["sys::file_lock", "sys::fsinfo", "sys::mounts", "sys::sync"]),
    ("hooks", &["sys::passing", "sys::signals", "sys::trusted_path"]),
    ("http", &[]),
    ("inventory", &[]),
    ("qcow2", &["sys::folder", "sys::sparse"]),
    ("repository", &[]),
    ("service", &[]),
    ("store", &[]),
];

const MAX_LINES: usize = 400;

fn layer_of(layers: &[&[&str]], module: &str) -> Option<usize> {
    layers.iter().position(|modules| modules.contains(&module))
}

#[test]
fn modules_import_from_lower_layers_only() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for (module, targets) in imports(&modules()) {
        let top = module.split("::").next().unwrap();
        if top == "main" {
            continue;
        }
        let layer = layer_of(LAYERS, top).unwrap_or_else(|| panic!("{module} has no layer"));
        for target in targets {
            let other_top = target.split("::").next().unwrap();
            let other = layer_of(LAYERS, other_top).unwrap_or_else(|| panic!("{target} has no layer"));
            checked += 1;
            if other_top != top && other >= layer {
                wrong.push(format!("{module} imports {target}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    assert!(checked > 300, "only {checked} imports were found: does this test still read the code?");
}

#[test]
fn services_of_app_import_from_lower_services_only() {
    let mut wrong = Vec::new();
    for (module, targets) in imports(&modules()) {
        let Some(service) = module.strip_prefix("app::").and_then(|rest| rest.split("::").next()) else { continue };
        let layer = layer_of(APP_LAYERS, service).unwrap_or_else(|| panic!("{module} has no layer"));
        for target in targets {
            let Some(other) = target.strip_prefix("app::").and_then(|rest| rest.split("::").next()) else { continue };
            if other != service && layer_of(APP_LAYERS, other).is_none_or(|other| other >= layer) {
                wrong.push(format!("{module} imports {target}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

/// A circle of files cannot be read from the bottom up. A `mod.rs` only hands on what its files define.
#[test]
fn no_files_import_each_other_in_a_circle() {
    let modules = modules();
    let imports = imports(&modules);
    let is_folder = |module: &str| src().join(module.replace("::", "/")).join("mod.rs").exists();
    // What a file takes from a folder it takes from the files that the folder hands on.
    let reaches = |from: &str| -> BTreeSet<String> {
        let (mut reached, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
        while let Some(module) = open.pop() {
            for target in imports.get(&module).into_iter().flatten() {
                if !is_folder(target) && reached.insert(target.clone()) {
                    open.push(target.clone());
                }
            }
        }
        reached
    };
    let circles: Vec<&String> =
        modules.keys().filter(|module| !is_folder(module) && reaches(module).contains(*module)).collect();
    assert_eq!(circles, Vec::<&String>::new());
}

/// A file that is reached through `super::super` belongs elsewhere, or its path should be written out.
#[test]
fn super_paths_go_up_one_level() {
    for (module, text) in modules() {
        assert!(!text.contains("super::super"), "{module}: write crate::…");
    }
}

#[test]
fn few_modules_use_sys() {
    for (module, targets) in imports(&modules()) {
        let top = module.split("::").next().unwrap();
        let allowed = SYS_USERS.iter().find(|(user, _)| *user == top).map(|(_, parts)| *parts);
        for target in targets.iter().filter(|target| target.starts_with("sys") && top != "sys") {
            let may_use = allowed.is_some_and(|parts| parts.is_empty() || parts.contains(&target.as_str()));
            assert!(may_use, "{module} uses {target}: go through a module of SYS_USERS");
        }
    }
}

#[test]
fn external_crates_stay_where_they_belong() {
    let manifest = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let names = dependencies.lines().filter_map(|line| line.split_once(" = ")).map(|(name, _)| name.replace('-', "_"));
    let listed: Vec<&str> = CRATES.iter().map(|(name, _)| *name).chain(COMMON_CRATES.iter().copied()).collect();
    let missing: Vec<String> = names.filter(|name| !listed.contains(&name.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new(), "say in CRATES which modules may use these");
    let mut wrong = Vec::new();
    for (module, text) in modules() {
        let top = module.split("::").next().unwrap();
        for (name, places) in CRATES {
            let uses = text
                .match_indices(&format!("{name}::"))
                .any(|(at, _)| !text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
            if uses && !places.contains(&top) {
                wrong.push(format!("{module} uses {name}"));
            }
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn model_has_no_input_output_and_no_clock() {
    const FORBIDDEN: &[&str] = &[
        "std::fs",
        "std::io",
        "std::net",
        "std::process",
        "std::thread",
        "std::env",
        "Instant::now",
        "SystemTime",
        "Timestamp::now",
        "Zoned::now",
        "tokio",
        "async fn",
        "nix::",
        "libc::",
        "tracing::",
    ];
    for (module, text) in modules().into_iter().filter(|(module, _)| module.starts_with("model")) {
        for word in FORBIDDEN {
            assert!(!text.contains(word), "{module} contains {word}");
        }
    }
}

#[test]
fn unsafe_code_is_in_sys_only() {
    for (module, text) in modules() {
        assert!(!text.contains("unsafe") || module.starts_with("sys"), "{module}");
    }
}

#[test]
fn migrations_import_nothing_of_the_program() {
    for path in rust_files(&root().join("migrations")) {
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains("crate::") && !text.contains("super::"), "{}", path.display());
    }
}

#[test]
fn no_file_is_longer_than_the_limit() {
    const KINDS: &[&str] = &["rs", "js", "css", "html", "py"];
    for path in ["src", "tests"].iter().flat_map(|folder| files_named(&root().join(folder), KINDS)) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= MAX_LINES, "{} has {lines} lines", path.display());
    }
}

#[test]
fn tests_wait_for_what_they_see() {
    let journeys = root().join("tests/journeys");
    // `process_stats.rs` measures over a time. Everything else that waits uses `wait.rs`.
    let sleeps = ["harness/wait.rs", "harness/process_stats.rs"].map(|name| journeys.join(name));
    for path in rust_files(&journeys).iter().filter(|path| !sleeps.contains(path)) {
        let text = fs::read_to_string(path).unwrap();
        assert!(!text.contains("thread::sleep"), "{}: use `eventually` of the harness", path.display());
    }
}

/// The files of a module of `src/` that contain one of `words`.
fn uses(top: &str, words: &[&str]) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (module, text) in modules() {
        if !top.is_empty() && module.split("::").next() != Some(top) {
            continue;
        }
        for word in words {
            // `DiskFile::open` is no `File::open`.
            let is_whole = |at: usize| word.starts_with('.') || !text[..at].ends_with(|c: char| c.is_alphanumeric());
            if text.match_indices(word).any(|(at, _)| is_whole(at)) {
                found.insert(format!("{module}: {word}"));
            }
        }
    }
    found.into_iter().collect()
}

/// A repository is not trusted: a path that is looked up from the root follows whatever links somebody has put there. So
/// files are reached through `sys::folder` only.
#[test]
fn files_of_repositories_are_reached_through_open_folders() {
    // `std::fs::File` alone is a type: an open file.
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
        "app::confinement::reach: canonicalize",
        "app::confinement::rules: canonicalize",
        "app::file_cache: ",
        "app::inventory::repositories: .is_dir()",
        "app::ops::start_faults: canonicalize",
        "app::ops::warnings: ",
        "inventory::ovs_agent::stable_read: ",
        // The kernel's.
        "inventory::oracle_vm::loop_devices: ",
        // The mount point, which the operator names.
        "repository::executor::health: ",
    ];
    for top in ["repository", "inventory", "app"] {
        let mut found = uses(top, CALLS);
        found.retain(|found| !allowed.iter().any(|allowed| found.starts_with(allowed)));
        assert_eq!(found, Vec::<String>::new());
    }
}

/// A command may print names that others chose.
#[test]
fn commands_print_through_one_place() {
    let mut found = uses("", &["println!", "print!(", "stdout()", "stderr()", "dbg!"]);
    found.retain(|found| !found.starts_with("cli::terminal") && !found.starts_with("cli::log"));
    assert_eq!(found, Vec::<String>::new());
}
