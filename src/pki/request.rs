//! Certificate signing requests: made by agents (the private key never leaves the machine), read and signed by the server.

use crate::authority::{Authority, issue};
use crate::cluster::ServerNames;
use crate::files::{self, PkiError, SECRET};
use crate::identity::{ClientName, Identity};
use crate::plausible_now;
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509CertificationRequest};

/// A requested life is not made shorter than this, as in Kubernetes.
const SHORTEST: Duration = Duration::from_secs(10 * 60);

/// A private key with a request for its certificate.
#[derive(Debug)]
pub struct KeyRequest {
    key: KeyPair,
    pem: String,
}

impl KeyRequest {
    /// A new key, and a request for a client certificate.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn client(name: &ClientName) -> Result<Self, PkiError> {
        Self::new(name, &ServerNames::plain(&[], &[]), ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A new key, and a request of `name` for a serving certificate with these names and addresses.
    ///
    /// # Errors
    /// When the system has no randomness to give, or a name cannot be in a certificate.
    pub fn serving(name: &ClientName, names: &ServerNames) -> Result<Self, PkiError> {
        Self::new(name, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    fn new(name: &ClientName, names: &ServerNames, usage: ExtendedKeyUsagePurpose) -> Result<Self, PkiError> {
        let failed = |source| issue(&name.common_name, source);
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, &name.common_name);
        params.distinguished_name.push(DnType::OrganizationName, &name.organization);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        for dns in names.dns() {
            params.subject_alt_names.push(SanType::DnsName(dns.as_str().try_into().map_err(failed)?));
        }
        params.subject_alt_names.extend(names.ips().iter().map(|ip| SanType::IpAddress(*ip)));
        let pem = params.serialize_request(&key).and_then(|r| r.pem()).map_err(failed)?;
        Ok(Self { key, pem })
    }

    /// The request, as PEM (PKCS #10).
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Keeps the key and the certificate that was issued for it in a file (0600).
    ///
    /// # Errors
    /// When the certificate is malformed or about another key, or the file cannot be written.
    pub fn finish(self, path: &Path, certificate: &str) -> Result<Identity, PkiError> {
        let chain = files::parse_certificates(path, certificate.as_bytes())?;
        if !chain.first().is_some_and(|c| files::belongs(&self.key, c)) {
            return Err(PkiError::KeyMismatch { certificate: path.to_owned(), key: path.to_owned() });
        }
        files::write(path, &format!("{}{certificate}", self.key.serialize_pem()), SECRET)?;
        Identity::load(path)?.ok_or_else(|| PkiError::Malformed { path: path.to_owned(), what: "certificate" })
    }
}

/// What a certificate signing request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestFacts {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Names of other kinds (URIs, e-mail addresses), as many as there are.
    pub other_names: usize,
}

impl RequestFacts {
    /// Reads a request (PEM) and checks that its sender holds its key.
    ///
    /// # Errors
    /// When it is no such request, or its signature is wrong.
    pub fn parse(pem: &[u8]) -> Result<Self, RequestError> {
        let der = der(pem)?;
        let (_, request) = X509CertificationRequest::from_der(&der).map_err(|_| RequestError::Malformed)?;
        request.verify_signature().map_err(|_| RequestError::Signature)?;
        let subject = &request.certification_request_info.subject;
        let text = |a: &x509_parser::x509::AttributeTypeAndValue<'_>| a.as_str().map(str::to_owned).ok();
        let mut facts = Self {
            common_name: subject.iter_common_name().filter_map(text).last().unwrap_or_default(),
            organizations: subject.iter_organization().filter_map(text).collect(),
            ..Self::default()
        };
        for extension in request.requested_extensions().into_iter().flatten() {
            let ParsedExtension::SubjectAlternativeName(names) = extension else { continue };
            for name in &names.general_names {
                match name {
                    GeneralName::DNSName(name) => facts.dns.push((*name).to_owned()),
                    GeneralName::IPAddress(bytes) => match crate::identity::ip(bytes) {
                        Some(ip) => facts.ips.push(ip),
                        None => facts.other_names += 1,
                    },
                    _ => facts.other_names += 1,
                }
            }
        }
        Ok(facts)
    }
}

/// Why a certificate signing request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is no request.
    #[error("no valid PEM encoded certificate request")]
    Malformed,
    /// Its sender does not hold the key.
    #[error("the request is not signed with its own key")]
    Signature,
    /// It asks for something that cannot be issued.
    #[error("cannot issue what the request asks for")]
    Issue(#[from] rcgen::Error),
    /// It asks for a use of the key that its signer does not give.
    #[error("usage {0:?} is not known")]
    Usage(String),
}

fn der(pem: &[u8]) -> Result<Vec<u8>, RequestError> {
    use rustls_pki_types::pem::PemObject as _;
    rustls_pki_types::CertificateSigningRequestDer::from_pem_slice(pem)
        .map(|d| d.as_ref().to_vec())
        .map_err(|_| RequestError::Malformed)
}

impl Authority {
    /// Signs a request (PEM): subject and names are the request's, key usages are those given in the words of the
    /// certificates API (`digital signature`, `client auth`, ...). The certificate (PEM) is valid from the epoch, so that
    /// it holds on a machine whose clock is behind, for `life` (between ten minutes and `longest`), else for `longest`.
    ///
    /// # Errors
    /// When the request is malformed or asks for what cannot be issued.
    pub fn sign_request(
        &self,
        pem: &[u8],
        usages: &[String],
        life: Option<Duration>,
        longest: Duration,
    ) -> Result<String, RequestError> {
        let mut request = CertificateSigningRequestParams::from_der(&der(pem)?.into())?;
        let params = &mut request.params;
        params.is_ca = IsCa::NoCa;
        params.use_authority_key_identifier_extension = true;
        params.not_before = UNIX_EPOCH.into();
        params.not_after = (plausible_now() + life.map_or(longest, |l| l.max(SHORTEST).min(longest))).into();
        params.serial_number = Some(serial()?);
        params.key_usages.clear();
        params.extended_key_usages.clear();
        for usage in usages {
            match usage.as_str() {
                "signing" | "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "key agreement" => params.key_usages.push(KeyUsagePurpose::KeyAgreement),
                "data encipherment" => params.key_usages.push(KeyUsagePurpose::DataEncipherment),
                "content commitment" => params.key_usages.push(KeyUsagePurpose::ContentCommitment),
                "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                "client auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
                "code signing" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::CodeSigning),
                "email protection" | "s/mime" => {
                    params.extended_key_usages.push(ExtendedKeyUsagePurpose::EmailProtection);
                }
                "timestamping" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::TimeStamping),
                "ocsp signing" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::OcspSigning),
                other => return Err(RequestError::Usage(other.to_owned())),
            }
        }
        Ok(crate::identity::pem("CERTIFICATE", request.signed_by(self.issuer())?.der()))
    }
}

fn serial() -> Result<SerialNumber, rcgen::Error> {
    use ring::rand::SecureRandom as _;
    let mut bytes = [0u8; 16];
    ring::rand::SystemRandom::new().fill(&mut bytes).map_err(|_| rcgen::Error::RingUnspecified)?;
    // positive
    bytes[0] &= 0x7f;
    Ok(SerialNumber::from_slice(&bytes))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_request_is_read_signed_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path(), "ca").unwrap();
        let names = ServerNames::plain(&["n".into()], &["192.0.2.1".parse().unwrap()]);
        let request = KeyRequest::serving(&ClientName::node("n"), &names).unwrap();
        let facts = RequestFacts::parse(request.pem().as_bytes()).unwrap();
        assert_eq!(
            (facts.common_name.as_str(), facts.organizations.as_slice()),
            ("system:node:n", &["system:nodes".to_owned()][..])
        );
        assert_eq!((facts.dns.as_slice(), facts.ips.as_slice()), (names.dns(), names.ips()));

        let usages = ["digital signature".to_owned(), "server auth".to_owned()];
        let hour = Duration::from_secs(3600);
        let year = hour * 24 * 365;
        let certificate = authority.sign_request(request.pem().as_bytes(), &usages, Some(hour), year).unwrap();
        let other = KeyRequest::client(&ClientName::node("m")).unwrap();
        let path = dir.path().join("serving.pem");
        assert!(other.finish(&path, &certificate).is_err(), "a certificate of another key");
        let identity = request.finish(&path, &certificate).unwrap();
        let left = identity.not_after().duration_since(plausible_now()).unwrap();
        assert!(left > hour - Duration::from_secs(60) && left <= hour, "{left:?}");
        let left = |life: u64, longest: u64| {
            let request = KeyRequest::client(&ClientName::node("n")).unwrap();
            let life = Some(life).filter(|l| *l > 0).map(Duration::from_secs);
            let longest = Duration::from_secs(longest);
            let pem = authority.sign_request(request.pem().as_bytes(), &usages, life, longest).unwrap();
            let end = request.finish(&dir.path().join("x"), &pem).unwrap().not_after();
            end.duration_since(plausible_now()).unwrap().as_secs().div_ceil(10) * 10
        };
        assert_eq!((left(0, 1000), left(2000, 1000)), (1000, 1000), "no longer than the signer gives");
        assert_eq!((left(1, 1000), left(1, 60)), (600, 60), "not shorter than ten minutes, if it is for the requester");
        let again = Identity::load(&path).unwrap().unwrap();
        assert_eq!(again.certificate(), identity.certificate());
        let user = crate::user_of_certificate(identity.certificate()).unwrap();
        assert_eq!(user.username, "system:node:n");
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::load_or_create(dir.path(), "ca").unwrap();
        for bad in
            ["", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", authority.pem()]
        {
            assert!(RequestFacts::parse(bad.as_bytes()).is_err());
            assert!(authority.sign_request(bad.as_bytes(), &[], None, SHORTEST).is_err());
        }
        let request = KeyRequest::client(&ClientName::node("n")).unwrap();
        let usage = ["cert sign".to_owned()];
        let signed = authority.sign_request(request.pem().as_bytes(), &usage, None, SHORTEST);
        assert!(signed.is_err(), "nobody becomes an authority");
    }
}
