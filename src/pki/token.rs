//! Join tokens as k3s users know them: `K10<sha256 of the cluster's CA>::<user>:<secret>`.

use sha2::{Digest as _, Sha256};
use std::fmt;

const PREFIX: &str = "K10";

/// A join token.
#[derive(Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// SHA-256 of the cluster's certificate authority (PEM, as `/cacerts` answers it), in hexadecimal; `None` for a token
    /// that is a secret only, with which the first server that answers is believed.
    pub ca_hash: Option<String>,
    /// The secret: of the server or agent token, or a whole bootstrap token.
    pub secret: String,
}

/// The text is no join token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenFormatError {
    /// Nothing in it.
    #[error("the token is empty")]
    Empty,
    /// Begins like a full token, but goes on otherwise.
    #[error("the token begins with K10 but is not K10<hash>::<user>:<secret>; it may be cut off")]
    Malformed,
}

impl JoinToken {
    /// Reads a token in any of its forms: full (`K10<hash>::<user>:<secret>`, `K10<hash>::<bootstrap token>`), or the
    /// secret only (`<user>:<secret>` or `<secret>`).
    ///
    /// # Errors
    /// [`TokenFormatError`]
    pub fn parse(text: &str) -> Result<Self, TokenFormatError> {
        let text = text.trim();
        let (ca_hash, rest) = match text.strip_prefix(PREFIX) {
            None => (None, text),
            Some(rest) => {
                let (hash, rest) = rest.split_once("::").ok_or(TokenFormatError::Malformed)?;
                if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                    return Err(TokenFormatError::Malformed);
                }
                (Some(hash.to_ascii_lowercase()), rest)
            }
        };
        let secret = rest.split_once(':').map_or(rest, |(_, secret)| secret);
        if secret.is_empty() {
            return Err(if ca_hash.is_some() { TokenFormatError::Malformed } else { TokenFormatError::Empty });
        }
        Ok(Self { ca_hash, secret: secret.to_owned() })
    }

    /// Whether this certificate authority (PEM) is the one that the token is for; `None` when the token does not say.
    pub fn trusts(&self, ca_pem: &[u8]) -> Option<bool> {
        self.ca_hash.as_ref().map(|hash| *hash == ca_hash(ca_pem))
    }
}

/// Secrets are not shown.
impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("ca_hash", &self.ca_hash).finish_non_exhaustive()
    }
}

/// The hash of a certificate authority (PEM) in join tokens.
pub fn ca_hash(ca_pem: &[u8]) -> String {
    hex::encode(Sha256::digest(ca_pem))
}

/// A full token; `user` may be empty for a bootstrap token.
pub fn full_token(ca_pem: &[u8], user: &str, secret: &str) -> String {
    let hash = ca_hash(ca_pem);
    if user.is_empty() { format!("{PREFIX}{hash}::{secret}") } else { format!("{PREFIX}{hash}::{user}:{secret}") }
}

/// `bytes` random bytes in hexadecimal.
///
/// # Errors
/// When the system has no randomness to give.
pub fn random_secret(bytes: usize) -> Result<String, std::io::Error> {
    use ring::rand::SecureRandom as _;
    let mut buffer = vec![0u8; bytes];
    let failed = |_| std::io::Error::other("the system has no randomness to give");
    ring::rand::SystemRandom::new().fill(&mut buffer).map_err(failed)?;
    Ok(hex::encode(buffer))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn all_forms_are_read() {
        let secret = |t: &str| JoinToken::parse(t).map(|t| (t.ca_hash.is_some(), t.secret));
        assert_eq!(secret(" abc\n"), Ok((false, "abc".into())));
        assert_eq!(secret("server:abc"), Ok((false, "abc".into())));
        assert_eq!(secret(&full_token(b"ca", "node", "abc")), Ok((true, "abc".into())));
        assert_eq!(
            secret(&full_token(b"ca", "", "abcdef.0123456789abcdef")),
            Ok((true, "abcdef.0123456789abcdef".into()))
        );
        let token = JoinToken::parse(&full_token(b"ca", "node", "abc")).unwrap();
        assert_eq!((token.trusts(b"ca"), token.trusts(b"cb")), (Some(true), Some(false)));
        assert_eq!(JoinToken::parse("abc").unwrap().trusts(b"ca"), None);
        assert_eq!(secret(""), Err(TokenFormatError::Empty));
        for cut in [10, 40, 67, 69] {
            assert_eq!(secret(&full_token(b"ca", "node", "abc")[..cut]), Err(TokenFormatError::Malformed), "{cut}");
        }
        assert!(!format!("{token:?}").contains("abc"));
    }
}
