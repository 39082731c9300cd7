//! Other software's packet filters: edge's own rules come back when another program has removed them, and rules of others
//! that drop the packets of pods are told of, in the log and as an event of the node.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use edge_client::{Client, EventRecorder, EventType, node_reference};
use edge_network::{Blocker, Error, FirewallChange, FirewallWatch, NodeNetwork};

use crate::Retry;

/// Programs write their rules in several steps: so long after the first all of them are looked at together.
const SETTLE: Duration = Duration::from_secs(1);
/// Reasons of the events.
const BLOCKED: &str = "PodTrafficBlocked";
const UNBLOCKED: &str = "PodTrafficUnblocked";

/// Watches the packet filter of this node. `client` has the identity of the node `node`. Does not end; drop the future to stop.
pub async fn run(client: Client, network: Arc<NodeNetwork>, node: String) {
    let mut watch = FirewallWatch::open().inspect_err(not_watched).ok();
    let recorder = EventRecorder::new(client, "edge-network", &node);
    let mut known = BTreeSet::new();
    let mut retry = Retry::default();
    loop {
        let checked = network.clone();
        let found = match tokio::task::spawn_blocking(move || checked.check_firewall()).await {
            Ok(found) => found,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        let found = found.map(|found| tell(&mut known, found));
        let news = match found {
            Ok(news) => {
                retry.note(Ok(()), "");
                news
            }
            Err(error) => {
                retry.note(Err(error), "the packet filter could not be looked at");
                Vec::new()
            }
        };
        for (kind, reason, text) in news {
            recorder.event_ref(node_reference(&node), kind, reason, text);
        }
        tokio::select! {
            () = change(&mut watch) => {}
            () = retry.wait() => {}
        }
    }
}

fn not_watched(error: &Error) {
    tracing::warn!(error = error as &dyn std::error::Error, "changes of the packet filter are not noticed");
}

/// What is new, as events and in the log.
fn tell(known: &mut BTreeSet<Blocker>, found: Vec<Blocker>) -> Vec<(EventType, &'static str, String)> {
    let found: BTreeSet<Blocker> = found.into_iter().collect();
    let mut news = Vec::new();
    for blocker in found.difference(known) {
        tracing::warn!("{blocker}");
        news.push((EventType::Warning, BLOCKED, blocker.to_string()));
    }
    for Blocker { family, table, chain } in known.difference(&found) {
        let text = format!(
            "chain \"{chain}\" of the nftables table \"{family} {table}\" does not drop packets of pods any more"
        );
        tracing::info!("{text}");
        news.push((EventType::Normal, UNBLOCKED, text));
    }
    *known = found;
    news
}

/// Ends when there is something to look at: at once when edge's own rules are gone.
async fn change(watch: &mut Option<FirewallWatch>) {
    let Some(watched) = watch else { return std::future::pending().await };
    let result = async {
        if watched.news().await? == FirewallChange::Lost {
            return Ok(());
        }
        let lost = async {
            loop {
                if watched.news().await? == FirewallChange::Lost {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(SETTLE, lost).await.unwrap_or(Ok(()))
    };
    if let Err(error) = result.await {
        not_watched(&error);
        *watch = None;
    }
}
