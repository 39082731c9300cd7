//! Tells when links, addresses or routes of this machine change, so that connections are tried again at once.

use edge_network::Monitor;
use tokio::sync::watch;

/// A number that grows with every change. Without netlink it never does.
pub(crate) fn watch_network() -> watch::Receiver<u64> {
    let (tx, rx) = watch::channel(0);
    match Monitor::open() {
        Ok(monitor) => drop(tokio::spawn(follow(monitor, tx))),
        Err(error) => not_noticed(&error),
    }
    rx
}

fn not_noticed(error: &edge_network::Error) {
    tracing::warn!(error = super::with_causes(error), "changes of the network are not noticed");
}

async fn follow(mut monitor: Monitor, tx: watch::Sender<u64>) {
    loop {
        let told = tokio::select! {
            told = monitor.news() => told,
            () = tx.closed() => return,
        };
        if let Err(error) = told {
            return not_noticed(&error);
        }
        tx.send_modify(|n| *n += 1);
    }
}
