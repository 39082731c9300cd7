//! One repository at one endpoint: fetching its manifests and blobs.

use super::auth::{Challenge, answer};
use super::credentials::Credentials;
use super::transport::{Transport, next_chunk, read_body};
use super::{Endpoint, RegistryError};
use crate::digest::Digest;
use crate::error::Error;
use crate::oci::{MAX_DOCUMENT, accepted_manifests};
use crate::store::blocking;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, LOCATION, RANGE, USER_AGENT};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

const MAX_REDIRECTS: usize = 5;
/// Attempts in a row that bring nothing, before a download is given up.
const FRUITLESS_ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Pieces of a blob that wait for the disk.
const WRITE_QUEUE: usize = 16;

/// A repository with one way to authenticate. Cheap to share between concurrent downloads.
pub(crate) struct Repository {
    pub(super) transport: Arc<Transport>,
    pub(super) endpoint: Endpoint,
    credentials: Option<Credentials>,
    /// The header that the last challenge was answered with.
    pub(super) authorization: Mutex<Option<HeaderValue>>,
}

/// A manifest or index, verified.
pub(crate) struct FetchedManifest {
    pub(crate) digest: Digest,
    pub(crate) bytes: Bytes,
}

/// A blob to fetch, and where to.
#[derive(Clone, Debug)]
pub(crate) struct BlobTarget {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// What is there already is kept and continued.
    pub(crate) path: PathBuf,
}

impl Repository {
    pub(crate) fn new(transport: Arc<Transport>, endpoint: Endpoint, credentials: Option<Credentials>) -> Self {
        Self { transport, endpoint, credentials, authorization: Mutex::new(None) }
    }

    /// Fetches the manifest or index with this tag or digest.
    pub(crate) async fn manifest(&self, tag_or_digest: &str) -> Result<FetchedManifest, Error> {
        let url = format!("{}/manifests/{tag_or_digest}", self.endpoint.repository_url);
        let what = self.describe(tag_or_digest);
        let accept = HeaderValue::from_str(&accepted_manifests()).ok();
        let response = self.get(&url, &what, accept, None).await?;
        let bytes = read_body(&self.endpoint.host, response.into_body(), MAX_DOCUMENT).await?;
        let got = Digest::of(&bytes);
        match tag_or_digest.parse::<Digest>() {
            Ok(want) if want != got => Err(Error::DigestMismatch { want, got }),
            _ => Ok(FetchedManifest { digest: got, bytes }),
        }
    }

    /// Fetches a small blob into memory.
    pub(crate) async fn small_blob(&self, digest: Digest, size: u64) -> Result<Bytes, Error> {
        if size > MAX_DOCUMENT {
            return Err(Error::malformed(format!("blob {digest}"), "document larger than 8 MiB"));
        }
        let url = format!("{}/blobs/{digest}", self.endpoint.repository_url);
        let response = self.get(&url, &self.describe(&digest.to_string()), None, None).await?;
        let bytes = read_body(&self.endpoint.host, response.into_body(), size).await?;
        check(digest, size, Digest::of(&bytes), bytes.len() as u64)?;
        Ok(bytes)
    }

    /// Fetches a blob into a file, continuing what is there, and again after the connection broke. `received` is told
    /// the bytes so far.
    pub(crate) async fn blob(&self, target: &BlobTarget, received: impl Fn(u64)) -> Result<(), Error> {
        let mut pause = FIRST_PAUSE;
        let mut fruitless = 0;
        let mut sink = Some(BlobSink::resume(target.clone()).await?);
        while let Some(mut current) = sink.take() {
            let before = current.length;
            if before < target.size {
                let fetched = self.blob_rest(target, &mut current, &received).await;
                let failed = match fetched {
                    Ok(()) => None,
                    Err(Error::Registry(error)) if error.is_transient() => Some(error),
                    Err(error) => return Err(error),
                };
                fruitless = if current.length > before { 0 } else { fruitless + 1 };
                if let Some(error) = failed {
                    if fruitless >= FRUITLESS_ATTEMPTS {
                        return Err(error.into());
                    }
                    tracing::debug!(digest = %target.digest, at = current.length, %error, "continuing a blob");
                    tokio::time::sleep(pause).await;
                    pause = if fruitless == 0 { FIRST_PAUSE } else { pause * 2 };
                    sink = Some(current);
                    continue;
                }
            }
            return current.finish(target).await;
        }
        Ok(())
    }

    async fn blob_rest(&self, target: &BlobTarget, sink: &mut BlobSink, received: &impl Fn(u64)) -> Result<(), Error> {
        let url = format!("{}/blobs/{}", self.endpoint.repository_url, target.digest);
        let what = self.describe(&target.digest.to_string());
        let range = (sink.length > 0).then(|| format!("bytes={}-", sink.length));
        let range = range.and_then(|range| HeaderValue::from_str(&range).ok());
        let response = self.get(&url, &what, None, range).await?;
        let continues = response.status() == StatusCode::PARTIAL_CONTENT && range_start(&response) == Some(sink.length);
        if sink.length > 0 && !continues {
            // The server does not do ranges, or not this one.
            if response.status() != StatusCode::OK {
                return Err(self.protocol(format!("{what}: answered another range than asked for")).into());
            }
            sink.restart().await?;
        }
        let mut body = response.into_body();
        while let Some(chunk) = next_chunk(&self.endpoint.host, &mut body).await? {
            if sink.length + chunk.len() as u64 > target.size {
                sink.restart().await?;
                let (digest, want) = (target.digest, target.size);
                return Err(Error::SizeMismatch { digest, want, got: want + 1 });
            }
            sink.write(chunk).await?;
            received(sink.length);
        }
        if sink.length < target.size {
            let source = Box::new(io::Error::from(io::ErrorKind::UnexpectedEof));
            return Err(RegistryError::Broken { host: self.endpoint.host.clone(), source }.into());
        }
        Ok(())
    }

    /// A GET that answers one challenge and follows redirects; any status but success is an error.
    async fn get(
        &self,
        url: &str,
        what: &str,
        accept: Option<HeaderValue>,
        range: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut challenged = false;
        loop {
            let authorization = self.authorization.lock().clone();
            let response = self.follow(url, authorization, accept.as_ref(), range.as_ref()).await?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            if status == StatusCode::UNAUTHORIZED && !challenged {
                challenged = true;
                if let Some(header) = self.authorize(&response, "pull").await? {
                    *self.authorization.lock() = Some(header);
                    continue;
                }
            }
            let host = self.endpoint.host.clone();
            let body = read_body(&host, response.into_body(), MAX_DOCUMENT).await.unwrap_or_default();
            let (reason, what) = (server_message(status, &body), what.to_owned());
            return Err(match status {
                StatusCode::NOT_FOUND => RegistryError::NotFound { host, what },
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Unauthorized { host, what, reason },
                status => RegistryError::Status { host, what, status, reason },
            });
        }
    }

    /// The header that answers a challenge, for a token that allows `actions`.
    pub(super) async fn authorize(
        &self,
        response: &Response<Incoming>,
        actions: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        let Some(challenge) = Challenge::of(response.headers()) else { return Ok(None) };
        let scheme = if self.endpoint.repository_url.starts_with("https:") { "https" } else { "http" };
        let scope = format!("repository:{}:{actions}", self.endpoint.repository);
        answer(&self.transport, &challenge, self.credentials.as_ref(), scheme, &scope).await
    }

    /// Sends a GET and follows redirects; the authorization stays behind when they lead to another host.
    async fn follow(
        &self,
        url: &str,
        mut authorization: Option<HeaderValue>,
        accept: Option<&HeaderValue>,
        range: Option<&HeaderValue>,
    ) -> Result<Response<Incoming>, RegistryError> {
        let mut uri: Uri = url.parse().map_err(|error| self.protocol(format!("{url}: {error}")))?;
        for _ in 0..=MAX_REDIRECTS {
            let mut request = Request::get(uri.clone()).header(USER_AGENT, concat!("edge/", env!("CARGO_PKG_VERSION")));
            let optional = [(AUTHORIZATION, authorization.as_ref()), (ACCEPT, accept), (RANGE, range)];
            for (name, value) in optional.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                request = request.header(name, value);
            }
            let request = request.body(Full::default()).map_err(|error| self.protocol(error.to_string()))?;
            let response = self.transport.send(request).await?;
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let next = location.and_then(|location| resolve(&uri, location));
            let next = next.ok_or_else(|| self.protocol("redirect without a usable location".to_owned()))?;
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                return Err(self.protocol(format!("redirect from TLS to plain HTTP ({next})")));
            }
            if (uri.scheme(), uri.authority()) != (next.scheme(), next.authority()) {
                authorization = None;
            }
            uri = next;
        }
        Err(self.protocol(format!("more than {MAX_REDIRECTS} redirects")))
    }

    pub(super) fn describe(&self, part: &str) -> String {
        let separator = if part.contains(':') { '@' } else { ':' };
        format!("{}{separator}{part}", self.endpoint.repository)
    }

    pub(super) fn protocol(&self, reason: String) -> RegistryError {
        RegistryError::Protocol { host: self.endpoint.host.clone(), reason }
    }
}

fn check(digest: Digest, want: u64, got_digest: Digest, got: u64) -> Result<(), Error> {
    if got != want {
        return Err(Error::SizeMismatch { digest, want, got });
    }
    if got_digest != digest {
        return Err(Error::DigestMismatch { want: digest, got: got_digest });
    }
    Ok(())
}

fn range_start(response: &Response<Incoming>) -> Option<u64> {
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// The address a `Location` means, relative ones included.
pub(super) fn resolve(base: &Uri, location: &str) -> Option<Uri> {
    if location.contains("://") {
        return location.parse().ok();
    }
    if location.starts_with("//") {
        return format!("{}:{location}", base.scheme_str()?).parse().ok();
    }
    let path = if location.starts_with('/') {
        location.to_owned()
    } else {
        let parent = base.path().rsplit_once('/').map_or("", |(parent, _)| parent);
        format!("{parent}/{location}")
    };
    format!("{}://{}{path}", base.scheme_str()?, base.authority()?).parse().ok()
}

/// The message in a registry's error body, or the status' own words.
pub(super) fn server_message(status: StatusCode, body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Detail>,
        #[serde(default)]
        details: String,
    }
    #[derive(Deserialize)]
    struct Detail {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let parsed = serde_json::from_slice::<Errors>(body).ok();
    let message = parsed.map(|parsed| match parsed.errors.first() {
        Some(first) if first.message.is_empty() => first.code.clone(),
        Some(first) => first.message.clone(),
        None => parsed.details,
    });
    let message = message.filter(|message| !message.is_empty());
    message.unwrap_or_else(|| status.canonical_reason().unwrap_or("unknown status").to_lowercase())
}

/// Writes a blob's file and hashes it, on a blocking thread that is fed through a bounded queue.
struct BlobSink {
    /// Bytes in the file so far.
    length: u64,
    queue: Option<mpsc::Sender<Bytes>>,
    writer: Option<tokio::task::JoinHandle<Result<Writer, Error>>>,
}

struct Writer {
    file: File,
    path: PathBuf,
    hasher: Sha256,
}

impl Writer {
    fn resume(target: &BlobTarget) -> Result<(Self, u64), Error> {
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&target.path);
        let file = opened.map_err(Error::io("open", &target.path))?;
        let mut writer = Self { file, path: target.path.clone(), hasher: Sha256::new() };
        let mut buffer = vec![0; 128 * 1024];
        let mut length = 0;
        loop {
            let n = writer.file.read(&mut buffer).map_err(Error::io("read", &target.path))?;
            if n == 0 {
                break;
            }
            writer.hasher.update(&buffer[..n]);
            length += n as u64;
        }
        if length > target.size {
            writer.restart()?;
            length = 0;
        }
        Ok((writer, length))
    }

    fn restart(&mut self) -> Result<(), Error> {
        self.hasher = Sha256::new();
        self.file.set_len(0).and_then(|()| self.file.rewind()).map_err(Error::io("truncate", &self.path))
    }

    fn run(mut self, mut queue: mpsc::Receiver<Bytes>) -> Result<Self, Error> {
        while let Some(chunk) = queue.blocking_recv() {
            self.file.write_all(&chunk).map_err(Error::io("write", &self.path))?;
            self.hasher.update(&chunk);
        }
        Ok(self)
    }
}

impl BlobSink {
    async fn resume(target: BlobTarget) -> Result<Self, Error> {
        let (writer, length) = blocking(move || Writer::resume(&target)).await?;
        Ok(Self::start(writer, length))
    }

    fn start(writer: Writer, length: u64) -> Self {
        let (queue, chunks) = mpsc::channel(WRITE_QUEUE);
        let writer = tokio::task::spawn_blocking(move || writer.run(chunks));
        Self { length, queue: Some(queue), writer: Some(writer) }
    }

    async fn write(&mut self, chunk: Bytes) -> Result<(), Error> {
        let length = chunk.len() as u64;
        let sent = match &self.queue {
            Some(queue) => queue.send(chunk).await.is_ok(),
            None => false,
        };
        if !sent {
            // The writer stopped: it knows why.
            self.stop().await?;
            return Err(Error::malformed("download", "its writer has ended"));
        }
        self.length += length;
        Ok(())
    }

    async fn restart(&mut self) -> Result<(), Error> {
        let mut writer = self.stop().await?;
        let writer = blocking(move || writer.restart().map(|()| writer)).await?;
        *self = Self::start(writer, 0);
        Ok(())
    }

    async fn stop(&mut self) -> Result<Writer, Error> {
        self.queue = None;
        match self.writer.take() {
            Some(writer) => writer.await.map_err(Error::Worker)?,
            None => Err(Error::malformed("download", "its writer has ended")),
        }
    }

    /// Checks the whole blob; a wrong one is removed, since continuing it would never make it right.
    async fn finish(mut self, target: &BlobTarget) -> Result<(), Error> {
        let writer = self.stop().await?;
        let got = Digest::from(writer.hasher);
        let checked = check(target.digest, target.size, got, self.length);
        if checked.is_err() {
            let path = target.path.clone();
            blocking(move || crate::content::remove_any(&path)).await?;
        }
        checked
    }
}
