//! The key that signs service-account tokens: ECDSA P-256 (JWS algorithm ES256).

use crate::authority::issue;
use crate::files::{self, PkiError, SECRET};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rcgen::{KeyPair, PublicKeyData as _};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, UnparsedPublicKey};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::path::Path;

/// Signs and verifies service-account tokens.
#[derive(Debug)]
pub struct ServiceAccountKey {
    pair: EcdsaKeyPair,
    /// Uncompressed point: `04 || x || y`.
    public: Vec<u8>,
    id: String,
    random: SystemRandom,
}

impl ServiceAccountKey {
    /// Reads the key in `path` (PKCS #8 PEM), or makes it.
    ///
    /// # Errors
    /// When the file is unreadable, malformed, or no P-256 key.
    pub fn load_or_create(path: &Path) -> Result<Self, PkiError> {
        let key = match files::read(path)? {
            Some(pem) => files::parse_key(path, &pem)?,
            None => {
                let key = KeyPair::generate().map_err(|source| issue("service accounts", source))?;
                files::write(path, &key.serialize_pem(), SECRET)?;
                key
            }
        };
        let malformed = || PkiError::Malformed { path: path.to_owned(), what: "P-256 private key" };
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.serialized_der(), &random)
            .map_err(|_| malformed())?;
        let public = key.public_key_raw().to_vec();
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(key.subject_public_key_info()));
        Ok(Self { pair, public, id, random })
    }

    /// The key id (`kid`): the SHA-256 of the public key, as Kubernetes makes it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The signature of `message` in JWS form (`r || s`); `None` when the system has no randomness.
    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.pair.sign(&self.random, message).ok().map(|s| s.as_ref().to_vec())
    }

    /// Whether `signature` (JWS form) is this key's over `message`.
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.public).verify(message, signature).is_ok()
    }

    /// The JSON Web Key Set with the public key, as `/openid/v1/jwks` serves it.
    pub fn jwks(&self) -> Value {
        let coordinate = |at: usize| URL_SAFE_NO_PAD.encode(self.public.get(at..at + 32).unwrap_or_default());
        json!({"keys": [{"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": "ES256", "x": coordinate(1), "y": coordinate(33)}]})
    }
}
