//! `snapshots show`: all that the service knows about a snapshot.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use serde_json::value::RawValue;

use super::list::labels;
use crate::api::{Definition, HookRun, Snapshot, SnapshotDisk, Status};
use crate::cli::client::table::{self, Align, Table};
use crate::cli::operator::args::SnapshotShowArgs;
use crate::cli::operator::names::{VmName, find_snapshot, find_vm, snapshots_of};
use crate::cli::operator::service::Service;
use crate::cli::terminal::{self, Lines};
use crate::client::Client;

pub fn run(args: &SnapshotShowArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    let vm = find_vm(&client, &args.vm)?;
    let listed = snapshots_of(&client, &vm)?;
    let id = find_snapshot(&listed, &vm, &args.snapshot)?;
    let (document, problem) = document(&client, &vm, &id)?;
    if args.json {
        terminal::print_json(&*document, false)?;
    } else {
        let mut snapshot: Snapshot = serde_json::from_str(document.get())?;
        // Only the list has the state of the files.
        if let Some(listed) = listed.into_iter().find(|it| it.id == id) {
            for (disk, listed) in snapshot.disks.iter_mut().zip(listed.disks) {
                (disk.status, disk.status_reason) = (listed.status, listed.status_reason);
            }
        }
        page(&snapshot, &vm, terminal::size().map(|(columns, _)| columns)).print()?;
    }
    if let Some(problem) = problem {
        terminal::notice(format_args!("the disks cannot be read: {problem}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The snapshot with the sums of its chunks. If its disks cannot be read, it is what the list of snapshots has, with the
/// reason.
fn document(client: &Client, vm: &VmName, id: &str) -> anyhow::Result<(Box<RawValue>, Option<String>)> {
    let snapshots = format!("/vms/{}/snapshots", vm.id);
    let error = match client.get(&format!("{snapshots}/{id}?summary=true")) {
        Ok(document) => return Ok((document, None)),
        Err(error) => error,
    };
    let listed: Vec<Box<RawValue>> = client.get(&format!("{snapshots}?chunks=false&definition=true"))?;
    let is_wanted =
        |document: &RawValue| serde_json::from_str::<Snapshot>(document.get()).is_ok_and(|snapshot| snapshot.id == id);
    match listed.into_iter().find(|document| is_wanted(document)) {
        Some(document) => Ok((document, Some(error.to_string()))),
        None => Err(error).with_context(|| vm.shown.clone()),
    }
}

fn page(snapshot: &Snapshot, vm: &VmName, width: Option<usize>) -> Lines {
    let mut lines = Lines::default();
    let known = |text: Option<&str>, otherwise: &str| text.map_or_else(|| otherwise.to_owned(), str::to_owned);
    let time = |text: &Option<String>, otherwise: &str| {
        text.as_deref().map_or_else(|| otherwise.to_owned(), table::local_text)
    };
    field(&mut lines, "snapshot", &snapshot.id);
    field(&mut lines, "VM", &vm.shown);
    let created = format!("{} by {}", table::local_text(&snapshot.created_at), snapshot.created_by);
    field(&mut lines, "created", &created);
    let reason = snapshot.consistency_reason.as_ref().map(|reason| format!(": {reason}"));
    field(&mut lines, "consistency", &format!("{}{}", snapshot.consistency, reason.unwrap_or_default()));
    let freeze = snapshot.freeze_ms.map_or_else(|| "unknown".to_owned(), |freeze| format!("at most {freeze} ms"));
    field(&mut lines, "freeze", &freeze);
    field(&mut lines, "expires", &time(&snapshot.retention.expires_at, "never"));
    field(&mut lines, "leased until", &time(&snapshot.retention.leased_until, "-"));
    field(&mut lines, "labels", &known(Some(labels(snapshot).as_str()).filter(|text| !text.is_empty()), "-"));
    field(&mut lines, "description", &known(snapshot.description.as_deref(), "-"));
    lines.add("");
    lines.append(&disks(&snapshot.disks).lines_within(width));
    if !snapshot.hooks.is_empty() {
        lines.add("");
        lines.append(&hooks(&snapshot.hooks).lines_within(width));
    }
    if let Some(definition) = &snapshot.definition {
        lines.add("");
        add_definition(&mut lines, definition);
    }
    lines
}

fn field(lines: &mut Lines, name: &str, value: &str) {
    lines.add(format_args!("{name:<13} {value}"));
}

fn disks(disks: &[SnapshotDisk]) -> Table {
    let mut table = Table::new(&[
        ("DISK", Align::Left),
        ("SIZE", Align::Right),
        ("DATA", Align::Right),
        ("STATUS", Align::Text),
        ("VM'S DISK", Align::Text),
        ("FILE", Align::Text),
    ]);
    for disk in disks {
        let status = match disk.status {
            Status::Ok => "ok".to_owned(),
            Status::Error => format!("error: {}", disk.status_reason.as_deref().unwrap_or("no reason is known")),
        };
        table.row(vec![
            disk.name.clone(),
            table::bytes(disk.size),
            disk.map.as_ref().map_or_else(|| "-".to_owned(), |map| table::bytes(map.data_bytes)),
            status,
            disk.parent_path.clone(),
            disk.path.clone(),
        ]);
    }
    table
}

fn hooks(hooks: &[HookRun]) -> Table {
    let mut table = Table::new(&[
        ("HOOK", Align::Text),
        ("KIND", Align::Left),
        ("STAGE", Align::Left),
        ("OUTCOME", Align::Left),
        ("TIME", Align::Right),
        ("DETAIL", Align::Text),
    ]);
    for hook in hooks {
        let time = format!("{} ms", hook.duration_ms);
        let HookRun { name, kind, stage, outcome, detail, .. } = hook;
        table.row(vec![name.clone(), kind.clone(), stage.clone(), outcome.clone(), time, detail.clone()]);
    }
    table
}

fn add_definition(lines: &mut Lines, definition: &Definition) {
    let amount = |now: Option<u64>, most: Option<u64>, unit: &str| match (now, most) {
        (Some(now), Some(most)) if most != now => Some(format!("{now}{unit}, at most {most}{unit}")),
        (now, most) => now.or(most).map(|amount| format!("{amount}{unit}")),
    };
    let mut add = |name: &str, value: Option<String>| value.into_iter().for_each(|value| field(lines, name, &value));
    add("definition", Some(definition.format.clone()));
    add("memory", amount(definition.memory_mb, definition.maximum_memory_mb, " MiB"));
    add("processors", amount(definition.vcpus, definition.maximum_vcpus, ""));
    add("boot", Some(definition.boot.join(", ")).filter(|text| !text.is_empty()));
    for network in &definition.networks {
        let options: Vec<String> = network.iter().map(|(key, value)| format!("{key}={value}")).collect();
        add("network", Some(options.join(", ")));
    }
    add("type", definition.vm_type.clone());
    add("system", definition.os_type.clone());
    add("text", definition.text_omitted.clone());
    for line in definition.text.as_deref().unwrap_or_default().lines() {
        lines.add(format_args!("    {line}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_is_shown_with_all_its_parts() {
        let text = r#"{"id": "6f2c", "vm_id": "01", "vmID": "01", "created_at": "then", "created_by": "root\u001b[2J",
            "consistency": "crash", "consistency_reason": "a post hook failed", "freeze_ms": 12,
            "hooks": [{"name": "10-freeze", "kind": "directory", "stage": "pre", "outcome": "ok", "duration_ms": 7,
                       "detail": "exit status 0\nFORGED"}],
            "labels": {"job": "nightly"}, "description": "before the upgrade",
            "definition": {"format": "vm.cfg", "text": "memory = 2048\nFORGED\u009b2J", "memory_mb": 2048,
                           "maximum_memory_mb": 4096, "vcpus": 2, "boot": ["disk", "cdrom"],
                           "networks": [{"mac": "00:21", "bridge": "b"}], "os_type": "Oracle Linux 7"},
            "disks": [{"parent_path": "/r/a.img", "path": "/s/a.img", "snapshot_id": "6f2c", "snapshotID": "6f2c",
                       "name": "a.img", "repo_mountpoint": "/", "size": 2048, "mode": "full", "data_bytes": 1024,
                       "zero_bytes": 0, "status": "ok"}]}"#;
        let vm = VmName { id: "01".to_owned(), shown: "web-1 (01)".to_owned() };
        let expected = "\
snapshot      6f2c
VM            web-1 (01)
created       then by root\\u{1b}[2J
consistency   crash: a post hook failed
freeze        at most 12 ms
expires       never
leased until  -
labels        job=nightly
description   before the upgrade

DISK       SIZE      DATA  STATUS  VM'S DISK  FILE
a.img  2.00 KiB  1.00 KiB  ok      /r/a.img   /s/a.img

HOOK       KIND       STAGE  OUTCOME  TIME  DETAIL
10-freeze  directory  pre    ok       7 ms  exit status 0\\nFORGED

definition    vm.cfg
memory        2048 MiB, at most 4096 MiB
processors    2
boot          disk, cdrom
network       bridge=b, mac=00:21
system        Oracle Linux 7
    memory = 2048
    FORGED\\u{9b}2J
";
        assert_eq!(page(&serde_json::from_str(text).unwrap(), &vm, None).as_str(), expected);
    }
}
