//! A client that speaks the contract.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use reqwest::Method;
use reqwest::blocking::RequestBuilder;
use reqwest::header::HeaderMap;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use tokio::net::TcpSocket;

use super::{Certificates, Exporter, PASSWORD, USER, VM};

pub struct Client {
    http: reqwest::blocking::Client,
    base: String,
    pub token: String,
}

/// An answer, whole.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error}: {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The JSON of an answer that has to be 200.
    pub fn ok(self) -> Value {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        self.json()
    }

    /// Checks that this is an error as the contract has it; returns its `code`.
    pub fn error(&self, status: u16) -> String {
        let body = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, status, "{body}");
        assert_eq!(self.header("content-type"), "application/json");
        let json = self.json();
        for field in ["error", "details", "code", "request_id"] {
            assert!(json[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {body}");
        }
        assert_eq!(json["request_id"], self.header("x-request-id"));
        json["code"].as_str().unwrap().to_owned()
    }
}

impl Client {
    /// A client without a token.
    pub fn new(exporter: &Exporter, certificates: &Certificates) -> Self {
        let ca = std::fs::read(certificates.ca()).unwrap();
        let ca = reqwest::Certificate::from_pem(&ca).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let http = reqwest::blocking::Client::builder()
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none())
            .timeout(Duration::from_secs(120))
            .no_proxy()
            .build()
            .unwrap();
        Self { http, base: format!("https://127.0.0.1:{}", exporter.port), token: String::new() }
    }

    pub fn log_in(&mut self) {
        let body = json!({"username": USER, "password": PASSWORD});
        let answer = self.send(self.request(Method::POST, "/api/v1/auth/login").body(body.to_string()));
        self.token = answer.ok()["token"].as_str().unwrap().to_owned();
    }

    /// A request to `path` (from the root) with the token, to be added to.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.base));
        if self.token.is_empty() { request } else { request.bearer_auth(&self.token) }
    }

    /// Sends it, or panics.
    pub fn send(&self, request: RequestBuilder) -> Answer {
        let again = request.try_clone();
        match (self.try_send(request), again) {
            // A connection that was idle for too long is closed, and the request was not seen.
            (Err(error), Some(again)) if error.is_request() && !error.is_timeout() => self.try_send(again).unwrap(),
            (answer, _) => answer.unwrap(),
        }
    }

    /// Sends it; an error where the connection breaks, also in the middle of the body.
    pub fn try_send(&self, request: RequestBuilder) -> reqwest::Result<Answer> {
        let response = request.send()?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.bytes()?.to_vec() })
    }

    /// `GET /api/v1` + `path`.
    pub fn get(&self, path: &str) -> Answer {
        self.send(self.request(Method::GET, &format!("/api/v1{path}")))
    }

    pub fn post(&self, path: &str) -> Answer {
        self.send(self.request(Method::POST, &format!("/api/v1{path}")))
    }

    pub fn delete(&self, path: &str) -> Answer {
        self.send(self.request(Method::DELETE, &format!("/api/v1{path}")))
    }

    /// Takes a snapshot of [`VM`]; returns its document.
    pub fn take_snapshot(&self) -> Value {
        self.post(&format!("/vms/{VM}/snapshots")).ok()
    }

    /// The document of a snapshot of [`VM`], compared to `base`.
    pub fn compare(&self, id: &str, base: &str) -> Value {
        self.get(&format!("/vms/{VM}/snapshots/{id}?compareTo={base}")).ok()
    }

    /// The bytes of a disk of a snapshot of [`VM`].
    pub fn disk(&self, id: &str, disk: &str) -> Vec<u8> {
        let answer = self.get(&format!("/vms/{VM}/snapshots/{id}/disks/{disk}"));
        assert_eq!(answer.status, 200);
        answer.body
    }

    /// A part of a disk, by a Range request.
    pub fn disk_range(&self, id: &str, disk: &str, start: u64, length: u64) -> Vec<u8> {
        let path = format!("/api/v1/vms/{VM}/snapshots/{id}/disks/{disk}");
        let range = format!("bytes={start}-{}", start + length - 1);
        let answer = self.send(self.request(Method::GET, &path).header("Range", range));
        assert_eq!(answer.status, 206);
        answer.body
    }
}

/// A TLS connection for what no HTTP library sends; reads and writes give up after a minute. It takes little that
/// is not read: else what is sent to it, some MiB, is all in buffers on the way.
pub fn connect(exporter: &Exporter, certificates: &Certificates) -> StreamOwned<ClientConnection, TcpStream> {
    connect_from(exporter, certificates, [127, 0, 0, 1])
}

/// The same from another address of this host.
pub fn connect_from(
    exporter: &Exporter,
    certificates: &Certificates,
    address: [u8; 4],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.ca()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut session = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost").unwrap()).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(64 << 10)?;
        socket.bind(SocketAddr::from((address, 0)))?;
        socket.connect(SocketAddr::from(([127, 0, 0, 1], exporter.port))).await?.into_std()
    };
    let mut stream: TcpStream = runtime.block_on(connecting).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream).unwrap();
    }
    StreamOwned::new(session, stream)
}

/// Ids of a document and its parts, as text.
pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}
