//! Tells the service manager how things stand (`sd_notify(3)`), without linking to anything of systemd's.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// What a start begins is done after this.
const SETTLED: Duration = Duration::from_secs(10);

/// Sends a state such as `READY=1`. Without a service manager, or when it does not listen, nothing happens.
pub(crate) fn notify(state: &str) {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send(&path, state) {
        tracing::debug!(%error, state, "the service manager was not told");
    }
}

/// Tells the service manager that the process is alive, as often as it wants to hear that (`sd_watchdog_enabled(3)`), for ever.
pub(crate) async fn keep_watchdog() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
    if let Some(within) = number("WATCHDOG_USEC").filter(|within| ours && *within > 0) {
        let mut tick = tokio::time::interval(Duration::from_micros(within / 2));
        loop {
            tick.tick().await;
            notify("WATCHDOG=1");
        }
    }
    std::future::pending().await
}

/// Once the start is over, lets go of the code that only a start needs.
pub(crate) async fn settle() {
    tokio::time::sleep(SETTLED).await;
    if let Err(error) = edge_sys::process::release_code() {
        tracing::debug!(%error, "the code of the start stays in memory");
    }
}

fn send(path: &std::ffi::OsStr, state: &str) -> std::io::Result<()> {
    let bytes = path.as_encoded_bytes();
    let address = match bytes.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address).map(drop)
}
