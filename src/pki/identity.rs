//! Certificates with their keys: who a server or a client is.

use crate::authority::{Authority, issue};
use crate::cluster::ServerNames;
use crate::files::{self, PkiError, SECRET};
use crate::{DAY, plausible_now};
use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::IpAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::extensions::GeneralName;

/// Three years: edge machines run long without a restart, and renewal happens at a start.
const LIFETIME_DAYS: u32 = 3 * 365;
/// At a start, an identity that ends sooner than this is renewed.
const RENEW_DAYS: u32 = 90;

/// The subject of a client certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientName {
    /// Becomes the user name.
    pub common_name: String,
    /// Becomes the group.
    pub organization: String,
}

impl ClientName {
    /// The administrator, who may do everything.
    pub fn admin() -> Self {
        Self { common_name: "system:admin".into(), organization: "system:masters".into() }
    }

    /// The agent of a node.
    pub fn node(name: &str) -> Self {
        Self { common_name: format!("system:node:{name}"), organization: "system:nodes".into() }
    }
}

/// A certificate and its private key.
#[derive(Debug)]
pub struct Identity {
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    key: KeyPair,
}

/// What a certificate has to say.
enum Purpose<'a> {
    Server(&'a ServerNames),
    Client(&'a ClientName),
}

impl Identity {
    /// The serving identity in `path`, made or renewed when it is absent, ends soon, or does not have exactly these names.
    ///
    /// # Errors
    /// When the file is unreadable or malformed, or cannot be written.
    pub fn server(path: &Path, authority: &Authority, names: &ServerNames) -> Result<Self, PkiError> {
        Self::load_or_issue(path, authority, &Purpose::Server(names))
    }

    /// The client identity in `path`, made or renewed when it is absent, ends soon, or is somebody else's.
    ///
    /// # Errors
    /// When the file is unreadable or malformed, or cannot be written.
    pub fn client(path: &Path, authority: &Authority, name: &ClientName) -> Result<Self, PkiError> {
        Self::load_or_issue(path, authority, &Purpose::Client(name))
    }

    /// Key, certificate and the authority's certificate are in one file, so that they change together.
    fn load_or_issue(path: &Path, authority: &Authority, purpose: &Purpose<'_>) -> Result<Self, PkiError> {
        if let Some(pem) = files::read(path)? {
            let key = files::parse_key(path, &pem)?;
            let chain = files::parse_certificates(path, &pem)?;
            if !files::belongs(&key, &chain[0]) {
                return Err(PkiError::KeyMismatch { certificate: path.to_owned(), key: path.to_owned() });
            }
            let same_authority = chain.get(1) == Some(authority.certificate());
            if same_authority && is_current(&chain[0], purpose, plausible_now()) {
                return Ok(Self::new(chain[0].clone(), key));
            }
        }
        let identity = Self::issue(authority, purpose)?;
        let content = format!("{}{}{}", identity.key_pem(), identity.certificate_pem, authority.pem());
        files::write(path, &content, SECRET)?;
        Ok(identity)
    }

    fn new(certificate: CertificateDer<'static>, key: KeyPair) -> Self {
        let certificate_pem = pem("CERTIFICATE", &certificate);
        Self { certificate, certificate_pem, key }
    }

    fn issue(authority: &Authority, purpose: &Purpose<'_>) -> Result<Self, PkiError> {
        let subject = match purpose {
            Purpose::Server(_) => ServerNames::COMMON_NAME,
            Purpose::Client(name) => &name.common_name,
        };
        let key = KeyPair::generate().map_err(|source| issue(subject, source))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, subject);
        params.not_before = UNIX_EPOCH.into();
        params.not_after = (plausible_now() + DAY * LIFETIME_DAYS).into();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        match purpose {
            Purpose::Server(names) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
                for name in names.dns() {
                    let name = name.as_str().try_into().map_err(|source| issue(name, source))?;
                    params.subject_alt_names.push(SanType::DnsName(name));
                }
                params.subject_alt_names.extend(names.ips().iter().map(|ip| SanType::IpAddress(*ip)));
            }
            Purpose::Client(name) => {
                params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
                params.distinguished_name.push(DnType::OrganizationName, &name.organization);
            }
        }
        let certificate = params.signed_by(&key, authority.issuer()).map_err(|source| issue(subject, source))?;
        Ok(Self::new(certificate.der().clone(), key))
    }

    /// Reads an identity that was issued elsewhere: a file with a private key and its certificate. `None` when there is
    /// no such file.
    ///
    /// # Errors
    /// When the file is unreadable or malformed.
    pub fn load(path: &Path) -> Result<Option<Self>, PkiError> {
        let Some(content) = files::read(path)? else { return Ok(None) };
        let key = files::parse_key(path, &content)?;
        let certificate = files::parse_certificates(path, &content)?.swap_remove(0);
        if !files::belongs(&key, &certificate) {
            return Err(PkiError::KeyMismatch { certificate: path.to_owned(), key: path.to_owned() });
        }
        Ok(Some(Self::new(certificate, key)))
    }

    /// An identity out of a private key and its certificate, both PEM.
    ///
    /// # Errors
    /// When either is malformed, or they do not belong together.
    pub fn from_pem(key: &[u8], certificate: &[u8]) -> Result<Self, PkiError> {
        let path = Path::new("(client certificate)");
        let key = files::parse_key(path, key)?;
        let certificate = files::parse_certificates(path, certificate)?.swap_remove(0);
        if !files::belongs(&key, &certificate) {
            return Err(PkiError::KeyMismatch { certificate: path.to_owned(), key: path.to_owned() });
        }
        Ok(Self::new(certificate, key))
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> SystemTime {
        crate::certificate_end(&self.certificate).unwrap_or(UNIX_EPOCH)
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The certificate, as PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key, as PEM (PKCS #8). A secret.
    pub fn key_pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// The private key. A secret.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }
}

/// Whether the certificate says what it should, and will for some time.
fn is_current(certificate: &[u8], purpose: &Purpose<'_>, now: SystemTime) -> bool {
    let Ok((_, certificate)) = x509_parser::parse_x509_certificate(certificate) else {
        return false;
    };
    let renew_from = (now + DAY * RENEW_DAYS).duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    if certificate.validity().not_after.timestamp() < i64::try_from(renew_from).unwrap_or(i64::MAX) {
        return false;
    }
    match purpose {
        Purpose::Client(name) => {
            let has = |mut values: Vec<&str>, wanted: &str| values.len() == 1 && values.pop() == Some(wanted);
            let subject = certificate.subject();
            has(subject.iter_common_name().filter_map(|a| a.as_str().ok()).collect(), &name.common_name)
                && has(subject.iter_organization().filter_map(|a| a.as_str().ok()).collect(), &name.organization)
        }
        Purpose::Server(names) => {
            let Ok(Some(sans)) = certificate.subject_alternative_name() else {
                return false;
            };
            let (mut dns, mut ips) = (Vec::new(), Vec::new());
            for name in &sans.value.general_names {
                match name {
                    GeneralName::DNSName(n) => dns.push((*n).to_owned()),
                    GeneralName::IPAddress(bytes) => ips.extend(ip(bytes)),
                    _ => {}
                }
            }
            dns == names.dns() && ips == names.ips()
        }
    }
}

pub(crate) fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
