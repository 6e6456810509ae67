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
use x509_parser::num_bigint::BigUint;
use x509_parser::oid_registry::OID_X509_EXT_ISSUER_DISTRIBUTION_POINT;
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
        // whether it is revoked is refused. A list that has ended refuses all certificates
        // of its authority: it says nothing about newer revocations.
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

    /// When the first of the revocation lists ends. From then on no certificate of its authority is accepted.
    pub fn revocations_end(&self) -> Option<SystemTime> {
        self.revocations_end
    }
}

/// A revocation list, and what is compared of it.
struct RevocationList {
    der: CertificateRevocationListDer<'static>,
    issuer: Vec<u8>,
    /// The extension issuing distribution point: for which of the issuer's certificates the list is.
    scope: Option<Vec<u8>>,
    /// Its thisUpdate, seconds since 1970, and its number: a newer list has a greater age.
    age: (i64, Option<BigUint>),
    end: SystemTime,
}

/// The revocation lists, and when the first of them ends.
fn revocations(
    auth: &ClientAuth,
    authorities: &[CertificateDer<'_>],
    provider: &CryptoProvider,
) -> io::Result<(Vec<CertificateRevocationListDer<'static>>, Option<SystemTime>)> {
    let mut lists = Vec::new();
    let authorities: Vec<X509Certificate<'_>> =
        authorities.iter().filter_map(|der| Some(X509Certificate::from_der(der).ok()?.1)).collect();
    for path in &auth.revocations {
        for list in read_revocations(path).map_err(|error| unusable_list(path, &error))? {
            let list = checked(list, &authorities, provider).map_err(|error| unusable_list(path, &error))?;
            add(&mut lists, list).map_err(|error| unusable_list(path, &error))?;
        }
    }
    let has_list = |authority: &X509Certificate<'_>| lists.iter().any(|it| it.issuer == authority.subject().as_raw());
    let without = authorities.iter().find(|authority| !has_list(authority));
    if let (Some(authority), Some(path)) = (without, auth.revocations.first()) {
        let missing = format!("has no list of the authority {:?}", authority.subject().to_string());
        return Err(unusable_list(path, &missing));
    }
    // webpki asks only the first list that can have a certificate. Scopes may overlap, so the newest has to be the first.
    lists.sort_by(|one, other| other.age.cmp(&one.age));
    let end = lists.iter().map(|list| list.end).min();
    Ok((lists.into_iter().map(|list| list.der).collect(), end))
}

/// Adds a list. Of several lists of one issuer with the same scope, only the newest stays: an older one does not have the
/// newer revocations.
fn add(lists: &mut Vec<RevocationList>, new: RevocationList) -> Result<(), String> {
    let Some(known) = lists.iter_mut().find(|it| it.issuer == new.issuer && it.scope == new.scope) else {
        lists.push(new);
        return Ok(());
    };
    if new.age == known.age && new.der != known.der {
        return Err(
            "has a list that differs from another one of the same authority, the same time (thisUpdate) and the \
                    same number, so it is unknown which one is newer"
                .to_owned(),
        );
    }
    if new.age > known.age {
        *known = new;
    }
    Ok(())
}

fn unusable_list(path: &Path, error: &dyn Display) -> io::Error {
    let remedy = "name a revocation list of each authority of the clients' certificates, in PEM or DER";
    io::Error::other(format!("api.tls.client_crl: {}: {error}; {remedy}", path.display()))
}

/// A list of which the signature is good. That is known for an authority's list only; the signature of the list of an
/// authority below it is checked with each certificate.
fn checked(
    der: CertificateRevocationListDer<'static>,
    authorities: &[X509Certificate<'_>],
    provider: &CryptoProvider,
) -> Result<RevocationList, String> {
    let (_, list) = CertificateRevocationList::from_der(&der).map_err(|error| error.to_string())?;
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
    let scope = list.extensions().iter().find(|it| it.oid == OID_X509_EXT_ISSUER_DISTRIBUTION_POINT);
    let (issuer, scope) = (issuer.to_vec(), scope.map(|it| it.value.to_vec()));
    let age = (list.last_update().timestamp(), list.crl_number().cloned());
    Ok(RevocationList { der: der.clone(), issuer, scope, age, end })
}

#[cfg(test)]
#[path = "clients/tests.rs"]
mod tests;
