//! The end of a definition: its objects go first.

use super::update_status;
use crate::Server;
use edge_api::{Object, Status, UserInfo};
use edge_registry::custom::CLEANUP;
use edge_registry::strategy::definition::set_condition;
use edge_registry::{DeleteOptions, List, ListOptions, ResourceInfo, Target, WatchOptions, WriteOptions};
use futures::StreamExt;
use serde_json::Value;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Deletes all objects of a definition, waits until they are gone, and lets the definition go. A later one of the same name is another.
///
/// # Errors
/// When something cannot be read or written.
pub(super) async fn run(server: &Arc<Server>, name: &str, uid: &str) -> Result<(), Status> {
    let change = |status: bool, reason: &'static str, message: &'static str, is_over: bool| {
        move |mut live: Object| {
            if live.uid() != uid {
                return Ok(live);
            }
            set_condition(&mut live, "Terminating", status, reason, message);
            if is_over && let Some(list) = live.metadata_mut().get_mut("finalizers").and_then(Value::as_array_mut) {
                list.retain(|f| f != CLEANUP);
            }
            Ok(live)
        }
    };
    let Some(defined) = server.registry.catalog().defined(name) else {
        let never = change(false, "NeverEstablished", "resource was never established", true);
        return update_status(server, name, &never).await;
    };
    let begun = change(true, "InstanceDeletionInProgress", "CustomResource deletion is in progress", false);
    update_status(server, name, &begun).await?;
    empty(server, &defined.storage).await?;
    let over = change(false, "InstanceDeletionCompleted", "removed all instances", true);
    update_status(server, name, &over).await
}

/// Returns when there are no objects any more; some may wait for finalizers.
async fn empty(server: &Arc<Server>, row: &ResourceInfo) -> Result<(), Status> {
    let all = Target { info: row, namespace: "", name: "", subresource: "" };
    loop {
        let list = server.registry.list(&all, &ListOptions::default()).await?;
        if list.items.is_empty() {
            return Ok(());
        }
        let options = WatchOptions { resource_version: list.resource_version.to_string(), ..WatchOptions::default() };
        let mut changes = server.registry.watch(&all, &options).await?;
        delete_all(server, row, &list).await?;
        loop {
            if server.registry.list(&all, &ListOptions::default()).await?.items.is_empty() {
                return Ok(());
            }
            if changes.next().await.is_none() {
                break;
            }
        }
    }
}

async fn delete_all(server: &Arc<Server>, row: &ResourceInfo, list: &List) -> Result<(), Status> {
    let user = UserInfo::new("system:apiserver", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "kube-apiserver", dry_run: false };
    let namespaces: BTreeSet<&str> = list.items.iter().map(edge_registry::Stored::namespace).collect();
    for namespace in namespaces {
        let target = Target { info: row, namespace, name: "", subresource: "" };
        let everything = ListOptions::default();
        server.registry.delete_collection(&target, &options, &everything, &DeleteOptions::default()).await?;
    }
    Ok(())
}
