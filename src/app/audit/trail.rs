//! Summarizes frequent requests for the audit: one line for all requests of one client for one subject, when they end
//! or after a minute.
//!
//! Requests without a valid token and failed log-ins are summarized for longer the longer they continue. Otherwise a
//! client that tries passwords for days would fill the audit and displace creations and deletions.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Actor, Amounts, AuditLine, Outcome};
use crate::app::Error;
use crate::auth::{Requester, Session};

/// A series of requests has ended after this time without another one.
const QUIET: Duration = Duration::from_secs(5);

/// The longest time that one line covers.
pub(crate) const ROUND_OF_LINES: Duration = Duration::from_secs(60);

/// The longest time that one line covers for an unauthenticated client.
const MAX_UNAUTHENTICATED_ROUND: Duration = Duration::from_secs(3600);

/// The most accounts per host whose failed log-ins have separate lines.
const SEPARATE_ACCOUNTS: usize = 8;

/// The most accounts that the line of all others counts.
const MAX_COUNTED_ACCOUNTS: usize = 1000;

/// The most subjects that are summarized at a time.
const MAX_SUBJECTS: usize = 10_000;

const LOG_IN: &str = "log-in";

/// Requests with the same subject share a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    /// The actor without a request.
    actor: Actor,
    action: &'static str,
    /// Empty if requests about different things share a line.
    what: Option<String>,
    /// A keyed hash of the account's name, if a log-in failed.
    account: Option<String>,
    outcome: Outcome,
}

/// The summary of a subject.
#[derive(Debug)]
struct Summary {
    since: Instant,
    last: Instant,
    actor: Actor,
    what: String,
    requests: u64,
    /// What was sent of a disk.
    sent: Option<Sent>,
    /// Hashes of the accounts, if several share the line.
    accounts: HashSet<String>,
    /// The number of earlier lines about an unauthenticated client.
    lines: u32,
}

impl Summary {
    /// Whether the line is due.
    fn is_due(&self, is_unauthenticated: bool) -> bool {
        let is_quiet = self.last.elapsed() >= QUIET && (!is_unauthenticated || (self.lines == 0 && self.requests > 0));
        // One minute twice, then two, four, and so on.
        let max = ROUND_OF_LINES * (1 << self.lines.saturating_sub(1).min(6));
        is_quiet || self.since.elapsed() >= max.min(MAX_UNAUTHENTICATED_ROUND)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sent {
    pub bytes: u64,
    pub ranges: u64,
}

/// All summaries.
#[derive(Debug, Default)]
pub struct AuditTrail(Mutex<HashMap<Subject, Summary>>);

impl AuditTrail {
    fn sums(&self) -> MutexGuard<'_, HashMap<Subject, Summary>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request about `what`.
    pub(crate) fn add(&self, actor: &Actor, action: &'static str, what: String, outcome: Outcome, sent: Option<Sent>) {
        let subject =
            Subject { actor: actor.without_request(), action, what: Some(what.clone()), account: None, outcome };
        self.add_to(subject, actor, what, sent);
    }

    /// Adds a request to the summary of its subject.
    fn add_to(&self, subject: Subject, actor: &Actor, what: String, sent: Option<Sent>) {
        add_to(&mut self.sums(), subject, actor, what, sent);
    }

    /// Adds a failed log-in. After a few accounts of one host, all its others share one line.
    fn add_failed_log_in(&self, actor: &Actor, account: String, outcome: Outcome) {
        let mut sums = self.sums();
        let of = actor.without_request();
        let subject = Subject { actor: of, action: LOG_IN, what: None, account: Some(account), outcome };
        let of_all = Subject { account: None, ..subject.clone() };
        let is_of_host = |other: &&Subject| other.actor == subject.actor && other.account.is_some();
        let has_own = sums.contains_key(&subject)
            || (!sums.contains_key(&of_all) && sums.keys().filter(is_of_host).count() < SEPARATE_ACCOUNTS);
        if has_own {
            add_to(&mut sums, subject, actor, String::new(), None);
            return;
        }
        let account = subject.account.unwrap_or_default();
        let sum = add_to(&mut sums, of_all, actor, String::new(), None);
        if sum.requests > 0 && sum.accounts.len() < MAX_COUNTED_ACCOUNTS {
            sum.accounts.insert(account);
        }
    }

    /// Writes the summary of an actor's `action` on `what`.
    pub(crate) fn write_of(&self, actor: &Actor, action: &'static str, what: &str) {
        let actor = actor.without_request();
        let mut sums = self.sums();
        let of = |subject: &Subject| {
            subject.actor == actor && subject.action == action && subject.what.as_deref() == Some(what)
        };
        write(sums.extract_if(|subject, _| of(subject)));
    }

    /// Writes the summaries that are due.
    pub(crate) fn write_due(&self) {
        self.sums().retain(|subject, sum| {
            let is_unauthenticated = subject.actor.is_unauthenticated();
            if !sum.is_due(is_unauthenticated) {
                return true;
            }
            // The summary of an unauthenticated client stays while requests continue, so that its rounds get longer.
            let stays = is_unauthenticated && sum.requests > 0;
            write_one(subject, sum);
            sum.accounts.clear();
            (sum.requests, sum.since, sum.lines) = (0, Instant::now(), sum.lines + 1);
            stays
        });
    }

    /// Writes all summaries.
    pub(crate) fn write_all(&self) {
        write(self.sums().drain());
    }
}

/// Adds a request to the summary of its subject. The first one gets a line at once, unless it sent bytes of a disk.
fn add_to<'a>(
    sums: &'a mut HashMap<Subject, Summary>,
    subject: Subject,
    actor: &Actor,
    what: String,
    sent: Option<Sent>,
) -> &'a mut Summary {
    let is_new = !sums.contains_key(&subject);
    if is_new && sums.len() >= MAX_SUBJECTS {
        write(sums.drain());
    }
    if is_new && sent.is_none() {
        let mut line = AuditLine::new(actor, subject.action, &what, &subject.outcome);
        (line.amounts.requests, line.account) = (Some(1), subject.account.as_deref());
        line.write();
    }
    let now = Instant::now();
    let accounts = HashSet::new();
    let empty =
        || Summary { since: now, last: now, actor: actor.clone(), what, requests: 0, sent: None, accounts, lines: 0 };
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

fn write(sums: impl Iterator<Item = (Subject, Summary)>) {
    for (subject, sum) in sums {
        write_one(&subject, &sum);
    }
}

/// Writes the line of a summary, if it has requests.
fn write_one(subject: &Subject, sum: &Summary) {
    if sum.requests == 0 {
        return;
    }
    let mut line = AuditLine::new(&sum.actor, subject.action, &sum.what, &subject.outcome);
    line.account = subject.account.as_deref();
    line.accounts = Some(sum.accounts.len()).filter(|accounts| *accounts > 0);
    line.amounts = Amounts {
        bytes: sum.sent.map(|sent| sent.bytes),
        ranges: sum.sent.map(|sent| sent.ranges),
        requests: Some(sum.requests),
    };
    line.write();
}

impl AuditTrail {
    /// Records a read, which one client may repeat often.
    pub fn read<T>(
        &self,
        session: &Session,
        action: &'static str,
        what: impl std::fmt::Display,
        outcome: &Result<T, Error>,
    ) {
        self.add(&Actor::from(session), action, what.to_string(), Outcome::of(outcome), None);
    }

    /// Records a request of an unauthenticated client, and why it is refused. The log has the paths.
    pub fn unauthenticated(&self, requester: Requester, path: &str, error: &Error) {
        let (actor, outcome) = (Actor::unauthenticated(requester), Outcome::of_error(error));
        // One line for all paths: otherwise a client could fill the trail with made-up paths.
        let subject = Subject { actor: actor.without_request(), action: "request", what: None, account: None, outcome };
        self.add_to(subject, &actor, path.to_owned(), None);
    }

    /// Records a request of a user whose roles do not permit it for anything. One line for all paths.
    pub fn forbidden(&self, session: &Session, path: &str, error: &Error) {
        let (actor, outcome) = (Actor::from(session), Outcome::of_error(error));
        let subject = Subject { actor: actor.without_request(), action: "request", what: None, account: None, outcome };
        self.add_to(subject, &actor, path.to_owned(), None);
    }

    /// Records the outcome of a log-in. The name is recorded only after a success, because users sometimes type their
    /// password as the name. A failure records a keyed hash, which still shows repeated attempts on one account.
    pub(crate) fn log_in<T>(&self, actor: Actor, user: &str, account_hash: String, outcome: &Result<T, Error>) {
        match outcome {
            Ok(_) => actor.named(user).did(LOG_IN, "", outcome),
            // The manager did not check the account.
            Err(Error::Throttled | Error::TooManyFailures { .. }) => {
                self.add(&actor, LOG_IN, String::new(), Outcome::of(outcome), None)
            }
            Err(_) => self.add_failed_log_in(&actor, account_hash, Outcome::of(outcome)),
        }
    }
}
