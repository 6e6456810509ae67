//! Calls of hooks, and what the log is told of them.

use std::mem;
use std::time::Duration;

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
}

/// Calls in their order. The log is told of them later: it may be a disk that is slow, or full, and a guest
/// is frozen meanwhile.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    runs: Vec<HookRun>,
    untold: Vec<Call>,
}

impl Calls {
    pub(super) fn push(&mut self, call: Call) {
        self.runs.push(call.run.clone());
        self.untold.push(call);
    }

    pub(super) fn runs(&self) -> &[HookRun] {
        &self.runs
    }

    /// Tells the log what it was not told yet. Only where nothing is held up.
    pub(super) fn tell(&mut self, event: &Event) {
        for Call { run, said } in mem::take(&mut self.untold) {
            for (stream, output) in said {
                output.log(&run.name, run.stage.as_str(), stream);
            }
            tell(event, &run);
        }
    }
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
    Call { run: HookRun { outcome, detail: reason.to_string(), ..run }, said: Vec::new() }
}

fn tell(event: &Event, run: &HookRun) {
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
