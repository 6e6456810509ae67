//! Reads the source files, and which of them import which.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn src() -> PathBuf {
    root().join("src")
}

pub fn rust_files(folder: &Path) -> Vec<PathBuf> {
    files_named(folder, &["rs"])
}

/// The files below `folder` with one of these extensions.
pub fn files_named(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files_named(&path, extensions));
        } else if path.extension().is_some_and(|found| extensions.iter().any(|extension| found == *extension)) {
            found.push(path);
        }
    }
    found
}

/// A file of `src/` without its tests and comments, by its module path such as `app::files::service`. A `mod.rs` is
/// named by its folder.
pub fn modules() -> BTreeMap<String, String> {
    let mut modules = BTreeMap::new();
    for path in rust_files(&src()) {
        let below = path.strip_prefix(src()).unwrap().with_extension("");
        let mut parts: Vec<_> = below.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
        if parts.last().is_some_and(|last| last == "mod") {
            parts.pop();
        }
        if parts.iter().any(|part| part == "tests" || part == "script") || parts.len() == 1 && parts[0] == "lib" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let text = text.split("#[cfg(test)]").next().unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        modules.insert(parts.join("::"), code.collect::<Vec<_>>().join("\n"));
    }
    modules
}

/// The paths that a file names after `crate::` and `super::`, with grouped imports taken apart, from the crate's root.
fn named_paths(module: &str, is_folder: bool, text: &str) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let parent = |levels: usize| {
        let mut parts: Vec<&str> = module.split("::").collect();
        parts.truncate(parts.len().saturating_sub(levels));
        parts.join("::")
    };
    for (marker, levels) in [("crate::", None), ("super::super::", Some(2)), ("super::", Some(1)), ("self::", Some(0))]
    {
        for (at, _) in text.match_indices(marker) {
            let before = &text[..at];
            let continues = before.ends_with("super::") || before.ends_with("crate::");
            if continues || before.ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let prefix = match levels {
                None => String::new(),
                // `super` of a `mod.rs` is its parent folder, as for any other file.
                Some(levels) => parent(levels) + "::",
            };
            for path in expand(&text[at + marker.len()..]) {
                paths.insert(format!("{prefix}{path}"));
            }
        }
    }
    if is_folder {
        // `mod.rs` names its children directly.
        for (at, _) in text.match_indices("use ") {
            let rest = &text[at + 4..];
            let first: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if text.contains(&format!("mod {first};")) {
                paths.extend(expand(rest).into_iter().map(|path| format!("{module}::{path}")));
            }
        }
    }
    paths
}

/// The paths of a `use` tree: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn expand(text: &str) -> Vec<String> {
    let head: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_' || *c == ':').collect();
    let rest = &text[head.len()..];
    let Some(group) = rest.strip_prefix('{').filter(|_| head.ends_with("::") || head.is_empty()) else {
        return vec![head.trim_end_matches(':').to_owned()];
    };
    let (mut paths, mut depth, mut start) = (Vec::new(), 0, 0);
    for (index, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                let part = group[start..index].trim();
                if !part.is_empty() {
                    paths.extend(expand(part).into_iter().map(|path| format!("{head}{path}")));
                }
                start = index + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    paths
}

/// Which file imports which, by module paths.
pub fn imports(modules: &BTreeMap<String, String>) -> BTreeMap<String, BTreeSet<String>> {
    let mut all = BTreeMap::new();
    for (module, text) in modules {
        let path = src().join(module.replace("::", "/"));
        let mut targets = BTreeSet::new();
        for named in named_paths(module, path.join("mod.rs").exists(), text) {
            // The longest prefix that is a file.
            let parts: Vec<&str> = named.split("::").collect();
            let target =
                (1..=parts.len()).rev().map(|len| parts[..len].join("::")).find(|path| modules.contains_key(path));
            targets.extend(target.filter(|target| target != module));
        }
        all.insert(module.clone(), targets);
    }
    all
}
