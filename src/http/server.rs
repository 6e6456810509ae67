//! The accept loop: TLS, deadlines for whoever dawdles, a bounded number of connections, and an end
//! that lets running answers finish.
//!
//! Each connection has a thread of its own, so that bytes go from a file to the socket without changing
//! threads. A file system that hangs holds up some of them (`repository::patience`), and no others.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Peer;
use super::first_line::FirstLine;
use super::pace::{Limits, Paces};

/// From the TCP connection to the end of the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// From the first moment that a request may come to the end of its head: also how long a
/// connection may be idle.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long a client may take nothing of what is sent to it.
const STALL_DEADLINE: Duration = Duration::from_secs(60);

/// Bytes that are sealed for one call to the socket, at most.
const SEALED: usize = 256 << 10;

/// After a connection that could not be had, for want of descriptors or threads: at once would be a busy
/// loop.
const PAUSE: Duration = Duration::from_millis(100);

/// Connections at a time. One more waits until another ends.
const CONNECTIONS: usize = 512;

/// Serves `router` on `listener` until `stop`, then lets the open connections finish what they are
/// answering. Returns when the last is closed: the caller bounds the wait.
///
/// `tls` may be exchanged at any time; new connections take the new one.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    router: Router,
    limits: Limits,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (router, stop, stream) = (router.clone(), stop.clone(), stream.into_std());
        let paces = limits.for_connection();
        let conversation = async move {
            let _place = place;
            // It stood with the runtime that accepted it.
            let stream = TcpStream::from_std(stream?)?;
            converse(stream, peer, paces, acceptor, router, stop).await
        };
        let on_a_thread = connections.track_future(async move {
            if let Err(error) = conversation.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
        if let Err(error) = run_on_a_thread(on_a_thread) {
            tracing::warn!(%peer, %error, "a connection cannot be served");
            sleep(PAUSE).await;
        }
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
            tracing::warn!(%error, "a connection cannot be accepted");
            sleep(PAUSE).await;
            None
        }
    }
}

/// Runs a conversation to its end, on a thread and in a runtime of its own.
fn run_on_a_thread(conversation: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let run = move || match Builder::new_current_thread().enable_io().enable_time().max_io_events_per_tick(16).build() {
        Ok(runtime) => runtime.block_on(conversation),
        Err(error) => tracing::warn!(%error, "a connection cannot be served"),
    };
    std::thread::Builder::new().name("connection".to_owned()).spawn(run).map(drop)
}

async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    paces: Paces,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    stream.set_nodelay(true)?;
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(STALL_DEADLINE));
    let handshake = acceptor.accept_with(Box::pin(stream), |tls| tls.set_buffer_limit(Some(SEALED)));
    let stream = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        shaken = timeout(HANDSHAKE_DEADLINE, handshake) => shaken??,
    };
    let service = hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        request.extensions_mut().insert(Peer(peer));
        request.extensions_mut().insert(paces.clone());
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
