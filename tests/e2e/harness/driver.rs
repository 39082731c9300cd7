//! A driver of devices: a gRPC server on two sockets, one at which it registers with the kubelet and one at which it is asked, with a file of
//! the Container Device Interface for each claim that it prepares. It does as a test tells it, also badly.

use super::sockets::Sockets;
use bytes::Bytes;
use edge_grpc::CallError;
use edge_grpc::server::{Call, Reply, unknown};
use edge_grpc::wire::{Fields, Message};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_stream::wrappers::WatchStream;

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
    sockets: Option<Sockets>,
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
        let mut driver = Self { shared: Arc::new(shared), folder: folder.to_owned(), sockets: None };
        driver.resume();
        driver
    }

    /// Comes back after [`Driver::stop`].
    pub(crate) fn resume(&mut self) {
        fs::create_dir_all(CDI).unwrap();
        let shared = self.shared.clone();
        let sockets = vec![self.shared.endpoint.clone(), self.registration()];
        self.sockets = Some(Sockets::serve(sockets, move |call| answer(call, shared.clone())));
    }

    /// Goes, with its sockets.
    pub(crate) fn stop(&mut self) {
        self.sockets = None;
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

async fn answer(call: Call, shared: Arc<Shared>) -> Result<Reply, CallError> {
    let message = match call.method.rsplit_once('/').unwrap_or_default() {
        ("/pluginregistration.Registration", "GetInfo") => {
            let endpoint = shared.endpoint.display().to_string();
            let about = text(1, "DRAPlugin").text(2, &shared.name).text(3, &endpoint);
            about.texts(4, ["v1.DRAPlugin", "v1alpha1.DRAResourceHealth"])
        }
        ("/pluginregistration.Registration", "NotifyRegistrationStatus") => {
            shared.calls.lock().push(format!("registered {}", call.message[..] == [8, 1]));
            Message::default()
        }
        ("/k8s.io.kubelet.pkg.apis.dra.v1.DRAPlugin", method) => {
            let method = if method == "NodePrepareResources" { "prepare" } else { "unprepare" };
            let claims = claims(call.message);
            shared.calls.lock().extend(claims.iter().map(|(name, _)| format!("{method} {name}")));
            let manner = *shared.manner.lock();
            match manner {
                Manner::Well | Manner::Fails => {
                    let entries = claims.iter().map(|(name, uid)| entry(&shared, method, name, uid, manner));
                    Message::default().messages(1, entries)
                }
                Manner::Garbage => Message::written(&[0xff; 20]),
                Manner::Hangs => std::future::pending().await,
                Manner::Forgets => Message::default(),
            }
        }
        ("/v1alpha1.DRAResourceHealth", "NodeWatchResources") => {
            let told = WatchStream::new(shared.health.subscribe()).map(|health| {
                let device = Message::default().message(1, &text(1, "pool").text(2, "gpu-0"));
                Message::default().message(1, &device.number(2, health.into()))
            });
            return Ok(Reply::Many(told.boxed()));
        }
        _ => return Err(unknown(&call.method)),
    };
    Ok(message.into())
}

fn text(field: u32, value: &str) -> Message {
    Message::default().text(field, value)
}

/// Names and UIDs of the claims of a question.
fn claims(question: Bytes) -> Vec<(String, String)> {
    let (mut fields, mut out) = (Fields::of(question), Vec::new());
    while let Some((_, claim)) = fields.next().unwrap() {
        let (mut fields, mut name, mut uid) = (claim.fields(), String::new(), String::new());
        while let Some((field, value)) = fields.next().unwrap() {
            match field {
                2 => uid = value.text().unwrap(),
                3 => name = value.text().unwrap(),
                _ => {}
            }
        }
        out.push((name, uid));
    }
    out
}

/// What is said of one claim, after doing it.
fn entry(shared: &Shared, method: &str, name: &str, uid: &str, manner: Manner) -> Message {
    let (driver, file) = (&shared.name, format!("{CDI}/{}-{uid}.json", shared.name));
    let id = format!("{driver}/gpu={uid}");
    let result = match (manner, method) {
        (Manner::Fails, "prepare") => text(2, "no such device, the test says"),
        (Manner::Fails, _) => text(1, "the device is stuck, the test says"),
        (_, "prepare") => {
            fs::write(&file, description(driver, name, uid).to_string()).unwrap();
            Message::default().message(1, &text(2, "pool").text(3, "gpu-0").text(4, &id))
        }
        _ => {
            let _ = fs::remove_file(&file);
            Message::default()
        }
    };
    text(1, uid).message(2, &result)
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
