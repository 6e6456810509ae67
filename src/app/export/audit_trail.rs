//! What is done in thousands of requests, summed up for the audit: a line for all that one client did with one
//! thing, when it is over or after a minute.
//!
//! Requests without a good token, and failed log-ins, are summed up for longer the longer they go on. Otherwise a
//! stranger who tries passwords for days would fill the audit, and push creations and deletions out of it.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::app::audit::{Actor, AuditLine, Outcome};
use crate::app::export::slot::Export;
use crate::app::{App, Error};
use crate::auth::{BadToken, Session};

/// After so long without another request, it is over.
const QUIET: Duration = Duration::from_secs(5);

/// So long is what one line is about, at most.
const LONGEST: Duration = Duration::from_secs(60);

/// So long is what one line is about at most, where a stranger goes on.
const STRANGERS_LONGEST: Duration = Duration::from_secs(3600);

/// Accounts of failed log-ins that have lines of their own, for one host.
const ACCOUNTS: usize = 8;

/// Accounts that are told apart in the line of all others.
const ACCOUNTS_COUNTED: usize = 1000;

/// How often it is looked what is over.
const ROUND: Duration = Duration::from_secs(1);

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
        let longest = LONGEST * (1 << self.lines.saturating_sub(1).min(6));
        is_quiet || self.since.elapsed() >= longest.min(STRANGERS_LONGEST)
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    bytes: u64,
    ranges: u64,
}

/// All that is being summed up.
#[derive(Debug, Default)]
pub(crate) struct AuditTrail(Mutex<HashMap<Subject, Sum>>);

impl AuditTrail {
    fn sums(&self) -> MutexGuard<'_, HashMap<Subject, Sum>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request about `what`.
    fn add(&self, actor: &Actor, action: &'static str, what: String, outcome: Outcome, sent: Option<Sent>) {
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
    fn write_of(&self, actor: &Actor, action: &'static str, what: &str) {
        let actor = actor.without_request();
        let mut sums = self.sums();
        let of = |subject: &Subject| {
            subject.actor == actor && subject.action == action && subject.what.as_deref() == Some(what)
        };
        write(sums.extract_if(|subject, _| of(subject)));
    }

    /// Writes what is over.
    fn write_what_is_over(&self) {
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
    fn write_all(&self) {
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

impl Export {
    fn what(&self) -> String {
        format!("{}/{}/{}", self.vm, self.snapshot, self.disk)
    }

    /// Bytes that no line has told of yet; from now on they are told of.
    fn untold(&self) -> u64 {
        let done = self.done.load(Ordering::Relaxed);
        done.saturating_sub(self.told.swap(done, Ordering::Relaxed))
    }
}

impl App {
    /// Writes down that something was read, which one client may do many times.
    pub fn audit_read<T>(
        &self,
        session: &Session,
        action: &'static str,
        what: impl std::fmt::Display,
        outcome: &Result<T, Error>,
    ) {
        self.trail.add(&Actor::from(session), action, what.to_string(), Outcome::of(outcome), None);
    }

    /// Writes down that a request came without a good token. Which paths were asked for is in the log.
    pub fn audit_stranger(&self, address: Option<IpAddr>, request_id: Option<Arc<str>>, path: &str) {
        let (actor, outcome) = (Actor::stranger(address, request_id), Outcome::of::<()>(&Err(BadToken.into())));
        // Not a line for each path: a stranger could fill the trail with them.
        let subject = Subject { actor: actor.without_request(), action: "request", what: None, account: None, outcome };
        self.trail.add_to(subject, &actor, path.to_owned(), None);
    }

    /// Writes down that a log-in ended. What a stranger types as a name may be a password: only a good one is
    /// named, and another has a hash that shows who is tried again and again.
    pub(crate) fn audit_log_in<T>(
        &self,
        user: &str,
        address: Option<IpAddr>,
        request_id: Option<Arc<str>>,
        outcome: &Result<T, Error>,
    ) {
        let mut actor = Actor::stranger(address, request_id);
        if outcome.is_ok() {
            actor = actor.named(user);
        }
        match outcome {
            Ok(_) => actor.did(LOG_IN, "", outcome),
            // The manager was not asked about the account.
            Err(Error::Throttled) => self.trail.add(&actor, LOG_IN, String::new(), Outcome::of(outcome), None),
            Err(_) => self.trail.add_failed_log_in(&actor, self.tokens.account_hash(user), Outcome::of(outcome)),
        }
    }

    /// Adds a body of a disk that has ended.
    pub(crate) fn audit_export(&self, export: &Export) {
        let all = export.done.load(Ordering::Relaxed) == export.total;
        let outcome = if all { Outcome::DONE } else { Outcome { name: "cut", reason: export.why_cut() } };
        let sent = Sent { bytes: export.untold(), ranges: export.ranges };
        self.trail.add(&export.actor, "export", export.what(), outcome, Some(sent));
        if export.is_whole {
            self.trail.write_of(&export.actor, "export", &export.what());
        }
    }

    /// Adds a body of a disk that was refused a place.
    pub(crate) fn audit_refused_export<T>(&self, actor: &Actor, what: String, outcome: &Result<T, Error>) {
        self.trail.add(actor, "export", what, Outcome::of(outcome), None);
    }

    /// Writes down what is over, now and then, until `stop`.
    pub async fn audit_reads_until(self: Arc<Self>, stop: CancellationToken) {
        let mut told = Instant::now();
        while stop.run_until_cancelled(tokio::time::sleep(ROUND)).await.is_some() {
            if told.elapsed() >= LONGEST {
                told = Instant::now();
                self.exports.each(|entry| {
                    let sent = Sent { bytes: if entry.works { entry.what.untold() } else { 0 }, ranges: 0 };
                    if sent.bytes > 0 {
                        let under_way = Outcome { name: "under way", reason: None };
                        self.trail.add(&entry.what.actor, "export", entry.what.what(), under_way, Some(sent));
                    }
                });
            }
            self.trail.write_what_is_over();
        }
    }

    /// Writes down all that was not yet. Bodies that are still sent end with the service.
    pub fn finish_audit(&self) {
        self.exports.each(|entry| {
            if entry.works {
                let sent = Sent { bytes: entry.what.untold(), ranges: entry.what.ranges };
                let stopped = Outcome { name: "cut", reason: Some("the service stopped".to_owned()) };
                self.trail.add(&entry.what.actor, "export", entry.what.what(), stopped, Some(sent));
            }
        });
        self.trail.write_all();
    }
}
