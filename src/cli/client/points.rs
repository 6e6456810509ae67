//! `points`: the restore points of a directory.

use std::process::ExitCode;

use serde_json::json;

use super::args::PointsArgs;
use super::table::{self, Align, Table};
use crate::backup::{BackupDir, VmDir, prune};
use crate::cli::terminal;

pub fn run(args: &PointsArgs) -> anyhow::Result<ExitCode> {
    let directory = BackupDir::open(&args.directory)?;
    let vms = chosen(&directory, args.vm.as_deref())?;
    let columns = [
        ("VM", Align::Left),
        ("POINT", Align::Left),
        ("TIME", Align::Left),
        ("MODE", Align::Left),
        ("CONSISTENCY", Align::Left),
        ("DISKS", Align::Right),
        ("SIZE", Align::Right),
        ("CHANGED", Align::Right),
        ("ON DISK", Align::Right),
    ];
    let (mut table, mut documents, mut damaged) = (Table::new(&columns), Vec::new(), Vec::new());
    for vm in &vms {
        let points = vm.points()?;
        for stored in &points.whole {
            let point = &stored.point;
            let changed = point.disks.iter().map(|disk| disk.data_bytes).sum();
            let on_disk = prune::disk_usage(stored);
            table.row(vec![
                point.vm.name.clone(),
                point.id.clone(),
                table::local(point.created_at),
                if point.is_full() { "full" } else { "incremental" }.to_owned(),
                point.consistency.clone(),
                point.disks.len().to_string(),
                table::bytes(point.size()),
                table::bytes(changed),
                table::bytes(on_disk),
            ]);
            let mut document = serde_json::to_value(point)?;
            document["directory"] = json!(stored.directory);
            document["disk_usage"] = json!(on_disk);
            documents.push(document);
        }
        damaged.extend(points.damaged.into_iter().map(|point| (vm.id.to_string(), point)));
    }
    if args.json {
        let damaged =
            damaged.iter().map(|(vm, point)| json!({"vm": vm, "id": point.id, "error": point.error.to_string()}));
        let document = json!({"points": documents, "damaged": damaged.collect::<Vec<_>>()});
        terminal::print_json(&document, true)?;
    } else if table.is_empty() {
        terminal::notice(format_args!("{} has no restore point", args.directory.display()));
    } else {
        table.lines().print()?;
    }
    for (vm, point) in &damaged {
        terminal::notice(format_args!("{vm}: the restore point {} is damaged: {}", point.id, point.error));
    }
    Ok(if damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(super::exit::DIFFERENCE) })
}

/// One VM, or all.
pub fn chosen(directory: &BackupDir, vm: Option<&str>) -> anyhow::Result<Vec<VmDir>> {
    Ok(match vm {
        Some(name) => vec![directory.find(name)?],
        None => directory.vms()?,
    })
}
