//! Tickets: who may read which disk with a secret. Of the secret, only the hash is stored.

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::{StoreError, database, revoked_log_ins};
use crate::model::SnapshotId;

/// SHA-256 of the secret → [`Ticket`].
pub(super) const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("tickets");

/// A ticket. These are the stored bytes: postcard writes the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ticket {
    /// Its user.
    pub user: String,
    pub source: TicketSource,
    pub vm: String,
    snapshot: u128,
    pub disk: String,
    pub may_read: bool,
    pub may_map: bool,
    /// Milliseconds since 1970.
    pub created_ms: i64,
    pub expires_ms: i64,
}

/// How the user had proven who they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TicketSource {
    /// With a token, of which earlier versions did not keep the time.
    LogIn,
    /// With this chain of certificates.
    Certificate(Vec<Vec<u8>>),
    Socket,
    /// With a token that was issued at this time, milliseconds since 1970, of which earlier versions did not keep the log-in.
    Token {
        issued_ms: u64,
    },
    /// With a token of this log-in. A renewed one is newer than its log-in, so a revocation may include it by this only.
    TokenOf {
        log_in: u128,
        issued_ms: u64,
    },
}

/// Whether a ticket was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Added {
    Yes,
    TooMany,
    /// The log-in that it was made with is revoked.
    Revoked,
}

/// The clock may be set back by this much without ending tickets.
const CLOCK_TOLERANCE_MS: i64 = 60_000;

impl Ticket {
    pub fn new(
        (user, source): (String, TicketSource),
        (vm, snapshot, disk): (String, SnapshotId, String),
        (may_read, may_map): (bool, bool),
        (created_ms, expires_ms): (i64, i64),
    ) -> Self {
        Self { user, source, vm, snapshot: snapshot.as_u128(), disk, may_read, may_map, created_ms, expires_ms }
    }

    pub fn snapshot(&self) -> SnapshotId {
        SnapshotId::from_u128(self.snapshot)
    }

    /// When its user had proven who they are, milliseconds since 1970. If the user's tokens of that time are revoked, so is
    /// the ticket: a request for it may have begun before the revocation, and ended after it.
    pub fn proven_ms(&self) -> u64 {
        match self.source {
            TicketSource::Token { issued_ms } | TicketSource::TokenOf { issued_ms, .. } => issued_ms,
            _ => u64::try_from(self.created_ms).unwrap_or_default(),
        }
    }

    /// The log-in of the token that it was made with.
    fn log_in(&self) -> Option<u128> {
        match self.source {
            TicketSource::TokenOf { log_in, .. } => Some(log_in),
            _ => None,
        }
    }

    /// A clock that is set back does not make a ticket last longer.
    pub fn is_valid(&self, now_ms: i64) -> bool {
        (self.created_ms.saturating_sub(CLOCK_TOLERANCE_MS)..self.expires_ms).contains(&now_ms)
    }
}

/// The most tickets of one user, and of all.
#[derive(Clone, Copy, Debug)]
pub struct TicketLimits {
    pub of_user: usize,
    pub of_all: usize,
}

/// The tickets of a [`Store`](super::Store).
pub struct Tickets<'a>(pub(super) &'a database::Handle);

impl Tickets<'_> {
    /// The ticket whose secret has this hash. One that cannot be read permits nothing.
    pub fn find(&self, hash: &[u8; 32]) -> Result<Option<Ticket>, StoreError> {
        self.0.read(|transaction| {
            let found = transaction.open_table(TABLE)?.get(hash.as_slice())?;
            Ok(found.and_then(|bytes| decode(bytes.value())))
        })
    }

    /// The ticket whose hash begins with these bytes.
    pub fn find_by_start(&self, start: [u8; 8]) -> Result<Option<Ticket>, StoreError> {
        self.0.read(|transaction| {
            let table = transaction.open_table(TABLE)?;
            let Some(first) = table.range(start.as_slice()..)?.next() else { return Ok(None) };
            let (hash, bytes) = first?;
            Ok(if hash.value().starts_with(&start) { decode(bytes.value()) } else { None })
        })
    }

    /// All tickets with the hashes of their secrets.
    pub fn all(&self) -> Result<Vec<([u8; 32], Ticket)>, StoreError> {
        self.0.read(|transaction| {
            let mut found = Vec::new();
            for entry in transaction.open_table(TABLE)?.iter()? {
                let (hash, bytes) = entry?;
                found.extend(hash.value().try_into().ok().zip(decode(bytes.value())));
            }
            Ok(found)
        })
    }

    /// Adds a ticket, and removes those that are not valid any more.
    pub fn add(&self, hash: &[u8; 32], new: &Ticket, limits: TicketLimits) -> Result<Added, StoreError> {
        let damaged = |error: postcard::Error| StoreError::Record { id: new.snapshot(), cause: error.to_string() };
        let bytes = postcard::to_stdvec(new).map_err(damaged)?;
        self.0.write(|transaction| {
            // A revocation has removed the tickets of the log-in that it has found.
            if let Some(log_in) = new.log_in()
                && revoked_log_ins::contains(transaction, log_in)?
            {
                return Ok(Added::Revoked);
            }
            let mut tickets = transaction.open_table(TABLE)?;
            let (mut of_user, mut of_all, mut ended) = (0, 0, Vec::new());
            for entry in tickets.iter()? {
                let (hash, bytes) = entry?;
                match decode(bytes.value()).filter(|ticket| ticket.is_valid(new.created_ms)) {
                    Some(ticket) => {
                        of_all += 1;
                        of_user += usize::from(ticket.user == new.user);
                    }
                    None => ended.push(hash.value().to_vec()),
                }
            }
            for hash in ended {
                tickets.remove(hash.as_slice())?;
            }
            if of_user >= limits.of_user || of_all >= limits.of_all {
                return Ok(Added::TooMany);
            }
            tickets.insert(hash.as_slice(), bytes.as_slice())?;
            Ok(Added::Yes)
        })
    }

    /// Removes the ticket whose secret has this hash.
    pub fn remove(&self, hash: &[u8; 32]) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            transaction.open_table(TABLE)?.remove(hash.as_slice())?;
            Ok(())
        })
    }
}

/// Removes the tickets of a snapshot.
pub(super) fn forget(transaction: &WriteTransaction, id: SnapshotId) -> Result<(), StoreError> {
    let is_of_other = |bytes: &[u8]| decode(bytes).is_none_or(|ticket| ticket.snapshot() != id);
    Ok(transaction.open_table(TABLE)?.retain(|_, bytes| is_of_other(bytes))?)
}

/// Removes the tickets that were made with tokens of these log-ins.
pub(super) fn forget_log_ins(transaction: &WriteTransaction, log_ins: &[u128]) -> Result<(), StoreError> {
    if log_ins.is_empty() {
        return Ok(());
    }
    let is_of_one = |ticket: Ticket| ticket.log_in().is_some_and(|log_in| log_ins.contains(&log_in));
    Ok(transaction.open_table(TABLE)?.retain(|_, bytes| !decode(bytes).is_some_and(is_of_one))?)
}

/// Removes all tickets.
pub(super) fn forget_all(transaction: &WriteTransaction) -> Result<(), StoreError> {
    Ok(transaction.open_table(TABLE)?.retain(|_, _| false)?)
}

fn decode(bytes: &[u8]) -> Option<Ticket> {
    postcard::from_bytes(bytes).inspect_err(|error| tracing::error!(%error, "a ticket cannot be read")).ok()
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::super::tests::{begin, snapshot};
    use super::super::{SnapshotFiles, Store};
    use super::*;
    use crate::model::Described;

    fn ticket(user: &str, created_ms: i64) -> Ticket {
        let target = ("vm".to_owned(), SnapshotId::from_u128(7), "a.img".to_owned());
        Ticket::new((user.to_owned(), TicketSource::LogIn), target, (true, false), (created_ms, created_ms + 1000))
    }

    #[test]
    fn tickets_are_limited_and_ended_ones_make_room() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("x.db")).unwrap();
        let limits = TicketLimits { of_user: 2, of_all: 3 };
        let add = |number: u8, user: &str, at: i64| {
            store.tickets().add(&[number; 32], &ticket(user, at), limits).unwrap() == Added::Yes
        };
        assert!(add(1, "ann", 0) && add(2, "ann", 500) && !add(3, "ann", 600));
        assert!(add(4, "ben", 600) && !add(5, "carl", 700));
        assert_eq!(store.tickets().find(&[2; 32]).unwrap(), Some(ticket("ann", 500)));
        assert_eq!(store.tickets().find_by_start([2; 8]).unwrap(), Some(ticket("ann", 500)));
        assert_eq!(store.tickets().find(&[3; 32]).unwrap(), None);
        assert_eq!(store.tickets().find_by_start([3; 8]).unwrap(), None);
        assert_eq!(store.tickets().find_by_start([9; 8]).unwrap(), None);
        // The first one has ended.
        assert!(add(3, "ann", 1000));
        assert_eq!(store.tickets().all().unwrap().len(), 3);
        assert_eq!(store.tickets().find(&[1; 32]).unwrap(), None);
        store.tickets().remove(&[2; 32]).unwrap();
        assert_eq!(store.tickets().find(&[2; 32]).unwrap(), None);
    }

    #[test]
    fn tickets_end_with_their_snapshot() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("x.db")).unwrap();
        let snapshots: Vec<_> = (1..=4).map(|number| begin(&store, snapshot(number), None)).collect();
        for snapshot in &snapshots {
            store.commit(&[(Described::alone(snapshot.clone()), None)]).unwrap();
        }
        let limits = TicketLimits { of_user: 8, of_all: 8 };
        let now = Timestamp::now();
        for (number, snapshot) in (0..).zip(snapshots.iter().chain(&snapshots)) {
            let target = ("vm".to_owned(), snapshot.id, "a.img".to_owned());
            let times = (now.as_millisecond(), now.as_millisecond() + 60_000);
            let ticket = Ticket::new(("ann".to_owned(), TicketSource::LogIn), target, (true, false), times);
            assert_eq!(store.tickets().add(&[number; 32], &ticket, limits).unwrap(), Added::Yes);
        }
        let left = || {
            let mut left: Vec<_> = store.tickets().all().unwrap().iter().map(|(_, it)| it.snapshot()).collect();
            left.dedup();
            left
        };
        // One that a client deletes, one that has expired, and one whose files were removed by others.
        store.begin_deletion(&snapshots[0], None).unwrap();
        assert!(!left().contains(&snapshots[0].id));
        assert!(store.retentions().begin_sweep(&snapshots[1], now, None).unwrap());
        assert!(!left().contains(&snapshots[1].id));
        store.forget(&SnapshotFiles::from(&snapshots[2]), None).unwrap();
        assert_eq!(left(), [snapshots[3].id]);
        assert_eq!(store.tickets().all().unwrap().len(), 2);
    }

    #[test]
    fn a_ticket_is_as_old_as_the_token_that_it_was_made_with() {
        for source in [TicketSource::Token { issued_ms: 7 }, TicketSource::TokenOf { log_in: 3, issued_ms: 7 }] {
            let of_token = Ticket { source, ..ticket("ann", 1_000_000) };
            assert_eq!(decode(&postcard::to_stdvec(&of_token).unwrap()), Some(of_token.clone()));
            assert_eq!((of_token.proven_ms(), ticket("ann", 1_000_000).proven_ms()), (7, 1_000_000));
        }
    }

    #[test]
    fn a_clock_that_is_set_back_ends_tickets() {
        let ticket = ticket("ann", 1_000_000);
        for (now, expected) in
            [(1_000_000, true), (1_000_999, true), (1_001_000, false), (940_000, true), (939_999, false)]
        {
            assert_eq!(ticket.is_valid(now), expected, "{now}");
        }
    }
}
