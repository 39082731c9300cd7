//! Plugins that come to this node: each has a socket in the folder of plugins, says who it is, and is taken in by whom its type concerns.
//!
//! In: the folder (`inotify`), the plugins' words. Out: plugins taken in by their [`Handler`]s, for as long as their sockets lie there. Nothing is
//! polled: a socket that does not answer is tried again after growing pauses.

mod introduction;

pub(crate) use introduction::Introduction;

use crate::context::Context;
use edge_grpc::{CallError, Channel};
use futures::future::BoxFuture;
use inotify::{EventMask, Inotify, WatchMask};
use std::collections::HashMap;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

/// How long a plugin may take to say who it is, and to hear whether it is known.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach a plugin.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(500);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(120);
/// Sockets that are followed at most.
const MOST_PLUGINS: usize = 256;

/// Why a plugin is not taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It will never be: another socket has to come.
    Final(String),
    /// Not now; it is tried again.
    Later(String),
}

/// Takes plugins of one type in.
pub(crate) trait Handler: Send + Sync {
    /// How plugins of this type call it.
    fn kind(&self) -> &'static str;

    /// Takes a plugin in. It is known from then on, as long as what is given back lives, which is run for as long as its socket is there.
    fn register(
        self: Arc<Self>,
        cx: Arc<Context>,
        plugin: Introduction,
    ) -> BoxFuture<'static, Result<BoxFuture<'static, ()>, Refusal>>;
}

struct Folder {
    cx: Arc<Context>,
    handlers: Vec<Arc<dyn Handler>>,
}

/// Follows the folder, for ever.
pub(crate) async fn run(cx: Arc<Context>, handlers: Vec<Arc<dyn Handler>>) {
    let folder = Arc::new(Folder { cx, handlers });
    let mut sockets = HashMap::new();
    loop {
        let ended = folder.follow(&mut sockets).await;
        sockets.clear();
        if let Err(error) = ended {
            let folder = folder.cx.config.plugins_dir().display().to_string();
            tracing::warn!(folder, %error, "plugins cannot register, trying again");
        }
        sleep(PATIENCE).await;
    }
}

impl Folder {
    async fn follow(self: &Arc<Self>, sockets: &mut HashMap<PathBuf, AbortOnDropHandle<()>>) -> io::Result<()> {
        use futures::StreamExt;
        let folder = self.cx.config.plugins_dir();
        // drivers' pods refer to them before there is anything in them
        for place in ["plugins", "pods"].map(|name| self.cx.config.kubelet_dir.join(name)).iter().chain([&folder]) {
            edge_sys::fsutil::create_dir_all_mode(place, 0o750)?;
        }
        let inotify = Inotify::init()?;
        let mask = WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
        inotify.watches().add(&folder, mask | WatchMask::DELETE_SELF | WatchMask::MOVE_SELF)?;
        let mut events = inotify.into_event_stream([0_u8; 4096])?;
        for entry in std::fs::read_dir(&folder)? {
            self.appeared(&entry?.path(), sockets);
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
                self.appeared(&path, sockets);
            }
        }
        Ok(())
    }

    fn appeared(self: &Arc<Self>, path: &Path, sockets: &mut HashMap<PathBuf, AbortOnDropHandle<()>>) {
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        if hidden || !std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
            return;
        }
        if sockets.len() >= MOST_PLUGINS {
            tracing::warn!(socket = %path.display(), "too many plugins, this one is not followed");
            return;
        }
        let task = self.clone().serve(path.to_owned());
        sockets.insert(path.to_owned(), AbortOnDropHandle::new(tokio::spawn(task)));
    }

    /// Takes the plugin behind a socket in, for ever.
    async fn serve(self: Arc<Self>, socket: PathBuf) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.introduce(&socket).await {
                Ok(registered) => return registered.await,
                Err(Refusal::Final(why)) => {
                    return tracing::warn!(socket = %socket.display(), why, "plugin refused");
                }
                Err(Refusal::Later(why)) => {
                    tracing::info!(socket = %socket.display(), why, "plugin not registered");
                }
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    /// Asks a plugin who it is, has it taken in, and tells it so.
    async fn introduce(&self, socket: &Path) -> Result<BoxFuture<'static, ()>, Refusal> {
        let asked = async {
            let channel = Channel::unix(socket).await?;
            let introduction = Introduction::ask(&channel, socket).await?;
            Ok((channel, introduction))
        };
        let (channel, plugin) = patiently(asked).await?;
        let (kind, name) = (plugin.kind.clone(), plugin.name.clone());
        let registered = match self.handlers.iter().find(|handler| handler.kind() == kind) {
            Some(handler) => handler.clone().register(self.cx.clone(), plugin).await,
            None => Err(Refusal::Final(format!("no handler registered for plugin type: {kind}"))),
        };
        let result =
            registered.as_ref().map(|_| ()).map_err(|(Refusal::Final(why) | Refusal::Later(why))| why.as_str());
        // what it does not hear of is undone
        patiently(introduction::answer(&channel, result)).await?;
        if registered.is_ok() {
            tracing::info!(kind, name, "plugin registered");
        }
        registered
    }
}

async fn patiently<T>(work: impl Future<Output = Result<T, CallError>>) -> Result<T, Refusal> {
    let done = timeout(PATIENCE, work).await;
    done.map_err(|_| Refusal::Later("it does not answer".to_owned()))?.map_err(|e| Refusal::Later(e.to_string()))
}
