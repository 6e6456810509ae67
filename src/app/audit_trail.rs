//! What is done in thousands of requests, summed up for the audit: a line for all that one client did with one
//! thing, when it is over or after a minute.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::audit::{Actor, Line, Outcome};
use super::reads::Export;
use super::{App, Error};
use crate::auth::{BadToken, Session};

/// After so long without another request, it is over.
const QUIET: Duration = Duration::from_secs(5);

/// So long is what one line is about, at most.
const LONGEST: Duration = Duration::from_secs(60);

/// How often it is looked what is over.
const ROUND: Duration = Duration::from_secs(1);

/// Things that are summed up at a time, at most.
const MOST: usize = 10_000;

/// What a line is about: requests for which it would be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Subject {
    /// Without the request.
    actor: Actor,
    action: &'static str,
    /// Nothing, where it does not tell requests apart.
    what: Option<String>,
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
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    bytes: u64,
    ranges: u64,
}

/// All that is being summed up.
#[derive(Debug, Default)]
pub(super) struct AuditTrail(Mutex<HashMap<Subject, Sum>>);

impl AuditTrail {
    fn sums(&self) -> MutexGuard<'_, HashMap<Subject, Sum>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a request about `what`.
    fn add(&self, actor: &Actor, action: &'static str, what: String, outcome: Outcome, sent: Option<Sent>) {
        let subject = Subject { actor: actor.without_request(), action, what: Some(what.clone()), outcome };
        self.add_to(subject, actor, what, sent);
    }

    /// Adds a request to what there is of its subject. Where nothing was sent of a disk, the first one has a line at
    /// once.
    fn add_to(&self, subject: Subject, actor: &Actor, what: String, sent: Option<Sent>) {
        let mut sums = self.sums();
        let is_new = !sums.contains_key(&subject);
        if is_new && sums.len() >= MOST {
            write_all(&mut sums, |_| true);
        }
        if is_new && sent.is_none() {
            let mut line = Line::new(actor, subject.action, &what, &subject.outcome);
            line.requests = Some(1);
            line.write();
        }
        let now = Instant::now();
        let empty = || Sum { since: now, last: now, actor: actor.clone(), what, requests: 0, sent: None };
        let sum = sums.entry(subject).or_insert_with(empty);
        (sum.last, sum.actor) = (now, actor.clone());
        if let Some(more) = sent {
            let Sent { bytes, ranges } = sum.sent.unwrap_or_default();
            sum.sent = Some(Sent { bytes: bytes + more.bytes, ranges: ranges + more.ranges });
        }
        if !is_new || sent.is_some() {
            sum.requests += 1;
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
        write_all(&mut self.sums(), |sum| sum.last.elapsed() >= QUIET || sum.since.elapsed() >= LONGEST);
    }

    /// Writes everything.
    fn write_all(&self) {
        write_all(&mut self.sums(), |_| true);
    }
}

fn write_all(sums: &mut HashMap<Subject, Sum>, mut which: impl FnMut(&Sum) -> bool) {
    write(sums.extract_if(|_, sum| which(sum)));
}

fn write(sums: impl Iterator<Item = (Subject, Sum)>) {
    for (subject, sum) in sums.filter(|(_, sum)| sum.requests > 0) {
        let mut line = Line::new(&sum.actor, subject.action, &sum.what, &subject.outcome);
        line.requests = Some(sum.requests);
        line.bytes = sum.sent.map(|sent| sent.bytes);
        line.ranges = sum.sent.map(|sent| sent.ranges);
        line.write();
    }
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
        let subject = Subject { actor: actor.without_request(), action: "request", what: None, outcome };
        self.trail.add_to(subject, &actor, path.to_owned(), None);
    }

    /// Writes down that a log-in ended. What a stranger types as a name may be a password: only a good one is
    /// named, and another has a hash that shows who is tried again and again.
    pub(super) fn audit_log_in<T>(
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
        if let Err(Error::Throttled) = outcome {
            self.trail.add(&actor, "log-in", String::new(), Outcome::of(outcome), None);
            return;
        }
        let account = outcome.is_err().then(|| self.tokens.account_hash(user));
        let outcome = Outcome::of(outcome);
        let mut line = Line::new(&actor, "log-in", "", &outcome);
        line.account = account.as_deref();
        line.write();
    }

    /// Adds a body of a disk that has ended.
    pub(super) fn audit_export(&self, export: &Export) {
        let all = export.done.load(Ordering::Relaxed) == export.total;
        let outcome = if all { Outcome::DONE } else { Outcome { name: "cut", reason: export.why_cut() } };
        let sent = Sent { bytes: export.untold(), ranges: export.ranges };
        self.trail.add(&export.actor, "export", export.what(), outcome, Some(sent));
        if export.is_whole {
            self.trail.write_of(&export.actor, "export", &export.what());
        }
    }

    /// Adds a body of a disk that was refused a place.
    pub(super) fn audit_refused_export<T>(&self, actor: &Actor, what: String, outcome: &Result<T, Error>) {
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
