//! Certificates and revocation lists in files.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::extensions::GeneralName;

/// The certificates in a PEM file, at least one. An error does not repeat the path.
pub(super) fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match certificates {
        Ok(certificates) if certificates.is_empty() => Err("holds no certificate in PEM".to_owned()),
        Ok(certificates) => Ok(certificates),
        Err(error) => Err(error.to_string()),
    }
}

/// When the first certificate in a PEM file begins and ends to be valid, in seconds since 1970.
///
/// # Errors
/// The file has no certificate that can be read.
pub fn validity(path: &Path) -> Result<(i64, i64), String> {
    let certificates = read_certificates(path)?;
    let first = certificates.first().ok_or("holds no certificate in PEM")?;
    let (_, certificate) = x509_parser::parse_x509_certificate(first).map_err(|error| error.to_string())?;
    let validity = certificate.validity();
    Ok((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// The first name of a host in the first certificate in a PEM file, with which clients can verify it.
pub fn server_name(path: &Path) -> Option<String> {
    let certificates = read_certificates(path).ok()?;
    let (_, certificate) = x509_parser::parse_x509_certificate(certificates.first()?).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        GeneralName::DNSName(name) if !name.contains('*') => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => <[u8; 4]>::try_from(*bytes).ok().map(|v4| Ipv4Addr::from(v4).to_string()),
        _ => None,
    })
}

/// The first byte of DER: a sequence.
const SEQUENCE: u8 = 0x30;

/// The revocation lists in a file, in PEM or one in DER, at least one. An error does not repeat the path.
pub(super) fn read_revocations(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, String> {
    let bytes = fs::read(path).map_err(|error| error.to_string())?;
    if bytes.first() == Some(&SEQUENCE) {
        return Ok(vec![bytes.into()]);
    }
    let lists: Result<Vec<CertificateRevocationListDer<'static>>, _> =
        CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match lists {
        Ok(lists) if lists.is_empty() => Err("holds no revocation list".to_owned()),
        Ok(lists) => Ok(lists),
        Err(error) => Err(error.to_string()),
    }
}
