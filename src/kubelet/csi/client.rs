//! What the kubelet says to a driver of volumes: the service `csi.v1.Node` of the Container Storage Interface.

use crate::storage::{FsStats, Health};
use bytes::Bytes;
use edge_grpc::wire::{Fields, Malformed, Message};
use edge_grpc::{CallError, Channel, DEADLINE_EXCEEDED};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// How long a driver may take for one call (Kubernetes' value).
const CALL: Duration = Duration::from_secs(120);

/// What a driver can do beside the least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Capabilities {
    /// Volumes are staged once for all pods of the node.
    pub(super) stages: bool,
    /// It tells how full a volume is.
    pub(super) tells_stats: bool,
    /// Volumes grow on the node.
    pub(super) expands: bool,
    /// It tells whether a volume is well.
    pub(super) tells_health: bool,
    /// It tells apart whether one or several pods of the node may write.
    pub(super) several_writers: bool,
    /// It gives a volume to a group by itself.
    pub(super) mounts_for_group: bool,
}

/// What a driver says of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct NodeInfo {
    pub(super) node_id: String,
    /// How many volumes it can have here; 0: any number.
    pub(super) max_volumes: i64,
    /// Where the node is, as the driver sees it.
    pub(super) topology: BTreeMap<String, String>,
}

/// What a driver says of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) stats: FsStats,
    pub(super) health: Option<Health>,
}

/// How a volume is to be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Capability {
    pub(super) is_block: bool,
    pub(super) fs_type: String,
    pub(super) mount_options: Vec<String>,
    /// The group that the driver is to give the volume to.
    pub(super) group: Option<u32>,
    /// Number of CSI's access mode.
    pub(super) access_mode: u64,
}

impl Capability {
    fn message(&self) -> Message {
        let access = Message::default().number(1, self.access_mode);
        let message = Message::default();
        let message = if self.is_block {
            message.message(1, &Message::default())
        } else {
            let mount = self.mount_options.iter().fold(Message::default().text(1, &self.fs_type), |m, o| m.text(2, o));
            let group = self.group.map(|group| group.to_string()).unwrap_or_default();
            message.message(2, &mount.text(3, &group))
        };
        message.message(3, &access)
    }
}

/// What is said of a volume when it is staged or published.
#[derive(Clone, Debug, Default)]
pub(super) struct Request<'a> {
    pub(super) handle: &'a str,
    /// What the attacher has found out.
    pub(super) publish_context: BTreeMap<String, String>,
    /// Where it is staged; none: nowhere.
    pub(super) staging: Option<&'a Path>,
    /// Where it is published.
    pub(super) target: Option<&'a Path>,
    pub(super) capability: Capability,
    pub(super) read_only: bool,
    pub(super) secrets: BTreeMap<String, String>,
    pub(super) context: BTreeMap<String, String>,
}

/// A connection to a driver.
pub(super) struct Client {
    channel: Channel,
}

impl Client {
    /// Connects with the driver at a socket.
    pub(super) async fn connect(endpoint: &Path) -> Result<Self, CallError> {
        Ok(Self { channel: in_time(Channel::unix(endpoint)).await? })
    }

    async fn call(&self, method: &str, message: Message) -> Result<Bytes, CallError> {
        in_time(self.channel.call(&format!("/csi.v1.Node/{method}"), message)).await
    }

    pub(super) async fn info(&self) -> Result<NodeInfo, CallError> {
        Ok(node_info(self.call("NodeGetInfo", Message::default()).await?)?)
    }

    pub(super) async fn capabilities(&self) -> Result<Capabilities, CallError> {
        Ok(capabilities(self.call("NodeGetCapabilities", Message::default()).await?)?)
    }

    pub(super) async fn stage(&self, request: &Request<'_>) -> Result<(), CallError> {
        let message = map(Message::default().text(1, request.handle), 2, &request.publish_context);
        let message = message.text(3, &text(request.staging)).message(4, &request.capability.message());
        let message = map(map(message, 5, &request.secrets), 6, &request.context);
        self.call("NodeStageVolume", message).await.map(drop)
    }

    pub(super) async fn unstage(&self, handle: &str, staging: &Path) -> Result<(), CallError> {
        let message = Message::default().text(1, handle).text(2, &text(Some(staging)));
        self.call("NodeUnstageVolume", message).await.map(drop)
    }

    pub(super) async fn publish(&self, request: &Request<'_>) -> Result<(), CallError> {
        let message = map(Message::default().text(1, request.handle), 2, &request.publish_context);
        let message = message.text(3, &text(request.staging)).text(4, &text(request.target));
        let message = message.message(5, &request.capability.message()).flag(6, request.read_only);
        let message = map(map(message, 7, &request.secrets), 8, &request.context);
        self.call("NodePublishVolume", message).await.map(drop)
    }

    pub(super) async fn unpublish(&self, handle: &str, target: &Path) -> Result<(), CallError> {
        let message = Message::default().text(1, handle).text(2, &text(Some(target)));
        self.call("NodeUnpublishVolume", message).await.map(drop)
    }

    /// How full a volume is that is published at `target`.
    pub(super) async fn stats(&self, handle: &str, target: &Path, staging: Option<&Path>) -> Result<Stats, CallError> {
        let message = Message::default().text(1, handle).text(2, &text(Some(target))).text(3, &text(staging));
        let answer = stats(self.call("NodeGetVolumeStats", message).await?)?;
        Ok(Stats { stats: FsStats { time: Some(k8s_openapi::jiff::Timestamp::now()), ..answer.stats }, ..answer })
    }

    /// Has a volume grow to at least so many bytes at `request.target`.
    pub(super) async fn expand(&self, request: &Request<'_>, bytes: u64) -> Result<(), CallError> {
        let message = Message::default().text(1, request.handle).text(2, &text(request.target));
        let message = message.message(3, &Message::default().number(1, bytes)).text(4, &text(request.staging));
        let message = map(message.message(5, &request.capability.message()), 6, &request.secrets);
        self.call("NodeExpandVolume", message).await.map(drop)
    }
}

async fn in_time<T>(work: impl Future<Output = Result<T, CallError>>) -> Result<T, CallError> {
    let late = |_| CallError { code: DEADLINE_EXCEEDED, words: "context deadline exceeded".to_owned() };
    timeout(CALL, work).await.map_err(late)?
}

fn text(path: Option<&Path>) -> String {
    path.map(|path| path.display().to_string()).unwrap_or_default()
}

fn map(message: Message, field: u32, entries: &BTreeMap<String, String>) -> Message {
    entries
        .iter()
        .fold(message, |message, (key, value)| message.message(field, &Message::default().text(1, key).text(2, value)))
}

fn node_info(answer: Bytes) -> Result<NodeInfo, Malformed> {
    let (mut fields, mut out) = (Fields::of(answer), NodeInfo::default());
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => out.node_id = value.text()?,
            // a negative number is a very large one here, and means nothing
            2 => out.max_volumes = i64::try_from(value.number()).unwrap_or(0),
            3 => {
                let mut topology = value.fields();
                while let Some((field, value)) = topology.next()? {
                    if field != 1 {
                        continue;
                    }
                    let (mut entry, mut key, mut segment) = (value.fields(), String::new(), String::new());
                    while let Some((field, value)) = entry.next()? {
                        match field {
                            1 => key = value.text()?,
                            2 => segment = value.text()?,
                            _ => {}
                        }
                    }
                    out.topology.insert(key, segment);
                }
            }
            _ => {}
        }
    }
    Ok(out)
}

fn capabilities(answer: Bytes) -> Result<Capabilities, Malformed> {
    let (mut fields, mut out) = (Fields::of(answer), Capabilities::default());
    while let Some((field, value)) = fields.next()? {
        if field != 1 {
            continue;
        }
        let mut capability = value.fields();
        while let Some((field, value)) = capability.next()? {
            if field != 1 {
                continue;
            }
            let mut call = value.fields();
            while let Some((field, value)) = call.next()? {
                match (field, value.number()) {
                    (1, 1) => out.stages = true,
                    (1, 2) => out.tells_stats = true,
                    (1, 3) => out.expands = true,
                    (1, 4) => out.tells_health = true,
                    (1, 5) => out.several_writers = true,
                    (1, 6) => out.mounts_for_group = true,
                    _ => {}
                }
            }
        }
    }
    Ok(out)
}

fn stats(answer: Bytes) -> Result<Stats, Malformed> {
    let (mut fields, mut out) = (Fields::of(answer), Stats::default());
    while let Some((field, value)) = fields.next()? {
        let mut part = value.fields();
        match field {
            1 => {
                let (mut available, mut total, mut used, mut unit) = (0, 0, 0, 0);
                while let Some((field, value)) = part.next()? {
                    // a negative number is a very large one here, and means nothing
                    let number = i64::try_from(value.number()).map_or(0, i64::unsigned_abs);
                    match field {
                        1 => available = number,
                        2 => total = number,
                        3 => used = number,
                        4 => unit = number,
                        _ => {}
                    }
                }
                let stats = &mut out.stats;
                match unit {
                    1 => (stats.available_bytes, stats.capacity_bytes, stats.used_bytes) = (available, total, used),
                    2 => (stats.inodes_free, stats.inodes, stats.inodes_used) = (available, total, used),
                    _ => {}
                }
            }
            2 => {
                let mut health = Health::default();
                while let Some((field, value)) = part.next()? {
                    match field {
                        1 => health.is_abnormal = value.number() != 0,
                        2 => health.message = value.text()?,
                        _ => {}
                    }
                }
                out.health = Some(health);
            }
            _ => {}
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn read(message: Message) -> Bytes {
        message.into_frame().slice(5..)
    }

    #[test]
    fn what_drivers_say_is_understood() {
        let rpc = |n| Message::default().message(1, &Message::default().number(1, n));
        let answer = [1, 2, 3, 4, 5, 6, 99].into_iter().fold(Message::default(), |m, n| m.message(1, &rpc(n)));
        let all = Capabilities {
            stages: true,
            tells_stats: true,
            expands: true,
            tells_health: true,
            several_writers: true,
            mounts_for_group: true,
        };
        assert_eq!(capabilities(read(answer)).unwrap(), all);
        assert_eq!(capabilities(Bytes::new()).unwrap(), Capabilities::default());
        let topology = BTreeMap::from([("a/zone".to_owned(), "z".to_owned()), ("b".to_owned(), String::new())]);
        let answer = Message::default().text(1, "n").number(2, 7).message(3, &map(Message::default(), 1, &topology));
        assert_eq!(node_info(read(answer)).unwrap(), NodeInfo { node_id: "n".into(), max_volumes: 7, topology });
        let negative = Message::default().number(2, u64::MAX);
        assert_eq!(node_info(read(negative)).unwrap().max_volumes, 0);
        for garbage in [&[0x0a, 9, 1][..], &[0x1a, 2, 0x0a, 9], &[0xff; 20]] {
            assert!(node_info(Bytes::copy_from_slice(garbage)).is_err());
        }
        assert!(capabilities(Bytes::from_static(&[0x0a, 2, 0x0a, 9])).is_err());
    }

    #[test]
    fn how_full_a_volume_is() {
        let usage = |numbers: [u64; 4]| {
            numbers.into_iter().zip(1..).fold(Message::default(), |m, (number, field)| m.number(field, number))
        };
        let answer = Message::default()
            .message(1, &usage([70, 100, 30, 1]))
            .message(1, &usage([7, 10, 3, 2]))
            .message(1, &usage([1, 2, 3, 99]))
            .message(2, &Message::default().flag(1, true).text(2, "it smells"));
        let expected = Stats {
            stats: FsStats {
                time: None,
                available_bytes: 70,
                capacity_bytes: 100,
                used_bytes: 30,
                inodes_free: 7,
                inodes: 10,
                inodes_used: 3,
            },
            health: Some(Health { is_abnormal: true, message: "it smells".into() }),
        };
        assert_eq!(stats(read(answer)).unwrap(), expected);
        assert_eq!(stats(Bytes::new()).unwrap(), Stats::default());
        let negative = Message::default().message(1, &usage([u64::MAX, 100, 1, 1]));
        assert_eq!(stats(read(negative)).unwrap().stats.available_bytes, 0);
        for garbage in [&[0x0a, 9, 1][..], &[0x12, 2, 0x12, 9], &[0xff; 20]] {
            assert!(stats(Bytes::copy_from_slice(garbage)).is_err());
        }
    }

    #[test]
    fn a_capability_is_a_mount_or_a_block_device() {
        let mount = Capability {
            fs_type: "ext4".into(),
            mount_options: vec!["noatime".into()],
            group: Some(7),
            access_mode: 1,
            ..Capability::default()
        };
        let mut fields = Fields::of(read(mount.message()));
        let (field, value) = fields.next().unwrap().unwrap();
        assert_eq!(field, 2);
        let (mut inner, mut words) = (value.fields(), Vec::new());
        while let Some((field, value)) = inner.next().unwrap() {
            words.push((field, value.text().unwrap()));
        }
        assert_eq!(words, [(1, "ext4".into()), (2, "noatime".into()), (3, "7".into())]);
        let block = Capability { is_block: true, access_mode: 5, ..mount };
        let mut fields = Fields::of(read(block.message()));
        assert_eq!(fields.next().unwrap().unwrap().0, 1);
    }
}
