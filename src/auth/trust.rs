//! How the manager proves who it is.
//!
//! Its certificate is self-signed as installed, and often marked as an authority: webpki refuses
//! such a one as a server's own even where it is trusted. So a certificate that was named outright,
//! by its file or by its fingerprint, is compared as it is, and no path is built from it. The proof
//! that the other side holds its key is always asked for.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};

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
    let rule = match trust {
        Trust::System => {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let problem = "the host has no list of authorities; name one with ca_certificate";
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
        Trust::Fingerprint(digest) => Rule::Digest(*digest),
        Trust::InsecureSkipVerify => Rule::Any,
    };
    Ok(Arc::new(Verifier { rule, algorithms: provider.signature_verification_algorithms }))
}

/// A certificate that does not prove who the other side is.
#[derive(Debug, thiserror::Error)]
#[error("its certificate, whose fingerprint is {fingerprint}, {reason}")]
pub struct Untrusted {
    /// `sha256:` and its digits, as a config names it.
    pub fingerprint: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Untrusted {
    /// The refusal of a certificate that `error` comes from, if it does.
    pub fn within<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a Self> {
        if let Some(Error::InvalidCertificate(CertificateError::Other(OtherError(inner)))) = error.downcast_ref() {
            return inner.downcast_ref();
        }
        // An io::Error passes over what it holds.
        let held = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        held.and_then(|held| Self::within(held)).or_else(|| error.source().and_then(Self::within))
    }

    fn new(certificate: &CertificateDer<'_>, reason: String) -> Self {
        let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
        Self { fingerprint: fingerprint(digest.as_ref()), reason }
    }

    fn into_error(self) -> Error {
        Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(self))))
    }
}

/// As a config names a certificate.
fn fingerprint(digest: &[u8]) -> String {
    let digits: Vec<String> = digest.iter().map(|byte| format!("{byte:02X}")).collect();
    format!("sha256:{}", digits.join(":"))
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
    /// One that chains to the host's authorities.
    Chain(Arc<WebPkiServerVerifier>),
    /// One of these to the letter, or one that chains to them.
    OneOf { path: PathBuf, certificates: Vec<CertificateDer<'static>>, chain: Option<Arc<WebPkiServerVerifier>> },
    /// The one with this SHA-256.
    Digest([u8; 32]),
    /// Whatever comes.
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
            verified.map_err(|error| why_not(&error, end_entity, server_name, named))
        };
        let refused = match &self.rule {
            Rule::Any => None,
            Rule::Chain(chain) => on_chain(chain, "").err(),
            Rule::Digest(digest) => {
                let found = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, end_entity);
                (found.as_ref() != digest).then(|| format!("is not the one that is named, {}", fingerprint(digest)))
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
            Some(reason) => Err(Untrusted::new(end_entity, reason).into_error()),
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

/// Why a certificate does not chain to what is trusted, in plain words; `named` goes before it where that is the reason.
fn why_not(error: &Error, certificate: &CertificateDer<'_>, name: &ServerName<'_>, named: &str) -> String {
    let is_self_signed = x509_parser::parse_x509_certificate(certificate)
        .is_ok_and(|(_, found)| found.subject().as_raw() == found.issuer().as_raw());
    match error {
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "has expired".to_owned()
        }
        Error::InvalidCertificate(CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. }) => {
            "is not good yet, by the clock of this host".to_owned()
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => {
            format!("is for other names than {}", name.to_str())
        }
        _ if is_self_signed => format!("{named}is self-signed: no authority vouches for it"),
        Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            format!("{named}is signed by an authority that is not trusted here")
        }
        error => format!("{named}cannot be verified ({error})"),
    }
}
