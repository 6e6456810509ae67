//! `status`: running and waiting work, and what needs attention.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use serde_json::value::RawValue;

use super::args::StatusArgs;
use super::repositories::free_of_total;
use super::service::Service;
use super::webhooks;
use crate::api::{self, Queue, ServiceStatus};
use crate::cli::client::table::{self, Align, Table};
use crate::cli::terminal::{self, Lines};
use crate::client::Client;

/// The status is worth more than the names in it.
const NAMES_PATIENCE: Duration = Duration::from_secs(5);

/// Characters of a bar of progress.
const BAR: usize = 10;

/// Characters of a snapshot's id, which the other commands accept.
const SHORT_ID: usize = 8;

pub fn run(args: &StatusArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    let document: Box<RawValue> = client.get("/status")?;
    if args.json {
        terminal::print_json(&*document, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status: ServiceStatus = serde_json::from_str(document.get())?;
    let mut names = Names::default();
    names.learn(&status, &client);
    let width = terminal::size().map(|(columns, _)| columns);
    page(&status, &names, args.ascii || !terminal::is_utf8(), width).print()?;
    Ok(ExitCode::SUCCESS)
}

/// The friendly names of VMs. The status has only their ids.
#[derive(Default)]
pub struct Names(HashMap<String, String>);

impl Names {
    /// Asks for the VMs if the status has one whose name is not known. Without an answer, its id is its name.
    pub fn learn(&mut self, status: &ServiceStatus, client: &Client) {
        let queues = [&status.creates.running, &status.creates.waiting].into_iter().flatten().map(|it| &it.vm_id);
        let exports = [&status.exports.running, &status.exports.waiting].into_iter().flatten().map(|it| &it.vm_id);
        let problems = status.leftovers.iter().map(|it| &it.vm_id);
        let hooks = status.owed_hooks.iter().filter_map(|it| it.vm_id.as_ref());
        let ids = || queues.clone().chain(exports.clone()).chain(problems.clone()).chain(hooks.clone());
        if ids().all(|id| self.0.contains_key(id)) {
            return;
        }
        let vms: Vec<api::Vm> = client.get_within("/vms", NAMES_PATIENCE).unwrap_or_default();
        for vm in vms {
            if !vm.friendly_name.is_empty() {
                self.0.insert(vm.name, vm.friendly_name);
            }
        }
        // It is not asked for again.
        for id in ids() {
            self.0.entry(id.clone()).or_insert_with(|| id.clone());
        }
    }

    fn of(&self, id: &str) -> String {
        self.0.get(id).map_or(id, String::as_str).to_owned()
    }
}

/// The status as people read it, at most `width` columns wide.
pub fn page(status: &ServiceStatus, names: &Names, ascii: bool, width: Option<usize>) -> Lines {
    let mut lines = Lines::default();
    lines.add(format_args!("coriolis-ovm-exporter {}, {}", status.version, table::local_text(&status.at)));
    section(&mut lines, &heading("creations", &status.creates), &creations(&status.creates, names), width);
    section(&mut lines, &heading("downloads", &status.exports), &downloads(&status.exports, names, ascii), width);
    section(&mut lines, &heading("log-ins", &status.log_ins), &log_ins(&status.log_ins), width);
    if !status.cost_requests.running.is_empty() {
        let heading = heading("cost requests", &status.cost_requests);
        section(&mut lines, &heading, &cost_requests(&status.cost_requests), width);
    }
    section(&mut lines, "repositories", &repositories(&status.repositories), width);
    if let Some(database) = &status.database {
        section(&mut lines, "database", &database_rows(database), width);
        if !database.unsearched.is_empty() {
            section(&mut lines, "not searched for snapshots yet", &unsearched(&database.unsearched), width);
        }
    }
    if let Some(api::SessionStatus { renewable, revocations, throttled_log_ins }) = &status.sessions {
        lines.add("");
        lines.add(format_args!(
            "sessions: {renewable} with a refresh token, {revocations} revocations, {throttled_log_ins} throttled"
        ));
    }
    if let Some(found) = status.webhooks.as_ref().filter(|found| !found.is_empty()) {
        section(&mut lines, "webhooks", &webhooks::table_of(found), width);
    }
    if let Some(audit) = &status.audit {
        lines.add("");
        lines.add(format_args!("audit: newest line {}:{}", audit.seq, audit.hash));
    }
    let warnings = warnings(status);
    if !warnings.is_empty() {
        section(&mut lines, "warnings", &warnings, width);
    }
    if !status.leftovers.is_empty() {
        let heading = "leftovers: deleted or unfinished snapshots whose files could not be removed yet";
        section(&mut lines, heading, &leftovers(&status.leftovers, names), width);
    }
    if !status.owed_hooks.is_empty() {
        let heading = "PENDING POST HOOKS: they failed, so these guests may still be frozen";
        section(&mut lines, heading, &owed_hooks(&status.owed_hooks, names), width);
    }
    lines
}

fn warnings(status: &ServiceStatus) -> Table {
    let mut table = Table::new(&[("ABOUT", Align::Left), ("WARNING", Align::Text)]);
    for problem in status.confinement.iter().flat_map(|confinement| &confinement.problems) {
        table.row(vec!["confinement".to_owned(), problem.clone()]);
    }
    for webhook in status.webhooks.iter().flatten() {
        if let Some(text) = webhooks::warning(webhook) {
            table.row(vec![format!("webhook {}", webhook.name), text]);
        }
    }
    for problem in status.config.iter().flat_map(api::ConfigStatus::problems) {
        table.row(vec!["config".to_owned(), problem]);
    }
    for warning in status.warnings.iter().flatten() {
        table.row(vec!["files".to_owned(), warning.clone()]);
    }
    table
}

fn section(lines: &mut Lines, heading: &str, table: &Table, width: Option<usize>) {
    lines.add("");
    lines.add(heading);
    if !table.is_empty() {
        lines.append(&table.lines_within(width));
    }
}

fn heading<T>(what: &str, queue: &Queue<T>) -> String {
    let (running, waiting) = (queue.running.len(), queue.waiting.len());
    format!("{what}: {running} of {} running, {waiting} waiting", queue.limit)
}

fn each<T>(queue: &Queue<T>) -> impl Iterator<Item = (&T, String)> {
    let running = queue.running.iter().map(|one| (one, "running".to_owned()));
    running.chain(queue.waiting.iter().map(|one| (one, "waiting".to_owned())))
}

fn creations(queue: &Queue<api::Create>, names: &Names) -> Table {
    let mut table =
        Table::new(&[("STATE", Align::Left), ("TIME", Align::Right), ("VM", Align::Text), ("USER", Align::Text)]);
    for (create, state) in each(queue) {
        table.row(vec![state, duration(create.seconds), names.of(&create.vm_id), create.user.clone()]);
    }
    table
}

fn downloads(queue: &Queue<api::Export>, names: &Names, ascii: bool) -> Table {
    let mut table = Table::new(&[
        ("STATE", Align::Left),
        ("VM", Align::Text),
        ("DISK", Align::Text),
        ("SNAPSHOT", Align::Left),
        ("PROGRESS", Align::Left),
        ("DONE", Align::Left),
        ("RATE", Align::Right),
        ("LEFT", Align::Right),
        ("USER", Align::Text),
        ("FROM", Align::Text),
    ]);
    for (export, state) in each(queue) {
        let (done, total) = (export.bytes_done, export.bytes_total);
        table.row(vec![
            state,
            names.of(&export.vm_id),
            export.disk.clone(),
            export.snapshot_id.chars().take(SHORT_ID).collect(),
            progress(done, total, ascii),
            format!("{} of {}", table::bytes(done), table::bytes(total)),
            format!("{}/s", table::bytes(export.bytes_per_second)),
            export.seconds_left.map_or_else(|| "-".to_owned(), |seconds| duration(seconds as f64)),
            export.user.clone(),
            export.address.clone().unwrap_or_default(),
        ]);
    }
    table
}

fn log_ins(queue: &Queue<api::LogIn>) -> Table {
    let mut table = Table::new(&[("STATE", Align::Left), ("TIME", Align::Right), ("FROM", Align::Text)]);
    for (log_in, state) in each(queue) {
        table.row(vec![state, duration(log_in.seconds), log_in.address.clone().unwrap_or_default()]);
    }
    table
}

fn cost_requests(queue: &Queue<api::CostRequest>) -> Table {
    let mut table = Table::new(&[("STATE", Align::Left), ("TIME", Align::Right), ("USER", Align::Text)]);
    for (request, state) in each(queue) {
        table.row(vec![state, duration(request.seconds), request.user.clone()]);
    }
    table
}

fn repositories(repositories: &[api::RepositoryStatus]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Text),
        ("MOUNT POINT", Align::Text),
        ("FREE", Align::Right),
        ("REQUIRED", Align::Right),
        ("SNAPSHOTS", Align::Right),
        ("STATUS", Align::Text),
    ]);
    for it in repositories {
        let mut status = match it.status {
            api::Status::Ok => "ok".to_owned(),
            api::Status::Error => format!("error: {}", it.reason.as_deref().unwrap_or("no reason is known")),
        };
        if let (Some(free), Some(required)) = (it.free_bytes, it.min_free_bytes)
            && free < required
        {
            status.push_str("; TOO LITTLE is free for a snapshot");
        }
        if let Some(count) = it.unknown_snapshots.filter(|count| *count > 0) {
            status.push_str(&format!("; {count} snapshots are not in the database (see adopt)"));
        }
        table.row(vec![
            it.alias.clone().unwrap_or_else(|| it.id.clone()),
            it.mount_point.clone().unwrap_or_else(|| "-".to_owned()),
            free_of_total(it.free_bytes, it.total_bytes),
            it.min_free_bytes.map_or_else(|| "-".to_owned(), table::bytes),
            it.snapshots.to_string(),
            status,
        ]);
    }
    table
}

fn database_rows(database: &api::DatabaseStatus) -> Table {
    let mut table = Table::new(&[("CHECKED", Align::Left), ("REBUILT", Align::Left), ("STATUS", Align::Text)]);
    let mut status = match database.status {
        api::Status::Ok => "ok".to_owned(),
        api::Status::Error => format!("error: {}", database.problem.as_deref().unwrap_or("no reason is known")),
    };
    if database.rebuilding {
        status.push_str("; it was damaged, and is being rebuilt: snapshots may be missing");
    }
    if database.rebuilt_at.is_some() {
        status.push_str(&format!("; the rebuilding has lost: {}", database.lost.join(", ")));
    }
    let rebuilt = database.rebuilt_at.as_deref().map(table::local_text).unwrap_or_default();
    table.row(vec![table::local_text(&database.checked_at), rebuilt, status]);
    table.without_empty_columns()
}

fn unsearched(parts: &[api::SkippedFolder]) -> Table {
    let mut table = Table::new(&[("PATH", Align::Left), ("REASON", Align::Text)]);
    for part in parts {
        table.row(vec![part.path.clone(), part.reason.clone()]);
    }
    table
}

fn leftovers(leftovers: &[api::Leftover], names: &Names) -> Table {
    let mut table = Table::new(&[("SNAPSHOT", Align::Left), ("VM", Align::Text), ("REASON", Align::Text)]);
    for leftover in leftovers {
        table.row(vec![leftover.id.clone(), names.of(&leftover.vm_id), leftover.reason.clone()]);
    }
    table
}

fn owed_hooks(pending: &[api::OwedHooks], names: &Names) -> Table {
    let mut table = Table::new(&[
        ("VM", Align::Text),
        ("SNAPSHOT", Align::Left),
        ("OPERATION", Align::Left),
        ("HOOKS", Align::Text),
        ("ATTEMPTS", Align::Right),
        ("REASON", Align::Text),
    ]);
    for it in pending {
        let known = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
        table.row(vec![
            it.vm_id.as_ref().map_or_else(|| "?".to_owned(), |id| names.of(id)),
            known(&it.snapshot_id),
            known(&it.operation),
            if it.hooks.is_empty() { "?".to_owned() } else { it.hooks.join(", ") },
            it.attempts.to_string(),
            it.reason.clone().unwrap_or_default(),
        ]);
    }
    table.without_empty_columns()
}

/// A bar, and the share in whole percent.
fn progress(done: u64, total: u64, ascii: bool) -> String {
    let share = |of: u64| (u128::from(done.min(total)) * u128::from(of) / u128::from(total.max(1))) as usize;
    let (full, empty) = if ascii { ("#", ".") } else { ("█", "░") };
    let filled = share(BAR as u64);
    format!("{}{} {:>3} %", full.repeat(filled), empty.repeat(BAR - filled), share(100))
}

/// A time of work, to the second.
fn duration(seconds: f64) -> String {
    let seconds = seconds as u64;
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = r#"{"version": "1", "at": "then", "log_ins": {"limit": 16, "running": [], "waiting": []},
        "cost_requests": {"limit": 1, "running": [{"user": "root", "seconds": 5}], "waiting": []},
        "creates": {"limit": 2, "running": [{"vm_id": "01", "user": "admin", "seconds": 61.5}], "waiting": []},
        "exports": {"limit": 12, "waiting": [], "running": [{"vm_id": "02", "snapshot_id": "6f2cdd2a-9f3c-4f0e",
            "disk": "a.img", "user": "admin\u001b[2J", "address": "10.0.0.1", "since": "then", "seconds": 3,
            "bytes_total": 4194304, "bytes_done": 1048576, "bytes_per_second": 524288, "seconds_left": 3700}]},
        "repositories": [{"id": "r", "alias": null, "mount_point": "/OVS", "total_bytes": 1048576, "free_bytes": 1024,
            "min_free_bytes": 2048, "snapshots": 3, "unknown_snapshots": 2, "status": "ok"}],
        "database": {"checked_at": "then", "status": "error", "problem": "it is damaged", "rebuilding": false,
            "rebuilt_at": "before", "lost": ["leases"]},
        "leftovers": [{"id": "6f2c", "vm_id": "01", "repositories": ["r"], "reason": "not mounted"}],
        "owed_hooks": [{"snapshot_id": "6f2c", "vm_id": "01", "operation": "create", "hooks": ["10-a", "20-b"],
            "attempts": 4}], "audit": {"seq": 7, "hash": "5f9c"}}"#;

    const PAGE: &str = "\
coriolis-ovm-exporter 1, then

creations: 1 of 2 running, 0 waiting
STATE    TIME  VM   USER
running  1:01  web  admin

downloads: 1 of 12 running, 0 waiting
STATE    VM  DISK   SNAPSHOT  PROGRESS          DONE                          RATE     LEFT  USER            FROM
running  02  a.img  6f2cdd2a  ##........  25 %  1.00 MiB of 4.00 MiB  512.00 KiB/s  1:01:40  admin\\u{1b}[2J  10.0.0.1

log-ins: 0 of 16 running, 0 waiting

cost requests: 1 of 1 running, 0 waiting
STATE    TIME  USER
running   5 s  root

repositories
NAME  MOUNT POINT                  FREE  REQUIRED  SNAPSHOTS  STATUS
r     /OVS         1.00 KiB of 1.00 MiB  2.00 KiB          3  ok; TOO LITTLE is free for a snapshot; 2 snapshots are \
                        not in the database (see adopt)

database
CHECKED  REBUILT  STATUS
then     before   error: it is damaged; the rebuilding has lost: leases

audit: newest line 7:5f9c

leftovers: deleted or unfinished snapshots whose files could not be removed yet
SNAPSHOT  VM   REASON
6f2c      web  not mounted

PENDING POST HOOKS: they failed, so these guests may still be frozen
VM   SNAPSHOT  OPERATION  HOOKS       ATTEMPTS
web  6f2c      create     10-a, 20-b         4
";

    #[test]
    fn all_work_and_all_problems_are_shown() {
        let names = Names(HashMap::from([("01".to_owned(), "web".to_owned())]));
        assert_eq!(page(&serde_json::from_str(STATUS).unwrap(), &names, true, None).as_str(), PAGE);
    }

    #[test]
    fn progress_ends_at_all() {
        for (done, total, expected) in [
            (0, 0, "..........   0 %"),
            (99, 100, "#########.  99 %"),
            (u64::MAX, u64::MAX, "########## 100 %"),
            (5, 4, "########## 100 %"),
        ] {
            assert_eq!(progress(done, total, true), expected);
        }
    }
}
