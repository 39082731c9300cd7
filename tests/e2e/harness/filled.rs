//! Many objects in the store of a server that does not run.

use super::Cluster;
use edge_storage::{Class, Lmdb, Op, Storage, Transaction};
use serde_json::{Value, json};

/// A ConfigMap of about a kilobyte.
fn object(n: usize) -> Value {
    let uid = format!("00000000-0000-4000-8000-{n:012}");
    let metadata = json!({"name": format!("many-{n}"), "namespace": "default", "uid": uid});
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"text": "x".repeat(800)}})
}

/// Puts so many hundreds of ConfigMaps `many-N` there.
pub(crate) fn fill(cluster: &Cluster, hundreds: usize) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let store = Lmdb::open(&cluster.data_dir().join("server/db")).unwrap();
    for block in 0..hundreds {
        let put = |i: usize| {
            let n = block * 100 + i;
            let key = format!("/registry/configmaps/default/many-{n}").into();
            Op::Put { key, value: object(n).to_string().into(), class: Class::Durable }
        };
        let transaction = Transaction { compares: Vec::new(), ops: (0..100).map(put).collect() };
        runtime.block_on(store.transact(transaction)).unwrap();
    }
}
