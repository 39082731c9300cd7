//! What certificate files say, for people.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFacts {
    /// Whom it is for, such as `O=system:nodes, CN=system:node:pi`.
    pub subject: String,
    /// The names and addresses of a server.
    pub names: Vec<String>,
    /// Whether it signs others.
    pub is_authority: bool,
    /// When it ends.
    pub end: SystemTime,
}

/// The first certificate of a PEM file, in which a key may come before it; `None` when there is none, or it is malformed.
pub fn certificate_facts(pem: &[u8]) -> Option<CertificateFacts> {
    let der = CertificateDer::from_pem_slice(pem).ok()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&der).ok()?;
    let seconds = u64::try_from(parsed.validity().not_after.timestamp()).ok()?;
    let names = parsed.subject_alternative_name().ok().flatten();
    let names = names.map(|all| all.value.general_names.iter().filter_map(name).collect()).unwrap_or_default();
    Some(CertificateFacts {
        subject: parsed.subject().to_string(),
        names,
        is_authority: parsed.is_ca(),
        end: UNIX_EPOCH.checked_add(Duration::from_secs(seconds))?,
    })
}

fn name(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match *bytes {
            [a, b, c, d] => Some(std::net::Ipv4Addr::new(*a, *b, *c, *d).to_string()),
            bytes => <[u8; 16]>::try_from(bytes).ok().map(|b| std::net::Ipv6Addr::from(b).to_string()),
        },
        _ => None,
    }
}
