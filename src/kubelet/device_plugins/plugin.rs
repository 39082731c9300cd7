//! What the kubelet says to a device plugin and hears from it: `DevicePlugin` of Kubernetes' device plugin API, version v1beta1.

use bytes::Bytes;
use edge_grpc::wire::{Fields, Malformed, Message, Value};
use edge_grpc::{Answers, CallError, Channel};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::time::timeout;

/// The one version of the protocol.
pub(super) const VERSION: &str = "v1beta1";
/// How a plugin calls a device that can be used.
const HEALTHY: &str = "Healthy";
/// How long a plugin may take to allocate a device or to say which it prefers. Kubernetes waits for ever, for all pods.
const ALLOCATE: Duration = Duration::from_secs(120);
/// How long it may take to make a device ready for the start of a container (Kubernetes' value).
const PRE_START: Duration = Duration::from_secs(30);
/// Most bytes of what is kept of one answer to `Allocate`.
const MAX_ANSWER: usize = 256 << 10;

/// Most bytes of a device's name. (The protocol says 63, and nobody keeps to it.)
const MAX_ID: usize = 1024;

/// What a plugin wants to be asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) pre_start: bool,
    pub(super) preferred: bool,
}

/// How a plugin introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Registration {
    pub(super) version: String,
    /// Name of its socket in the folder of the kubelet's.
    pub(super) endpoint: String,
    pub(super) resource: String,
}

impl Registration {
    pub(super) fn read(message: Bytes) -> Result<Self, Malformed> {
        let (mut fields, mut out) = (Fields::of(message), Self::default());
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => out.version = value.text()?,
                2 => out.endpoint = value.text()?,
                3 => out.resource = value.text()?,
                _ => {}
            }
        }
        Ok(out)
    }

    /// Why it is not taken in, in Kubernetes' words.
    pub(super) fn refusal(&self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!(
                "requested API version {:?} is not supported by kubelet. Supported version is [{VERSION:?}]",
                self.version
            ));
        }
        if !edge_api::names::is_extended_resource(&self.resource) {
            return Some(format!("the ResourceName {:?} is invalid", self.resource));
        }
        None
    }
}

/// A device of a plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) is_healthy: bool,
    /// The memory nodes that it is near.
    pub(super) nodes: Vec<i64>,
}

pub(super) type Devices = BTreeMap<String, Device>;

/// The devices that a plugin lists. One whose name is empty, or too long for pods' statuses, is none.
pub(super) fn devices(message: Bytes) -> Result<Devices, Malformed> {
    let (mut fields, mut out) = (Fields::of(message), Devices::new());
    while let Some((field, value)) = fields.next()? {
        if field != 1 {
            continue;
        }
        let (mut of, mut id, mut device) = (value.fields(), String::new(), Device::default());
        while let Some((field, value)) = of.next()? {
            match field {
                1 => id = value.text()?,
                2 => device.is_healthy = value.text()? == HEALTHY,
                3 => device.nodes = nodes(value)?,
                _ => {}
            }
        }
        if !id.is_empty() && id.len() <= MAX_ID {
            out.insert(id, device);
        }
    }
    Ok(out)
}

fn nodes(topology: Value) -> Result<Vec<i64>, Malformed> {
    let (mut fields, mut out) = (topology.fields(), Vec::new());
    while let Some((field, value)) = fields.next()? {
        if field == 1 {
            let (mut node, mut id) = (value.fields(), 0);
            while let Some((field, value)) = node.next()? {
                if field == 1 {
                    id = value.number().cast_signed();
                }
            }
            out.push(id);
        }
    }
    Ok(out)
}

/// What a container needs to use its devices, as their plugin says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Given {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<HostMount>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) devices: Vec<HostDevice>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) annotations: BTreeMap<String, String>,
    /// Names of the Container Device Interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) cdi: Vec<String>,
}

/// Something of the host in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostMount {
    pub(super) container_path: String,
    pub(super) host_path: String,
    #[serde(default)]
    pub(super) read_only: bool,
}

/// A device node of the host in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct HostDevice {
    pub(super) container_path: String,
    pub(super) host_path: String,
    #[serde(default)]
    pub(super) permissions: String,
}

impl Given {
    /// The answer for the first container of an `AllocateResponse`, as the kubelet asks for one at a time.
    pub(super) fn read(message: Bytes) -> Result<Self, String> {
        if message.len() > MAX_ANSWER {
            return Err(format!("allocation response of {} bytes, {MAX_ANSWER} are taken", message.len()));
        }
        let malformed = |error: Malformed| format!("allocation response: {error}");
        let mut fields = Fields::of(message);
        let mut first = None;
        while let Some((field, value)) = fields.next().map_err(malformed)? {
            if field == 1 && first.is_none() {
                first = Some(value);
            }
        }
        let first = first.ok_or("no containers return in allocation response")?;
        let given = Self::of_container(first).map_err(malformed)?;
        given.refusal().map_or(Ok(given), |why| Err(format!("allocation response: {why}")))
    }

    fn of_container(value: Value) -> Result<Self, Malformed> {
        let (mut fields, mut out) = (value.fields(), Self::default());
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => out.envs.extend([entry(value)?]),
                2 => {
                    let [container_path, host_path, _] = paths(value.clone())?;
                    out.mounts.push(HostMount { container_path, host_path, read_only: flag(value, 3)? });
                }
                3 => {
                    let [container_path, host_path, permissions] = paths(value)?;
                    out.devices.push(HostDevice { container_path, host_path, permissions });
                }
                4 => out.annotations.extend([entry(value)?]),
                5 => out.cdi.push(entry(value)?.0),
                _ => {}
            }
        }
        Ok(out)
    }

    /// What no container can be given.
    fn refusal(&self) -> Option<String> {
        let bad_name = |name: &&String| name.is_empty() || name.contains(['=', '\0']);
        if let Some(name) = self.envs.keys().find(bad_name) {
            return Some(format!("{name:?} cannot be the name of a variable"));
        }
        if let Some((name, _)) = self.envs.iter().find(|(_, value)| value.contains('\0')) {
            return Some(format!("the value of the variable {name} has a zero byte"));
        }
        let mounts = self.mounts.iter().flat_map(|m| [&m.container_path, &m.host_path]);
        let mut paths = mounts.chain(self.devices.iter().flat_map(|d| [&d.container_path, &d.host_path]));
        if let Some(path) = paths.find(|path| !path.starts_with('/') || path.contains('\0')) {
            return Some(format!("{path:?} is not an absolute path"));
        }
        let device = self.devices.iter().find(|d| !d.permissions.chars().all(|c| "rwm".contains(c)));
        device.map(|d| format!("the permissions {:?} are not any of rwm", d.permissions))
    }
}

/// An entry of a map of texts.
fn entry(value: Value) -> Result<(String, String), Malformed> {
    let [key, value, _] = paths(value)?;
    Ok((key, value))
}

/// The first three fields of a message, those of them that are texts.
fn paths(value: Value) -> Result<[String; 3], Malformed> {
    let (mut fields, mut out) = (value.fields(), <[String; 3]>::default());
    while let Some((field, value)) = fields.next()? {
        if let Some(place) = (field as usize).checked_sub(1).and_then(|i| out.get_mut(i)) {
            *place = value.text()?;
        }
    }
    Ok(out)
}

fn flag(value: Value, wanted: u32) -> Result<bool, Malformed> {
    let (mut fields, mut out) = (value.fields(), false);
    while let Some((field, value)) = fields.next()? {
        if field == wanted {
            out = value.number() != 0;
        }
    }
    Ok(out)
}

/// A plugin that has registered.
pub(super) struct Plugin {
    channel: Channel,
    pub(super) options: Options,
}

async fn within<T>(most: Duration, call: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let too_slow = || CallError::new(edge_grpc::DEADLINE_EXCEEDED, "context deadline exceeded");
    timeout(most, call).await.unwrap_or_else(|_| Err(too_slow()))
}

fn method(name: &str) -> String {
    format!("/{VERSION}.DevicePlugin/{name}")
}

fn ids(devices: &BTreeSet<String>) -> impl Iterator<Item = &str> {
    devices.iter().map(String::as_str)
}

impl Plugin {
    /// Asks a plugin what it wants to be asked.
    pub(super) async fn meet(channel: Channel) -> Result<Self, CallError> {
        let answer = channel.call(&method("GetDevicePluginOptions"), Message::default()).await?;
        let (mut fields, mut options) = (Fields::of(answer), Options::default());
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => options.pre_start = value.number() != 0,
                2 => options.preferred = value.number() != 0,
                _ => {}
            }
        }
        Ok(Self { channel, options })
    }

    /// Follows its devices.
    pub(super) async fn watch(&self) -> Result<Answers, CallError> {
        self.channel.begin(&method("ListAndWatch"), Message::default()).await
    }

    /// Has devices made ready for a container.
    pub(super) async fn allocate(&self, devices: &BTreeSet<String>) -> Result<Given, String> {
        let request = Message::default().message(1, &Message::default().texts(1, ids(devices)));
        let method = method("Allocate");
        let answer = within(ALLOCATE, self.channel.call(&method, request)).await;
        Given::read(answer.map_err(|error| error.to_string())?)
    }

    /// Which of the available devices it would rather give away.
    pub(super) async fn preferred(
        &self,
        available: &BTreeSet<String>,
        including: &BTreeSet<String>,
        number: usize,
    ) -> Result<Vec<String>, String> {
        let request = Message::default()
            .texts(1, ids(available))
            .texts(2, ids(including))
            .number(3, u64::try_from(number).unwrap_or(u64::MAX));
        let method = method("GetPreferredAllocation");
        let failed = |error: CallError| format!("device plugin GetPreferredAllocation rpc failed with err: {error}");
        let call = self.channel.call(&method, Message::default().message(1, &request));
        let answer = within(ALLOCATE, call).await.map_err(failed)?;
        let read = || {
            let (mut fields, mut out) = (Fields::of(answer), Vec::new());
            while let Some((field, value)) = fields.next()? {
                if field == 1 && out.is_empty() {
                    let mut of = value.fields();
                    while let Some((field, value)) = of.next()? {
                        if field == 1 {
                            out.push(value.text()?);
                        }
                    }
                }
            }
            Ok(out)
        };
        read().map_err(|error: Malformed| failed(error.into()))
    }

    /// Has devices made ready for the start of a container.
    pub(super) async fn pre_start(&self, devices: &BTreeSet<String>) -> Result<(), String> {
        let method = method("PreStartContainer");
        let call = self.channel.call(&method, Message::default().texts(1, ids(devices)));
        let answer = within(PRE_START, call).await;
        answer.map(drop).map_err(|error| format!("device plugin PreStartContainer rpc failed with err: {error}"))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn bytes(message: Message) -> Bytes {
        message.into_frame().slice(5..)
    }

    fn text(field: u32, value: &str) -> Message {
        Message::default().text(field, value)
    }

    #[test]
    fn who_may_register() {
        let of = |version: &str, resource: &str| {
            let message = text(1, version).text(2, "p.sock").text(3, resource);
            Registration::read(bytes(message)).unwrap().refusal()
        };
        assert_eq!(of("v1beta1", "example.com/gpu"), None);
        let why = "requested API version \"v1\" is not supported by kubelet. Supported version is [\"v1beta1\"]";
        assert_eq!(of("v1", "example.com/gpu").as_deref(), Some(why));
        for bad in ["", "gpu", "kubernetes.io/gpu", "a.kubernetes.io/x", "requests.example.com/x", "example.com/a b"] {
            assert_eq!(of("v1beta1", bad), Some(format!("the ResourceName {bad:?} is invalid")), "{bad}");
        }
        assert!(Registration::read(Bytes::from_static(&[0xff; 20])).is_err());
    }

    #[test]
    fn lists_of_devices() {
        let near = Message::default().message(1, &Message::default().number(1, 1)).message(1, &Message::default());
        let list = Message::default()
            .message(1, &text(1, "a").text(2, "Healthy").message(3, &near))
            .message(1, &text(1, "b").text(2, "Unhealthy"))
            .message(1, &text(1, "c"))
            .message(1, &text(1, &"x".repeat(MAX_ID + 1)).text(2, "Healthy"))
            .message(1, &text(2, "Healthy"));
        let all = devices(bytes(list)).unwrap();
        assert_eq!(all.keys().map(String::as_str).collect::<String>(), "abc");
        assert_eq!(all["a"], Device { is_healthy: true, nodes: vec![1, 0] });
        assert!(!all["b"].is_healthy && !all["c"].is_healthy);
        assert!(devices(bytes(Message::default())).unwrap().is_empty());
        assert!(devices(Bytes::from_static(&[0x0a, 2, 0x0a, 9])).is_err());
    }

    fn answer(container: Message) -> Result<Given, String> {
        Given::read(bytes(Message::default().message(1, &container)))
    }

    #[test]
    fn what_containers_are_given() {
        let entry = |key: &str, value: &str| text(1, key).text(2, value);
        let given = answer(
            Message::default()
                .message(1, &entry("GPU", "0"))
                .message(1, &entry("EMPTY", ""))
                .message(2, &text(1, "/lib").text(2, "/usr/lib/x").flag(3, true))
                .message(3, &text(1, "/dev/a").text(2, "/dev/null").text(3, "rw"))
                .message(4, &entry("x.io/a", "b"))
                .message(5, &text(1, "v.io/c=d")),
        )
        .unwrap();
        assert_eq!(given.envs.iter().map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>(), ["EMPTY=", "GPU=0"]);
        assert!(given.mounts[0].read_only && given.mounts[0].host_path == "/usr/lib/x");
        assert_eq!((given.devices[0].container_path.as_str(), given.devices[0].permissions.as_str()), ("/dev/a", "rw"));
        assert_eq!((given.annotations["x.io/a"].as_str(), &given.cdi), ("b", &vec!["v.io/c=d".to_owned()]));
        let kept: Given = serde_json::from_str(&serde_json::to_string(&given).unwrap()).unwrap();
        assert_eq!(kept, given);
        assert_eq!(Given::read(Bytes::new()).unwrap_err(), "no containers return in allocation response");
    }

    #[test]
    fn what_no_container_can_be_given() {
        let entry = |key: &str| text(1, key).text(2, "v");
        for (bad, why) in [
            (Message::default().message(1, &entry("A=B")), "cannot be the name of a variable"),
            (Message::default().message(1, &text(2, "v")), "cannot be the name of a variable"),
            (Message::default().message(1, &text(1, "A").text(2, "\0")), "zero byte"),
            (Message::default().message(2, &text(1, "lib").text(2, "/lib")), "\"lib\" is not an absolute path"),
            (Message::default().message(2, &text(1, "/lib")), "\"\" is not an absolute path"),
            (Message::default().message(3, &text(1, "/dev/a").text(2, "dev")), "\"dev\" is not an absolute path"),
            (Message::default().message(3, &text(1, "/a").text(2, "/a").text(3, "rx")), "not any of rwm"),
            (Message::default().bytes(1, &[0xff; 9]), "the message is malformed"),
            (Message::default().message(1, &entry(&"x".repeat(MAX_ANSWER))), "are taken"),
        ] {
            let error = answer(bad).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
