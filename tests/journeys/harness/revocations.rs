//! Revocation lists of the authority of tests.

use std::time::{Duration, SystemTime};

use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber, date_time_ymd};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use super::Certificates;

impl Certificates {
    /// Writes a list to the file `name`, which revokes the certificates of these names and is valid for years.
    pub fn revoke(&self, name: &str, revoked: &[&str]) {
        self.revoke_for(name, revoked, Duration::from_secs(10 * 31_536_000));
    }

    /// As [`Self::revoke`], valid for this long.
    pub fn revoke_for(&self, name: &str, revoked: &[&str], valid: Duration) {
        let revoked_certs = revoked.iter().map(|name| RevokedCertParams {
            serial_number: self.serial(name),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: (SystemTime::now() + valid).into(),
            crl_number: SerialNumber::from(1_u64),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        std::fs::write(self.path(name), params.signed_by(&self.authority).unwrap().pem().unwrap()).unwrap();
    }

    fn serial(&self, name: &str) -> SerialNumber {
        let certificate = CertificateDer::from_pem_file(self.path(format!("{name}.pem"))).unwrap();
        let (_, certificate) = x509_parser::parse_x509_certificate(&certificate).unwrap();
        SerialNumber::from_slice(certificate.raw_serial())
    }
}
