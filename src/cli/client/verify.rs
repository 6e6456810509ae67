//! `verify`: whether restore points are what they were.

use std::process::ExitCode;

use serde_json::json;

use super::args::VerifyArgs;
use super::connect::connect;
use super::exit;
use super::profile::Profiles;
use super::signals::cancel_on_signal;
use super::{points, progress, restore, table};
use crate::backup::point::StoredPoint;
use crate::backup::verify::{self, Difference};
use crate::backup::{BackupDir, Progress, VmDir};
use crate::cli::terminal::{self, Lines};
use crate::client::{Cancel, Client};

/// What was found out about a point.
struct Checked {
    vm: String,
    point: String,
    result: anyhow::Result<Vec<Difference>>,
}

pub fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let cancel = Cancel::default();
    cancel_on_signal(&cancel)?;
    let directory = BackupDir::open(&args.directory)?;
    let server = match &args.against {
        Some(name) => Some(connect(name, &args.server, &Profiles::load()?, &cancel)?),
        None => None,
    };
    let client = server.map(|server| server.client()).transpose()?;
    let progress = progress::of(&args.output, progress::Work::Read);
    let mut checked = Vec::new();
    for vm in points::chosen(&directory, args.vm.as_deref())? {
        let found = vm.points()?;
        for damaged in found.damaged {
            let (vm, point, error) = (vm.id.to_string(), damaged.id, damaged.error);
            checked.push(Checked { vm, point, result: Err(error.into()) });
        }
        let chosen = match selected(&found.whole, args) {
            Ok(chosen) => chosen,
            Err(error) => {
                checked.push(Checked { vm: vm.id.to_string(), point: String::new(), result: Err(error) });
                continue;
            }
        };
        for stored in chosen {
            let result = check(&vm, stored, client.as_ref(), &cancel, &*progress);
            checked.push(Checked { vm: stored.point.vm.name.clone(), point: stored.point.id.clone(), result });
            if cancel.is_cancelled() {
                break;
            }
        }
    }
    drop(progress);
    report(args, &checked)?;
    let different = checked.iter().any(|it| it.result.as_ref().is_ok_and(|found| !found.is_empty()));
    let errors: Vec<anyhow::Error> = checked.into_iter().filter_map(|it| it.result.err()).collect();
    if different || errors.iter().any(|error| exit::status(error) == exit::DIFFERENCE) {
        return Ok(ExitCode::from(exit::DIFFERENCE));
    }
    Ok(exit::of_several(0, &errors))
}

/// All points, or the chosen one. A service can have only the snapshot of the newest.
fn selected<'a>(points: &'a [StoredPoint], args: &VerifyArgs) -> anyhow::Result<Vec<&'a StoredPoint>> {
    match args.at.as_deref() {
        Some(at) => Ok(vec![crate::backup::restore::find(points, Some(at), restore::time(at))?]),
        None if args.against.is_some() => Ok(points.last().into_iter().collect()),
        None => Ok(points.iter().collect()),
    }
}

fn check(
    vm: &VmDir,
    stored: &StoredPoint,
    client: Option<&Client>,
    cancel: &Cancel,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<Difference>> {
    // Checksums of an image that has decayed would be compared in vain.
    let mut differences = verify::read_back(vm, stored, cancel, progress)?;
    if let (Some(client), true) = (client, differences.is_empty()) {
        differences = verify::against(client, stored, progress)?;
    }
    Ok(differences)
}

fn report(args: &VerifyArgs, checked: &[Checked]) -> anyhow::Result<()> {
    if args.output.json {
        let points = checked.iter().map(|Checked { vm, point, result }| match result {
            Ok(differences) => {
                let differences = differences.iter().map(|it| {
                    let ranges: Vec<_> = it.ranges.iter().map(|range| json!([range.start, range.end])).collect();
                    json!({"disk": it.disk, "problem": it.problem, "bytes": it.bytes, "ranges": ranges})
                });
                json!({"vm": vm, "point": point, "differences": differences.collect::<Vec<_>>()})
            }
            Err(error) => json!({"vm": vm, "point": point, "error": format!("{error:#}")}),
        });
        terminal::print_json(&json!({"points": points.collect::<Vec<_>>()}), true)?;
        return Ok(());
    }
    let mut lines = Lines::default();
    for Checked { vm, point, result } in checked {
        match result {
            Ok(differences) if differences.is_empty() => lines.add(format_args!("{vm}: {point}: ok")),
            Ok(differences) => differences.iter().for_each(|it| lines.add(describe(vm, it))),
            Err(error) => lines.add(format_args!("{vm}: {point}: {error:#}")),
        }
    }
    if checked.is_empty() {
        lines.add("there is no restore point");
    }
    if args.output.quiet {
        let is_bad = |it: &Checked| it.result.as_ref().map_or(true, |found| !found.is_empty());
        if !checked.iter().any(is_bad) {
            return Ok(());
        }
    }
    Ok(lines.print()?)
}

fn describe(vm: &str, difference: &Difference) -> String {
    let Difference { point, disk, problem, ranges, bytes } = difference;
    let mut text = format!("{vm}: {point}: {disk}: {problem}");
    if *bytes > 0 {
        let ranges: Vec<String> = ranges.iter().map(|range| format!("{}-{}", range.start, range.end)).collect();
        text.push_str(&format!(": {} at {}", table::bytes(*bytes), ranges.join(", ")));
    }
    text
}
