//! What is done in thousands of requests, summed up for the audit: a line for all that one client did with one
//! thing, when it is over or after a minute.
//!
//! Requests without a good token, and failed log-ins, are summed up for longer the longer they go on. Otherwise a
//! stranger who tries passwords for days would fill the audit, and push creations and deletions out of it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Actor, AuditLine, Outcome};
use crate::app::Error;
use crate::auth::{BadToken, Session};

/// After so long without another request, it is over.
const QUIET: Duration = Duration::from_secs(5);

/// The longest time that one line covers.
pub(crate) const ROUND_OF_LINES: Duration = Duration::from_secs(60);

/// So long is what one line is about at most, where a stranger goes on.
const STRANGERS_LONGEST: Duration = Duration::from_secs(3600);

/// Accounts of failed log-ins that have lines of their own, for one host.
const ACCOUNTS: usize = 8;

/// Accounts that are told apart in the line of all others.
const ACCOUNTS_COUNTED: usize = 1000;

/// Things that are summed up at a time, at most.
const MAX_SUBJECTS: usize = 10_000;

const LOG_IN: &str = "log-in";

/// What a line is about: requests for which it would be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    /// Without the request.
    actor: Actor,
    action: &'static str,
    /// Nothing, where it does not tell requests apart.
    what: Option<String>,
    /// A keyed hash of its name, where a log-in failed.
    account: Option<String>,
    outcome: Outcome,
}

/// What there is to say about a subject.
#[derive(Debug)]
struct Sum {
    since: Instant,
    last: Instant,
    actor: Actor,
    what: String,
    requests: u64,
    /// Of disks.
    sent: Option<Sent>,
    /// Hashes of the accounts, where there may be several.
    accounts: HashSet<String>,
    /// How many lines there have been of all that a stranger did.
    lines: u32,
}

impl Sum {
    /// Whether it is time for a line.
    fn is_due(&self, of_stranger: bool) -> bool {
        let is_quiet = self.last.elapsed() >= QUIET && (!of_stranger || (self.lines == 0 && self.requests > 0));
        // A minute, one again, two, four, ...
        let longest = ROUND_OF_LINES * (1 << self.lines.saturating_sub(1).min(6));
        is_quiet || self.since.elapsed() >= longest.min(STRANGERS_LONGEST)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub bytes: u64,
    pub ranges: u64,
}

/// All that is being summed up.
#[derive(Debug, Default)]
pub struct AuditTrail(Mutex<HashMap<Subject, Sum>>);

impl AuditTrail {
    fn sums(&self) -> MutexGuard<'_, HashMap<Subject, Sum>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request about `what`.
    pub(crate) fn add(&self, actor: &Actor, action: &'static str, what: String, outcome: Outcome, sent: Option<Sent>) {
        let subject =
            Subject { actor: actor.without_request(), action, what: Some(what.clone()), account: None, outcome };
        self.add_to(subject, actor, what, sent);
    }

    /// Adds a request to what there is of its subject.
    fn add_to(&self, subject: Subject, actor: &Actor, what: String, sent: Option<Sent>) {
        add_to(&mut self.sums(), subject, actor, what, sent);
    }

    /// Adds a log-in to this account that failed. A host that has tried many accounts has one line for all others.
    fn add_failed_log_in(&self, actor: &Actor, account: String, outcome: Outcome) {
        let mut sums = self.sums();
        let of = actor.without_request();
        let subject = Subject { actor: of, action: LOG_IN, what: None, account: Some(account), outcome };
        let of_all = Subject { account: None, ..subject.clone() };
        let is_of_host = |other: &&Subject| other.actor == subject.actor && other.account.is_some();
        let has_own = sums.contains_key(&subject)
            || (!sums.contains_key(&of_all) && sums.keys().filter(is_of_host).count() < ACCOUNTS);
        if has_own {
            add_to(&mut sums, subject, actor, String::new(), None);
            return;
        }
        let account = subject.account.unwrap_or_default();
        let sum = add_to(&mut sums, of_all, actor, String::new(), None);
        if sum.requests > 0 && sum.accounts.len() < ACCOUNTS_COUNTED {
            sum.accounts.insert(account);
        }
    }

    /// Writes what there is of an actor's `action` on `what`.
    pub(crate) fn write_of(&self, actor: &Actor, action: &'static str, what: &str) {
        let actor = actor.without_request();
        let mut sums = self.sums();
        let of = |subject: &Subject| {
            subject.actor == actor && subject.action == action && subject.what.as_deref() == Some(what)
        };
        write(sums.extract_if(|subject, _| of(subject)));
    }

    /// Writes what is over.
    pub(crate) fn write_what_is_over(&self) {
        self.sums().retain(|subject, sum| {
            let of_stranger = subject.actor.is_stranger();
            if !sum.is_due(of_stranger) {
                return true;
            }
            // A stranger who goes on has no first line again.
            let stays = of_stranger && sum.requests > 0;
            write_one(subject, sum);
            sum.accounts.clear();
            (sum.requests, sum.since, sum.lines) = (0, Instant::now(), sum.lines + 1);
            stays
        });
    }

    /// Writes everything.
    pub(crate) fn write_all(&self) {
        write(self.sums().drain());
    }
}

/// Adds a request to what there is of its subject. Where nothing was sent of a disk, the first one has a line at once.
fn add_to<'a>(
    sums: &'a mut HashMap<Subject, Sum>,
    subject: Subject,
    actor: &Actor,
    what: String,
    sent: Option<Sent>,
) -> &'a mut Sum {
    let is_new = !sums.contains_key(&subject);
    if is_new && sums.len() >= MAX_SUBJECTS {
        write(sums.drain());
    }
    if is_new && sent.is_none() {
        let mut line = AuditLine::new(actor, subject.action, &what, &subject.outcome);
        (line.requests, line.account) = (Some(1), subject.account.as_deref());
        line.write();
    }
    let now = Instant::now();
    let accounts = HashSet::new();
    let empty =
        || Sum { since: now, last: now, actor: actor.clone(), what, requests: 0, sent: None, accounts, lines: 0 };
    let sum = sums.entry(subject).or_insert_with(empty);
    (sum.last, sum.actor) = (now, actor.clone());
    if let Some(more) = sent {
        let Sent { bytes, ranges } = sum.sent.unwrap_or_default();
        sum.sent = Some(Sent { bytes: bytes + more.bytes, ranges: ranges + more.ranges });
    }
    if !is_new || sent.is_some() {
        sum.requests += 1;
    }
    sum
}

fn write(sums: impl Iterator<Item = (Subject, Sum)>) {
    for (subject, sum) in sums {
        write_one(&subject, &sum);
    }
}

/// Writes a line, where there is something to say.
fn write_one(subject: &Subject, sum: &Sum) {
    if sum.requests == 0 {
        return;
    }
    let mut line = AuditLine::new(&sum.actor, subject.action, &sum.what, &subject.outcome);
    line.requests = Some(sum.requests);
    line.account = subject.account.as_deref();
    line.accounts = Some(sum.accounts.len()).filter(|accounts| *accounts > 0);
    line.bytes = sum.sent.map(|sent| sent.bytes);
    line.ranges = sum.sent.map(|sent| sent.ranges);
    line.write();
}

impl AuditTrail {
    /// Records that something was read, which one client may do many times.
    pub fn read<T>(
        &self,
        session: &Session,
        action: &'static str,
        what: impl std::fmt::Display,
        outcome: &Result<T, Error>,
    ) {
        self.add(&Actor::from(session), action, what.to_string(), Outcome::of(outcome), None);
    }

    /// Records a request without a valid token. The log has the paths.
    pub fn stranger(&self, address: Option<IpAddr>, request_id: Option<Arc<str>>, path: &str) {
        let (actor, outcome) = (Actor::stranger(address, request_id), Outcome::of::<()>(&Err(BadToken.into())));
        // One line for all paths: otherwise a stranger could fill the trail with them.
        let subject = Subject { actor: actor.without_request(), action: "request", what: None, account: None, outcome };
        self.add_to(subject, &actor, path.to_owned(), None);
    }

    /// Records how a log-in ended. What a stranger types as a name may be a password: the name is recorded only if
    /// the log-in succeeded, otherwise the account's keyed hash, which shows which account is tried repeatedly.
    pub(crate) fn log_in<T>(&self, actor: Actor, user: &str, account_hash: String, outcome: &Result<T, Error>) {
        match outcome {
            Ok(_) => actor.named(user).did(LOG_IN, "", outcome),
            // The manager was not asked about the account.
            Err(Error::Throttled) => self.add(&actor, LOG_IN, String::new(), Outcome::of(outcome), None),
            Err(_) => self.add_failed_log_in(&actor, account_hash, Outcome::of(outcome)),
        }
    }
}
