//! Limits how many wrong passwords are checked: per address, and per account.
//!
//! Only failures count, so many good log-ins are never refused. When an account has had too many failures, two kinds of
//! log-ins to it are still checked, because otherwise one who guesses would lock out the user: those from addresses that
//! logged in to it before, and the first few from each other address. When an address has had too many, the first few
//! log-ins to each account that logged in from there before are still checked.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::num::NonZero;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use governor::clock::DefaultClock;
use governor::middleware::StateInformationMiddleware;
use governor::state::keyed::DefaultKeyedStateStore;
use governor::{Quota, RateLimiter};

use crate::app::Error;
use crate::app::changeable::Changeable;
use crate::auth::ClientAddress;
use crate::config;

/// Failures per hour that each address has for an account that has had too many, and each account that has logged in
/// from an address that has had too many.
const RESERVED_FAILURES: NonZero<u32> = NonZero::new(3).unwrap();

/// Addresses, accounts or pairs of both whose failures are counted separately.
const MAX_KEYS: usize = 32_768;

/// Further ones share this many counts.
const SHARED_KEYS: u64 = 1024;

/// How often counts are removed at most.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Pairs of address and account that have logged in. With another one, the oldest is forgotten.
const MAX_KNOWN: usize = 10_000;

/// A log-in, as the throttle sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attempt {
    /// `None` behind a proxy that does not name the client. Then no address is limited, and none is known.
    address: Option<u64>,
    account: u64,
    pair: Option<u64>,
}

/// Hashes with a random key, so that no client can choose a name that counts as another.
pub(super) struct Throttle {
    hasher: RandomState,
    limits: Changeable<Limits>,
    pairs: Failures,
    /// Pairs that have logged in → when.
    known: Mutex<HashMap<u64, Instant>>,
}

/// `None`: no limit.
struct Limits {
    config: config::Login,
    addresses: Option<Failures>,
    accounts: Option<Failures>,
}

impl Limits {
    fn new(config: config::Login) -> Self {
        let (addresses, accounts) = (config.failures_per_address, config.failures_per_account);
        Self { config, addresses: addresses.map(Failures::new), accounts: accounts.map(Failures::new) }
    }
}

impl Throttle {
    pub(super) fn new(config: config::Login) -> Self {
        Self {
            hasher: RandomState::new(),
            limits: Changeable::new(Limits::new(config)),
            pairs: Failures::new(RESERVED_FAILURES),
            known: Mutex::default(),
        }
    }

    /// Replaces the limits. If they differ, the failures so far are forgotten.
    pub(super) fn set_limits(&self, config: config::Login) {
        if self.limits.get().config != config {
            self.limits.set(Limits::new(config));
        }
    }

    /// The manager may take upper and lower case as the same name.
    pub(super) fn attempt(&self, origin: Option<ClientAddress>, user: &str) -> Attempt {
        let account = self.hasher.hash_one(user.trim().to_lowercase());
        let address = origin.map(|origin| self.hasher.hash_one(origin.origin()));
        Attempt { address, account, pair: address.map(|address| self.hasher.hash_one((address, account))) }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the account was logged in to from this address before.
    pub(super) fn knows(&self, attempt: &Attempt) -> bool {
        attempt.pair.is_some_and(|pair| self.known().contains_key(&pair))
    }

    /// Whether the manager may be asked.
    ///
    /// # Errors
    /// [`Error::TooManyFailures`].
    pub(super) fn check(&self, attempt: &Attempt) -> Result<(), Error> {
        let refused = |wait: Duration, of_account| {
            let retry_after = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
            Err(Error::TooManyFailures { of_account, retry_after: retry_after.max(1) })
        };
        let is_known = self.knows(attempt);
        // How long the pair has to wait, if it has used up its reserve.
        let reserve = attempt.pair.map(|pair| self.pairs.wait(pair));
        let limits = self.limits.get();
        let address = limits.addresses.as_ref().zip(attempt.address).and_then(|(limit, key)| limit.wait(key));
        if let Some(wait) = address {
            match reserve {
                Some(None) if is_known => {}
                Some(Some(own)) if is_known => return refused(wait.min(own), false),
                _ => return refused(wait, false),
            }
        }
        let Some(wait) = limits.accounts.as_ref().and_then(|limit| limit.wait(attempt.account)) else { return Ok(()) };
        match reserve {
            _ if is_known => Ok(()),
            Some(None) => Ok(()),
            Some(Some(own)) => refused(wait.min(own), true),
            None => refused(wait, true),
        }
    }

    /// The manager accepts the password.
    pub(super) fn succeeded(&self, attempt: &Attempt) {
        let Some(pair) = attempt.pair else { return };
        let mut known = self.known();
        if known.len() >= MAX_KNOWN && !known.contains_key(&pair) {
            let oldest = known.iter().min_by_key(|(_, at)| **at).map(|(pair, _)| *pair);
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(pair, Instant::now());
    }

    /// The manager refuses the password.
    pub(super) fn failed(&self, attempt: &Attempt) {
        let limits = self.limits.get();
        if let Some((limit, key)) = limits.addresses.as_ref().zip(attempt.address) {
            limit.add(key);
        }
        if let Some(limit) = &limits.accounts {
            limit.add(attempt.account);
        }
        attempt.pair.inspect(|pair| self.pairs.add(*pair));
    }
}

/// Counts failures by key.
struct Failures {
    limiter: RateLimiter<u64, DefaultKeyedStateStore<u64>, DefaultClock, StateInformationMiddleware>,
    /// The time in which one failure is forgotten.
    interval: Duration,
    /// Keys that have used up their failures, and until when. All of them are in `limiter` too.
    exhausted: Mutex<HashMap<u64, Instant>>,
    /// When forgotten failures were last removed.
    swept: Mutex<Option<Instant>>,
}

impl Failures {
    fn new(per_hour: NonZero<u32>) -> Self {
        let quota = Quota::per_hour(per_hour);
        Self {
            limiter: RateLimiter::hashmap(quota).with_middleware(),
            interval: quota.replenish_interval(),
            exhausted: Mutex::default(),
            swept: Mutex::default(),
        }
    }

    /// Removes forgotten failures. If there are none, a client should not make the service look again at once.
    fn sweep(&self, now: Instant) {
        let mut swept = self.swept.lock().unwrap_or_else(PoisonError::into_inner);
        if swept.is_none_or(|last| now.duration_since(last) >= SWEEP_INTERVAL) {
            self.limiter.retain_recent();
            self.exhausted().retain(|_, until| *until > now);
            *swept = Some(now);
        }
    }

    fn exhausted(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.exhausted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long a key has to wait, if it has used up its failures.
    fn wait(&self, key: u64) -> Option<Duration> {
        let now = Instant::now();
        let exhausted = self.exhausted();
        let until = [key, key % SHARED_KEYS].into_iter().filter_map(|key| exhausted.get(&key)).max()?;
        Some(until.saturating_duration_since(now)).filter(|wait| !wait.is_zero())
    }

    fn add(&self, key: u64) {
        let now = Instant::now();
        if self.limiter.len() >= MAX_KEYS {
            self.sweep(now);
        }
        let key = if self.limiter.len() < MAX_KEYS { key } else { key % SHARED_KEYS };
        // Requests that ran at the same time may exceed the limit by a few failures.
        let until = match self.limiter.check_key(&key) {
            Ok(state) if state.remaining_burst_capacity() > 0 => return,
            Ok(_) => now + self.interval,
            Err(not_until) => not_until.earliest_possible(),
        };
        self.exhausted().insert(key, until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn throttle(per_address: u32, per_account: u32) -> Throttle {
        Throttle::new(config::Login {
            failures_per_address: NonZero::new(per_address),
            failures_per_account: NonZero::new(per_account),
        })
    }

    fn ip(last: u8) -> Option<ClientAddress> {
        Some(ClientAddress::Ip([10, 0, 0, last].into()))
    }

    fn fail(throttle: &Throttle, address: Option<ClientAddress>, user: &str, times: usize) {
        (0..times).for_each(|_| throttle.failed(&throttle.attempt(address, user)));
    }

    /// The seconds to wait, if the log-in is refused, and whether because of the account.
    fn refusal(throttle: &Throttle, address: Option<ClientAddress>, user: &str) -> Option<(u64, bool)> {
        match throttle.check(&throttle.attempt(address, user)) {
            Ok(()) => None,
            Err(Error::TooManyFailures { of_account, retry_after }) => Some((retry_after, of_account)),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn an_address_is_refused_after_its_failures_and_others_are_not() {
        let throttle = throttle(5, 100);
        (0..5).for_each(|n| fail(&throttle, ip(1), &format!("user{n}"), 1));
        let (seconds, of_account) = refusal(&throttle, ip(1), "admin").unwrap();
        assert!(!of_account && (700..=720).contains(&seconds), "{seconds}");
        assert_eq!(refusal(&throttle, ip(2), "admin"), None);
        assert_eq!(refusal(&throttle, ip(2), "user1"), None);
        // An account that has logged in from there has a few guesses of its own.
        throttle.succeeded(&throttle.attempt(ip(1), "admin"));
        assert_eq!(refusal(&throttle, ip(1), "admin"), None);
        fail(&throttle, ip(1), "admin", 3);
        assert!(refusal(&throttle, ip(1), "admin").is_some_and(|(_, of_account)| !of_account));
        // The addresses of an IPv6 network count as one.
        let v6 =
            |last: u16| Some(ClientAddress::Ip(std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, last).into()));
        (0..5).for_each(|n| fail(&throttle, v6(n), "admin", 1));
        assert!(refusal(&throttle, v6(77), "admin").is_some());
    }

    #[test]
    fn guesses_at_an_account_do_not_lock_out_its_user() {
        let throttle = throttle(100, 10);
        throttle.succeeded(&throttle.attempt(ip(9), "admin"));
        // Upper and lower case count as one account.
        (1..=4).for_each(|address| fail(&throttle, ip(address), "Admin ", 4));
        for address in 1..=4 {
            let (seconds, of_account) = refusal(&throttle, ip(address), "admin").unwrap();
            assert!(of_account && (300..=2160).contains(&seconds), "{seconds}");
            assert_eq!(refusal(&throttle, ip(address), "other"), None);
        }
        // An address that logged in before, and one that has not failed yet.
        assert_eq!(refusal(&throttle, ip(9), "ADMIN"), None);
        assert_eq!(refusal(&throttle, ip(5), "admin"), None);
        fail(&throttle, ip(5), "admin", 3);
        assert!(refusal(&throttle, ip(5), "admin").is_some());
        fail(&throttle, ip(9), "admin", 50);
        assert_eq!(refusal(&throttle, ip(9), "admin"), None);
        // Behind a proxy that names no client.
        assert!(refusal(&throttle, None, "admin").is_some());
    }

    #[test]
    fn good_log_ins_and_limits_of_0_refuse_nothing() {
        let limited = throttle(1, 1);
        (0..1000).for_each(|_| limited.succeeded(&limited.attempt(ip(1), "admin")));
        assert_eq!(refusal(&limited, ip(1), "admin"), None);
        let unlimited = throttle(0, 0);
        fail(&unlimited, ip(1), "admin", 1000);
        assert_eq!(refusal(&unlimited, ip(1), "admin"), None);
    }

    #[test]
    fn memory_is_bounded_and_further_keys_are_limited_too() {
        let failures = Failures::new(NonZero::new(2).unwrap());
        let key = |n: usize| (n as u64) << 32 | 7 << 20;
        (1..3 * MAX_KEYS).for_each(|n| failures.add(key(n)));
        assert!(failures.limiter.len() <= MAX_KEYS + SHARED_KEYS as usize, "{}", failures.limiter.len());
        assert!(failures.exhausted().len() <= MAX_KEYS + SHARED_KEYS as usize);
        assert!(failures.wait(key(10 * MAX_KEYS)).is_some(), "a shared count is used up");
        let throttle = throttle(10, 10);
        for n in 0..MAX_KNOWN + 100 {
            throttle.succeeded(&throttle.attempt(ip(1), &n.to_string()));
        }
        assert_eq!(throttle.known().len(), MAX_KNOWN);
        assert!(throttle.knows(&throttle.attempt(ip(1), &(MAX_KNOWN + 99).to_string())));
        assert!(!throttle.knows(&throttle.attempt(ip(1), "0")));
    }
}
