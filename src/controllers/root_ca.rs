//! Every namespace has the API server's certificate authority in the ConfigMap `kube-root-ca.crt`, which the projected
//! token volumes of its pods include.

use crate::context::Context;
use crate::serviceaccount::settled;
use edge_client::{Api, Error, Outcome, Patch, PatchParams, PostParams, ResourceExt, WorkQueue, run_workers};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;
use std::collections::BTreeMap;

const NAME: &str = "kube-root-ca.crt";
const KEY: &str = "ca.crt";

pub(crate) async fn run(context: Context, ca: String) {
    let namespaces = context.informers.of::<Namespace>();
    // only these maps, not the whole cluster's
    let maps = context.informers.select::<ConfigMap>(&format!("metadata.name={NAME}"));
    let queue = WorkQueue::<String>::new();
    let (mut namespace_changes, mut map_changes) = (namespaces.subscribe(), maps.subscribe());
    namespaces.synced().await;
    maps.synced().await;
    let watch = async {
        loop {
            tokio::select! {
                Some(change) = namespace_changes.recv() => queue.add(change.object().name_any()),
                Some(change) = map_changes.recv() => queue.add(change.object().namespace().unwrap_or_default()),
                else => return,
            }
        }
    };
    let work = run_workers("root-ca", queue.clone(), 1, |name: String| {
        let living = namespaces.get("", &name).is_some_and(|n| n.metadata.deletion_timestamp.is_none());
        let known = maps.get(&name, NAME);
        let api: Api<ConfigMap> = Api::namespaced(context.client.clone(), &name);
        let data = BTreeMap::from([(KEY.to_owned(), ca.clone())]);
        async move {
            if !living {
                return Ok::<_, Error>(Outcome::Done);
            }
            match known {
                Some(map) if map.data.as_ref() == Some(&data) => Ok(Outcome::Done),
                Some(_) => {
                    let patch = Patch::Merge(json!({"data": data}));
                    settled(api.patch(NAME, &PatchParams::default(), &patch).await)
                }
                None => {
                    let annotation = "Contains a CA bundle that can be used to verify the kube-apiserver when using internal endpoints such as the internal service IP or kubernetes.default.svc. No other usage is guaranteed across distributions of Kubernetes clusters.";
                    let map = ConfigMap {
                        metadata: ObjectMeta {
                            name: Some(NAME.into()),
                            annotations: Some([("kubernetes.io/description".to_owned(), annotation.to_owned())].into()),
                            ..ObjectMeta::default()
                        },
                        data: Some(data),
                        ..ConfigMap::default()
                    };
                    settled(api.create(&PostParams::default(), &map).await)
                }
            }
        }
    });
    tokio::join!(watch, work);
}
