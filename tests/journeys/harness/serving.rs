//! An HTTPS server in the test process; it stops when this is dropped.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use coriolis_ovm_exporter::testing::{self, Listeners, Options};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::Certificates;

pub struct Serving {
    runtime: Runtime,
    task: JoinHandle<()>,
    stop: CancellationToken,
}

impl Serving {
    /// Serves `router` at `address` with the certificate `name`; returns the port.
    pub fn start(certificates: &Certificates, name: &str, address: &str, router: Router) -> (u16, Self) {
        let api = testing::Api {
            pages: testing::Pages::default(),
            bind: [127, 0, 0, 1].into(),
            port: 0,
            certificate: certificates.path(format!("{name}.pem")),
            key: certificates.path(format!("{name}.key")),
            allow_insecure_key: false,
            client_auth: None,
            connections: Default::default(),
            socket: None,
        };
        // The sender may end: nothing replaces the certificate of this server.
        let (_, tls) = watch::channel(Arc::new(testing::server_tls(&api).unwrap()));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind(address)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let task = runtime.spawn(testing::serve(
            Listeners { tcp: listener, tls, operators: None, probes: testing::prober().1 },
            router,
            Options::default(),
            stop.clone(),
        ));
        (port, Self { runtime, task, stop })
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.cancel();
        // Do not wait for slow responses.
        let _ = self.runtime.block_on(async { timeout(Duration::from_secs(2), &mut self.task).await });
    }
}
