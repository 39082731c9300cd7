//! Plugins as they come and go: each registers by a call, is asked for its devices from then on, and may be replaced by its successor.
//!
//! In: calls at `<kubelet>/device-plugins/kubelet.sock`, sockets in the folder of plugins, lists of devices. Out: [`Known`], and word of every
//! change. The kubelet's socket is made anew at each start, by which plugins notice that they have to register again; sockets of plugins from
//! before are removed there, as Kubernetes does it.

use super::DevicePlugins;
use super::known::{Known, Presence, Resource};
use super::plugin::{self, Plugin, Registration};
use crate::context::Context;
use crate::plugins::{Handler, Introduction, Refusal};
use bytes::Bytes;
use edge_grpc::server::{self, Call, Reply, unknown};
use edge_grpc::wire::Message;
use edge_grpc::{CallError, Channel};
use futures::future::BoxFuture;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::task::AbortOnDropHandle;

/// The kubelet's socket in the folder of plugins.
pub(crate) const SOCKET: &str = "kubelet.sock";
/// How long a plugin may take to be connected with.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a plugin may be away before its resource is none any more (Kubernetes' value).
const AWAY: Duration = Duration::from_secs(300);
/// After how long the folder of plugins is tried again.
const RETRY: Duration = Duration::from_secs(10);
/// A plugin that tells of its devices all the time is heard ten times a second.
const SETTLE: Duration = Duration::from_millis(100);
/// Resources at most.
const MOST: usize = 256;

impl DevicePlugins {
    /// Takes plugins in, for ever.
    pub(crate) async fn run(cx: Arc<Context>) {
        let plugins = cx.device_plugins.clone();
        {
            let mut known = plugins.known.lock();
            for name in known.keys().cloned().collect::<Vec<_>>() {
                plugins.forget_later(&mut known, &name);
            }
        }
        let folder = cx.config.kubelet_dir.join("device-plugins");
        loop {
            match listen(&folder).await {
                Ok(listener) => {
                    let (of, at) = (plugins.clone(), folder.clone());
                    server::serve(listener, move |call: Call| of.clone().asked(at.clone(), call)).await;
                }
                Err(error) => {
                    tracing::warn!(folder = %folder.display(), %error, "device plugins cannot register, trying again");
                }
            }
            sleep(RETRY).await;
        }
    }

    pub(super) async fn asked(self: Arc<Self>, folder: PathBuf, call: Call) -> Result<Reply, CallError> {
        if call.method != format!("/{}.Registration/Register", plugin::VERSION) {
            return Err(unknown(&call.method));
        }
        let result = self.called(&folder, call.message).await;
        result.map(|()| Message::default().into()).map_err(|why| {
            tracing::warn!(why, "device plugin not registered");
            CallError::new(edge_grpc::UNKNOWN, why)
        })
    }

    pub(super) async fn called(self: &Arc<Self>, folder: &Path, message: Bytes) -> Result<(), String> {
        let registration = Registration::read(message).map_err(|error| error.to_string())?;
        if let Some(why) = registration.refusal() {
            return Err(why);
        }
        // as with Go's path.Join, nothing leads to the root again
        let socket = folder.join(registration.endpoint.trim_start_matches('/'));
        self.connect(&registration.resource, &socket).await.map(drop)
    }

    /// Takes the plugin behind a socket in, and returns its number.
    async fn connect(self: &Arc<Self>, resource: &str, socket: &Path) -> Result<u64, String> {
        let is_one_too_many = {
            let known = self.known.lock();
            known.len() >= MOST && !known.contains_key(resource)
        };
        if is_one_too_many {
            return Err(format!("there are {MOST} resources of device plugins already"));
        }
        let meet = async {
            let channel = Channel::unix(socket).await.map_err(|e| format!("failed to dial device plugin: {e}"))?;
            Plugin::meet(channel).await.map_err(|e| format!("failed to get device plugin options: {e}"))
        };
        let met = timeout(PATIENCE, meet).await;
        let plugin =
            met.unwrap_or_else(|_| Err("failed to dial device plugin: context deadline exceeded".to_owned()))?;
        let plugin = Arc::new(plugin);
        let generation = self.take_in(resource, plugin.clone());
        // known on disk too: whatever happens, the node does not go on telling of it when its plugin is gone
        if let Err(error) = self.keep_names().await {
            self.of_generation(resource, generation, |of| {
                of.presence = Presence::Gone;
                true
            });
            return Err(format!("failed to write checkpoint file: {error}"));
        }
        tracing::info!(resource, socket = %socket.display(), "device plugin registered");
        self.counters.registered(resource);
        let task = self.clone().follow(resource.to_owned(), generation, plugin);
        let task = AbortOnDropHandle::new(tokio::spawn(task));
        self.of_generation(resource, generation, |of| {
            of.task = Some(task);
            true
        });
        Ok(generation)
    }

    /// Puts a plugin in the place of who was there before, and returns its number.
    fn take_in(&self, resource: &str, plugin: Arc<Plugin>) -> u64 {
        let mut known = self.known.lock();
        let of = known.entry(resource.to_owned()).or_default();
        match of.presence {
            // goes on with what its predecessor has told, until it tells more
            Presence::Here(_) => {}
            Presence::Gone => of.devices.clear(),
            Presence::Awaited | Presence::Away => of.devices.values_mut().for_each(|device| device.is_healthy = false),
        }
        of.generation += 1;
        of.presence = Presence::Here(plugin);
        of.task = None;
        let generation = of.generation;
        drop(known);
        self.changed();
        generation
    }

    /// Keeps the names of the resources on disk.
    pub(super) async fn keep_names(&self) -> io::Result<()> {
        self.holders.change(|holders| holders.resources = self.known.lock().keys().cloned().collect()).await
    }

    /// Follows the devices of a plugin until it goes, then waits for its return.
    async fn follow(self: Arc<Self>, resource: String, generation: u64, plugin: Arc<Plugin>) {
        let error = match self.hear(&resource, generation, &plugin).await {
            Ok(()) => "the stream has ended".to_owned(),
            Err(error) => error.to_string(),
        };
        tracing::warn!(resource, error, "device plugin is away");
        // its connection ends with it
        drop(plugin);
        let is_current = self.of_generation(&resource, generation, |of| {
            of.presence = Presence::Away;
            true
        });
        if is_current {
            sleep(AWAY).await;
            self.gone(&resource, generation);
        }
    }

    async fn hear(&self, resource: &str, generation: u64, plugin: &Plugin) -> Result<(), CallError> {
        let mut lists = plugin.watch().await?;
        let mut next = Instant::now();
        while let Some(list) = lists.next().await? {
            sleep_until(next).await;
            next = Instant::now() + SETTLE;
            let devices = plugin::devices(list)?;
            self.of_generation(resource, generation, |of| {
                let is_news = !of.is_listed || of.devices != devices;
                of.devices = devices;
                of.is_listed = true;
                is_news
            });
        }
        Ok(())
    }

    /// Changes what is known of a resource, unless somebody else has taken it over. Says whether that is so and something has changed.
    fn of_generation(&self, resource: &str, generation: u64, change: impl FnOnce(&mut Resource) -> bool) -> bool {
        let mut known = self.known.lock();
        let Some(of) = known.get_mut(resource).filter(|of| of.generation == generation) else { return false };
        let has_changed = change(of);
        drop(known);
        if has_changed {
            self.changed();
        }
        has_changed
    }

    /// A resource whose plugin does not come is none any more after a while.
    fn forget_later(self: &Arc<Self>, known: &mut Known, resource: &str) {
        let Some(of) = known.get_mut(resource) else { return };
        let (plugins, name, generation) = (self.clone(), resource.to_owned(), of.generation);
        of.task = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            sleep(AWAY).await;
            plugins.gone(&name, generation);
        })));
    }

    fn gone(&self, resource: &str, generation: u64) {
        tracing::warn!(resource, "device plugin is gone, and its resource with it");
        self.of_generation(resource, generation, |of| {
            of.presence = Presence::Gone;
            true
        });
    }
}

/// Plugins whose sockets are found in the folder of plugins.
impl Handler for DevicePlugins {
    fn kind(&self) -> &'static str {
        "DevicePlugin"
    }

    fn register(
        self: Arc<Self>,
        _: Arc<Context>,
        plugin: Introduction,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, Refusal>> {
        Box::pin(async move {
            if !plugin.versions.iter().any(|version| version == plugin::VERSION) {
                return Err(Refusal::Final(format!(
                    "manager version, {}, is not among plugin supported versions [{}]",
                    plugin::VERSION,
                    plugin.versions.join(" ")
                )));
            }
            let resource = plugin.name;
            if !edge_api::names::is_extended_resource(&resource) {
                return Err(Refusal::Final(format!("the ResourceName {resource:?} is invalid")));
            }
            let generation = self.connect(&resource, &plugin.endpoint).await.map_err(Refusal::Later)?;
            let here = Here { plugins: self, resource, generation };
            let here: BoxFuture<'static, ()> = Box::pin(async move {
                let _here = here;
                std::future::pending().await
            });
            Ok(here)
        })
    }
}

/// A plugin whose socket lies in the folder of plugins; when this goes, so has the socket.
struct Here {
    plugins: Arc<DevicePlugins>,
    resource: String,
    generation: u64,
}

impl Drop for Here {
    fn drop(&mut self) {
        let is_left = self.plugins.of_generation(&self.resource, self.generation, |of| {
            let is_here = matches!(of.presence, Presence::Here(_));
            if is_here {
                of.presence = Presence::Away;
            }
            is_here
        });
        if is_left {
            tracing::warn!(resource = self.resource, "the socket of a device plugin is gone");
            self.plugins.forget_later(&mut self.plugins.known.lock(), &self.resource);
        }
    }
}

/// Makes the kubelet's socket, after removing those of plugins that have registered with an agent before: by that they notice.
async fn listen(folder: &Path) -> io::Result<UnixListener> {
    let socket = folder.join(SOCKET);
    if server::is_served(&socket).await {
        return Err(io::Error::new(io::ErrorKind::AddrInUse, "another kubelet listens there"));
    }
    let folder = folder.to_owned();
    let clear = move || -> io::Result<()> {
        edge_sys::fsutil::create_dir_all_mode(&folder, 0o750)?;
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_socket() {
                edge_sys::fsutil::remove_file_if_exists(&entry.path())?;
            }
        }
        Ok(())
    };
    tokio::task::spawn_blocking(clear).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    server::listen(&socket).await
}
