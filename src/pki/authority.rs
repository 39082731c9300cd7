//! Certificate authorities and what they sign.

use crate::PkiError;
use crate::certificate::now;
use crate::files::{self, PUBLIC, SECRET, malformed};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use std::path::Path;

/// How long an authority is valid, in years.
const AUTHORITY_YEARS: u64 = 10;
/// How long what it signs is valid, in days.
const LEAF_DAYS: u64 = 365;
const DAY: u64 = 24 * 60 * 60;

/// A certificate with its key, both PEM.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate.
    pub certificate: String,
    /// The private key, PKCS 8.
    pub key: String,
}

/// A certificate authority.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// Reads `<name>.crt` and `<name>.key` from a directory, or makes both when neither is there.
    ///
    /// # Errors
    /// When only one of them is there or either does not parse, naming the file; nothing is overwritten then.
    pub fn load_or_create(dir: &Path, name: &str) -> Result<Self, PkiError> {
        let (certificate_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        let (certificate, key) = match (files::read(&certificate_path)?, files::read(&key_path)?) {
            (Some(certificate), Some(key)) => (certificate, key),
            (None, None) => {
                let made = create(name)?;
                // the key first: a certificate without its key would be an error at the next start
                files::write(&key_path, &made.key, SECRET)?;
                files::write(&certificate_path, &made.certificate, PUBLIC)?;
                (made.certificate, made.key)
            }
            // an earlier first start ended between the two writes
            (None, Some(key)) => {
                let key_pair = KeyPair::from_pem(&key).map_err(|e| malformed(&key_path, e))?;
                let certificate = sign_itself(name, &key_pair)?;
                files::write(&certificate_path, &certificate, PUBLIC)?;
                (certificate, key)
            }
            (Some(_), None) => return Err(malformed(&key_path, "the private key of an authority is missing")),
        };
        let key = KeyPair::from_pem(&key).map_err(|e| malformed(&key_path, e))?;
        crate::certificate::read(&certificate).map_err(|e| malformed(&certificate_path, e))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(|e| malformed(&certificate_path, e))?;
        Ok(Self { issuer, pem: certificate })
    }

    /// The authority's certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Signs a client certificate for a user name and its groups, valid for a year.
    ///
    /// # Errors
    /// When the names cannot be written into a certificate.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<Identity, PkiError> {
        let mut params = leaf(&[])?;
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// Signs a serving certificate for names and addresses, valid for a year.
    ///
    /// # Errors
    /// When a name cannot be written into a certificate.
    pub fn serving(&self, common_name: &str, names: &[String]) -> Result<Identity, PkiError> {
        let mut params = leaf(names)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<Identity, PkiError> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Identity { certificate: certificate.pem(), key: key.serialize_pem() })
    }
}

fn create(name: &str) -> Result<Identity, PkiError> {
    let key = KeyPair::generate()?;
    Ok(Identity { certificate: sign_itself(name, &key)?, key: key.serialize_pem() })
}

fn sign_itself(name: &str, key: &KeyPair) -> Result<String, PkiError> {
    let mut params = CertificateParams::new(Vec::new())?;
    valid_for(&mut params, AUTHORITY_YEARS * 365 * DAY);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("edge-{name}@{}", now()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params.self_signed(key)?.pem())
}

fn leaf(names: &[String]) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::new(names.to_vec())?;
    valid_for(&mut params, LEAF_DAYS * DAY);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// Valid from 1970, whatever the clock says: a machine without a clock must be able to use what it has just made.
fn valid_for(params: &mut CertificateParams, seconds: u64) {
    params.not_before = date_time_ymd(1970, 1, 1);
    params.not_after = params.not_before + std::time::Duration::from_secs(now() + seconds);
}
