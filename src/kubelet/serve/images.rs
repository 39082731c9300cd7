//! The images of this node, for `edge image`: HTTP over a socket of the machine that only root can open.
//!
//! Long work (a pull, an import) is answered with one JSON object a line, the last of which says how it ended.

use super::{Answer, Body, Refusal, Server, connection, flag, json_answer, query, refuse, typed};
use crate::context::Context;
use crate::images::{Program, compile, named, sweep_compiled, used_images};
use edge_image::{Credentials, Image, ImageKind, Progress, PullOptions, Reference, error_chain};
use futures::StreamExt;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

/// Most bytes of credentials that come with a pull.
const MAX_CREDENTIALS: usize = 1 << 20;

/// An image of the node.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageInfo {
    /// Its id, `sha256:…`.
    pub id: String,
    /// `name:tag`s.
    pub repo_tags: Vec<String>,
    /// `name@digest`s.
    pub repo_digests: Vec<String>,
    /// What runs it.
    pub kind: ImageType,
    /// Bytes as they are transferred.
    pub size: u64,
    /// Never removed by itself.
    pub pinned: bool,
    /// A pod of this node names it.
    pub in_use: bool,
    /// Seconds since 1970.
    pub last_used: u64,
    /// Digest of the WebAssembly module, where it is known.
    pub module: Option<String>,
    /// `os/architecture` that the image names.
    pub platform: String,
    /// What it runs: entrypoint and arguments.
    pub command: Vec<String>,
    /// `NAME=value` pairs.
    pub env: Vec<String>,
    /// Working directory; empty means `/`.
    pub working_dir: String,
    /// `user:group`; empty means root.
    pub user: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// What runs an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageType {
    /// Native programs.
    Linux,
    /// A WebAssembly module in a root file system.
    WasmImage,
    /// A WebAssembly module as an artifact.
    WasmArtifact,
}

/// A line of the answer to a pull or an import.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ImageProgress {
    /// The manifest is known; the layers have that many bytes.
    Resolved {
        /// Digest of the manifest.
        digest: String,
        /// Bytes of all layers.
        total: u64,
    },
    /// Bytes of a blob have arrived.
    Received {
        /// Which blob.
        digest: String,
        /// So far.
        received: u64,
        /// Its size.
        total: u64,
    },
    /// A layer was unpacked.
    Unpacked {
        /// Its diff id.
        diff_id: String,
    },
    /// A WebAssembly module is being compiled.
    Compiling {
        /// Its image.
        image: String,
    },
    /// The end: these images are here.
    Done(Vec<ImageInfo>),
    /// The end: it failed.
    Failed(String),
}

/// What a removal of unused images removed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImagesRemoved {
    /// The images.
    pub images: Vec<ImageInfo>,
    /// Bytes freed on disk.
    pub bytes: u64,
}

/// Accepts connections at `path` until the agent ends.
pub(super) async fn listen(server: Server, path: &Path) -> io::Result<()> {
    // left by a crash; the data directory's lock says that nobody else is there
    edge_sys::fsutil::remove_file_if_exists(path)?;
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    let stop = server.cx.stop.clone();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "connection to the agent not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let (cx, stop) = (server.cx.clone(), stop.clone());
        tokio::spawn(connection(stop, stream, move |request| {
            let cx = cx.clone();
            async move {
                let path = request.uri().path().to_owned();
                route(&cx, request).await.unwrap_or_else(|refusal| refuse(&path, refusal))
            }
        }));
    }
    edge_sys::fsutil::remove_file_if_exists(path)
}

async fn route(cx: &Arc<Context>, request: Request<Incoming>) -> Answer {
    let query = query(&request);
    let name = || {
        let found = query.iter().find(|(name, _)| name == "name");
        found.map(|(_, value)| value.clone()).ok_or_else(|| Refusal::bad_request("the parameter name is missing"))
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/images") => Ok(json(&list(cx))),
        (&Method::GET, "/images/inspect") => {
            let name = name()?;
            let image = cx.images.get(&name).ok_or_else(|| not_here(&name))?;
            Ok(json(&info(&image, &used_images(cx))))
        }
        (&Method::POST, "/images/pull") => {
            let reference: Reference = name()?.parse().map_err(|e| Refusal::bad_request(format!("{e}")))?;
            let credentials = credentials(request.into_body()).await?;
            Ok(lines(|tell| pull(cx.clone(), reference, credentials, tell)))
        }
        (&Method::POST, "/images/import") => {
            let file = name()?;
            Ok(lines(|tell| import(cx.clone(), file, tell)))
        }
        (&Method::POST, "/images/remove") => Ok(json(&remove(cx, &name()?, flag(&query, "force")).await?)),
        (&Method::POST, "/images/prune") => Ok(json(&prune(cx, flag(&query, "all")).await?)),
        _ => Err(Refusal::not_found("404 page not found")),
    }
}

/// What is to be tried at the registry: a list, or nothing.
async fn credentials(body: Incoming) -> Result<Vec<Credentials>, Refusal> {
    let wrong = || Refusal::bad_request("these are no credentials");
    let bytes = Limited::new(body, MAX_CREDENTIALS).collect().await.map_err(|_| wrong())?.to_bytes();
    if bytes.is_empty() { Ok(Vec::new()) } else { serde_json::from_slice(&bytes).map_err(|_| wrong()) }
}

fn json(value: &impl Serialize) -> http::Response<Body> {
    json_answer(serde_json::to_value(value).unwrap_or_default())
}

fn not_here(name: &str) -> Refusal {
    Refusal::not_found(format!("image {name:?} is not on this node"))
}

fn list(cx: &Context) -> Vec<ImageInfo> {
    let used = used_images(cx);
    cx.images.list().iter().map(|image| info(image, &used)).collect()
}

fn info(image: &Image, used: &HashSet<edge_image::Digest>) -> ImageInfo {
    let (kind, module) = match &image.kind {
        ImageKind::Container => (ImageType::Linux, None),
        ImageKind::WasmRootfs { module } => (ImageType::WasmImage, *module),
        ImageKind::WasmModule { module } => (ImageType::WasmArtifact, Some(*module)),
    };
    let config = &image.config;
    ImageInfo {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        kind,
        size: image.size,
        pinned: image.pinned,
        in_use: used.contains(&image.id),
        last_used: image.last_used.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs(),
        module: module.map(|module| module.to_string()),
        platform: format!("{}/{}", config.os, config.architecture),
        command: config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
        env: config.env.clone(),
        working_dir: config.working_dir.clone(),
        user: config.user.clone(),
        labels: config.labels.clone(),
    }
}

type Tell = mpsc::UnboundedSender<ImageProgress>;

/// Answers with what `work` tells, a line each. When nobody reads any more, `work` is dropped.
fn lines<F: Future<Output = ()> + Send + 'static>(work: impl FnOnce(Tell) -> F) -> http::Response<Body> {
    let (tell, told) = mpsc::unbounded_channel();
    let gone = tell.clone();
    let work = work(tell);
    tokio::spawn(async move {
        tokio::select! {
            () = work => {}
            () = gone.closed() => {}
        }
    });
    let frames = UnboundedReceiverStream::new(told).map(|progress| {
        let mut line = serde_json::to_vec(&progress)?;
        line.push(b'\n');
        Ok::<_, io::Error>(Frame::data(line.into()))
    });
    typed("application/x-ndjson", StreamBody::new(frames).boxed_unsync())
}

/// A callback of the store that passes on what it says. (Who does not listen any more is not missed.)
fn relay(tell: &Tell) -> impl Fn(Progress) + Send + Sync + 'static {
    let tell = tell.clone();
    move |progress| {
        let _ = tell.send(match progress {
            Progress::Resolved { digest, total } => ImageProgress::Resolved { digest: digest.to_string(), total },
            Progress::Received { digest, received, total } => {
                ImageProgress::Received { digest: digest.to_string(), received, total }
            }
            Progress::Unpacked { diff_id } => ImageProgress::Unpacked { diff_id: diff_id.to_string() },
        });
    }
}

async fn pull(cx: Arc<Context>, reference: Reference, credentials: Vec<Credentials>, tell: Tell) {
    let options = PullOptions { credentials, progress: Some(Arc::new(relay(&tell))), ..PullOptions::default() };
    let pulled = cx.images.pull(&reference, options).await;
    finish(&cx, pulled.map(|image| vec![image]).map_err(|error| error_chain(&error)), &tell).await;
}

async fn import(cx: Arc<Context>, file: String, tell: Tell) {
    let imported = cx.images.import_archive(Path::new(&file), relay(&tell)).await;
    finish(&cx, imported.map_err(|error| error_chain(&error)), &tell).await;
}

/// Compiles what is to be compiled and says how it ended.
async fn finish(cx: &Arc<Context>, images: Result<Vec<Arc<Image>>, String>, tell: &Tell) {
    let end = match images {
        Ok(images) => {
            // pods may wait for these
            cx.imports.send_modify(|_| {});
            let used = used_images(cx);
            let mut end = ImageProgress::Done(images.iter().map(|image| info(image, &used)).collect());
            for image in images.iter().filter(|image| image.kind != ImageKind::Container) {
                let name = image.repo_tags.first().cloned().unwrap_or_else(|| image.id.to_string());
                let _ = tell.send(ImageProgress::Compiling { image: name.clone() });
                if let Err(error) = compile(cx, image, Program::default()).await {
                    end = ImageProgress::Failed(format!("{name} is here, but will not run: {error}"));
                }
            }
            end
        }
        Err(error) => ImageProgress::Failed(error),
    };
    let _ = tell.send(end);
}

async fn remove(cx: &Arc<Context>, name: &str, force: bool) -> Result<ImagesRemoved, Refusal> {
    let images: Vec<_> = named(cx, name).collect();
    if images.is_empty() {
        return Err(not_here(name));
    }
    let used = used_images(cx);
    if images.iter().any(|image| used.contains(&image.id)) && !force {
        let why = format!("image {name:?} is used by a pod of this node");
        return Err(Refusal(StatusCode::CONFLICT, why));
    }
    let before = disk_usage(cx);
    for image in &images {
        cx.images.remove(&image.id.to_string()).await.map_err(failed)?;
    }
    sweep_compiled(cx).await;
    let images = images.iter().map(|image| info(image, &used)).collect();
    Ok(ImagesRemoved { images, bytes: before.saturating_sub(disk_usage(cx)) })
}

/// Removes what no pod of this node uses, pinned images only if `all`.
async fn prune(cx: &Arc<Context>, all: bool) -> Result<ImagesRemoved, Refusal> {
    let (used, before) = (used_images(cx), disk_usage(cx));
    let mut removed = ImagesRemoved::default();
    for image in cx.images.list() {
        if used.contains(&image.id) || (image.pinned && !all) {
            continue;
        }
        if cx.images.remove(&image.id.to_string()).await.map_err(failed)? {
            removed.images.push(info(&image, &used));
        }
    }
    sweep_compiled(cx).await;
    removed.bytes = before.saturating_sub(disk_usage(cx));
    Ok(removed)
}

/// Bytes that images and machine code take.
fn disk_usage(cx: &Context) -> u64 {
    cx.images.usage().map_or(0, |usage| usage.used_bytes) + cx.compiler.disk_usage().unwrap_or(0)
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn failed(error: edge_image::Error) -> Refusal {
    Refusal(StatusCode::INTERNAL_SERVER_ERROR, error_chain(&error))
}
