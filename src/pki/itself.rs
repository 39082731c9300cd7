//! Servers that vouch for themselves: a certificate that is trusted as an authority, and shown as the server's own.
//!
//! `openssl req -x509` makes such ones, marked as authorities, and many webhooks have them: their `caBundle` is the certificate itself. Go, and
//! so Kubernetes, takes them; `webpki` refuses every authority as a server's certificate (`CaUsedAsEndEntity`). Whoever is trusted to sign
//! any name may as well be trusted in his own: what is left to check is that the name is in it and that it has not run out.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::sync::Arc;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::time::ASN1Time;

/// Judges as another one does, and takes an authority that shows itself, too.
#[derive(Debug)]
pub(crate) struct OrItself {
    pub(crate) usual: Arc<dyn ServerCertVerifier>,
    /// The certificates of the authorities.
    pub(crate) trusted: Vec<CertificateDer<'static>>,
}

fn invalid(error: CertificateError) -> Error {
    Error::InvalidCertificate(error)
}

/// Whether an authority's certificate holds for a name at a time.
fn holds(certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| invalid(CertificateError::BadEncoding))?;
    let seconds = i64::try_from(now.as_secs()).map_err(|_| invalid(CertificateError::BadEncoding))?;
    let now = ASN1Time::from_timestamp(seconds).map_err(|_| invalid(CertificateError::BadEncoding))?;
    if now < parsed.validity().not_before {
        return Err(invalid(CertificateError::NotValidYet));
    }
    if now > parsed.validity().not_after {
        return Err(invalid(CertificateError::Expired));
    }
    verify_server_name(&ParsedCertificate::try_from(certificate)?, name)
}

impl ServerCertVerifier for OrItself {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let usual = self.usual.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match usual {
            Err(Error::InvalidCertificate(_)) if self.trusted.iter().any(|t| t.as_ref() == end_entity.as_ref()) => {
                holds(end_entity, server_name, now).map(|()| ServerCertVerified::assertion())
            }
            usual => usual,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.usual.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.usual.supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
    use rustls::RootCertStore;
    use rustls::client::WebPkiServerVerifier;
    use std::time::Duration;

    fn authority(name: &str) -> CertificateDer<'static> {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2030, 1, 1));
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn verifier(trusted: &CertificateDer<'static>) -> OrItself {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let usual = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        OrItself { usual, trusted: vec![trusted.clone()] }
    }

    #[test]
    fn an_authority_may_show_itself() {
        let (mine, other) = (authority("hook.ns.svc"), authority("hook.ns.svc"));
        let verifier = verifier(&mine);
        let judge = |certificate: &CertificateDer<'_>, name: &str, year: u64| {
            let name = ServerName::try_from(name.to_owned()).unwrap();
            let now = UnixTime::since_unix_epoch(Duration::from_secs((year - 1970) * 31_557_600));
            let judged = verifier.verify_server_cert(certificate, &[], &name, &[], now);
            judged.map(drop).map_err(|e| e.to_string())
        };
        assert_eq!(judge(&mine, "hook.ns.svc", 2026), Ok(()));
        for (certificate, name, year) in [
            (&other, "hook.ns.svc", 2026),
            (&mine, "other.ns.svc", 2026),
            (&mine, "hook.ns.svc", 2019),
            (&mine, "hook.ns.svc", 2031),
        ] {
            assert!(judge(certificate, name, year).is_err(), "{name} {year}");
        }
        assert!(judge(&CertificateDer::from(vec![1, 2, 3]), "hook.ns.svc", 2026).is_err());
    }
}
