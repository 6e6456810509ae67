//! Summarizes frequent requests for the audit: one line for all requests of one client for one subject, when they end
//! or after a minute.
//!
//! Refused and failed requests are summarized for longer the longer they continue, and after a few different ones, all
//! others share a line. Otherwise a client that tries passwords or ids for days would fill the audit and displace
//! creations and deletions.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::line::{Actor, Amounts, AuditLine, Outcome};
use crate::app::Error;
use crate::auth::{Requester, Session};

/// A series of requests has ended after this time without another one.
const QUIET: Duration = Duration::from_secs(5);

/// The longest time that one line covers.
pub(crate) const ROUND_OF_LINES: Duration = Duration::from_secs(60);

/// The longest time that one line covers for requests without effect.
const MAX_LONG_ROUND: Duration = Duration::from_secs(3600);

/// The most things or accounts of which one client's requests without effect have separate lines.
const SEPARATE: usize = 8;

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
    /// Whether the client can vary and repeat such requests at will.
    is_without_effect: bool,
}

impl Subject {
    fn of(actor: &Actor, action: &'static str, what: Option<String>, outcome: Outcome) -> Self {
        let is_without_effect = actor.is_unauthenticated() || outcome.is_error();
        Self { actor: actor.without_request(), action, what, account: None, outcome, is_without_effect }
    }

    /// The subject of all requests that differ from this only in what they are about, and in the reason.
    fn of_all(&self) -> Self {
        let (actor, outcome) = (self.actor.clone(), Outcome { name: self.outcome.name, ..Outcome::DONE });
        Self { actor, action: self.action, what: None, account: None, outcome, is_without_effect: true }
    }

    /// Whether it is one of those.
    fn is_one_of(&self, all: &Self) -> bool {
        self != all && self.actor == all.actor && self.action == all.action && self.outcome.name == all.outcome.name
    }
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
    /// The number of earlier lines, if the requests have no effect.
    lines: u32,
}

impl Summary {
    /// Whether the line is due.
    fn is_due(&self, is_without_effect: bool) -> bool {
        let is_quiet = self.last.elapsed() >= QUIET && (!is_without_effect || (self.lines == 0 && self.requests > 0));
        // One minute twice, then two, four, and so on.
        let max = ROUND_OF_LINES * (1 << self.lines.saturating_sub(1).min(6));
        is_quiet || self.since.elapsed() >= max.min(MAX_LONG_ROUND)
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
        let subject = Subject::of(actor, action, Some(what.clone()), outcome);
        add_to(&mut self.sums(), subject, actor, what, sent);
    }

    /// Adds a request without effect, of which the client chooses the details. After a few different ones, all others
    /// share one line.
    fn add_varying(&self, subject: Subject, actor: &Actor) {
        let mut sums = self.sums();
        let of_all = subject.of_all();
        let has_own = sums.contains_key(&subject)
            || (!sums.contains_key(&of_all) && sums.keys().filter(|one| one.is_one_of(&of_all)).count() < SEPARATE);
        if has_own {
            let what = subject.what.clone().unwrap_or_default();
            add_to(&mut sums, subject, actor, what, None);
            return;
        }
        let sum = add_to(&mut sums, of_all, actor, String::new(), None);
        if let Some(account) = subject.account
            && sum.requests > 0
            && sum.accounts.len() < MAX_COUNTED_ACCOUNTS
        {
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
            let is_without_effect = subject.is_without_effect;
            if !sum.is_due(is_without_effect) {
                return true;
            }
            // It stays while requests continue, so that its rounds get longer.
            let stays = is_without_effect && sum.requests > 0;
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
    /// Records a read, or a small change, which one client may repeat often.
    pub fn read<T>(&self, session: &Session, action: &'static str, what: impl Display, outcome: &Result<T, Error>) {
        let actor = Actor::from(session);
        match outcome {
            Ok(_) => self.add(&actor, action, what.to_string(), Outcome::DONE, None),
            Err(error) => self.without_effect(&actor, action, what, Outcome::of_error(error)),
        }
    }

    /// Records a request to look at something, if that is refused or fails.
    pub fn view<T>(&self, session: &Session, what: impl Display, outcome: &Result<T, Error>) {
        if outcome.is_err() {
            self.read(session, "view", what, outcome);
        }
    }

    /// Records a change. Each that succeeds has a line of its own.
    pub(crate) fn change<T>(
        &self,
        actor: &Actor,
        action: &'static str,
        what: impl Display,
        outcome: &Result<T, Error>,
    ) {
        match outcome {
            Ok(_) => actor.did(action, what, outcome),
            Err(error) => self.without_effect(actor, action, what, Outcome::of_error(error)),
        }
    }

    /// Records a request that changed nothing.
    pub(crate) fn without_effect(&self, actor: &Actor, action: &'static str, what: impl Display, outcome: Outcome) {
        let subject = Subject::of(actor, action, Some(what.to_string()), outcome);
        self.add_varying(Subject { is_without_effect: true, ..subject }, actor);
    }

    /// Records a request of an unauthenticated client, and why it is refused. The log has the paths.
    pub fn unauthenticated(&self, requester: Requester, path: &str, error: &Error) {
        self.refused(&Actor::unauthenticated(requester), path, error);
    }

    /// Records a request of a user whose roles do not permit it for anything.
    pub fn forbidden(&self, session: &Session, path: &str, error: &Error) {
        self.refused(&Actor::from(session), path, error);
    }

    /// One line for all paths: otherwise a client could fill the trail with made-up paths.
    fn refused(&self, actor: &Actor, path: &str, error: &Error) {
        let subject = Subject::of(actor, "request", None, Outcome::of_error(error));
        add_to(&mut self.sums(), subject, actor, path.to_owned(), None);
    }

    /// Records the outcome of a log-in. The name is recorded only after a success, because users sometimes type their
    /// password as the name. A failure records a keyed hash, which still shows repeated attempts on one account.
    pub(crate) fn log_in<T>(&self, actor: Actor, user: &str, account_hash: String, outcome: &Result<T, Error>) {
        match outcome {
            Ok(_) => self.add(&actor.named(user), LOG_IN, String::new(), Outcome::DONE, None),
            // The manager did not check the account.
            Err(Error::Throttled | Error::TooManyFailures { .. }) => {
                self.add(&actor, LOG_IN, String::new(), Outcome::of(outcome), None)
            }
            Err(error) => {
                let subject = Subject::of(&actor, LOG_IN, None, Outcome::of_error(error));
                self.add_varying(Subject { account: Some(account_hash), ..subject }, &actor);
            }
        }
    }
}
