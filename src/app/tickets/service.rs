//! Makes, lists, ends and checks tickets.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::{self, TicketOp};
use crate::app::Error;
use crate::app::admission::{Admission, Entry};
use crate::app::audit::Actor;
use crate::app::common::Common;
use crate::app::error::Refusal;
use crate::app::inventory::Inventory;
use crate::app::retention::parse_duration;
use crate::app::session::Sessions;
use crate::app::tasks::{Service, Tasks};
use crate::auth::{BadToken, Proof, Session, Source, TicketHash, TicketSecret};
use crate::model::{DiskName, Permission, Snapshot, SnapshotId, VmId};
use crate::store::{Added, Store, Ticket, TicketLimits, TicketSource};
use crate::tls::ClientCertificate;

/// The `ttl` of a request without one, if that is permitted.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);

const LIMITS: TicketLimits = TicketLimits { of_user: 100, of_all: 1000 };

const NO_TICKET: Error =
    Error::NotFound("no such ticket: it has expired, was ended, or never existed; request a new one");

/// A disk of a snapshot.
pub type Target = (VmId, SnapshotId, DiskName);

/// What a request with a ticket may do.
pub struct OpenTicket {
    pub id: String,
    /// With what the rules permit the ticket's user now.
    pub session: Session,
    pub target: Target,
}

/// The tickets.
pub struct Tickets {
    inventory: Arc<Inventory>,
    sessions: Arc<Sessions>,
    admission: Arc<Admission>,
    store: Store,
    tasks: Tasks,
}

impl Service for Tickets {
    fn tasks(&self) -> &Tasks {
        &self.tasks
    }
}

impl Tickets {
    pub(crate) fn new(common: &Common, sessions: Arc<Sessions>) -> Self {
        let Common { inventory, admission, store, tasks, .. } = common.clone();
        Self { inventory, sessions, admission, store, tasks }
    }

    /// The longest `ttl`. `None`: there are no tickets.
    fn longest(&self) -> Option<Duration> {
        self.admission.policy.limits.get().max_ticket_ttl
    }

    /// Makes a ticket for a disk, which acts for the user of `session`.
    ///
    /// # Errors
    /// [`Error::BadRequest`], [`Error::NotFound`], [`Error::OtherVm`], [`Error::Refused`], [`Error::Store`];
    /// [`Error::NoSession`] if the token was revoked meanwhile.
    pub async fn create(
        self: &Arc<Self>,
        session: &Session,
        target: Target,
        request: api::CreateTicket,
    ) -> Result<(api::Ticket, TicketSecret), Error> {
        let session = session.clone();
        self.blocking(move |tickets| {
            let outcome = tickets.make(&session, &target, &request);
            let id = outcome.as_ref().ok().map(|(ticket, _)| ticket.id.as_str());
            record(session, "ticket", &target, id, &outcome);
            outcome
        })
        .await
    }

    fn make(
        &self,
        session: &Session,
        target: &Target,
        request: &api::CreateTicket,
    ) -> Result<(api::Ticket, TicketSecret), Error> {
        let snapshot = self.snapshot(session, target)?;
        let longest = self.longest().ok_or_else(|| {
            Error::BadRequest(
                "this service has no tickets (policy.max_ticket_ttl is 0); send a token instead".to_owned(),
            )
        })?;
        let ttl = request.ttl.as_deref().map(|text| parse_duration("ttl", text, longest)).transpose()?;
        let ops = request.ops.as_deref().unwrap_or(&[TicketOp::Read]);
        if ops.is_empty() {
            return Err(Error::BadRequest("ops: is empty; name \"read\", \"map\" or both".to_owned()));
        }
        // The body may have come long after the token was checked.
        if self.sessions.is_revoked(session) {
            return Err(BadToken.into());
        }
        let now = Timestamp::now();
        let expires = now + ttl.unwrap_or(DEFAULT_TTL.min(longest));
        let ticket = Ticket::new(
            (session.subject().to_owned(), stored(session)),
            (snapshot.vm.to_string(), snapshot.id, target.2.to_string()),
            (ops.contains(&TicketOp::Read), ops.contains(&TicketOp::Map)),
            (now.as_millisecond(), expires.as_millisecond()),
        );
        let secret = TicketSecret::make().map_err(|error| Error::Internal(error.to_string()))?;
        match self.store.tickets().add(&secret.hash().0, &ticket, LIMITS)? {
            Added::Yes => Ok((described(secret.hash(), &ticket), secret)),
            Added::TooMany => Err(Refusal::TooManyTickets { of_user: LIMITS.of_user, of_all: LIMITS.of_all }.into()),
            Added::Revoked => Err(BadToken.into()),
        }
    }

    /// The valid tickets of a disk: those of the user, and of all users for an administrator of the snapshot.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::OtherVm`], [`Error::Store`].
    pub async fn list(self: &Arc<Self>, session: &Session, target: Target) -> Result<Vec<api::Ticket>, Error> {
        let session = session.clone();
        self.blocking(move |tickets| {
            let found = tickets.visible(&session, &target)?;
            Ok(found.iter().map(|(hash, ticket)| described(*hash, ticket)).collect())
        })
        .await
    }

    /// Ends a ticket, and cuts off its downloads.
    ///
    /// # Errors
    /// Those of [`Tickets::list`]; [`Error::NotFound`] if the user may not see such a ticket.
    pub async fn end(self: &Arc<Self>, session: &Session, target: Target, id: String) -> Result<(), Error> {
        let session = session.clone();
        self.blocking(move |tickets| {
            let outcome = tickets.remove(&session, &target, &id);
            record(session, "ticket-end", &target, outcome.is_ok().then_some(&*id), &outcome);
            outcome
        })
        .await
    }

    fn remove(&self, session: &Session, target: &Target, id: &str) -> Result<(), Error> {
        let found = self.visible(session, target)?;
        let (hash, _) = found.iter().find(|(hash, _)| hash.id() == id).ok_or(NO_TICKET)?;
        self.store.tickets().remove(&hash.0)?;
        self.admission.exports.each(|Entry { work, .. }| {
            if work.details.actor.ticket() == Some(id) {
                work.end("the ticket was ended");
            }
        });
        Ok(())
    }

    fn visible(&self, session: &Session, target: &Target) -> Result<Vec<(TicketHash, Ticket)>, Error> {
        let snapshot = self.snapshot(session, target)?;
        let sees_all = self.inventory.check_snapshot(&session.needing(Permission::Administer), &snapshot).is_ok();
        let now = Timestamp::now().as_millisecond();
        let is_visible = |ticket: &Ticket| {
            ticket.snapshot() == snapshot.id
                && ticket.disk == target.2.as_str()
                && (sees_all || ticket.user == session.subject())
                && ticket.is_valid(now)
        };
        let mut found = self.store.tickets().all()?;
        found.retain(|(_, ticket)| is_visible(ticket));
        found.sort_by_key(|(_, ticket)| ticket.created_ms);
        Ok(found.into_iter().map(|(hash, ticket)| (TicketHash(hash), ticket)).collect())
    }

    fn snapshot(&self, session: &Session, (vm, id, disk): &Target) -> Result<Snapshot, Error> {
        let snapshot = self.inventory.snapshot_of(session, vm, *id)?;
        match snapshot.disk(disk) {
            Some(_) => Ok(snapshot),
            None => Err(Error::NotFound("the snapshot has no such disk")),
        }
    }

    /// Checks a ticket for `op` on the disk of this name, both from a URL. The session is that of a new request of its
    /// user, so each use has the rights that the user has then.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NotInTicket`], [`Error::Store`].
    pub async fn open(self: &Arc<Self>, secret: &str, disk: String, op: TicketOp) -> Result<OpenTicket, Error> {
        let hash = TicketHash::of(secret);
        self.run_inline_or_blocking(move |tickets| {
            let ticket = tickets.store.tickets().find(&hash.0)?.ok_or(NO_TICKET)?;
            if ticket.disk != disk {
                return Err(NO_TICKET);
            }
            let session = tickets.session(&ticket)?;
            let permits = match op {
                TicketOp::Read => ticket.may_read,
                TicketOp::Map => ticket.may_map,
            };
            if !permits {
                return Err(Error::NotInTicket(if op == TicketOp::Read { "read" } else { "map" }));
            }
            let (Ok(vm), Ok(disk)) = (ticket.vm.parse(), disk.parse()) else { return Err(NO_TICKET) };
            let target = (vm, ticket.snapshot(), disk);
            Ok(OpenTicket { id: hash.id(), session: session.needing(Permission::Read), target })
        })
        .await
    }

    /// Checks the ticket of a session again, if it has one: it may have ended since the request began.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Store`].
    pub(crate) async fn recheck(self: &Arc<Self>, session: &Session) -> Result<(), Error> {
        let Some(id) = session.requester().ticket.clone() else { return Ok(()) };
        self.run_inline_or_blocking(move |tickets| {
            let start = TicketHash::first_bytes(&id).ok_or(NO_TICKET)?;
            let ticket = tickets.store.tickets().find_by_start(start)?.ok_or(NO_TICKET)?;
            tickets.session(&ticket).map(|_| ())
        })
        .await
    }

    /// The session of a valid ticket's user.
    fn session(&self, ticket: &Ticket) -> Result<Session, Error> {
        if self.longest().is_none() || !ticket.is_valid(Timestamp::now().as_millisecond()) {
            return Err(NO_TICKET);
        }
        let source = proven(ticket.source.clone()).ok_or(NO_TICKET)?;
        self.sessions.of_ticket(ticket.user.clone(), source, ticket.proven_ms()).ok_or(NO_TICKET)
    }
}

/// Records in the audit what the user did with the ticket `id`.
fn record<T>(session: Session, action: &'static str, target: &Target, id: Option<&str>, outcome: &Result<T, Error>) {
    let mut requester = session.requester().clone();
    requester.ticket = id.map(Into::into);
    let (vm, snapshot, disk) = target;
    Actor::from(&session.with_request(requester)).did(action, format_args!("{vm}/{snapshot}/{disk}"), outcome);
}

fn stored(session: &Session) -> TicketSource {
    match session.source() {
        Source::LogIn => match session.proof() {
            Some(Proof { made_ms, log_in: Some(log_in) }) => TicketSource::TokenOf { log_in, issued_ms: made_ms },
            Some(Proof { made_ms, log_in: None }) => TicketSource::Token { issued_ms: made_ms },
            None => TicketSource::LogIn,
        },
        Source::Certificate(certificate) => {
            TicketSource::Certificate(certificate.chain().iter().map(|certificate| certificate.to_vec()).collect())
        }
        Source::Socket => TicketSource::Socket,
    }
}

fn proven(source: TicketSource) -> Option<Source> {
    Some(match source {
        TicketSource::LogIn | TicketSource::Token { .. } | TicketSource::TokenOf { .. } => Source::LogIn,
        TicketSource::Certificate(chain) => Source::Certificate(Arc::new(ClientCertificate::of_stored(chain)?)),
        TicketSource::Socket => Source::Socket,
    })
}

fn described(hash: TicketHash, ticket: &Ticket) -> api::Ticket {
    let time = |ms| Timestamp::from_millisecond(ms).map(api::time).unwrap_or_default();
    let ops = [(TicketOp::Read, ticket.may_read), (TicketOp::Map, ticket.may_map)];
    api::Ticket {
        id: hash.id(),
        user: ticket.user.clone(),
        ops: ops.into_iter().filter(|(_, permitted)| *permitted).map(|(op, _)| op).collect(),
        created_at: time(ticket.created_ms),
        expires_at: time(ticket.expires_ms),
    }
}
