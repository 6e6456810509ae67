//! The certificate that a client has shown.

use rustls::pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::X509Certificate;

use crate::model::is_printable;

/// A longer name in a certificate is ignored, in bytes.
const MAX_NAME: usize = 255;

/// A verified certificate of a client, with the chain that the client sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    chain: Vec<CertificateDer<'static>>,
    /// At least one.
    names: Vec<String>,
}

impl ClientCertificate {
    /// `chain` begins with the client's own certificate. `None` if that has no usable name.
    pub fn new(chain: &[CertificateDer<'_>]) -> Option<Self> {
        let names = names(chain.first()?);
        let chain = chain.iter().map(|certificate| certificate.clone().into_owned()).collect();
        (!names.is_empty()).then_some(Self { chain, names })
    }

    /// From [`Self::chain`], as it was stored.
    pub fn of_stored(chain: Vec<Vec<u8>>) -> Option<Self> {
        Self::new(&chain.into_iter().map(CertificateDer::from).collect::<Vec<_>>())
    }

    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The common name of the subject, if there is one, and the alternative names of the types DNS, e-mail and URI.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The first of the names.
    pub fn name(&self) -> &str {
        self.names.first().map_or("", String::as_str)
    }
}

fn names(certificate: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else { return Vec::new() };
    let mut names: Vec<&str> = common_name(&certificate).into_iter().collect();
    if let Ok(Some(alternatives)) = certificate.subject_alternative_name() {
        names.extend(alternatives.value.general_names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some(*name),
            _ => None,
        }));
    }
    let is_usable = |name: &&str| !name.trim().is_empty() && name.len() <= MAX_NAME && is_printable(name);
    names.into_iter().filter(is_usable).map(str::to_owned).collect()
}

/// Of several common names none counts: programs do not agree on which one it is.
fn common_name<'a>(certificate: &'a X509Certificate<'_>) -> Option<&'a str> {
    let mut found = certificate.subject().iter_common_name();
    let (first, second) = (found.next()?, found.next());
    second.is_none().then(|| first.as_str().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType};

    use super::*;

    fn names_of(common_names: &[&str], alternatives: Vec<SanType>) -> Vec<String> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = alternatives;
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let certificate = ClientCertificate::new(&[certificate.der().clone()]);
        certificate.map(|certificate| certificate.names().to_vec()).unwrap_or_default()
    }

    #[test]
    fn the_names_are_the_common_name_and_those_of_three_types() {
        let alternatives = vec![
            SanType::DnsName("host.example".try_into().unwrap()),
            SanType::IpAddress([10, 0, 0, 1].into()),
            SanType::Rfc822Name("ann@example".try_into().unwrap()),
            SanType::URI("spiffe://example/backup".try_into().unwrap()),
        ];
        let expected = ["backup", "host.example", "ann@example", "spiffe://example/backup"];
        assert_eq!(names_of(&["backup"], alternatives.clone()), expected);
        assert_eq!(names_of(&[], alternatives), expected[1..]);
    }

    #[test]
    fn names_that_could_be_read_in_two_ways_are_ignored() {
        for name in ["", "  ", "two\nlines", "nul\0", &"x".repeat(256)] {
            assert_eq!(names_of(&[name], Vec::new()), Vec::<String>::new(), "{name:?}");
        }
    }
}
