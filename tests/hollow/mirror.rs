//! The one watch of all pods that are on nodes.

use super::kubelet::Instance;
use super::pod::{Page, SeenPod};
use super::{Ended, Refused, Shared};
use futures::StreamExt;
use kube::api::WatchEvent;
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

/// Before the next attempt when the server does not answer.
const PAUSE: Duration = Duration::from_millis(100);
/// Pods that are listed at once.
const PAGE: usize = 1000;
const PODS: &str = "/api/v1/pods?fieldSelector=spec.nodeName%21%3D";

/// Keeps the fleet's pods as the server has them, for ever.
pub(super) async fn follow(shared: Arc<Shared>) {
    loop {
        match list(&shared).await {
            Ok(version) => watch(&shared, version).await,
            Err(error) => tracing::debug!(%error, "cannot list pods"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Lists everything; gives the version of the list.
async fn list(shared: &Shared) -> Result<String, Refused> {
    let (mut seen, mut next) = (HashSet::new(), String::new());
    let version = loop {
        let path = format!("{PODS}&limit={PAGE}&continue={next}");
        let page: Page = shared.wire.get(&path).await?;
        for pod in page.items {
            seen.insert(pod.metadata.uid.clone());
            shared.seen(pod);
        }
        if page.metadata.next.is_empty() {
            break page.metadata.resource_version;
        }
        next = page.metadata.next;
    };
    let gone: Vec<String> = shared.state.lock().pods.keys().filter(|uid| !seen.contains(*uid)).cloned().collect();
    gone.iter().for_each(|uid| shared.gone(uid));
    Ok(version)
}

/// Follows all changes from a version on, until the watch ends.
async fn watch(shared: &Shared, mut version: String) {
    loop {
        let path = format!("{PODS}&watch=1&allowWatchBookmarks=true&timeoutSeconds=280&resourceVersion={version}");
        let Ok(request) = http::Request::get(path).body(Vec::new()) else { return };
        let events = match shared.wire.client().request_events::<SeenPod>(request).await {
            Ok(events) => events,
            Err(error) => {
                tracing::debug!(%error, "cannot watch pods");
                return;
            }
        };
        let mut events = std::pin::pin!(events);
        while let Some(event) = events.next().await {
            match event {
                Ok(WatchEvent::Added(pod) | WatchEvent::Modified(pod)) => {
                    version.clone_from(&pod.metadata.resource_version);
                    shared.seen(pod);
                }
                Ok(WatchEvent::Deleted(pod)) => {
                    version.clone_from(&pod.metadata.resource_version);
                    shared.gone(&pod.metadata.uid);
                }
                Ok(WatchEvent::Bookmark(bookmark)) => version = bookmark.metadata.resource_version,
                Ok(WatchEvent::Error(_)) | Err(_) => return,
            }
        }
    }
}

impl Shared {
    fn seen(&self, pod: SeenPod) {
        let uid = pod.metadata.uid.clone();
        {
            let mut state = self.state.lock();
            state.by_node.entry(pod.spec.node_name.clone()).or_default().insert(uid.clone());
            let has_ended = pod.has_ended();
            if pod.status.phase == "Succeeded" {
                let ended = Ended { owner: pod.place(), exit_code: 0, was_going: pod.is_going() };
                state.ended.entry(uid.clone()).or_insert(ended);
            }
            let known = state.pods.get_mut(&uid);
            match known {
                Some(instance) => instance.pod = Arc::new(pod),
                None => drop(state.pods.insert(uid.clone(), Instance::new(pod))),
            }
            if has_ended {
                state.stopped(&uid);
            }
            self.recount(&state);
        }
        if self.options.reports {
            self.queue.add(uid);
        }
    }

    fn gone(&self, uid: &str) {
        let mut state = self.state.lock();
        state.vanished(uid);
        self.recount(&state);
    }
}
