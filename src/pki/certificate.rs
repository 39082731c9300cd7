//! Reading certificates: who it is for, and until when.

use crate::PkiError;
use edge_api::UserInfo;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A point in time before which no edge of this version can run. A machine whose clock says something earlier (a
/// Raspberry Pi that has just booted without a network) is taken to be at this time.
const BUILT: u64 = 1_793_000_000;

/// Seconds since 1970, never before this program was written.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs().max(BUILT)
}

/// The user that a verified client certificate stands for: its common name, and its organizations as groups.
///
/// # Errors
/// [`PkiError::Certificate`] when it is malformed or has no common name.
pub fn user_of(der: &[u8]) -> Result<UserInfo, PkiError> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|e| PkiError::Certificate(e.to_string()))?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next().and_then(|n| n.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Err(PkiError::Certificate("the subject has no common name".into()));
    }
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok());
    Ok(UserInfo::new(name, groups))
}

/// What a serving certificate is good for.
pub(crate) struct Serving {
    /// Seconds since 1970 after which it is invalid.
    pub(crate) not_after: u64,
    pub(crate) names: Vec<String>,
}

/// Reads a certificate in PEM.
pub(crate) fn read(pem: &str) -> Result<Serving, String> {
    let (_, block) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).map_err(|e| e.to_string())?;
    let certificate = block.parse_x509().map_err(|e| e.to_string())?;
    let mut names = Vec::new();
    if let Ok(Some(san)) = certificate.subject_alternative_name() {
        for name in &san.value.general_names {
            match name {
                GeneralName::DNSName(n) => names.push((*n).to_owned()),
                GeneralName::IPAddress(bytes) => names.extend(address(bytes).map(|a| a.to_string())),
                _ => {}
            }
        }
    }
    let not_after = u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0);
    Ok(Serving { not_after, names })
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
