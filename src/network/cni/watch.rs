//! Tells when the directory of network configurations changes.

use std::os::fd::{AsFd, OwnedFd};

use edge_sys::async_fd::{self, AsyncFd};
use inotify::{Inotify, WatchMask};

use super::CniPaths;
use crate::Error;

/// Watches the directory of network configurations, which is made when it is not there, and those of plugins.
pub struct CniWatch {
    inotify: Inotify,
    polled: AsyncFd<OwnedFd>,
}

impl CniWatch {
    /// Begins to watch. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When a directory can be neither made nor watched.
    pub fn open(paths: &CniPaths) -> Result<Self, Error> {
        let inotify = Inotify::init().map_err(|source| Error::kernel("watch network configurations", source))?;
        let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE | WatchMask::ATTRIB;
        for dir in std::iter::once(&paths.config_dir).chain(&paths.plugin_dirs) {
            let failed = |source| Error::file(dir, source);
            edge_sys::fsutil::create_dir_all_mode(dir, 0o755).map_err(failed)?;
            inotify.watches().add(dir, mask).map_err(failed)?;
        }
        let failed = |source| Error::kernel("watch network configurations", source);
        let fd = inotify.as_fd().try_clone_to_owned().map_err(failed)?;
        Ok(Self { inotify, polled: async_fd::register(fd).map_err(failed)? })
    }

    /// Waits for a change.
    ///
    /// # Errors
    /// When the watch fails.
    pub async fn changed(&mut self) -> Result<(), Error> {
        let failed = |source| Error::kernel("watch network configurations", source);
        loop {
            let mut ready = self.polled.readable().await.map_err(failed)?;
            let mut buffer = [0; 4096];
            match self.inotify.read_events(&mut buffer) {
                Ok(mut events) => match events.next() {
                    Some(_) => return Ok(()),
                    None => ready.clear_ready(),
                },
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => ready.clear_ready(),
                Err(error) => return Err(failed(error)),
            }
        }
    }
}
