//! Which repositories there are: those that the config names, and those that ovs-agent knows.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::config;
use crate::inventory::ovs_agent::{self, RepositoryEntry};
use crate::model::RepositoryId;
use crate::repository::{Absent, Repository};

/// A repository, and what ovs-agent says of it.
#[derive(Debug)]
pub(super) struct Known {
    /// Its id, also where it is none that could be used.
    pub name: String,
    /// The repository, or why it cannot be used.
    pub repository: Result<Repository, String>,
    /// ovs-agent's entry, where it has one.
    pub entry: Option<RepositoryEntry>,
}

/// All repositories, as they were found last.
#[derive(Debug, Default)]
pub(super) struct Found {
    /// Sorted by name.
    pub known: Vec<Known>,
    /// Why ovs-agent's could not be read; those of the last good reading stay.
    pub problem: Option<String>,
}

impl Found {
    /// Those that can be used.
    pub(super) fn usable(&self) -> impl Iterator<Item = &Repository> {
        self.known.iter().filter_map(|known| known.repository.as_ref().ok())
    }

    /// Those that are not mounted, each with what is wrong.
    pub(super) fn away(&self) -> impl Iterator<Item = (&Repository, Absent)> {
        self.usable().filter_map(|repository| Some((repository, repository.mounted().err()?)))
    }

    fn get(&self, id: &RepositoryId) -> Option<&Repository> {
        self.usable().find(|repository| repository.id() == id)
    }
}

/// Keeps the list. ovs-agent's database is read anew when its file has changed.
pub(super) struct Repositories {
    named: Vec<Repository>,
    agent_db: Option<PathBuf>,
    last: Mutex<(Option<Stamp>, Arc<Found>)>,
}

/// What changes when a file is written or replaced: device, inode, size, time of change.
type Stamp = (u64, u64, u64, SystemTime);

/// A file that was changed this short a time ago may change again within one tick of its clock.
const CLOCK_TICK: Duration = Duration::from_secs(2);

impl Repositories {
    /// The repositories of `config`.
    ///
    /// # Errors
    /// Where there are none, in words for an operator.
    pub(super) fn new(config: &config::Repositories) -> anyhow::Result<Self> {
        use anyhow::Context;
        let mut named = Vec::new();
        for (id, path) in &config.paths {
            let id: RepositoryId = id.parse().with_context(|| format!("repositories.paths: {}", path.display()))?;
            named.push(Repository::new(id, path.clone()));
        }
        // Where the config names repositories, a host without ovs-agent is nothing to talk about.
        let agent_db = config.agent_db.clone().filter(|folder| named.is_empty() || folder.is_dir());
        let repositories = Self { named, agent_db, last: Mutex::default() };
        let found = repositories.found();
        if let Some(problem) = &found.problem
            && repositories.named.is_empty()
        {
            anyhow::bail!("repositories.ovs_agent_db: {problem}; or name repositories in repositories.paths");
        }
        for known in &found.known {
            match &known.repository {
                Ok(repository) => tracing::info!(repository = %repository.mount_point().display(), "repository"),
                Err(problem) => tracing::warn!(repository = known.name, problem, "a repository that cannot be used"),
            }
        }
        Ok(repositories)
    }

    /// The repository `id`, where there is one that can be used.
    pub(super) fn get(&self, id: &RepositoryId) -> Option<Repository> {
        self.found().get(id).cloned()
    }

    /// All of them, as of now.
    pub(super) fn found(&self) -> Arc<Found> {
        let stamp = self.agent_db.as_deref().and_then(stamp);
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let (last_stamp, found) = &*last();
            if stamp.is_some() && stamp == *last_stamp {
                return Arc::clone(found);
            }
        }
        let entries = match &self.agent_db {
            Some(folder) => ovs_agent::repositories(folder).map_err(|error| error.to_string()),
            None => Ok(Vec::new()),
        };
        let mut last = last();
        match entries {
            Ok(entries) => *last = (stamp.filter(|stamp| is_settled(*stamp)), Arc::new(merge(&self.named, entries))),
            Err(problem) => {
                tracing::error!(problem, "ovs-agent's repositories cannot be read: those that are known stay");
                let kept = last.1.known.iter().filter_map(|known| known.entry.clone()).collect();
                let problem = Some(problem);
                *last = (None, Arc::new(Found { problem, ..merge(&self.named, kept) }));
            }
        }
        Arc::clone(&last.1)
    }
}

fn stamp(folder: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(folder.join(ovs_agent::REPOSITORIES)).ok()?;
    Some((metadata.dev(), metadata.ino(), metadata.size(), metadata.modified().ok()?))
}

fn is_settled((.., changed): Stamp) -> bool {
    SystemTime::now().duration_since(changed).is_ok_and(|age| age > CLOCK_TICK)
}

/// Both lists in one. What the config names goes before what ovs-agent says of the same id.
fn merge(named: &[Repository], entries: Vec<RepositoryEntry>) -> Found {
    let mut known: Vec<Known> = named
        .iter()
        .map(|repository| {
            let entry = entries.iter().find(|entry| entry.id == repository.id().as_str()).cloned();
            Known { name: repository.id().to_string(), repository: Ok(repository.clone()), entry }
        })
        .collect();
    for entry in entries {
        if known.iter().all(|known| known.name != entry.id) {
            known.push(Known { name: entry.id.clone(), repository: usable(&entry), entry: Some(entry) });
        }
    }
    known.sort_by(|a, b| a.name.cmp(&b.name));
    Found { known, problem: None }
}

fn usable(entry: &RepositoryEntry) -> Result<Repository, String> {
    if let Some(problem) = &entry.problem {
        return Err(problem.clone());
    }
    let id = entry.id.parse().map_err(|error| format!("{error}"))?;
    let mount_point = entry.mount_point.as_ref().filter(|path| path.is_absolute() && path.parent().is_some());
    let mount_point = mount_point.ok_or("ovs-agent's database names no mount point for it")?;
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
    fn what_the_config_names_goes_before_what_the_agent_says() {
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
    fn an_entry_that_names_no_folder_is_not_used() {
        for odd in [None, Some("relative"), Some("/"), Some("")] {
            assert!(usable(&entry("a", odd)).is_err(), "{odd:?}");
        }
        assert!(usable(&entry("../a", Some("/agent/a"))).is_err());
    }
}
