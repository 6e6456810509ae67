//! `prune`: removes the restore points that no rule keeps.

use std::process::ExitCode;

use jiff::tz::TimeZone;
use serde_json::json;

use super::args::PruneArgs;
use super::exit::UsageError;
use super::{points, table};
use crate::backup::BackupDir;
use crate::backup::prune::{self, Keep};
use crate::cli::terminal::{self, Lines};

pub fn run(args: &PruneArgs) -> anyhow::Result<ExitCode> {
    let keep = Keep {
        last: args.keep_last.unwrap_or(0),
        daily: args.keep_daily.unwrap_or(0),
        weekly: args.keep_weekly.unwrap_or(0),
        monthly: args.keep_monthly.unwrap_or(0),
    };
    if keep.last + keep.daily + keep.weekly + keep.monthly == 0 {
        let problem = "without a rule all points would be removed; give --keep-last, --keep-daily, --keep-weekly or \
                       --keep-monthly";
        return Err(UsageError(problem.to_owned()).into());
    }
    let directory = BackupDir::open(&args.directory)?;
    let zone = TimeZone::system();
    let (mut lines, mut documents, mut failures) = (Lines::default(), Vec::new(), Vec::new());
    for vm in points::chosen(&directory, args.vm.as_deref())? {
        let lock = match (!args.dry_run).then(|| vm.lock()).transpose() {
            Ok(lock) => lock,
            Err(error) => {
                terminal::notice(format_args!("{}: {error}", vm.id));
                failures.push(error.into());
                continue;
            }
        };
        let found = vm.points()?.whole;
        let removable: Vec<&str> = keep.removable(&found, &zone).iter().map(|it| it.point.id.as_str()).collect();
        for stored in &found {
            let point = &stored.point;
            let is_removable = removable.contains(&point.id.as_str());
            let result = match &lock {
                Some(lock) if is_removable => prune::remove(&vm, &point.id, lock),
                _ => Ok(()),
            };
            let verb = match (is_removable, args.dry_run) {
                (false, _) => "keep",
                (true, true) => "would remove",
                (true, false) => "removed",
            };
            let time = table::local(point.created_at);
            match result {
                Ok(()) => lines.add(format_args!("{}: {verb} {} of {time}", point.vm.name, point.id)),
                Err(error) => {
                    terminal::notice(format_args!("{}: {}: {error}", point.vm.name, point.id));
                    failures.push(error.into());
                    // Later points may stand on this one.
                    break;
                }
            }
            documents.push(json!({"vm": point.vm, "point": point.id, "removed": is_removable}));
        }
    }
    if args.json {
        terminal::print_json(&json!({"dry_run": args.dry_run, "points": documents}), true)?;
    } else {
        lines.print()?;
    }
    Ok(super::exit::of_several(0, &failures))
}
