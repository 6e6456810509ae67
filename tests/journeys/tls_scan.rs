//! TLS as a scanner judges it: sslyze, which `make deps-test` installs.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::World;
use crate::{needs, needs_root};

fn sslyze() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/sslyze/bin/sslyze")
}

/// The names of the cipher suites that the server accepted.
fn accepted(scan: &Value) -> Vec<&str> {
    let suites = scan["result"]["accepted_cipher_suites"].as_array().unwrap_or_else(|| panic!("{scan}"));
    suites.iter().map(|suite| suite["cipher_suite"]["name"].as_str().unwrap()).collect()
}

#[test]
fn a_scanner_finds_nothing_old_or_weak() {
    needs_root!();
    needs!(sslyze().is_file(), "sslyze: make deps-test");
    let world = World::new(512);
    let output = Command::new(sslyze())
        .args(["--json_out=-", "--sslv2", "--sslv3", "--tlsv1", "--tlsv1_1", "--tlsv1_2", "--tlsv1_3", "--ems"])
        .args(["--reneg", "--compression", "--early_data", "--heartbleed", "--openssl_ccs"])
        .arg(format!("127.0.0.1:{}", world.exporter.port))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let report: Value = serde_json::from_str(&text)
        .unwrap_or_else(|error| panic!("{error}: {text}\n{}", String::from_utf8_lossy(&output.stderr)));
    let server = &report["server_scan_results"][0];
    assert_eq!(server["scan_status"], "COMPLETED", "{server}");
    let scan = |name: &str| {
        let found = &server["scan_result"][name];
        assert_eq!(found["status"], "COMPLETED", "{name}: {found}");
        found.clone()
    };
    for old in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1"] {
        assert_eq!(accepted(&scan(&format!("{old}_cipher_suites"))), Vec::<&str>::new(), "{old}");
    }
    let (tls_1_2, tls_1_3) = (scan("tls_1_2_cipher_suites"), scan("tls_1_3_cipher_suites"));
    let mut suites = accepted(&tls_1_2);
    suites.sort_unstable();
    // The test's certificate has an ECDSA key. All suites have forward secrecy and authenticated encryption.
    let expected = [
        "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
        "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
        "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    ];
    assert_eq!(suites, expected);
    let mut suites = accepted(&tls_1_3);
    suites.sort_unstable();
    assert_eq!(suites, ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"]);
    let renegotiation = scan("session_renegotiation");
    assert_eq!(renegotiation["result"]["is_vulnerable_to_client_renegotiation_dos"], false, "{renegotiation}");
    assert_eq!(renegotiation["result"]["supports_secure_renegotiation"], true, "{renegotiation}");
    assert_eq!(scan("tls_compression")["result"]["supports_compression"], false);
    assert_eq!(scan("tls_1_3_early_data")["result"]["supports_early_data"], false);
    assert_eq!(scan("heartbleed")["result"]["is_vulnerable_to_heartbleed"], false);
    assert_eq!(scan("openssl_ccs_injection")["result"]["is_vulnerable_to_ccs_injection"], false);
    assert_eq!(scan("tls_extended_master_secret")["result"]["supports_ems_extension"], true);
    // The service is none the worse for it.
    world.client().get("/vms").ok();
}
