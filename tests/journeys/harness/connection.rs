//! Raw TLS connections, for requests that no HTTP library sends and for responses that are read slowly.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use reqwest::header::{HeaderName, HeaderValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};
use tokio::net::TcpSocket;

use super::{Answer, Certificates, Client, Exporter, World};

pub type Connection = StreamOwned<ClientConnection, TcpStream>;

/// Opens a connection. Reads and writes time out after a minute. The receive buffer is small: otherwise a response of
/// some MiB would fit into the buffers on the way.
pub fn connect(exporter: &Exporter, certificates: &Certificates) -> Connection {
    connect_from(exporter, certificates, [127, 0, 0, 1])
}

/// As [`connect`], from another address of this host.
pub fn connect_from(exporter: &Exporter, certificates: &Certificates, address: [u8; 4]) -> Connection {
    connect_with(exporter, Arc::new(tls_config(certificates, None)), address).unwrap()
}

/// TLS as a client, with the certificate of this name.
pub fn tls_config(certificates: &Certificates, name: Option<&str>) -> ClientConfig {
    tls_config_of(certificates, name, rustls::DEFAULT_VERSIONS)
}

/// As [`tls_config`], with these versions of TLS.
pub fn tls_config_of(
    certificates: &Certificates,
    name: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.ca()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let Some(name) = name else { return config.with_no_client_auth() };
    let chain = CertificateDer::from_pem_file(certificates.path(format!("{name}.pem"))).unwrap();
    let key = PrivateKeyDer::from_pem_file(certificates.path(format!("{name}.key"))).unwrap();
    config.with_client_auth_cert(vec![chain], key).unwrap()
}

/// As [`connect_from`], with this configuration. With TLS 1.3, the service refuses a certificate after this returns.
pub fn connect_with(exporter: &Exporter, config: Arc<ClientConfig>, address: [u8; 4]) -> io::Result<Connection> {
    let mut session = ClientConnection::new(config, ServerName::try_from("localhost").unwrap()).unwrap();
    let mut stream = silent_from(exporter, address);
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(60))).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(StreamOwned::new(session, stream))
}

/// Connects from an address of this host, and sends nothing.
pub fn silent_from(exporter: &Exporter, address: [u8; 4]) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connecting = async {
        let socket = TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(64 << 10)?;
        socket.bind(SocketAddr::from((address, 0)))?;
        let connecting = socket.connect(SocketAddr::from(([127, 0, 0, 1], exporter.port)));
        tokio::time::timeout(Duration::from_secs(60), connecting).await.expect("cannot connect")?.into_std()
    };
    let stream = runtime.block_on(connecting).unwrap();
    stream.set_nonblocking(false).unwrap();
    stream
}

/// Raises the limit for the sockets of this process as far as the kernel lets root.
pub fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    let most = std::fs::read_to_string("/proc/sys/fs/nr_open").unwrap().trim().parse().unwrap();
    if setrlimit(Resource::RLIMIT_NOFILE, most, most).is_err() {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    }
}

impl World {
    /// Sends a GET request to `/api/v1` + `path` on a new connection, and reads nothing.
    pub fn send_get(&self, client: &Client, path: &str) -> Connection {
        self.send_get_with(client, path, "")
    }

    /// As [`Self::send_get`], with more header lines, each with its line end.
    pub fn send_get_with(&self, client: &Client, path: &str, headers: &str) -> Connection {
        let mut stream = connect(&self.exporter, &self.certificates);
        let token = &client.token;
        let head = format!("GET /api/v1{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n{headers}\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream.flush().unwrap();
        stream
    }

    /// Sends a GET request, and reads the first 4 KiB of the response.
    pub fn begin_get(&self, client: &Client, path: &str, accept: &str) -> (Connection, String) {
        let headers = format!("Accept: {accept}\r\nConnection: close\r\n");
        let mut stream = self.send_get_with(client, path, &headers);
        let mut first = vec![0; 4096];
        stream.read_exact(&mut first).unwrap();
        let first = String::from_utf8(first).unwrap();
        assert!(first.starts_with("HTTP/1.1 200 "), "{first}");
        (stream, first)
    }
}

/// Reads the rest of a chunked response; returns whether it ends with the last chunk.
pub fn ends_completely(mut response: Connection) -> bool {
    let mut rest = Vec::new();
    response.read_to_end(&mut rest).is_ok() && rest.ends_with(b"\r\n0\r\n\r\n")
}

impl Answer {
    /// Parses the head of a response; returns it without a body, and the bytes that follow.
    pub fn parse_head(bytes: &[u8]) -> (Self, &[u8]) {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("not a response: {:?}", String::from_utf8_lossy(bytes)));
        let mut lines = std::str::from_utf8(&bytes[..end]).unwrap().split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let header = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            (name.parse::<HeaderName>().unwrap(), value.trim().parse::<HeaderValue>().unwrap())
        };
        (Self { status, headers: lines.map(header).collect(), body: Vec::new() }, &bytes[end + 4..])
    }
}
