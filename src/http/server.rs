//! The accept loop: TLS, deadlines for whoever dawdles, a bounded number of connections, and an end
//! that lets running answers finish.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Peer;
use super::first_line::FirstLine;

/// From the TCP connection to the end of the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// From the first moment that a request may come to the end of its head: also how long a
/// connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may take nothing of what is sent to it.
const STALL_DEADLINE: Duration = Duration::from_secs(60);

/// Connections at a time. One more waits until another ends.
const CONNECTIONS: usize = 512;

/// Serves `router` on `listener` until `stop`, then lets the open connections finish what they are
/// answering. Returns when the last is closed: the caller bounds the wait.
///
/// `tls` may be exchanged at any time; new connections take the new one.
pub async fn serve(listener: TcpListener, tls: Arc<ArcSwap<ServerConfig>>, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (router, stop) = (router.clone(), stop.clone());
        connections.spawn(async move {
            let _place = place;
            if let Err(error) = converse(stream, peer, acceptor, router, stop).await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
    }
    // Closed before the wait, so that nobody connects to a service that will not answer.
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, peer)) => Some((stream, peer, place)),
        Err(error) => {
            // Out of descriptors, say: at once would be a busy loop.
            tracing::warn!(%error, "a connection cannot be accepted");
            sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_DEADLINE));
    let stream = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        shaken = timeout(HANDSHAKE_DEADLINE, acceptor.accept(Box::pin(stream))) => shaken??,
    };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        router.clone().oneshot(request)
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_DEADLINE)
        .serve_connection(TokioIo::new(FirstLine::new(stream)), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let first_line = connection.into_parts().io.into_inner();
    if first_line.is_too_long() {
        timeout(HEAD_DEADLINE, first_line.refuse()).await??;
    }
    Ok(ended?)
}
