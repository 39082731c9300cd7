//! A server that pretends to be one of a cluster, and writes down all that it is told.

use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, ServerConfig, ServerConnection, SignatureScheme, StreamOwned};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What it was told.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    /// All bytes that came through TLS.
    pub(crate) text: String,
    /// How many connections were tried.
    pub(crate) connections: usize,
    /// How many client certificates were shown.
    pub(crate) certificates: usize,
}

pub(crate) struct Rogue {
    pub(crate) address: SocketAddr,
    told: Arc<Mutex<Told>>,
}

impl Rogue {
    /// Listens on an address of the host; answers `/cacerts` with `ca` or, without one, with a certificate of its own.
    pub(crate) fn start(ip: Ipv4Addr, ca: Option<Vec<u8>>) -> Self {
        let made = rcgen::generate_simple_self_signed(["kubernetes".to_owned(), ip.to_string()]).unwrap();
        let ca = ca.unwrap_or_else(|| made.cert.pem().into_bytes());
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(Arc::new(Anybody))
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        config.alpn_protocols = vec![b"http/1.1".to_vec(), b"h2".to_vec()];
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let rogue = Self { address: listener.local_addr().unwrap(), told: Arc::default() };
        let (told, config) = (rogue.told.clone(), Arc::new(config));
        // it ends with the test
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let (told, config, ca) = (told.clone(), config.clone(), ca.clone());
                told.lock().unwrap().connections += 1;
                std::thread::spawn(move || talk(socket, config, &ca, &told));
            }
        });
        rogue
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// What it was told until now.
    pub(crate) fn told(&self) -> Told {
        self.told.lock().unwrap().clone()
    }
}

fn talk(socket: TcpStream, config: Arc<ServerConfig>, ca: &[u8], told: &Mutex<Told>) {
    let _ = socket.set_read_timeout(Some(Duration::from_secs(10)));
    let Ok(connection) = ServerConnection::new(config) else { return };
    let mut stream = StreamOwned::new(connection, socket);
    let mut buffer = [0u8; 16 << 10];
    let mut counted = false;
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        let mut told = told.lock().unwrap();
        told.text.push_str(&text);
        if !counted && stream.conn.peer_certificates().is_some() {
            counted = true;
            told.certificates += 1;
        }
        drop(told);
        if text.starts_with("GET /cacerts") {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", ca.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(ca)).and_then(|()| stream.flush());
        }
    }
}

/// Asks for a certificate, and takes any.
#[derive(Debug)]
struct Anybody;

impl ClientCertVerifier for Anybody {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
