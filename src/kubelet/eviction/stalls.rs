//! The kernel's word for that memory is short: processes wait for it (pressure stall information).

use edge_sys::async_fd::{AsyncFd, register_for_exceptions};
use std::fs;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use tokio::io::Interest;

/// Some process has waited 150 ms within 2 s: told at most once in that time.
const TRIGGER: &[u8] = b"some 150000 2000000\0";

/// Tells of waits for memory. Where the kernel cannot tell, it never does.
pub(super) struct Stalls(Option<AsyncFd<OwnedFd>>);

impl Stalls {
    pub(super) fn open() -> Self {
        let opened = open();
        if let Err(error) = &opened {
            tracing::debug!(%error, "the kernel does not tell when memory is short");
        }
        Self(opened.ok())
    }

    /// Ends when processes have waited for memory since the last time.
    pub(super) async fn next(&self) {
        let Some(trigger) = &self.0 else { return std::future::pending().await };
        match trigger.ready(Interest::PRIORITY).await {
            Ok(mut ready) if ready.ready().is_priority() => ready.clear_ready(),
            // it will not tell any more: the looks at every few seconds do
            _ => std::future::pending().await,
        }
    }
}

fn open() -> io::Result<AsyncFd<OwnedFd>> {
    let mut file = fs::OpenOptions::new().read(true).write(true).open("/proc/pressure/memory")?;
    file.write_all(TRIGGER)?;
    register_for_exceptions(file.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    #[tokio::test]
    async fn nothing_is_told_most_of_the_time() {
        let stalls = Stalls::open();
        let told = async || timeout(Duration::from_millis(100), stalls.next()).await.is_ok();
        // it may be true once, even on this machine
        assert!(!told().await || !told().await || !told().await);
    }
}
