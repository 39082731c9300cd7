//! A driver of volumes: what it stages and publishes are bind mounts of directories of its own, or a loop device. It does as a test tells it,
//! also badly.

use super::sockets::Sockets;
use bytes::Bytes;
use edge_grpc::CallError;
use edge_grpc::server::{self, Reply, unknown};
use edge_grpc::wire::{Fields, Message};
use futures::StreamExt;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// How a driver answers a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    Well,
    /// Does it, and says that it could not.
    Fails,
    /// Says that it will never be possible.
    Refuses,
    /// Ends the call without an answer.
    Mute,
    /// Never answers.
    Hangs,
}

/// What was asked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) handle: String,
    /// Texts by their field's number.
    pub(crate) texts: HashMap<u32, String>,
    /// Maps by their field's number.
    pub(crate) maps: HashMap<u32, BTreeMap<String, String>>,
    /// Numbers by their field's number; flags, too.
    pub(crate) numbers: HashMap<u32, u64>,
    /// CSI's number of the access mode.
    pub(crate) access_mode: u64,
    pub(crate) mount_flags: Vec<String>,
    pub(crate) group: String,
    pub(crate) is_block: bool,
    /// The bytes that a volume is to have.
    pub(crate) size: u64,
}

struct Shared {
    name: String,
    endpoint: PathBuf,
    store: PathBuf,
    capabilities: Mutex<Vec<u64>>,
    max_volumes: Mutex<u64>,
    manners: Mutex<HashMap<String, Manner>>,
    calls: Mutex<Vec<Call>>,
    /// Loop devices by the handles of their volumes.
    loops: Mutex<HashMap<String, String>>,
}

/// A running driver; dropping it ends it.
pub(crate) struct CsiDriver {
    shared: Arc<Shared>,
    registration: PathBuf,
    sockets: Option<Sockets>,
}

/// Capabilities of drivers by CSI's numbers.
pub(crate) const STAGES: u64 = 1;
pub(crate) const STATS: u64 = 2;
pub(crate) const EXPANDS: u64 = 3;
pub(crate) const HEALTH: u64 = 4;
pub(crate) const SINGLE_WRITERS: u64 = 5;
pub(crate) const MOUNT_GROUP: u64 = 6;

impl CsiDriver {
    /// Starts a driver of the node whose kubelet has a directory, with a place for its volumes.
    pub(crate) fn start(kubelet_dir: &Path, store: &Path, name: &str) -> Self {
        let shared = Shared {
            name: name.to_owned(),
            endpoint: kubelet_dir.join("plugins").join(name).join("csi.sock"),
            store: store.to_owned(),
            capabilities: Mutex::new(vec![STAGES, EXPANDS, SINGLE_WRITERS]),
            max_volumes: Mutex::new(7),
            manners: Mutex::default(),
            calls: Mutex::default(),
            loops: Mutex::default(),
        };
        let registration = kubelet_dir.join("plugins_registry").join(format!("{name}-reg.sock"));
        let mut driver = Self { shared: Arc::new(shared), registration, sockets: None };
        driver.resume();
        driver
    }

    /// Comes back after [`CsiDriver::stop`].
    pub(crate) fn resume(&mut self) {
        let sockets = vec![self.shared.endpoint.clone(), self.registration.clone()];
        let shared = self.shared.clone();
        self.sockets = Some(Sockets::serve(sockets, move |call| answer(call, shared.clone())));
    }

    /// Goes, with its sockets.
    pub(crate) fn stop(&mut self) {
        self.sockets = None;
    }

    /// How it answers a method from now on.
    pub(crate) fn does(&self, method: &str, manner: Manner) {
        self.shared.manners.lock().insert(method.to_owned(), manner);
    }

    pub(crate) fn can(&self, capabilities: &[u64]) {
        *self.shared.capabilities.lock() = capabilities.to_vec();
    }

    /// `method handle` of each call that was about a volume.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.shared.calls.lock().iter().map(|call| format!("{} {}", call.method, call.handle)).collect()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.calls().iter().filter(|known| *known == call).count()
    }

    /// The last call of a method about a volume.
    pub(crate) fn last(&self, method: &str, handle: &str) -> Call {
        let calls = self.shared.calls.lock();
        let found = calls.iter().rev().find(|call| call.method == method && call.handle == handle);
        found.unwrap_or_else(|| panic!("{method} {handle}")).clone()
    }

    /// The last call of a method about any volume.
    pub(crate) fn last_of(&self, method: &str) -> Option<Call> {
        self.shared.calls.lock().iter().rev().find(|call| call.method == method).cloned()
    }
}

impl Drop for CsiDriver {
    fn drop(&mut self) {
        self.stop();
        for device in self.shared.loops.lock().values() {
            let _ = Command::new("losetup").args(["-d", device]).output();
        }
    }
}

/// The fields of a message: numbers, and bytes.
fn fields(message: &[u8]) -> Vec<(u32, u64, Vec<u8>)> {
    let (mut fields, mut out) = (Fields::of(Bytes::copy_from_slice(message)), Vec::new());
    while let Some((field, value)) = fields.next().unwrap() {
        out.push((field, value.number(), value.bytes().to_vec()));
    }
    out
}

fn text(field: u32, value: &str) -> Message {
    Message::default().text(field, value)
}

fn failed(code: usize, words: &str) -> CallError {
    CallError { code, words: words.to_owned() }
}

fn entry(message: &[u8]) -> (String, String) {
    let mut out = (String::new(), String::new());
    for (field, _, bytes) in fields(message) {
        let text = String::from_utf8(bytes).unwrap();
        if field == 1 { out.0 = text } else { out.1 = text }
    }
    out
}

fn read(method: &str, question: &[u8]) -> Call {
    let mut call = Call { method: method.to_owned(), ..Call::default() };
    let (maps, capability): (&[u32], u32) = match method {
        "NodeStageVolume" => (&[2, 5, 6], 4),
        "NodePublishVolume" => (&[2, 7, 8], 5),
        "NodeExpandVolume" => (&[6], 5),
        _ => (&[], 99),
    };
    for (field, value, bytes) in fields(question) {
        if maps.contains(&field) {
            let (key, value) = entry(&bytes);
            call.maps.entry(field).or_default().insert(key, value);
        } else if field == capability {
            for (field, _, bytes) in fields(&bytes) {
                let inner = fields(&bytes);
                match field {
                    1 => call.is_block = true,
                    2 => {
                        for (field, _, bytes) in inner {
                            let text = String::from_utf8(bytes).unwrap();
                            match field {
                                2 => call.mount_flags.push(text),
                                3 => call.group = text,
                                _ => {}
                            }
                        }
                    }
                    _ => call.access_mode = inner.first().map_or(0, |(_, mode, _)| *mode),
                }
            }
        } else if method == "NodeExpandVolume" && field == 3 {
            call.size = fields(&bytes).first().map_or(0, |(_, size, _)| *size);
        } else if bytes.is_empty() {
            call.numbers.insert(field, value);
        } else {
            call.texts.insert(field, String::from_utf8(bytes).unwrap());
        }
    }
    call.handle = call.texts.get(&1).cloned().unwrap_or_default();
    call
}

async fn answer(asked: server::Call, shared: Arc<Shared>) -> Result<Reply, CallError> {
    let (question, (service, method)) = (asked.message, asked.method.rsplit_once('/').unwrap_or_default());
    let message = match (service, method) {
        ("/pluginregistration.Registration", "GetInfo") => {
            let endpoint = shared.endpoint.display().to_string();
            text(1, "CSIPlugin").text(2, &shared.name).text(3, &endpoint).text(4, "1.0.0")
        }
        ("/pluginregistration.Registration", "NotifyRegistrationStatus") => {
            let handle = (question[..] == [8, 1]).to_string();
            shared.calls.lock().push(Call { method: "registered".to_owned(), handle, ..Call::default() });
            Message::default()
        }
        ("/csi.v1.Node", "NodeGetInfo") => {
            let zone = Message::default().message(1, &text(1, "topology.test/zone").text(2, "here"));
            text(1, "the-node").number(2, *shared.max_volumes.lock()).message(3, &zone)
        }
        ("/csi.v1.Node", "NodeGetCapabilities") => {
            let rpc = |n: &u64| Message::default().message(1, &Message::default().number(1, *n));
            Message::default().messages(1, shared.capabilities.lock().iter().map(rpc))
        }
        ("/csi.v1.Node", method) => {
            let call = read(method, &question);
            shared.calls.lock().push(call.clone());
            let manner = shared.manners.lock().get(method).copied().unwrap_or(Manner::Well);
            match manner {
                Manner::Hangs => std::future::pending().await,
                Manner::Refuses => return Err(failed(11, "it is too much, the test says")),
                Manner::Well | Manner::Fails | Manner::Mute => {}
            }
            if let Err(error) = act(&shared, &call) {
                return Err(failed(13, &format!("{method}: {error}")));
            }
            match manner {
                Manner::Fails => return Err(failed(13, "the disk is stuck, the test says")),
                Manner::Mute => return Ok(Reply::Many(futures::stream::empty().boxed())),
                _ if method == "NodeGetVolumeStats" => how_full(),
                _ => Message::default(),
            }
        }
        _ => return Err(unknown(&asked.method)),
    };
    Ok(message.into())
}

/// 70 of 100 bytes and 7 of 10 inodes are free, and something is wrong.
fn how_full() -> Message {
    let usage = |available, total, used, unit| {
        Message::default().number(1, available).number(2, total).number(3, used).number(4, unit)
    };
    let condition = Message::default().flag(1, true).text(2, "it smells, the test says");
    Message::default().message(1, &usage(70, 100, 30, 1)).message(1, &usage(7, 10, 3, 2)).message(2, &condition)
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4).is_some_and(|at| Path::new(at) == path))
}

fn bind(from: &Path, to: &Path) -> std::io::Result<()> {
    if is_mounted(to) {
        return Ok(());
    }
    Ok(mount(Some(from), to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?)
}

/// What a driver does, again and again without harm.
fn act(shared: &Shared, call: &Call) -> std::io::Result<()> {
    let backing = shared.store.join(&call.handle);
    let place = |field: u32| call.texts.get(&field).map(PathBuf::from);
    match call.method.as_str() {
        "NodeStageVolume" if !call.is_block => {
            let staging = place(3).unwrap();
            fs::create_dir_all(&backing)?;
            bind(&backing, &staging)
        }
        "NodePublishVolume" if call.is_block => {
            let target = place(4).unwrap();
            fs::write(&target, "")?;
            bind(Path::new(&device(shared, &call.handle)), &target)
        }
        "NodePublishVolume" => {
            let target = place(4).unwrap();
            fs::create_dir_all(&target)?;
            match place(3) {
                Some(staging) if is_mounted(&staging) => bind(&staging, &target),
                Some(staging) => Err(std::io::Error::other(format!("{} is not staged", staging.display()))),
                None => {
                    fs::create_dir_all(&backing)?;
                    bind(&backing, &target)
                }
            }
        }
        "NodeUnpublishVolume" | "NodeUnstageVolume" => {
            let place = place(2).unwrap();
            while is_mounted(&place) {
                umount2(&place, MntFlags::empty())?;
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// The loop device of a volume.
fn device(shared: &Shared, handle: &str) -> String {
    let mut loops = shared.loops.lock();
    let made = loops.entry(handle.to_owned()).or_insert_with(|| {
        let file = shared.store.join(format!("{handle}.img"));
        fs::create_dir_all(&shared.store).unwrap();
        fs::File::create(&file).unwrap().set_len(1 << 20).unwrap();
        let out = Command::new("losetup").args(["--show", "-f"]).arg(&file).output().unwrap();
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    });
    made.clone()
}

/// The mounts below a directory that are a driver's.
pub(crate) fn mounts_below(dir: &Path) -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let all = table.lines().filter_map(|line| line.split(' ').nth(4)).filter(|at| Path::new(at).starts_with(dir));
    all.filter(|at| at.contains("/csi/") || at.contains("kubernetes.io~csi")).map(str::to_owned).collect()
}
