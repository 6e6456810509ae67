//! An HTTPS server in the test process; it stops when this is dropped.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use coriolis_ovm_exporter::http::server::{self, Options};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub struct Serving {
    runtime: Runtime,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Serving {
    pub fn start(runtime: Runtime, listener: TcpListener, tls: Arc<ArcSwap<ServerConfig>>, router: Router) -> Self {
        let stop = CancellationToken::new();
        let task = runtime.spawn(server::serve(listener, tls, router, Options::default(), stop.clone()));
        Self { runtime, task, stop }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        // Do not wait for slow responses.
        let _ = self.runtime.block_on(async { timeout(Duration::from_secs(2), &mut self.task).await });
    }
}
