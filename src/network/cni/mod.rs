//! Another network plugin, by the Container Network Interface, version 1.1 and before: with `--network=none`, pods are
//! connected by the plugins of the first configuration in `/etc/cni/net.d`, executed from `/opt/cni/bin`.
//!
//! Comes in: pods; the configuration's directory. Goes out: calls of plugins, addresses of pods. What a pod was connected
//! with is kept in `<run>/cni/<uid>`, written before the first plugin runs, so that a pod is disconnected by what connected it,
//! whatever the configuration is by then.

mod config;
mod exec;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use edge_sys::netns;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::ipam::{HostPort, Lease, validate_uid};
use crate::netlink::Socket;
use crate::{Error, Readiness, link, pod};
use config::Config;
use exec::Call;

pub use watch::CniWatch;

/// Where network configurations and plugins are, as everywhere.
const CONFIG_DIR: &str = "/etc/cni/net.d";
/// Where plugins are.
const PLUGIN_DIR: &str = "/opt/cni/bin";
const LOOPBACK_INDEX: u32 = 1;

/// Where another network plugin is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniPaths {
    /// The directory of network configurations.
    pub config_dir: PathBuf,
    /// The directories of plugins.
    pub plugin_dirs: Vec<PathBuf>,
}

impl Default for CniPaths {
    fn default() -> Self {
        Self { config_dir: CONFIG_DIR.into(), plugin_dirs: vec![PLUGIN_DIR.into()] }
    }
}

/// Who a pod is, as plugins are told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodIdentity {
    /// Its UID.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What can go wrong with another network plugin.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// There is no network configuration.
    #[error("no network configuration in {}", .0.display())]
    NoConfig(PathBuf),
    /// A plugin's program is in none of the directories.
    #[error("network plugin {kind} is in none of {directories:?}")]
    NoPlugin {
        /// Its type.
        kind: String,
        /// Where it was looked for.
        directories: Vec<PathBuf>,
    },
    /// A plugin could not be run.
    #[error("network plugin {}", program.display())]
    Run {
        /// Its program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A plugin's answer is no JSON.
    #[error("answer of network plugin {}", program.display())]
    Answer {
        /// Its program.
        program: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A plugin refused.
    #[error("network plugin {kind} failed ({command}, code {code}): {message}")]
    Refused {
        /// Its type.
        kind: String,
        /// What it was told to do.
        command: &'static str,
        /// Its number for the reason; 0 where it gave none.
        code: u32,
        /// Its words.
        message: String,
    },
    /// Plugins gave a pod no address.
    #[error("the network plugins of {0:?} gave the pod no address")]
    NoAddress(String),
    /// A file could not be read or written.
    #[error("{}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A pod's connection, as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Attachment {
    pod: PodIdentity,
    /// The configuration with which it was connected.
    config: Value,
    #[serde(default)]
    host_ports: Vec<HostPort>,
    /// What the last plugin answered; nothing while plugins run, or when one failed.
    #[serde(default)]
    result: Option<Value>,
}

impl Attachment {
    fn args(&self) -> String {
        let PodIdentity { uid, namespace, name } = &self.pod;
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={uid};\
             K8S_POD_UID={uid}"
        )
    }
}

/// The pods' connections by another network plugin.
#[derive(Debug)]
pub(crate) struct Cni {
    paths: CniPaths,
    dir: PathBuf,
    config: Mutex<Option<Config>>,
    attachments: Mutex<BTreeMap<String, Attachment>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The addresses that a pod has by the plugins' result: those of interfaces in its sandbox.
fn addresses(result: &Value) -> Vec<IpAddr> {
    let interfaces = result.get("interfaces").and_then(Value::as_array);
    let in_sandbox = |ip: &&Value| {
        let index = ip.get("interface").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let named = index.zip(interfaces).and_then(|(index, list)| list.get(index));
        named.is_none_or(|interface| interface.get("sandbox").and_then(Value::as_str).is_some_and(|s| !s.is_empty()))
    };
    let all = result.get("ips").and_then(Value::as_array).into_iter().flatten().filter(in_sandbox);
    let address = |ip: &Value| ip.get("address")?.as_str()?.split('/').next()?.parse::<IpAddr>().ok();
    let mut kept: Vec<IpAddr> = Vec::new();
    for ip in all.filter_map(address) {
        // a pod has one address of a family
        if !kept.iter().any(|known| known.is_ipv4() == ip.is_ipv4()) {
            kept.push(ip);
        }
    }
    kept
}

impl Cni {
    /// Reads what is kept in `<run>/cni`.
    pub(crate) fn open(run_dir: &Path, paths: CniPaths) -> Result<Self, Error> {
        let dir = run_dir.join("cni");
        edge_sys::fsutil::create_dir_all_mode(&dir, 0o700).map_err(|source| Error::file(&dir, source))?;
        let mut attachments = BTreeMap::new();
        for entry in fs::read_dir(&dir).map_err(|source| Error::file(&dir, source))?.flatten() {
            let Some(uid) = entry.file_name().to_str().map(str::to_owned) else { continue };
            let read = fs::read(entry.path()).ok().and_then(|bytes| serde_json::from_slice::<Attachment>(&bytes).ok());
            match read.filter(|_| validate_uid(&uid).is_ok()) {
                Some(attachment) => {
                    attachments.insert(uid, attachment);
                }
                // what is damaged says nothing; its namespace, if there is one, is removed with the leftovers
                None => {
                    let _ = fs::remove_file(entry.path());
                }
            }
        }
        Ok(Self { paths, dir, config: Mutex::new(None), attachments: Mutex::new(attachments) })
    }

    /// Looks for the configuration again, and asks its plugins whether they are ready.
    pub(crate) fn reload(&self) -> Readiness {
        let found = match config::find(&self.paths.config_dir) {
            Ok(found) => found,
            Err(error) => return Readiness::NotReady(error.to_string()),
        };
        *lock(&self.config) = found.clone();
        let Some(config) = found else {
            return Readiness::NotReady(CniError::NoConfig(self.paths.config_dir.clone()).to_string());
        };
        match self.status(&config) {
            Ok(()) => Readiness::Ready,
            Err(error) => Readiness::NotReady(error.to_string()),
        }
    }

    /// Whether there is a configuration whose plugins may become ready by themselves.
    pub(crate) fn is_configured(&self) -> bool {
        lock(&self.config).is_some()
    }

    fn status(&self, config: &Config) -> Result<(), CniError> {
        if !config.speaks("1.1.0") {
            return Ok(());
        }
        let call = Call { command: "STATUS", directories: &self.paths.plugin_dirs, attachment: None };
        config.plugins.iter().try_for_each(|plugin| call.run(kind(plugin), &config.input(plugin, &[], None)).map(drop))
    }

    /// Connects a pod, in the namespace pinned at `netns`; one that is connected keeps what it has.
    pub(crate) fn attach(&self, pod: &PodIdentity, ports: &[HostPort], netns: &Path) -> Result<Vec<IpAddr>, Error> {
        validate_uid(&pod.uid)?;
        let known = lock(&self.attachments).get(&pod.uid).cloned();
        let exists = netns::run_in(netns, || ()).is_ok();
        if let Some(known) = known {
            match &known.result {
                Some(result) if exists && self.check(&known, netns) => return Ok(addresses(result)),
                // an attempt that did not end, or a namespace that is gone: plugins forget it before they are asked again
                _ => self.detach(&pod.uid, netns)?,
            }
        }
        let config = lock(&self.config).clone();
        let config = config.ok_or_else(|| CniError::NoConfig(self.paths.config_dir.clone()))?;
        pod::enter_or_create(netns)?;
        let up = || link::set_up(&mut Socket::route()?, LOOPBACK_INDEX);
        netns::run_in(netns, up).map_err(|source| Error::file(netns, source))??;
        let mut attachment =
            Attachment { pod: pod.clone(), config: config.source.clone(), host_ports: ports.to_vec(), result: None };
        self.keep(&attachment)?;
        let args = attachment.args();
        let mut previous: Option<Value> = None;
        for plugin in &config.plugins {
            let input = config.input(plugin, ports, previous.as_ref());
            previous = Some(self.call("ADD", &attachment, netns, &args).run(kind(plugin), &input)?);
        }
        let result = previous.unwrap_or_default();
        let given = addresses(&result);
        attachment.result = Some(result);
        self.keep(&attachment)?;
        if given.is_empty() {
            return Err(CniError::NoAddress(config.name).into());
        }
        Ok(given)
    }

    fn call<'a>(
        &'a self,
        command: &'static str,
        attachment: &'a Attachment,
        netns: &'a Path,
        args: &'a str,
    ) -> Call<'a> {
        Call { command, directories: &self.paths.plugin_dirs, attachment: Some((&attachment.pod.uid, netns, args)) }
    }

    /// Whether a connection is what its plugins made it.
    fn check(&self, attachment: &Attachment, netns: &Path) -> bool {
        let Ok(config) = Config::parse(attachment.config.clone()) else { return true };
        if config.disable_check || !config.speaks("0.4.0") {
            return true;
        }
        let args = attachment.args();
        let check = |plugin| {
            let input = config.input(plugin, &attachment.host_ports, attachment.result.as_ref());
            self.call("CHECK", attachment, netns, &args).run(kind(plugin), &input)
        };
        match config.plugins.iter().try_for_each(|plugin| check(plugin).map(drop)) {
            Ok(()) => true,
            Err(error) => {
                let pod = &attachment.pod.uid;
                tracing::warn!(
                    pod,
                    error = &error as &dyn std::error::Error,
                    "the pod's network is not as it was made"
                );
                false
            }
        }
    }

    /// Disconnects a pod and removes its namespace; one that is not connected is fine.
    pub(crate) fn detach(&self, uid: &str, netns: &Path) -> Result<(), Error> {
        validate_uid(uid)?;
        let known = lock(&self.attachments).get(uid).cloned();
        if let Some(attachment) = known
            && let Ok(config) = Config::parse(attachment.config.clone())
        {
            let args = attachment.args();
            let previous = attachment.result.as_ref().filter(|_| config.speaks("0.4.0"));
            for plugin in config.plugins.iter().rev() {
                let input = config.input(plugin, &attachment.host_ports, previous);
                self.call("DEL", &attachment, netns, &args).run(kind(plugin), &input)?;
            }
        }
        netns::delete(netns).map_err(|source| Error::file(netns, source))?;
        let path = self.dir.join(uid);
        edge_sys::fsutil::remove_file_if_exists(&path).map_err(|source| Error::file(path, source))?;
        lock(&self.attachments).remove(uid);
        Ok(())
    }

    /// Tells the plugins which connections there are, so that they can forget others.
    pub(crate) fn collect_garbage(&self) -> Result<(), Error> {
        let Some(config) = lock(&self.config).clone() else { return Ok(()) };
        if config.disable_gc || !config.speaks("1.1.0") {
            return Ok(());
        }
        let valid: Vec<Value> = lock(&self.attachments)
            .keys()
            .map(|uid| json!({"containerID": uid, "ifname": pod::POD_INTERFACE}))
            .collect();
        let call = Call { command: "GC", directories: &self.paths.plugin_dirs, attachment: None };
        let mut result = Ok(());
        for plugin in &config.plugins {
            let mut input = config.input(plugin, &[], None);
            input["cni.dev/valid-attachments"] = valid.clone().into();
            // all plugins hear of it, whatever one says
            result = result.and(call.run(kind(plugin), &input).map(drop));
        }
        Ok(result?)
    }

    fn keep(&self, attachment: &Attachment) -> Result<(), Error> {
        let path = self.dir.join(&attachment.pod.uid);
        let text = serde_json::to_vec(attachment).expect("invariant: an attachment is plain data");
        edge_sys::fsutil::write_atomic_volatile(&path, &text, 0o600).map_err(|source| Error::file(path, source))?;
        lock(&self.attachments).insert(attachment.pod.uid.clone(), attachment.clone());
        Ok(())
    }

    /// The connected pods: UID, addresses.
    pub(crate) fn pods(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let attachments = lock(&self.attachments);
        attachments.iter().map(|(uid, a)| (uid.clone(), a.result.as_ref().map(addresses).unwrap_or_default())).collect()
    }

    /// The connected pods by UID: addresses, and the host ports that their plugins do not care for.
    pub(crate) fn leases(&self) -> BTreeMap<String, Lease> {
        let lease = |attachment: &Attachment| {
            let config = Config::parse(attachment.config.clone());
            let theirs = config.is_ok_and(|config| config.has_capability("portMappings"));
            let host_ports = if theirs { Vec::new() } else { attachment.host_ports.clone() };
            Some(Lease { addresses: addresses(attachment.result.as_ref()?), host_ports })
        };
        let attachments = lock(&self.attachments);
        attachments.iter().filter_map(|(uid, attachment)| Some((uid.clone(), lease(attachment)?))).collect()
    }
}

/// The type of a plugin, which is the name of its program; parsing has made sure that it has one.
fn kind(plugin: &serde_json::Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}
