//! A certificate authority and the certificates that it signs.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use tempfile::TempDir;

pub struct Certificates {
    dir: TempDir,
    pub(super) authority: CertifiedIssuer<'static, KeyPair>,
}

impl Certificates {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test authority");
        // Python 3.13 requires the key usage of a CA, and the key identifier in its certificates.
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        std::fs::write(dir.path().join("ca.pem"), authority.pem()).unwrap();
        let certificates = Self { dir, authority };
        certificates.issue("server");
        certificates
    }

    /// The CA certificate.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// An HTTP client for a proxy in the test, which trusts the CA.
    pub fn http(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(&std::fs::read(self.ca()).unwrap()).unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        reqwest::Client::builder().tls_certs_only([ca]).no_proxy().build().unwrap()
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes `<name>.pem` and `<name>.key` for 127.0.0.1 and localhost.
    pub fn issue(&self, name: &str) {
        self.issue_for(name, &["localhost", "127.0.0.1"]);
    }

    pub fn issue_for(&self, name: &str, hosts: &[&str]) {
        self.issue_with(name, CertificateParams::new(hosts.iter().copied().map(str::to_owned).collect::<Vec<_>>()));
    }

    /// Issues a certificate that expires on January 1 of `year`.
    pub fn issue_until(&self, name: &str, year: i32) {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        self.issue_with(name, Ok(params));
    }

    fn issue_with(&self, name: &str, params: Result<CertificateParams, rcgen::Error>) {
        let (key, mut params) = (KeyPair::generate().unwrap(), params.unwrap());
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.authority).unwrap();
        std::fs::write(self.path(format!("{name}.pem")), certificate.pem()).unwrap();
        self.write_key(name, &key);
    }

    /// The service refuses a key that others may read.
    fn write_key(&self, name: &str, key: &KeyPair) {
        let path = self.path(format!("{name}.key"));
        std::fs::write(&path, key.serialize_pem()).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    /// Makes a certificate of X.509 version 1 with the key `server.key`: openssl-x509(1) adds no extensions.
    pub fn make_version_1(&self, file: &str) {
        for arguments in [
            "req -new -key server.key -subj /CN=localhost -out version1.csr".to_owned(),
            format!("x509 -req -in version1.csr -signkey server.key -out {file}"),
        ] {
            let made = Command::new("openssl").args(arguments.split(' ')).current_dir(self.path("")).output().unwrap();
            assert!(made.status.success(), "{made:?}");
        }
    }

    /// Issues a certificate that expires `days` from now.
    pub fn issue_for_days(&self, name: &str, days: u64) {
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        params.not_after = date_time_ymd(1970, 1, 1) + now + Duration::from_secs(days * 86_400);
        self.issue_with(name, Ok(params));
    }

    /// Writes a self-signed certificate that is marked as a CA, as managers use it.
    pub fn issue_self_signed_ca(&self, name: &str) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(self.path(format!("{name}.pem")), certificate.pem()).unwrap();
        self.write_key(name, &key);
    }
}
