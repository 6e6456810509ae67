//! The hosts of a pool. They serve the same snapshots, so a request that one does not answer goes to another.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::address::Address;
use super::credentials::TokenCache;
use super::error::ClientError;

/// How long a host that failed is not preferred to others.
const AVOIDED: Duration = Duration::from_secs(60);

/// A host of a pool, or the only one.
pub struct Host {
    pub address: Address,
    pub token_cache: Option<TokenCache>,
}

/// All hosts, and what is known of them. At least one.
pub(super) struct Hosts {
    hosts: Vec<Host>,
    health: Mutex<Vec<Health>>,
}

#[derive(Clone, Default)]
struct Health {
    /// When a request last went elsewhere because of an answer of this host, or because there was none.
    left_at: Option<Instant>,
    /// As `left_at`, and it has not answered since.
    failed_at: Option<Instant>,
    /// It is not asked again: another attempt would not help.
    is_out: bool,
    /// The user knows that it has failed.
    is_told: bool,
}

/// Where a request goes next.
pub(super) enum Next {
    /// To another host. `is_news`: for the first time because of this one.
    Other { host: usize, is_news: bool },
    /// There is no other.
    None,
}

impl Hosts {
    pub fn new(hosts: Vec<Host>) -> Self {
        let health = Mutex::new(vec![Health::default(); hosts.len()]);
        Self { hosts, health }
    }

    pub fn all(&self) -> &[Host] {
        &self.hosts
    }

    pub fn is_pool(&self) -> bool {
        self.hosts.len() > 1
    }

    pub fn address(&self, host: usize) -> &Address {
        &self.hosts[host].address
    }

    fn health(&self) -> MutexGuard<'_, Vec<Health>> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The hosts that are asked.
    pub fn in_use(&self) -> Vec<usize> {
        let health = self.health();
        (0..self.hosts.len()).filter(|host| !health[*host].is_out).collect()
    }

    /// Whether it may be preferred to others.
    pub fn is_well(&self, host: usize) -> bool {
        let health = &self.health()[host];
        !health.is_out && health.failed_at.is_none_or(|at| at.elapsed() >= AVOIDED)
    }

    /// The host to ask: `current`, unless that is not asked any more.
    pub fn chosen(&self, current: &AtomicUsize) -> usize {
        let chosen = current.load(Ordering::Relaxed);
        let health = self.health();
        let other = || health.iter().position(|health| !health.is_out);
        let host = if health[chosen].is_out { other().unwrap_or(chosen) } else { chosen };
        current.store(host, Ordering::Relaxed);
        host
    }

    pub fn answered(&self, host: usize) {
        if self.is_pool() {
            self.health()[host].failed_at = None;
        }
    }

    /// Stops asking a host. Returns whether it was asked until now.
    pub fn leave_out(&self, host: usize) -> bool {
        !std::mem::replace(&mut self.health()[host].is_out, true)
    }

    /// Chooses another host after `error` of `host`, which `current` may have replaced already: the one that a request
    /// went away from longest ago.
    pub fn go_on(&self, current: &AtomicUsize, host: usize, error: &ClientError) -> Next {
        let reason = Reason::of(error);
        if !self.is_pool() || reason == Reason::Request {
            return Next::None;
        }
        let mut health = self.health();
        let now = Instant::now();
        health[host].left_at = Some(now);
        match reason {
            Reason::Lasting => health[host].is_out = true,
            Reason::Passing => health[host].failed_at = Some(now),
            Reason::Request | Reason::Unsure => {}
        }
        let is_news = reason != Reason::Unsure && !std::mem::replace(&mut health[host].is_told, true);
        let chosen = current.load(Ordering::Relaxed);
        let mut others = (1..self.hosts.len()).map(|step| (host + step) % self.hosts.len());
        let other = if chosen != host && !health[chosen].is_out {
            Some(chosen)
        } else {
            let others = others.by_ref().filter(|other| !health[*other].is_out);
            others.min_by_key(|other| health[*other].left_at)
        };
        let Some(other) = other else { return Next::None };
        current.store(other, Ordering::Relaxed);
        Next::Other { host: other, is_news }
    }
}

/// What an error says about the host.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason {
    /// Nothing: every host would answer like this.
    Request,
    /// It may succeed later.
    Passing,
    /// It will not: its certificate is not the right one, or it does not accept the credentials.
    Lasting,
    /// Another host may know better.
    Unsure,
}

impl Reason {
    fn of(error: &ClientError) -> Self {
        match error {
            ClientError::Unsure(_) => Self::Unsure,
            ClientError::Setup(_) => Self::Lasting,
            _ if error.status() == Some(401) => Self::Lasting,
            // The limits are for users. They would not hold if each host were asked.
            _ if error.status() == Some(429) => Self::Request,
            ClientError::GaveUp { .. } => Self::Request,
            _ if error.is_transient() => Self::Passing,
            _ => Self::Request,
        }
    }
}
