//! TLS as a client.

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;

use super::verifier;
use crate::config::Trust;

/// A client that verifies servers as `trust` says.
///
/// # Errors
/// The named certificates cannot be read or used.
pub fn client_config(trust: &Trust) -> io::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = verifier::new(trust, &provider)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}
