//! The passwords with which the manager is asked again about a user (`jwt.recheck_after`).
//!
//! The manager knows no other question, so the passwords are kept in memory, and nowhere else. A user whose password is
//! not there, as after a restart, has to log in again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use secrecy::ExposeSecret;

use super::revocations::now;
use crate::app::Error;
use crate::auth::Credentials;
use crate::model::FoldedName;
use crate::store::MAX_RENEWABLE_OF_USER;

/// Log-ins whose passwords are kept. With another one, the one that ends first has to log in again.
const MAX_KEPT: usize = 10_000;

/// The same for the log-ins of one user.
const MAX_KEPT_OF_USER: usize = MAX_RENEWABLE_OF_USER;

/// How long the manager is not asked again after it could not answer. Otherwise each of many requests would wait for it
/// until its timeout, one after the other.
const PAUSE: Duration = Duration::from_secs(5);

pub(super) struct Rechecks {
    /// How long a check is good.
    after: Duration,
    kept: Mutex<HashMap<u128, Arc<Kept>>>,
    /// When the manager could not answer, and why, if that was the last that it did.
    failed: Mutex<Option<(Instant, String)>>,
}

pub(super) struct Kept {
    pub credentials: Credentials,
    user: FoldedName,
    checked: Mutex<Instant>,
    /// Held while the manager is asked, so that the requests of one user ask one after the other. With an old password in
    /// many log-ins, the manager would otherwise lock the account.
    pub asking: Arc<tokio::sync::Mutex<()>>,
    /// Milliseconds since 1970.
    issued_ms: u64,
    /// Seconds since 1970.
    pub ends: u64,
}

impl Rechecks {
    pub(super) fn new(after: Duration) -> Self {
        Self { after, kept: Mutex::default(), failed: Mutex::default() }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<u128, Arc<Kept>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the password of a log-in, which was just checked.
    pub(super) fn keep(&self, log_in: u128, credentials: Credentials, issued_ms: u64, ends: u64) {
        let (mut kept, now, user) = (self.kept(), now(), FoldedName::new(&credentials.username));
        kept.retain(|_, kept| kept.ends > now);
        let of_user = kept.iter().filter(|(_, kept)| kept.user == user).map(|(id, kept)| (kept.ends, *id));
        let of_user: Vec<_> = of_user.collect();
        let asking = of_user.first().and_then(|(_, id)| kept.get(id)).map(|kept| Arc::clone(&kept.asking));
        if of_user.len() >= MAX_KEPT_OF_USER {
            of_user.iter().min().and_then(|(_, id)| kept.remove(id));
        } else if kept.len() >= MAX_KEPT {
            let first = kept.iter().min_by_key(|(_, kept)| kept.ends).map(|(id, _)| *id);
            first.and_then(|first| kept.remove(&first));
        }
        let (checked, asking) = (Mutex::new(Instant::now()), asking.unwrap_or_default());
        kept.insert(log_in, Arc::new(Kept { credentials, user, checked, asking, issued_ms, ends }));
    }

    pub(super) fn find(&self, log_in: u128) -> Option<Arc<Kept>> {
        self.kept().get(&log_in).cloned()
    }

    pub(super) fn forget(&self, log_in: u128) {
        self.kept().remove(&log_in);
    }

    /// Forgets the log-ins of a user, or of all, until this time, milliseconds since 1970.
    pub(super) fn forget_until(&self, user: Option<&str>, before_ms: u64) {
        let user = user.map(FoldedName::new);
        let is_other = |kept: &Kept| user.as_ref().is_some_and(|user| kept.user != *user);
        self.kept().retain(|_, kept| is_other(kept) || kept.issued_ms > before_ms);
    }

    pub(super) fn is_due(&self, kept: &Kept) -> bool {
        kept.checked.lock().unwrap_or_else(PoisonError::into_inner).elapsed() >= self.after
    }

    /// The manager accepts this password of the user.
    pub(super) fn accepted(&self, one: &Kept) {
        for kept in self.kept().values().filter(|kept| kept.is_same(one)) {
            *kept.checked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        }
    }

    /// Forgets the log-ins of the user with this password, which the manager refuses; returns them.
    pub(super) fn refused(&self, one: &Kept) -> Vec<(u128, Arc<Kept>)> {
        self.kept().extract_if(|_, kept| kept.is_same(one)).collect()
    }

    /// Whether the manager may be asked.
    ///
    /// # Errors
    /// [`Error::ManagerUnavailable`] if it could not answer a moment ago.
    pub(super) fn check_pause(&self) -> Result<(), Error> {
        match &*self.failed.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((at, cause)) if at.elapsed() < PAUSE => Err(Error::ManagerUnavailable(cause.clone())),
            _ => Ok(()),
        }
    }

    pub(super) fn answered<T>(&self, outcome: &Result<T, Error>) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = match outcome {
            Err(Error::ManagerUnavailable(cause)) => Some((Instant::now(), cause.clone())),
            _ => None,
        };
    }
}

impl Kept {
    fn is_same(&self, other: &Self) -> bool {
        let [one, another] = [self, other].map(|kept| kept.credentials.password.expose_secret());
        self.user == other.user && one == another
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keep(rechecks: &Rechecks, log_in: u128, user: &str, password: &str, issued_ms: u64, ends: u64) {
        let credentials = Credentials { username: user.to_owned(), password: password.into() };
        rechecks.keep(log_in, credentials, issued_ms, ends);
    }

    #[test]
    fn one_user_does_not_displace_the_log_ins_of_others() {
        let (rechecks, ends) = (Rechecks::new(Duration::ZERO), now() + 3600);
        keep(&rechecks, 1, "bob", "old", 1, now() + 60);
        for log_in in 0..MAX_KEPT_OF_USER as u128 + 3 {
            keep(&rechecks, 100 + log_in, ["ann", "ANN"][log_in as usize % 2], "old", 1, ends + log_in as u64);
        }
        assert_eq!(rechecks.kept().len(), MAX_KEPT_OF_USER + 1);
        assert!(rechecks.find(1).is_some() && rechecks.find(102).is_none() && rechecks.find(103).is_some());
        // One that has ended is removed with the next log-in.
        keep(&rechecks, 2, "carl", "x", 1, now());
        keep(&rechecks, 3, "carl", "x", 1, ends);
        assert!(rechecks.find(2).is_none() && rechecks.find(3).is_some());
    }

    #[test]
    fn passwords_are_forgotten_until_a_time_and_a_refused_one_in_all_log_ins_of_the_user() {
        let (rechecks, ends) = (Rechecks::new(Duration::ZERO), now() + 3600);
        let log_ins = [(1, "ann", "old", 5), (2, "Ann", "old", 6), (3, "ann", "new", 7), (4, "bob", "old", 6)];
        for (id, user, password, issued_ms) in log_ins {
            keep(&rechecks, id, user, password, issued_ms, ends);
        }
        let known = || [1, 2, 3, 4].map(|id| rechecks.find(id).is_some());
        rechecks.forget_until(Some("ANN"), 5);
        assert_eq!(known(), [false, true, true, true]);
        keep(&rechecks, 1, "ann", "old", 5, ends);
        let one = rechecks.find(2).unwrap();
        assert!(Arc::ptr_eq(&one.asking, &rechecks.find(3).unwrap().asking));
        assert!(!Arc::ptr_eq(&one.asking, &rechecks.find(4).unwrap().asking));
        let mut refused: Vec<_> = rechecks.refused(&one).iter().map(|(id, _)| *id).collect();
        refused.sort_unstable();
        assert_eq!((refused, known()), (vec![1, 2], [false, false, true, true]));
        rechecks.forget_until(None, 6);
        assert_eq!(known(), [false, false, true, false]);
    }

    #[test]
    fn after_an_outage_the_manager_is_not_asked_for_a_while() {
        let rechecks = Rechecks::new(Duration::ZERO);
        rechecks.answered(&Err::<(), _>(Error::ManagerUnavailable("no route".to_owned())));
        assert!(matches!(rechecks.check_pause(), Err(Error::ManagerUnavailable(cause)) if cause == "no route"));
        rechecks.answered(&Err::<(), _>(Error::BadCredentials));
        assert!(rechecks.check_pause().is_ok());
    }
}
