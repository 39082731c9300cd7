//! Drivers of volumes that have come to this node ([`crate::plugins`]): whom to ask, and what each can do.

use super::client::{Capabilities, Client, NodeInfo};
use super::node;
use crate::context::Context;
use crate::plugins::{FIRST_PAUSE, Handler, Introduction, LONGEST_PAUSE, Refusal};
use edge_grpc::CallError;
use futures::future::BoxFuture;
use k8s_openapi::api::storage::v1::CSIDriver;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OnceCell, watch};
use tokio::time::sleep;

/// How drivers register as.
const KIND: &str = "CSIPlugin";
/// What a driver can have here is asked at most so often (Kubernetes' value, in seconds).
const SHORTEST_PERIOD: i64 = 10;

/// A driver that has registered.
pub(super) struct Driver {
    endpoint: PathBuf,
    version: (u32, u32, u32),
    capabilities: OnceCell<Capabilities>,
}

/// Why a driver cannot be asked, or what it says.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriverError {
    /// Nobody has registered under the name. Until somebody does, asking again is of no use.
    #[error("kubernetes.io/csi: driver name {0} not found in the list of registered CSI drivers")]
    Unknown(String),
    #[error(transparent)]
    Call(#[from] CallError),
}

impl Driver {
    pub(super) async fn connect(&self) -> Result<Client, CallError> {
        Client::connect(&self.endpoint).await
    }

    /// What it can do, asked once.
    pub(super) async fn capabilities(&self) -> Result<Capabilities, CallError> {
        let ask = async { self.connect().await?.capabilities().await };
        self.capabilities.get_or_try_init(|| ask).await.copied()
    }
}

/// The drivers of this node.
#[derive(Default)]
pub(super) struct Drivers {
    known: Mutex<BTreeMap<String, Arc<Driver>>>,
    /// Grows when a driver comes or goes.
    changes: watch::Sender<u64>,
    /// One writer of what the API is told of drivers.
    writing: tokio::sync::Mutex<()>,
    /// Grows when the API knows the node no more, and has learned of it again.
    new_node: watch::Sender<u64>,
}

impl Drivers {
    pub(super) fn of(&self, name: &str) -> Result<Arc<Driver>, DriverError> {
        self.known.lock().get(name).cloned().ok_or_else(|| DriverError::Unknown(name.to_owned()))
    }

    /// Follows drivers as they come and go.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The node's object is a new one: it is told of all drivers.
    pub(super) fn tell_again(&self) {
        self.new_node.send_modify(|n| *n += 1);
    }

    fn is(&self, name: &str, driver: &Arc<Driver>) -> bool {
        self.known.lock().get(name).is_some_and(|known| Arc::ptr_eq(known, driver))
    }

    /// Tells the API of a driver, for as long as that takes. Who has come in its place meanwhile tells of itself.
    async fn announce(&self, cx: &Context, name: &str, driver: &Arc<Driver>, info: &NodeInfo) -> Result<(), String> {
        let mut pause = FIRST_PAUSE;
        loop {
            cx.answered().await;
            {
                let _one = self.writing.lock().await;
                match node::add(cx, name, info).await {
                    Ok(()) => return Ok(()),
                    Err(node::Refused::Collision(why)) => return Err(why),
                    // what the driver says is nothing that the API takes
                    Err(node::Refused::Api(error)) if edge_client::status_code(&error) == Some(422) => {
                        return Err(format!("kubernetes.io/csi: CSI driver {name:?} is not accepted: {error}"));
                    }
                    Err(node::Refused::Api(error)) => tracing::debug!(name, %error, "driver not told of, trying again"),
                }
            }
            if !self.is(name, driver) {
                return Err("another one has come in its place".to_owned());
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Tells the API that a driver has gone, unless it has come back.
    async fn withdraw(self: Arc<Self>, cx: Arc<Context>, name: String) {
        let mut pause = FIRST_PAUSE;
        loop {
            {
                let _one = self.writing.lock().await;
                if self.known.lock().contains_key(&name) {
                    return;
                }
                match node::remove(&cx, &name).await {
                    Ok(()) => return,
                    Err(error) => tracing::debug!(name, %error, "driver not taken out of the CSINode, trying again"),
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn take_in(
        self: Arc<Self>,
        cx: Arc<Context>,
        plugin: Introduction,
    ) -> Result<BoxFuture<'static, ()>, Refusal> {
        let name = plugin.name.clone();
        let version = highest(&plugin.versions).map_err(|why| {
            Refusal::Final(format!("kubernetes.io/csi: RegisterPlugin for CSI driver {name:?} failed. {why}"))
        })?;
        let driver = Arc::new(Driver { endpoint: plugin.endpoint.clone(), version, capabilities: OnceCell::new() });
        {
            let mut known = self.known.lock();
            if let Some(other) = known.get(&name).filter(|other| other.version > version) {
                let (a, b, c) = other.version;
                return Err(Refusal::Later(format!(
                    "kubernetes.io/csi: RegisterPlugin for CSI driver {name:?} failed. Another driver with the same name is already \
                     registered with a higher supported version: \"{a}.{b}.{c}\""
                )));
            }
            known.insert(name.clone(), driver.clone());
        }
        // from before it is told of: what becomes new meanwhile is told again
        let new_node = self.new_node.subscribe();
        let registered =
            Registered { drivers: self.clone(), cx: cx.clone(), name: name.clone(), driver: driver.clone() };
        // who waits for the driver can go on already; where no server answers, pods that run depend on that
        self.changes.send_modify(|n| *n += 1);
        let asked = async { driver.connect().await?.info().await };
        let info = asked.await.map_err(|error| {
            Refusal::Later(format!(
                "kubernetes.io/csi: RegisterPlugin error -- failed to get plugin node info: {error}"
            ))
        })?;
        if info.node_id.is_empty() {
            return Err(Refusal::Later(format!("kubernetes.io/csi: CSI driver {name:?} reports no node id")));
        }
        self.announce(&cx, &name, &driver, &info).await.map_err(Refusal::Later)?;
        Ok(Box::pin(async move {
            registered.keep_current(info, new_node).await;
        }))
    }
}

impl Handler for Drivers {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn register(
        self: Arc<Self>,
        cx: Arc<Context>,
        plugin: Introduction,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, Refusal>> {
        Box::pin(self.take_in(cx, plugin))
    }
}

/// A driver is known as long as this lives.
struct Registered {
    drivers: Arc<Drivers>,
    cx: Arc<Context>,
    name: String,
    driver: Arc<Driver>,
}

impl Registered {
    /// Asks again how many volumes the driver can have here as often as its object says, and tells a node that is new of it, for ever.
    async fn keep_current(&self, mut info: NodeInfo, mut new_node: watch::Receiver<u64>) {
        let objects = self.cx.informers.of::<CSIDriver>();
        let mut changes = objects.subscribe();
        objects.synced().await;
        loop {
            let object = objects.get("", &self.name);
            let period = object.and_then(|o| o.spec.node_allocatable_update_period_seconds);
            let period = period.map(|s| Duration::from_secs(s.max(SHORTEST_PERIOD).unsigned_abs()));
            let mut is_new = false;
            tokio::select! {
                () = sleep(period.unwrap_or_default()), if period.is_some() => {}
                Ok(()) = new_node.changed() => is_new = true,
                change = changes.recv() => match change {
                    Some(_) => continue,
                    None => return std::future::pending().await,
                },
            }
            let asked = async { self.driver.connect().await?.info().await };
            let now = asked.await.unwrap_or_else(|error| {
                tracing::debug!(driver = self.name, %error, "driver does not say what it can have");
                info.clone()
            });
            if is_new || now != info {
                match self.drivers.announce(&self.cx, &self.name, &self.driver, &now).await {
                    Ok(()) => info = now,
                    Err(why) => tracing::warn!(driver = self.name, why, "the driver's new word is not told"),
                }
            }
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        {
            let mut known = self.drivers.known.lock();
            if !known.get(&self.name).is_some_and(|known| Arc::ptr_eq(known, &self.driver)) {
                return;
            }
            known.remove(&self.name);
        }
        self.drivers.changes.send_modify(|n| *n += 1);
        if self.cx.stop.is_cancelled() {
            return;
        }
        tracing::info!(driver = self.name, "driver of volumes has gone");
        let (cx, stop) = (self.cx.clone(), self.cx.stop.clone());
        let withdraw = self.drivers.clone().withdraw(cx, self.name.clone());
        tokio::spawn(async move { stop.run_until_cancelled(withdraw).await });
    }
}

/// The highest version of the interface that a driver speaks and the kubelet, too.
fn highest(versions: &[String]) -> Result<(u32, u32, u32), String> {
    if versions.is_empty() {
        return Err("Plugin returned an empty list for supported versions".to_owned());
    }
    let parse = |text: &String| {
        let mut parts = text.trim_start_matches('v').split('.').map(|p| p.parse::<u32>().ok());
        let major = parts.next().flatten().filter(|major| *major == 1)?;
        Some((major, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0)))
    };
    let best = versions.iter().filter_map(parse).max();
    best.ok_or_else(|| format!("None of the versions specified {versions:?} are supported."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_the_first_major_are_spoken() {
        let of = |list: &[&str]| highest(&list.iter().map(|v| (*v).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&["1.0.0"]), Ok((1, 0, 0)));
        assert_eq!(of(&["0.3.0", "v1.2", "1.10.1", "2.0.0"]), Ok((1, 10, 1)));
        for bad in [&["0.3.0"][..], &["2.0.0", "x"], &[]] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
