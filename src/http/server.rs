//! The accept loop: TLS, deadlines for whoever dawdles, a bounded number of connections, and an end
//! that lets running answers finish.
//!
//! Each connection has a thread of its own, so that bytes go from a file to the socket without changing
//! threads. A repository that hangs holds up only the connections that read from it (`repository::executor`).

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
use super::connections::{Connections, Guest};
use super::exchanges::AnswerBody;
use super::heads::Heads;
use super::refusal::{Refusal, answer_plain_http};
use crate::app::export::{ConnectionLimits, Limits};
use crate::config;

/// Connections that the kernel may have made before they are accepted.
const BACKLOG: u32 = 1024;

/// From the TCP connection to its first byte.
const FIRST_BYTE_DEADLINE: Duration = Duration::from_secs(5);

/// From the first byte to the end of the TLS handshake.
const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// From the end of an answer to the end of the next head, where the connection may not be idle for longer.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);

/// How long an idle connection may take to hear that it is closed.
const CLOSE_DEADLINE: Duration = Duration::from_secs(2);

/// When a peer that says nothing is asked whether it still is there, how often again, and how many times. So a
/// host that is gone holds a connection for two minutes.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(60), Duration::from_secs(15), 4);

/// Bytes that are sealed for one call to the socket, at most.
const SEALED: usize = 256 << 10;

/// After a connection that could not be had, for want of descriptors or threads: at once would be a busy
/// loop.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections may do.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How fast they may take bytes of disks.
    pub limits: Limits,
    /// How many there may be, and for how long.
    pub connections: config::Connections,
}

/// Listens at `address`.
///
/// # Errors
/// Where the address is not this host's, or in use.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restart must not wait until the connections of the last run are forgotten.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves `router` on `listener` until `stop`, then lets the open connections finish what they are
/// answering. Returns when the last is closed: the caller bounds the wait.
///
/// `tls` may be exchanged at any time; new connections take the new one.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ArcSwap<ServerConfig>>,
    router: Router,
    options: Options,
    stop: CancellationToken,
) {
    let idle = options.connections.keepalive;
    let guests = Connections::new(options.connections);
    let threads = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener, &guests) => accepted,
        };
        let Some((stream, peer, guest)) = accepted else { continue };
        let acceptor = TlsAcceptor::from(tls.load_full());
        let (router, stop, stream) = (router.clone(), stop.clone(), stream.into_std());
        let limits = options.limits.for_connection();
        let conversation = async move {
            // It stood with the runtime that accepted it.
            let stream = TcpStream::from_std(stream?)?;
            let conversation = Conversation { peer, connection: Arc::clone(&guest.connection), limits, router, idle };
            tokio::select! {
                ended = conversation.hold(stream, acceptor, stop) => ended,
                () = guest.connection.is_ended() => Ok(()),
            }
        };
        let on_a_thread = threads.track_future(async move {
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
    threads.close();
    threads.wait().await;
}

/// The next connection; nothing where it could not be had, or has no place.
async fn accept(listener: &TcpListener, guests: &Arc<Connections>) -> Option<(TcpStream, SocketAddr, Guest)> {
    match listener.accept().await {
        Ok((stream, peer)) => guests.admit(peer.ip()).map(|guest| (stream, peer, guest)),
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

/// One connection, from its first byte to its last.
struct Conversation {
    peer: SocketAddr,
    connection: Arc<Connection>,
    limits: ConnectionLimits,
    router: Router,
    /// How long it may be idle, if it is known.
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
        // A TLS connection starts with the number 22, and a request with the name of its method.
        if first[0].is_ascii_alphabetic() {
            return Ok(answer_plain_http(stream, self.peer).await?);
        }
        self.connection.has_socket(stream.as_raw_fd());
        let handshake = acceptor.accept_with(stream, |tls| tls.set_buffer_limit(Some(SEALED)));
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            shaken = timeout(HANDSHAKE_DEADLINE, handshake) => shaken??,
        };
        self.connection.made_a_step();
        let (connection, peer) = (Arc::clone(&self.connection), self.peer);
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE.max(self.idle))
            .serve_connection(
                TokioIo::new(Heads::new(stream, Arc::clone(&connection))),
                hyper::service::service_fn(move |request| self.answer(request)),
            );
        let takes_nothing = connection.takes_nothing();
        tokio::pin!(takes_nothing);
        let ended = tokio::select! {
            ended = &mut http => Some(ended),
            () = stop.cancelled() => None,
            () = connection.idle_for_too_long() => None,
            () = &mut takes_nothing => return Err("the client takes nothing".into()),
        };
        let ended = match ended {
            Some(ended) => ended,
            None => {
                std::pin::Pin::new(&mut http).graceful_shutdown();
                let idle = async {
                    connection.idle_for_too_long().await;
                    sleep(CLOSE_DEADLINE).await;
                };
                tokio::select! {
                    ended = &mut http => ended,
                    () = idle => return Ok(()),
                    () = takes_nothing => return Err("the client takes nothing".into()),
                }
            }
        };
        let (stream, refusal, is_for_head) = http.into_parts().io.into_inner().into_parts();
        match (refusal, &ended) {
            (Some(refusal), _) => Ok(refusal.answer(stream, peer, is_for_head).await?),
            (None, Err(error)) if error.is_parse() && connection.exchange.is_idle() => {
                let refusal = Refusal::malformed(format!("the request is malformed: {error}"));
                Ok(refusal.answer(stream, peer, is_for_head).await?)
            }
            (None, _) => Ok(ended?),
        }
    }

    /// Answers one request.
    fn answer(
        &self,
        mut request: hyper::Request<Incoming>,
    ) -> impl Future<Output = Result<Response<AnswerBody>, Infallible>> + Send + use<> {
        // At once, not when the future is polled first.
        let answering = self.connection.exchange.begin();
        self.connection.made_a_step();
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
