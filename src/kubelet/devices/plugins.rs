//! Drivers that have come to this node: each has a socket in the folder of plugins, says who it is, and is asked from then on.
//!
//! In: the folder (`inotify`), the drivers' words. Out: whom to ask for a driver's devices; when nobody has spoken for a driver for a while, its
//! ResourceSlices of this node go, so that no pod is sent here for what it cannot get. Nothing is polled: a socket that does not answer is tried
//! again after growing pauses, as long as it lies there.

use super::driver::{self, Health, Introduction, Service};
use crate::context::Context;
use crate::grpc::Channel;
use edge_client::{Api, DeleteParams, ListParams, is_not_found};
use inotify::{EventMask, Inotify, WatchMask};
use k8s_openapi::api::resource::v1::ResourceSlice;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How long a plugin may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach a plugin.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// How long a driver may be away before its slices go (Kubernetes' value).
const AWAY: Duration = Duration::from_secs(30);
/// How long word of a device's health is believed, unless the driver says so (Kubernetes' value).
const HEALTH_LASTS: Duration = Duration::from_secs(30);
/// Devices whose health one driver tells at most.
const MOST_HEALTH: usize = 4096;
/// Sockets that are followed at most.
const MOST_PLUGINS: usize = 256;

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
    pub(super) async fn reach(&self) -> Result<(Arc<Channel>, Service), crate::grpc::CallError> {
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

    /// Follows the folder, for ever.
    pub(super) async fn run(self: Arc<Self>, cx: Arc<Context>) {
        let everything = wipe(cx.clone(), None);
        let folder = async {
            let mut sockets = HashMap::new();
            loop {
                let ended = self.follow(&cx, &mut sockets).await;
                sockets.clear();
                if let Err(error) = ended {
                    let folder = cx.config.plugins_dir.display().to_string();
                    tracing::warn!(folder, %error, "drivers of devices cannot register, trying again");
                }
                sleep(PATIENCE).await;
            }
        };
        // whoever was here before has to come again
        tokio::join!(everything, folder);
    }

    async fn follow(
        self: &Arc<Self>,
        cx: &Arc<Context>,
        sockets: &mut HashMap<PathBuf, AbortOnDropHandle<()>>,
    ) -> io::Result<()> {
        use futures::StreamExt;
        let folder = &cx.config.plugins_dir;
        edge_sys::fsutil::create_dir_all_mode(folder, 0o750)?;
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        inotify.watches().add(folder, mask | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF)?;
        let mut events = inotify.into_event_stream([0_u8; 4096])?;
        for entry in std::fs::read_dir(folder)? {
            self.appeared(cx, &entry?.path(), sockets);
        }
        while let Some(event) = events.next().await {
            let event = event?;
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::Q_OVERFLOW) {
                break;
            }
            let Some(path) = event.name.map(|name| folder.join(name)) else { continue };
            // whatever was there under this name is another one now
            drop(sockets.remove(&path));
            if event.mask.intersects(EventMask::CREATE | EventMask::MOVED_TO) {
                self.appeared(cx, &path, sockets);
            }
        }
        Ok(())
    }

    fn appeared(
        self: &Arc<Self>,
        cx: &Arc<Context>,
        path: &Path,
        sockets: &mut HashMap<PathBuf, AbortOnDropHandle<()>>,
    ) {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || !std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            return;
        }
        if sockets.len() >= MOST_PLUGINS {
            tracing::warn!(socket = %path.display(), "too many plugins, this one is not followed");
            return;
        }
        let task = self.clone().serve(cx.clone(), path.to_owned());
        sockets.insert(path.to_owned(), AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Takes the plugin behind a socket in, and stays connected with it, for ever.
    async fn serve(self: Arc<Self>, cx: Arc<Context>, socket: PathBuf) {
        let mut pause = FIRST_PAUSE;
        let (plugin, driver, health) = loop {
            let taken = timeout(PATIENCE, self.introduce(&cx, &socket)).await;
            match taken.unwrap_or_else(|_| Err(Some("it does not answer".to_owned()))) {
                Ok(taken) => break taken,
                Err(why) => {
                    // without a reason: it is none of ours, and stays so
                    let Some(why) = why else { return };
                    tracing::info!(socket = %socket.display(), why, "plugin not registered");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        };
        let _registered =
            Registered { plugins: self.clone(), cx: cx.clone(), driver: driver.clone(), plugin: plugin.clone() };
        self.sync(&cx, &driver);
        pause = FIRST_PAUSE;
        loop {
            match Channel::unix(&plugin.endpoint).await {
                Ok(channel) => {
                    pause = FIRST_PAUSE;
                    let channel = Arc::new(channel);
                    plugin.channel.send_replace(Some(channel.clone()));
                    self.sync(&cx, &driver);
                    let watch = self.follow_health(&driver, &channel, health);
                    tokio::select! {
                        () = channel.ended() => {}
                        () = watch => {}
                    }
                    plugin.channel.send_replace(None);
                    self.health.lock().remove(&driver);
                    self.health_changes.send_modify(|n| *n += 1);
                    self.sync(&cx, &driver);
                }
                Err(error) => tracing::debug!(driver, %error, "driver not reached"),
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks a plugin who it is, and takes it in.
    async fn introduce(
        self: &Arc<Self>,
        cx: &Arc<Context>,
        socket: &Path,
    ) -> Result<(Arc<Plugin>, String, Option<&'static str>), Option<String>> {
        let said = |error: crate::grpc::CallError| Some(error.to_string());
        let channel = Channel::unix(socket).await.map_err(said)?;
        let introduction = Introduction::ask(&channel).await.map_err(said)?;
        let endpoint = match introduction.endpoint.as_str() {
            "" => socket.to_owned(),
            path => PathBuf::from(path.strip_prefix("unix://").unwrap_or(path)),
        };
        let (service, health) = match introduction.judge() {
            Ok(judged) => judged,
            Err(why) => {
                tracing::warn!(socket = %socket.display(), why, "plugin refused");
                driver::answer(&channel, Err(&why)).await.map_err(said)?;
                return Err(None);
            }
        };
        let plugin = Arc::new(Plugin { endpoint: endpoint.clone(), service, channel: watch::Sender::new(None) });
        if let Err(why) = self.take_in(&introduction.name, plugin.clone()) {
            // the one before may be about to go
            driver::answer(&channel, Err(&why)).await.map_err(said)?;
            return Err(Some(why));
        }
        // undone should it not hear of it
        let registered = Registered {
            plugins: self.clone(),
            cx: cx.clone(),
            driver: introduction.name.clone(),
            plugin: plugin.clone(),
        };
        driver::answer(&channel, Ok(())).await.map_err(said)?;
        registered.stays();
        tracing::info!(driver = introduction.name, endpoint = %endpoint.display(), "driver of devices registered");
        Ok((plugin, introduction.name, health))
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
            match channel.begin(&driver::health_method(service), crate::grpc::wire::Message::default()).await {
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
                Err(error) if error.code == crate::grpc::UNIMPLEMENTED => return std::future::pending().await,
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

/// A plugin is known as long as this lives.
struct Registered {
    plugins: Arc<Plugins>,
    cx: Arc<Context>,
    driver: String,
    plugin: Arc<Plugin>,
}

impl Registered {
    /// Somebody else sees to the end.
    fn stays(mut self) {
        self.driver.clear();
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        if self.driver.is_empty() {
            return;
        }
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
