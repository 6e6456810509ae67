//! The key that proves which service wrote a line of the audit file.

use aws_lc_rs::hmac;
use secrecy::{ExposeSecret, SecretString};

use crate::model::hex;

/// The contexts for the key and for its id.
const KEY_CONTEXT: &[u8] = b"coriolis-ovm-exporter: lines of the audit file";
const ID_CONTEXT: &[u8] = b"coriolis-ovm-exporter: id of the key of the audit file";

/// Bytes of the id.
const ID_LENGTH: usize = 8;

/// Derived from the key that signs tokens, so that there is no second secret to keep.
#[derive(Clone, Debug)]
pub struct AuditKey {
    key: hmac::Key,
    id: String,
}

impl AuditKey {
    /// The key that belongs to the signing key `secret`.
    pub fn new(secret: &SecretString) -> Self {
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose_secret().as_bytes()), KEY_CONTEXT);
        let key = hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref());
        let id = hex(&hmac::sign(&key, ID_CONTEXT).as_ref()[..ID_LENGTH]);
        Self { key, id }
    }

    /// Names the key without disclosing it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The proof for `bytes`: HMAC-SHA-256, as hexadecimal digits.
    pub fn proof(&self, bytes: &[u8]) -> String {
        hex(hmac::sign(&self.key, bytes).as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_and_proof_depend_on_the_secret() {
        let [ours, theirs] = ["0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210"]
            .map(|secret| AuditKey::new(&SecretString::from(secret)));
        assert_eq!((ours.id().len(), ours.proof(b"line").len()), (16, 64));
        assert_ne!(ours.id(), theirs.id());
        assert_ne!(ours.proof(b"line"), theirs.proof(b"line"));
        assert_ne!(ours.proof(b"line"), ours.proof(b"lime"));
        assert!(!format!("{ours:?}").contains("0123456789abcdef0123456789abcdef"));
    }
}
