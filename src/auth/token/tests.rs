use super::*;

use jsonwebtoken::EncodingKey;

const HOUR: Duration = Duration::from_secs(3600);

fn tokens(secret: &str) -> Tokens {
    Tokens::new(&SecretString::from(secret), HOUR)
}

fn check(tokens: &Tokens, token: &str) -> Result<CheckedToken, BadToken> {
    tokens.check(token)
}

#[test]
fn a_token_is_good_until_it_expires() {
    let tokens = tokens(SECRET);
    let now = SystemTime::now();
    assert_eq!(check(&tokens, &tokens.issue("admin", now).unwrap()).unwrap().user(), "admin");
    let old = tokens.issue("admin", now - HOUR - Duration::from_secs(2)).unwrap();
    assert!(check(&tokens, &old).is_err());
}

const SECRET: &str = "0123456789abcdef0123456789abcdef";

fn key() -> EncodingKey {
    EncodingKey::from_secret(SECRET.as_bytes())
}

/// A token with these claims and this header, signed with [`SECRET`].
fn signed(header: &serde_json::Value, claims: &serde_json::Value) -> String {
    let part = |part: &serde_json::Value| BASE64_URL_SAFE_NO_PAD.encode(part.to_string());
    let text = format!("{}.{}", part(header), part(claims));
    let signature = jsonwebtoken::crypto::sign(text.as_bytes(), &key(), Algorithm::HS256);
    format!("{text}.{}", signature.unwrap())
}

#[test]
fn a_checked_token_is_recognized_until_it_expires() {
    let (tokens, now) = (tokens("a secret of tests"), SystemTime::now());
    let token = tokens.issue("admin", now).unwrap();
    let checked = check(&tokens, &token).unwrap();
    assert!(checked.can_be_kept());
    assert_eq!(checked.session(&AccessRules::default()).subject(), "admin");
    assert!(checked.is(&token, now) && checked.is(&token, now + HOUR - Duration::from_secs(2)));
    assert!(!checked.is(&token, now + HOUR), "it has expired");
    let other = tokens.issue("other", now).unwrap();
    for wrong in ["", &token[1..], &token[..token.len() - 1], &other] {
        assert!(!checked.is(wrong, now), "{wrong}");
    }
    assert!(!format!("{checked:?}").contains(&token), "the token is in debug output");
}

#[test]
fn a_token_is_refused_before_its_time_and_with_critical_extensions() {
    use serde_json::{Value, json};
    let tokens = tokens(SECRET);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let check = |more_header: Value, more_claims: Value| {
        let mut header = json!({"alg": "HS256", "typ": "JWT"});
        header.as_object_mut().unwrap().extend(more_header.as_object().unwrap().clone());
        let mut claims = json!({"user": "admin", "exp": now + 600, "iss": ISSUER});
        claims.as_object_mut().unwrap().extend(more_claims.as_object().unwrap().clone());
        check(&tokens, &signed(&header, &claims)).is_ok()
    };
    for nbf in [json!(now), json!(now - 60), json!(0), json!(now as f64 - 0.6)] {
        assert!(check(json!({}), json!({ "nbf": nbf })), "{nbf}");
    }
    for nbf in [json!(now + 60), json!(u64::MAX), json!("now"), json!(null), json!([0])] {
        assert!(!check(json!({}), json!({ "nbf": nbf })), "{nbf}");
    }
    assert!(check(json!({"kid": "one"}), json!({})));
    for crit in [json!(["exp"]), json!(["b64"]), json!([]), json!(null), json!("exp"), json!({})] {
        assert!(!check(json!({ "crit": crit, "b64": true }), json!({})), "{crit}");
    }
}

#[test]
fn account_hashes_are_stable_and_depend_on_the_secret() {
    let hash = |secret: &str, user: &str| tokens(secret).account_hash(user);
    let (ours, theirs) = ("0123456789abcdef0123456789abcdef", "fedcba9876543210fedcba9876543210");
    assert_eq!(hash(ours, "admin"), hash(ours, "admin"));
    assert_ne!(hash(ours, "admin"), hash(ours, "admin "));
    assert_ne!(hash(ours, "admin"), hash(theirs, "admin"));
    assert_eq!(hash(ours, "admin").len(), 32);
}

#[test]
fn forged_tokens_are_refused() {
    let ours = tokens(SECRET);
    let theirs = tokens("fedcba9876543210fedcba9876543210");
    let good = ours.issue("admin", SystemTime::now()).unwrap();
    let [header, claims, signature] = good.split('.').collect::<Vec<_>>()[..] else { panic!() };
    // {"alg":"none","typ":"JWT"}
    let none = "eyJhbGciOiJub25lIiwidHlwIjoiSldUIn0";
    let other_issuer = jsonwebtoken::encode(
        &Header::new(Algorithm::HS256),
        &Claims {
            user: "admin".into(),
            exp: u64::MAX / 4,
            iss: "another issuer".into(),
            iat: None,
            sid: None,
            nbf: None,
        },
        &key(),
    );
    let other_algorithm = jsonwebtoken::encode(
        &Header::new(Algorithm::HS512),
        &Claims { user: "admin".into(), exp: u64::MAX / 4, iss: ISSUER.into(), iat: None, sid: None, nbf: None },
        &key(),
    );
    for forged in [
        String::new(),
        "x".to_owned(),
        theirs.issue("admin", SystemTime::now()).unwrap(),
        format!("{none}.{claims}."),
        format!("{none}.{claims}.{signature}"),
        format!("{header}.{claims}."),
        format!("{header}.{claims}.{}", signature.chars().rev().collect::<String>()),
        other_issuer.unwrap(),
        other_algorithm.unwrap(),
    ] {
        assert!(check(&ours, &forged).is_err(), "{forged}");
    }
}

#[test]
fn a_token_names_its_log_in_and_when_it_was_issued() {
    use serde_json::json;
    let tokens = tokens(SECRET);
    let now = SystemTime::now();
    let ms = u64::try_from(now.duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap();
    let new = NewToken { user: "admin", log_in: 7, issued_ms: ms, expires: ms / 1000 + 60 };
    let checked = check(&tokens, &tokens.sign(&new).unwrap()).unwrap();
    assert_eq!((checked.log_in(), checked.issued_ms(), checked.expires()), (7, ms, ms / 1000 + 60));
    let [one, other] = [(); 2].map(|()| check(&tokens, &tokens.issue("admin", now).unwrap()).unwrap().log_in());
    assert_ne!(one, other);
    // As earlier versions and the original exporter made them.
    let old = |more: u64| json!({"user": "admin", "exp": ms / 1000 + 60 + more, "iss": ISSUER});
    let [one, again, other] =
        [0, 0, 1].map(|more| check(&tokens, &signed(&json!({"alg": "HS256"}), &old(more))).unwrap());
    assert_eq!((one.log_in(), one.issued_ms()), (again.log_in(), 0));
    assert_ne!(one.log_in(), other.log_in());
}
