//! The `kube` crate as a client: typed objects, watches, server-side apply.

use crate::harness::Cluster;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};

/// A client with the rights of the administrator.
pub(crate) async fn client(cluster: &Cluster) -> kube::Client {
    let mut kubeconfig = Kubeconfig::read_from(cluster.kubeconfig()).unwrap();
    for c in &mut kubeconfig.clusters {
        c.cluster.as_mut().unwrap().server = Some(format!("https://{}:6443", cluster.ip));
    }
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    kube::Client::try_from(config).unwrap()
}

#[tokio::test]
async fn typed_access_watch_and_apply() {
    let cluster = Cluster::start();
    let api: Api<ConfigMap> = Api::default_namespaced(client(&cluster).await);
    let mut map = ConfigMap::default();
    map.metadata.name = Some("a".into());
    map.data = Some([("k".to_owned(), "1".to_owned())].into());
    let made = api.create(&PostParams::default(), &map).await.unwrap();
    let version = made.metadata.resource_version.clone().unwrap();

    let mut watch = api.watch(&WatchParams::default().fields("metadata.name=a"), &version).await.unwrap().boxed();
    let apply =
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"l": "2"}});
    api.patch("a", &PatchParams::apply("tester"), &Patch::Apply(&apply)).await.unwrap();
    let event = watch.try_next().await.unwrap().unwrap();
    let WatchEvent::Modified(seen) = event else { panic!("{event:?}") };
    assert_eq!(seen.data.unwrap().len(), 2);

    let conflict =
        serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"l": "3"}});
    let error = api.patch("a", &PatchParams::apply("other"), &Patch::Apply(&conflict)).await.unwrap_err();
    let kube::Error::Api(status) = &error else { panic!("{error}") };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"), "{status:?}");
    assert!(status.message.contains("conflict with \"tester\""), "{}", status.message);

    let mut stale = made;
    stale.data = None;
    let error = api.replace("a", &PostParams::default(), &stale).await.unwrap_err();
    assert!(matches!(&error, kube::Error::Api(s) if s.code == 409), "{error}");

    api.delete("a", &Default::default()).await.unwrap();
    assert!(matches!(watch.try_next().await.unwrap().unwrap(), WatchEvent::Deleted(_)));
    assert!(
        !api.list(&ListParams::default()).await.unwrap().items.iter().any(|m| m.metadata.name.as_deref() == Some("a"))
    );
}
