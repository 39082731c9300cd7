//! The network of one node: addresses, services, DNS, the world.

use crate::harness::{Cluster, eventually, http_get};
use std::io::Read;
use std::net::{SocketAddr, TcpListener};

const SETUP: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  hostname: named
  subdomain: headless
  terminationGracePeriodSeconds: 0
  containers: [{name: web, image: "echo:v1", ports: [{containerPort: 8080, hostPort: 8088, name: http}]}]
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: server}
  ports: [{name: http, port: 80, targetPort: http, nodePort: 30099}]
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports: [{name: http, port: 8080}]
---
apiVersion: v1
kind: Pod
metadata: {name: client}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: onhost}
spec:
  hostNetwork: true
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
"#;

#[test]
fn services_names_and_the_world() {
    let cluster = Cluster::start();
    cluster.apply(SETUP);
    for pod in ["pod/server", "pod/client", "pod/onhost"] {
        cluster.wait_for(pod, "condition=Ready");
    }
    let sh = |pod: &str, script: &str| cluster.kubectl(&["exec", pod, "--", "sh", "-c", script]);
    let ip = cluster.kubectl(&["get", "pod", "server", "-o", "jsonpath={.status.podIP}"]);
    let vip = cluster.kubectl(&["get", "svc", "web", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(vip.starts_with("10.43."), "{vip}");

    // pod to pod, keeping the source address; ClusterIP; names in all their lengths
    let mine = cluster.kubectl(&["get", "pod", "client", "-o", "jsonpath={.status.podIP}"]);
    assert!(sh("client", &format!("wget -qO- http://{ip}:8080/")).contains(&format!("peer={mine}")));
    eventually("the service has its endpoint", || {
        let out = cluster.get(&["endpointslices", "-l", "kubernetes.io/service-name=web"]).to_string();
        if out.contains(&ip) { Ok(()) } else { Err(out) }
    });
    for host in [vip.as_str(), "web", "web.default", "web.default.svc", "web.default.svc.cluster.local"] {
        assert!(sh("client", &format!("wget -qO- http://{host}/")).contains("host=named"), "{host}");
    }
    for host in ["headless", "named.headless", "named.headless.default.svc.cluster.local"] {
        assert!(
            sh("client", &format!("nslookup {host}.default.svc.cluster.local || nslookup {host}")).contains(&ip),
            "{host}"
        );
    }
    let dashed = ip.replace('.', "-");
    assert!(sh("client", &format!("nslookup {dashed}.default.pod.cluster.local")).contains(&ip));
    assert!(sh("client", "cat /etc/resolv.conf").contains("nameserver 10.43.0.10"));
    assert!(
        sh("client", "cat /etc/resolv.conf")
            .contains("search default.svc.cluster.local svc.cluster.local cluster.local")
    );

    // a pod reaches itself through its own service (hairpin)
    assert!(sh("server", "wget -qO- http://web/").contains("host=named"));
    // from the node, and from a pod in the node's network
    assert!(sh("onhost", "wget -qO- http://web/").contains("host=named"));
    assert!(sh("onhost", &format!("wget -qO- http://{ip}:8080/")).contains("host=named"));
    let node = |port: u16| SocketAddr::new(cluster.ip.into(), port);
    assert!(cluster.inside(|| http_get("127.0.0.1:30099".parse().unwrap(), "/")).unwrap().contains("host=named"));
    // from the outside
    assert!(http_get(node(30099), "/").unwrap().contains("host=named"));
    assert!(http_get(node(8088), "/").unwrap().contains("host=named"));

    // to the outside, behind the node's address
    let gateway = cluster.ip.to_bits() - 1;
    let listener = TcpListener::bind((std::net::Ipv4Addr::from_bits(gateway), 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let gateway = std::net::Ipv4Addr::from_bits(gateway);
    let asked = std::thread::spawn(move || {
        let (mut stream, peer) = listener.accept().unwrap();
        let mut byte = [0u8; 1];
        stream.read_exact(&mut byte).unwrap();
        peer.ip()
    });
    sh("client", &format!("echo x | nc -w 3 {gateway} {port} || true"));
    assert_eq!(asked.join().unwrap(), std::net::IpAddr::from(cluster.ip));

    // a service without endpoints refuses at once
    cluster.kubectl(&["delete", "pod", "server"]);
    eventually("the service refuses", || match http_get(node(30099), "/") {
        Ok(body) => Err(body),
        Err(_) => Ok(()),
    });
}
