//! TLS as a server: versions 1.2 and 1.3.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::NoServerSessionStorage;

use super::clients::AcceptedClients;
use super::key_file;
use super::pem::read_certificates;
use crate::config::Api;

/// What the server shows and accepts.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// `None`: clients show no certificates.
    pub clients: Option<AcceptedClients>,
}

/// Reads the files that `api` names.
///
/// # Errors
/// A file cannot be read or used, or the key belongs to another certificate. The message starts with the config key.
pub fn server_tls(api: &Api) -> io::Result<ServerTls> {
    let problem = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        let remedy = match key {
            "certificate" => "name the service's certificate, with its chain, in PEM",
            _ => "name the private key of api.tls.certificate, in PEM",
        };
        io::Error::other(format!("api.tls.{key}: {}: {error}; {remedy}", path.display()))
    };
    let chain =
        read_certificates(&api.certificate).map_err(|error| problem("certificate", &api.certificate, &error))?;
    let (file, insecurity) = key_file::open(&api.key).map_err(|error| problem("key", &api.key, &error))?;
    if let Some(insecurity) = insecurity.filter(|_| !api.allow_insecure_key) {
        let found = format!("api.tls.key: {} {insecurity}", api.key.display());
        return Err(io::Error::other(format!("{found}, or set api.tls.allow_insecure_permissions = true")));
    }
    let key = PrivateKeyDer::from_pem_reader(file).map_err(|error| match error {
        pem::Error::NoItemsFound => problem("key", &api.key, &"holds no private key in PEM, or an encrypted one"),
        error => problem("key", &api.key, &error),
    })?;
    let provider = Arc::new(provider());
    let clients = api.client_auth.as_ref().map(|auth| AcceptedClients::new(auth, &provider)).transpose()?;
    let builder = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &clients {
        None => builder.with_no_client_auth(),
        Some(clients) => builder.with_client_cert_verifier(clients.verifier()),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = api.certificate.display();
            problem("key", &api.key, &format_args!("does not belong to the certificate {certificate}"))
        }
        rustls::Error::InvalidCertificate(error) if is_old_version(&error) => {
            let found = "is an X.509 certificate of an old version; make one of version 3 with subjectAltName";
            io::Error::other(format!("api.tls.certificate: {} {found}", api.certificate.display()))
        }
        rustls::Error::InvalidCertificate(error) => problem("certificate", &api.certificate, &error),
        error => problem("key", &api.key, &error),
    })?;
    // No HTTP/2: it needs more CPU for bulk data. The handshake fails for a client that offers nothing else.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    config.ignore_client_order = true;
    if clients.is_none() {
        config.ticketer = aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    } else {
        // A resumed session does not check the client's certificate again, which may be revoked by then.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
    }
    Ok(ServerTls { config: Arc::new(config), clients })
}

/// Version 1 has no extensions, so it names no host that a client accepts.
fn is_old_version(error: &rustls::CertificateError) -> bool {
    let rustls::CertificateError::Other(other) = error else { return false };
    other.0.to_string() == "UnsupportedCertVersion"
}

/// The default ciphers of rustls, those with AES-128 first: they cost the least CPU per byte.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
    provider
}
