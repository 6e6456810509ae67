//! Certificates in PEM files.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

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
