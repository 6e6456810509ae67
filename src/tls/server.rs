//! TLS as a server: versions 1.2 and 1.3.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::key_file;
use super::pem::read_certificates;
use crate::config::Api;

/// Reads the certificate and key that `api` names.
///
/// # Errors
/// A file cannot be read or used, or the key belongs to another certificate. The message starts with the config key.
pub fn server_config(api: &Api) -> io::Result<Arc<ServerConfig>> {
    let problem = |key: &str, path: &Path, error: &dyn std::fmt::Display| {
        let remedy = match key {
            "certificate" => "name the service's certificate, with its chain, in PEM",
            "key" => "name the private key of api.tls.certificate, in PEM",
            _ => "name the authority of the clients' certificates, in PEM",
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
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?;
    let builder = match &api.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let unusable = |error: &dyn std::fmt::Display| problem("ca_certificate", path, error);
            let mut roots = RootCertStore::empty();
            for certificate in read_certificates(path).map_err(|error| unusable(&error))? {
                roots.add(certificate).map_err(|error| unusable(&error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().map_err(|error| unusable(&error))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let certificate = api.certificate.display();
            problem("key", &api.key, &format_args!("does not belong to the certificate {certificate}"))
        }
        error => problem("key", &api.key, &error),
    })?;
    // No HTTP/2: it needs more CPU for bulk data. The handshake fails for a client that offers nothing else.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    config.ticketer = aws_lc_rs::Ticketer::new().map_err(io::Error::other)?;
    config.ignore_client_order = true;
    Ok(Arc::new(config))
}

/// The default ciphers of rustls, those with AES-128 first: they cost the least CPU per byte.
fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| !format!("{:?}", suite.suite()).contains("AES_128_GCM"));
    provider
}
