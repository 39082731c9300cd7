//! Writers that know what they were told is done, until nobody answers any more; and the comparison with what is there then.

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, Error, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

/// One state of an object: resourceVersion and content. `None` is its absence.
type State = Option<(u64, String)>;

/// What the writers know of an object.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The last state that was acknowledged.
    acknowledged: State,
    /// What a write without an answer would have made of it: its content, or its absence.
    unanswered: Option<Option<String>>,
}

/// What all writers together know.
#[derive(Default)]
pub(crate) struct Knowledge {
    objects: HashMap<String, Known>,
    /// Which write got which resourceVersion.
    versions: HashMap<u64, String>,
}

impl Knowledge {
    fn version_given(&mut self, version: u64, to: String) {
        if let Some(before) = self.versions.insert(version, to.clone()) {
            panic!("resourceVersion {version} was given to {before} and to {to}");
        }
    }
}

/// Starts so many writers, with names of objects that begin with `round`; gives how many writes were acknowledged so far.
pub(crate) fn start(
    runtime: &Runtime,
    client: &Client,
    knowledge: &Arc<Mutex<Knowledge>>,
    writers: usize,
    round: usize,
) -> (Arc<AtomicUsize>, Vec<JoinHandle<()>>) {
    let acknowledged = Arc::new(AtomicUsize::new(0));
    let spawn = |number: usize| {
        let writer =
            Writer { client: client.clone(), knowledge: knowledge.clone(), acknowledged: acknowledged.clone() };
        runtime.spawn(writer.write(format!("{round}-{number}")))
    };
    let all = (0..writers).map(spawn).collect();
    (acknowledged, all)
}

/// Creates, changes and deletes objects of its own as fast as it can, until nobody answers.
struct Writer {
    client: Client,
    knowledge: Arc<Mutex<Knowledge>>,
    acknowledged: Arc<AtomicUsize>,
}

impl Writer {
    async fn write(self, prefix: String) {
        for number in 0.. {
            let written = match number % 4 {
                3 => self.write_service(&format!("svc-{prefix}-{number}"), number).await,
                _ => self.write_map(&format!("cm-{prefix}-{number}"), number).await,
            };
            if written.is_none() {
                return;
            }
        }
    }

    /// `None` when nobody answers.
    async fn write_map(&self, name: &str, number: usize) -> Option<()> {
        let api = Api::<ConfigMap>::default_namespaced(self.client.clone());
        let object = |content: &str| json!({"metadata": {"name": name, "labels": {"of": "writers"}}, "data": {"content": content}});
        self.create(&api, name, "new", object("new")).await?;
        let further = number % 3;
        if further > 0 {
            self.expect(name, Some("changed"));
            let patch = Patch::Merge(object("changed"));
            let changed = self.answered(name, api.patch(name, &PatchParams::default(), &patch).await)?;
            self.learn(name, Some(state_of(&changed)));
        }
        if further > 1 {
            self.expect(name, None);
            self.answered(name, api.delete(name, &Default::default()).await)?;
            self.learn(name, None);
        }
        Some(())
    }

    /// One with a status, in which nobody else has a say.
    async fn write_service(&self, name: &str, number: usize) -> Option<()> {
        let api = Api::<Service>::default_namespaced(self.client.clone());
        let metadata = json!({"name": name, "labels": {"of": "writers"}, "annotations": {"content": "new"}});
        let spec = json!({"type": "ExternalName", "externalName": "nowhere.test"});
        self.create(&api, name, "new", json!({"metadata": metadata, "spec": spec})).await?;
        self.expect(name, Some("new, seen"));
        let condition = json!({"type": "Seen", "status": "True", "reason": "Test", "message": "seen",
            "lastTransitionTime": "2026-01-01T00:00:00Z"});
        let status = Patch::Merge(json!({"status": {"conditions": [condition]}}));
        let changed = self.answered(name, api.patch_status(name, &PatchParams::default(), &status).await)?;
        self.learn(name, Some(state_of(&changed)));
        if number % 8 > 3 {
            self.expect(name, Some("changed, seen"));
            let patch = Patch::Merge(json!({"metadata": {"annotations": {"content": "changed"}}}));
            let changed = self.answered(name, api.patch(name, &PatchParams::default(), &patch).await)?;
            self.learn(name, Some(state_of(&changed)));
        }
        Some(())
    }

    async fn create<K>(&self, api: &Api<K>, name: &str, content: &str, object: Value) -> Option<()>
    where
        K: kube::Resource + Serialize + DeserializeOwned + Clone + Debug,
    {
        let object = serde_json::from_value(object).unwrap();
        self.expect(name, Some(content));
        let made = self.answered(name, api.create(&PostParams::default(), &object).await)?;
        self.learn(name, Some(state_of(&made)));
        Some(())
    }

    fn expect(&self, name: &str, content: Option<&str>) {
        let mut knowledge = self.knowledge.lock().unwrap();
        knowledge.objects.entry(name.to_owned()).or_default().unanswered = Some(content.map(str::to_owned));
    }

    fn learn(&self, name: &str, state: State) {
        let mut knowledge = self.knowledge.lock().unwrap();
        if let Some((version, content)) = &state {
            knowledge.version_given(*version, format!("{name} {content}"));
        }
        knowledge.objects.insert(name.to_owned(), Known { acknowledged: state, unanswered: None });
        self.acknowledged.fetch_add(1, Ordering::Relaxed);
    }

    /// An answer must be a success; only its absence is how the power fails.
    fn answered<T>(&self, name: &str, result: kube::Result<T>) -> Option<T> {
        match result {
            Ok(answer) => Some(answer),
            Err(Error::Api(status)) => panic!("{name}: {status:?}"),
            Err(_) => None,
        }
    }
}

fn state_of<K: ResourceExt + Serialize>(object: &K) -> (u64, String) {
    let version = object.resource_version().unwrap().parse().unwrap();
    let value = serde_json::to_value(object).unwrap();
    let parts = ["/data/content", "/metadata/annotations/content", "/status/conditions/0/message"];
    let parts: Vec<&str> = parts.iter().filter_map(|p| value.pointer(p)?.as_str()).collect();
    (version, parts.join(", "))
}

/// A resourceVersion of something that is only in memory.
pub(crate) async fn volatile_version(client: &Client) -> u64 {
    let lease = Api::<Lease>::namespaced(client.clone(), "kube-node-lease").get("node-1").await.unwrap();
    lease.metadata.resource_version.unwrap().parse().unwrap()
}

async fn found<K>(client: &Client) -> Vec<(String, (u64, String))>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    K: Serialize + DeserializeOwned + Clone + Debug,
{
    let list = Api::<K>::default_namespaced(client.clone()).list(&ListParams::default().labels("of=writers")).await;
    list.unwrap().items.iter().map(|object| (object.name_any(), state_of(object))).collect()
}

/// Compares what is there with what was acknowledged, and makes the rest known; gives the newest resourceVersion.
pub(crate) async fn check(client: &Client, knowledge: &Mutex<Knowledge>, newest: u64) -> u64 {
    let mut found: HashMap<String, (u64, String)> =
        found::<ConfigMap>(client).await.into_iter().chain(found::<Service>(client).await).collect();
    let mut probe = ConfigMap::default();
    probe.metadata.generate_name = Some("probe-".into());
    let api = Api::<ConfigMap>::default_namespaced(client.clone());
    let probe = api.create(&PostParams::default(), &probe).await.unwrap();
    let now = probe.metadata.resource_version.unwrap().parse().unwrap();

    let mut knowledge = knowledge.lock().unwrap();
    let newest = knowledge.versions.keys().copied().max().unwrap_or(0).max(newest);
    assert!(now > newest, "resourceVersion {now} after {newest}");
    let mut learnt = Vec::new();
    for (name, known) in &mut knowledge.objects {
        let state = found.remove(name);
        let content = state.as_ref().map(|(_, content)| content.clone());
        if state != known.acknowledged {
            assert_eq!(Some(&content), known.unanswered.as_ref(), "{name} is {state:?}, was {known:?}");
            learnt.extend(state.as_ref().map(|(version, content)| (*version, format!("{name} {content}"))));
        }
        *known = Known { acknowledged: state, unanswered: None };
    }
    assert!(found.is_empty(), "nobody has made these: {found:?}");
    for (version, write) in learnt {
        knowledge.version_given(version, write);
    }
    knowledge.version_given(now, "a probe".to_owned());
    now
}
