//! The PodResources API (`v1.PodResourcesLister`) at `<kubelet>/pod-resources/kubelet.sock`: which pod has which devices, for those who watch or
//! set up devices on this node.
//!
//! There are no processors or memory that a container has for itself, as with Kubernetes' default policies, so none are listed.

use crate::context::Context;
use crate::device_plugins::Listed;
use crate::device_plugins::registry::SOCKET;
use crate::pods::Manager;
use crate::pods::record::{Kind, spec_containers};
use crate::pods::shared::PodShared;
use crate::serve::metrics::head;
use edge_grpc::server::{self, Call, Reply, unknown};
use edge_grpc::wire::{Fields, Malformed, Message};
use edge_grpc::{CallError, RESOURCE_EXHAUSTED, UNKNOWN};
use k8s_openapi::api::core::v1::{Container, Pod};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};

/// Questions a second, and at once after a pause (Kubernetes' values).
const RATE: f64 = 100.0;
const BURST: f64 = 10.0;
/// After how long the socket is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// Lets so many through, and no more.
struct Limiter(Mutex<(f64, Instant)>);

impl Limiter {
    fn new() -> Self {
        Self(Mutex::new((BURST, Instant::now())))
    }

    fn allow(&self, now: Instant) -> bool {
        let mut known = self.0.lock();
        let earned = now.saturating_duration_since(known.1).as_secs_f64() * RATE;
        *known = ((known.0 + earned).min(BURST), now);
        let is_enough = known.0 >= 1.0;
        known.0 -= f64::from(u8::from(is_enough));
        is_enough
    }
}

/// How often each question was asked, by the version of the API and the name of the metric.
#[derive(Debug, Default)]
pub(crate) struct Requests(Mutex<BTreeMap<(&'static str, &'static str), u64>>);

impl Requests {
    fn count(&self, version: &'static str, what: &'static str) {
        *self.0.lock().entry((what, version)).or_default() += 1;
    }

    /// The counts in Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String) {
        let mut before = "";
        for ((what, version), count) in &*self.0.lock() {
            let name = format!("kubelet_pod_resources_endpoint_{what}");
            if before != *what {
                head(out, &name, "counter", "Number of requests to the PodResource endpoint, or of its errors.");
            }
            // writing to a string cannot fail
            let _ = writeln!(out, "{name}{{server_api_version=\"{version}\"}} {count}");
            before = what;
        }
    }
}

/// Answers questions about the pods of this node, for ever.
pub(crate) async fn serve(cx: Arc<Context>, manager: Arc<Manager>) {
    let folder = cx.config.kubelet_dir.join("pod-resources");
    let lister = Arc::new(Lister { cx, manager, limiter: Limiter::new() });
    loop {
        match listen(&folder).await {
            Ok(listener) => answer(listener, lister.clone()).await,
            Err(error) => {
                tracing::warn!(folder = %folder.display(), %error, "nobody can ask for the pods' resources, trying again");
            }
        }
        sleep(RETRY).await;
    }
}

async fn listen(folder: &Path) -> io::Result<UnixListener> {
    let made = folder.to_owned();
    let make = move || edge_sys::fsutil::create_dir_all_mode(&made, 0o750);
    tokio::task::spawn_blocking(make).await.unwrap_or_else(|error| Err(io::Error::other(error)))?;
    server::listen(&folder.join(SOCKET)).await
}

async fn answer(listener: UnixListener, at: Arc<Lister>) {
    server::serve(listener, move |call| {
        let answer = at.answer(&call);
        async move { answer.map(Reply::One) }
    })
    .await;
}

struct Lister {
    cx: Arc<Context>,
    manager: Arc<Manager>,
    limiter: Limiter,
}

impl Lister {
    fn answer(&self, call: &Call) -> Result<Message, CallError> {
        if !self.limiter.allow(Instant::now()) {
            return Err(CallError::new(RESOURCE_EXHAUSTED, "rejected by rate limit"));
        }
        let (version, what) = match call.method.as_str() {
            "/v1.PodResourcesLister/List" => ("v1", "requests_list"),
            // what has been added since is skipped by those who do not know it
            "/v1alpha1.PodResourcesLister/List" => ("v1alpha1", "requests_list"),
            "/v1.PodResourcesLister/Get" => ("v1", "requests_get"),
            "/v1.PodResourcesLister/GetAllocatableResources" => ("v1", "requests_get_allocatable"),
            other => return Err(unknown(other)),
        };
        self.cx.pod_resources.count(version, "requests_total");
        self.cx.pod_resources.count(version, what);
        match what {
            "requests_get" => self.get(call),
            "requests_get_allocatable" => Ok(self.allocatable()),
            _ => Ok(self.list()),
        }
    }

    fn list(&self) -> Message {
        let mut pods: Vec<Arc<PodShared>> = self.manager.list();
        pods.retain(|pod| pod.record().is_active());
        pods.sort_by(|a, b| (&a.namespace, &a.name, &a.uid).cmp(&(&b.namespace, &b.name, &b.uid)));
        Message::default().messages(1, pods.iter().map(|pod| self.pod(pod)))
    }

    fn get(&self, call: &Call) -> Result<Message, CallError> {
        let (namespace, name) = asked(call)?;
        let pod = self.manager.find(&namespace, &name).ok_or_else(|| {
            self.cx.pod_resources.count("v1", "errors_get");
            CallError::new(UNKNOWN, format!("pod {name} in namespace {namespace} not found"))
        })?;
        Ok(Message::default().message(1, &self.pod(&pod)))
    }

    fn allocatable(&self) -> Message {
        Message::default().messages(1, devices(self.cx.device_plugins.list_allocatable()))
    }

    fn pod(&self, shared: &PodShared) -> Message {
        let pod = shared.pod();
        let containers = spec_containers(&pod).filter(|(kind, _)| *kind != Kind::Init);
        let containers = containers.map(|(_, container)| self.container(&shared.uid, &pod, container));
        Message::default().text(1, &shared.name).text(2, &shared.namespace).messages(3, containers)
    }

    fn container(&self, uid: &str, pod: &Pod, container: &Container) -> Message {
        let claims = self.cx.devices.list_container(pod, container);
        let claims = claims.into_iter().map(|(claim, prepared)| {
            let resources = prepared.into_iter().map(|device| {
                let cdi = device.cdi.iter().map(|name| Message::default().text(1, name));
                let names = Message::default().messages(1, cdi).text(2, &device.driver);
                names.text(3, &device.pool).text(4, &device.device)
            });
            Message::default().text(2, &claim.1).text(3, &claim.0).messages(4, resources)
        });
        let own = devices(self.cx.device_plugins.list_container(uid, &container.name));
        Message::default().text(1, &container.name).messages(2, own).messages(5, claims)
    }
}

/// One entry for each device, and for each memory node that it is near, as Kubernetes' kubelet lists them.
fn devices(all: Vec<Listed>) -> impl Iterator<Item = Message> {
    all.into_iter().flat_map(|(resource, id, nodes)| {
        let plain = Message::default().text(1, &resource).text(2, &id);
        if nodes.is_empty() {
            return vec![plain];
        }
        let near = |node: i64| {
            let node = Message::default().number(1, node.cast_unsigned());
            plain.clone().message(3, &Message::default().message(1, &node))
        };
        nodes.into_iter().map(near).collect()
    })
}

/// Namespace and name of the pod that somebody asks for.
fn asked(call: &Call) -> Result<(String, String), Malformed> {
    let (mut fields, mut name, mut namespace) = (Fields::of(call.message.clone()), String::new(), String::new());
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => name = value.text()?,
            2 => namespace = value.text()?,
            _ => {}
        }
    }
    Ok((namespace, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_are_let_through_than_the_rate() {
        let limiter = Limiter::new();
        let begin = Instant::now();
        let at = |millis| (0..100).filter(|_| limiter.allow(begin + Duration::from_millis(millis))).count();
        assert_eq!(at(0), 10);
        assert_eq!(at(0), 0);
        assert_eq!(at(35), 3);
        assert_eq!(at(60_000), 10, "what is not used is not saved up");
        assert_eq!(at(0), 0, "and the clock never goes back");
    }

    #[test]
    fn questions_are_counted() {
        let requests = Requests::default();
        requests.count("v1", "requests_total");
        requests.count("v1", "requests_total");
        requests.count("v1alpha1", "requests_total");
        let mut out = String::new();
        requests.write(&mut out);
        assert!(out.contains("kubelet_pod_resources_endpoint_requests_total{server_api_version=\"v1\"} 2\n"), "{out}");
        assert_eq!(out.matches("# TYPE").count(), 1, "{out}");
    }
}
