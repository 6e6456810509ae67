//! Tells the service manager how the service is, and that it works.
//!
//! A keep-alive is sent only if the accept loop answers, a thread for a connection can be started, and the pool of
//! blocking tasks runs a task. A repository that hangs delays none of these: its executor ends the wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::notify::Notifier;
use crate::app::{App, Error};
use crate::http::probe::Prober;
use crate::model::printable;

/// How often the status line may change.
const STATUS_INTERVAL: Duration = Duration::from_secs(5);

/// How long the state of the service is waited for. A repository that hangs takes longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Keep-alives in the time after which the service manager takes the service for hung.
const BEATS: u32 = 3;

/// What a probe has not got past.
const STEPS: [&str; 3] = [
    "the loop that accepts connections does not answer",
    "no connection can be served: are there descriptors and memory for a thread?",
    "no blocking task is run",
];

/// Sends a status line when it has changed, until `stop`. At most one description of the service is under way, because a
/// database that hangs never lets it end.
pub(super) async fn report_status(notifier: Arc<Notifier>, app: Arc<App>, stop: CancellationToken) {
    let (mut rounds, mut last) = (interval(STATUS_INTERVAL), String::new());
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut report = |line: String| {
        if line != last {
            notifier.status(&line);
            last = line;
        }
    };
    while notifier.is_heard() && stop.run_until_cancelled(rounds.tick()).await.is_some() {
        let mut summary = std::pin::pin!(app.operator.ops.summary());
        let found = match timeout(PATIENCE, &mut summary).await {
            Ok(found) => found,
            Err(_) => {
                report(line(&app, None));
                let Some(found) = stop.run_until_cancelled(summary).await else { return };
                found
            }
        };
        report(line(&app, Some(found)));
    }
}

/// The service in one line, within a limited time.
pub(super) async fn status_line(app: &App) -> String {
    line(app, timeout(PATIENCE, app.operator.ops.summary()).await.ok())
}

/// `None`: the state could not be found in time.
fn line(app: &App, summary: Option<Result<String, Error>>) -> String {
    let summary = match summary {
        Some(Ok(summary)) => summary,
        Some(Err(error)) => format!("serving; its state is unknown: {error}"),
        None => "serving; its state is unknown: a repository or the database does not respond".to_owned(),
    };
    let problems = app.operator.ops.load_problems().into_iter().map(|problem| format!("; {problem}"));
    printable(&(summary + &problems.collect::<String>())).into_owned()
}

/// Sends keep-alives while the service works, until `stop`. It does nothing if the service manager wants none.
pub(super) async fn keep_alive(notifier: Arc<Notifier>, prober: Prober, stop: CancellationToken) {
    let Some(pause) = notifier.watchdog().map(|limit| limit / BEATS) else { return };
    let mut rounds = interval(pause);
    rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(rounds.tick()).await.is_some() {
        if stop.run_until_cancelled(answered(&prober, pause)).await == Some(true) && !stop.is_cancelled() {
            notifier.alive();
        }
    }
}

/// Waits until the service has answered. At most one probe is under way.
async fn answered(prober: &Prober, pause: Duration) -> bool {
    let passed = Arc::new(AtomicU8::new(0));
    let mut probe = std::pin::pin!(prober.probe(Arc::clone(&passed)));
    let problem = || STEPS[usize::from(passed.load(Ordering::Relaxed)).min(STEPS.len() - 1)];
    loop {
        match timeout(pause, &mut probe).await {
            Ok(true) => return true,
            Ok(false) => {
                tracing::error!(problem = problem(), "no keep-alive for the service manager");
                return false;
            }
            Err(_) => tracing::error!(problem = problem(), "no keep-alive for the service manager yet"),
        }
    }
}
