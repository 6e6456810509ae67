//! How a server proves its identity to us.
//!
//! A manager's certificate is self-signed as installed, and often marked as an authority. webpki refuses such a
//! certificate for a server even if it is trusted. So a certificate that the config names by its file or fingerprint is
//! compared as a whole, without building a path. The proof that the server holds its key is required in every case.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::errors::Untrusted;
use super::pem::read_certificates;
use crate::config::Trust;

pub(super) fn new(trust: &Trust, provider: &Arc<CryptoProvider>) -> io::Result<Arc<dyn ServerCertVerifier>> {
    let built_on = |roots: RootCertStore| {
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider))
            .build()
            .map_err(io::Error::other)
    };
    let rule = match trust {
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let problem = "the host has no list of authorities; name the server's certificate with ca_certificate, or install ca-certificates";
                return Err(io::Error::other(problem));
            }
            Rule::Chain(built_on(roots)?)
        }
        Trust::CaFile(path) => {
            let unusable = |problem| io::Error::other(format!("{}: {problem}", path.display()));
            let certificates = read_certificates(path).map_err(unusable)?;
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(certificates.iter().cloned());
            let chain = if roots.is_empty() { None } else { Some(built_on(roots)?) };
            Rule::OneOf { path: path.clone(), certificates, chain }
        }
        Trust::Fingerprint(digests) => Rule::Fingerprint(digests.clone()),
        Trust::InsecureSkipVerify => Rule::Any,
    };
    Ok(Arc::new(Verifier { rule, algorithms: provider.signature_verification_algorithms }))
}

fn untrusted(certificate: &CertificateDer<'_>, reason: String) -> Untrusted {
    Untrusted { fingerprint: fingerprint(digest(&SHA256, certificate).as_ref()), reason }
}

/// Formats a digest as in the config.
fn fingerprint(digest: &[u8]) -> String {
    let digits: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("sha256:{}", digits.join(":"))
}

#[derive(Debug)]
enum Rule {
    /// A chain to one of the host's authorities.
    Chain(Arc<WebPkiServerVerifier>),
    /// One of the certificates in the file, or a chain to one of them.
    OneOf {
        path: PathBuf,
        certificates: Vec<CertificateDer<'static>>,
        chain: Option<Arc<WebPkiServerVerifier>>,
    },
    /// A certificate with one of these SHA-256.
    Fingerprint(Vec<[u8; 32]>),
    Any,
}

#[derive(Debug)]
struct Verifier {
    rule: Rule,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let on_chain = |chain: &WebPkiServerVerifier, named: &str| {
            let verified = chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
            verified.map_err(|error| reason(&error, end_entity, server_name, named))
        };
        let refused = match &self.rule {
            Rule::Any => None,
            Rule::Chain(chain) => on_chain(chain, "").err(),
            Rule::Fingerprint(named) => {
                let found = digest(&SHA256, end_entity);
                let is_named = named.iter().any(|named| named == found.as_ref());
                let all = || named.iter().map(|named| fingerprint(named)).collect::<Vec<_>>().join(" or ");
                (!is_named).then(|| format!("is not the one that is named, {}", all()))
            }
            Rule::OneOf { certificates, .. } if certificates.iter().any(|certificate| certificate == end_entity) => {
                None
            }
            Rule::OneOf { path, chain, .. } => {
                let named = format!("is not the one in {}, and ", path.display());
                match chain {
                    Some(chain) => on_chain(chain, &named).err(),
                    None => Some(format!("is not the one in {}", path.display())),
                }
            }
        };
        match refused {
            None => Ok(ServerCertVerified::assertion()),
            Some(reason) => Err(untrusted(end_entity, reason).into_error()),
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

/// Why a certificate is refused. `named` goes before a reason that is about its issuer.
fn reason(error: &Error, certificate: &CertificateDer<'_>, name: &ServerName<'_>, named: &str) -> String {
    let is_self_signed = x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, found)| found.subject().as_raw() == found.issuer().as_raw());
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "has expired".to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "is not valid yet, by the clock of this host".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("is for other names than {}", name.to_str())
        }
        _ if is_self_signed => format!("{named}is self-signed"),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("{named}is signed by an unknown authority")
        }
        error => format!("{named}cannot be verified ({error})"),
    }
}
