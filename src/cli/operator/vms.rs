//! `vms`: the VMs of the inventory.

use std::path::Path;
use std::process::ExitCode;

use serde_json::value::RawValue;

use super::args::ListArgs;
use super::service::Service;
use crate::api::{Status, Vm};
use crate::cli::client::table::{self, Align, Table};
use crate::cli::terminal;

pub fn run(args: &ListArgs, config: &Path) -> anyhow::Result<ExitCode> {
    let client = Service::find(&args.target, config)?.client;
    if args.json {
        terminal::print_json(&*client.get::<Box<RawValue>>("/vms")?, false)?;
        return Ok(ExitCode::SUCCESS);
    }
    let vms = client.vms()?;
    if vms.is_empty() {
        terminal::notice("the repositories define no VM");
    } else {
        table_of(&vms).print()?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table_of(vms: &[Vm]) -> Table {
    let mut table = Table::new(&[
        ("NAME", Align::Text),
        ("ID", Align::Left),
        ("DISKS", Align::Right),
        ("SIZE", Align::Right),
        ("SNAPS", Align::Right),
        ("STATUS", Align::Text),
    ]);
    for vm in vms {
        let sizes: Vec<u64> = vm.disks.iter().filter_map(|disk| disk.size).collect();
        let size = if sizes.is_empty() { "-".to_owned() } else { table::bytes(sizes.iter().sum()) };
        let reason = vm.reason.as_deref().unwrap_or("no reason is known");
        let status = match (vm.status, vm.snapshot_compatible) {
            (Status::Ok, true) => "ok".to_owned(),
            (Status::Ok, false) => format!("no snapshot is possible: {reason}"),
            (Status::Error, _) => format!("error: {reason}"),
        };
        let is_placeholder = vm.unavailable_repository.is_some();
        let name = if is_placeholder { "all VMs of a repository" } else { &vm.friendly_name };
        table.row(vec![
            name.to_owned(),
            vm.name.clone(),
            vm.disks.len().to_string(),
            size,
            vm.snapshots.len().to_string(),
            status,
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_has_a_row_with_its_state() {
        let vms: Vec<Vm> = serde_json::from_str(
            r#"[{"friendly_name": "web\u001b[2J", "name": "01", "uuid": "0-1", "snapshot_compatible": true,
                 "snapshots": ["a", "b"], "status": "ok", "disks": [{"name": "a.img", "path": "/a.img",
                 "device_name": "xvda", "mode": "w", "snapshot_compatible": true, "size": 3145728},
                 {"name": "cd", "path": "/cd", "device_name": "xvdb", "mode": "r", "snapshot_compatible": false}]},
                {"friendly_name": "nfs", "name": "02", "uuid": "0-2", "snapshot_compatible": false, "snapshots": [],
                 "status": "ok", "reason": "no reflinks", "disks": []},
                {"friendly_name": "", "name": "repo", "uuid": "", "snapshot_compatible": false, "snapshots": [],
                 "status": "error", "reason": "not mounted", "disks": [], "unavailable_repository": "repo"}]"#,
        )
        .unwrap();
        let expected = "\
NAME                     ID    DISKS      SIZE  SNAPS  STATUS
web\\u{1b}[2J             01        2  3.00 MiB      2  ok
nfs                      02        0         -      0  no snapshot is possible: no reflinks
all VMs of a repository  repo      0         -      0  error: not mounted
";
        assert_eq!(table_of(&vms).lines().as_str(), expected);
    }
}
