//! The whole of it against plugins in this process: who gets what, what is refused, who comes back.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use edge_grpc::server::{self, Call, Reply};
use edge_grpc::wire::{Fields, Message};
use edge_grpc::{CallError, Channel};
use futures::StreamExt;
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

const RESOURCE: &str = "x.io/d";

/// How a plugin does its work.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Well,
    Fails,
    Garbage,
    Hangs,
}

struct State {
    /// Each device with its health.
    devices: watch::Sender<Vec<(String, bool)>>,
    manner: Mutex<Manner>,
    preferred: Mutex<Vec<String>>,
    calls: Mutex<Vec<String>>,
    pre_start: bool,
}

/// A plugin, as long as it lives.
struct Fake {
    state: Arc<State>,
    _server: AbortOnDropHandle<()>,
}

fn text(field: u32, value: &str) -> Message {
    Message::default().text(field, value)
}

/// The texts of a field of a message.
fn texts(message: bytes::Bytes, wanted: u32) -> String {
    let (mut fields, mut out) = (Fields::of(message), Vec::new());
    while let Some((field, value)) = fields.next().unwrap() {
        if field == wanted {
            out.push(value.text().unwrap());
        }
    }
    out.concat()
}

fn inner(message: bytes::Bytes) -> bytes::Bytes {
    Fields::of(message).next().unwrap().unwrap().1.bytes()
}

impl State {
    async fn answer(self: Arc<Self>, call: Call) -> Result<Reply, CallError> {
        let name = call.method.rsplit_once('/').unwrap().1;
        let said = match name {
            "GetDevicePluginOptions" => {
                let preferred = !self.preferred.lock().is_empty();
                return Ok(Message::default().flag(1, self.pre_start).flag(2, preferred).into());
            }
            "ListAndWatch" => {
                let lists = tokio_stream::wrappers::WatchStream::new(self.devices.subscribe()).map(|all| {
                    let device = |(id, is_healthy): (String, bool)| {
                        text(1, &id).text(2, if is_healthy { "Healthy" } else { "Unhealthy" })
                    };
                    Message::default().messages(1, all.into_iter().map(device))
                });
                return Ok(Reply::Many(lists.boxed()));
            }
            "Allocate" => format!("allocate {}", texts(inner(call.message), 1)),
            "PreStartContainer" => format!("start {}", texts(call.message, 1)),
            _ => format!("prefer {} with {}", texts(inner(call.message.clone()), 1), texts(inner(call.message), 2)),
        };
        self.calls.lock().push(said.clone());
        let manner = *self.manner.lock();
        match (manner, name) {
            (Manner::Fails, _) => Err(CallError::new(2, "no such luck")),
            (Manner::Garbage, _) => Ok(Message::written(&[0xff; 20]).into()),
            (Manner::Hangs, _) => std::future::pending().await,
            (Manner::Well, "Allocate") => {
                let env = text(1, "DEVICES").text(2, said.strip_prefix("allocate ").unwrap());
                Ok(Message::default().message(1, &Message::default().message(1, &env)).into())
            }
            (Manner::Well, "GetPreferredAllocation") => {
                let ids = self.preferred.lock().clone();
                let of = Message::default().texts(1, ids.iter().map(String::as_str));
                Ok(Message::default().message(1, &of).into())
            }
            (Manner::Well, _) => Ok(Message::default().into()),
        }
    }
}

impl Fake {
    async fn start(path: PathBuf, devices: &str, preferred: &str, pre_start: bool) -> Self {
        let one = |name: char| (name.to_string(), true);
        let state = Arc::new(State {
            devices: watch::Sender::new(devices.chars().map(one).collect()),
            manner: Mutex::new(Manner::Well),
            preferred: Mutex::new(preferred.chars().map(String::from).collect()),
            calls: Mutex::default(),
            pre_start,
        });
        let of = state.clone();
        let server = server::serve(server::listen(&path).await.unwrap(), move |call| of.clone().answer(call));
        Self { state, _server: AbortOnDropHandle::new(tokio::spawn(server)) }
    }

    fn does(&self, manner: Manner) {
        *self.state.manner.lock() = manner;
    }

    fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state.calls.lock())
    }
}

/// A node with plugins.
struct Node {
    dir: tempfile::TempDir,
    plugins: Arc<DevicePlugins>,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let plugins = DevicePlugins::open(dir.path());
        Self { dir, plugins }
    }

    /// The agent starts again.
    fn restart(&mut self) {
        self.plugins = DevicePlugins::open(self.dir.path());
    }

    async fn register(&self, endpoint: &str, resource: &str) -> Result<(), String> {
        let message = text(1, "v1beta1").text(2, endpoint).text(3, resource).into_frame().slice(5..);
        self.plugins.called(self.dir.path(), message).await
    }

    /// A plugin that has registered and told of its devices.
    async fn plugin(&self, endpoint: &str, devices: &str, preferred: &str, pre_start: bool) -> Fake {
        let fake = Fake::start(self.dir.path().join(endpoint), devices, preferred, pre_start).await;
        self.register(endpoint, RESOURCE).await.unwrap();
        self.until(|node| node.plugins.known.lock()[RESOURCE].is_listed).await;
        self.until(|node| node.count() == (devices.len(), devices.len())).await;
        fake
    }

    async fn until(&self, is_so: impl Fn(&Self) -> bool) {
        let mut changes = self.plugins.changes();
        let wait = async {
            while !is_so(self) {
                changes.changed().await.unwrap();
            }
        };
        timeout(Duration::from_secs(600), wait).await.unwrap();
    }

    /// Capacity and allocatable of the resource.
    fn count(&self) -> (usize, usize) {
        let node = self.plugins.on_node();
        let of = |list: &BTreeMap<String, _>| qos::value(list, RESOURCE).try_into().unwrap();
        (of(&node.capacity), of(&node.allocatable))
    }

    /// The devices of a container.
    fn of(&self, uid: &str, container: &str) -> String {
        self.plugins.list_container(uid, container).into_iter().map(|(_, id, _)| id).collect()
    }

    async fn admit(&self, pod: &Pod) -> Result<(), String> {
        self.plugins.admit(pod).await.map_err(|problem| {
            assert_eq!(problem.reason, "UnexpectedAdmissionError");
            problem.message
        })
    }
}

fn container(name: &str, number: u32) -> Value {
    json!({"name": name, "resources": {"limits": {RESOURCE: number.to_string(), "cpu": "1"}}})
}

fn pod_of(uid: &str, init: Value, main: Value) -> Pod {
    let spec = json!({"initContainers": init, "containers": main});
    serde_json::from_value(json!({"metadata": {"uid": uid, "name": uid, "namespace": "ns"}, "spec": spec})).unwrap()
}

fn pod(uid: &str, number: u32) -> Pod {
    pod_of(uid, json!([]), json!([container("c", number)]))
}

fn unavailable(requested: usize, available: usize) -> String {
    format!(
        "Allocate failed due to requested number of devices unavailable for {RESOURCE}. Requested: {requested}, \
         Available: {available}, which is unexpected"
    )
}

#[tokio::test]
async fn pods_get_devices_until_nothing_is_left_of_them() {
    let node = Node::new();
    let plugin = node.plugin("p.sock", "abc", "", false).await;
    assert!(node.plugins.are_missing(&pod("one", 2)) && !node.plugins.are_missing(&pod("none", 0)));
    node.admit(&pod("one", 2)).await.unwrap();
    assert!(!node.plugins.are_missing(&pod("one", 2)));
    assert_eq!((node.of("one", "c"), plugin.calls()), ("ab".to_owned(), vec!["allocate ab".to_owned()]));
    assert_eq!(node.admit(&pod("two", 2)).await, Err(unavailable(2, 1)));
    node.admit(&pod("three", 1)).await.unwrap();
    assert_eq!(node.of("three", "c"), "c");
    node.plugins.free("one").await.unwrap();
    node.admit(&pod("two", 1)).await.unwrap();
    assert_eq!(node.of("two", "c"), "a");
    node.plugins.keep_only(&BTreeSet::from(["three".to_owned()])).await;
    assert_eq!((node.of("two", "c"), node.of("three", "c")), (String::new(), "c".to_owned()));
    // what is started has what the plugin said
    let pod = pod("three", 1);
    let has = node.plugins.of_container(&pod, &pod.spec.as_ref().unwrap().containers[0]).await.unwrap();
    let mut variables = crate::env::Variables::default();
    has.add_variables(&mut variables);
    assert_eq!(variables.0["DEVICES"], "c");
}

#[tokio::test]
async fn containers_of_a_pod_share_what_they_do_not_use_at_once() {
    let node = Node::new();
    let _plugin = node.plugin("p.sock", "abcd", "", false).await;
    let mut sidecar = container("sidecar", 1);
    sidecar["restartPolicy"] = "Always".into();
    let init = json!([container("first", 2), sidecar, container("second", 1)]);
    node.admit(&pod_of("u", init, json!([container("x", 1), container("y", 1)]))).await.unwrap();
    let of = |name: &str| node.of("u", name);
    assert_eq!((of("first"), of("sidecar"), of("second")), ("ab".into(), "a".into(), "b".into()));
    assert_eq!((of("x"), of("y")), ("b".into(), "c".into()));
    assert_eq!(node.admit(&pod("v", 2)).await, Err(unavailable(2, 1)));
}

#[tokio::test]
async fn what_a_plugin_prefers_is_given() {
    let node = Node::new();
    let plugin = node.plugin("p.sock", "abcd", "dx", false).await;
    node.admit(&pod("one", 2)).await.unwrap();
    assert_eq!(node.of("one", "c"), "ad");
    assert_eq!(plugin.calls(), ["prefer abcd with ", "allocate ad"]);
    let init = json!([container("init", 1)]);
    node.admit(&pod_of("two", init, json!([container("c", 2)]))).await.unwrap();
    assert_eq!((node.of("two", "init"), node.of("two", "c")), ("b".to_owned(), "bc".to_owned()));
    assert_eq!(plugin.calls(), ["prefer bc with ", "allocate b", "prefer bc with b", "allocate bc"]);
}

#[tokio::test]
async fn a_plugin_that_does_not_work_costs_its_pods_only() {
    let node = Node::new();
    let plugin = node.plugin("p.sock", "ab", "", true).await;
    for (manner, why) in [
        (Manner::Fails, "rpc error: code = Unknown desc = no such luck"),
        (Manner::Garbage, "allocation response: the message is malformed"),
    ] {
        plugin.does(manner);
        let want = format!("Allocate failed due to {why}, which is unexpected");
        assert_eq!(node.admit(&pod("u", 2)).await, Err(want));
        assert!(node.of("u", "c").is_empty());
    }
    // while it hangs nobody else gets the devices, and when that is given up they are free
    plugin.does(Manner::Hangs);
    let (hangs, other) = (pod("u", 1), pod("v", 2));
    {
        let mut hanging = std::pin::pin!(node.admit(&hangs));
        assert!(timeout(Duration::from_millis(50), hanging.as_mut()).await.is_err());
        assert_eq!(node.admit(&other).await, Err(unavailable(2, 1)));
    }
    plugin.does(Manner::Well);
    node.admit(&other).await.unwrap();
    let start = || async { node.plugins.of_container(&other, &other.spec.as_ref().unwrap().containers[0]).await };
    plugin.calls();
    start().await.unwrap();
    assert_eq!(plugin.calls(), ["start ab"]);
    plugin.does(Manner::Fails);
    let why = "device plugin PreStartContainer rpc failed with err: rpc error: code = Unknown desc = no such luck";
    assert_eq!(start().await.unwrap_err(), why);
    drop(plugin);
    node.until(|node| node.count() == (2, 0)).await;
    let why = "device plugin PreStartContainer rpc failed with err: endpoint of x.io/d has been stopped";
    assert_eq!(start().await.unwrap_err(), why);
}

#[tokio::test]
async fn health_is_told() {
    let node = Node::new();
    let plugin = node.plugin("p.sock", "ab", "", false).await;
    let pod = pod("u", 2);
    node.admit(&pod).await.unwrap();
    let health = || {
        let mut status: PodStatus = serde_json::from_value(
            json!({"containerStatuses": [{"name": "c", "image": "", "imageID": "", "ready": true,
                "restartCount": 0}]}),
        )
        .unwrap();
        node.plugins.note_health(&pod, &mut status);
        let told = status.container_statuses.unwrap().remove(0).allocated_resources_status.unwrap().remove(0);
        assert_eq!(told.name, RESOURCE);
        let all = told.resources.unwrap().into_iter();
        all.map(|r| format!("{} {}", r.resource_id, r.health.unwrap())).collect::<Vec<_>>()
    };
    assert_eq!(health(), ["a Healthy", "b Healthy"]);
    plugin.state.devices.send_replace(vec![("a".to_owned(), false), ("c".to_owned(), true)]);
    node.until(|node| node.count() == (2, 1)).await;
    assert_eq!(health(), ["a Unhealthy", "b Unhealthy"]);
    drop(plugin);
    node.until(|node| node.count() == (2, 0)).await;
    assert_eq!(health(), ["a Unknown", "b Unknown"]);
}

#[tokio::test]
async fn who_registers_again_replaces_who_was_there() {
    let node = Node::new();
    let first = node.plugin("1.sock", "ab", "", false).await;
    let second = node.plugin("2.sock", "bcd", "", false).await;
    // the end of the first one is nobody's business any more
    drop(first);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(node.count(), (3, 3));
    node.admit(&pod("u", 3)).await.unwrap();
    assert_eq!(second.calls(), ["allocate bcd"]);
    drop(second);
    node.until(|node| node.count() == (3, 0)).await;
    let why = "Allocate failed due to no healthy devices present; cannot allocate unhealthy devices x.io/d, which is \
               unexpected";
    assert_eq!(node.admit(&pod("v", 1)).await, Err(why.to_owned()));
    // and who comes back goes on
    let _third = node.plugin("2.sock", "bcd", "", false).await;
    assert_eq!(node.of("u", "c"), "bcd");
    assert_eq!(node.admit(&pod("v", 1)).await, Err(unavailable(1, 0)));
}

#[tokio::test]
async fn who_cannot_register_is_told_why() {
    let node = Node::new();
    let why = node.register("none.sock", RESOURCE).await.unwrap_err();
    assert!(why.starts_with("failed to dial device plugin: "), "{why}");
    assert_eq!(node.register("p.sock", "bad").await.unwrap_err(), "the ResourceName \"bad\" is invalid");
    let garbage = server::listen(&node.dir.path().join("g.sock")).await.unwrap();
    let serve = server::serve(garbage, |call: Call| async move { Err(server::unknown(&call.method)) });
    let _server = AbortOnDropHandle::new(tokio::spawn(serve));
    let why = node.register("g.sock", RESOURCE).await.unwrap_err();
    assert!(why.starts_with("failed to get device plugin options: rpc error: code = Unimplemented"), "{why}");
    assert!(node.plugins.on_node().capacity.is_empty());
    // a path does not lead out of the folder by its first slash
    let _plugin = Fake::start(node.dir.path().join("p.sock"), "a", "", false).await;
    node.register("/p.sock", RESOURCE).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_resource_whose_plugin_stays_away_is_none_any_more() {
    let node = Node::new();
    let plugin = node.plugin("p.sock", "ab", "", false).await;
    drop(plugin);
    node.until(|node| node.count() == (2, 0)).await;
    let away = Instant::now();
    node.until(|node| node.count() == (0, 0)).await;
    assert_eq!(away.elapsed().as_secs(), 300);
    // until the node's status says so it is remembered
    let why = "Allocate failed due to cannot allocate unregistered device x.io/d, which is unexpected";
    assert_eq!(node.admit(&pod("u", 1)).await, Err(why.to_owned()));
    let told = |number: &str| serde_json::from_value(json!({"capacity": {RESOURCE: number}})).unwrap();
    node.plugins.told(&told("2")).await;
    assert!(node.plugins.on_node().capacity.contains_key(RESOURCE));
    node.plugins.told(&told("0")).await;
    assert!(node.plugins.on_node().capacity.is_empty() && !node.plugins.has(RESOURCE));
    assert!(node.plugins.holders.look(|holders| holders.resources.is_empty()));
}

#[tokio::test]
async fn after_a_restart_everybody_has_what_they_had() {
    let mut node = Node::new();
    let plugin = node.plugin("p.sock", "abc", "", false).await;
    node.admit(&pod("u", 2)).await.unwrap();
    node.restart();
    assert_eq!((node.of("u", "c"), node.count()), ("ab".to_owned(), (0, 0)));
    assert!(!node.plugins.are_missing(&pod("u", 2)), "nothing is left to be done for it");
    // one that was about to be given something waits for its plugin
    assert!(node.plugins.are_missing(&pod("v", 1)));
    let plugins = node.plugins.clone();
    let waits = tokio::spawn(async move { plugins.admit(&pod("v", 1)).await });
    tokio::task::yield_now().await;
    node.register("p.sock", RESOURCE).await.unwrap();
    waits.await.unwrap().unwrap();
    assert_eq!((node.of("u", "c"), node.of("v", "c")), ("ab".to_owned(), "c".to_owned()));
    // after a reboot the plugin is asked anew for the same devices
    plugin.calls();
    let boot = |holders: &mut Holders| holders.pods.get_mut("u").unwrap().boot = "another".to_owned();
    node.plugins.holders.change(boot).await.unwrap();
    assert!(node.plugins.are_missing(&pod("u", 2)));
    node.admit(&pod("u", 2)).await.unwrap();
    assert_eq!((plugin.calls(), node.of("u", "c")), (vec!["allocate ab".to_owned()], "ab".to_owned()));
    // and what is not healthy any more is not given out again
    node.plugins.holders.change(boot).await.unwrap();
    plugin.state.devices.send_replace(vec![("a".to_owned(), true)]);
    node.until(|node| node.count() == (1, 1)).await;
    let why = node.admit(&pod("u", 2)).await.unwrap_err();
    assert!(why.contains("previously allocated devices are no longer healthy"), "{why}");
}

#[tokio::test]
async fn claims_are_another_matter() {
    let node = Node::new();
    let _plugin = node.plugin("p.sock", "a", "", false).await;
    let mut claimed = pod("u", 1);
    let mappings = json!([{"containerName": "c", "requestName": "r", "resourceName": RESOURCE}]);
    let status = json!({"extendedResourceClaimStatus": {"resourceClaimName": "x", "requestMappings": mappings}});
    claimed.status = serde_json::from_value(status).unwrap();
    assert!(!asks_any(&claimed) && !node.plugins.are_missing(&claimed));
    assert!(asks_any(&pod("v", 1)) && !asks_any(&pod("v", 0)));
}

#[tokio::test]
async fn the_kubelets_socket_takes_registrations() {
    let node = Node::new();
    let _plugin = Fake::start(node.dir.path().join("p.sock"), "a", "", false).await;
    let path = node.dir.path().join(registry::SOCKET);
    let (of, folder) = (node.plugins.clone(), node.dir.path().to_owned());
    let ask = move |call: Call| of.clone().asked(folder.clone(), call);
    let listener = server::listen(&path).await.unwrap();
    let _server = AbortOnDropHandle::new(tokio::spawn(server::serve(listener, ask)));
    let channel = Channel::unix(&path).await.unwrap();
    let message = |version: &str| text(1, version).text(2, "p.sock").text(3, RESOURCE);
    let register = "/v1beta1.Registration/Register";
    let error = channel.call(register, message("v1alpha")).await.unwrap_err();
    assert!(error.to_string().starts_with("rpc error: code = Unknown desc = requested API version"), "{error}");
    assert_eq!(channel.call("/v1beta1.Registration/Other", message("v1beta1")).await.unwrap_err().code, 12);
    channel.call(register, message("v1beta1")).await.unwrap();
    node.until(|node| node.count() == (1, 1)).await;
}
