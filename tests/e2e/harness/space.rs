//! A namespace for each flow of a test, and what flows ask of it: servers, clients, whether one reaches the other.

use super::{Cluster, Kubectl, eventually, http_get, success};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Command;

/// The address of the host, which plays the outside.
pub(crate) fn outside(cluster: &Cluster) -> Ipv4Addr {
    Ipv4Addr::from_bits(cluster.ip.to_bits() - 1)
}

/// A flow's namespace.
pub(crate) struct Space<'a> {
    pub(crate) cluster: &'a Cluster,
    pub(crate) name: &'static str,
}

impl<'a> Space<'a> {
    pub(crate) fn new(cluster: &'a Cluster, name: &'static str) -> Self {
        cluster.kubectl(&["create", "namespace", name]);
        Self { cluster, name }
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> String {
        let mut all = vec!["-n", self.name];
        all.extend(args);
        self.cluster.kubectl(&all)
    }

    pub(crate) fn apply(&self, manifest: &str) {
        let args = ["-n", self.name, "apply", "-f", "-"];
        success("kubectl apply", self.cluster.kubectl_stdin(Kubectl::Newest, &args, manifest));
    }

    /// A server with the label `app: NAME`, named so, and ready.
    pub(crate) fn server(&self, name: &str) {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}, kind: server}}}}, spec: {{
                terminationGracePeriodSeconds: 0, containers: [{{name: main, image: 'echo:v1',
                ports: [{{name: http, containerPort: 8080}}], readinessProbe: {{httpGet: {{path: /healthz, port: http}}}}}}]}}}}"
        ));
    }

    /// A pod that does nothing by itself.
    pub(crate) fn client(&self, name: &str) {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{
                terminationGracePeriodSeconds: 0, containers: [{{name: main, image: 'busybox:test', command: [sleep, '100000']}}]}}}}"
        ));
    }

    pub(crate) fn ready(&self, pods: &[&str]) {
        for pod in pods {
            self.kubectl(&["wait", &format!("pod/{pod}"), "--for=condition=Ready", "--timeout=60s"]);
        }
    }

    pub(crate) fn field(&self, object: &str, path: &str) -> String {
        self.kubectl(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// Both addresses of a pod.
    pub(crate) fn ips(&self, pod: &str) -> [String; 2] {
        let both = self.field(&format!("pod/{pod}"), ".status.podIPs[*].ip");
        let mut ips = both.split(' ').map(str::to_owned);
        [ips.next().unwrap(), ips.next().expect("two addresses")]
    }

    /// What a pod gets from a URL; `None` when nothing comes. (Debian's busybox crashes on wget's own `-T`.)
    pub(crate) fn fetch(&self, pod: &str, url: &str) -> Option<String> {
        let command = ["-n", self.name, "exec", pod, "--", "timeout", "2", "wget", "-qO-", url];
        let out = self.cluster.try_kubectl(Kubectl::Newest, &command);
        out.status.success().then(|| String::from_utf8_lossy(&out.stdout).into_owned())
    }

    /// Waits until a pod gets something, or nothing, from a URL.
    pub(crate) fn expect(&self, pod: &str, url: &str, reached: bool) {
        eventually(
            &format!("{}/{pod} {} {url}", self.name, if reached { "reaches" } else { "does not reach" }),
            || {
                let found = self.fetch(pod, url);
                if found.is_some() == reached { Ok(()) } else { Err(format!("{found:?}")) }
            },
        );
    }
}

/// An address in a URL.
pub(crate) fn url(address: &str, port: u16) -> String {
    let address: IpAddr = address.parse().unwrap();
    format!("http://{}/", SocketAddr::new(address, port))
}

/// What the node answers the outside on a port.
pub(crate) fn from_outside(cluster: &Cluster, port: u16) -> Result<String, String> {
    http_get(SocketAddr::new(cluster.ip.into(), port), "/")
}

/// dig in the node's network.
pub(crate) fn dig(cluster: &Cluster, args: &[&str]) -> String {
    let out = cluster.inside(|| Command::new("dig").args(["+time=3", "+tries=2"]).args(args).output().unwrap());
    success("dig", out)
}
