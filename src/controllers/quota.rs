//! ResourceQuotas: what is really used, counted.
//!
//! Admission charges a quota before something is made. What comes back (objects that go, pods that end) and what was charged
//! and then not made is found here, by counting. A count that is lower than the charges only stands when nothing was charged
//! for a moment: what was just charged may not be in the caches yet.

use crate::context::{Context, each, unless_gone};
use crate::gc::{self, Resource};
use crate::pods;
use edge_api::quota::{Amounts, add, amounts, concerns, counted_resource, includes, usage};
use edge_api::{Object, Quantity};
use edge_client::{
    Api, Change, DynamicObject, Error, Informer, InformerKind, Key, ListParams, Outcome, PostParams, ResourceExt,
    WorkQueue, run_workers,
};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, ResourceQuota, Service};
use k8s_openapi::api::resource::v1::ResourceClaim;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

const WORKERS: usize = 2;
/// So long after a charge a lower count may only be too early.
const SETTLING: Duration = Duration::from_secs(1);

struct Controller {
    context: Context,
    quotas: Arc<Informer<ResourceQuota>>,
    pods: Arc<Informer<Pod>>,
    services: Arc<Informer<Service>>,
    claims: Arc<Informer<PersistentVolumeClaim>>,
    device_claims: Arc<Informer<ResourceClaim>>,
    queue: Arc<WorkQueue<Key>>,
    /// When each quota was last charged by admission.
    charged: Mutex<HashMap<Key, Instant>>,
    /// What discovery told last.
    resources: Mutex<Arc<Vec<Resource>>>,
}

/// Runs the controller. `gone` gives the namespaces from which something has gone.
pub(crate) async fn run(context: Context, gone: Arc<WorkQueue<String>>) {
    let controller = Arc::new(Controller {
        quotas: context.informers.of(),
        pods: context.informers.of(),
        services: context.informers.of(),
        claims: context.informers.of(),
        device_claims: context.informers.of(),
        queue: WorkQueue::new(),
        charged: Mutex::default(),
        resources: Mutex::default(),
        context,
    });
    let c = &controller;
    c.quotas.synced().await;
    c.pods.synced().await;
    c.services.synced().await;
    c.claims.synced().await;
    c.device_claims.synced().await;
    let worker = controller.clone();
    let work = run_workers("resourcequota", controller.queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { Box::pin(controller.reconcile(&key)).await }
    });
    let freed = run_workers("resourcequota-gone", gone, 1, |namespace: String| async move {
        c.recount(&namespace);
        Ok::<_, Error>(Outcome::Done)
    });
    tokio::join!(
        each(&c.quotas, |change| c.quota_changed(change)),
        // what is deleted comes by `gone`; this is what changes and uses something else then
        each(&c.pods, |change| c.changed(change, |p| pods::is_finished(p) || p.metadata.deletion_timestamp.is_some())),
        each(&c.services, |change| c.changed(change, |s| s.spec.as_ref().and_then(|s| s.type_.clone()))),
        each(&c.claims, |change| c.changed(change, |p| p.spec.as_ref().and_then(|s| s.resources.clone()))),
        work,
        freed,
    );
}

/// The amounts in a typed map of quantities.
fn typed(map: Option<&BTreeMap<String, Wire>>) -> Amounts {
    amounts(map.and_then(|m| serde_json::to_value(m).ok()).as_ref())
}

fn hard(quota: &ResourceQuota) -> Amounts {
    typed(quota.spec.as_ref().and_then(|s| s.hard.as_ref()))
}

fn used(quota: &ResourceQuota) -> Amounts {
    typed(quota.status.as_ref().and_then(|s| s.used.as_ref()))
}

/// Whether some amounts are above others.
fn is_above(amounts: &Amounts, others: &Amounts) -> bool {
    amounts.iter().any(|(name, amount)| others.get(name).is_none_or(|other| amount > other))
}

fn as_object(object: &impl Serialize) -> Option<Object> {
    serde_json::to_value(object).ok().and_then(|v| Object::from_value(v).ok())
}

/// What the counted objects use of the names that a quota limits, together.
fn count<'o>(
    quota: &Object,
    names: &Amounts,
    group: &str,
    resource: &str,
    objects: impl IntoIterator<Item = &'o Object>,
    now: Timestamp,
) -> Amounts {
    let mut total = Amounts::new();
    for object in objects {
        if includes(quota, group, resource, object) {
            let mut amounts = usage(group, resource, object, now);
            amounts.retain(|name, _| names.contains_key(name));
            add(&mut total, &amounts);
        }
    }
    total
}

impl Controller {
    fn quota_changed(&self, change: &Change<ResourceQuota>) {
        let quota = change.object();
        let key = Key::of(&**quota);
        let Change::Applied { old, new } = change else {
            self.charged.lock().remove(&key);
            return;
        };
        let charged = old.as_ref().is_some_and(|old| is_above(&used(new), &used(old)));
        if charged {
            self.charged.lock().insert(key.clone(), Instant::now());
            // whether it was made after all shows in a moment
            self.queue.add_after(key, SETTLING);
        } else {
            self.queue.add(key);
        }
    }

    fn changed<K: InformerKind, T: PartialEq>(&self, change: &Change<K>, what: impl Fn(&K) -> T) {
        if let Change::Applied { old: Some(old), new } = change
            && what(old) != what(new)
        {
            self.recount(&new.namespace().unwrap_or_default());
        }
    }

    fn recount(&self, namespace: &str) {
        for quota in self.quotas.list_namespace(namespace) {
            self.queue.add(Key::of(&*quota));
        }
    }

    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(quota) = self.quotas.get_key(key).filter(|q| q.metadata.deletion_timestamp.is_none()) else {
            return Ok(Outcome::Done);
        };
        let limits = hard(&quota);
        let now = self.usage(&quota, &limits).await?;
        let before = used(&quota);
        if is_above(&before, &now) {
            let since = self.charged.lock().get(key).copied();
            let left = since.map_or(Duration::ZERO, |at| SETTLING.saturating_sub(at.elapsed()));
            if !left.is_zero() {
                return Ok(Outcome::After(left));
            }
        }
        let known = quota.status.as_ref().map(|s| typed(s.hard.as_ref()));
        if known.as_ref() == Some(&limits) && before == now {
            return Ok(Outcome::Done);
        }
        let wire = |a: &Amounts| a.iter().map(|(k, v)| (k.clone(), Wire(v.to_string()))).collect::<BTreeMap<_, _>>();
        let mut next = (*quota).clone();
        let status = next.status.get_or_insert_default();
        status.hard = quota.spec.as_ref().and_then(|s| s.hard.clone());
        status.used = Some(wire(&now));
        let api: Api<ResourceQuota> = Api::namespaced(self.context.client.clone(), &key.namespace);
        // on condition that nothing was charged since it was read
        unless_gone(api.replace_status(&key.name, &PostParams::default(), &next).await)?;
        Ok(Outcome::Done)
    }

    /// What is used of everything that the quota limits.
    async fn usage(&self, quota: &ResourceQuota, limits: &Amounts) -> Result<Amounts, Error> {
        let namespace = quota.namespace().unwrap_or_default();
        let now = Timestamp::now();
        let as_quota = as_object(quota).unwrap_or_default();
        let mut total: Amounts = limits.keys().map(|name| (name.clone(), Quantity::ZERO)).collect();
        let concerned = |resource: &str| limits.keys().any(|name| concerns("", resource, name));
        if limits.keys().any(|name| concerns("resource.k8s.io", "resourceclaims", name)) {
            let claims = self.device_claims.list_namespace(&namespace);
            let claims: Vec<Object> = claims.iter().filter_map(|c| as_object(&**c)).collect();
            add(&mut total, &count(&as_quota, limits, "resource.k8s.io", "resourceclaims", &claims, now));
        }
        let mut of = |resource: &str, objects: Vec<Object>| {
            add(&mut total, &count(&as_quota, limits, "", resource, &objects, now));
        };
        if concerned("pods") {
            of("pods", self.pods.list_namespace(&namespace).iter().filter_map(|p| as_object(&**p)).collect());
        }
        if concerned("services") {
            of("services", self.services.list_namespace(&namespace).iter().filter_map(|s| as_object(&**s)).collect());
        }
        if concerned("persistentvolumeclaims") {
            let claims = self.claims.list_namespace(&namespace);
            of("persistentvolumeclaims", claims.iter().filter_map(|c| as_object(&**c)).collect());
        }
        for name in limits.keys() {
            let Some((group, resource)) = counted_resource(name) else { continue };
            if group.is_empty() && ["pods", "services", "persistentvolumeclaims"].contains(&resource) {
                continue;
            }
            // quotas with scopes count pods only
            let scoped = !includes(&as_quota, group, resource, &Object::default());
            let number = if scoped { 0 } else { self.number(group, resource, &namespace).await? };
            total.insert(name.clone(), Quantity::from_units(number));
        }
        Ok(total)
    }

    /// How many objects of any resource there are; none of one that nobody serves.
    async fn number(&self, group: &str, resource: &str, namespace: &str) -> Result<i64, Error> {
        let find = |all: &[Resource]| {
            all.iter().find(|r| r.api.group == group && r.api.plural == resource && r.namespaced).map(|r| r.api.clone())
        };
        let known = self.resources.lock().clone();
        let found = match find(&known) {
            Some(found) => Some(found),
            None => {
                let fresh = gc::discover(&self.context.client).await?;
                let found = find(&fresh.resources);
                *self.resources.lock() = Arc::new(fresh.resources);
                // nobody knows is not none
                let is_of = |version: &str| version.rsplit_once('/').is_some_and(|(of, _)| of == group);
                if let Some((version, why)) = fresh.failed.iter().find(|(version, _)| found.is_none() && is_of(version))
                {
                    return Err(Error::Service(format!("{version} is not known: {why}").into()));
                }
                found
            }
        };
        let Some(found) = found else { return Ok(0) };
        let api: Api<DynamicObject> = Api::namespaced_with(self.context.client.clone(), namespace, &found);
        match api.list_metadata(&ListParams::default()).await {
            Ok(list) => Ok(i64::try_from(list.items.len()).unwrap_or(i64::MAX)),
            // a custom resource whose definition has gone
            Err(e) if edge_client::is_not_found(&e) => {
                *self.resources.lock() = Arc::default();
                Ok(0)
            }
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use edge_api::quota::in_words;
    use serde_json::{Value, json};

    fn object(v: Value) -> Object {
        Object::from_value(v).unwrap()
    }

    #[test]
    fn only_what_is_limited_and_included_is_counted() {
        let pod = |class: &str, cpu: &str, phase: &str| {
            object(json!({"status": {"qosClass": class, "phase": phase},
                "spec": {"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        };
        let pods =
            [pod("Burstable", "200m", "Running"), pod("Burstable", "1", "Failed"), pod("BestEffort", "0", "Running")];
        let names = amounts(Some(&json!({"pods": "9", "requests.cpu": "9", "secrets": "9"})));
        for (scopes, want) in [
            (json!([]), "pods=2,requests.cpu=200m"),
            (json!(["NotBestEffort"]), "pods=1,requests.cpu=200m"),
            (json!(["Terminating"]), ""),
        ] {
            let quota = object(json!({"spec": {"scopes": scopes}}));
            assert_eq!(in_words(&count(&quota, &names, "", "pods", &pods, Timestamp::UNIX_EPOCH)), want, "{scopes}");
        }
    }

    #[test]
    fn what_counts_as_a_charge() {
        let a = |v| amounts(Some(&v));
        for (after, before, want) in [
            (json!({"pods": "2"}), json!({"pods": "1"}), true),
            (json!({"pods": "1"}), json!({"pods": "1"}), false),
            (json!({"pods": "1"}), json!({"pods": "2"}), false),
            (json!({"pods": "1", "cpu": "1"}), json!({"pods": "1"}), true),
            (json!({"cpu": "1000m"}), json!({"cpu": "1"}), false),
        ] {
            assert_eq!(is_above(&a(after.clone()), &a(before.clone())), want, "{after} {before}");
        }
    }
}
