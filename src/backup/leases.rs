//! Keeps snapshots from expiring while they are read.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::client::Client;

/// Longer than the client may read its own disks between two requests. If it is killed, the lease ends by itself.
const TTL: Duration = Duration::from_secs(24 * 3600);
const RENEWAL: Duration = Duration::from_secs(3600);

/// Leases on snapshots of one VM.
pub struct Leases {
    vm: String,
    snapshots: Vec<String>,
    due: Mutex<Instant>,
}

impl Leases {
    /// None if the service has no leases.
    pub fn none() -> Self {
        Self { vm: String::new(), snapshots: Vec::new(), due: Mutex::new(Instant::now()) }
    }

    /// Takes a lease on each snapshot.
    pub fn take(client: &Client, vm: &str, snapshots: Vec<String>) -> Self {
        let leases = Self { vm: vm.to_owned(), snapshots, due: Mutex::new(Instant::now()) };
        leases.renew_if_due(client);
        leases
    }

    /// A lease that cannot be had is no reason to stop: without it the snapshot may still be there.
    pub fn renew_if_due(&self, client: &Client) {
        {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            if self.snapshots.is_empty() || *due > Instant::now() {
                return;
            }
            *due = Instant::now() + RENEWAL;
        }
        for snapshot in &self.snapshots {
            if let Err(error) = client.lease(&self.vm, snapshot, TTL) {
                tracing::warn!(%error, snapshot, "cannot lease the snapshot");
            }
        }
    }

    pub fn end(self, client: &Client) {
        for snapshot in &self.snapshots {
            if let Err(error) = client.end_lease(&self.vm, snapshot) {
                tracing::debug!(%error, snapshot, "cannot end the lease");
            }
        }
    }
}
