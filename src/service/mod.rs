//! The life of the service: start, reload on SIGHUP, drain on SIGTERM and SIGINT.

mod notify;
mod pulse;
mod reload;

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::app::changeable::Changeable;
use crate::app::confinement::Confinement;
use crate::app::export::RateLimits;
use crate::app::ops::start_faults;
use crate::app::{App, Opened, audit};
use crate::config::{Config, ConfigError, MetricsRoute};
use crate::hooks::Launcher;
use crate::http::probe::prober;
use crate::http::server::{self, Listeners, Options};
use crate::http::{MAX_CONNECTIONS, operator_socket, router};
use crate::metrics::Metrics;
use crate::sys::heap;
use crate::tls;

pub use notify::Notifier;
use reload::Reloader;

/// How long running requests may continue after a signal to stop. A longer download is cut off; its client resumes it
/// with a Range. Pre hooks have half of this time, so that post hooks have the other half. If a guest is still frozen
/// at the deadline, the service waits longer for its post hooks.
const DRAIN_DEADLINE: Duration = Duration::from_secs(30);

/// A request of each connection can hold one, for example while it calculates a checksum. Others remain, so clients cannot
/// keep the service from answering the service manager.
const BLOCKING_THREADS: usize = MAX_CONNECTIONS + 512;

/// Freed memory that is kept for reuse: more than one connection needs to send.
const RETAINED_HEAP: i32 = 2 << 20;

/// How often other freed memory is returned to the kernel.
const TRIM_INTERVAL: Duration = Duration::from_secs(60);

/// Runs the service with the config, which was read from the path, until a signal stops it. SIGHUP also calls
/// `reopen_log`.
///
/// # Errors
/// The service cannot start, or stops with pending post hooks. The text is for an operator.
pub fn run(
    config: (&Path, &Config),
    metrics: Metrics,
    opened: Opened,
    confined: (Arc<Confinement>, Launcher, Notifier),
    reopen_log: impl Fn(),
) -> anyhow::Result<()> {
    raise_descriptor_limit();
    heap::retain(RETAINED_HEAP);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().max_blocking_threads(BLOCKING_THREADS).build()?;
    let outcome = runtime.block_on(serve(config, metrics, opened, confined, reopen_log));
    // A hung file system must not keep the process alive. The next start undoes unfinished work.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

async fn serve(
    (path, config): (&Path, &Config),
    metrics: Metrics,
    opened: Opened,
    (confinement, launcher, manager): (Arc<Confinement>, Launcher, Notifier),
    reopen_log: impl Fn(),
) -> anyhow::Result<()> {
    let tls = tls::server_tls(&config.api).map_err(|error| ConfigError::new(error.to_string()))?;
    let (tls, current_tls) = watch::channel(Arc::new(tls));
    let address = SocketAddr::from((config.api.bind, config.api.port));
    let app = App::start(config, metrics, opened, (Arc::clone(&confinement), launcher.clone())).await?;
    reload::loaded(&app, &config.api, &current_tls.borrow());
    // A client that reaches the port can use the socket, and the process can be stopped gracefully.
    let signals = Signals::new()?;
    let operators = operator_socket::open(config.api.socket.as_ref())?;
    let tcp = server::listen(address).map_err(|error| start_faults::listening(&config.api, &error))?;
    // The last step that needs other calls is done, and no client is served yet.
    confinement.restrict_calls();
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "serving");

    let stop = CancellationToken::new();
    let (rates, connections) = (RateLimits::new(&config.export), Changeable::new(config.api.connections.clone()));
    let options = Options { limits: rates.clone(), connections: connections.clone() };
    let (prober, probes) = prober();
    let listeners = Listeners { tcp, tls: current_tls, operators, probes };
    let router = router(Arc::clone(&app), config.metrics, config.api.pages);
    let serving = server::serve(listeners, router, options, stop.clone());
    let serving = tokio::spawn(serving);
    let background = app.run_in_background(&stop);
    if config.metrics != MetricsRoute::Off {
        app.measure_in_background(&stop);
    }
    let manager = Arc::new(manager);
    manager.ready(&pulse::status_line(&app).await);
    tokio::spawn(pulse::report_status(Arc::clone(&manager), Arc::clone(&app), stop.clone()));
    tokio::spawn(pulse::keep_alive(Arc::clone(&manager), prober, stop.clone()));
    tokio::spawn(trim_heap());
    let reloader = Reloader { path, started: config, app: &app, tls, rates, connections, stop: &stop };
    let on_hang_up = async || {
        manager.reloading();
        reopen_log();
        reloader.run();
        manager.ready(&pulse::status_line(&app).await);
    };
    let has_lost_launcher = tokio::select! {
        () = signals.until_stopped(on_hang_up) => false,
        () = app.operator.database.restart_needed() => false,
        () = launcher.ended() => {
            tracing::error!("the hook launcher has ended, so no hook can be called: stopping, for a new start");
            true
        }
    };

    tracing::info!(seconds = DRAIN_DEADLINE.as_secs(), "stopping: waiting for running requests");
    // A keep-alive after the message would start the watchdog again, and it would end a long wait for post hooks.
    stop.cancel();
    manager.stopping();
    let finish = async {
        let _ = serving.await;
        for task in background {
            let _ = task.await;
        }
        app.finish().await;
    };
    let cancel_pre_hooks = async {
        tokio::time::sleep(DRAIN_DEADLINE / 2).await;
        app.cancel_pre_hooks();
        std::future::pending::<()>().await;
    };
    let finish = async {
        tokio::select! {
            () = finish => {}
            () = cancel_pre_hooks => {}
        }
    };
    match tokio::time::timeout(DRAIN_DEADLINE, finish).await {
        Ok(()) => tracing::info!("all requests have finished"),
        Err(_) => tracing::warn!("requests were still running at the deadline"),
    }
    app.exports.finish_audit();
    let released = app.release_guests().await;
    audit::stop();
    match released {
        Ok(0) if app.operator.database.is_restart_needed() => {
            anyhow::bail!("stopped because the database is damaged; the next start sets it aside and rebuilds it");
        }
        Ok(0) => tracing::info!("stopped"),
        Ok(pending) => {
            tracing::error!(pending, "stopped with pending post hooks: guests may still be frozen");
            anyhow::bail!("stopped with pending post hooks of {pending} operations; the next start calls them");
        }
        Err(error) => anyhow::bail!("stopped, and it is unknown whether post hooks are pending: {error}"),
    }
    anyhow::ensure!(!has_lost_launcher, "stopped, because the hook launcher had ended");
    Ok(())
}

async fn trim_heap() {
    loop {
        tokio::time::sleep(TRIM_INTERVAL).await;
        let _ = tokio::task::spawn_blocking(heap::trim).await;
    }
}

struct Signals {
    hang_up: Signal,
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hang_up: signal(SignalKind::hangup())?,
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn until_stopped(mut self, on_hang_up: impl AsyncFn()) {
        loop {
            tokio::select! {
                _ = self.hang_up.recv() => {}
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
            // A reload may wait for the state of the service, but a stop does not wait for the reload.
            tokio::select! {
                () = on_hang_up() => {}
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => return,
            }
        }
    }
}

/// A connection with an open disk needs six descriptors, so the usual soft limit of 1024 is too low.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
