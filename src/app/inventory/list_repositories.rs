//! The list of repositories, with what is mounted at each.

use super::repositories::RepositoryState;
use crate::api;
use crate::repository::{CloneSupport, Mounted, Repository, Unclonable};

/// The entry of one repository. If it is unusable, the entry has the reason.
pub(super) fn describe(
    clone_support: &CloneSupport,
    known: &RepositoryState,
    mounted: Result<(&Repository, Mounted), String>,
) -> api::Repository {
    let entry = known.entry.as_ref();
    let mut listed = api::Repository {
        id: known.name.clone(),
        alias: entry.and_then(|entry| entry.alias.clone()),
        mount_point: entry.and_then(|entry| entry.mount_point.as_ref()).map(|path| path.display().to_string()),
        filesystem: None,
        manager_uuid: entry.and_then(|entry| entry.manager_uuid.clone()),
        version: entry.and_then(|entry| entry.version.clone()),
        reflink: false,
        total_bytes: None,
        free_bytes: None,
        status: api::Status::Error,
        reason: None,
    };
    if let Ok(repository) = &known.repository {
        listed.mount_point = Some(repository.mount_point().display().to_string());
    }
    match mounted {
        Ok((repository, mounted)) => {
            let claimed = entry.and_then(|entry| entry.filesystem.as_deref());
            describe_mount(clone_support, repository, mounted, claimed, &mut listed);
        }
        Err(reason) => listed.reason = Some(reason),
    }
    listed
}

fn describe_mount(
    clone_support: &CloneSupport,
    repository: &Repository,
    mounted: Mounted,
    claimed: Option<&str>,
    listed: &mut api::Repository,
) {
    let support = clone_support.of(repository.mount_point());
    listed.reflink = support.is_ok();
    let mismatch = claimed.filter(|claimed| *claimed != mounted.file_system);
    let mismatch =
        mismatch.map(|claimed| format!("ovs-agent's database says {claimed}, but {} is mounted", mounted.file_system));
    let is_good = mismatch.is_none() && !matches!(support, Err(Unclonable::NotNow(_) | Unclonable::LocalLocks(_)));
    listed.status = if is_good { api::Status::Ok } else { api::Status::Error };
    listed.reason = mismatch.or_else(|| support.err().map(|reason| reason.to_string()));
    listed.filesystem = Some(mounted.file_system);
    listed.total_bytes = Some(mounted.space.total);
    listed.free_bytes = Some(mounted.space.free);
}
