//! `snapshots list`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::value::RawValue;

use crate::api::{Snapshot, Status};
use crate::cli::client::exit::UsageError;
use crate::cli::client::table::{self, Align, Table};
use crate::cli::operator::args::SnapshotListArgs;
use crate::cli::operator::names::{VmName, find_vm, shown};
use crate::cli::operator::service::Service;
use crate::cli::terminal;
use crate::client::Client;

/// A snapshot, as the service sent it and parsed.
struct Listed {
    /// For people.
    vm: String,
    document: Box<RawValue>,
    snapshot: Snapshot,
}

pub fn run(args: &SnapshotListArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let selectors: Vec<Selector> = args.labels.iter().map(|text| Selector::parse(text)).collect::<Result<_, _>>()?;
    let client = Service::find(&args.target, config)?.client;
    let (vms, is_incomplete) = match &args.vm {
        Some(given) => (vec![find_vm(&client, given)?], false),
        None => with_snapshots(&client)?,
    };
    let named = vms.first().filter(|_| args.vm.is_some()).map(|vm| vm.shown.clone());
    let mut found = Vec::new();
    for vm in vms {
        let documents: Vec<Box<RawValue>> =
            client.get(&format!("/vms/{}/snapshots?chunks=false", vm.id)).with_context(|| vm.shown.clone())?;
        for document in documents {
            let snapshot: Snapshot = serde_json::from_str(document.get())?;
            if selectors.iter().all(|selector| selector.matches(&snapshot)) {
                found.push(Listed { vm: vm.shown.clone(), document, snapshot });
            }
        }
    }
    if args.json {
        let documents: Vec<&RawValue> = found.iter().map(|it| &*it.document).collect();
        terminal::print_json(&documents, false)?;
    } else if found.is_empty() {
        terminal::notice(nothing(named.as_deref(), !selectors.is_empty(), is_incomplete));
    } else {
        // The user knows which VM it is.
        let vm = |it: &Listed| if args.vm.is_some() { String::new() } else { it.vm.clone() };
        let rows: Vec<(String, &Snapshot)> = found.iter().map(|it| (vm(it), &it.snapshot)).collect();
        table_of(&rows).print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The VMs that have snapshots, and whether there may be others in a repository that is unavailable.
fn with_snapshots(client: &Client) -> anyhow::Result<(Vec<VmName>, bool)> {
    let vms = client.vms()?;
    let is_incomplete = vms.iter().any(|vm| vm.unavailable_repository.is_some());
    let found = vms.iter().filter(|vm| vm.unavailable_repository.is_none() && !vm.snapshots.is_empty());
    Ok((found.map(|vm| VmName { id: vm.name.clone(), shown: shown(vm) }).collect(), is_incomplete))
}

/// What an empty list means.
fn nothing(vm: Option<&str>, has_selectors: bool, is_incomplete: bool) -> String {
    let labels = if has_selectors { " with these labels" } else { "" };
    let unknown = if is_incomplete { "; those of a repository that is unavailable are unknown (see vms)" } else { "" };
    match vm {
        Some(vm) => format!("{vm} has no snapshots{labels}{unknown}"),
        None => format!("there are no snapshots{labels}{unknown}"),
    }
}

/// `KEY` or `KEY=VALUE`.
struct Selector {
    key: String,
    value: Option<String>,
}

impl Selector {
    fn parse(text: &str) -> Result<Self, UsageError> {
        let (key, value) = text.split_once('=').map_or((text, None), |(key, value)| (key, Some(value)));
        if key.is_empty() {
            return Err(UsageError(format!("--label {text:?}: expected KEY or KEY=VALUE")));
        }
        Ok(Self { key: key.to_owned(), value: value.map(str::to_owned) })
    }

    fn matches(&self, snapshot: &Snapshot) -> bool {
        let found = snapshot.labels.get(&self.key);
        found.is_some_and(|found| self.value.as_ref().is_none_or(|value| value == found))
    }
}

/// A row for each snapshot. Columns without any text are left out.
pub fn table_of(snapshots: &[(String, &Snapshot)]) -> Table {
    let mut table = Table::new(&[
        ("SNAPSHOT", Align::Left),
        ("VM", Align::Text),
        ("CREATED", Align::Left),
        ("DISKS", Align::Right),
        ("SIZE", Align::Right),
        ("CONSISTENCY", Align::Left),
        ("STATUS", Align::Text),
        ("EXPIRES", Align::Left),
        ("LABELS", Align::Text),
        ("DESCRIPTION", Align::Text),
    ]);
    for (vm, snapshot) in snapshots {
        table.row(vec![
            snapshot.id.clone(),
            vm.clone(),
            table::local_text(&snapshot.created_at),
            snapshot.disks.len().to_string(),
            table::bytes(snapshot.disks.iter().map(|disk| disk.size).sum()),
            snapshot.consistency.clone(),
            status(snapshot),
            snapshot.retention.expires_at.as_deref().map(table::local_text).unwrap_or_default(),
            labels(snapshot),
            snapshot.description.clone().unwrap_or_default(),
        ]);
    }
    table.without_empty_columns()
}

/// Whether all disks can be used.
fn status(snapshot: &Snapshot) -> String {
    let faults = snapshot.disks.iter().filter(|disk| disk.status == Status::Error);
    let faults = faults.map(|disk| format!("{}: {}", disk.name, disk.status_reason.as_deref().unwrap_or("error")));
    let faults: Vec<String> = faults.collect();
    if faults.is_empty() { "ok".to_owned() } else { format!("error: {}", faults.join("; ")) }
}

pub fn labels(snapshot: &Snapshot) -> String {
    let labels = snapshot.labels.iter().map(|(key, value)| format!("{key}={value}"));
    labels.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(rest: &str) -> Snapshot {
        let text = format!(
            r#"{{"id": "6f2cdd2a-9f3c", "vm_id": "01", "vmID": "01", "created_at": "then", "created_by": "root",
                "consistency": "crash", "hooks": [] {rest}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn labels_select_snapshots() {
        let snapshot = snapshot(r#", "labels": {"job": "nightly", "empty": ""}"#);
        let matches = |text: &str| Selector::parse(text).unwrap().matches(&snapshot);
        assert!(["job", "job=nightly", "empty", "empty="].into_iter().all(matches));
        assert!(!["jo", "job=", "job=night", "empty=x"].into_iter().any(matches));
        assert!(Selector::parse("=x").is_err() && Selector::parse("").is_err());
    }

    #[test]
    fn an_empty_list_says_what_it_means() {
        assert_eq!(nothing(None, false, false), "there are no snapshots");
        assert_eq!(nothing(Some("web-1"), true, false), "web-1 has no snapshots with these labels");
        let unknown = "there are no snapshots; those of a repository that is unavailable are unknown (see vms)";
        assert_eq!(nothing(None, false, true), unknown);
    }

    #[test]
    fn a_snapshot_has_a_row_and_empty_columns_are_left_out() {
        let disk = r#"{"parent_path": "/a", "path": "/b", "snapshot_id": "6f", "snapshotID": "6f", "name": "a.img",
            "repo_mountpoint": "/", "size": 1024, "status": "error", "status_reason": "is missing"}"#;
        let plain = snapshot("");
        let lost = snapshot(&format!(r#", "labels": {{"job": "x\n"}}, "disks": [{disk}]"#));
        let expected = "\
SNAPSHOT       CREATED  DISKS  SIZE  CONSISTENCY  STATUS
6f2cdd2a-9f3c  then         0   0 B  crash        ok
";
        assert_eq!(table_of(&[(String::new(), &plain)]).lines().as_str(), expected);
        let both = table_of(&[("web".to_owned(), &plain), ("db".to_owned(), &lost)]).lines();
        let row = "6f2cdd2a-9f3c  db   then         1  1.00 KiB  crash        error: a.img: is missing  job=x\\n\n";
        assert!(both.as_str().ends_with(row), "{}", both.as_str());
    }
}
