//! Requests that a program makes through `wasi:http/outgoing-handler`: HTTP/1.1 and HTTP/2, over connections that are kept for the
//! next request, whichever instance makes it.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use rustls::RootCertStore;
use tokio::time::{Instant, Sleep};
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::dial::{Connector, Network};
use crate::invocation::Invocation;

/// For how long a connection is kept for the next request.
const IDLE: Duration = Duration::from_secs(30);
/// How many different time-outs for connecting a program may use, each of which has connections of its own.
const MOST_POOLS: usize = 8;
/// Where an image, or a volume mounted there, may have the certificates that the program trusts.
const PROGRAMS_ROOTS: &str = "etc/ssl/certs/ca-certificates.crt";
/// Most bytes of certificates that are read.
const MAX_ROOTS: u64 = 4 << 20;
/// How often a way that could not be followed to its end is tried again.
const ATTEMPTS: u32 = 100;

type Plain = legacy::Client<Connector, WasiBody>;
type Tls = legacy::Client<HttpsConnector<Connector>, WasiBody>;
type Sent = (Response<WasiBody>, Box<dyn Future<Output = Result<(), Error>> + Send>);

/// Sends requests; shared by all instances of a program.
pub(crate) struct Client {
    network: Network,
    /// The program's root directory.
    root: Option<PathBuf>,
    pools: Mutex<Pools>,
}

#[derive(Default)]
struct Pools {
    plain: HashMap<Option<Duration>, Plain>,
    tls: HashMap<Option<Duration>, Tls>,
}

/// Sends the requests of one instance.
pub(crate) struct Outgoing(Arc<Client>);

impl Client {
    pub(crate) fn new(invocation: &Invocation, network: Network) -> Self {
        // Its root directory may have certificates of its own. They are read when the first request needs them.
        let root = invocation.preopens.iter().find(|p| p.guest == "/");
        Self { network, root: root.map(|p| p.host.clone()), pools: Mutex::default() }
    }

    pub(crate) fn for_instance(self: &Arc<Self>) -> Outgoing {
        Outgoing(Arc::clone(self))
    }

    async fn send(&self, mut request: Request<WasiBody>, options: Option<RequestOptions>) -> Result<Sent, Error> {
        let options = options.unwrap_or_default();
        let connecting = options.connect_timeout;
        // What is not HTTP/2 needs the version that hyper sends by itself.
        *request.version_mut() = http::Version::HTTP_11;
        let sending = if request.uri().scheme() == Some(&Scheme::HTTPS) {
            self.tls(connecting)?.request(request)
        } else {
            self.plain(connecting)?.request(request)
        };
        let response = match options.first_byte_timeout {
            Some(first) => tokio::time::timeout(connecting.unwrap_or_default() + first, sending)
                .await
                .map_err(|_| Error::ConnectionReadTimeout)?,
            None => sending.await,
        };
        let response = response.map_err(|e| classify(&e))?;
        let between = options.between_bytes_timeout;
        let response = response.map(|body| Timed::new(body, between).boxed_unsync());
        Ok((response, Box::new(async { Ok(()) })))
    }

    fn plain(&self, connecting: Option<Duration>) -> Result<Plain, Error> {
        let tcp = self.network.connector(connecting).ok_or(Error::HttpRequestDenied)?;
        let pools = &mut *self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        room(&mut pools.plain, connecting);
        Ok(pools.plain.entry(connecting).or_insert_with(|| builder().build(tcp)).clone())
    }

    fn tls(&self, connecting: Option<Duration>) -> Result<Tls, Error> {
        let tcp = self.network.connector(connecting).ok_or(Error::HttpRequestDenied)?;
        let pools = &mut *self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = pools.tls.get(&connecting) {
            return Ok(client.clone());
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| Error::InternalError(Some(e.to_string())))?
            .with_root_certificates(load_roots(self.root.as_deref())?)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(config).https_only().enable_all_versions().wrap_connector(tcp);
        let client: Tls = builder().build(connector);
        room(&mut pools.tls, connecting);
        pools.tls.insert(connecting, client.clone());
        Ok(client)
    }
}

/// Makes room for one more; what a program uses to be different each time is not worth to be kept.
fn room<C>(pools: &mut HashMap<Option<Duration>, C>, wanted: Option<Duration>) {
    if pools.len() >= MOST_POOLS && !pools.contains_key(&wanted) {
        pools.clear();
    }
}

fn builder() -> legacy::Builder {
    let mut builder = legacy::Client::builder(TokioExecutor::new());
    builder.pool_idle_timeout(IDLE).pool_timer(TokioTimer::new());
    builder
}

/// The program's own certificates if it brings some, the machine's otherwise.
fn load_roots(root: Option<&Path>) -> Result<RootCertStore, Error> {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = RootCertStore::empty();
    if let Some(pem) = root.and_then(|root| programs_roots(root).ok()) {
        roots.add_parsable_certificates(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok));
    }
    if roots.is_empty() {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    if roots.is_empty() {
        return Err(Error::InternalError(Some(format!(
            "no certificates to trust: neither in /{PROGRAMS_ROOTS} nor the machine's"
        ))));
    }
    Ok(roots)
}

/// Reads the certificates that the program brings. Its files may be links to anywhere, which are followed inside its root only.
fn programs_roots(root: &Path) -> io::Result<Vec<u8>> {
    let root = File::options().read(true).custom_flags(nix::libc::O_PATH | nix::libc::O_DIRECTORY).open(root)?;
    let how = OpenHow::new()
        // What is no file must not keep us waiting.
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let mut left = ATTEMPTS;
    let file = loop {
        match openat2(&root, PROGRAMS_ROOTS, how) {
            Err(Errno::EAGAIN) if left > 0 => left -= 1,
            result => break File::from(result?),
        }
    };
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut pem = Vec::new();
    file.take(MAX_ROOTS).read_to_end(&mut pem)?;
    Ok(pem)
}

/// What went wrong, in the words that WASI has for it.
fn classify(err: &legacy::Error) -> Error {
    let mut cause = err.source();
    while let Some(err) = cause {
        // Its type is hyper-util's own, and what getaddrinfo says has no kind.
        if err.to_string() == "dns error" {
            return Error::DnsError { rcode: err.source().map(ToString::to_string), info_code: None };
        }
        if let Some(tls) = err.downcast_ref::<rustls::Error>() {
            return match tls {
                rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
                rustls::Error::AlertReceived(alert) => Error::TlsAlertReceived {
                    alert_id: Some(u8::from(*alert)),
                    alert_message: Some(format!("{alert:?}")),
                },
                _ => Error::TlsProtocolError,
            };
        }
        if let Some(hyper) = err.downcast_ref::<hyper::Error>() {
            return match () {
                () if hyper.is_incomplete_message() => Error::HttpResponseIncomplete,
                () if hyper.is_timeout() => Error::HttpResponseTimeout,
                () if hyper.is_closed() || hyper.is_canceled() => Error::ConnectionTerminated,
                () => Error::HttpProtocolError,
            };
        }
        if let Some(io) = err.downcast_ref::<io::Error>().map(innermost) {
            // One that wraps another error (as that of TLS) says less than what it wraps.
            if let Some(inner) = io.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
                return match inner {
                    rustls::Error::InvalidCertificate(_) => Error::TlsCertificateError,
                    _ => Error::TlsProtocolError,
                };
            }
            return match io.kind() {
                io::ErrorKind::ConnectionRefused => Error::ConnectionRefused,
                io::ErrorKind::TimedOut => Error::ConnectionTimeout,
                io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Error::DestinationIpUnroutable,
                io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe => {
                    Error::ConnectionTerminated
                }
                _ => Error::Connect(io::Error::new(io.kind(), io.to_string())),
            };
        }
        cause = err.source();
    }
    if err.is_connect() { Error::DestinationUnavailable } else { Error::HttpProtocolError }
}

/// What an error wraps that wraps nothing but another one: as that of TLS does, whose source is none.
fn innermost(mut err: &io::Error) -> &io::Error {
    while let Some(inner) = err.get_ref().and_then(|inner| inner.downcast_ref::<io::Error>()) {
        err = inner;
    }
    err
}

impl WasiHttpHooks for Outgoing {
    fn send_request(
        &mut self,
        request: Request<WasiBody>,
        options: Option<RequestOptions>,
        _: Box<dyn Future<Output = Result<(), Error>> + Send>,
    ) -> Box<dyn Future<Output = Result<Sent, Error>> + Send> {
        let client = Arc::clone(&self.0);
        Box::new(async move { client.send(request, options).await })
    }
}

/// A response's body, between two pieces of which no more than so much time may go.
struct Timed {
    body: hyper::body::Incoming,
    between: Option<(Duration, Pin<Box<Sleep>>)>,
}

impl Timed {
    fn new(body: hyper::body::Incoming, between: Option<Duration>) -> Self {
        Self { body, between: between.map(|d| (d, Box::pin(tokio::time::sleep(d)))) }
    }
}

impl Body for Timed {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        let Some((duration, sleep)) = &mut self.between else { return frame.map_err(Error::from) };
        if frame.is_ready() {
            sleep.as_mut().reset(Instant::now() + *duration);
        } else if sleep.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(Error::ConnectionReadTimeout)));
        }
        frame.map_err(Error::from)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
