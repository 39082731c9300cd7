//! Service-account tokens: JSON Web Tokens (RFC 7519) signed with ECDSA P-256 (ES256).

use crate::PkiError;
use crate::files::{self, SECRET, malformed};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::path::Path;

/// Why a token is not accepted.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no JSON Web Token.
    #[error("malformed token")]
    Malformed,
    /// It was signed by somebody else.
    #[error("invalid signature")]
    Signature,
}

/// The key that signs service-account tokens.
pub struct TokenKey {
    pair: EcdsaKeyPair,
    id: String,
}

impl TokenKey {
    /// Reads `service.key` from a directory, or makes it when it is absent.
    ///
    /// # Errors
    /// When the file cannot be read or is no P-256 key in PEM; it is not overwritten then.
    pub fn load_or_create(dir: &Path) -> Result<Self, PkiError> {
        let path = dir.join("service.key");
        let pem = match files::read(&path)? {
            Some(pem) => pem,
            None => {
                let pem = rcgen::KeyPair::generate()?.serialize_pem();
                files::write(&path, &pem, SECRET)?;
                pem
            }
        };
        let key = rcgen::KeyPair::from_pem(&pem).map_err(|e| malformed(&path, e))?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &SystemRandom::new())
                .map_err(|e| malformed(&path, e))?;
        let id = BASE64_URL_SAFE_NO_PAD.encode(Sha256::digest(pair.public_key().as_ref()));
        Ok(Self { pair, id })
    }

    /// Signs claims into a token.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn sign(&self, claims: &Value) -> Result<String, PkiError> {
        let encode = |v: &Value| BASE64_URL_SAFE_NO_PAD.encode(v.to_string());
        let header = json!({"alg": "ES256", "kid": self.id});
        let mut token = format!("{}.{}", encode(&header), encode(claims));
        let signature = self
            .pair
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| PkiError::Generate(rcgen::Error::RingUnspecified))?;
        token.push('.');
        BASE64_URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    /// The claims of a token that this key has signed. Times and audiences are the caller's to check.
    ///
    /// # Errors
    /// [`TokenError`].
    pub fn verify(&self, token: &str) -> Result<Value, TokenError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let decode = |text: &str| BASE64_URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed);
        let header: Value = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
        if header.get("alg").and_then(Value::as_str) != Some("ES256") {
            return Err(TokenError::Malformed);
        }
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.pair.public_key().as_ref())
            .verify(signed.as_bytes(), &decode(signature)?)
            .map_err(|_| TokenError::Signature)?;
        serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Malformed)
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for `/openid/v1/jwks`.
    pub fn jwks(&self) -> Value {
        // an uncompressed point: 0x04, then 32 bytes each of x and y
        let point = self.pair.public_key().as_ref();
        let part = |range: std::ops::Range<usize>| BASE64_URL_SAFE_NO_PAD.encode(point.get(range).unwrap_or_default());
        json!({"keys": [{"use": "sig", "kty": "EC", "crv": "P-256", "alg": "ES256", "kid": self.id,
            "x": part(1..33), "y": part(33..65)}]})
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_are_bound_to_their_key_and_content() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = TokenKey::load_or_create(a.path()).unwrap();
        let token = key.sign(&json!({"sub": "x"})).unwrap();
        assert_eq!(key.verify(&token).unwrap()["sub"], "x");
        assert_eq!(TokenKey::load_or_create(a.path()).unwrap().verify(&token).unwrap()["sub"], "x");
        assert_eq!(TokenKey::load_or_create(b.path()).unwrap().verify(&token), Err(TokenError::Signature));
        let parts: Vec<&str> = token.split('.').collect();
        let forged = BASE64_URL_SAFE_NO_PAD.encode(r#"{"sub":"y"}"#);
        assert_eq!(key.verify(&format!("{}.{forged}.{}", parts[0], parts[2])), Err(TokenError::Signature));
        let none = BASE64_URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
        for bad in ["", "a", "a.b", "a.b.c", &format!("{none}.{}.", parts[1])] {
            assert_eq!(key.verify(bad), Err(TokenError::Malformed), "{bad}");
        }
        assert_eq!(key.jwks()["keys"][0]["x"].as_str().unwrap().len(), 43);
    }

    #[test]
    fn a_broken_key_file_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("service.key"), "-----BEGIN").unwrap();
        let error = TokenKey::load_or_create(dir.path()).err().unwrap().to_string();
        assert!(error.contains("service.key"), "{error}");
        assert_eq!(std::fs::read(dir.path().join("service.key")).unwrap(), b"-----BEGIN");
    }
}
