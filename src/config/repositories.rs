//! `[repositories]`: where the disks are.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::validator::{Validator, optional};

#[derive(Debug)]
pub struct Repositories {
    /// The id, which is the name of the folder, and the mount point.
    pub paths: Vec<(String, PathBuf)>,
    /// The folder of ovs-agent's databases.
    pub agent_db: Option<PathBuf>,
    /// Whether other exporters use the repositories too.
    pub shared: bool,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Keys {
    pub(super) ovs_agent_db: String,
    paths: Vec<String>,
    shared: bool,
}

impl Default for Keys {
    fn default() -> Self {
        Self { ovs_agent_db: "/etc/ovs-agent/db".to_owned(), paths: Vec::new(), shared: false }
    }
}

impl Validator {
    pub(super) fn repositories(&mut self, keys: &Keys) -> Repositories {
        let key = "repositories.paths";
        let mut found: Vec<(String, PathBuf)> = Vec::new();
        let agent_db = optional(&keys.ovs_agent_db).map(PathBuf::from);
        if keys.paths.is_empty() && agent_db.is_none() {
            self.problem(key, "is empty, and so is ovs_agent_db; name the folder of at least one repository");
        }
        for path in &keys.paths {
            let path = PathBuf::from(path);
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| path.is_absolute() && !name.starts_with('.')) else {
                self.problem(
                    key,
                    format_args!("invalid path {path:?}; expected the absolute path of a visible folder"),
                );
                continue;
            };
            if let Some((_, other)) = found.iter().find(|(id, _)| id == name) {
                let problem = "have the same folder name, which is the repository's id; rename one";
                self.problem(key, format_args!("{path:?} and {other:?} {problem}"));
            }
            found.push((name.to_owned(), path));
        }
        for (_, path) in &found {
            if let Some((_, outer)) = found.iter().find(|(_, outer)| path != outer && path.starts_with(outer)) {
                let remedy = "repositories cannot be nested: remove the one that is not a repository";
                self.problem(key, format_args!("{path:?} lies below {outer:?}; {remedy}"));
            }
        }
        Repositories { paths: found, agent_db, shared: keys.shared }
    }
}
