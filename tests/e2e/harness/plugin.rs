//! A device plugin: it registers at the kubelet's socket, tells of devices and is asked for them. It does as a test tells it, also badly.

use super::eventually;
use bytes::Bytes;
use edge_grpc::server::{self, Call, Reply, unknown};
use edge_grpc::wire::{Fields, Message};
use edge_grpc::{CallError, Channel};
use futures::StreamExt;
use parking_lot::Mutex;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// How a plugin does its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Says that it cannot allocate.
    Fails,
    /// Answers with what is no message.
    Garbage,
    /// Never answers.
    Hangs,
    /// Says that the device cannot be used for a start.
    NotReady,
}

struct Shared {
    manner: Mutex<Manner>,
    /// `method devices` of each call.
    calls: Mutex<Vec<String>>,
    /// What it is called where it is found.
    resource: String,
    /// Devices, and whether they are healthy.
    devices: watch::Sender<Vec<(String, bool)>>,
}

/// A running plugin; dropping it ends it.
pub(crate) struct Plugin {
    shared: Arc<Shared>,
    /// Where its socket is, and the kubelet's if it registers.
    folder: PathBuf,
    /// The kubelet finds it.
    is_found: bool,
    runtime: Option<tokio::runtime::Runtime>,
}

fn text(field: u32, value: &str) -> Message {
    Message::default().text(field, value)
}

/// All texts of a field.
pub(crate) fn texts(message: Bytes, wanted: u32) -> Vec<String> {
    parts(message, wanted).into_iter().map(|part| String::from_utf8(part.to_vec()).unwrap()).collect()
}

/// All messages of a field.
pub(crate) fn parts(message: Bytes, wanted: u32) -> Vec<Bytes> {
    let (mut fields, mut out) = (Fields::of(message), Vec::new());
    while let Some((field, value)) = fields.next().unwrap() {
        if field == wanted {
            out.push(value.bytes());
        }
    }
    out
}

/// Asks at a socket, once.
pub(crate) fn ask(socket: &Path, method: &str, message: Message) -> Result<Bytes, CallError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { Channel::unix(socket).await?.call(method, message).await })
}

impl Plugin {
    /// Starts a plugin with devices of these names, and registers it.
    pub(crate) fn start(folder: &Path, resource: &str, devices: &[&str]) -> Self {
        Self::launch(folder, resource, devices, false)
    }

    /// Starts a plugin that waits to be found in a folder.
    pub(crate) fn start_to_be_found(folder: &Path, resource: &str, devices: &[&str]) -> Self {
        Self::launch(folder, resource, devices, true)
    }

    fn launch(folder: &Path, resource: &str, devices: &[&str], is_found: bool) -> Self {
        let devices = devices.iter().map(|name| ((*name).to_owned(), true)).collect();
        let shared = Shared {
            manner: Mutex::new(Manner::Well),
            calls: Mutex::default(),
            resource: resource.to_owned(),
            devices: watch::Sender::new(devices),
        };
        let mut plugin = Self { shared: Arc::new(shared), folder: folder.to_owned(), is_found, runtime: None };
        plugin.resume();
        plugin
    }

    fn endpoint(&self) -> String {
        format!("{}.sock", self.shared.resource.replace('/', "-"))
    }

    /// Comes back, after [`Plugin::stop`] or when the kubelet has started again.
    pub(crate) fn resume(&mut self) {
        self.stop();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        if !self.is_found {
            let kubelet = self.folder.join("kubelet.sock");
            eventually("the kubelet has its socket", || {
                std::os::unix::net::UnixStream::connect(&kubelet).map(drop).map_err(|error| error.to_string())
            });
        }
        let socket = self.folder.join(self.endpoint());
        let listener = runtime.block_on(server::listen(&socket)).unwrap();
        let shared = self.shared.clone();
        runtime.spawn(server::serve(listener, move |call| answer(call, shared.clone())));
        self.runtime = Some(runtime);
        if !self.is_found {
            self.register("v1beta1").unwrap();
        }
    }

    /// Registers.
    pub(crate) fn register(&self, version: &str) -> Result<(), CallError> {
        let message = text(1, version).text(2, &self.endpoint()).text(3, &self.shared.resource);
        ask(&self.folder.join("kubelet.sock"), "/v1beta1.Registration/Register", message).map(drop)
    }

    /// Goes, with its socket.
    pub(crate) fn stop(&mut self) {
        let _ = fs::remove_file(self.folder.join(self.endpoint()));
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    pub(crate) fn does(&self, manner: Manner) {
        *self.shared.manner.lock() = manner;
    }

    /// The calls since this was asked last.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.calls.lock())
    }

    /// Waits until it is asked for something.
    pub(crate) fn asked(&self, what: &str) {
        eventually(&format!("the plugin is asked: {what}"), || {
            let calls = self.shared.calls.lock();
            if calls.iter().any(|call| call == what) { Ok(()) } else { Err(format!("{calls:?}")) }
        });
    }

    /// Tells of a device's health.
    pub(crate) fn tell(&self, device: &str, is_healthy: bool) {
        self.shared.devices.send_modify(|all| {
            all.iter_mut().filter(|(name, _)| name == device).for_each(|(_, healthy)| *healthy = is_healthy);
        });
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answer(call: Call, shared: Arc<Shared>) -> Result<Reply, CallError> {
    let manner = *shared.manner.lock();
    let note = |what: &str, devices: &[String]| shared.calls.lock().push(format!("{what} {}", devices.join(" ")));
    let message = match call.method.rsplit_once('/').unwrap_or_default() {
        ("/pluginregistration.Registration", "GetInfo") => {
            text(1, "DevicePlugin").text(2, &shared.resource).text(4, "v1alpha9").text(4, "v1beta1")
        }
        ("/pluginregistration.Registration", "NotifyRegistrationStatus") => {
            note("registered", &[(call.message[..] == [8, 1]).to_string()]);
            Message::default()
        }
        ("/v1beta1.DevicePlugin", "GetDevicePluginOptions") => Message::default().flag(1, true).flag(2, true),
        ("/v1beta1.DevicePlugin", "ListAndWatch") => {
            let lists = WatchStream::new(shared.devices.subscribe()).map(|all| {
                let device = |(name, is_healthy): (String, bool)| {
                    text(1, &name).text(2, if is_healthy { "Healthy" } else { "Unhealthy" })
                };
                Message::default().messages(1, all.into_iter().map(device))
            });
            return Ok(Reply::Many(lists.boxed()));
        }
        // the last ones first
        ("/v1beta1.DevicePlugin", "GetPreferredAllocation") => {
            let mut available = texts(parts(call.message, 1).remove(0), 1);
            available.sort();
            let preferred = Message::default().texts(1, available.iter().rev().map(String::as_str));
            Message::default().message(1, &preferred)
        }
        ("/v1beta1.DevicePlugin", "Allocate") => {
            let devices = texts(parts(call.message, 1).remove(0), 1);
            note("allocate", &devices);
            match manner {
                Manner::Fails => return Err(CallError::new(9, "no such luck, the test says")),
                Manner::Garbage => Message::written(&[0xff; 20]),
                Manner::Hangs => std::future::pending().await,
                Manner::Well | Manner::NotReady => Message::default().message(1, &given(&devices)),
            }
        }
        ("/v1beta1.DevicePlugin", "PreStartContainer") => {
            note("start", &texts(call.message, 1));
            if manner == Manner::NotReady {
                return Err(CallError::new(9, "it is not ready, the test says"));
            }
            Message::default()
        }
        _ => return Err(unknown(&call.method)),
    };
    Ok(message.into())
}

/// What a container has with some devices.
fn given(devices: &[String]) -> Message {
    let entry = |key: &str, value: &str| text(1, key).text(2, value);
    Message::default()
        .message(1, &entry("GPUS", &devices.join("+")))
        .message(2, &text(1, "/gpu/info").text(2, "/etc/passwd").flag(3, true))
        .message(3, &text(1, "/dev/test-gpu").text(2, "/dev/null").text(3, "rw"))
        .message(4, &entry("test.io/gpus", &devices.join("+")))
}
