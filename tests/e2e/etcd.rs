//! Servers with their store in a real etcd.

use crate::harness::etcd::Etcd;
use crate::harness::{Agent, Cluster, Kubectl, Server, eventually};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "echo:v1"}]}
"#;

/// A cluster whose server is not started yet, and its etcd.
pub(crate) fn prepare(members: usize) -> (Cluster, Etcd) {
    let mut cluster = Cluster::prepare(&[]);
    let etcd = Etcd::start(&cluster, members);
    cluster.add_flag(format!("--datastore-endpoint={}", etcd.endpoints()));
    (cluster, etcd)
}

/// After a crash a server does not wait for the end of the leases that it had itself.
fn goes_on_at_once(cluster: &mut Cluster) {
    let before = holder(&|args| cluster.kubectl(args), "kube-scheduler");
    cluster.stop(Signal::SIGKILL);
    cluster.launch();
    let started = Instant::now();
    cluster.kubectl(&["scale", "deploy/web", "--replicas=3"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    println!("controllers and scheduler had done their work {:?} after the start", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let now = holder(&|args| cluster.kubectl(args), "kube-scheduler");
    assert!(now != before && now.starts_with("node-1_"), "{now}");
}

#[test]
fn a_server_on_etcd_runs_pods_and_finds_all_again() {
    let (mut cluster, etcd) = prepare(1);
    cluster.launch();
    cluster.await_images();
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    cluster.kubectl(&["create", "cm", "kept", "--from-literal=a=b"]);
    let what = "jsonpath={.metadata.uid} {.metadata.resourceVersion} {.data.a}";
    let before = cluster.kubectl(&["get", "cm", "kept", "-o", what]);
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        cluster.stop(signal);
        cluster.launch();
        assert_eq!(cluster.kubectl(&["get", "cm", "kept", "-o", what]), before);
    }
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", restarts]), "0 0");
    goes_on_at_once(&mut cluster);
    // the objects are below Kubernetes' keys, and the keys of the cluster are not to be read there
    let keys = etcd.ctl(&["get", "/registry/", "--prefix", "--keys-only"]);
    let keys = String::from_utf8_lossy(&keys.stdout).into_owned();
    for key in [
        "/registry/configmaps/default/kept",
        "/registry/deployments/default/web",
        "/registry/leases/kube-node-lease/node-1",
    ] {
        assert!(keys.lines().any(|l| l == key), "{key} is not in\n{keys}");
    }
    let shared = etcd.ctl(&["get", "/edge/bootstrap", "--print-value-only"]);
    let shared = String::from_utf8_lossy(&shared.stdout).into_owned();
    assert!(shared.contains("\"salt\"") && !shared.contains("PRIVATE KEY"), "{shared}");
    assert!(!cluster.data_dir().join("server/db").exists());
    // without the flag no second cluster begins under the pods of this one
    cluster.stop(Signal::SIGTERM);
    cluster.clear_flags();
    let said = refused("without the flag", &cluster.server_command().output().unwrap());
    assert!(said.contains("the cluster of this machine is in etcd at http://"), "{said}");
}

/// What a server says that does not start.
fn refused(what: &str, out: &Output) -> String {
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(out.status.code(), Some(1), "{what}: {text}");
    let last = text.lines().last().unwrap_or_default().to_owned();
    assert!(last.starts_with("edge: "), "{what}: {text}");
    last
}

#[test]
fn an_etcd_that_cannot_be_used_is_named_and_left_alone() {
    // nobody there
    let cluster = Cluster::prepare(&[]);
    let start = |args: &[&str]| cluster.server_command().args(args).output().unwrap();
    let began = Instant::now();
    let nobody = format!("--datastore-endpoint=http://{}:1", cluster.address(1));
    let said = refused("nobody there", &start(&[&nobody]));
    assert!(said.contains("no etcd answers at http://") && said.contains("check that etcd runs"), "{said}");
    assert!(began.elapsed() < Duration::from_secs(20));
    // (/sys shows the links of the namespace in which it was mounted)
    let count_links = || cluster.inside(|| fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count());
    let links = count_links();
    // another Kubernetes' objects
    let etcd = Etcd::start(&cluster, 1);
    let endpoint = format!("--datastore-endpoint={}", etcd.endpoints());
    assert!(etcd.ctl(&["put", "/registry/pods/default/a", "x"]).status.success());
    let content = etcd.content();
    let said = refused("foreign objects", &start(&[&endpoint]));
    assert!(said.contains("holds the objects of another Kubernetes") && said.contains("an etcd of its own"), "{said}");
    assert_eq!(etcd.content(), content);
    assert!(etcd.ctl(&["del", "/registry/pods/default/a"]).status.success());
    // a store of its own, and nothing in etcd
    fs::create_dir_all(cluster.data_dir().join("server/db")).unwrap();
    fs::write(cluster.data_dir().join("server/db/data.mdb"), "x").unwrap();
    let said = refused("a store of its own", &start(&[&endpoint]));
    assert!(said.contains("has a cluster of its own in"), "{said}");
    fs::remove_dir_all(cluster.data_dir().join("server/db")).unwrap();
    // files for TLS
    let absent = cluster.dir.join("absent.crt");
    let tls = endpoint.replace("http://", "https://");
    let said = refused("no such file", &start(&[&tls, &format!("--datastore-cafile={}", absent.display())]));
    assert!(said.contains("absent.crt"), "{said}");
    // nothing of all that has left anything
    assert_eq!(count_links(), links);
    assert!(!cluster.data_dir().join("server/tls").exists() && !cluster.data_dir().join("server/token").exists());
}

#[test]
fn servers_know_their_cluster_by_its_token() {
    let (mut cluster, etcd) = prepare(1);
    cluster.launch();
    let token = fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    let ca = fs::read(cluster.data_dir().join("server/tls/server-ca.crt")).unwrap();
    cluster.stop(Signal::SIGTERM);
    let settled = etcd.content();
    let other = cluster.dir.join("other");
    fs::create_dir_all(&other).unwrap();
    let start = |token: Option<&str>| {
        let mut command = cluster.server_command();
        command.arg(format!("--data-dir={}", other.display()));
        command.args(token.map(|t| format!("--token={t}"))).output().unwrap()
    };
    let said = refused("no token", &start(None));
    assert!(said.contains("give its token"), "{said}");
    let said = refused("a wrong token", &start(Some("wrong")));
    assert!(said.contains("holds a cluster with another token"), "{said}");
    let secret = token.rsplit(':').next().unwrap();
    let foreign = format!("K10{}::server:{secret}", "0".repeat(64));
    let said = refused("the token of another cluster", &start(Some(&foreign)));
    assert!(said.contains("for another cluster"), "{said}");
    assert!(!other.join("server/tls").exists() && !other.join("server/datastore").exists());
    // a machine of another cluster
    fs::create_dir_all(other.join("server/tls")).unwrap();
    fs::write(other.join("server/tls/server-ca.crt"), "x").unwrap();
    let said = refused("another cluster's machine", &start(Some(secret)));
    assert!(said.contains("server-ca.crt is not that of the cluster"), "{said}");
    assert!(!other.join("server/tls/client-ca.crt").exists());
    assert_eq!(etcd.content(), settled, "something was written");
    // the server's own machine, with everything lost but the token: the same cluster
    fs::remove_dir_all(cluster.data_dir().join("server")).unwrap();
    cluster.add_flag(format!("--token={secret}"));
    cluster.launch();
    assert_eq!(fs::read(cluster.data_dir().join("server/tls/server-ca.crt")).unwrap(), ca);
    eventually("the API answers", || {
        let out = cluster.try_kubectl(Kubectl::Newest, &["get", "ns", "default"]);
        if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
    });
}

/// Creates ConfigMaps as fast as it can, by whichever server takes them; gives the names of those that were acknowledged.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<String>>>,
}

impl Load {
    /// `kubectl`: makes a command for a server; there are so many.
    pub(crate) fn start(
        servers: usize,
        kubectl: impl Fn(usize, &[&str]) -> Command + Send + Sync + Clone + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..2).map(|t: usize| {
            let (stop, kubectl) = (stop.clone(), kubectl.clone());
            std::thread::spawn(move || {
                let mut acknowledged = Vec::new();
                for i in 0.. {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let name = format!("load-{t}-{i}");
                    let args = ["create", "cm", &name, "--from-literal=a=b", "--request-timeout=15s"];
                    if kubectl((t + i) % servers, &args).output().unwrap().status.success() {
                        acknowledged.push(name);
                    }
                }
                acknowledged
            })
        });
        let threads = threads.collect();
        Self { stop, threads }
    }

    pub(crate) fn finish(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().flat_map(|t| t.join().unwrap()).collect()
    }
}

/// A kubectl's command line, to be repeated from another thread.
pub(crate) fn repeat(command: &Command) -> impl Fn(&[&str]) -> Command + Send + Sync + Clone + 'static {
    let program = command.get_program().to_owned();
    let args: Vec<OsString> = command.get_args().map(OsString::from).collect();
    let home: Vec<(OsString, Option<OsString>)> =
        command.get_envs().map(|(k, v)| (k.to_owned(), v.map(OsString::from))).collect();
    move |more| {
        let mut command = Command::new(&program);
        command.args(&args).args(more).stdin(Stdio::null());
        command.envs(home.iter().filter_map(|(k, v)| Some((k, v.as_ref()?))));
        command
    }
}

pub(crate) fn holder(kubectl: &dyn Fn(&[&str]) -> String, lease: &str) -> String {
    kubectl(&["get", "lease", "-n", "kube-system", lease, "-o", "jsonpath={.spec.holderIdentity}"])
}

/// Names of the ConfigMaps of a load that are there.
pub(crate) fn stored(list: &str) -> BTreeSet<String> {
    list.lines().filter_map(|l| l.strip_prefix("configmap/")).map(str::to_owned).collect()
}

#[test]
fn a_second_server_takes_over_and_nothing_acknowledged_is_lost() {
    let (mut cluster, etcd) = prepare(1);
    cluster.launch();
    let token = fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    let flags = [format!("--datastore-endpoint={}", etcd.endpoints()), format!("--token={token}")];
    let mut second = Server::start(&cluster, 1, &flags);
    let mut agent = Agent::prepare(&cluster, 2);
    agent.server = format!("{},{}", agent.server, second.url);
    agent.launch();
    agent.await_images();
    // both are the Service's endpoints, and the first one leads
    let addresses = "jsonpath={.subsets[*].addresses[*].ip}";
    let both = format!("{} {}", cluster.ip, cluster.address(11));
    eventually("both servers are endpoints", || match cluster.kubectl(&["get", "ep", "kubernetes", "-o", addresses]) {
        found if found == both => Ok(()),
        found => Err(found),
    });
    let by_second = |args: &[&str]| second.kubectl(args);
    for lease in ["kube-controller-manager", "kube-scheduler"] {
        assert!(holder(&by_second, lease).starts_with("node-1_"), "{lease}: {}", holder(&by_second, lease));
    }
    // what one server has done the other one shows
    cluster.kubectl(&["create", "cm", "seen"]);
    second.kubectl(&["delete", "cm", "seen"]);
    assert!(!cluster.try_kubectl(Kubectl::Newest, &["get", "cm", "seen"]).status.success());
    // pods on the agent, which is asked to keep off the first server's machine
    second.kubectl(&["cordon", "node-1"]);
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let servers = [repeat(&cluster.kubectl_command(Kubectl::Newest, &[])), repeat(&second.kubectl_command(&[]))];
    let load = Load::start(2, move |n, args| servers[n](args));
    std::thread::sleep(Duration::from_secs(2));
    cluster.stop(Signal::SIGKILL);
    let killed = Instant::now();
    eventually("the second server leads", || match holder(&by_second, "kube-scheduler") {
        name if name.starts_with("server-1_") => Ok(()),
        name => Err(name),
    });
    println!("the second server led {:?} after the first was killed", killed.elapsed());
    second.kubectl(&["scale", "deploy/web", "--replicas=4"]);
    second.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    eventually("the dead server is no endpoint", || match by_second(&["get", "ep", "kubernetes", "-o", addresses]) {
        found if found == cluster.address(11).to_string() => Ok(()),
        found => Err(found),
    });
    let acknowledged = load.finish();
    let found = stored(&second.kubectl(&["get", "cm", "-o", "name"]));
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !found.contains(*name)).collect();
    assert!(lost.is_empty() && acknowledged.len() > 20, "{} acknowledged, lost: {lost:?}", acknowledged.len());
    // a server that ends in order is followed at once
    cluster.launch();
    assert!(
        stored(&cluster.kubectl(&["get", "cm", "-o", "name"])).is_superset(&acknowledged.iter().cloned().collect())
    );
    second.stop(Signal::SIGTERM);
    let ended = Instant::now();
    let by_first = |args: &[&str]| cluster.kubectl(args);
    eventually("the first server leads again", || match holder(&by_first, "kube-scheduler") {
        name if name.starts_with("node-1_") => Ok(()),
        name => Err(name),
    });
    assert!(ended.elapsed() < Duration::from_secs(5), "after {:?}", ended.elapsed());
    cluster.kubectl(&["scale", "deploy/web", "--replicas=5"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    assert_eq!(cluster.kubectl(&["get", "ep", "kubernetes", "-o", addresses]), cluster.ip.to_string());
    drop(agent);
}

#[test]
fn a_member_of_etcd_dies_under_load_and_nothing_acknowledged_is_lost() {
    let (mut cluster, mut etcd) = prepare(3);
    cluster.launch();
    cluster.await_images();
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let kubectl = repeat(&cluster.kubectl_command(Kubectl::Newest, &[]));
    let load = Load::start(1, move |_, args| kubectl(args));
    let mut longest = Duration::ZERO;
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(2));
        let leader = etcd.leader();
        etcd.kill(leader);
        let killed = Instant::now();
        eventually("writes go on", || {
            let name = format!("after-{}", killed.elapsed().as_millis());
            let out = cluster.try_kubectl(Kubectl::Newest, &["create", "cm", &name]);
            if out.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
        });
        longest = longest.max(killed.elapsed());
        etcd.launch(leader);
        etcd.await_healthy();
    }
    println!("writes went on {longest:?} after the leader of etcd was killed");
    cluster.kubectl(&["scale", "deploy/web", "--replicas=3"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    let acknowledged = load.finish();
    let found = stored(&cluster.kubectl(&["get", "cm", "-o", "name"]));
    let lost: Vec<&String> = acknowledged.iter().filter(|name| !found.contains(*name)).collect();
    assert!(lost.is_empty() && acknowledged.len() > 20, "{} acknowledged, lost: {lost:?}", acknowledged.len());
    let restarts = "jsonpath={.items[*].status.containerStatuses[*].restartCount}";
    assert_eq!(cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", restarts]), "0 0 0");
}

#[test]
fn three_servers_on_three_members_lose_one_of_each() {
    let (mut cluster, mut etcd) = prepare(3);
    cluster.launch();
    let token = || fs::read_to_string(cluster.data_dir().join("server/token")).unwrap().trim().to_owned();
    let flags = |token: &str| [format!("--datastore-endpoint={}", etcd.endpoints()), format!("--token={token}")];
    let old = token();
    let second = Server::start(&cluster, 1, &flags(&old));
    // servers that join later need the token that is then valid
    let data_dir = format!("--data-dir={}", cluster.data_dir().display());
    assert!(cluster.edge(&["token", "rotate", &data_dir]).status.success());
    let sealed = || etcd.ctl(&["get", "/edge/bootstrap", "--print-value-only"]).stdout;
    let fresh = token();
    assert_ne!(fresh, old);
    let opens = |token: &str| {
        let secret = edge_pki::JoinToken::parse(token).unwrap().secret;
        edge_pki::unseal(&secret, String::from_utf8_lossy(&sealed()).trim().as_bytes()).is_ok()
    };
    eventually("the new token holds in etcd", || if opens(&fresh) { Ok(()) } else { Err("not yet".to_owned()) });
    assert!(!opens(&old));
    let third = Server::start(&cluster, 2, &flags(&fresh));
    let addresses = "jsonpath={.subsets[*].addresses[*].ip}";
    let all = |last: &[u8]| last.iter().map(|n| cluster.address(*n).to_string()).collect::<Vec<_>>().join(" ");
    eventually("all servers are endpoints", || match third.kubectl(&["get", "ep", "kubernetes", "-o", addresses]) {
        found if found == all(&[2, 11, 12]) => Ok(()),
        found => Err(found),
    });
    let servers = [
        repeat(&cluster.kubectl_command(Kubectl::Newest, &[])),
        repeat(&second.kubectl_command(&[])),
        repeat(&third.kubectl_command(&[])),
    ];
    let load = Load::start(3, move |n, args| servers[n](args));
    std::thread::sleep(Duration::from_secs(2));
    let leader = etcd.leader();
    etcd.kill(leader);
    cluster.stop(Signal::SIGKILL);
    // one of the two that are left leads, and both know it
    let by_third = |args: &[&str]| third.kubectl(args);
    let by_second = |args: &[&str]| second.kubectl(args);
    let leads = eventually("another server leads", || match holder(&by_third, "kube-controller-manager") {
        name if name.starts_with("server-") => Ok(name),
        name => Err(name),
    });
    assert_eq!(holder(&by_second, "kube-controller-manager"), leads);
    second.kubectl(&["create", "deployment", "web", "--image=echo:v1", "--replicas=3"]);
    eventually("controllers work", || {
        let pods = third.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]);
        if pods.lines().count() == 3 { Ok(()) } else { Err(pods) }
    });
    let left = [cluster.address(11), cluster.address(12)].map(|a| a.to_string()).join(" ");
    eventually("the dead server is no endpoint", || match by_third(&["get", "ep", "kubernetes", "-o", addresses]) {
        found if found == left => Ok(()),
        found => Err(found),
    });
    let acknowledged = load.finish();
    for kubectl in [&by_second as &dyn Fn(&[&str]) -> String, &by_third] {
        let found = stored(&kubectl(&["get", "cm", "-o", "name"]));
        let lost: Vec<&String> = acknowledged.iter().filter(|name| !found.contains(*name)).collect();
        assert!(lost.is_empty() && acknowledged.len() > 20, "{} acknowledged, lost: {lost:?}", acknowledged.len());
    }
}
