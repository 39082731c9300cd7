//! A node that cannot reach its API: real containers, images and networks, but nobody to report to. Needs root, and says so
//! when it is not.
//!
//! A program of its own, because the zygote must be forked, and the network namespace entered, before there are threads.
#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use edge_runtime::Zygote;
use libtest_mimic::{Arguments, Trial};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use support::Node;

static ZYGOTE: OnceLock<Zygote> = OnceLock::new();

/// Longer than anything takes on a busy machine; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() {
    let arguments = Arguments::from_args();
    if !arguments.list {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers and need root");
        // the node's bridge and rules must not meet those of this machine
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(ZYGOTE.set(Zygote::start().unwrap()).is_ok());
    }
    let trial = Trial::test("pods_known_locally_start_without_the_api_and_survive_a_restart", || {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        tokio.block_on(async {
            let node = Arc::new(Node::new(ZYGOTE.get().unwrap().clone()));
            let test = tokio::spawn(without_api(node.clone()));
            // a task of its own, so that a failure does not keep the rest from being cleaned up
            let result = tokio::time::timeout(PATIENCE, test).await;
            node.clean_up().await;
            result.map_err(|_| "the test did not end")?.map_err(|error| error.to_string())?;
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

const MAIN: &str = "cat /data/from-init; echo name=$(NAME) cpu=$(CPU) where=$WHERE host=$(hostname); cat /etc/hosts; \
    cat /etc/resolv.conf; id; cat /info/labels; echo words > /dev/termination-log; echo up; \
    trap 'echo bye; exit 0' TERM; while :; do sleep 1000 & wait $!; done";

async fn without_api(node: Arc<Node>) {
    let limits = json!({"limits": {"cpu": "500m", "memory": "64Mi"}});
    let mounts = json!([{"name": "data", "mountPath": "/data"}, {"name": "info", "mountPath": "/info"}]);
    node.save_pod(json!({
        "hostname": "here", "subdomain": "sub", "terminationGracePeriodSeconds": 5,
        "securityContext": {"fsGroup": 4711},
        "volumes": [
            {"name": "data", "emptyDir": {}},
            {"name": "info", "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]}},
        ],
        "initContainers": [{
            "name": "init", "image": "test/busybox:1", "command": ["sh", "-c", "echo written by init > /data/from-init; echo $UID"],
            "volumeMounts": mounts,
        }],
        "containers": [
            {
                "name": "main", "image": "test/busybox:1", "command": ["sh", "-c", MAIN], "resources": limits,
                "env": [
                    {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
                    {"name": "WHERE", "value": "$(NAME)/x"},
                ],
                "securityContext": {"runAsUser": 1000, "runAsGroup": 2000},
                "volumeMounts": mounts,
            },
            {"name": "crash", "image": "test/busybox:1", "command": ["sh", "-c", "echo try; exit 3"]},
            {"name": "absent", "image": "test/busybox:1", "command": ["/no/such/program"]},
        ],
    }));
    let kubelet = node.start().await;
    let log = node.wait_log(&kubelet, "main", "follow=true", "up\n").await;
    for expected in [
        "written by init\n",
        "name=p cpu=500 where=p/x host=here\n",
        "10.199.0.2\there.sub.ns.svc.cluster.local\there\n",
        "search ns.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.198.0.10\noptions ndots:5\n",
        "uid=1000 gid=2000 groups=4711\n",
        "app=\"test\"",
    ] {
        assert!(log.contains(expected), "{expected:?} is not in {log}");
    }
    // it ran twice, as the first restart is immediate; the next one is put off
    node.wait_log(&kubelet, "crash", "previous=true", "try\n").await;
    assert_eq!(node.get(&kubelet, "/containerLogs/ns/p/none").await.0, 404);
    assert_eq!(node.get(&kubelet, "/containerLogs/ns/q/main").await.0, 404);
    assert_eq!(node.get(&kubelet, "/containerLogs/ns/p/main?tailLines=x").await.0, 400);
    assert_eq!(node.get(&kubelet, "/exec/ns/p/main?command=true&output=1").await.0, 400, "not an upgrade");
    assert_eq!(node.get(&kubelet, "/exec/ns/p/absent?command=true&output=1").await.0, 404, "does not run");
    assert_eq!(node.get(&kubelet, "/elsewhere").await.0, 404);
    let before = node.container(&kubelet, "main").await;
    assert!(before["memory"]["usageBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{before}");
    let (status, metrics) = node.get(&kubelet, "/metrics/resource").await;
    assert!(status == 200 && metrics.contains("pod_memory_working_set_bytes{namespace=\"ns\",pod=\"p\"}"), "{metrics}");
    kubelet.stop().await;

    // another life of the agent: the same containers, the same log, the same count of restarts
    let kubelet = node.start().await;
    let after = node.container(&kubelet, "main").await;
    assert_eq!(before["startTime"], after["startTime"], "the container was not restarted");
    let again = node.wait_log(&kubelet, "main", "", "up\n").await;
    assert_eq!(again, log);
    node.wait_log(&kubelet, "crash", "previous=true", "try\n").await;
    // a killed process comes back
    node.kill_main();
    node.wait_log(&kubelet, "main", "previous=true", "up\n").await;
    node.wait_log(&kubelet, "main", "follow=true", "up\n").await;
    kubelet.stop().await;
}
