//! A driver of devices: a gRPC server on two sockets, one at which it registers with the kubelet and one at which it is asked, with a file of
//! the Container Device Interface for each claim that it prepares. It does as a test tells it, also badly.

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::UnixListener;

/// How a driver does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Says that it cannot.
    Fails,
    /// Answers with what is no message.
    Garbage,
    /// Never answers.
    Hangs,
    /// Leaves claims out.
    Forgets,
}

struct Shared {
    name: String,
    endpoint: PathBuf,
    manner: Mutex<Manner>,
    /// `method claim` of each call.
    calls: Mutex<Vec<String>>,
    /// What is told to who follows health: 1 is healthy, 2 is not.
    health: tokio::sync::watch::Sender<u8>,
}

/// A running driver; dropping it ends it.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    folder: PathBuf,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Where drivers describe devices.
const CDI: &str = "/var/run/cdi";

impl Driver {
    /// Starts a driver that registers in a folder of plugins, under a name that no other test has.
    pub(crate) fn start(folder: &Path, name: &str) -> Self {
        let endpoint = folder.with_file_name(format!("{name}.sock"));
        let shared = Shared {
            name: name.to_owned(),
            endpoint,
            manner: Mutex::new(Manner::Well),
            calls: Mutex::default(),
            health: tokio::sync::watch::Sender::new(1),
        };
        let mut driver = Self { shared: Arc::new(shared), folder: folder.to_owned(), runtime: None };
        driver.resume();
        driver
    }

    /// Comes back after [`Driver::stop`].
    pub(crate) fn resume(&mut self) {
        fs::create_dir_all(CDI).unwrap();
        fs::create_dir_all(&self.folder).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        for socket in [self.shared.endpoint.clone(), self.registration()] {
            // what was there before is another one's
            let _ = fs::remove_file(&socket);
            let listener = runtime.block_on(async { UnixListener::bind(&socket) }).unwrap();
            runtime.spawn(serve(listener, self.shared.clone()));
        }
        self.runtime = Some(runtime);
    }

    /// Goes, with its sockets.
    pub(crate) fn stop(&mut self) {
        for socket in [self.registration(), self.shared.endpoint.clone()] {
            let _ = fs::remove_file(socket);
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    fn registration(&self) -> PathBuf {
        self.folder.join(format!("{}-reg.sock", self.shared.name))
    }

    pub(crate) fn does(&self, manner: Manner) {
        *self.shared.manner.lock() = manner;
    }

    /// The calls so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().clone()
    }

    pub(crate) fn tell_health(&self, health: u8) {
        self.shared.health.send_replace(health);
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        self.stop();
        for entry in fs::read_dir(CDI).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&self.shared.name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }
}

async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = shared.clone();
        let service = service_fn(move |request: Request<Incoming>| answer(request, shared.clone()));
        let http2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
        tokio::spawn(http2.serve_connection(TokioIo::new(stream), service));
    }
}

type Frames = std::pin::Pin<Box<dyn futures::Stream<Item = Result<Frame<Bytes>, Infallible>> + Send>>;

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<StreamBody<Frames>>, Infallible> {
    let path = request.uri().path().to_owned();
    let body = request.into_body().collect().await.map(|b| b.to_bytes()).unwrap_or_default();
    let question = body.get(5..).unwrap_or_default();
    let message = match path.rsplit_once('/').unwrap_or_default() {
        ("/pluginregistration.Registration", "GetInfo") => {
            let endpoint = shared.endpoint.display().to_string();
            let versions = ["v1.DRAPlugin", "v1alpha1.DRAResourceHealth"].map(|v| text(4, v)).concat();
            [text(1, "DRAPlugin"), text(2, &shared.name), text(3, &endpoint), versions].concat()
        }
        ("/pluginregistration.Registration", "NotifyRegistrationStatus") => {
            shared.calls.lock().push(format!("registered {}", question == [8, 1]));
            Vec::new()
        }
        ("/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin", method) => {
            let method = if method == "NodePrepareResources" { "prepare" } else { "unprepare" };
            let claims = claims(question);
            shared.calls.lock().extend(claims.iter().map(|(name, _)| format!("{method} {name}")));
            let manner = *shared.manner.lock();
            match manner {
                Manner::Well | Manner::Fails => claims
                    .iter()
                    .map(|(name, uid)| entry(&shared, method, name, uid, manner))
                    .collect::<Vec<_>>()
                    .concat(),
                Manner::Garbage => vec![0xff; 20],
                Manner::Hangs => std::future::pending().await,
                Manner::Forgets => Vec::new(),
            }
        }
        ("/v1alpha1.DRAResourceHealth", "NodeWatchResources") => {
            let told = shared.health.subscribe();
            let frames = futures::stream::unfold((told, true), |(mut told, first)| async move {
                if !first {
                    told.changed().await.ok()?;
                }
                let health = *told.borrow_and_update();
                let device = [inner(1, &[text(1, "pool"), text(2, "gpu-0")].concat()), vec![0x10, health]].concat();
                Some((Ok(frame(&inner(1, &device))), (told, false)))
            });
            return Ok(Response::new(StreamBody::new(Box::pin(frames))));
        }
        _ => return Ok(ended(None, "12")),
    };
    Ok(ended(Some(message), "0"))
}

fn ended(message: Option<Vec<u8>>, code: &str) -> Response<StreamBody<Frames>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", code.parse().unwrap());
    let frames = message.map(|m| frame(&m)).into_iter().chain([Frame::trailers(trailers)]).map(Ok);
    Response::new(StreamBody::new(Box::pin(futures::stream::iter(frames.collect::<Vec<_>>()))))
}

fn frame(message: &[u8]) -> Frame<Bytes> {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    Frame::data([&[0][..], &length, message].concat().into())
}

fn varint(mut n: usize) -> Vec<u8> {
    let mut out = Vec::new();
    while n >= 0x80 {
        out.push((n & 0x7f) as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
    out
}

fn inner(field: u8, message: &[u8]) -> Vec<u8> {
    [vec![field << 3 | 2], varint(message.len()), message.to_vec()].concat()
}

fn text(field: u8, value: &str) -> Vec<u8> {
    inner(field, value.as_bytes())
}

/// Names and UIDs of the claims of a question, whose texts are short.
fn claims(mut question: &[u8]) -> Vec<(String, String)> {
    let mut out = Vec::new();
    while let [0x0a, length, rest @ ..] = question {
        let (mut claim, rest) = rest.split_at(usize::from(*length));
        question = rest;
        let (mut name, mut uid) = (String::new(), String::new());
        while let [tag, length, rest @ ..] = claim {
            let (value, rest) = rest.split_at(usize::from(*length));
            claim = rest;
            let value = String::from_utf8(value.to_vec()).unwrap();
            match tag >> 3 {
                2 => uid = value,
                3 => name = value,
                _ => {}
            }
        }
        out.push((name, uid));
    }
    out
}

/// What is said of one claim, after doing it.
fn entry(shared: &Shared, method: &str, name: &str, uid: &str, manner: Manner) -> Vec<u8> {
    let (driver, file) = (&shared.name, format!("{CDI}/{}-{uid}.json", shared.name));
    let id = format!("{driver}/gpu={uid}");
    let result = match (manner, method) {
        (Manner::Fails, "prepare") => text(2, "no such device, the test says"),
        (Manner::Fails, _) => text(1, "the device is stuck, the test says"),
        (_, "prepare") => {
            fs::write(&file, description(driver, name, uid).to_string()).unwrap();
            inner(1, &[text(2, "pool"), text(3, "gpu-0"), text(4, &id)].concat())
        }
        _ => {
            let _ = fs::remove_file(&file);
            Vec::new()
        }
    };
    inner(1, &[text(1, uid), inner(2, &result)].concat())
}

fn description(driver: &str, name: &str, uid: &str) -> Value {
    let edits = json!({
        "env": [format!("GPU_OF={name}")],
        "deviceNodes": [{"path": "/dev/test-gpu", "hostPath": "/dev/null", "permissions": "rw"}],
        "mounts": [{"hostPath": "/etc/passwd", "containerPath": "/gpu/info", "options": ["ro", "nosuid", "bind"]}],
        "hooks": [{"hookName": "createRuntime", "path": "/bin/sh",
            "args": ["sh", "-c", format!("cat >/dev/null; echo done > {CDI}/{driver}-{uid}.hook")]}],
    });
    json!({"cdiVersion": "0.6.0", "kind": format!("{driver}/gpu"), "containerEdits": {"env": ["GPU_DRIVER=test"]},
        "devices": [{"name": uid, "containerEdits": edits}]})
}

/// Whether the hook of a claim's device has been run.
pub(crate) fn hook_has_run(driver: &str, uid: &str) -> bool {
    fs::read_to_string(format!("{CDI}/{driver}-{uid}.hook")).is_ok_and(|text| text.contains("done"))
}
