//! Log-ins that can be renewed, and revoked tokens.

use std::collections::HashMap;

use redb::{ReadableTable, ReadableTableMetadata, TableDefinition, WriteTransaction};
use serde::{Deserialize, Serialize};

use super::revoked_log_ins::TABLE as REVOKED_LOG_INS;
use super::schema::COUNTERS;
use super::{StoreError, database, revoked_log_ins, tickets};
use crate::model::FoldedName;

/// Id of the log-in → [`Renewable`].
pub(super) const RENEWABLE: TableDefinition<'_, u128, &[u8]> = TableDefinition::new("renewable_log_ins");
/// Folded name of the user, or [`ALL_USERS`] → milliseconds since 1970: tokens that were issued at or before then are revoked.
pub(super) const REVOKED_BEFORE: TableDefinition<'_, &str, u64> = TableDefinition::new("revoked_before");

/// The counter with a time that no token was issued after, milliseconds since 1970.
const ISSUED: &str = "issued_ms";

/// No user has this name.
const ALL_USERS: &str = "";

/// Renewable log-ins of one user. A further one ends the one that would end first.
pub const MAX_RENEWABLE_OF_USER: usize = 100;

/// Renewable log-ins of all users together.
const MAX_RENEWABLE: usize = 10_000;

/// Revoked log-ins of one user. A further one revokes all tokens of the user instead.
const MAX_REVOKED_OF_USER: usize = 1000;

/// Users whose tokens are revoked. For further ones, the tokens of all users have to be revoked.
const MAX_REVOKED_USERS: usize = 10_000;

/// A log-in that can be renewed. These are the stored bytes: postcard writes the fields in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Renewable {
    user: String,
    /// Milliseconds since 1970.
    began_ms: u64,
    /// Seconds since 1970.
    ends: u64,
    /// SHA-256 of the only refresh token that is good.
    hash: [u8; 32],
}

/// What a refresh token is worth.
#[derive(Debug, PartialEq, Eq)]
pub enum Renewal {
    /// It was good, and is now used.
    Renewed { user: String, ends: u64 },
    /// It is unknown, or its log-in has ended or is revoked.
    Unknown,
    /// It was used before. Its log-in and all its tokens are revoked.
    Reused { user: String },
}

/// All revoked tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevokedTokens {
    /// Log-in → when its last token expires, seconds since 1970.
    pub log_ins: HashMap<u128, u64>,
    /// User → milliseconds since 1970: tokens that were issued at or before then.
    pub users: HashMap<FoldedName, u64>,
    /// The same for all users.
    pub all: u64,
}

/// Whose tokens are revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revocation<'a> {
    /// Those of one log-in, of which the last expires at this time, seconds since 1970.
    LogIn { id: u128, user: &'a str, until: u64 },
    /// Those that were issued to a user, or to all users, at or before this time, milliseconds since 1970.
    Before { user: Option<&'a str>, before_ms: u64 },
}

/// What time it is.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Seconds since 1970.
    pub now: u64,
    /// Milliseconds since 1970: no token was issued later. It is ahead of `now` if the clock was set back.
    pub latest_ms: u64,
}

/// The log-ins and revocations of a [`Store`](super::Store). Times are seconds since 1970 unless they end in `_ms`.
pub struct SessionTables<'a>(pub(super) &'a database::Handle);

impl SessionTables<'_> {
    /// All that is revoked at `now`.
    pub fn revoked(&self, now: u64) -> Result<RevokedTokens, StoreError> {
        self.0.read(|transaction| {
            let mut revoked = RevokedTokens::default();
            for entry in transaction.open_table(REVOKED_LOG_INS)?.iter()? {
                let (id, value) = entry?;
                let (_, until) = value.value();
                if until > now {
                    revoked.log_ins.insert(id.value(), until);
                }
            }
            for entry in transaction.open_table(REVOKED_BEFORE)?.iter()? {
                let (user, before_ms) = entry?;
                match user.value() {
                    ALL_USERS => revoked.all = before_ms.value(),
                    user => {
                        let known = revoked.users.entry(FoldedName::new(user)).or_default();
                        *known = before_ms.value().max(*known);
                    }
                }
            }
            Ok(revoked)
        })
    }

    /// Revokes tokens, and ends the renewable log-ins that they belong to. Returns the number of these. `None`: too many
    /// users have revoked tokens, so nothing was done. The tickets of one log-in stay: that is a log-out.
    ///
    /// # Errors
    /// [`StoreError::FileLost`] if the next start would not find the revocation.
    pub fn revoke(&self, revocation: Revocation<'_>, clock: Clock) -> Result<Option<usize>, StoreError> {
        self.check_file()?;
        self.0.write(|transaction| match revocation {
            Revocation::LogIn { id, user, until } => {
                let mut table = transaction.open_table(RENEWABLE)?;
                let ended = table.remove(id)?.map(|bytes| decode(bytes.value()));
                drop(table);
                // Its tokens may be older than the current lifetimes.
                let ends = ended.iter().flatten().map(|log_in| log_in.ends).max().unwrap_or_default();
                revoke_log_in(transaction, id, user, until.max(ends), clock)?;
                Ok(Some(usize::from(ended.is_some())))
            }
            Revocation::Before { user: None, before_ms } => {
                revoke_all_before(transaction, before_ms)?;
                end_renewable(transaction, None, before_ms, clock.now).map(Some)
            }
            Revocation::Before { user: Some(user), before_ms } => {
                if !revoke_user_before(transaction, user, before_ms)? {
                    return Ok(None);
                }
                end_renewable(transaction, Some(user), before_ms, clock.now).map(Some)
            }
        })
    }

    /// Records a log-in that can be renewed until `ends` with the refresh token that has this hash. Removes those that have
    /// ended at `now`. `began_ms` may be far ahead of that, if the clock was set back.
    ///
    /// # Errors
    /// As [`SessionTables::revoke`].
    pub fn begin(
        &self,
        id: u128,
        user: &str,
        hash: [u8; 32],
        (began_ms, ends): (u64, u64),
        now: u64,
    ) -> Result<(), StoreError> {
        self.check_file()?;
        self.0.write(|transaction| {
            let mut table = transaction.open_table(RENEWABLE)?;
            let (mut of_user, mut all, mut ended) = (Vec::new(), Vec::new(), Vec::new());
            let folded = FoldedName::new(user);
            for entry in table.iter()? {
                let (id, bytes) = entry?;
                match decode(bytes.value()).filter(|log_in| log_in.ends > now) {
                    Some(log_in) => {
                        all.push((log_in.ends, id.value()));
                        if FoldedName::new(&log_in.user) == folded {
                            of_user.push((log_in.ends, id.value()));
                        }
                    }
                    None => ended.push(id.value()),
                }
            }
            for (log_ins, limit) in [(&mut of_user, MAX_RENEWABLE_OF_USER), (&mut all, MAX_RENEWABLE)] {
                log_ins.sort_unstable();
                let too_many = (log_ins.len() + 1).saturating_sub(limit);
                ended.extend(log_ins[..too_many].iter().map(|(_, id)| *id));
            }
            for id in ended {
                table.remove(id)?;
            }
            let log_in = Renewable { user: user.to_owned(), began_ms, ends, hash };
            table.insert(id, encode(&log_in)?.as_slice())?;
            Ok(())
        })
    }

    /// Replaces the refresh token with the hash `used` by one with the hash `new`. After a token that was used before,
    /// the log-in is revoked, and its tickets end: one of those who have used it is not the user.
    ///
    /// A revocation that ran while the log-in began has not found it. So each renewal asks again what is revoked.
    ///
    /// # Errors
    /// As [`SessionTables::revoke`].
    pub fn renew(&self, id: u128, used: [u8; 32], new: [u8; 32], clock: Clock) -> Result<Renewal, StoreError> {
        // Anyone can send an unknown token, and a write transaction waits for the disk.
        if self.0.read(|transaction| Ok(transaction.open_table(RENEWABLE)?.get(id)?.is_none()))? {
            return Ok(Renewal::Unknown);
        }
        self.check_file()?;
        self.0.write(|transaction| {
            let mut table = transaction.open_table(RENEWABLE)?;
            let found = table.get(id)?.and_then(|bytes| decode(bytes.value()));
            let Some(log_in) = found.filter(|log_in| log_in.ends > clock.now) else { return Ok(Renewal::Unknown) };
            if is_revoked(transaction, id, &log_in)? {
                table.remove(id)?;
                return Ok(Renewal::Unknown);
            }
            let Renewable { ref user, ends, .. } = log_in;
            let user = user.clone();
            if log_in.hash != used {
                table.remove(id)?;
                drop(table);
                revoke_log_in(transaction, id, &user, ends, clock)?;
                tickets::forget_log_ins(transaction, &[id])?;
                return Ok(Renewal::Reused { user });
            }
            table.insert(id, encode(&Renewable { hash: new, ..log_in })?.as_slice())?;
            Ok(Renewal::Renewed { user, ends })
        })
    }

    /// The number of log-ins that can be renewed at `now`.
    pub fn renewable(&self, now: u64) -> Result<usize, StoreError> {
        self.0.read(|transaction| {
            let mut count = 0;
            for entry in transaction.open_table(RENEWABLE)?.iter()? {
                count += usize::from(decode(entry?.1.value()).is_some_and(|log_in| log_in.ends > now));
            }
            Ok(count)
        })
    }

    /// Keeps that no token was issued after this time, milliseconds since 1970, if no later time is kept.
    pub fn set_issued(&self, at_ms: u64) -> Result<(), StoreError> {
        self.0.write(|transaction| {
            let mut counters = transaction.open_table(COUNTERS)?;
            let newest = counters.get(ISSUED)?.map_or(0, |known| known.value());
            if at_ms > newest {
                counters.insert(ISSUED, at_ms)?;
            }
            Ok(())
        })
    }

    /// A time that no token was issued after, milliseconds since 1970: far ahead of the clock, if that was set back since.
    pub fn newest(&self) -> Result<u64, StoreError> {
        self.0.read(|transaction| {
            let mut newest = transaction.open_table(COUNTERS)?.get(ISSUED)?.map_or(0, |issued| issued.value());
            for entry in transaction.open_table(RENEWABLE)?.iter()? {
                newest = decode(entry?.1.value()).map_or(newest, |log_in| log_in.began_ms.max(newest));
            }
            Ok(newest)
        })
    }

    fn check_file(&self) -> Result<(), StoreError> {
        match self.0.trouble().filter(super::Trouble::loses_writes) {
            Some(trouble) => Err(StoreError::FileLost(trouble)),
            None => Ok(()),
        }
    }
}

/// Revokes the tokens of all users that were issued at or before this time.
pub(super) fn revoke_all_before(transaction: &WriteTransaction, before_ms: u64) -> Result<(), StoreError> {
    let mut table = transaction.open_table(REVOKED_BEFORE)?;
    let before_ms = table.get(ALL_USERS)?.map_or(before_ms, |known| known.value().max(before_ms));
    // These are included.
    table.retain(|_, of_user| of_user > before_ms)?;
    table.insert(ALL_USERS, before_ms)?;
    Ok(())
}

/// The key of a user in [`REVOKED_BEFORE`]. A name of spaces is not [`ALL_USERS`].
fn key_of(user: &str) -> String {
    match FoldedName::new(user).as_str() {
        ALL_USERS => " ".to_owned(),
        folded => folded.to_owned(),
    }
}

/// Whether a log-in is revoked, itself or with others of its time.
fn is_revoked(transaction: &WriteTransaction, id: u128, log_in: &Renewable) -> Result<bool, StoreError> {
    if revoked_log_ins::contains(transaction, id)? {
        return Ok(true);
    }
    let table = transaction.open_table(REVOKED_BEFORE)?;
    for of in [ALL_USERS, &key_of(&log_in.user)] {
        if table.get(of)?.is_some_and(|before_ms| log_in.began_ms <= before_ms.value()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Returns false if too many users have revoked tokens.
fn revoke_user_before(transaction: &WriteTransaction, user: &str, before_ms: u64) -> Result<bool, StoreError> {
    let mut table = transaction.open_table(REVOKED_BEFORE)?;
    let user = key_of(user);
    let known = table.get(user.as_str())?.map(|known| known.value());
    if known.is_none() && table.len()? >= MAX_REVOKED_USERS as u64 {
        return Ok(false);
    }
    table.insert(user.as_str(), known.unwrap_or_default().max(before_ms))?;
    Ok(true)
}

fn revoke_log_in(
    transaction: &WriteTransaction,
    id: u128,
    user: &str,
    until: u64,
    clock: Clock,
) -> Result<(), StoreError> {
    let mut table = transaction.open_table(REVOKED_LOG_INS)?;
    table.retain(|_, (_, until)| until > clock.now)?;
    let folded = FoldedName::new(user);
    let mut of_user = Vec::new();
    for entry in table.iter()? {
        let (id, value) = entry?;
        if FoldedName::new(value.value().0) == folded {
            of_user.push(id.value());
        }
    }
    if of_user.len() >= MAX_REVOKED_OF_USER && revoke_user_before(transaction, user, clock.latest_ms)? {
        for id in of_user {
            table.remove(id)?;
        }
    }
    table.insert(id, (user, until))?;
    Ok(())
}

/// Ends the renewable log-ins of a user, or of all users, that began at or before a time. Their tokens may be newer, so
/// they are revoked one by one, and their tickets end. Returns how many there were.
fn end_renewable(
    transaction: &WriteTransaction,
    user: Option<&str>,
    before_ms: u64,
    now: u64,
) -> Result<usize, StoreError> {
    let mut table = transaction.open_table(RENEWABLE)?;
    let (mut ended, user) = (Vec::new(), user.map(FoldedName::new));
    for entry in table.iter()? {
        let (id, bytes) = entry?;
        let log_in = decode(bytes.value()).filter(|log_in| log_in.ends > now && log_in.began_ms <= before_ms);
        ended.extend(
            log_in
                .filter(|it| user.as_ref().is_none_or(|user| FoldedName::new(&it.user) == *user))
                .map(|it| (id.value(), it)),
        );
    }
    let mut revoked = transaction.open_table(REVOKED_LOG_INS)?;
    for (id, log_in) in &ended {
        table.remove(*id)?;
        revoked.insert(*id, (log_in.user.as_str(), log_in.ends))?;
    }
    tickets::forget_log_ins(transaction, &ended.iter().map(|(id, _)| *id).collect::<Vec<_>>())?;
    Ok(ended.len())
}

/// Removes all log-ins that can be renewed. Revocations stay.
pub(super) fn forget_renewable(transaction: &WriteTransaction) -> Result<(), StoreError> {
    Ok(transaction.open_table(RENEWABLE)?.retain(|_, _| false)?)
}

fn encode(log_in: &Renewable) -> Result<Vec<u8>, StoreError> {
    postcard::to_stdvec(log_in).map_err(|error| StoreError::Io(std::io::Error::other(error)))
}

/// One that cannot be read counts as none: its user logs in again.
fn decode(bytes: &[u8]) -> Option<Renewable> {
    postcard::from_bytes(bytes).inspect_err(|error| tracing::error!(%error, "a log-in's record cannot be read")).ok()
}

#[cfg(test)]
#[path = "sessions/tests.rs"]
mod tests;
