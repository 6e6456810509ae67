//! Which certificates of clients the server accepts.

use std::fmt::Display;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::client_certificate::ClientCertificate;
use super::pem::{read_certificates, read_revocations};
use crate::config::ClientAuth;

/// The authorities of clients' certificates, with their revocation lists.
#[derive(Clone, Debug)]
pub struct AcceptedClients {
    verifier: Arc<dyn ClientCertVerifier>,
    /// The end of the revocation list that ends first.
    revocations_end: Option<SystemTime>,
}

impl AcceptedClients {
    /// # Errors
    /// A file cannot be read or used. The message starts with the config key.
    pub(super) fn new(auth: &ClientAuth, provider: &Arc<CryptoProvider>) -> io::Result<Self> {
        let unusable = |error: &dyn Display| {
            let (path, remedy) =
                (auth.authorities.display(), "name the authority of the clients' certificates, in PEM");
            io::Error::other(format!("api.tls.ca_certificate: {path}: {error}; {remedy}"))
        };
        let authorities = read_certificates(&auth.authorities).map_err(|error| unusable(&error))?;
        let mut roots = RootCertStore::empty();
        for certificate in &authorities {
            roots.add(certificate.clone()).map_err(|error| unusable(&error))?;
        }
        let (lists, revocations_end) = revocations(auth, &authorities, provider)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
        // With lists, each certificate of a chain must be in the range of one: a certificate of which it is unknown
        // whether it is revoked is refused. A list that has ended refuses all: it says nothing about newer revocations.
        let verifier = verifier.with_crls(lists).enforce_revocation_expiration();
        let verifier = if auth.is_required { verifier } else { verifier.allow_unauthenticated() };
        let verifier = verifier.build().map_err(|error| unusable(&error))?;
        Ok(Self { verifier, revocations_end })
    }

    pub(super) fn verifier(&self) -> Arc<dyn ClientCertVerifier> {
        Arc::clone(&self.verifier)
    }

    /// Whether the certificate is accepted now.
    pub fn accepts(&self, certificate: &ClientCertificate) -> bool {
        self.accepts_chain(certificate.chain())
    }

    /// As [`Self::accepts`], for a certificate without usable names too.
    pub fn accepts_chain(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((own, others)) = chain.split_first() else { return false };
        self.verifier.verify_client_cert(own, others, UnixTime::now()).is_ok()
    }

    /// When the first of the revocation lists ends. From then on no certificate is accepted.
    pub fn revocations_end(&self) -> Option<SystemTime> {
        self.revocations_end
    }
}

/// The revocation lists, and when the first of them ends.
fn revocations(
    auth: &ClientAuth,
    authorities: &[CertificateDer<'_>],
    provider: &CryptoProvider,
) -> io::Result<(Vec<CertificateRevocationListDer<'static>>, Option<SystemTime>)> {
    let (mut lists, mut end, mut issuers) = (Vec::new(), None, Vec::new());
    let authorities: Vec<X509Certificate<'_>> =
        authorities.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    for path in &auth.revocations {
        for list in read_revocations(path).map_err(|error| unusable_list(path, &error))? {
            let (until, issuer) =
                checked(&list, &authorities, provider).map_err(|error| unusable_list(path, &error))?;
            end = Some(end.map_or(until, |end: SystemTime| end.min(until)));
            issuers.push(issuer);
            lists.push(list);
        }
    }
    let without = authorities.iter().find(|authority| !issuers.iter().any(|it| it == authority.subject().as_raw()));
    if let (Some(authority), Some(path)) = (without, auth.revocations.first()) {
        let missing = format!("has no list of the authority {:?}", authority.subject().to_string());
        return Err(unusable_list(path, &missing));
    }
    Ok((lists, end))
}

fn unusable_list(path: &Path, error: &dyn Display) -> io::Error {
    let remedy = "name a revocation list of each authority of the clients' certificates, in PEM or DER";
    io::Error::other(format!("api.tls.client_crl: {}: {error}; {remedy}", path.display()))
}

/// The end of a list, and its issuer. An authority's list must have its signature. The signature of the list of an
/// authority below it is checked with each certificate.
fn checked(
    list: &CertificateRevocationListDer<'_>,
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
) -> Result<(SystemTime, Vec<u8>), String> {
    let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| error.to_string())?;
    let issuer = list.tbs_cert_list.issuer.as_raw();
    let of_issuer: Vec<_> = authorities.iter().filter(|authority| authority.subject().as_raw() == issuer).collect();
    let is_signed_by = |authority: &X509Certificate<'_>| {
        let key = &authority.public_key().subject_public_key.data;
        let (text, signature) = (list.tbs_cert_list.as_ref(), &list.signature_value.data);
        let mut algorithms = provider.signature_verification_algorithms.all.iter();
        algorithms.any(|algorithm| algorithm.verify_signature(key, text, signature).is_ok())
    };
    if !of_issuer.is_empty() && !of_issuer.into_iter().any(is_signed_by) {
        return Err("is not signed by the authority that it names".to_owned());
    }
    let end = list.next_update().ok_or("does not say until when it is valid (nextUpdate)")?.timestamp();
    let end = UNIX_EPOCH + Duration::from_secs(u64::try_from(end).unwrap_or_default());
    Ok((end, issuer.to_vec()))
}
