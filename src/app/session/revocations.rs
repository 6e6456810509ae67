//! Which tokens are revoked. Each request asks, so the answer is in memory; the database keeps it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::auth::{CheckedToken, Proof};
use crate::model::FoldedName;
use crate::store::{Clock, Renewal, Revocation, RevokedTokens, Store, StoreError};

pub(super) struct Revocations {
    store: Store,
    known: RwLock<RevokedTokens>,
    /// Grows with each change.
    revision: AtomicU64,
    /// The latest time, milliseconds since 1970, of a token that was issued or checked. It may be ahead of the clock, if
    /// that was set back. Tokens of such times are revoked too.
    latest: AtomicU64,
    /// Until this time, milliseconds since 1970, the database already knows of the tokens.
    kept_until: AtomicU64,
    /// Held from a change in the database to the same change in memory.
    change: Mutex<()>,
}

/// The shortest time between two writes of the latest issue time to the database, milliseconds. A write waits for the disk.
const KEEP_EVERY_MS: u64 = 60_000;

/// Milliseconds since 1970.
pub(super) fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    now_ms() / 1000
}

impl Revocations {
    /// # Errors
    /// The database cannot be read: then it is unknown what is revoked.
    pub(super) fn new(store: Store) -> Result<Self, StoreError> {
        let known = RwLock::new(store.sessions().revoked(now())?);
        let (revision, latest) = (AtomicU64::new(0), AtomicU64::new(store.sessions().newest()?));
        let (kept_until, change) = (AtomicU64::default(), Mutex::default());
        Ok(Self { store, known, revision, latest, kept_until, change })
    }

    /// A token that was not revoked at this revision is not revoked while it stays the same.
    pub(super) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn includes(&self, token: &CheckedToken) -> bool {
        self.latest.fetch_max(token.issued_ms(), Ordering::AcqRel);
        let proof = Proof { made_ms: token.issued_ms(), log_in: Some(token.log_in()) };
        self.includes_proof(token.user(), proof)
    }

    pub(super) fn includes_proof(&self, user: &str, Proof { made_ms, log_in }: Proof) -> bool {
        let has_log_in =
            |log_in| self.known.read().unwrap_or_else(PoisonError::into_inner).log_ins.contains_key(&log_in);
        self.includes_all_until(user, made_ms) || log_in.is_some_and(has_log_in)
    }

    /// Whether what the user got at this time, milliseconds since 1970, is revoked: a token or a ticket.
    pub(super) fn includes_all_until(&self, user: &str, at_ms: u64) -> bool {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        // 0: nothing is revoked.
        let is_before = |before: u64| before > 0 && at_ms <= before;
        is_before(known.all) || known.users.get(&FoldedName::new(user)).is_some_and(|before| is_before(*before))
    }

    /// The number of log-ins and users with revoked tokens.
    pub(super) fn count(&self) -> usize {
        let (known, now) = (self.known.read().unwrap_or_else(PoisonError::into_inner), now());
        known.log_ins.values().filter(|until| **until > now).count() + known.users.len()
    }

    /// When a new token of the user is issued, milliseconds since 1970: after all that is revoked, even if the clock was
    /// set back since.
    pub(super) fn issue(&self, user: &str) -> u64 {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let before = known.users.get(&FoldedName::new(user)).copied().unwrap_or_default().max(known.all);
        let at = now_ms().max(before.saturating_add(1));
        self.latest.fetch_max(at, Ordering::AcqRel);
        at
    }

    /// The time to keep with [`SessionTables::set_issued`](crate::store::SessionTables::set_issued) for a token that was
    /// issued at this time. It is ahead, so that it is good for the tokens of the next minute too. `None`: that was done,
    /// or has failed, less than a minute ago.
    pub(super) fn due_to_keep(&self, issued_ms: u64) -> Option<u64> {
        let next = issued_ms.saturating_add(KEEP_EVERY_MS);
        let is_due = |until| (issued_ms > until).then_some(next);
        self.kept_until.fetch_update(Ordering::AcqRel, Ordering::Acquire, is_due).is_ok().then_some(next)
    }

    /// The latest time that a token can have been issued at.
    pub(super) fn latest(&self) -> u64 {
        self.latest.load(Ordering::Acquire).max(now_ms())
    }

    fn clock(&self) -> Clock {
        Clock { now: now(), latest_ms: self.latest() }
    }

    /// As [`SessionTables::revoke`](crate::store::SessionTables::revoke). When this returns, the revocation is on stable
    /// storage and in effect.
    pub(super) fn revoke(&self, revocation: Revocation<'_>) -> Result<Option<usize>, StoreError> {
        let _guard = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = self.store.sessions().revoke(revocation, self.clock())?;
        self.read()?;
        Ok(ended)
    }

    /// As [`SessionTables::renew`](crate::store::SessionTables::renew), which may revoke the log-in.
    pub(super) fn renew(&self, id: u128, used: [u8; 32], new: [u8; 32]) -> Result<Renewal, StoreError> {
        let _guard = self.change.lock().unwrap_or_else(PoisonError::into_inner);
        let renewal = self.store.sessions().renew(id, used, new, self.clock())?;
        if matches!(renewal, Renewal::Reused { .. }) {
            self.read()?;
        }
        Ok(renewal)
    }

    /// Reads what is revoked from the database.
    fn read(&self) -> Result<(), StoreError> {
        let revoked = self.store.sessions().revoked(now())?;
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = revoked;
        self.revision.fetch_add(1, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_revoked_by_its_time_or_its_log_in_under_each_spelling_of_the_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let revocations = Revocations::new(store).unwrap();
        let made_ms = revocations.issue("ANN");
        let proof = Proof { made_ms, log_in: Some(7) };
        assert!(!revocations.includes_proof("ANN", proof));
        revocations.revoke(Revocation::LogIn { id: 7, user: "ANN", until: u64::MAX }).unwrap();
        assert!(revocations.includes_proof("ANN", proof));
        let ticket = Proof { made_ms, log_in: None };
        assert!(!revocations.includes_proof("ANN", ticket));
        revocations.revoke(Revocation::Before { user: Some("ann"), before_ms: made_ms }).unwrap();
        assert!(revocations.includes_proof("ANN", ticket) && !revocations.includes_proof("bob", ticket));
        let newer = Proof { made_ms: revocations.issue(" Ann"), log_in: None };
        assert!(!revocations.includes_proof("ann", newer), "a new token is not newer than the revocation");
    }

    #[test]
    fn the_database_is_told_of_new_tokens_once_a_minute() {
        let dir = tempfile::tempdir().unwrap();
        let revocations = Revocations::new(Store::open(&dir.path().join("db")).unwrap()).unwrap();
        for (issued, kept) in [(5, Some(60_005)), (6, None), (60_005, None), (60_006, Some(120_006)), (7, None)] {
            assert_eq!(revocations.due_to_keep(issued), kept, "{issued}");
        }
    }

    #[test]
    fn all_log_ins_are_revoked_even_if_the_clock_was_set_back_before_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).unwrap();
        let ahead = now_ms() + 3_600_000;
        store.sessions().begin(1, "ann", [1; 32], (ahead, ahead / 1000 + 60), now()).unwrap();
        let revocations = Revocations::new(store).unwrap();
        assert_eq!(revocations.latest(), ahead);
        let revocation = Revocation::Before { user: None, before_ms: revocations.latest() };
        assert_eq!(revocations.revoke(revocation).unwrap(), Some(1));
        assert_eq!(revocations.renew(1, [1; 32], [2; 32]).unwrap(), Renewal::Unknown);
    }
}
