//! `restore`: the disks of a restore point.

use std::process::ExitCode;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use serde_json::json;

use super::args::RestoreArgs;
use super::progress;
use super::signals::cancel_on_signal;
use super::table;
use crate::backup::BackupDir;
use crate::backup::restore::{Restore, find};
use crate::cli::terminal::{self, Lines};
use crate::client::Cancel;

pub fn run(args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let cancel = Cancel::default();
    cancel_on_signal(&cancel)?;
    let directory = BackupDir::open(&args.directory)?;
    let vm = directory.find(&args.vm)?;
    let points = vm.points()?.whole;
    let at = args.at.as_deref();
    let stored = find(&points, at, at.and_then(time))?;
    let progress = progress::of(&args.output, progress::Work::Read);
    let restore = Restore {
        vm: &vm,
        stored,
        out: &args.out,
        format: args.format.into(),
        disks: args.disks.as_deref(),
        cancel: &cancel,
        progress: &*progress,
    };
    let files = restore.run()?;
    drop(progress);
    let point = &stored.point;
    if args.output.json {
        terminal::print_json(&json!({"vm": point.vm, "point": point.id, "files": files}), true)?;
    } else if !args.output.quiet {
        let mut lines = Lines::default();
        lines.add(format_args!(
            "{}: restored the point {} of {}",
            point.vm.name,
            point.id,
            table::local(point.created_at)
        ));
        files.iter().for_each(|file| lines.add(file.display()));
        lines.print()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A time with a zone, or in the local one. A date alone means its end.
pub fn time(text: &str) -> Option<jiff::Timestamp> {
    if let Ok(time) = text.parse() {
        return Some(time);
    }
    let local = |time: DateTime| TimeZone::system().to_timestamp(time).ok();
    // A civil date parses as its beginning too.
    if let Ok(date) = text.parse::<jiff::civil::Date>()
        && !text.contains(':')
    {
        return local(date.tomorrow().ok()?.at(0, 0, 0, 0)).map(|end| end - jiff::SignedDuration::from_nanos(1));
    }
    local(text.parse().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_local_unless_they_have_a_zone() {
        assert_eq!(time("2026-11-26T18:00:00Z").unwrap().to_string(), "2026-11-26T18:00:00Z");
        let local = |text: &str| time(text).unwrap().to_zoned(TimeZone::system()).datetime().to_string();
        assert_eq!(local("2026-11-26T18:00"), "2026-11-26T18:00:00");
        assert_eq!(local("2026-11-26 18:00:30"), "2026-11-26T18:00:30");
        assert_eq!(local("2026-11-26"), "2026-11-26T23:59:59.999999999");
        assert_eq!(time("yesterday"), None);
    }
}
