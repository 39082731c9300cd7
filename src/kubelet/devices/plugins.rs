//! Drivers of devices that have come to this node ([`crate::plugins`]).
//!
//! In: plugins that have introduced themselves. Out: whom to ask for a driver's devices; when nobody has spoken for a driver for a while, its
//! ResourceSlices of this node go, so that no pod is sent here for what it cannot get. Nothing is polled: a driver that does not answer is tried
//! again after growing pauses, as long as its socket is there.

use super::driver::{self, Health, Service};
use crate::context::Context;
use crate::plugins::{FIRST_PAUSE, Handler, Introduction, LONGEST_PAUSE, Refusal};
use edge_client::{Api, DeleteParams, ListParams, is_not_found};
use edge_grpc::Channel;
use futures::future::BoxFuture;
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::task::AbortOnDropHandle;

/// How long a driver may be away before its slices go (Kubernetes' value).
const AWAY: Duration = Duration::from_secs(30);
/// How long word of a device's health is believed, unless the driver says so (Kubernetes' value).
const HEALTH_LASTS: Duration = Duration::from_secs(30);
/// Devices whose health one driver tells at most.
const MOST_HEALTH: usize = 4096;

/// A plugin that has registered.
pub(super) struct Plugin {
    /// Where it is asked.
    endpoint: PathBuf,
    service: Service,
    /// The connection, while there is one.
    channel: watch::Sender<Option<Arc<Channel>>>,
}

impl Plugin {
    /// Whom to ask, and how. Without a connection one is made for the occasion.
    pub(super) async fn reach(&self) -> Result<(Arc<Channel>, Service), edge_grpc::CallError> {
        let known = self.channel.borrow().clone();
        let channel = match known {
            Some(channel) => channel,
            None => Arc::new(Channel::unix(&self.endpoint).await?),
        };
        Ok((channel, self.service))
    }
}

type HealthOf = HashMap<(String, String), (Health, Instant)>;

/// The drivers of this node.
#[derive(Default)]
pub(super) struct Plugins {
    /// By the names of their drivers, in the order in which they came.
    known: Mutex<BTreeMap<String, Vec<Arc<Plugin>>>>,
    /// Slices that go unless their driver comes back.
    wipes: Mutex<HashMap<String, AbortOnDropHandle<()>>>,
    /// What drivers say of their devices, by pool and device.
    health: Mutex<HashMap<String, HealthOf>>,
    /// Grows with every change.
    changes: watch::Sender<u64>,
    /// Grows when health changes.
    health_changes: watch::Sender<u64>,
}

impl Plugins {
    /// Whom to ask for the devices of a driver: the youngest that is connected, else the youngest.
    ///
    /// # Errors
    /// When there is none.
    pub(super) fn of(&self, driver: &str) -> Result<Arc<Plugin>, String> {
        let known = self.known.lock();
        let all = known.get(driver).map(Vec::as_slice).unwrap_or_default();
        let connected = all.iter().rev().find(|plugin| plugin.channel.borrow().is_some());
        let plugin = connected.or(all.last()).cloned();
        plugin.ok_or_else(|| format!("DRA driver {driver} is not registered"))
    }

    /// Follows changes of what is registered.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Follows changes of health.
    pub(super) fn health_changes(&self) -> watch::Receiver<u64> {
        self.health_changes.subscribe()
    }

    /// How a device is.
    pub(super) fn health(&self, driver: &str, pool: &str, device: &str) -> &'static str {
        let health = self.health.lock();
        let told = health.get(driver).and_then(|of| of.get(&(pool.to_owned(), device.to_owned())));
        match told {
            Some((told, until)) if Instant::now() < *until => told.state,
            _ => "Unknown",
        }
    }

    /// Whoever was here before the kubelet's start has to come again: the slices of all drivers go.
    pub(super) async fn run(cx: Arc<Context>) {
        wipe(cx, None).await;
    }

    /// Stays connected with a driver, for ever.
    async fn serve(self: Arc<Self>, registered: Registered, health: Option<&'static str>) {
        let (cx, driver, plugin) = (&registered.cx, &registered.driver, &registered.plugin);
        self.sync(cx, driver);
        let mut pause = FIRST_PAUSE;
        loop {
            match Channel::unix(&plugin.endpoint).await {
                Ok(channel) => {
                    pause = FIRST_PAUSE;
                    let channel = Arc::new(channel);
                    plugin.channel.send_replace(Some(channel.clone()));
                    self.sync(cx, driver);
                    let watch = self.follow_health(driver, &channel, health);
                    tokio::select! {
                        () = channel.ended() => {}
                        () = watch => {}
                    }
                    plugin.channel.send_replace(None);
                    self.health.lock().remove(driver);
                    self.health_changes.send_modify(|n| *n += 1);
                    self.sync(cx, driver);
                }
                Err(error) => tracing::debug!(driver, %error, "driver not reached"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn take_in(&self, driver: &str, plugin: Arc<Plugin>) -> Result<(), String> {
        let mut known = self.known.lock();
        let all = known.entry(driver.to_owned()).or_default();
        if all.iter().any(|other| other.endpoint == plugin.endpoint) {
            let endpoint = plugin.endpoint.display();
            return Err(format!("endpoint {endpoint} already registered for DRA driver plugin {driver}"));
        }
        all.push(plugin);
        Ok(())
    }

    /// The slices of a driver that nobody speaks for go after a while.
    fn sync(self: &Arc<Self>, cx: &Arc<Context>, driver: &str) {
        self.changes.send_modify(|n| *n += 1);
        let is_here = {
            let known = self.known.lock();
            known.get(driver).is_some_and(|all| all.iter().any(|plugin| plugin.channel.borrow().is_some()))
        };
        let mut wipes = self.wipes.lock();
        if is_here {
            wipes.remove(driver);
        } else if wipes.get(driver).is_none_or(AbortOnDropHandle::is_finished) {
            let (cx, name) = (cx.clone(), driver.to_owned());
            let work = async move {
                sleep(AWAY).await;
                wipe(cx, Some(&name)).await;
            };
            wipes.insert(driver.to_owned(), AbortOnDropHandle::new(tokio::spawn(work)));
        }
    }

    /// Takes in what a driver tells of its devices, for as long as the connection lasts.
    async fn follow_health(&self, driver: &str, channel: &Channel, service: Option<&'static str>) {
        let Some(service) = service else { return std::future::pending().await };
        let mut pause = FIRST_PAUSE;
        loop {
            match channel.begin(&driver::health_method(service), edge_grpc::wire::Message::default()).await {
                Ok(mut answers) => {
                    while let Ok(Some(message)) = answers.next().await {
                        pause = FIRST_PAUSE;
                        match driver::health(message) {
                            Ok(told) => self.take_health(driver, told),
                            Err(error) => tracing::info!(driver, %error, "health of devices not understood"),
                        }
                    }
                    self.health.lock().remove(driver);
                    self.health_changes.send_modify(|n| *n += 1);
                }
                Err(error) if error.code == edge_grpc::UNIMPLEMENTED => return std::future::pending().await,
                Err(error) => tracing::debug!(driver, %error, "health of devices not told"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn take_health(&self, driver: &str, told: Vec<Health>) {
        let now = Instant::now();
        let mut changed = false;
        {
            let mut health = self.health.lock();
            let of = health.entry(driver.to_owned()).or_default();
            for one in told {
                let key = (one.pool.clone(), one.device.clone());
                if of.len() >= MOST_HEALTH && !of.contains_key(&key) {
                    continue;
                }
                let lasts = if one.lasts == 0 { HEALTH_LASTS } else { Duration::from_secs(one.lasts.min(86_400)) };
                let before = of.insert(key, (one.clone(), now + lasts));
                changed |= before.is_none_or(|(before, until)| until <= now || before.state != one.state);
            }
        }
        if changed {
            self.health_changes.send_modify(|n| *n += 1);
        }
    }
}

impl Handler for Plugins {
    fn kind(&self) -> &'static str {
        driver::KIND
    }

    fn register(
        self: Arc<Self>,
        cx: Arc<Context>,
        plugin: Introduction,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, Refusal>> {
        let take_in = async move {
            let (service, health) = driver::judge(&plugin).map_err(Refusal::Final)?;
            let driver = plugin.name;
            let plugin = Arc::new(Plugin { endpoint: plugin.endpoint, service, channel: watch::Sender::new(None) });
            // the one before may be about to go
            self.take_in(&driver, plugin.clone()).map_err(Refusal::Later)?;
            let registered = Registered { plugins: self.clone(), cx, driver, plugin };
            let serve: BoxFuture<'static, ()> = Box::pin(self.serve(registered, health));
            Ok(serve)
        };
        Box::pin(take_in)
    }
}

/// A plugin is known as long as this lives.
struct Registered {
    plugins: Arc<Plugins>,
    cx: Arc<Context>,
    driver: String,
    plugin: Arc<Plugin>,
}

impl Drop for Registered {
    fn drop(&mut self) {
        {
            let mut known = self.plugins.known.lock();
            if let Some(all) = known.get_mut(&self.driver) {
                all.retain(|plugin| !Arc::ptr_eq(plugin, &self.plugin));
                if all.is_empty() {
                    known.remove(&self.driver);
                }
            }
        }
        self.plugin.channel.send_replace(None);
        if !self.cx.stop.is_cancelled() {
            self.plugins.sync(&self.cx, &self.driver);
        }
    }
}

/// Removes the slices of this node, of one driver or all.
async fn wipe(cx: Arc<Context>, driver: Option<&str>) {
    let api: Api<ResourceSlice> = Api::all(cx.client.clone());
    let mut selector = format!("spec.nodeName={}", cx.config.node_name);
    if let Some(driver) = driver {
        selector.push_str(",spec.driver=");
        selector.push_str(driver);
    }
    let mut pause = Duration::from_secs(1);
    loop {
        cx.answered().await;
        match api.delete_collection(&DeleteParams::default(), &ListParams::default().fields(&selector)).await {
            Ok(_) => return,
            Err(error) if is_not_found(&error) => return,
            Err(error) => tracing::debug!(selector, %error, "slices of devices not removed, trying again"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(300));
    }
}
