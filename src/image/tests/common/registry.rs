//! Registries to pull from: Debian's docker-registry as a process, and a small one in the test that misbehaves on demand.

use crate::common::TestImage;
use bytes::Bytes;
use edge_image::Digest;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A docker-registry process, ended when dropped.
pub(crate) struct DockerRegistry {
    child: Child,
    pub(crate) host: String,
}

impl DockerRegistry {
    /// Starts one that keeps its data in `root`; `http` and `auth` are further lines of those sections of its file.
    pub(crate) fn start(root: &Path, http: &str, auth: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = root.join(format!("config-{port}.yml"));
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp:\n  addr: {host}\n{http}{auth}",
            root.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (Debian package docker-registry) is needed for this test");
        let registry = Self { child, host };
        for _ in 0..200 {
            if TcpStream::connect(&registry.host).is_ok() {
                return registry;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("docker-registry did not start listening");
    }

    /// Uploads blobs and a manifest over plain HTTP.
    pub(crate) async fn push(&self, repository: &str, tag: &str, images: &[&TestImage]) {
        for image in images {
            for blob in image.blobs.iter().chain([&image.config]) {
                self.push_blob(repository, blob).await;
            }
            let manifest = image.manifest();
            let digest = Digest::of(&manifest).to_string();
            self.put_manifest(repository, &digest, "application/vnd.oci.image.manifest.v1+json", manifest).await;
        }
        if let [image] = images {
            self.put_manifest(repository, tag, "application/vnd.oci.image.manifest.v1+json", image.manifest()).await;
        } else {
            let index = crate::common::index_of(images);
            self.put_manifest(repository, tag, "application/vnd.oci.image.index.v1+json", index).await;
        }
    }

    async fn push_blob(&self, repository: &str, blob: &[u8]) {
        let started = self.send(Method::POST, &format!("/v2/{repository}/blobs/uploads/"), "", Vec::new()).await;
        assert_eq!(started.status(), StatusCode::ACCEPTED);
        let location = started.headers()["location"].to_str().unwrap().to_owned();
        let path = location.split_once(&self.host).map_or(location.as_str(), |(_, path)| path);
        let digest = Digest::of(blob).to_string().replace(':', "%3A");
        let path = format!("{path}&digest={digest}");
        let done = self.send(Method::PUT, &path, "application/octet-stream", blob.to_vec());
        assert_eq!(done.await.status(), StatusCode::CREATED);
    }

    async fn put_manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: Vec<u8>) {
        let put = self.send(Method::PUT, &format!("/v2/{repository}/manifests/{reference}"), media_type, bytes).await;
        assert_eq!(put.status(), StatusCode::CREATED);
    }

    async fn send(&self, method: Method, path: &str, media_type: &str, body: Vec<u8>) -> Response<Incoming> {
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.host));
        let request = request.header("content-type", media_type).body(Full::from(body)).unwrap();
        client.request(request).await.unwrap()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What [`FakeRegistry`] saw of a request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) authorization: Option<String>,
    pub(crate) range: Option<String>,
    pub(crate) body: String,
}

/// How the fake one answers instead of giving the content.
pub(crate) enum Answer {
    /// The content, as asked for.
    Content,
    /// This many bytes of it, then the connection breaks.
    CutAfter(usize),
    /// Anything else.
    Other(Response<Full<Bytes>>),
}

type Decide = dyn Fn(&Seen) -> Answer + Send + Sync;

/// A registry in this process that serves images from memory and can be told to misbehave.
pub(crate) struct FakeRegistry {
    pub(crate) host: String,
    pub(crate) seen: Arc<Mutex<Vec<Seen>>>,
    task: tokio::task::JoinHandle<()>,
}

impl FakeRegistry {
    pub(crate) async fn start(
        repository: &str,
        images: &[(&str, &TestImage)],
        decide: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let mut content = HashMap::new();
        for (tag, image) in images {
            let manifest = image.manifest();
            content.insert(format!("/v2/{repository}/manifests/{}", Digest::of(&manifest)), manifest.clone());
            content.insert(format!("/v2/{repository}/manifests/{tag}"), manifest);
            for blob in image.blobs.iter().chain([&image.config]) {
                content.insert(format!("/v2/{repository}/blobs/{}", Digest::of(blob)), blob.clone());
            }
        }
        let (content, decide): (_, Arc<Decide>) = (Arc::new(content), Arc::new(decide));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let log = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (content, decide, log) = (Arc::clone(&content), Arc::clone(&decide), Arc::clone(&log));
                let service = service_fn(move |request: Request<Incoming>| {
                    let (content, decide, log) = (Arc::clone(&content), Arc::clone(&decide), Arc::clone(&log));
                    async move { answer(request, &content, &*decide, &log).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { host, seen, task }
    }

    pub(crate) fn seen(&self, part: &str) -> Vec<Seen> {
        self.seen.lock().unwrap().iter().filter(|seen| seen.path.contains(part)).cloned().collect()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

async fn answer(
    request: Request<Incoming>,
    content: &HashMap<String, Vec<u8>>,
    decide: &Decide,
    log: &Mutex<Vec<Seen>>,
) -> Result<Response<Body>, std::io::Error> {
    let header = |name: &str| request.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (authorization, range) = (header("authorization"), header("range"));
    let (path, query) = (request.uri().path().to_owned(), request.uri().query().unwrap_or("").to_owned());
    let body = String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap();
    let seen = Seen { path, query, authorization, range, body };
    log.lock().unwrap().push(seen.clone());
    let whole = |bytes: Vec<u8>| Full::from(bytes).map_err(|never| match never {}).boxed_unsync();
    let cut = match decide(&seen) {
        Answer::Other(response) => return Ok(response.map(|body| body.map_err(|never| match never {}).boxed_unsync())),
        Answer::Content => None,
        Answer::CutAfter(bytes) => Some(bytes),
    };
    let Some(bytes) = content.get(&seen.path) else {
        return Ok(Response::builder().status(404).body(whole(Vec::new())).unwrap());
    };
    let start = seen.range.as_deref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let rest = bytes[start.unwrap_or(0)..].to_vec();
    let mut response = Response::builder().header("content-length", rest.len());
    if let Some(start) = start {
        let range = format!("bytes {start}-{}/{}", bytes.len() - 1, bytes.len());
        response = response.status(206).header("content-range", range);
    }
    let body = match cut {
        None => whole(rest),
        Some(cut) => {
            let part = Ok(Frame::data(Bytes::from(rest[..cut.min(rest.len())].to_vec())));
            // The pause lets what came before reach the client, which a reset could overtake.
            let parts = futures::stream::unfold(Some(part), |part| async {
                match part {
                    Some(part) => Some((part, None)),
                    None => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        Some((Err(std::io::Error::other("cut")), None))
                    }
                }
            });
            StreamBody::new(parts).boxed_unsync()
        }
    };
    Ok(response.body(body).unwrap())
}
