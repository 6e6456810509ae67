//! A cheap client for many small requests: one thread, one connection.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, RootCertStore, StreamOwned};

use crate::peer::Peer;

/// The TLS config that the connections of a client share, including the tickets for resumption.
pub fn config(peer: &Peer) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&peer.ca).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_protocol_versions(&[&rustls::version::TLS13]);
    Arc::new(builder.unwrap().with_root_certificates(roots).with_no_client_auth())
}

pub struct Connection<'a> {
    peer: &'a Peer,
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl<'a> Connection<'a> {
    pub fn open(peer: &'a Peer, config: &Arc<ClientConfig>) -> Self {
        let name = ServerName::try_from("localhost").unwrap();
        let session = ClientConnection::new(Arc::clone(config), name).unwrap();
        let socket = TcpStream::connect(("127.0.0.1", peer.port)).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
        let mut stream = StreamOwned::new(session, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).unwrap();
        }
        Self { peer, stream, buffer: vec![0; 256 << 10] }
    }

    pub fn is_resumed(&self) -> bool {
        self.stream.conn.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    /// Fetches `range` of `file` and discards it.
    pub fn fetch(&mut self, file: &str, range: Range<u64>) {
        let length = self.request(file, &format!("{}-{}", range.start, range.end - 1));
        assert_eq!(length, range.end - range.start, "{}", self.peer.name);
    }

    /// Fetches `ranges` of `file`, in the syntax of the header; returns the length of the body.
    pub fn request(&mut self, file: &str, ranges: &str) -> u64 {
        let Peer { name, prefix, authorization, .. } = self.peer;
        let authorization = match authorization.as_str() {
            "" => String::new(),
            value => format!("Authorization: {value}\r\n"),
        };
        let request =
            format!("GET {prefix}{file} HTTP/1.1\r\nHost: localhost\r\n{authorization}Range: bytes={ranges}\r\n\r\n");
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut filled = 0;
        let body = loop {
            let received = self.stream.read(&mut self.buffer[filled..]).unwrap();
            assert!(received > 0, "{name}: the connection ended");
            filled += received;
            if let Some(end) = self.buffer[..filled].windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&self.buffer[..body]).to_lowercase();
        assert!(head.starts_with("http/1.1 206 "), "{name}: {head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
        let mut left: u64 = length - (filled - body) as u64;
        while left > 0 {
            let received = self.stream.read(&mut self.buffer).unwrap();
            assert!(received > 0, "{name}: the body ended early");
            left -= received as u64;
        }
        length
    }
}
