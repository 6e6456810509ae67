//! `GET /status`: its parameters, and the response as text.

use std::fmt::Write;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use super::failure::Failure;
use super::query::Parameters;
use crate::api::{ConfigStatus, DatabaseStatus, Queue, ServiceStatus, SessionStatus, Status, WebhookStatus};
use crate::app::Error;
use crate::app::ops::StatusQuery;
use crate::model::{printable, size};

/// The parameters `cost` and `vm`.
pub(super) struct StatusParameters(pub StatusQuery);

impl<S: Send + Sync> FromRequestParts<S> for StatusParameters {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let query = Parameters::of(parts, state, &["cost", "vm"]).await?;
        let vm = query.value("vm").filter(|text| !text.is_empty()).map(str::parse).transpose();
        let vm = vm.map_err(|error| Error::BadRequest(format!("vm: {error}")))?;
        Ok(Self(StatusQuery { cost: query.bool_or("cost", false)?, vm }))
    }
}

/// Renders the status as text.
pub(super) fn render(status: &ServiceStatus) -> String {
    let mut page = format!("coriolis-ovm-exporter {}, {}\n", status.version, status.at);
    heading(&mut page, "snapshots being created", &status.creates);
    for (create, state) in each(&status.creates) {
        let _ =
            writeln!(page, "  {state} {} by {:?} for {:.0} s", create.vm_ids.join(", "), create.user, create.seconds);
    }
    heading(&mut page, "exports", &status.exports);
    for (export, state) in each(&status.exports) {
        let left = export.seconds_left.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds} s"));
        let _ = writeln!(
            page,
            "  {state} for {:.0} s {}/{} to {} for {:?}: {} of {}, {}/s, {left} left",
            export.seconds,
            export.snapshot_id,
            printable(&export.disk),
            export.address.as_deref().unwrap_or("-"),
            export.user,
            size(export.bytes_done),
            size(export.bytes_total),
            size(export.bytes_per_second),
        );
    }
    heading(&mut page, "log-ins", &status.log_ins);
    for (log_in, state) in each(&status.log_ins) {
        let address = log_in.address.as_deref().unwrap_or("-");
        let _ = writeln!(page, "  {state} from {address} for {:.0} s", log_in.seconds);
    }
    if let Some(sessions) = &status.sessions {
        let SessionStatus { renewable, revocations, throttled_log_ins } = sessions;
        let _ = writeln!(page, "  {renewable} renewable, {revocations} revocations, {throttled_log_ins} throttled");
    }
    heading(&mut page, "cost requests", &status.cost_requests);
    for (request, state) in each(&status.cost_requests) {
        let _ = writeln!(page, "  {state} by {:?} for {:.0} s", request.user, request.seconds);
    }
    page += "\nrepositories\n";
    for entry in &status.repositories {
        let space = match (entry.free_bytes, entry.total_bytes, entry.min_free_bytes) {
            (Some(free), Some(total), Some(min_free)) => {
                let low = if free < min_free { ", TOO LITTLE" } else { "" };
                format!("{} free of {} (min_free_space {}{low})", size(free), size(total), size(min_free))
            }
            _ => "size unknown".to_owned(),
        };
        let problem = match entry.status {
            Status::Ok => String::new(),
            Status::Error => format!(", PROBLEM: {}", printable(entry.reason.as_deref().unwrap_or("unknown"))),
        };
        let unknown = match entry.unknown_snapshots {
            None | Some(0) => String::new(),
            Some(count) => format!(", and {count} not in the database (adopt --manifests)"),
        };
        let id = printable(&entry.id);
        let _ = writeln!(page, "  {id} {space}, {} snapshots{unknown}{problem}", entry.snapshots);
    }
    if let Some(database) = &status.database {
        database_section(&mut page, database);
    }
    let problems = status.confinement.iter().flat_map(|confinement| &confinement.problems);
    let problems = problems.map(|problem| format!("confinement: {problem}"));
    let config = status.config.iter().flat_map(ConfigStatus::problems);
    let warnings: Vec<String> = config.chain(status.warnings.iter().flatten().cloned()).chain(problems).collect();
    if !warnings.is_empty() {
        page += "\nwarnings\n";
    }
    for warning in warnings {
        let _ = writeln!(page, "  {}", printable(&warning));
    }
    let webhooks = status.webhooks.iter().flatten();
    for (index, webhook) in webhooks.enumerate() {
        page += if index == 0 { "\nwebhooks\n" } else { "" };
        let problem = webhook_problem(webhook).map(|problem| format!(", {}", printable(&problem))).unwrap_or_default();
        let _ = writeln!(page, "  {} {}: {} waiting{problem}", webhook.name, webhook.origin, webhook.queued);
    }
    if !status.leftovers.is_empty() {
        page += "\nfiles that could not be removed yet\n";
    }
    for leftover in &status.leftovers {
        let _ = writeln!(page, "  {} of {}: {}", leftover.id, leftover.vm_id, leftover.reason);
    }
    if !status.owed_hooks.is_empty() {
        page += "\nfailed post hooks: guests may still be frozen\n";
    }
    for pending in &status.owed_hooks {
        let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        let (snapshot, vm, operation) = (known(&pending.snapshot_id), known(&pending.vm_id), known(&pending.operation));
        let hooks = if pending.hooks.is_empty() { "unknown hooks".to_owned() } else { format!("{:?}", pending.hooks) };
        let reason = pending.reason.as_ref().map(|reason| format!(", {reason}")).unwrap_or_default();
        let _ = writeln!(page, "  {operation} {snapshot} of {vm}: {hooks}, {} attempts{reason}", pending.attempts);
    }
    if let Some(audit) = &status.audit {
        let _ = writeln!(page, "\naudit: newest line {}:{}", audit.seq, audit.hash);
    }
    if let Some(snapshots) = &status.snapshots {
        page += "\nsnapshots, and the bytes that deleting one would free\n";
        for snapshot in snapshots {
            let cost = match (snapshot.exclusive_bytes, &snapshot.reason) {
                (Some(bytes), _) => size(bytes),
                (None, reason) => format!("unknown: {}", printable(reason.as_deref().unwrap_or("no reason"))),
            };
            let _ = writeln!(page, "  {} {} of {}: {cost}", snapshot.id, snapshot.created_at, snapshot.vm_id);
        }
    }
    page
}

/// Why a webhook gets no events.
fn webhook_problem(webhook: &WebhookStatus) -> Option<String> {
    let error = webhook.last_error.as_ref()?;
    let state = if webhook.disabled { "DISABLED" } else { "PROBLEM" };
    Some(format!("{state}: {} ({})", error.reason, error.at))
}

fn database_section(page: &mut String, database: &DatabaseStatus) {
    let found = match (&database.status, &database.problem) {
        (Status::Ok, _) => "whole".to_owned(),
        (Status::Error, problem) => format!("PROBLEM: {}", printable(problem.as_deref().unwrap_or("unknown"))),
    };
    let _ = writeln!(page, "\ndatabase\n  checked {}: {found}", database.checked_at);
    if database.rebuilding {
        *page += "  it was damaged, and is being rebuilt: snapshots may be missing\n";
    }
    for part in &database.unsearched {
        let _ = writeln!(page, "  not searched: {}: {}", printable(&part.path), printable(&part.reason));
    }
    if let Some(at) = &database.rebuilt_at {
        let _ = writeln!(page, "  rebuilt {at}, without: {}", database.lost.join(", "));
    }
}

fn heading<T>(page: &mut String, what: &str, queue: &Queue<T>) {
    let (running, waiting) = (queue.running.len(), queue.waiting.len());
    let _ = writeln!(page, "\n{what}: {running} of {} at a time, {waiting} waiting", queue.limit);
}

fn each<T>(queue: &Queue<T>) -> impl Iterator<Item = (&T, &'static str)> {
    let running = queue.running.iter().map(|one| (one, "running"));
    running.chain(queue.waiting.iter().map(|one| (one, "waiting")))
}
