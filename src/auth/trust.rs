//! How the manager proves who it is.
//!
//! Its certificate is self-signed as installed, and often marked as an authority: webpki refuses
//! such a one as a server's own even where it is trusted. So a certificate that was named outright,
//! by its file or by its fingerprint, is compared as it is, and no path is built from it. The proof
//! that the other side holds its key is always asked for.

use std::io;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use crate::config::Trust;

/// A TLS client that believes what `trust` says.
///
/// # Errors
/// Where the certificates named cannot be read or used.
pub fn client_config(trust: &Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier(trust, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

fn verifier(trust: &Trust, provider: &Arc<CryptoProvider>) -> io::Result<Arc<dyn ServerCertVerifier>> {
    let built_on = |roots: RootCertStore| {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(io::Error::other)
    };
    let named =
        |rule: Rule| Arc::new(NamedCertificate { rule, algorithms: provider.signature_verification_algorithms });
    Ok(match trust {
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let problem = "the host has no list of authorities; name one with ca_certificate";
                return Err(io::Error::other(problem));
            }
            built_on(roots)?
        }
        Trust::CaFile(path) => {
            let unusable = |problem| io::Error::other(format!("{}: {problem}", path.display()));
            let certificates = read_certificates(path).map_err(unusable)?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates.iter().cloned());
            let chain = if roots.is_empty() { None } else { Some(built_on(roots)?) };
            named(Rule::OneOf { certificates, chain })
        }
        Trust::Fingerprint(digest) => named(Rule::Digest(*digest)),
        Trust::Nothing => named(Rule::Any),
    })
}

/// The certificates in a file in PEM, at least one.
///
/// # Errors
/// What is wrong with it, without its path.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

#[derive(Debug)]
enum Rule {
    /// One of these to the letter, or one that chains to them.
    OneOf { certificates: Vec<CertificateDer<'static>>, chain: Option<Arc<WebPkiServerVerifier>> },
    /// The one with this SHA-256.
    Digest([u8; 32]),
    /// Whatever comes.
    Any,
}

#[derive(Debug)]
struct NamedCertificate {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NamedCertificate {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let good = match &self.rule {
            Rule::Any => true,
            Rule::Digest(digest) => {
                aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, end_entity).as_ref() == digest
            }
            Rule::OneOf { certificates, chain } => {
                let is_named = certificates.iter().any(|certificate| certificate == end_entity);
                match chain {
                    Some(chain) if !is_named => {
                        return chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
                    }
                    _ => is_named,
                }
            }
        };
        if good {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
