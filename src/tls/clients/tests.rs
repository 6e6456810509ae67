use std::fs;
use std::path::PathBuf;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, CrlDistributionPoint,
    CrlIssuingDistributionPoint, CrlScope, DnType, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair,
    KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

use super::*;

/// An authority with its lists in a folder, and a certificate that it has issued.
struct Authority {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
    chain: Vec<CertificateDer<'static>>,
}

const SERIAL: u64 = 4711;

fn distribution_point(uri: &str) -> CrlDistributionPoint {
    CrlDistributionPoint { uris: vec![uri.to_owned()] }
}

/// A list of a year, and its number. The certificate may be revoked, and the list may have ended in that year.
#[derive(Clone, Copy)]
struct List {
    year: i32,
    number: u64,
    revokes: bool,
    has_ended: bool,
    uri: Option<&'static str>,
}

const OLD: List = List { year: 2020, number: 1, revokes: false, has_ended: false, uri: None };
const NEW: List = List { year: 2021, number: 2, revokes: true, has_ended: false, uri: None };

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["client.example".to_owned()]).unwrap();
        params.serial_number = Some(SerialNumber::from(SERIAL));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.crl_distribution_points = vec![distribution_point("http://lists/a")];
        let client = params.signed_by(&KeyPair::generate().unwrap(), &issuer).unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        Self { folder, chain: vec![client.der().clone()], issuer }
    }

    fn list(&self, list: List) -> String {
        let List { year, number, revokes, has_ended, uri } = list;
        let revoked = RevokedCertParams {
            serial_number: SerialNumber::from(SERIAL),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let scope = |uri| CrlIssuingDistributionPoint {
            distribution_point: distribution_point(uri),
            scope: Some(CrlScope::UserCertsOnly),
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(year, 1, 1),
            next_update: date_time_ymd(if has_ended { year + 1 } else { 2100 }, 1, 1),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: uri.map(scope),
            revoked_certs: if revokes { vec![revoked] } else { Vec::new() },
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    /// What is accepted with these files of lists.
    fn accepted(&self, files: &[Vec<List>]) -> io::Result<AcceptedClients> {
        let path = |number: usize| self.folder.path().join(format!("{number}.crl"));
        for (number, lists) in files.iter().enumerate() {
            fs::write(path(number), lists.iter().map(|list| self.list(*list)).collect::<String>()).unwrap();
        }
        // Twice, which changes nothing.
        let revocations: Vec<PathBuf> = (0..files.len()).chain(0..files.len()).map(path).collect();
        let auth = ClientAuth { is_required: true, authorities: self.folder.path().join("ca.pem"), revocations };
        AcceptedClients::new(&auth, &Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
    }

    fn accepts(&self, files: &[Vec<List>]) -> bool {
        self.accepted(files).unwrap().accepts_chain(&self.chain)
    }
}

#[test]
fn of_several_lists_of_an_authority_the_newest_counts() {
    let authority = Authority::new();
    assert!(authority.accepts(&[]) && authority.accepts(&[vec![OLD]]) && !authority.accepts(&[vec![NEW]]));
    let (revoking, releasing) = (List { revokes: true, ..OLD }, List { revokes: false, ..NEW });
    for (old, new) in [(OLD, NEW), (revoking, releasing)] {
        let both = [vec![old, new], vec![new, old]].map(|file| vec![file]);
        let each = [vec![vec![old], vec![new]], vec![vec![new], vec![old]]];
        for files in both.iter().chain(&each) {
            assert_eq!(authority.accepts(files), !new.revokes);
        }
    }
    // In the same second, the number decides. Without a difference there, none does.
    let second = List { year: OLD.year, ..NEW };
    assert!(!authority.accepts(&[vec![OLD, second]]) && !authority.accepts(&[vec![second, OLD]]));
    let twin = List { number: OLD.number, ..second };
    let error = authority.accepted(&[vec![OLD], vec![twin]]).unwrap_err().to_string();
    assert!(error.starts_with("api.tls.client_crl: ") && error.contains("1.crl: has a list that differs"), "{error}");
}

#[test]
fn the_end_of_an_older_list_does_not_count() {
    let authority = Authority::new();
    let (old, new) = (List { has_ended: true, ..OLD }, List { revokes: false, ..NEW });
    for files in [vec![old, new], vec![new, old]] {
        let accepted = authority.accepted(&[files]).unwrap();
        assert!(accepted.accepts_chain(&authority.chain));
        assert!(accepted.revocations_end().unwrap() > SystemTime::now());
    }
    let accepted = authority.accepted(&[vec![OLD, List { has_ended: true, ..new }]]).unwrap();
    assert!(!accepted.accepts_chain(&authority.chain), "an older list must not replace one that has ended");
    assert!(accepted.revocations_end().unwrap() < SystemTime::now());
}

#[test]
fn lists_for_different_certificates_are_all_read() {
    let authority = Authority::new();
    let of = |uri, list| List { uri: Some(uri), ..list };
    let (here, elsewhere) = ("http://lists/a", "http://lists/b");
    for (file, expected) in [
        ([of(elsewhere, NEW), of(here, OLD)], true),
        ([of(here, NEW), of(elsewhere, OLD)], false),
        ([of(elsewhere, OLD), of(here, NEW)], false),
        // Both can have the certificate.
        ([OLD, of(here, NEW)], false),
        ([of(here, OLD), NEW], false),
        ([NEW, of(here, OLD)], false),
    ] {
        assert_eq!(authority.accepts(&[file.to_vec()]), expected);
    }
}
