//! JSON Web Tokens (RFC 7519) in their compact form, signed with ECDSA P-256 (ES256).

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use edge_pki::ServiceAccountKey;
use serde_json::{Value, json};

/// Why a token is not accepted, or not made.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no JSON Web Token.
    #[error("malformed token")]
    Malformed,
    /// It was signed by somebody else.
    #[error("invalid signature")]
    Signature,
    /// The system has no randomness to sign with.
    #[error("the system has no randomness to give")]
    Randomness,
}

/// Signs claims into a token.
pub(crate) fn sign(key: &ServiceAccountKey, claims: &Value) -> Result<String, TokenError> {
    let encode = |v: &Value| BASE64_URL_SAFE_NO_PAD.encode(v.to_string());
    let mut token = format!("{}.{}", encode(&json!({"alg": "ES256", "kid": key.id()})), encode(claims));
    let signature = key.sign(token.as_bytes()).ok_or(TokenError::Randomness)?;
    token.push('.');
    BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
    Ok(token)
}

/// The claims of a token that `key` has signed. What they say is the caller's to check.
pub(crate) fn verify(key: &ServiceAccountKey, token: &str) -> Result<Value, TokenError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
    let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
    let parse = |bytes: Vec<u8>| serde_json::from_slice::<Value>(&bytes).map_err(|_| TokenError::Malformed);
    if parse(decode(header)?)?.get("alg").and_then(Value::as_str) != Some("ES256") {
        return Err(TokenError::Malformed);
    }
    if !key.verify(signed.as_bytes(), &decode(signature)?) {
        return Err(TokenError::Signature);
    }
    parse(decode(claims)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_are_bound_to_their_key_and_content() {
        let dir = tempfile::tempdir().unwrap();
        let key = ServiceAccountKey::load_or_create(&dir.path().join("a.key")).unwrap();
        let other = ServiceAccountKey::load_or_create(&dir.path().join("b.key")).unwrap();
        let token = sign(&key, &json!({"sub": "x"})).unwrap();
        assert_eq!(verify(&key, &token).unwrap()["sub"], "x");
        assert_eq!(verify(&other, &token), Err(TokenError::Signature));
        let parts: Vec<&str> = token.split('.').collect();
        let forged = BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"y"}"#);
        assert_eq!(verify(&key, &format!("{}.{forged}.{}", parts[0], parts[2])), Err(TokenError::Signature));
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for bad in ["", "a", "a.b", "a.b.c", &format!("{none}.{}.", parts[1])] {
            assert_eq!(verify(&key, bad), Err(TokenError::Malformed), "{bad}");
        }
    }
}
