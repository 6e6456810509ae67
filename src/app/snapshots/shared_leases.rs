//! Keeps the leases in the database as they are in the repositories, where all exporters write them.

use std::time::{Duration, Instant};

use super::watched::Watched;
use crate::app::Error;
use crate::app::common::Common;
use crate::model::Lease;
use crate::repository::Repository;
use crate::repository::executor::JobKind;
use crate::repository::leases::{self, Leases};
use crate::store::Store;

/// How long the file of a lease that has ended is kept.
const ENDED: Duration = Duration::from_secs(7 * 24 * 3600);

/// The leases of a repository at the last look.
#[derive(Default)]
pub(super) struct SeenLeases {
    folder: Watched,
    all: Vec<Lease>,
}

pub(super) struct SharedLeases {
    store: Store,
}

impl SharedLeases {
    pub fn new(common: &Common) -> Self {
        Self { store: common.store.clone() }
    }

    /// Takes the leases in the repository into the database. `is_forced`: reads them in any case. At the first look since
    /// the repositories are shared, writes the leases that only the database has.
    ///
    /// # Errors
    /// [`Error::Unavailable`], [`Error::Io`], [`Error::Store`].
    pub fn take(
        &self,
        repository: &Repository,
        seen: &mut SeenLeases,
        (now, is_forced): (Instant, bool),
    ) -> Result<(), Error> {
        let retentions = self.store.retentions();
        if seen.folder.is_new() && !retentions.are_shared(repository.id())? {
            self.publish(repository)?;
            retentions.set_shared(repository.id())?;
        }
        let known = seen.folder.settled().filter(|_| !is_forced);
        let read = repository.run(JobKind::SHORT, move |access, root| leases::read(root, known, &|| access.progress()));
        let Some(Leases { version, mut all }) = read.map_err(|error| Error::of_step("reading the leases", error))?
        else {
            return Ok(());
        };
        all.sort_by(|a, b| (a.snapshot, &a.user).cmp(&(b.snapshot, &b.user)));
        if seen.folder.is_new() || seen.all != all {
            retentions.replace_leases(repository.id(), &all)?;
        }
        seen.folder.see(version, now);
        self.remove_ended(repository, &all);
        seen.all = all;
        Ok(())
    }

    /// Writes the leases on the snapshots of a repository that only the database has.
    fn publish(&self, repository: &Repository) -> Result<(), Error> {
        let mut leases = Vec::new();
        for lease in self.store.retentions().all_leases()? {
            let Some(of) = self.store.snapshot(lease.snapshot)? else { continue };
            let is_there = of.repositories().first() == Some(&repository.id());
            leases.extend(Some(lease).filter(|lease| is_there && lease.until > jiff::Timestamp::now()));
        }
        let checked = repository.clone();
        let written = repository.run(JobKind::CHANGE, move |access, root| {
            checked.mounted_now(access)?;
            let read = leases::read(root, None, &|| access.progress())?;
            let known: Vec<_> = read.into_iter().flat_map(|leases| leases.all).collect();
            let is_known = |lease: &Lease| {
                known.iter().any(|other| (other.snapshot, &other.user) == (lease.snapshot, &lease.user))
            };
            leases.iter().filter(|lease| !is_known(lease)).try_for_each(|lease| {
                access.progress();
                leases::put(root, lease)
            })
        });
        written.map_err(|error| Error::of_step("writing the leases", error))
    }

    /// Removes the files of leases that ended long ago, also by the clocks of other hosts.
    fn remove_ended(&self, repository: &Repository, all: &[Lease]) {
        let before = jiff::Timestamp::now() - ENDED;
        let ended: Vec<_> = all.iter().filter(|lease| lease.until < before).cloned().collect();
        if ended.is_empty() {
            return;
        }
        let removed = repository.run(JobKind::CHANGE, move |access, root| {
            ended.iter().try_for_each(|lease| {
                access.progress();
                leases::remove(root, lease.snapshot, &lease.user)
            })
        });
        if let Err(error) = removed {
            tracing::warn!(repository = %repository.id(), %error, "cannot remove the files of leases that have ended");
        }
    }
}
