//! A secret sealed with a token: what servers of one cluster leave each other in a store that others may read.
//!
//! The key is derived from the token by PBKDF2 (HMAC-SHA-256) with a salt of its own; the content is sealed by AES-256-GCM.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2::{PBKDF2_HMAC_SHA256, derive};
use ring::rand::{SecureRandom as _, SystemRandom};
use serde_json::{Value, json};
use std::num::NonZeroU32;

/// Some 50 ms of a small machine's time.
const ITERATIONS: u32 = 100_000;
/// What is read may say another number, within bounds: nobody must keep a server busy for ever.
const MOST_ITERATIONS: u64 = 10_000_000;
const SALT_LEN: usize = 16;
const VERSION: u64 = 1;

/// Why something sealed cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It is not the one that it was sealed with, or somebody changed what was sealed.
    #[error("the token is not the one that it was sealed with")]
    WrongToken,
    /// Nothing that this program has sealed.
    #[error("it is malformed, or of a newer version of the program")]
    Malformed,
    /// The system has no randomness.
    #[error("the system has no randomness to give")]
    Random,
}

/// Seals a content with a token.
///
/// # Errors
/// [`SealError::Random`].
pub fn seal(token: &str, content: &[u8]) -> Result<String, SealError> {
    let random = SystemRandom::new();
    let (mut salt, mut nonce) = ([0; SALT_LEN], [0; NONCE_LEN]);
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).map_err(|_| SealError::Random)?;
    let key = key(token, &salt, NonZeroU32::new(ITERATIONS).ok_or(SealError::Malformed)?);
    let mut sealed = content.to_vec();
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut sealed)
        .map_err(|_| SealError::Random)?;
    let text = |bytes: &[u8]| STANDARD.encode(bytes);
    Ok(json!({"version": VERSION, "iterations": ITERATIONS, "salt": text(&salt), "nonce": text(&nonce), "data": text(&sealed)})
        .to_string())
}

/// The content that was sealed with a token.
///
/// # Errors
/// [`SealError::WrongToken`], [`SealError::Malformed`].
pub fn unseal(token: &str, sealed: &[u8]) -> Result<Vec<u8>, SealError> {
    let read = || {
        let value: Value = serde_json::from_slice(sealed).ok()?;
        let bytes = |field: &str| STANDARD.decode(value[field].as_str()?).ok();
        let iterations = value["iterations"].as_u64().filter(|n| *n <= MOST_ITERATIONS)?;
        let iterations = NonZeroU32::new(u32::try_from(iterations).ok()?)?;
        let nonce: [u8; NONCE_LEN] = bytes("nonce")?.try_into().ok()?;
        (value["version"].as_u64() == Some(VERSION)).then_some((iterations, bytes("salt")?, nonce, bytes("data")?))
    };
    let (iterations, salt, nonce, mut data) = read().ok_or(SealError::Malformed)?;
    let key = key(token, &salt, iterations);
    let content = key.open_in_place(Nonce::assume_unique_for_key(nonce), Aad::empty(), &mut data);
    content.map(|c| c.to_vec()).map_err(|_| SealError::WrongToken)
}

fn key(token: &str, salt: &[u8], iterations: NonZeroU32) -> LessSafeKey {
    let mut bytes = [0; 32];
    derive(PBKDF2_HMAC_SHA256, iterations, salt, token.as_bytes(), &mut bytes);
    LessSafeKey::new(
        UnboundKey::new(&AES_256_GCM, &bytes).expect("invariant: the key has the length of the algorithm's"),
    )
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn only_the_token_opens_it() {
        let sealed = seal("token", b"content").unwrap();
        assert!(!sealed.contains("content") && sealed != seal("token", b"content").unwrap());
        assert_eq!(unseal("token", sealed.as_bytes()).unwrap(), b"content");
        assert_eq!(unseal("other", sealed.as_bytes()), Err(SealError::WrongToken));
        let changed = sealed.replace("\"data\":\"", "\"data\":\"AAAA");
        assert_eq!(unseal("token", changed.as_bytes()), Err(SealError::WrongToken));
        for bad in [
            "",
            "{}",
            "[]",
            &sealed[..50],
            &sealed.replace("100000", "99999999999"),
            &sealed.replace("\"version\":1", "\"version\":2"),
        ] {
            assert_eq!(unseal("token", bad.as_bytes()), Err(SealError::Malformed), "{bad}");
        }
    }
}
