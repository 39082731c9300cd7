//! Two registries, as two servers have them, on one etcd: each is as right as if it were alone.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_api::{Object, Status, UserInfo};
use edge_registry::{
    DeleteOptions, EventKind, ListOptions, Options, Registry, Stored, Target, UpdateKind, WatchOptions, WriteOptions,
};
use edge_storage::Etcd;
use edge_storage::testing::Server;
use futures::StreamExt;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

async fn registry(server: &Server) -> Arc<Registry> {
    let etcd = Etcd::connect(&server.options()).await.unwrap();
    let options = Options { service_networks: vec![("10.43.0.0".parse().unwrap(), 25)], node_ports: 30000..=30099 };
    Registry::open(Arc::new(etcd), options).await.unwrap()
}

async fn create(registry: &Registry, plural: &str, object: Value) -> Result<Stored, Status> {
    let row = registry.catalog().preferred("", plural).unwrap();
    let user = UserInfo::new("test", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "test", dry_run: false };
    let target = Target { info: &row, namespace: "default", name: "", subresource: "" };
    registry.create(&target, &options, Object::from_value(object).unwrap()).await
}

async fn get(registry: &Registry, plural: &str, name: &str) -> Result<Stored, Status> {
    let row = registry.catalog().preferred("", plural).unwrap();
    registry.get_at(&Target { info: &row, namespace: "default", name, subresource: "" }, "").await
}

async fn list(registry: &Registry, plural: &str, options: &ListOptions) -> Result<edge_registry::List, Status> {
    let row = registry.catalog().preferred("", plural).unwrap();
    registry.list(&Target { info: &row, namespace: "", name: "", subresource: "" }, options).await
}

/// Adds one to a number in the data of a ConfigMap, or makes it.
async fn count(registry: &Registry, name: &str) -> Result<Stored, Status> {
    let row = registry.catalog().preferred("", "configmaps").unwrap();
    let user = UserInfo::new("test", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "test", dry_run: false };
    let target = Target { info: &row, namespace: "default", name, subresource: "" };
    let transform = |live: Option<&Object>| {
        let mut new = live.cloned().ok_or_else(|| Status::not_found(&row.group_resource(), name))?;
        let number: u64 = new.str_at("/data/n").parse().unwrap_or(0);
        new.section_mut("data").insert("n".into(), (number + 1).to_string().into());
        Ok(new)
    };
    registry.update(&target, &options, UpdateKind::Patch, &transform).await.map(|u| u.object)
}

async fn delete(registry: &Registry, name: &str) -> Result<(), Status> {
    let row = registry.catalog().preferred("", "configmaps").unwrap();
    let user = UserInfo::new("test", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "test", dry_run: false };
    let target = Target { info: &row, namespace: "default", name, subresource: "" };
    registry.delete(&target, &options, &DeleteOptions::default()).await.map(drop)
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_has_acknowledged_the_other_knows() {
    let server = Server::start();
    let (one, two) = (registry(&server).await, registry(&server).await);
    for i in 0..100 {
        let (a, b) = if i % 2 == 0 { (&one, &two) } else { (&two, &one) };
        create(a, "configmaps", config_map("x")).await.unwrap();
        assert_eq!(create(b, "configmaps", config_map("x")).await.unwrap_err().code, 409);
        let counted = count(b, "x").await.unwrap();
        let seen = get(a, "configmaps", "x").await.unwrap();
        assert_eq!((seen.resource_version(), seen.bytes()), (counted.resource_version(), counted.bytes()));
        let all = list(b, "configmaps", &ListOptions::default()).await.unwrap();
        assert_eq!((all.items.len(), all.items[0].bytes()), (1, counted.bytes()));
        delete(a, "x").await.unwrap();
        assert_eq!(get(b, "configmaps", "x").await.unwrap_err().code, 404);
        assert_eq!(delete(b, "x").await.unwrap_err().code, 404);
        assert!(list(b, "configmaps", &ListOptions::default()).await.unwrap().items.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_update_is_lost_between_them() {
    let server = Server::start();
    let both = [registry(&server).await, registry(&server).await];
    create(&both[0], "configmaps", config_map("n")).await.unwrap();
    let counters: Vec<_> = (0..8)
        .map(|i| {
            let registry = both[i % 2].clone();
            tokio::spawn(async move {
                for _ in 0..25 {
                    count(&registry, "n").await.unwrap();
                }
            })
        })
        .collect();
    for counter in counters {
        counter.await.unwrap();
    }
    for registry in &both {
        assert_eq!(get(registry, "configmaps", "n").await.unwrap().object().unwrap().str_at("/data/n"), "200");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_never_get_the_same_address_or_port() {
    let server = Server::start();
    let both = [registry(&server).await, registry(&server).await];
    let makers: Vec<_> = (0..80)
        .map(|i| {
            let registry = both[i % 2].clone();
            tokio::spawn(async move {
                let spec = json!({"type": "NodePort", "ports": [{"port": 80}]});
                let meta = json!({"name": format!("s{i}")});
                let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec});
                create(&registry, "services", object).await.unwrap().object().unwrap()
            })
        })
        .collect();
    let (mut addresses, mut ports) = (BTreeSet::new(), BTreeSet::new());
    for maker in makers {
        let service = maker.await.unwrap();
        let address = service.str_at("/spec/clusterIP").to_owned();
        assert!(addresses.insert(address.clone()), "{address} was given out twice");
        let port = service.pointer("/spec/ports/0/nodePort").and_then(Value::as_u64).unwrap();
        assert!(ports.insert(port), "port {port} was given out twice");
    }
    // a registry that starts now knows them all
    let third = registry(&server).await;
    let taken = addresses.first().unwrap();
    let meta = json!({"name": "late"});
    let spec = json!({"clusterIP": taken, "ports": [{"port": 80}]});
    let object = json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec});
    let refused = create(&third, "services", object).await.unwrap_err();
    assert!(refused.message.contains("already allocated"), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_and_watches_go_on_at_the_other_server() {
    let server = Server::start();
    let (one, two) = (registry(&server).await, registry(&server).await);
    for i in 0..10 {
        create(&one, "configmaps", config_map(&format!("c{i}"))).await.unwrap();
    }
    let page = list(&one, "configmaps", &ListOptions { limit: 4, ..ListOptions::default() }).await.unwrap();
    create(&one, "configmaps", config_map("c99")).await.unwrap();
    let continued = ListOptions { continue_token: page.continue_token, ..ListOptions::default() };
    let rest = list(&two, "configmaps", &continued).await.unwrap();
    assert_eq!((rest.items.len(), rest.resource_version), (6, page.resource_version));
    let row = two.catalog().preferred("", "configmaps").unwrap();
    let target = Target { info: &row, namespace: "", name: "", subresource: "" };
    let after = WatchOptions { resource_version: page.resource_version.to_string(), ..WatchOptions::default() };
    let mut events = two.watch(&target, &after).await.unwrap();
    delete(&one, "c99").await.unwrap();
    for kind in [EventKind::Added, EventKind::Deleted] {
        let event = events.next().await.unwrap();
        assert_eq!((event.kind, event.object.name()), (kind, "c99"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_of_etcd_is_survived() {
    let mut server = Server::start();
    let (one, two) = (registry(&server).await, registry(&server).await);
    for i in 0..5 {
        create(&one, "configmaps", config_map(&format!("c{i}"))).await.unwrap();
        server.restart();
        assert_eq!(list(&two, "configmaps", &ListOptions::default()).await.unwrap().items.len(), i + 1);
    }
    server.kill();
    // a write that meets a connection that has just broken may be called unknown, so a read finds that out first
    for refused in [get(&one, "configmaps", "c0").await, create(&one, "configmaps", config_map("no")).await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.code, 503, "{refused:?}");
        assert!(refused.message.contains("no etcd answers"), "{refused:?}");
    }
    // what is in memory is there all the same, for those whom it is good enough
    let any = ListOptions { resource_version: "0".into(), ..ListOptions::default() };
    assert_eq!(list(&two, "configmaps", &any).await.unwrap().items.len(), 5);
    assert!(server.launch());
    create(&one, "configmaps", config_map("yes")).await.unwrap();
    get(&two, "configmaps", "yes").await.unwrap();
}

/// What one server defines, the other one serves; what is written by the one is read by the other.
#[tokio::test]
async fn definitions_are_followed_by_all_servers() {
    let server = Server::start();
    let (a, b) = (registry(&server).await, registry(&server).await);
    let user = UserInfo::new("test", [UserInfo::MASTERS]);
    let options = WriteOptions { user: &user, field_manager: "test", dry_run: false };
    let row = a.catalog().preferred("apiextensions.k8s.io", "customresourcedefinitions").unwrap();
    let definition = json!({"metadata": {"name": "foos.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "foos", "singular": "foo", "kind": "Foo", "listKind": "FooList"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer", "default": 7}}}}}}}]}});
    let all = Target { info: &row, namespace: "", name: "", subresource: "" };
    a.create(&all, &options, Object::from_value(definition).unwrap()).await.unwrap();
    let establish = |live: Option<&Object>| {
        let mut new = live.cloned().unwrap();
        let names = new.pointer("/spec/names").cloned().unwrap();
        let status = json!({"acceptedNames": names, "conditions": [{"type": "Established", "status": "True"}]});
        new.fields_mut().insert("status".into(), status);
        Ok(new)
    };
    let status = Target { name: "foos.example.com", subresource: "status", ..all };
    a.update(&status, &options, UpdateKind::Patch, &establish).await.unwrap();
    // visible here is served here
    let foos = a.catalog().resource("example.com", "v1", "foos").unwrap();
    let foo = json!({"metadata": {"name": "x", "namespace": "default"}, "spec": {}});
    let target = Target { info: &foos, namespace: "default", name: "", subresource: "" };
    a.create(&target, &options, Object::from_value(foo).unwrap()).await.unwrap();
    // and there once it has caught up
    b.catch_up().await.unwrap();
    let foos = b.catalog().resource("example.com", "v1", "foos").unwrap();
    let target = Target { info: &foos, namespace: "default", name: "x", subresource: "" };
    let found = b.get_at(&target, "").await.unwrap().object().unwrap();
    assert_eq!(found.pointer("/spec/n"), Some(&json!(7)));
    // a third one that comes later has read it before it answers
    let c = registry(&server).await;
    let foos = c.catalog().resource("example.com", "v1", "foos").unwrap();
    c.get(&Target { info: &foos, ..target }).unwrap();
}
