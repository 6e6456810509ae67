//! When a host of a pool has no such VM or snapshot.
//!
//! Another host sees a new snapshot after about a second. And a host that is not of the pool has none of its snapshots:
//! if its answer counted, the backup would begin again as if they were gone.

use std::time::{Duration, Instant};

use reqwest::Method;

use super::calls::Created;
use super::error::ClientError;
use super::missing::Missing;
use super::server::{Build, Client, Notice};

/// How long a host may not know yet what another has done.
const SETTLING: Duration = Duration::from_secs(3);

impl Client {
    /// Records that the host which was asked does not have what a request names.
    pub(super) fn is_missing(&self, build: Build<'_>) {
        let (host, now) = (self.asked.get(), Instant::now());
        let mut doubt = self.doubt.borrow_mut();
        let Some(what) = self.subject(build) else {
            doubt.0 = None;
            return;
        };
        let missing = match doubt.0.take() {
            Some(missing) if missing.what == what => missing,
            _ => Missing { what, since: now, said_by: Vec::new() },
        };
        let missing = doubt.0.insert(missing);
        missing.said_by.retain(|(other, _)| *other != host);
        missing.said_by.push((host, now));
    }

    /// The error of a request, unless it is a 404 that is not believed yet.
    pub(super) fn doubted(&self, error: ClientError) -> ClientError {
        let mut doubt = self.doubt.borrow_mut();
        let Some(missing) = doubt.0.as_ref().filter(|_| error.status() == Some(404)) else { return error };
        let hosts = self.server.shared.hosts.in_use();
        let is_unanimous = hosts.iter().all(|host| missing.said_by.iter().any(|(said, _)| said == host));
        if is_unanimous && missing.since.elapsed() >= SETTLING.min(self.server.patience()) {
            doubt.0 = None;
            return error;
        }
        ClientError::Unsure(error.to_string())
    }

    /// Ends the doubt when a host answers. The others do not belong to its pool if they had the time to learn it.
    pub(super) fn answered(&self, build: Build<'_>) {
        if self.doubt.borrow().0.is_none() {
            return;
        }
        let what = self.subject(build);
        let Some(missing) = self.doubt.borrow_mut().0.take_if(|missing| Some(&missing.what) == what.as_ref()) else {
            return;
        };
        for (host, last) in missing.said_by {
            if host != self.asked.get() && last - missing.since >= SETTLING {
                self.leave_out(host, &missing.what);
            }
        }
    }

    /// Does not ask `host` again, which lacks what the host has that was asked last.
    fn leave_out(&self, host: usize, what: &str) {
        let shared = &self.server.shared;
        if shared.hosts.leave_out(host) {
            let (host, has) = (shared.hosts.address(host), shared.hosts.address(self.asked.get()));
            (shared.on_notice)(&Notice::NotOfPool { host, has, what });
        }
    }

    /// The end of the patience, with what is known of the hosts.
    pub(super) fn explained(&self, error: ClientError) -> ClientError {
        let shared = &self.server.shared;
        let mut doubt = self.doubt.borrow_mut();
        match (error, doubt.0.take()) {
            (ClientError::GaveUp { waited, last }, Some(missing)) => {
                let has_said = |host: &usize| missing.said_by.iter().any(|(said, _)| said == host);
                let (without, silent): (Vec<_>, Vec<_>) = shared.hosts.in_use().into_iter().partition(has_said);
                if silent.is_empty() {
                    return ClientError::GaveUp { waited, last };
                }
                let list = |hosts: Vec<usize>| {
                    let addresses = hosts.into_iter().map(|host| shared.hosts.address(host).to_string());
                    addresses.collect::<Vec<_>>().join(" and ")
                };
                let text = format!(
                    "{} does not have {}, and {} does not answer: try again when it does. A host that is not of the \
                     same pool must be left out. {last}",
                    list(without),
                    missing.what,
                    list(silent),
                );
                ClientError::GaveUp { waited, last: Box::new(ClientError::Unsure(text)) }
            }
            (error, missing) => {
                doubt.0 = missing;
                error
            }
        }
    }

    /// The snapshots of a VM, as a host lists them that has those which are `expected`, if any host has them. A host that
    /// does not is not asked again.
    ///
    /// # Errors
    /// It is not known whether one is there, because a host does not answer.
    pub fn snapshots_with(&self, vm: &str, expected: &[String]) -> Result<Vec<Created>, ClientError> {
        let listed = self.snapshots(vm)?;
        if !self.is_of_pool() {
            return Ok(listed);
        }
        for snapshot in expected.iter().filter(|id| !has(&listed, id)) {
            let lacking = self.asked.get();
            if !self.has_snapshot(vm, snapshot)? {
                continue;
            }
            let other = self.snapshots(vm)?;
            // Each has one that the other lacks: neither can be followed.
            if expected.iter().any(|id| has(&listed, id) && !has(&other, id)) {
                return Err(ClientError::Unsure(
                    "the hosts list different snapshots of this VM, so they are not of one pool: leave out the wrong one"
                        .to_owned(),
                ));
            }
            if self.asked.get() != lacking {
                self.leave_out(lacking, &named_snapshot(snapshot));
            }
            return Ok(other);
        }
        Ok(listed)
    }

    /// Whether the service has several hosts.
    pub fn is_of_pool(&self) -> bool {
        self.server.shared.hosts.is_pool()
    }

    /// Checks that a host of a pool has the snapshots that are `expected`, if any has them.
    ///
    /// # Errors
    /// As [`Client::snapshots_with`].
    pub fn check_pool(&self, vm: &str, expected: &[String]) -> Result<(), ClientError> {
        if self.is_of_pool() { self.snapshots_with(vm, expected).map(drop) } else { Ok(()) }
    }

    /// The VM or the snapshot that a request is about. None of a deletion: what is gone need not be deleted.
    fn subject(&self, build: Build<'_>) -> Option<String> {
        if !self.is_of_pool() {
            return None;
        }
        let request = build(self.connection(self.asked.get()).ok()?).build().ok()?;
        let (_, path) =
            request.url().path().split_once("/api/v1/vms/").filter(|_| request.method() != Method::DELETE)?;
        match path.split('/').collect::<Vec<_>>()[..] {
            [_, "snapshots", snapshot, ..] => Some(named_snapshot(snapshot)),
            [vm, ..] => Some(format!("the VM {vm}")),
            [] => None,
        }
    }
}

fn has(listed: &[Created], id: &str) -> bool {
    listed.iter().any(|snapshot| snapshot.id == id)
}

fn named_snapshot(id: &str) -> String {
    format!("the snapshot {id}")
}
