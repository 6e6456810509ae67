//! Calls of hooks: their ids, how they ended, and what the log says of them.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::event::Event;
use super::output::Output;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};

/// One call.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub run: HookRun,
    /// What it printed, by stream.
    pub said: Vec<(&'static str, Output)>,
    /// The id of the call, where a program was called.
    pub id: Option<String>,
}

/// A call of a program that is over. What a good one has left running stays alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastCall {
    /// Its id.
    pub id: String,
    /// Whether it ended well.
    pub well: bool,
}

/// Calls of one event, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    pub runs: Vec<HookRun>,
    pub past: Vec<PastCall>,
}

impl Calls {
    /// Adds a call, and logs it.
    pub(super) fn push(&mut self, event: &Event, call: Call) {
        let Call { run, said, id } = call;
        for (stream, output) in said {
            output.log(&run.name, run.stage.as_str(), stream);
        }
        log(event, &run);
        self.past.extend(id.map(|id| PastCall { id, well: run.outcome == HookOutcome::Ok }));
        self.runs.push(run);
    }
}

/// An id for the next call of an `operation`. Calls of one operation follow each other, and so do their ids, as
/// long as the host runs: a process keeps the id in its environment.
pub(super) fn next_id(operation: &str) -> String {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    format!("{operation}.{:020}", now.as_nanos())
}

/// A call that began when it `started`, and of which no more is known.
pub(super) fn run(name: String, kind: HookKind, stage: HookStage, started: Instant) -> HookRun {
    let duration_ms = milliseconds(started.elapsed());
    HookRun { name, kind, stage, outcome: HookOutcome::Failed, duration_ms, detail: String::new() }
}

/// A call that was not made.
pub(super) fn not_made(
    name: impl Into<String>,
    kind: HookKind,
    stage: HookStage,
    outcome: HookOutcome,
    reason: impl ToString,
) -> Call {
    let run = run(name.into(), kind, stage, Instant::now());
    Call { run: HookRun { outcome, detail: reason.to_string(), ..run }, said: Vec::new(), id: None }
}

fn log(event: &Event, run: &HookRun) {
    let HookRun { name, kind, stage, outcome, duration_ms, detail } = &run;
    let (kind, stage, outcome) = (kind.as_str(), stage.as_str(), outcome.as_str());
    let (operation, snapshot) = (event.operation.as_str(), &event.snapshot_id);
    if run.stage == HookStage::Post && run.has_failed() {
        let problem = "what it froze may be frozen still";
        tracing::error!(operation, %snapshot, hook = name, kind, outcome, ms = duration_ms, detail, problem, "post hook");
    } else if run.outcome == HookOutcome::Ok {
        tracing::info!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    } else {
        tracing::warn!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    }
}

/// Whole milliseconds, rounded up: nothing is told shorter than it was.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
