//! The signature of an event: with it the receiver knows that the event is from this service, and when it was sent.

use aws_lc_rs::hmac::{HMAC_SHA256, Key, sign};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use secrecy::{ExposeSecret, SecretSlice};

/// The value of the header `webhook-signature`: one signature for each of the `keys`. `seconds` is the time of the
/// attempt, since 1970.
pub(super) fn signatures(keys: &[SecretSlice<u8>], id: &str, seconds: i64, body: &[u8]) -> String {
    let signed = [id.as_bytes(), b".", seconds.to_string().as_bytes(), b".", body].concat();
    let signature = |key: &SecretSlice<u8>| {
        let tag = sign(&Key::new(HMAC_SHA256, key.expose_secret()), &signed);
        format!("v1,{}", BASE64_STANDARD.encode(tag))
    };
    keys.iter().map(signature).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the specification's reference libraries.
    #[test]
    fn signature_is_that_of_the_specification() {
        let key = |text: &str| SecretSlice::from(BASE64_STANDARD.decode(text).unwrap());
        let keys = [key("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")];
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(signatures(&keys, id, 1_614_265_330, body), expected);
        let both = [keys, [key("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA")]].concat();
        let found = signatures(&both, id, 1_614_265_330, body);
        assert!(found.starts_with(&format!("{expected} v1,")) && found.split(' ').count() == 2, "{found}");
        assert_ne!(signatures(&both[..1], id, 1_614_265_331, body), expected);
    }
}
