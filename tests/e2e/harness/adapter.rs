//! An extension API server of a test: HTTPS for the API server's front proxy alone, answers by a function of the test.

#![allow(dead_code, reason = "each test binary uses its part")]

use rustls::crypto::ring;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// With its query.
    pub(crate) path: String,
    /// Names in lower case.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
    /// Whom the client certificate names.
    pub(crate) front_proxy: String,
}

impl Asked {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.iter().filter(|(n, _)| n == name).map(|(_, value)| value.as_str()).collect()
    }
}

/// What is answered.
pub(crate) enum Answer {
    Json(u16, Value),
    /// JSON with an entity tag; nothing but 304 for who has it already.
    Tagged(String, Value),
    /// Bytes that claim to be JSON.
    Raw(Vec<u8>),
    /// A switch of protocols, to one that says back what it hears.
    Echo,
    /// The connection ends.
    Hangup,
    /// One line after the other, until the sender goes.
    Lines(Receiver<Value>),
    Redirect(String),
    /// Spaces, for ever.
    Endless,
    /// Nothing, for ever.
    Silence,
}

type Handler = Arc<dyn Fn(&Asked) -> Answer + Send + Sync>;

/// A running server; dropping it closes its port.
pub(crate) struct Adapter {
    pub(crate) address: SocketAddr,
    /// The certificate that vouches for it, PEM.
    pub(crate) ca: String,
    /// All that was asked.
    pub(crate) asked: Arc<Mutex<Vec<Asked>>>,
    /// All connections that there have been.
    connections: Arc<Mutex<Vec<TcpStream>>>,
    stop: Arc<AtomicBool>,
}

impl Adapter {
    /// Listens on an address for whom `front_proxy_ca` (PEM) vouches, and shows a certificate of `name`.
    pub(crate) fn start(
        address: SocketAddr,
        name: &str,
        front_proxy_ca: &str,
        handler: impl Fn(&Asked) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(front_proxy_ca.as_bytes()).unwrap()).unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier)
            .with_single_cert(
                vec![made.cert.der().clone()],
                PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind(address).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::default();
        let adapter = Self { address, ca: made.cert.pem(), asked: Arc::default(), connections, stop: Arc::default() };
        let (config, handler): (Arc<ServerConfig>, Handler) = (Arc::new(config), Arc::new(handler));
        let (asked, stop, connections) = (adapter.asked.clone(), adapter.stop.clone(), adapter.connections.clone());
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let Ok(known) = socket.try_clone() else { continue };
                connections.lock().unwrap().extend(known.try_clone());
                let (config, handler, asked) = (config.clone(), handler.clone(), asked.clone());
                std::thread::spawn(move || {
                    // whoever breaks off costs his own connection
                    let _ = talk(socket, config, &handler, &asked);
                    let _ = known.shutdown(Shutdown::Both);
                });
            }
        });
        adapter
    }

    /// The last request for a path that begins so.
    pub(crate) fn last(&self, path: &str) -> Asked {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .rev()
            .find(|a| a.path.starts_with(path))
            .unwrap_or_else(|| panic!("nobody asked for {path}"))
            .clone()
    }

    /// How often a path that begins so was asked for.
    pub(crate) fn count(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|a| a.path.starts_with(path)).count()
    }

    /// How many connections there have been.
    pub(crate) fn accepted(&self) -> usize {
        self.connections.lock().unwrap().len()
    }

    /// Ends all connections.
    pub(crate) fn disconnect(&self) {
        for socket in self.connections.lock().unwrap().iter() {
            // it may have ended already
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let ip = if self.address.ip().is_unspecified() { IpAddr::from([127, 0, 0, 1]) } else { self.address.ip() };
        // so that it notices
        drop(TcpStream::connect((ip, self.address.port())));
        self.disconnect();
    }
}

fn talk(
    socket: TcpStream,
    config: Arc<ServerConfig>,
    handler: &Handler,
    asked: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    socket.set_nodelay(true)?;
    let connection = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = BufReader::new(StreamOwned::new(connection, socket));
    while let Some(mut question) = hear(&mut stream)? {
        let certificate = stream.get_ref().conn.peer_certificates().and_then(|all| all.first()).cloned();
        let user = certificate.and_then(|c| edge_pki::user_of_certificate(&c));
        question.front_proxy = user.map(|u| u.username).unwrap_or_default();
        asked.lock().unwrap().push(question.clone());
        if !answer(&mut stream, &question, handler(&question))? {
            return Ok(());
        }
    }
    Ok(())
}

/// The next request of a connection.
fn hear(stream: &mut impl BufRead) -> std::io::Result<Option<Asked>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let (Some(method), Some(path)) = (words.next().map(str::to_owned), words.next().map(str::to_owned)) else {
        return Ok(None);
    };
    let mut headers = Vec::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n == "content-length").and_then(|(_, v)| v.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let body = String::from_utf8_lossy(&body).into_owned();
    Ok(Some(Asked { method, path, headers, body, front_proxy: String::new() }))
}

/// Whether the connection goes on.
fn answer<S: Read + Write>(reader: &mut BufReader<S>, asked: &Asked, answer: Answer) -> std::io::Result<bool> {
    let stream = reader.get_mut();
    let whole = |stream: &mut S, head: &str, body: &[u8]| {
        let length = body.len();
        let head = format!("HTTP/1.1 {head}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(&[head.as_bytes(), body].concat())
    };
    match answer {
        Answer::Json(code, value) => whole(stream, &format!("{code} X"), value.to_string().as_bytes())?,
        Answer::Raw(bytes) => whole(stream, "200 OK", &bytes)?,
        Answer::Tagged(tag, _) if asked.all("if-none-match").contains(&tag.as_str()) => {
            write!(stream, "HTTP/1.1 304 Not Modified\r\nETag: {tag}\r\n\r\n")?;
        }
        Answer::Tagged(tag, value) => {
            whole(stream, &format!("200 OK\r\nETag: {tag}"), value.to_string().as_bytes())?;
        }
        Answer::Echo => {
            stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")?;
            stream.flush()?;
            let mut bytes = [0; 1024];
            loop {
                let n = reader.read(&mut bytes)?;
                if n == 0 {
                    return Ok(false);
                }
                reader.get_mut().write_all(&bytes[..n])?;
                reader.get_mut().flush()?;
            }
        }
        Answer::Hangup => return Ok(false),
        Answer::Lines(lines) => {
            let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes())?;
            stream.flush()?;
            for line in lines {
                let line = format!("{line}\n");
                write!(stream, "{:x}\r\n{line}\r\n", line.len())?;
                stream.flush()?;
            }
            stream.write_all(b"0\r\n\r\n")?;
        }
        Answer::Redirect(to) => {
            write!(stream, "HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n")?;
        }
        Answer::Endless => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 4096])?;
            }
        }
        Answer::Silence => std::thread::sleep(std::time::Duration::from_secs(3600)),
    }
    stream.flush()?;
    Ok(true)
}
