//! One connection to a service, with the thread's own small runtime.

use std::io::{self, BufRead, BufReader, Read};
use std::pin::pin;
use std::time::Duration;

use bytes::{Buf, Bytes};
use reqwest::header::HeaderMap;
use reqwest::{Method, RequestBuilder, redirect};

use super::address::Address;
use super::backoff::Cancel;
use super::error::{ClientError, Refusal};
use crate::config::Trust;
use crate::dns::HostNames;
use crate::tls::{self, Untrusted};

/// The path of all routes but a few.
const API: &str = "/api/v1";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Time without a packet from the host, until it is asked for one; and between two such questions.
const KEEPALIVE: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// Time without a byte from the service. A creation runs hooks, and a checksum reads a disk.
pub const READ_TIMEOUT: Duration = Duration::from_secs(900);

/// The same on this host, where no network loses a response. Adoption flushes disks before it answers.
const LOCAL_READ_TIMEOUT: Duration = Duration::from_secs(3600);

/// Time without a byte of a disk. A download may wait for its turn before that (`policy.export_wait`).
pub const DATA_TIMEOUT: Duration = Duration::from_secs(60);

/// The largest document that is parsed.
const MAX_JSON_BYTES: u64 = 64 << 20;

/// How often a waiting thread looks for a cancellation.
const CANCEL_POLL: Duration = Duration::from_millis(200);

/// The largest error body that is read.
const MAX_ERROR_BYTES: usize = 64 << 10;

/// Connections are kept alive and used again. It belongs to one thread.
pub struct Connection {
    runtime: tokio::runtime::Runtime,
    http: reqwest::Client,
    base: String,
    cancel: Cancel,
}

impl Connection {
    /// # Errors
    /// The certificates of `trust` cannot be read. Nothing is sent yet.
    pub fn new(address: &Address, trust: &Trust, cancel: &Cancel) -> Result<Self, ClientError> {
        let setup = |error: &dyn std::fmt::Display| ClientError::Setup(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut builder = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .dns_resolver(HostNames::read())
            // A redirect could take the token to another server.
            .redirect(redirect::Policy::none())
            .http1_only()
            .tcp_nodelay(true)
            // A host that lost its power sends nothing more. A service that works for long answers these.
            .tcp_keepalive(KEEPALIVE)
            .tcp_keepalive_interval(KEEPALIVE)
            .tcp_keepalive_retries(KEEPALIVE_PROBES)
            .tcp_user_timeout(KEEPALIVE * KEEPALIVE_PROBES)
            .no_proxy();
        let (read_timeout, trust) = match address {
            Address::Https(_) => (READ_TIMEOUT, trust),
            // There is no TLS on the socket, but reqwest builds no client without a config for it.
            Address::Unix(path) => {
                builder = builder.unix_socket(path.clone());
                (LOCAL_READ_TIMEOUT, &Trust::InsecureSkipVerify)
            }
        };
        let tls = tls::client_config(trust).map_err(|error| setup(&error))?;
        let builder = builder.read_timeout(read_timeout).tls_backend_preconfigured(tls);
        let http = builder.build().map_err(|error| setup(&causes(&error)))?;
        Ok(Self { runtime, http, base: format!("{}{API}", address.base()), cancel: cancel.clone() })
    }

    /// A request below [`API`].
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base))
    }

    /// A request for a path outside `/api/v1`.
    pub fn request_outside(&self, method: Method, path: &str) -> RequestBuilder {
        let base = self.base.strip_suffix(API).unwrap_or(&self.base);
        self.http.request(method, format!("{base}{path}"))
    }

    /// Sends a request and reads the head of its response.
    ///
    /// # Errors
    /// A response that is no success is [`ClientError::Refused`].
    pub fn send(&self, request: RequestBuilder, head_timeout: Duration) -> Result<Body<'_>, ClientError> {
        let response = self.wait(head_timeout, async { request.send().await })?.map_err(|error| broken(&error))?;
        let mut body = Body { connection: self, response, rest: Bytes::new(), timeout: READ_TIMEOUT };
        if body.response.status().is_success() { Ok(body) } else { Err(body.refusal()) }
    }

    /// Waits for `work` until the timeout or a cancellation.
    fn wait<T>(&self, timeout: Duration, work: impl Future<Output = T>) -> Result<T, ClientError> {
        self.runtime.block_on(async {
            let mut work = pin!(work);
            let mut waited = Duration::ZERO;
            loop {
                if let Ok(result) = tokio::time::timeout(CANCEL_POLL, &mut work).await {
                    return Ok(result);
                }
                self.cancel.check()?;
                waited += CANCEL_POLL;
                if waited >= timeout {
                    let text = format!("no data from the service for {} s", timeout.as_secs());
                    return Err(ClientError::Connection(text));
                }
            }
        })
    }
}

/// The body of a response, which is read by blocking.
pub struct Body<'a> {
    connection: &'a Connection,
    response: reqwest::Response,
    rest: Bytes,
    timeout: Duration,
}

impl Body<'_> {
    pub fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// Limits the time without a byte.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The next bytes as they arrived, at most `limit`. Empty at the end.
    pub fn next(&mut self, limit: usize) -> Result<Bytes, ClientError> {
        if self.rest.is_empty() {
            self.fill()?;
        }
        let length = self.rest.len().min(limit);
        Ok(self.rest.split_to(length))
    }

    fn fill(&mut self) -> Result<(), ClientError> {
        while self.rest.is_empty() {
            let chunk = self.connection.wait(self.timeout, self.response.chunk())?;
            match chunk.map_err(|error| broken(&error))? {
                Some(bytes) => self.rest = bytes,
                None => break,
            }
        }
        Ok(())
    }

    /// Reads the error of an unsuccessful response.
    fn refusal(&mut self) -> ClientError {
        let status = self.status();
        let retry_after = self.header("retry-after").and_then(|text| text.parse().ok()).map(Duration::from_secs);
        let mut text = Vec::new();
        // The connection is not used again if the body is longer.
        let _ = self.take(MAX_ERROR_BYTES as u64).read_to_end(&mut text);
        Refusal::parse(status, &text, retry_after).into()
    }

    /// Parses the whole body.
    pub fn json<T: serde::de::DeserializeOwned>(mut self) -> Result<T, ClientError> {
        let url = self.response.url().path().to_owned();
        let body = BufReader::new((&mut self).take(MAX_JSON_BYTES));
        let mut deserializer = serde_json::Deserializer::from_reader(body);
        let value = T::deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
        value.map_err(|error| unreadable(&url, error))
    }
}

/// An error of a body that is parsed while it arrives.
pub fn unreadable(what: &str, error: serde_json::Error) -> ClientError {
    if error.is_io() {
        let error = io::Error::from(error);
        return ClientError::Connection(error.to_string());
    }
    if error.is_eof() {
        return ClientError::Damaged(format!("{what}: the response ended too early"));
    }
    ClientError::Protocol(format!("{what}: the response is not what the API promises: {error}"))
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let length = available.len().min(buffer.len());
        buffer[..length].copy_from_slice(&available[..length]);
        self.consume(length);
        Ok(length)
    }
}

impl BufRead for Body<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.fill().map_err(|error| io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string()))?;
        Ok(&self.rest)
    }

    fn consume(&mut self, amount: usize) {
        self.rest.advance(amount);
    }
}

impl Refusal {
    /// Reads an error body. That of another server, such as a proxy, has none of the fields.
    fn parse(status: u16, body: &[u8], retry_after: Option<Duration>) -> Self {
        #[derive(serde::Deserialize, Default)]
        #[serde(default)]
        struct Fields {
            error: String,
            details: String,
            code: String,
            request_id: String,
        }
        let Fields { error, details, code, request_id } = serde_json::from_slice(body).unwrap_or_default();
        let details = match (error.is_empty(), details.is_empty()) {
            (_, false) => details,
            (false, true) => error,
            (true, true) => match status {
                // A response to HEAD has no body.
                404 => "the service has no such VM, snapshot or disk".to_owned(),
                _ => format!("the server answered with status {status}"),
            },
        };
        let code = if code.is_empty() { format!("http_{status}") } else { code };
        Self { status, code, details, request_id, retry_after }
    }
}

/// Classifies an error of the transport. A certificate that is refused now is refused later too.
fn broken(error: &reqwest::Error) -> ClientError {
    let text = causes(error);
    if let Some(Untrusted { fingerprint, .. }) = Untrusted::within(error) {
        return ClientError::Setup(format!(
            "{text}; name its authority with --cacert or, if the service's own host shows the same fingerprint, the \
             certificate itself with --fingerprint {fingerprint}"
        ));
    }
    if tls::is_invalid_certificate(error) || error.is_builder() {
        return ClientError::Setup(format!("{text}; name the right authority with --cacert, or --fingerprint"));
    }
    if error.is_connect() {
        ClientError::Unconnected(format!("cannot connect: {text}"))
    } else {
        ClientError::Connection(text)
    }
}

/// The causes of the error. Its own text has the URL, which the user knows.
fn causes(error: &reqwest::Error) -> String {
    tls::with_causes(std::error::Error::source(error).unwrap_or(error))
}
