//! Devices of real containers: the tests are the drivers, the kubelet and the scheduler are edge's.

use crate::harness::driver::{Driver, Manner, hook_has_run};
use crate::harness::plugin::{ask, parts, texts};
use crate::harness::space::Space;
use crate::harness::{Cluster, eventually};
use edge_grpc::wire::Message;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A driver with a slice of devices, and a class of them.
struct Stage<'a> {
    space: Space<'a>,
    driver: &'a Driver,
    name: String,
}

impl Stage<'_> {
    /// Tells of two devices of the node.
    fn publish(&self) {
        let devices = json!([{"name": "gpu-0"}, {"name": "gpu-1"}]);
        let pool = json!({"name": "pool", "generation": 1, "resourceSliceCount": 1});
        let spec = json!({"driver": self.name, "nodeName": "node-1", "pool": pool, "devices": devices});
        self.apply("ResourceSlice", "gpus", spec);
    }

    fn apply(&self, kind: &str, name: &str, spec: Value) {
        let object =
            json!({"apiVersion": "resource.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        self.space.apply(&object.to_string());
    }

    fn class(&self) {
        let expression = format!("device.driver == '{}'", self.name);
        let selectors = json!([{"cel": {"expression": expression}}]);
        self.apply("DeviceClass", "gpu", json!({"selectors": selectors, "extendedResourceName": "example.com/gpu"}));
        let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu"}});
        self.apply("ResourceClaimTemplate", "gpu", json!({"spec": {"devices": {"requests": [request]}}}));
    }

    /// A pod with a device of its own that says what it sees.
    fn pod(&self, name: &str) {
        let resources = json!({"claims": [{"name": "gpu"}]});
        self.pod_with(name, resources, json!([{"name": "gpu", "resourceClaimTemplateName": "gpu"}]));
    }

    fn pod_with(&self, name: &str, resources: Value, claims: Value) {
        let script = "echo of=$GPU_OF by=$GPU_DRIVER; test -c /dev/test-gpu && echo node; echo x > /dev/test-gpu && echo usable; \
                      test -s /gpu/info && echo info; touch /gpu/info 2>/dev/null || echo read-only; echo end; \
                      trap 'exit 0' TERM; while true; do sleep 1; done";
        let container =
            json!({"name": "main", "image": "busybox:test", "command": ["sh", "-c", script], "resources": resources});
        let spec = json!({"terminationGracePeriodSeconds": 1, "containers": [container], "resourceClaims": claims});
        self.space
            .apply(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}).to_string());
    }

    fn claim_of(&self, pod: &str) -> String {
        self.field(pod, ".status.resourceClaimStatuses[0].resourceClaimName")
    }

    fn field(&self, pod: &str, path: &str) -> String {
        let pod = format!("pod/{pod}");
        eventually(&format!("{pod} {path}"), || {
            let value = self.space.field(&pod, path);
            if value.is_empty() { Err("empty".into()) } else { Ok(value) }
        })
    }

    fn log(&self, pod: &str) -> String {
        eventually(&format!("{pod} has said all"), || {
            let log = self.space.kubectl(&["logs", pod]);
            if log.contains("end") { Ok(log.replace('\n', " ")) } else { Err(log) }
        })
    }

    fn called(&self, what: &str) {
        eventually(&format!("the driver is asked: {what}"), || {
            let calls = self.driver.calls();
            if calls.iter().any(|call| call == what) { Ok(()) } else { Err(format!("{calls:?}")) }
        });
    }

    fn count(&self, what: &str) -> usize {
        self.driver.calls().iter().filter(|call| *call == what).count()
    }

    fn told(&self, pod: &str, part: &str) {
        eventually(&format!("{pod} is told {part}"), || {
            let field = format!("--field-selector=involvedObject.name={pod}");
            let messages = self.space.kubectl(&["get", "events", &field, "-o", "jsonpath={.items[*].message}"]);
            if messages.contains(part) { Ok(()) } else { Err(messages) }
        });
    }

    fn delete(&self, pod: &str) {
        self.space.kubectl(&["delete", "pod", pod, "--timeout=60s"]);
    }
}

fn stage<'a>(cluster: &'a Cluster, driver: &'a Driver, name: &str) -> Stage<'a> {
    Stage { space: Space { cluster, name: "gpus" }, driver, name: name.to_owned() }
}

#[test]
fn devices_reach_containers() {
    let mut cluster = Cluster::start();
    let folder = cluster.data_dir().join("agent/plugins_registry");
    let name = format!("{}.gpu.test", cluster.data_dir().parent().unwrap().file_name().unwrap().to_str().unwrap());
    // what is no driver disturbs nobody
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("readme.txt"), "not a socket").unwrap();
    let garbage = std::os::unix::net::UnixListener::bind(folder.join("garbage.sock")).unwrap();
    std::thread::spawn(move || {
        for stream in garbage.incoming().flatten() {
            let _ = std::io::Write::write_all(&mut &stream, b"HTTP/1.1 200 OK\r\n\r\n");
        }
    });
    let mut driver = Driver::start(&folder, &name);
    cluster.kubectl(&["create", "namespace", "gpus"]);
    {
        let s = stage(&cluster, &driver, &name);
        s.called("registered true");
        s.class();
        s.publish();
        containers_see_their_devices(&s);
        extended_resources(&s);
        drivers_that_do_not_work(&s);
    }
    // killed between the driver's work and the container
    {
        let s = stage(&cluster, &driver, &name);
        driver.does(Manner::Hangs);
        s.pod("killed");
        s.called(&format!("prepare {}", s.claim_of("killed")));
    }
    cluster.stop(Signal::SIGKILL);
    driver.does(Manner::Well);
    cluster.launch();
    {
        let s = stage(&cluster, &driver, &name);
        s.space.ready(&["killed"]);
        let claim = s.claim_of("killed");
        assert!(s.log("killed").contains(&format!("of={claim} by=test node usable info read-only end")));
        assert!(s.count(&format!("prepare {claim}")) >= 2, "{:?}", s.driver.calls());
    }
    // killed again, the pod goes on, and its device is given up when it goes
    let (id, prepared) = {
        let s = stage(&cluster, &driver, &name);
        let claim = s.claim_of("killed");
        (s.field("killed", ".status.containerStatuses[0].containerID"), s.count(&format!("prepare {claim}")))
    };
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    let s = stage(&cluster, &driver, &name);
    let claim = s.claim_of("killed");
    assert_eq!(s.field("killed", ".status.containerStatuses[0].containerID"), id);
    s.delete("killed");
    s.called(&format!("unprepare {claim}"));
    assert_eq!(s.count(&format!("prepare {claim}")), prepared, "what is prepared is not prepared again");
    drop(s);

    // a driver that comes back is known again, and one that stays away has no devices here
    driver.stop();
    driver.resume();
    let s = stage(&cluster, &driver, &name);
    eventually("it registers again", || {
        let n = s.count("registered true");
        if n >= 2 { Ok(()) } else { Err(format!("{n}")) }
    });
    s.publish();
    s.pod("late");
    s.space.ready(&["late"]);
    s.delete("late");
    drop(s);
    driver.stop();
    eventually("slices of a driver that is away go", || {
        let slices = cluster.kubectl(&["get", "resourceslices", "-o", "name"]);
        if slices.is_empty() { Ok(()) } else { Err(slices) }
    });
}

fn containers_see_their_devices(s: &Stage<'_>) {
    s.pod("first");
    s.space.ready(&["first"]);
    let claim = s.claim_of("first");
    assert!(s.log("first").contains(&format!("of={claim} by=test node usable info read-only end")));
    let uid = s.space.field(&format!("resourceclaim/{claim}"), ".metadata.uid");
    assert!(hook_has_run(&s.name, &uid));
    // whoever asks for the pod's resources is told of the claim
    let socket = s.space.cluster.data_dir().join("agent/pod-resources/kubelet.sock");
    let question = Message::default().text(1, "first").text(2, "gpus");
    let mut told = ask(&socket, "/v1.PodResourcesLister/Get", question).unwrap();
    // the pod, its container, the container's claim
    for field in [1, 3, 5] {
        told = parts(told, field).remove(0);
    }
    assert_eq!((texts(told.clone(), 2), texts(told.clone(), 3)), (vec![claim], vec!["gpus".to_owned()]));
    let device = parts(told, 4).remove(0);
    let names: Vec<String> = (2..5).flat_map(|field| texts(device.clone(), field)).collect();
    assert_eq!(names, [s.name.as_str(), "pool", "gpu-0"]);
    let cdi = texts(parts(device, 1).remove(0), 1);
    assert_eq!(cdi, [format!("{}/gpu={uid}", s.name)]);
    // its health is in its status
    let path = ".status.containerStatuses[0].allocatedResourcesStatus[0].resources[0].health";
    for (health, word) in [(1, "Healthy"), (2, "Unhealthy")] {
        s.driver.tell_health(health);
        eventually(&format!("the device is {word}"), || {
            let now = s.space.field("pod/first", path);
            if now == word { Ok(()) } else { Err(now) }
        });
    }
    // a claim that two pods share is given up after the last
    let request = json!({"name": "r", "exactly": {"deviceClassName": "gpu"}});
    s.apply("ResourceClaim", "shared", json!({"devices": {"requests": [request]}}));
    for pod in ["a", "b"] {
        s.pod_with(pod, json!({"claims": [{"name": "gpu"}]}), json!([{"name": "gpu", "resourceClaimName": "shared"}]));
        s.space.ready(&[pod]);
    }
    s.delete("a");
    assert_eq!(s.count("unprepare shared"), 0);
    s.delete("b");
    assert_eq!(s.count("unprepare shared"), 1, "before the pod is gone");
    // a container that does not name the claim sees nothing of it
    s.pod_with("blind", json!({}), json!([{"name": "gpu", "resourceClaimName": "shared"}]));
    s.space.ready(&["blind"]);
    assert_eq!(s.log("blind").trim(), "of= by= usable read-only end");
    s.delete("blind");
    let claim = s.claim_of("first");
    s.delete("first");
    assert_eq!(s.count(&format!("unprepare {claim}")), 1);
}

fn extended_resources(s: &Stage<'_>) {
    s.pod_with("old-way", json!({"limits": {"example.com/gpu": "1"}}), json!([]));
    s.space.ready(&["old-way"]);
    let claim = s.field("old-way", ".status.extendedResourceClaimStatus.resourceClaimName");
    assert!(claim.starts_with("old-way-extended-resources-"), "{claim}");
    let mapping = ".status.extendedResourceClaimStatus.requestMappings[0].requestName";
    assert_eq!(s.field("old-way", mapping), "container-0-request-0");
    assert!(s.log("old-way").contains(&format!("of={claim} by=test node usable")));
    s.delete("old-way");
    s.called(&format!("unprepare {claim}"));
    eventually("its claim goes", || {
        let left = s.space.kubectl(&["get", "resourceclaim", &claim, "--ignore-not-found", "-o", "name"]);
        if left.is_empty() { Ok(()) } else { Err(left) }
    });
    // more than there are
    s.pod_with("greedy", json!({"limits": {"example.com/gpu": "3"}}), json!([]));
    s.told("greedy", "cannot allocate all claims");
    s.delete("greedy");
}

fn drivers_that_do_not_work(s: &Stage<'_>) {
    for (name, manner, part) in [
        ("refused", Manner::Fails, "no such device, the test says"),
        ("garbled", Manner::Garbage, "the message is malformed"),
        ("forgotten", Manner::Forgets, "NodePrepareResources skipped 1 ResourceClaims"),
    ] {
        s.driver.does(manner);
        s.pod(name);
        s.told(name, part);
        assert_eq!(s.space.field(&format!("pod/{name}"), ".status.phase"), "Pending");
        s.driver.does(Manner::Well);
        s.space.ready(&[name]);
        s.delete(name);
    }
    // a call that hangs keeps no pod from going
    s.driver.does(Manner::Hangs);
    s.pod("hanging");
    let claim = s.claim_of("hanging");
    s.called(&format!("prepare {claim}"));
    s.driver.does(Manner::Well);
    s.space.kubectl(&["delete", "pod", "hanging", "--wait=false"]);
    s.space.kubectl(&["wait", "pod/hanging", "--for=delete", "--timeout=60s"]);
    s.called(&format!("unprepare {claim}"));
    // a device that is stuck keeps its pod
    s.pod("stuck");
    s.space.ready(&["stuck"]);
    s.driver.does(Manner::Fails);
    s.space.kubectl(&["delete", "pod", "stuck", "--wait=false"]);
    s.told("stuck", "the device is stuck, the test says");
    assert!(!s.space.field("pod/stuck", ".metadata.deletionTimestamp").is_empty());
    s.driver.does(Manner::Well);
    s.space.kubectl(&["wait", "pod/stuck", "--for=delete", "--timeout=60s"]);
}
