//! `[repositories]`.

use std::path::PathBuf;

use super::{Check, file, optional};

/// `[repositories]`: where disks are.
#[derive(Debug)]
pub struct Repositories {
    /// `paths`: id (the folder's name) and mount point.
    pub paths: Vec<(String, PathBuf)>,
    /// `ovs_agent_db`, a folder.
    pub agent_db: Option<PathBuf>,
}

impl Check {
    pub(super) fn repositories(&mut self, repositories: &file::Repositories) -> Repositories {
        let key = "repositories.paths";
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        let agent_db = optional(&repositories.ovs_agent_db).map(PathBuf::from);
        if repositories.paths.is_empty() && agent_db.is_none() {
            self.problem(key, "is empty, and so is ovs_agent_db; name the folder of at least one repository");
        }
        for path in &repositories.paths {
            let path = PathBuf::from(path);
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| path.is_absolute() && !name.starts_with('.')) else {
                self.problem(key, format_args!("{path:?} is no absolute path of a visible folder"));
                continue;
            };
            if let Some((_, other)) = found.iter().find(|(id, _)| id == name) {
                self.problem(
                    key,
                    format_args!("{path:?} and {other:?} have one folder name, which is a repository's id; rename one"),
                );
            }
            found.push((name.to_owned(), path));
        }
        for (_, path) in &found {
            if let Some((_, outer)) = found.iter().find(|(_, outer)| path != outer && path.starts_with(outer)) {
                let remedy = "a repository is in no other; remove the one that is none";
                self.problem(key, format_args!("{path:?} lies below {outer:?}; {remedy}"));
            }
        }
        Repositories { paths: found, agent_db }
    }
}
