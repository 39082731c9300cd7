//! Devices of device plugins in real containers, and who is told of them: the tests are the plugins and those who ask.

use crate::harness::plugin::{Manner, Plugin, ask, parts, texts};
use crate::harness::space::Space;
use crate::harness::{Cluster, eventually};
use edge_grpc::wire::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::path::PathBuf;

const GPU: &str = "test.io/gpu";

/// A cluster with a plugin that has two devices.
struct Stage<'a> {
    space: Space<'a>,
    plugin: &'a Plugin,
}

fn container(name: &str, number: u32, script: &str) -> Value {
    let resources = json!({"limits": {GPU: number.to_string()}});
    json!({"name": name, "image": "busybox:test", "command": ["sh", "-c", script], "resources": resources})
}

/// Says what it sees, and waits.
const LOOK: &str = "echo gpus=$GPUS; test -c /dev/test-gpu && echo node; echo x > /dev/test-gpu && echo usable; \
                    test -s /gpu/info && echo info; touch /gpu/info 2>/dev/null || echo read-only; echo end; \
                    trap 'exit 0' TERM; while true; do sleep 1; done";

impl Stage<'_> {
    fn pod(&self, name: &str, number: u32) {
        self.pod_with(name, json!({"containers": [container("main", number, LOOK)]}));
    }

    fn pod_with(&self, name: &str, mut spec: Value) {
        spec["terminationGracePeriodSeconds"] = 1.into();
        let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec});
        self.space.apply(&object.to_string());
    }

    fn log(&self, pod: &str) -> String {
        eventually(&format!("{pod} has said all"), || {
            let log = self.space.kubectl(&["logs", pod]);
            if log.contains("end") { Ok(log.replace('\n', " ")) } else { Err(log) }
        })
    }

    fn reaches(&self, what: &str, path: &str, want: &str) {
        eventually(&format!("{what} {path} is {want}"), || {
            let now = self.space.field(what, path);
            if now == want { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    fn contains(&self, what: &str, path: &str, part: &str) {
        eventually(&format!("{what} {path} has {part}"), || {
            let now = self.space.field(what, path);
            if now.contains(part) { Ok(()) } else { Err(format!("{now:?}")) }
        });
    }

    /// What the node has, and what pods can have of it.
    fn on_node(&self, capacity: &str, allocatable: &str) {
        self.reaches("node/node-1", ".status.capacity.test\\.io/gpu", capacity);
        self.reaches("node/node-1", ".status.allocatable.test\\.io/gpu", allocatable);
    }

    fn waits(&self, pod: &str) {
        eventually(&format!("{pod} waits for a device"), || {
            let field = format!("--field-selector=involvedObject.name={pod}");
            let messages = self.space.kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"]);
            if messages.contains("Insufficient test.io/gpu") { Ok(()) } else { Err(messages) }
        });
    }

    fn delete(&self, pods: &[&str]) {
        let mut args = vec!["delete", "pod", "--timeout=60s"];
        args.extend(pods);
        self.space.kubectl(&args);
    }

    /// The devices of a pod's main container, as it says.
    fn sees(&self, pod: &str, gpus: &str) {
        self.space.ready(&[pod]);
        assert_eq!(self.log(pod).trim(), format!("gpus={gpus} node usable info read-only end"));
    }
}

#[test]
fn plugins_give_devices_to_containers() {
    let mut cluster = Cluster::start();
    let folder = cluster.data_dir().join("agent/device-plugins");
    cluster.kubectl(&["create", "namespace", "gpus"]);
    let mut plugin = Plugin::start(&folder, GPU, &["gpu-0", "gpu-1"]);
    {
        let s = Stage { space: Space { cluster: &cluster, name: "gpus" }, plugin: &plugin };
        s.on_node("2", "2");
        containers_have_their_devices(&s);
        who_asks_is_told(&s);
        health_counts(&s);
        containers_of_a_pod(&s);
        plugins_that_do_not_work(&s);
    }
    who_goes_comes_back(&cluster, &mut plugin);
    killed_and_back(&mut cluster, &mut plugin);
    who_is_found_needs_no_call(&mut cluster);
}

fn containers_have_their_devices(s: &Stage<'_>) {
    let refused = s.plugin.register("v2").unwrap_err();
    assert!(refused.words.contains("requested API version \"v2\" is not supported"), "{refused}");
    s.pod("first", 1);
    s.sees("first", "gpu-1");
    assert_eq!(s.plugin.calls(), ["allocate gpu-1", "start gpu-1"]);
    s.pod("second", 1);
    s.sees("second", "gpu-0");
    s.pod("third", 1);
    s.waits("third");
    // a container that starts again has what it had, made ready again
    s.plugin.calls();
    s.space.kubectl(&["exec", "first", "--", "kill", "1"]);
    s.reaches("pod/first", ".status.containerStatuses[0].restartCount", "1");
    s.sees("first", "gpu-1");
    assert_eq!(s.plugin.calls(), ["start gpu-1"]);
    // what a pod has had is the next one's
    s.delete(&["first"]);
    s.sees("third", "gpu-1");
    // one that the scheduler has not seen is refused
    let spec = json!({"nodeName": "node-1", "containers": [container("main", 1, LOOK)]});
    s.pod_with("pushed", spec);
    s.reaches("pod/pushed", ".status.phase", "Failed");
    assert_eq!(s.space.field("pod/pushed", ".status.reason"), "UnexpectedAdmissionError");
    let why = "Pod was rejected: Allocate failed due to requested number of devices unavailable for test.io/gpu. \
               Requested: 1, Available: 0, which is unexpected";
    assert_eq!(s.space.field("pod/pushed", ".status.message"), why);
    s.delete(&["pushed"]);
}

fn who_asks_is_told(s: &Stage<'_>) {
    let socket: PathBuf = s.space.cluster.data_dir().join("agent/pod-resources/kubelet.sock");
    let ask = |method: &str, message: Message| ask(&socket, &format!("/v1.PodResourcesLister/{method}"), message);
    let one = |message| texts(message, 1).remove(0);
    let devices = |container: bytes::Bytes| -> Vec<String> {
        parts(container, 2).into_iter().map(|d| format!("{} {}", one(d.clone()), texts(d, 2).join("+"))).collect()
    };
    let containers = |pod: bytes::Bytes| -> Vec<String> {
        parts(pod, 3).into_iter().map(|c| format!("{} {}", one(c.clone()), devices(c).join(" "))).collect()
    };
    let list = ask("List", Message::default()).unwrap();
    let mine = parts(list, 1).into_iter().filter(|pod| texts(pod.clone(), 2) == ["gpus"]);
    let all: Vec<String> = mine.map(|pod| format!("{}: {}", one(pod.clone()), containers(pod).join(", "))).collect();
    assert_eq!(all, ["second: main test.io/gpu gpu-0", "third: main test.io/gpu gpu-1"]);
    let get = |name: &str| ask("Get", Message::default().text(1, name).text(2, "gpus"));
    let pod = parts(get("third").unwrap(), 1).remove(0);
    assert_eq!(containers(pod), ["main test.io/gpu gpu-1"]);
    assert_eq!(get("first").unwrap_err().words, "pod first in namespace gpus not found");
    let allocatable = ask("GetAllocatableResources", Message::default()).unwrap();
    let all: Vec<String> = parts(allocatable, 1).into_iter().map(|d| texts(d, 2).join("+")).collect();
    assert_eq!(all, ["gpu-0", "gpu-1"]);
    // who asks too often is told so
    let mut refused = None;
    for _ in 0..2000 {
        refused = refused.or(get("third").err());
    }
    assert!(refused.is_none_or(|error| error.words == "rejected by rate limit"));
    let metrics = s.space.kubectl(&["get", "--raw", "/api/v1/nodes/node-1/proxy/metrics"]);
    for line in [
        "kubelet_device_plugin_registration_total{resource_name=\"test.io/gpu\"} 1",
        "kubelet_device_plugin_alloc_duration_seconds_count{resource_name=\"test.io/gpu\"} 3",
        "kubelet_pod_resources_endpoint_requests_list{server_api_version=\"v1\"} 1",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} {metrics}");
    }
}

fn health_counts(s: &Stage<'_>) {
    let health = ".status.containerStatuses[0].allocatedResourcesStatus[0]";
    assert_eq!(s.space.field("pod/second", &format!("{health}.name")), GPU);
    assert_eq!(s.space.field("pod/second", &format!("{health}.resources[0].resourceID")), "gpu-0");
    for (is_healthy, word, left) in [(true, "Healthy", "2"), (false, "Unhealthy", "1"), (true, "Healthy", "2")] {
        s.plugin.tell("gpu-0", is_healthy);
        s.reaches("pod/second", &format!("{health}.resources[0].health"), word);
        s.on_node("2", left);
    }
    s.delete(&["second", "third"]);
}

fn containers_of_a_pod(s: &Stage<'_>) {
    let init = container("init", 2, "echo init=$GPUS");
    s.pod_with("parts", json!({"initContainers": [init], "containers": [container("main", 1, LOOK)]}));
    s.space.ready(&["parts"]);
    let init = s.space.kubectl(&["logs", "parts", "-c", "init"]);
    assert_eq!(init.trim(), "init=gpu-0+gpu-1");
    // the main container has one of the two
    let main = s.log("parts");
    assert!(main.starts_with("gpus=gpu-0 node") || main.starts_with("gpus=gpu-1 node"), "{main}");
    s.delete(&["parts"]);
    // a pod that ends by itself gives its devices back
    let spec = json!({"restartPolicy": "Never", "containers": [container("main", 2, "echo end")]});
    s.pod_with("ends", spec);
    s.reaches("pod/ends", ".status.phase", "Succeeded");
    s.pod("after", 2);
    s.sees("after", "gpu-0+gpu-1");
    s.delete(&["ends", "after"]);
}

fn plugins_that_do_not_work(s: &Stage<'_>) {
    for (name, manner, why) in [
        ("refused", Manner::Fails, "rpc error: code = FailedPrecondition desc = no such luck, the test says"),
        ("garbled", Manner::Garbage, "allocation response: the message is malformed"),
    ] {
        s.plugin.does(manner);
        s.pod(name, 2);
        s.reaches(&format!("pod/{name}"), ".status.phase", "Failed");
        let message = format!("Pod was rejected: Allocate failed due to {why}, which is unexpected");
        assert_eq!(s.space.field(&format!("pod/{name}"), ".status.message"), message);
    }
    // a call that hangs keeps no pod from going, and no other from coming
    s.plugin.does(Manner::Hangs);
    s.plugin.calls();
    s.pod("hanging", 1);
    s.plugin.asked("allocate gpu-1");
    s.space.client("bystander");
    s.space.ready(&["bystander"]);
    s.delete(&["hanging", "bystander", "refused", "garbled"]);
    s.plugin.does(Manner::NotReady);
    s.pod("unready", 2);
    let waiting = ".status.containerStatuses[0].state.waiting";
    s.reaches("pod/unready", &format!("{waiting}.reason"), "CreateContainerConfigError");
    let why = "device plugin PreStartContainer rpc failed with err: rpc error: code = FailedPrecondition desc = it is \
               not ready, the test says";
    s.contains("pod/unready", &format!("{waiting}.message"), why);
    s.plugin.does(Manner::Well);
    s.sees("unready", "gpu-0+gpu-1");
    s.delete(&["unready"]);
}

fn who_goes_comes_back(cluster: &Cluster, plugin: &mut Plugin) {
    let space = || Space { cluster, name: "gpus" };
    {
        let s = Stage { space: space(), plugin };
        s.pod("stays", 1);
        s.sees("stays", "gpu-1");
    }
    plugin.stop();
    {
        let s = Stage { space: space(), plugin };
        s.on_node("2", "0");
        s.reaches(
            "pod/stays",
            ".status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health",
            "Unknown",
        );
        s.pod("late", 1);
        s.waits("late");
        assert_eq!(s.space.field("pod/stays", ".status.phase"), "Running");
    }
    plugin.resume();
    let s = Stage { space: space(), plugin };
    s.on_node("2", "2");
    s.sees("late", "gpu-0");
    s.delete(&["late"]);
}

fn killed_and_back(cluster: &mut Cluster, plugin: &mut Plugin) {
    let id = {
        let s = Stage { space: Space { cluster, name: "gpus" }, plugin };
        // one is killed with the agent while its plugin works on it
        plugin.does(Manner::Hangs);
        plugin.calls();
        s.pod("killed", 1);
        plugin.asked("allocate gpu-0");
        s.space.field("pod/stays", ".status.containerStatuses[0].containerID")
    };
    cluster.stop(Signal::SIGKILL);
    plugin.does(Manner::Well);
    cluster.launch();
    {
        let s = Stage { space: Space { cluster, name: "gpus" }, plugin };
        s.on_node("0", "0");
        assert_eq!(s.space.field("pod/killed", ".status.phase"), "Pending");
    }
    plugin.resume();
    {
        let s = Stage { space: Space { cluster, name: "gpus" }, plugin };
        s.on_node("2", "2");
        // it has what nobody else has, and who was there before goes on
        s.sees("killed", "gpu-0");
        assert_eq!(s.space.field("pod/stays", ".status.containerStatuses[0].containerID"), id);
        let health = ".status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health";
        s.reaches("pod/stays", health, "Healthy");
        s.pod("third", 1);
        s.waits("third");
        s.delete(&["stays"]);
        s.sees("third", "gpu-1");
    }
    // deleted after the agent has been away
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    plugin.resume();
    let s = Stage { space: Space { cluster, name: "gpus" }, plugin };
    s.delete(&["third", "killed"]);
    s.pod("last", 2);
    s.sees("last", "gpu-0+gpu-1");
}

/// A plugin in the folder of plugins, where the kubelet finds it at each start.
fn who_is_found_needs_no_call(cluster: &mut Cluster) {
    let folder = cluster.data_dir().join("agent/plugins_registry");
    let found = |cluster: &Cluster, want: &str| {
        let number = |of: &str| {
            let path = format!("jsonpath={{.status.{of}.test\\.io/found}}");
            cluster.kubectl(&["get", "node", "node-1", "-o", &path])
        };
        eventually(&format!("of what is found there is {want}"), || {
            let now = format!("{} {}", number("capacity"), number("allocatable"));
            if now == want { Ok(()) } else { Err(now) }
        });
    };
    let nameless = Plugin::start_to_be_found(&folder, "kubernetes.io/none", &["none"]);
    nameless.asked("registered false");
    let mut plugin = Plugin::start_to_be_found(&folder, "test.io/found", &["one", "two"]);
    plugin.asked("registered true");
    found(cluster, "2 2");
    plugin.stop();
    found(cluster, "2 0");
    plugin.resume();
    found(cluster, "2 2");
    plugin.calls();
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    plugin.asked("registered true");
    found(cluster, "2 2");
}
