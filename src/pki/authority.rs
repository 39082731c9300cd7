//! Certificate authorities.

use crate::files::{self, PUBLIC, PkiError, SECRET};
use crate::{DAY, plausible_now};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::CertificateDer;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// Twenty years: a cluster's authorities are as old as the cluster.
const LIFETIME_DAYS: u32 = 20 * 365;

/// A certificate authority: its certificate and the key that signs.
#[derive(Debug)]
pub struct Authority {
    certificate: CertificateDer<'static>,
    pem: String,
    issuer: Issuer<'static, KeyPair>,
    path: PathBuf,
}

impl Authority {
    /// Reads `<name>.crt` and `<name>.key` in `dir`, or makes them. An administrator may put an own authority there.
    ///
    /// # Errors
    /// When a file is unreadable or malformed, the two do not belong together, or only the certificate is there.
    pub fn load_or_create(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let path = dir.join(format!("{name}.crt"));
        let key_path = dir.join(format!("{name}.key"));
        match (files::read(&path)?, files::read(&key_path)?) {
            (Some(certificate), Some(key)) => {
                let key = files::parse_key(&key_path, &key)?;
                Self::from_parts(path, &certificate, key_path, key)
            }
            (Some(_), None) => Err(PkiError::KeyMissing { certificate: path, key: key_path }),
            (None, key) => {
                // The key is written first, so a crash leaves at most a key to go on with.
                let key = match key {
                    Some(pem) => files::parse_key(&key_path, &pem)?,
                    None => {
                        let key = KeyPair::generate().map_err(|source| issue(name, source))?;
                        files::write(&key_path, &key.serialize_pem(), SECRET)?;
                        key
                    }
                };
                let pem = self_signed(name, &key)?;
                files::write(&path, &pem, PUBLIC)?;
                Self::from_parts(path, pem.as_bytes(), key_path, key)
            }
        }
    }

    fn from_parts(path: PathBuf, pem: &[u8], key_path: PathBuf, key: KeyPair) -> Result<Self, PkiError> {
        let certificate = files::parse_certificates(&path, pem)?.swap_remove(0);
        if !files::belongs(&key, &certificate) {
            return Err(PkiError::KeyMismatch { certificate: path, key: key_path });
        }
        let malformed = || PkiError::Malformed { path: path.clone(), what: "certificate" };
        let pem = String::from_utf8(pem.to_vec()).map_err(|_| malformed())?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|_| malformed())?;
        Ok(Self { certificate, pem, issuer, path })
    }

    /// The certificate, as PEM: what clients are given to trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// The file of the certificate.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn issuer(&self) -> &Issuer<'static, KeyPair> {
        &self.issuer
    }
}

pub(crate) fn issue(subject: &str, source: rcgen::Error) -> PkiError {
    PkiError::Issue { subject: subject.to_owned(), source }
}

fn self_signed(name: &str, key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    // Names differ between clusters, or a client that knows two of them would confuse their authorities.
    let made = plausible_now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    params.distinguished_name.push(DnType::CommonName, format!("edge-{name}@{made}"));
    params.not_before = UNIX_EPOCH.into();
    params.not_after = (plausible_now() + DAY * LIFETIME_DAYS).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::KeyCertSign];
    params.self_signed(key).map(|c| c.pem()).map_err(|source| issue(name, source))
}
