//! Calls of hooks: their ids, their results, and their lines in the log.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::event::Event;
use super::output::Output;
use crate::model::{HookKind, HookOutcome, HookRun, HookStage};

#[derive(Clone, Debug)]
pub(super) struct Call {
    pub run: HookRun,
    /// What it printed, by stream.
    pub output: Vec<(&'static str, Output)>,
    /// The id of the call of a program.
    pub id: Option<String>,
}

/// A call of a program that has ended. Processes that a successful one left running are not killed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FinishedCall {
    pub id: String,
    #[serde(rename = "well")]
    pub succeeded: bool,
}

/// The calls for one event, in their order.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    pub runs: Vec<HookRun>,
    pub finished: Vec<FinishedCall>,
}

impl Calls {
    /// Adds a call, and logs it.
    pub(super) fn push(&mut self, event: &Event, call: Call) {
        let Call { run, output, id } = call;
        for (stream, output) in output {
            output.log(&run.name, run.stage.as_str(), stream);
        }
        log(event, &run);
        let succeeded = run.outcome == HookOutcome::Ok;
        self.finished.extend(id.map(|id| FinishedCall { id, succeeded }));
        self.runs.push(run);
    }
}

/// An id for the next call with this prefix. Processes keep it in their environment. As long as the host runs, the ids
/// of one operation sort in the order of its calls.
pub(super) fn next_id(prefix: &str) -> String {
    format!("{prefix}.{:020}", host_time().as_nanos())
}

/// The time of the host's monotonic clock, which all processes share.
pub(super) fn host_time() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The time of the host's clock at `instant`, or now if that is over.
pub(super) fn to_host_time(instant: Instant) -> Duration {
    host_time() + instant.saturating_duration_since(Instant::now())
}

/// When it is `time` by the host's clock. `None` if that is over.
pub(super) fn from_host_time(time: Duration) -> Option<Instant> {
    let remaining = time.saturating_sub(host_time());
    (!remaining.is_zero()).then(|| Instant::now() + remaining)
}

/// A failed call without details.
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
    Call { run: HookRun { outcome, detail: reason.to_string(), ..run }, output: Vec::new(), id: None }
}

fn log(event: &Event, run: &HookRun) {
    let HookRun { name, kind, stage, outcome, duration_ms, detail } = &run;
    let (kind, stage, outcome) = (kind.as_str(), stage.as_str(), outcome.as_str());
    let (operation, snapshot) = (event.operation.as_str(), &event.snapshot_id);
    if run.stage == HookStage::Post && run.has_failed() {
        let problem = "the guest may still be frozen";
        tracing::error!(operation, %snapshot, hook = name, kind, outcome, ms = duration_ms, detail, problem, "post hook");
    } else if run.outcome == HookOutcome::Ok {
        tracing::info!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    } else {
        tracing::warn!(operation, %snapshot, hook = name, kind, stage, outcome, ms = duration_ms, detail, "hook");
    }
}

/// Whole milliseconds, rounded up.
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
