//! The repositories: those in the config, and those in ovs-agent's database.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::app::confinement;
use crate::app::file_cache::FileCache;
use crate::config::{self, Fault};
use crate::inventory::ovs_agent::{self, RepositoryEntry};
use crate::model::RepositoryId;
use crate::repository::{LocalLocks, Mounted, Repository, Unavailable};

/// A repository, with ovs-agent's entry about it.
#[derive(Debug)]
pub(crate) struct RepositoryState {
    /// Its id, even if that is invalid.
    pub name: String,
    /// The repository, or the reason why it is unusable.
    pub repository: Result<Repository, String>,
    /// ovs-agent's entry, if there is one.
    pub entry: Option<RepositoryEntry>,
}

impl RepositoryState {
    fn repository(&self) -> Result<&Repository, String> {
        self.repository.as_ref().map_err(Clone::clone)
    }
}

/// All repositories, as last read.
#[derive(Debug, Default)]
pub(crate) struct RepositorySet {
    /// Sorted by name.
    pub known: Vec<RepositoryState>,
    /// The reason why ovs-agent's database could not be read. Its last known repositories stay in the list.
    pub problem: Option<String>,
}

impl RepositorySet {
    /// The usable repositories.
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Repository> {
        self.known.iter().filter_map(|known| known.repository.as_ref().ok())
    }

    /// All repositories, each with its mount, or the reason why there is none. All checks start before the first result
    /// is awaited.
    pub(crate) fn with_mounts(
        &self,
    ) -> impl Iterator<Item = (&RepositoryState, Result<(&Repository, Mounted), String>)> {
        let check = |known| (known, RepositoryState::repository(known).map(Repository::submit_mounted));
        let checks: Vec<_> = self.known.iter().map(check).collect();
        checks.into_iter().map(|(known, check)| {
            let mounted = check
                .and_then(|check| check.wait().map_err(Unavailable::from).flatten().map_err(|cause| cause.to_string()));
            (known, mounted.and_then(|mounted| Ok((known.repository()?, mounted))))
        })
    }

    /// The usable repositories that are unavailable, with the reason.
    pub(crate) fn unmounted(&self) -> impl Iterator<Item = (&Repository, String)> {
        self.with_mounts().filter_map(|(known, mounted)| Some((known.repository.as_ref().ok()?, mounted.err()?)))
    }

    /// Logs why repositories are unusable that were not so in `last`.
    fn log_new_problems(&self, last: &Self) {
        for known in &self.known {
            let Err(problem) = &known.repository else { continue };
            let is_old =
                |old: &RepositoryState| old.name == known.name && old.repository.as_ref().err() == Some(problem);
            if !last.known.iter().any(is_old) {
                tracing::warn!(repository = known.name, problem, "unusable repository");
            }
        }
    }

    fn get(&self, id: &RepositoryId) -> Option<&Repository> {
        self.usable().find(|repository| repository.id() == id)
    }
}

/// Caches the list. ovs-agent's database is read again after its file has changed.
pub(crate) struct Repositories {
    /// The repositories in the config.
    named: Vec<Repository>,
    /// The list without ovs-agent.
    named_only: Arc<RepositorySet>,
    agent_db: Option<PathBuf>,
    read: FileCache<Arc<RepositorySet>>,
}

impl Repositories {
    /// The repositories of `config` and ovs-agent.
    ///
    /// # Errors
    /// If there are none, or if they conflict. The error is written for operators.
    pub(crate) fn new(config: &config::Repositories) -> anyhow::Result<Self> {
        use anyhow::Context;
        let mut named = Vec::new();
        for (id, path) in &config.paths {
            let id: RepositoryId = id.parse().with_context(|| format!("repositories.paths: {}", path.display()))?;
            named.push(Repository::new(id, path.clone()));
        }
        // With repositories in the config, a missing ovs-agent is not an error.
        let agent_db = config.agent_db.clone().filter(|folder| named.is_empty() || folder.is_dir());
        let named_only = Arc::new(merge(&named, Vec::new()));
        let repositories = Self { named, named_only, agent_db, read: FileCache::new() };
        let found = repositories.found();
        if let Some(problem) = &found.problem
            && repositories.named.is_empty()
        {
            anyhow::bail!("repositories.ovs_agent_db: {problem}; or name repositories in repositories.paths");
        }
        refuse_inner(&repositories.named, &found)?;
        for known in &found.known {
            match &known.repository {
                Ok(repository) => {
                    let shown = repository.mount_point().display();
                    tracing::info!(repository = %shown, "repository");
                    if repository.keeps_locks_local() {
                        tracing::warn!(repository = %shown, problem = %LocalLocks, "no snapshots can be made and deleted");
                    }
                }
                Err(problem) => tracing::warn!(repository = known.name, problem, "unusable repository"),
            }
        }
        Ok(repositories)
    }

    /// Checks that no folder in the config is one inside a repository.
    ///
    /// # Errors
    /// If one is. The error is written for operators.
    pub(crate) fn without_folders(self) -> anyhow::Result<Self> {
        for one in &self.named {
            // Only if the name gives a reason: this check takes long if the repository hangs.
            if one.is_named_as_content()
                && let Ok(Some(real)) = one.enclosing_repository()
            {
                return Err(below_a_repository(one, &real).into());
            }
        }
        Ok(self)
    }

    /// The repository `id`, if it exists and is usable.
    pub(crate) fn get(&self, id: &RepositoryId) -> Option<Repository> {
        self.found().get(id).cloned()
    }

    /// The current list of all repositories.
    pub(crate) fn found(&self) -> Arc<RepositorySet> {
        let Some(folder) = &self.agent_db else { return Arc::clone(&self.named_only) };
        self.read.get(&folder.join(ovs_agent::REPOSITORIES), |last| {
            // With a known list, do not wait for a missing file.
            let found = match ovs_agent::repositories(folder, last.is_none()) {
                Ok(entries) => {
                    let found = merge(&self.named, entries);
                    if let Some(last) = &last {
                        found.log_new_problems(last);
                    }
                    found
                }
                Err(error) => {
                    let (problem, last) = (error.to_string(), last.unwrap_or_default());
                    if last.problem.as_ref() != Some(&problem) {
                        tracing::error!(problem, "cannot read ovs-agent's repositories; keeping the known ones");
                    }
                    let kept = last.known.iter().filter_map(|known| known.entry.clone()).collect();
                    RepositorySet { problem: Some(problem), ..merge(&self.named, kept) }
                }
            };
            let is_good = found.problem.is_none();
            (Arc::new(found), is_good)
        })
    }
}

/// Merges both lists. For the same id, the config takes precedence over ovs-agent.
fn merge(named: &[Repository], entries: Vec<RepositoryEntry>) -> RepositorySet {
    let mut known: Vec<RepositoryState> = named
        .iter()
        .map(|repository| {
            let entry = entries.iter().find(|entry| entry.id == repository.id().as_str()).cloned();
            RepositoryState { name: repository.id().to_string(), repository: Ok(repository.clone()), entry }
        })
        .collect();
    for entry in entries {
        if known.iter().all(|known| known.name != entry.id) {
            known.push(RepositoryState { name: entry.id.clone(), repository: usable(&entry), entry: Some(entry) });
        }
    }
    refuse_doubles(&mut known);
    refuse_nested(&mut known);
    known.sort_by(|a, b| a.name.cmp(&b.name));
    RepositorySet { known, problem: None }
}

/// Marks a folder with two ids as unusable under the second, because each of its VMs would be listed twice.
fn refuse_doubles(known: &mut [RepositoryState]) {
    let mut seen: HashMap<PathBuf, String> = HashMap::new();
    for known in known {
        let Ok(repository) = &known.repository else { continue };
        match seen.entry(repository.resolved().to_owned()) {
            Entry::Vacant(vacant) => drop(vacant.insert(known.name.clone())),
            Entry::Occupied(first) => known.repository = Err(format!("is the same folder as {}", first.get())),
        }
    }
}

/// Marks repositories inside another one as unusable, because both would list the same VMs and disks.
fn refuse_nested(known: &mut [RepositoryState]) {
    let all: Vec<Repository> = known.iter().filter_map(|known| known.repository.as_ref().ok()).cloned().collect();
    for known in known {
        let Ok(repository) = &known.repository else { continue };
        if let Some(outer) = all.iter().find(|outer| repository.is_below(outer)) {
            known.repository = Err(format!("lies below the repository {}", outer.mount_point().display()));
        }
    }
}

/// Checks that the folders in the config are not below another repository, and contain none.
///
/// # Errors
/// If one is. The error is written for operators.
fn refuse_inner(named: &[Repository], found: &RepositorySet) -> anyhow::Result<()> {
    for one in named {
        // `known` and not `usable`: the others may already be marked as unusable.
        let others = found.known.iter().filter(|known| known.name != one.id().as_str());
        for other in others {
            let mount_point = other.entry.as_ref().and_then(|entry| entry.mount_point.clone());
            let other = match (named.iter().find(|named| named.id().as_str() == other.name), mount_point) {
                (Some(named), _) => named.clone(),
                (None, Some(mount_point)) => Repository::new(one.id().clone(), mount_point),
                (None, None) => continue,
            };
            for (inner, outer) in [(one, &other), (&other, one)] {
                if inner.is_below(outer) {
                    let (inner, outer) = (inner.mount_point().display(), outer.mount_point().display());
                    let found = format!("{inner} lies below {outer}");
                    let remedy = "repositories cannot be nested; remove the path that is not a repository";
                    return Err(Fault::new("repositories.paths", found, remedy).into());
                }
            }
        }
    }
    Ok(())
}

/// The fault of a path in the config that is a folder inside the repository at `real`.
pub(crate) fn below_a_repository(repository: &Repository, real: &Path) -> Fault {
    let (shown, real) = (repository.mount_point().display(), real.display());
    let found = format!("{shown} is a folder in the repository {real}, not a repository itself");
    Fault::new("repositories.paths", found, format!("replace it with {real}, and list that once"))
}

fn usable(entry: &RepositoryEntry) -> Result<Repository, String> {
    if let Some(problem) = &entry.problem {
        return Err(problem.clone());
    }
    let id = entry.id.parse().map_err(|error| format!("{error}"))?;
    let mount_point = entry.mount_point.as_ref().filter(|path| path.is_absolute() && path.parent().is_some());
    let mount_point = mount_point.ok_or("ovs-agent's database has no mount point for it")?;
    if !confinement::reaches_repository(mount_point) {
        return Err(format!(
            "{} is in a folder that the service could not know when it started and confined itself; restart the service",
            mount_point.display()
        ));
    }
    Ok(Repository::new(id, mount_point.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, mount_point: Option<&str>) -> RepositoryEntry {
        RepositoryEntry {
            id: id.to_owned(),
            mount_point: mount_point.map(PathBuf::from),
            alias: Some("alias".to_owned()),
            manager_uuid: None,
            version: None,
            filesystem: None,
            problem: None,
        }
    }

    #[test]
    fn config_takes_precedence_over_ovs_agent() {
        let named = [Repository::new("b".parse().unwrap(), "/named/b".into())];
        let found = merge(&named, vec![entry("b", Some("/agent/b")), entry("a", Some("/agent/a")), entry("c", None)]);
        let seen: Vec<_> = found
            .known
            .iter()
            .map(|known| (known.name.as_str(), known.repository.as_ref().ok().map(Repository::mount_point)))
            .collect();
        let (a, b) = (Path::new("/agent/a"), Path::new("/named/b"));
        assert_eq!(seen, [("a", Some(a)), ("b", Some(b)), ("c", None)]);
        assert!(found.known.iter().all(|known| known.entry.is_some()));
        assert_eq!(found.usable().count(), 2);
    }

    #[test]
    fn one_folder_is_one_repository() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("link")).unwrap();
        let named = [Repository::new("b".parse().unwrap(), dir.path().join("link"))];
        let found = merge(&named, vec![entry("a", dir.path().to_str()), entry("c", Some("/agent/c"))]);
        let usable: Vec<_> = found.usable().map(|repository| repository.id().as_str()).collect();
        assert_eq!(usable, ["b", "c"]);
        assert_eq!(found.known[0].repository.as_ref().unwrap_err(), "is the same folder as b");
    }

    #[test]
    fn nested_repositories_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for folder in ["a/VirtualDisks", "ab", "b/inner"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        std::os::unix::fs::symlink(at("a/VirtualDisks"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("a"), at("other-a")).unwrap();
        let refused = |paths: &[&str]| {
            let paths = paths.iter().map(|path| (path.replace('/', "-"), at(path))).collect();
            let config = config::Repositories { paths, agent_db: None, shared: false };
            let found = Repositories::new(&config).and_then(Repositories::without_folders);
            found.err().map(|error| error.to_string())
        };
        for good in [&["a", "ab", "b"] as &[&str], &["a", "other-a"], &["missing", "b/inner"]] {
            assert_eq!(refused(good), None, "{good:?}");
        }
        for (bad, expected) in [
            (&["a", "a/VirtualDisks"] as &[&str], "lies below"),
            (&["link", "a"], "lies below"),
            (&["a/missing", "a"], "lies below"),
            (&["a/VirtualDisks"], "is a folder in the repository"),
            (&["link"], "is a folder in the repository"),
        ] {
            let error = refused(bad).unwrap_or_else(|| panic!("{bad:?} is accepted"));
            assert!(error.starts_with("repositories.paths: ") && error.contains(expected), "{bad:?}: {error}");
        }
        // The same for entries of ovs-agent, even if they appear later.
        let inner = at("b/inner");
        let found = merge(&[], vec![entry("b", at("b").to_str()), entry("inner", inner.to_str())]);
        let usable: Vec<_> = found.usable().map(|repository| repository.id().as_str()).collect();
        assert_eq!(usable, ["b"]);
        let named = [Repository::new("b".parse().unwrap(), at("b"))];
        let found = merge(&named, vec![entry("inner", inner.to_str())]);
        assert!(refuse_inner(&named, &found).unwrap_err().to_string().contains("lies below"));
    }

    #[test]
    fn entry_without_valid_mount_point_is_unusable() {
        for odd in [None, Some("relative"), Some("/"), Some("")] {
            assert!(usable(&entry("a", odd)).is_err(), "{odd:?}");
        }
        assert!(usable(&entry("../a", Some("/agent/a"))).is_err());
    }
}
