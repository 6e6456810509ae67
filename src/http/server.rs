//! The accept loop: TLS, the Unix socket, deadlines for slow clients, limited connections, and a graceful end.
//!
//! Each connection has its own thread, so that bytes go from a file to the socket on one thread. A hung repository
//! blocks only the connections that read from it (`repository::executor`).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::header::CONNECTION;
use axum::http::{HeaderValue, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixStream};
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::Peer;
use super::connection::Connection;
use super::connections::Connections;
use super::exchanges::AnswerBody;
use super::heads::Heads;
use super::operator_socket::OperatorSocket;
use super::peer_certificate::PeerCertificate;
use super::probe::Probes;
use super::refusal::{RejectedInput, answer_plain_http};
use crate::app::admission::ExportClient;
use crate::app::changeable::Changeable;
use crate::app::export::{ConnectionLimits, RateLimits};
use crate::auth::{LocalPeer, Operators, Session};
use crate::config;
use crate::tls::ServerTls;

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
    pub connections: Changeable<config::Connections>,
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

/// Where clients connect.
pub struct Listeners {
    pub tcp: TcpListener,
    /// It may be replaced at any time. Open connections stay, unless their certificate is not accepted any more.
    pub tls: watch::Receiver<Arc<ServerTls>>,
    pub operators: Option<OperatorSocket>,
    pub probes: Probes,
}

/// Serves `router` on `listeners` until `stop`, then lets running requests finish. Returns when the last connection is
/// closed; the caller limits the wait.
pub async fn serve(mut listeners: Listeners, router: Router, options: Options, stop: CancellationToken) {
    let connections = Connections::new(options.connections.clone());
    let threads = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listeners.tcp, &listeners.tls, listeners.operators.as_ref()) => accepted,
            probe = listeners.probes.next() => {
                probe.received();
                if let Err(error) = run_on_new_thread(probe.answer(Handle::current())) {
                    tracing::warn!(%error, "no connection can be served");
                }
                continue;
            }
        };
        let (transport, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let Some(place) = connections.admit(peer.address()) else { continue };
        let (router, stop, idle) = (router.clone(), stop.clone(), options.connections.get().keepalive);
        let limits = options.limits.for_connection();
        let conversation = async move {
            let (connection, connections) = (Arc::clone(&place.connection), Arc::clone(&place.connections));
            let (operator, certificate) = (None, None);
            let conversation =
                Conversation { peer, connection, connections, operator, certificate, limits, router, idle };
            tokio::select! {
                ended = conversation.hold(transport, stop) => ended,
                () = place.connection.closing() => Ok(()),
            }
        };
        // On the heap: each function that starts the thread would hold a copy of it on the thread's stack.
        let logged = Box::pin(threads.track_future(async move {
            if let Err(error) = conversation.await {
                tracing::debug!(%peer, %error, "connection ended");
            }
        }));
        if let Err(error) = run_on_new_thread(logged) {
            tracing::warn!(%peer, %error, "cannot serve a connection");
            sleep(ERROR_PAUSE).await;
        }
    }
    // Closed before the wait, so that new clients are refused.
    drop(listeners);
    threads.close();
    threads.wait().await;
}

/// Serves one connection of an operator to its end, as [`serve`] does. For the fuzz target.
#[cfg(fuzzing)]
pub async fn serve_operator(stream: std::os::unix::net::UnixStream, router: Router) {
    let peer = Peer::Local { uid: 0, pid: None };
    let connections = Connections::new(Changeable::default());
    let Some(place) = connections.admit(peer.address()) else { return };
    let conversation = Conversation {
        peer,
        connection: Arc::clone(&place.connection),
        connections,
        operator: None,
        certificate: None,
        limits: RateLimits::default().for_connection(),
        router,
        idle: KEEPALIVE.0,
    };
    let root = LocalPeer { uid: 0, gid: 0, pid: None, groups: None };
    let _ = conversation.hold(Transport::Unix(stream, root, Operators::default()), CancellationToken::new()).await;
}

/// An accepted connection, which the runtime of the accept loop has released.
enum Transport {
    Tls(std::net::TcpStream, watch::Receiver<Arc<ServerTls>>),
    Unix(std::os::unix::net::UnixStream, LocalPeer, Operators),
}

/// The next connection.
async fn accept(
    tcp: &TcpListener,
    tls: &watch::Receiver<Arc<ServerTls>>,
    operators: Option<&OperatorSocket>,
) -> io::Result<(Transport, Peer)> {
    let local = async {
        match operators {
            Some(socket) => socket.accept().await.map(|accepted| (accepted, socket.operators())),
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        accepted = tcp.accept() => {
            let (stream, peer) = accepted?;
            Ok((Transport::Tls(stream.into_std()?, tls.clone()), Peer::Remote(peer)))
        }
        accepted = local => {
            let ((stream, peer), operators) = accepted?;
            let (uid, pid) = (peer.uid, peer.pid);
            Ok((Transport::Unix(stream.into_std()?, peer, operators), Peer::Local { uid, pid }))
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

type Ended = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// One connection from its first byte to its last.
struct Conversation {
    peer: Peer,
    connection: Arc<Connection>,
    connections: Arc<Connections>,
    /// The session of an operator on the Unix socket.
    operator: Option<Session>,
    /// The certificate of a client on the port.
    certificate: Option<Arc<PeerCertificate>>,
    limits: ConnectionLimits,
    router: Router,
    /// How long it may be idle if it is known.
    idle: Duration,
}

impl Conversation {
    async fn hold(mut self, transport: Transport, stop: CancellationToken) -> Ended {
        match transport {
            Transport::Tls(stream, tls) => self.hold_tls(TcpStream::from_std(stream)?, tls, stop).await,
            Transport::Unix(stream, peer, operators) => {
                let stream = UnixStream::from_std(stream)?;
                self.connection.set_socket(stream.as_raw_fd());
                self.operator = operators.session(&peer);
                if self.operator.is_some() {
                    self.connection.set_known();
                }
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    came = timeout(FIRST_BYTE_DEADLINE, stream.readable()) => came??,
                }
                self.serve_http(stream, stop).await
            }
        }
    }

    async fn hold_tls(
        mut self,
        stream: TcpStream,
        mut tls: watch::Receiver<Arc<ServerTls>>,
        stop: CancellationToken,
    ) -> Ended {
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
        let acceptor = TlsAcceptor::from(Arc::clone(&tls.borrow_and_update().config));
        let handshake = acceptor.accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER_LIMIT)));
        let stream = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            shaken = timeout(HANDSHAKE_DEADLINE, handshake) => shaken??,
        };
        let Some(chain) = stream.get_ref().1.peer_certificates() else { return self.serve_http(stream, stop).await };
        let (certificate, peer) = (Arc::new(PeerCertificate::new(chain, tls)), self.peer);
        self.certificate = Some(Arc::clone(&certificate));
        tokio::select! {
            ended = self.serve_http(stream, stop) => ended,
            () = certificate.refused() => {
                tracing::info!(%peer, certificate = certificate.name(), "the certificate is not accepted any more");
                Ok(())
            }
        }
    }

    async fn serve_http(self, stream: impl AsyncRead + AsyncWrite + Unpin, stop: CancellationToken) -> Ended {
        self.connection.made_progress();
        let (connection, peer) = (Arc::clone(&self.connection), self.peer);
        let mut http = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_DEADLINE.max(self.idle))
            // The fuzz target marks the end of its input in this way, and waits for the answers.
            .half_close(cfg!(fuzzing))
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
        let forwarded_for = self.connections.forwarded_for(&connection, request.headers());
        let extensions = request.extensions_mut();
        extensions.insert(self.peer);
        if let Some(client) = forwarded_for {
            extensions.insert(client);
        }
        self.operator.iter().for_each(|session| drop(extensions.insert(session.clone())));
        let certificate = self.certificate.as_deref();
        // The certificate of a proxy says nothing about its users.
        let of_user = certificate.filter(|_| !connection.is_proxy && !connection.names_clients);
        of_user.and_then(PeerCertificate::named).into_iter().for_each(|it| drop(extensions.insert(Arc::clone(it))));
        let is_refused = certificate.is_some_and(|certificate| !certificate.is_accepted());
        extensions.insert(Arc::clone(&connection));
        extensions.insert(self.limits.clone());
        let answer = self.router.clone().oneshot(request);
        async move {
            if is_refused {
                connection.disconnect();
                std::future::pending::<()>().await;
            }
            let mut response = answer.await?;
            if connection.exchange.is_last() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(response.map(|body| AnswerBody::new(body, answering)))
        }
    }
}
