//! Who a client certificate stands for.

use edge_api::UserInfo;
use sha2::{Digest as _, Sha256};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// When a certificate ends; `None` when it cannot be parsed.
pub fn certificate_end(certificate: &[u8]) -> Option<SystemTime> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
}

/// The user of a client certificate that the TLS layer has verified: the common name is the user name, the organizations are the
/// groups. `None` when it cannot be parsed or names nobody.
pub fn user_of_certificate(certificate: &[u8]) -> Option<UserInfo> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().filter_map(|a| a.as_str().ok()).last().filter(|n| !n.is_empty())?;
    let groups = subject.iter_organization().filter_map(|a| a.as_str().ok());
    let mut user = UserInfo::new(name, groups);
    user.extra.insert(
        "authentication.kubernetes.io/credential-id".into(),
        vec![format!("X509SHA256={}", hex::encode(Sha256::digest(certificate)))],
    );
    Some(user)
}
