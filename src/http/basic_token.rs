//! A token as the password of HTTP Basic (RFC 7617), for tools that cannot send the scheme Bearer.
//!
//! The user name is ignored: the token says who the user is. A manager's password is no token, so it is refused here.
//! The service never asks for Basic (`WWW-Authenticate`): a browser would then send the token with requests that other
//! sites make.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;

/// The password in the credentials of the scheme.
pub(super) fn password(credentials: &str) -> Option<String> {
    let text = BASE64_STANDARD.decode(credentials.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok())?;
    let (_, password) = text.split_once(':')?;
    Some(password.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_password_follows_the_first_colon() {
        for (text, expected) in [("ann:a.b.c", Some("a.b.c")), (":x", Some("x")), ("a:b:c", Some("b:c")), ("x", None)] {
            assert_eq!(password(&BASE64_STANDARD.encode(text)).as_deref(), expected, "{text}");
        }
        for malformed in ["", "%", "YW5uOng", "/w=="] {
            assert_eq!(password(malformed), None, "{malformed}");
        }
    }
}
