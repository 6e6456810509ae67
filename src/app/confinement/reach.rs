//! Which files this process can reach since it restricted itself. That cannot be changed later, so a config that is
//! loaded again, or a new repository of ovs-agent, may need a restart.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::rules;
use crate::config::Config;
use crate::sys::file_access::{Right, Rule};

struct Reach {
    /// With resolved paths.
    rules: Vec<Rule>,
    /// The hook launcher runs the programs of this directory only.
    hooks: Option<PathBuf>,
}

/// Empty while files are not restricted. The kernel's rules are of the process too.
static REACH: OnceLock<Reach> = OnceLock::new();

/// Records the rules that the kernel has accepted.
pub(super) fn set(rules: Vec<Rule>, hooks: Option<PathBuf>) {
    let resolve = |(path, right): Rule| Some((path.canonicalize().ok()?, right));
    let _ = REACH.set(Reach { rules: rules.into_iter().filter_map(resolve).collect(), hooks });
}

impl Reach {
    fn includes(&self, path: &Path, right: Right) -> bool {
        let path = resolved(path);
        self.rules.iter().any(|(folder, allowed)| path.starts_with(folder) && allowed.includes(right))
    }

    fn out_of_reach(&self, config: &Config) -> Vec<String> {
        let is_out = |key: &str, path: &PathBuf, right| {
            // Most hosts have no ovs-agent, and it is looked for there by default.
            let is_missing = key == "repositories.ovs_agent_db" && path.canonicalize().is_err();
            !is_missing && !self.includes(path, right) || key == "hooks.directory" && self.hooks.as_ref() != Some(path)
        };
        let named = rules::named(config).into_iter().filter(|(key, path, right)| is_out(key, path, *right));
        named.map(|(key, path, _)| problem(key, &path)).collect()
    }
}

fn problem(key: &str, path: &Path) -> String {
    format!("{key}: the running service may not use {}, because it confined itself when it started", path.display())
}

/// What `config` names and this process cannot reach, one line each.
pub fn out_of_reach(config: &Config) -> Vec<String> {
    REACH.get().map(|reach| reach.out_of_reach(config)).unwrap_or_default()
}

/// Whether this process can use a repository at `mount_point`.
pub(crate) fn reaches_repository(mount_point: &Path) -> bool {
    REACH.get().is_none_or(|reach| reach.includes(mount_point, Right::Change))
}

/// The path without links, as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let existing = absolute.ancestors().find_map(|above| Some((above, above.canonicalize().ok()?)));
    match existing {
        Some((above, real)) => real.join(absolute.strip_prefix(above).unwrap_or(Path::new(""))),
        None => absolute,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_config_that_names_other_places_is_out_of_reach() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["db", "log", "tls", "repositories/a", "hooks.d", "other"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::fs::write(at("db/x.db"), "").unwrap();
        std::os::unix::fs::symlink(at("other"), at("repositories/link")).unwrap();
        let config = |log: &str, repository: &str, hooks: &str| {
            let (db, log, repository) = (at("db/x.db"), at(log), at(repository));
            let (certificate, key, hooks) = (at("tls/pem"), at("tls/key"), at(hooks));
            let mut config = config::parse(&format!(
                "db_file = {db:?}\novm_endpoint = \"https://manager\"\nlog_file = {log:?}\n[api]\nsocket = \"\"\n\
                 [api.tls]\ncertificate = {certificate:?}\nkey = {key:?}\n[repositories]\novs_agent_db = \"\"\npaths = [{repository:?}]\n[hooks]\n\
                 directory = {hooks:?}\n[manager]\ninsecure_skip_verify = true\n"
            ))
            .unwrap();
            config.file = at("db/config.toml");
            config
        };
        let first = config("log/x.log", "repositories/a", "hooks.d");
        let rules = rules::all(&first, &[at("repositories")]);
        let resolve = |(path, right): Rule| Some((path.canonicalize().ok()?, right));
        let reach =
            Reach { rules: rules.into_iter().filter_map(resolve).collect(), hooks: first.hooks.directory.clone() };
        let keys = |config: &Config| -> Vec<String> {
            let lines = reach.out_of_reach(config);
            lines.iter().map(|line| line.split(": ").next().unwrap().to_owned()).collect()
        };
        for (log, repository, hooks, expected) in [
            ("log/y.log", "repositories/missing", "hooks.d", &[] as &[&str]),
            ("other/x.log", "repositories/a", "hooks.d", &["log_file"]),
            ("log/x.log", "other", "hooks.d", &["repositories.paths"]),
            ("log/x.log", "repositories/link", "hooks.d", &["repositories.paths"]),
            ("log/x.log", "repositories/a", "other", &["hooks.directory"]),
            ("log/x.log", "repositories/a", "repositories", &["hooks.directory"]),
        ] {
            assert_eq!(keys(&config(log, repository, hooks)), expected, "{log} {repository} {hooks}");
        }
    }
}
