//! Progress on the terminal, in lines, or as JSON.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use jiff::Timestamp;
use serde_json::json;

use super::args::{OutputArgs, ProgressMode};
use super::table;
use crate::backup::{DiskLabel, Event, Progress, Silent};
use crate::cli::terminal;
use crate::model::printable;

/// How often a disk that is in work has a line or a JSON object.
const INTERVAL: Duration = Duration::from_secs(5);

/// What happens to the bytes of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    Transfer,
    Read,
}

/// The progress that the arguments ask for.
pub fn of(args: &OutputArgs, work: Work) -> Box<dyn Progress> {
    let text_line = match work {
        Work::Transfer => |event: &Event<'_>, state: Option<&State>| text_line(event, state, "to transfer"),
        Work::Read => |event: &Event<'_>, state: Option<&State>| text_line(event, state, "to read"),
    };
    match args.progress {
        _ if args.quiet => Box::new(Silent),
        ProgressMode::None => Box::new(Silent),
        ProgressMode::Json => Box::new(Periodic::new(json_line)),
        ProgressMode::Lines => Box::new(Periodic::new(text_line)),
        ProgressMode::Bars => Box::new(Bars::new()),
        ProgressMode::Auto if terminal::shows_progress() => Box::new(Bars::new()),
        ProgressMode::Auto => Box::new(Periodic::new(text_line)),
    }
}

/// A bar for each disk in work, and one for all.
struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    disks: Mutex<HashMap<DiskLabel, (ProgressBar, u64)>>,
}

impl Bars {
    fn new() -> Self {
        // It draws to standard error.
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        // There is no size yet: a bar of nothing would be full.
        total.set_style(ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_bar()));
        total.set_prefix("total");
        Self { all, total, disks: Mutex::default() }
    }

    fn bar(&self, disk: &DiskLabel, act: impl FnOnce(&ProgressBar, &mut u64)) {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((bar, retries)) = disks.get_mut(disk) {
            act(bar, retries);
        }
    }
}

fn style() -> ProgressStyle {
    const TEMPLATE: &str = "{prefix:<24!} {bar:24} {bytes:>11} of {total_bytes:<11} {bytes_per_sec:>13} {eta:>6} {msg}";
    ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_bar())
}

impl Progress for Bars {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Step { vm, text } => self.total.set_message(printable(&format!("{vm}: {text}")).into_owned()),
            Event::Note { vm, text } => {
                let line = printable(&format!("{vm}: {text}")).into_owned();
                if self.all.println(&line).is_err() {
                    terminal::notice(line);
                }
            }
            Event::DiskStarted { disk, bytes } => {
                let bar = self.all.insert_before(&self.total, ProgressBar::new(*bytes));
                bar.set_style(style());
                bar.set_prefix(printable(&format!("{} {}", disk.vm, disk.disk)).into_owned());
                if self.total.length() == Some(0) && *bytes > 0 {
                    self.total.set_style(style());
                }
                self.total.inc_length(*bytes);
                self.disks.lock().unwrap_or_else(PoisonError::into_inner).insert((*disk).clone(), (bar, 0));
            }
            Event::Advanced { disk, bytes } => {
                self.bar(disk, |bar, _| bar.inc(*bytes));
                self.total.inc(*bytes);
            }
            Event::Retried { disk, error } => self.bar(disk, |bar, retries| {
                *retries += 1;
                bar.set_message(printable(&format!("{retries} retries; the last error: {error}")).into_owned());
            }),
            Event::DiskDone { disk } => {
                let removed = self.disks.lock().unwrap_or_else(PoisonError::into_inner).remove(disk);
                if let Some((bar, _)) = removed {
                    bar.finish_and_clear();
                }
            }
        }
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.total.finish_and_clear();
    }
}

/// How far a disk is.
struct State {
    bytes: u64,
    total: u64,
    started: Instant,
    last: Instant,
}

/// Writes a line for each event, and for the bytes now and then.
struct Periodic {
    line: fn(&Event<'_>, Option<&State>),
    disks: Mutex<HashMap<DiskLabel, State>>,
}

impl Periodic {
    fn new(line: fn(&Event<'_>, Option<&State>)) -> Self {
        Self { line, disks: Mutex::default() }
    }
}

impl Progress for Periodic {
    fn event(&self, event: &Event<'_>) {
        let mut disks = self.disks.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::DiskStarted { disk, bytes } => {
                let now = Instant::now();
                disks.insert((*disk).clone(), State { bytes: 0, total: *bytes, started: now, last: now });
                (self.line)(event, None);
            }
            Event::Advanced { disk, bytes } => {
                let Some(state) = disks.get_mut(disk) else { return };
                state.bytes += bytes;
                if state.last.elapsed() >= INTERVAL {
                    state.last = Instant::now();
                    (self.line)(event, Some(state));
                }
            }
            Event::DiskDone { disk } => {
                let state = disks.remove(disk);
                (self.line)(event, state.as_ref());
            }
            Event::Step { .. } | Event::Note { .. } | Event::Retried { .. } => (self.line)(event, None),
        }
    }
}

fn text_line(event: &Event<'_>, state: Option<&State>, what: &str) {
    match (event, state) {
        (Event::Step { vm, text } | Event::Note { vm, text }, _) => terminal::notice(format_args!("{vm}: {text}")),
        (Event::DiskStarted { disk, bytes }, _) => {
            terminal::notice(format_args!("{}: {}: {} {what}", disk.vm, disk.disk, table::bytes(*bytes)));
        }
        (Event::Advanced { disk, .. }, Some(state)) => {
            let State { bytes, total, started, .. } = state;
            let rate = *bytes as f64 / started.elapsed().as_secs_f64().max(0.001);
            let left = Duration::from_secs_f64(total.saturating_sub(*bytes) as f64 / rate.max(1.0));
            let (vm, name) = (&disk.vm, &disk.disk);
            let (bytes, total, rate) = (table::bytes(*bytes), table::bytes(*total), table::bytes(rate as u64));
            let left = indicatif::HumanDuration(left);
            terminal::notice(format_args!("{vm}: {name}: {bytes} of {total}, {rate}/s, {left} left"));
        }
        (Event::DiskDone { disk }, Some(state)) => {
            terminal::notice(format_args!("{}: {}: {} done", disk.vm, disk.disk, table::bytes(state.bytes)));
        }
        (Event::Retried { disk, error }, _) => {
            terminal::notice(format_args!("{}: {}: trying again: {error}", disk.vm, disk.disk));
        }
        (Event::Advanced { .. } | Event::DiskDone { .. }, None) => {}
    }
}

fn json_line(event: &Event<'_>, state: Option<&State>) {
    let (done, total) = state.map_or((0, 0), |state| (state.bytes, state.total));
    let mut document = match event {
        Event::Step { vm, text } => json!({"event": "step", "vm": vm, "text": text}),
        Event::Note { vm, text } => json!({"event": "note", "vm": vm, "text": text}),
        Event::DiskStarted { disk, bytes } => {
            json!({"event": "disk_started", "vm": *disk.vm, "disk": *disk.disk, "bytes_total": bytes})
        }
        Event::Advanced { disk, .. } => {
            let seconds = state.map_or(0.0, |state| state.started.elapsed().as_secs_f64());
            json!({"event": "progress", "vm": *disk.vm, "disk": *disk.disk, "bytes_done": done, "bytes_total": total,
                   "seconds": seconds})
        }
        Event::DiskDone { disk } => {
            json!({"event": "disk_done", "vm": *disk.vm, "disk": *disk.disk, "bytes_done": done})
        }
        Event::Retried { disk, error } => json!({"event": "retry", "vm": *disk.vm, "disk": *disk.disk, "error": error}),
    };
    document["time"] = Timestamp::now().to_string().into();
    let _ = terminal::print_json(&document, false);
}
