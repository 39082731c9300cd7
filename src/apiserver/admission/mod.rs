//! Admission: what the cluster adds to, or refuses of, a write that is authorized and well formed.
//!
//! In: the decoded object and the facts of the request ([`Attributes`]). Out: the object changed, or a `Status`. The
//! plugins are plain functions over JSON trees; what they know of the cluster they ask through [`Cluster`]. They run in
//! Kubernetes' order: first those that change ([`mutate`]), then, after defaulting, those that only judge ([`validate`]).

mod admin_access;
mod again;
mod certificates;
mod control;
mod lifecycle;
mod limits;
mod matching;
mod node_restriction;
mod nodes;
mod pod_security;
mod pods;
pub(crate) mod policy;
mod priority;
mod quota;
mod rbac;
mod request;
mod service_account;
mod storage;
pub(crate) mod webhook;

pub(crate) use control::AdmissionControl;
pub(crate) use policy::Policies;
pub(crate) use webhook::{HookMetrics, Webhooks};

use crate::outgoing::{CallError, Callee};
use again::Again;
use async_trait::async_trait;
use bytes::Bytes;
use edge_api::{GroupResource, Object, Status, UserInfo};
use edge_registry::{Attributes, Catalog, Operation, ResourceInfo};
pub(crate) use matching::operation_name;
use serde_json::Value;
use std::sync::Arc;

/// What the plugins ask of the facts of a write.
trait AttributesExt {
    /// Whether it is about this resource itself (and no subresource).
    fn is(&self, group: &str, resource: &str) -> bool;
    /// 403 about the object, and why it is refused.
    fn forbidden(&self, object: Option<&Object>, why: &str) -> Status;
}

impl AttributesExt for Attributes<'_> {
    fn is(&self, group: &str, resource: &str) -> bool {
        self.info.group == group && self.info.plural == resource && self.subresource.is_empty()
    }

    fn forbidden(&self, object: Option<&Object>, why: &str) -> Status {
        let generated = object.map_or("", Object::generate_name);
        let name = if self.name.is_empty() { object.map_or("", Object::name) } else { self.name };
        Status::forbidden(&self.info.group_resource(), if name.is_empty() { generated } else { name }, why)
    }
}

/// What plugins may ask of the cluster's state.
#[async_trait]
pub(crate) trait Cluster: Send + Sync {
    /// One stored object.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Object>;
    /// The stored objects of a namespace (or, with the empty namespace, of the cluster).
    ///
    /// # Errors
    /// When they cannot be read.
    async fn list(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Object>, Status>;
    /// Of the stored objects of the cluster those that may have a text in their JSON; the others need not be read.
    ///
    /// # Errors
    /// When they cannot be read.
    async fn list_having(&self, group: &str, resource: &str, _text: &str) -> Result<Vec<Object>, Status> {
        self.list(group, resource, "").await
    }
    /// Whether the user already holds every one of these RBAC rules in the namespace (empty: cluster-wide).
    ///
    /// # Errors
    /// The rules that are missing, in words.
    fn covers(&self, user: &UserInfo, namespace: &str, rules: &[Value]) -> Result<(), String>;
    /// Changes the status of one stored object; the function may be called again when somebody else was faster.
    ///
    /// # Errors
    /// Those of the function, and when it cannot be written.
    async fn update_status(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(Object) -> Result<Object, Status> + Send + Sync),
    ) -> Result<(), Status>;
    /// Whether the user may do something to one object.
    fn may(&self, user: &UserInfo, verb: &str, resource: &GroupResource, namespace: &str, name: &str) -> bool;
    /// What an expression asks about somebody's rights.
    fn decide(&self, user: &UserInfo, check: &edge_cel::Check) -> edge_cel::Decision;
    /// The kinds that there are.
    fn catalog(&self) -> &Catalog;
    /// The policies in force; `None` when there are none.
    fn policies(&self) -> Option<Arc<policy::Set>>;
    /// The webhooks in force; `None` when there are none.
    fn webhooks(&self) -> Option<Arc<webhook::Set>>;
    /// Posts a review to a webhook.
    ///
    /// # Errors
    /// When no answer comes that could be read.
    async fn ask(&self, callee: &Callee<'_>, review: Bytes) -> Result<Value, CallError>;
    /// An object in another version of its resource; `from` is `None` for a stored version that is not served.
    ///
    /// # Errors
    /// When a webhook would have to convert it, and does not.
    async fn convert(&self, from: Option<&ResourceInfo>, to: &ResourceInfo, object: Object) -> Result<Object, Status>;
    /// Where calls of webhooks are counted.
    fn hook_metrics(&self) -> &HookMetrics;
}

/// The plugins that change the object.
///
/// # Errors
/// The `Status` of the first that refuses.
pub(crate) async fn mutate(cluster: &dyn Cluster, a: &Attributes<'_>, object: &mut Object) -> Result<(), Status> {
    built_in(cluster, a, object).await?;
    let policies = cluster.policies().filter(|set| !set.only_judges());
    let webhooks = cluster.webhooks().filter(|set| !set.only_judges());
    if (policies.is_none() && webhooks.is_none()) || policy::is_exempt(a) {
        return Ok(());
    }
    let (mut for_policies, mut for_webhooks) = (Again::default(), Again::default());
    for is_first in [true, false] {
        let mut has_changed = false;
        if let Some(set) = &policies {
            has_changed |= policy::mutate(cluster, set, a, object, &mut for_policies).await?;
        }
        if let Some(set) = &webhooks {
            has_changed |= webhook::mutate(cluster, set, a, Some(&mut *object), &mut for_webhooks).await?;
        }
        if !has_changed || !is_first {
            break;
        }
        // what was added needs the same as what was sent
        built_in(cluster, a, object).await?;
    }
    Ok(())
}

/// The plugins that need nobody to be set up.
async fn built_in(cluster: &dyn Cluster, a: &Attributes<'_>, object: &mut Object) -> Result<(), Status> {
    lifecycle::admit(cluster, a, object)?;
    certificates::complete(a, object);
    if a.is("", "pods") && a.operation == Operation::Create {
        service_account::admit(cluster, a, object)?;
        pods::default_toleration_seconds(object);
        priority::admit_pod(cluster, a, object).await?;
        pods::runtime_class(cluster, a, object)?;
        limits::apply_defaults(cluster, a, object).await?;
    }
    if a.operation == Operation::Create {
        nodes::taint_new(a, object);
        storage::default_class(cluster, a, object).await?;
        storage::protect(a, object);
    }
    Ok(())
}

/// The plugins that only judge, on the object as it will be stored.
///
/// # Errors
/// The `Status` of the first that refuses.
pub(crate) async fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
    node_restriction::validate(cluster, a, object)?;
    if a.operation == Operation::Delete {
        lifecycle::admit_deletion(a)?;
        return by_others(cluster, a, None).await;
    }
    let Some(object) = object else { return Ok(()) };
    if a.operation == Operation::Connect {
        return by_others(cluster, a, Some(object)).await;
    }
    admin_access::validate(cluster, a, object)?;
    storage::growth(cluster, a, object)?;
    priority::validate_class(cluster, a, object).await?;
    certificates::validate(cluster, a, object)?;
    policy::check(a, object)?;
    webhook::check(a, object)?;
    rbac::no_escalation(cluster, a, object)?;
    pod_security::validate(cluster, a, object)?;
    limits::enforce(cluster, a, object).await?;
    by_others(cluster, a, Some(object)).await?;
    // last, so that nothing is charged for what another plugin refuses
    quota::charge(cluster, a, object).await
}

/// What administrators have set up: policies, then webhooks.
async fn by_others(cluster: &dyn Cluster, a: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
    if policy::is_exempt(a) {
        return Ok(());
    }
    let webhooks = cluster.webhooks();
    if let Some(set) = webhooks.as_ref().filter(|set| a.operation == Operation::Delete && !set.only_judges()) {
        // they may refuse a deletion, but there is nothing to change
        let mut again = Again::default();
        webhook::mutate(cluster, set, a, None, &mut again).await?;
    }
    policy::validate(cluster, a, object).await?;
    match webhooks {
        Some(set) => webhook::validate(cluster, &set, a, object).await,
        None => Ok(()),
    }
}

/// An array below a section, made where it is absent; `None` when something else is in its place (validation will say
/// so).
fn array_mut<'o>(section: &'o mut serde_json::Map<String, Value>, field: &str) -> Option<&'o mut Vec<Value>> {
    let slot = section.entry(field).or_insert_with(|| Value::Array(Vec::new()));
    if slot.is_null() {
        *slot = Value::Array(Vec::new());
    }
    slot.as_array_mut()
}

#[cfg(test)]
mod testing {
    use super::*;
    use edge_registry::{StorageClass, Verbs, strategy};
    use std::collections::BTreeMap;

    /// What a webhook answers to a review, given where it is.
    type Answer = fn(&edge_registry::custom::Endpoint, &Value) -> Result<Value, CallError>;

    /// A cluster made of a few objects, keyed by `group/resource/namespace/name`.
    #[derive(Default)]
    pub(super) struct Fake {
        pub(super) objects: BTreeMap<String, Object>,
        pub(super) rules_missing: Option<String>,
        pub(super) allowed: Vec<String>,
        /// Objects whose status was changed, as they became.
        pub(super) changed: parking_lot::Mutex<Vec<Object>>,
        pub(super) policies: Policies,
        pub(super) webhooks: Webhooks,
        pub(super) answer: Option<Answer>,
        pub(super) metrics: HookMetrics,
    }

    impl Fake {
        pub(super) fn with(mut self, key: &str, value: Value) -> Self {
            self.objects.insert(key.into(), Object::from_value(value).expect("test objects are objects"));
            self
        }
    }

    #[async_trait]
    impl Cluster for Fake {
        fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Object> {
            self.objects.get(&format!("{group}/{resource}/{namespace}/{name}")).cloned()
        }
        async fn list(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Object>, Status> {
            let prefix = format!("{group}/{resource}/{namespace}/");
            Ok(self.objects.iter().filter(|(k, _)| k.starts_with(&prefix)).map(|(_, v)| v.clone()).collect())
        }
        async fn update_status(
            &self,
            group: &str,
            resource: &str,
            namespace: &str,
            name: &str,
            change: &(dyn Fn(Object) -> Result<Object, Status> + Send + Sync),
        ) -> Result<(), Status> {
            let Some(object) = self.get(group, resource, namespace, name) else { return Ok(()) };
            let changed = change(object)?;
            self.changed.lock().push(changed);
            Ok(())
        }
        fn covers(&self, _: &UserInfo, _: &str, _: &[Value]) -> Result<(), String> {
            self.rules_missing.clone().map_or(Ok(()), Err)
        }
        fn may(&self, _: &UserInfo, verb: &str, resource: &GroupResource, _: &str, name: &str) -> bool {
            self.allowed.contains(&format!("{verb} {resource} {name}"))
        }
        fn decide(&self, user: &UserInfo, check: &edge_cel::Check) -> edge_cel::Decision {
            let resource = GroupResource::new(check.group.as_str(), check.resource.as_str());
            let allowed = self.may(user, &check.verb, &resource, &check.namespace, &check.name);
            edge_cel::Decision { allowed, ..Default::default() }
        }
        fn catalog(&self) -> &Catalog {
            static CATALOG: std::sync::LazyLock<Catalog> = std::sync::LazyLock::new(Catalog::builtin);
            &CATALOG
        }
        fn policies(&self) -> Option<Arc<policy::Set>> {
            self.policies.current()
        }
        fn webhooks(&self) -> Option<Arc<webhook::Set>> {
            self.webhooks.current()
        }
        async fn ask(&self, callee: &Callee<'_>, review: Bytes) -> Result<Value, CallError> {
            let review = serde_json::from_slice(&review).map_err(|e| CallError::Unreadable(e.to_string()))?;
            let nobody = || CallError::Send { url: callee.url(), why: "nobody is there".into() };
            self.answer.ok_or_else(nobody)?(callee.endpoint, &review)
        }
        async fn convert(
            &self,
            _: Option<&ResourceInfo>,
            to: &ResourceInfo,
            mut object: Object,
        ) -> Result<Object, Status> {
            object.set_gvk(&to.gvk());
            Ok(object)
        }
        fn hook_metrics(&self) -> &HookMetrics {
            &self.metrics
        }
    }

    /// Runs `f` with the attributes of a write by nobody in particular.
    pub(super) fn attributes<R>(
        operation: Operation,
        resource: (&str, &str, &str),
        namespace: &str,
        name: &str,
        f: impl FnOnce(&Attributes<'_>) -> R,
    ) -> R {
        let user = UserInfo::new("jane", ["dev"]);
        let info = row(resource);
        let subresource = "";
        let a = Attributes {
            operation,
            info: &info,
            subresource,
            namespace,
            name,
            user: &user,
            dry_run: false,
            old: None,
            field_manager: "",
            deletion: None,
        };
        f(&a)
    }

    fn row((group, plural, kind): (&str, &str, &str)) -> ResourceInfo {
        ResourceInfo {
            group: group.to_owned().into(),
            version: "v1".into(),
            plural: plural.to_owned().into(),
            singular: kind.to_lowercase().into(),
            kind: kind.to_owned().into(),
            list_kind: format!("{kind}List").into(),
            short_names: Vec::new(),
            categories: Vec::new(),
            namespaced: true,
            verbs: Verbs::ALL,
            subresources: Vec::new(),
            selectable_fields: Vec::new(),
            columns: Vec::new(),
            storage: StorageClass::Durable,
            prefix: plural.to_owned().into(),
            strategy: &strategy::DEFAULT,
            conversion: None,
            custom: None,
        }
    }

    pub(super) const POD: (&str, &str, &str) = ("", "pods", "Pod");
}
