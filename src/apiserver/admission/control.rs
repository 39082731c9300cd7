//! The registry's seam: the plugins with a view of the running server behind them.

use super::{Cluster, HookMetrics, mutate, validate};
use crate::Server;
use crate::access::Ask;
use crate::outgoing::{CallError, Callee};
use async_trait::async_trait;
use bytes::Bytes;
use edge_api::{GroupResource, Object, Status, UserInfo};
use edge_registry::{Admission, Attributes, Catalog, Operation, ResourceInfo, Target, UpdateKind, WriteOptions};
use serde_json::Value;
use std::sync::{Arc, Weak};
use std::time::Duration;

/// How long the creation of a pod waits for the service account that a controller is about to make in a new namespace.
const ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);

/// Admission control. The server owns the registry that owns this, so this does not own the server.
pub(crate) struct AdmissionControl(Weak<Server>);

impl AdmissionControl {
    pub(crate) fn new(server: &Arc<Server>) -> Self {
        Self(Arc::downgrade(server))
    }

    fn server(&self) -> Result<Arc<Server>, Status> {
        self.0.upgrade().ok_or_else(|| Status::unavailable("the server is stopping"))
    }
}

#[async_trait]
impl Admission for AdmissionControl {
    async fn mutate(&self, attributes: &Attributes<'_>, object: &mut Object) -> Result<(), Status> {
        let server = self.server()?;
        let is_new_pod = attributes.operation == Operation::Create
            && (attributes.info.group.as_ref(), attributes.info.plural.as_ref()) == ("", "pods")
            && attributes.subresource.is_empty();
        if is_new_pod {
            wait_for_account(&server, attributes.namespace, object).await;
        }
        mutate(server.as_ref(), attributes, object).await
    }

    async fn validate(&self, attributes: &Attributes<'_>, object: Option<&Object>) -> Result<(), Status> {
        validate(self.server()?.as_ref(), attributes, object).await
    }
}

/// A pod may come right behind its namespace, before the controller has made the namespace's default account.
async fn wait_for_account(server: &Server, namespace: &str, pod: &Object) {
    const NAME: &str = "default";
    let wanted = pod.str_at("/spec/serviceAccountName");
    if !matches!(wanted, "" | NAME) || server.stored_object("", "serviceaccounts", namespace, NAME).is_some() {
        return;
    }
    if server.stored_object("", "namespaces", "", namespace).is_some() {
        let _ = tokio::time::timeout(ACCOUNT_PATIENCE, server.appears("serviceaccounts", namespace, NAME)).await;
    }
}

#[async_trait]
impl Cluster for Server {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Object> {
        self.stored_object(group, resource, namespace, name)
    }

    async fn list(&self, group: &str, resource: &str, namespace: &str) -> Result<Vec<Object>, Status> {
        self.stored_objects(group, resource, namespace, "").await
    }

    async fn list_having(&self, group: &str, resource: &str, text: &str) -> Result<Vec<Object>, Status> {
        self.stored_objects(group, resource, "", text).await
    }

    async fn update_status(
        &self,
        group: &str,
        resource: &str,
        namespace: &str,
        name: &str,
        change: &(dyn Fn(Object) -> Result<Object, Status> + Send + Sync),
    ) -> Result<(), Status> {
        let Some(row) = self.registry.catalog().preferred(group, resource) else { return Ok(()) };
        let target = Target { info: &row, namespace, name, subresource: "status" };
        let user = UserInfo::new("system:apiserver", [UserInfo::MASTERS]);
        let options = WriteOptions { user: &user, field_manager: "kube-apiserver", dry_run: false };
        let transform = |live: Option<&Object>| match live {
            Some(live) => change(live.clone()),
            None => Err(Status::not_found(&row.group_resource(), name)),
        };
        self.registry.update(&target, &options, UpdateKind::Patch, &transform).await.map(drop)
    }

    fn covers(&self, user: &UserInfo, namespace: &str, rules: &[Value]) -> Result<(), String> {
        self.access.covers(user, namespace, rules)
    }

    fn may(&self, user: &UserInfo, verb: &str, resource: &GroupResource, namespace: &str, name: &str) -> bool {
        let (group, resource) = (resource.group.as_str(), resource.resource.as_str());
        self.access.decide(user, Ask::Resource { verb, group, resource, subresource: "", namespace, name, node: "" }).0
    }

    fn decide(&self, user: &UserInfo, check: &edge_cel::Check) -> edge_cel::Decision {
        let account = check.service_account.as_ref().map(|(namespace, name)| {
            let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
            UserInfo::new(format!("system:serviceaccount:{namespace}:{name}"), groups)
        });
        let ask = if check.path.is_empty() {
            Ask::Resource {
                verb: &check.verb,
                group: &check.group,
                resource: &check.resource,
                subresource: &check.subresource,
                namespace: &check.namespace,
                name: &check.name,
                node: "",
            }
        } else {
            Ask::Path { verb: &check.verb, path: &check.path }
        };
        let (allowed, reason) = self.access.decide(account.as_ref().unwrap_or(user), ask);
        edge_cel::Decision { allowed, reason, error: String::new() }
    }

    fn catalog(&self) -> &Catalog {
        self.registry.catalog()
    }

    fn policies(&self) -> Option<Arc<super::policy::Set>> {
        self.policies.current()
    }

    fn webhooks(&self) -> Option<Arc<super::webhook::Set>> {
        self.webhooks.current()
    }

    async fn ask(&self, callee: &Callee<'_>, review: Bytes) -> Result<Value, CallError> {
        self.outgoing.post(callee, review).await
    }

    async fn convert(&self, from: Option<&ResourceInfo>, to: &ResourceInfo, object: Object) -> Result<Object, Status> {
        self.registry.convert(from, to, object).await
    }

    fn hook_metrics(&self) -> &HookMetrics {
        &self.hook_metrics
    }
}
