//! The accept loop: TLS, deadlines for slow clients, limited connections, and a graceful end.
//!
//! Each connection has its own thread, so that bytes go from a file to the socket on one thread. A hung repository
//! blocks only the connections that read from it (`repository::executor`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Builder;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Peer;
use super::connection::Connection;
use super::connections::{Connections, Place};
use super::exchanges::AnswerBody;
use super::heads::Heads;
use super::refusal::{RejectedInput, answer_plain_http};
use crate::app::export::{ConnectionLimits, RateLimits};
use crate::config;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// From the TCP connection to its first byte.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(5);

/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// From the end of an answer to the end of the next head, unless the connection may be idle for longer.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long closing an idle connection may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// TCP keepalive: idle time, interval, probes. A dead host keeps a connection for two minutes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Bytes that are encrypted for one call to the socket.
const TLS_BUFFER_LIMIT: usize = 256 << 10;

/// The pause after a connection failed for lack of descriptors or threads.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The rates of downloads.
    pub limits: RateLimits,
    /// The number of connections and their lifetime.
    pub connections: config::Connections,
}

/// # Errors
/// The address is in use, or does not belong to this host.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart need not wait for the closed connections of the last run.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` on `listener` until `stop`, then lets running requests finish. Returns when the last connection is
/// closed; the caller limits the wait.
///
/// `tls` may be replaced at any time, for new connections.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    router: Router,
    options: Options,
    stop: CancellationToken,
) {
    let idle = options.connections.keepalive;
    let connections = Connections::new(options.connections);
    let threads = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let Some((stream, peer, place)) = accepted else { continue };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (router, stop, stream) = (router.clone(), stop.clone(), stream.into_std());
        let limits = options.limits.for_connection();
        let conversation = async move {
            // It was registered with the runtime of the accept loop.
            let stream = TcpStream::from_std(stream?)?;
            let conversation = Conversation { peer, connection: Arc::clone(&place.connection), limits, router, idle };
            tokio::select! {
                ended = conversation.hold(stream, acceptor, stop) => ended,
                () = place.connection.closing() => Ok(()),
            }
        };
        let logged = threads.track_future(async move {
            if let Err(error) = conversation.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        });
        if let Err(error) = run_on_new_thread(logged) {
            tracing::warn!(%peer, %error, "cannot serve a connection");
            sleep(ERROR_PAUSE).await;
        }
    }
    // Closed before the wait, so that new clients are refused.
    drop(listener);
    threads.close();
    threads.wait().await;
}

/// The next connection. `None` if it failed, or if there is no place for it.
async fn accept(listener: &TcpListener, connections: &Arc<Connections>) -> Option<(TcpStream, SocketAddr, Place)> {
    match listener.accept().await {
        Ok((stream, peer)) => connections.admit(peer.ip()).map(|place| (stream, peer, place)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            sleep(ERROR_PAUSE).await;
            None
        }
    }
}

/// Runs a conversation to its end on a new thread with its own runtime.
fn run_on_new_thread(conversation: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
    let run = move || match Builder::new_current_thread().enable_io().enable_time().max_io_events_per_tick(16).build() {
        Ok(runtime) => runtime.block_on(conversation),
        Err(error) => tracing::warn!(%error, "cannot serve a connection"),
    };
    std::thread::Builder::new().name("connection".to_owned()).spawn(run).map(drop)
}

/// One connection from its first byte to its last.
struct Conversation {
    peer: SocketAddr,
    connection: Arc<Connection>,
    limits: ConnectionLimits,
    router: Router,
    /// How long it may be idle if it is known.
    idle: Duration,
}

impl Conversation {
    async fn hold(
        self,
        stream: TcpStream,
        acceptor: TlsAcceptor,
        stop: CancellationToken,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        stream.set_nodelay(true)?;
        let (idle, interval, retries) = KEEPALIVE;
        let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        let mut first = [0];
        let came = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            came = timeout(FIRST_BYTE_DEADLINE, stream.peek(&mut first)) => came??,
        };
        if came == 0 {
            return Ok(());
        }
        // TLS starts with the byte 22, and a plain HTTP request with a letter.
        if first[0].is_ascii_alphabetic() {
            return Ok(answer_plain_http(stream, self.peer).await?);
        }
        self.connection.set_socket(stream.as_raw_fd());
        let handshake = acceptor.accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER_LIMIT)));
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            shaken = timeout(HANDSHAKE_DEADLINE, handshake) => shaken??,
        };
        self.connection.made_progress();
        let (connection, peer) = (Arc::clone(&self.connection), self.peer);
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE.max(self.idle))
            .serve_connection(
                TokioIo::new(Heads::new(stream, Arc::clone(&connection))),
                hyper::service::service_fn(move |request| self.answer(request)),
            );
        let stalled = connection.stalled();
        tokio::pin!(stalled);
        let ended = tokio::select! {
            ended = &mut http => Some(ended),
            () = stop.cancelled() => None,
            () = connection.idle_timeout() => None,
            () = &mut stalled => return Err("the client receives nothing".into()),
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                std::pin::Pin::new(&mut http).graceful_shutdown();
                let idle = async {
                    connection.idle_timeout().await;
                    sleep(CLOSE_DEADLINE).await;
                };
                tokio::select! {
                    ended = &mut http => ended,
                    () = idle => return Ok(()),
                    () = stalled => return Err("the client receives nothing".into()),
                }
            }
        };
        let (stream, refusal, is_for_head) = http.into_parts().io.into_inner().into_parts();
        match (refusal, &ended) {
            (Some(refusal), _) => Ok(refusal.answer(stream, peer, is_for_head).await?),
            (None, Err(error)) if error.is_parse() && connection.exchange.is_idle() => {
                let refusal = RejectedInput::malformed(format!("the request is malformed: {error}"));
                Ok(refusal.answer(stream, peer, is_for_head).await?)
            }
            (None, _) => Ok(ended?),
        }
    }

    fn answer(
        &self,
        mut request: hyper::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + use<> {
        // Now, not when the future is first polled.
        let answering = self.connection.exchange.begin();
        self.connection.made_progress();
        let connection = Arc::clone(&self.connection);
        let extensions = request.extensions_mut();
        extensions.insert(Peer(self.peer));
        extensions.insert(Arc::clone(&connection));
        extensions.insert(self.limits.clone());
        let answer = self.router.clone().oneshot(request);
        async move {
            let mut response = answer.await?;
            if connection.exchange.is_last() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| AnswerBody::new(body, answering)))
        }
    }
}
