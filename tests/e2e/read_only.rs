//! A machine of which only the data directory can be written.

use crate::harness::{Cluster, Kubectl, NO_EVICTIONS, eventually, success};
use nix::sys::signal::Signal;
use std::fs;
use std::process::Command;

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: main, image: "busybox:test", command: [sh, -c, "echo started; echo kept > /data/file; exec sleep 100000"],
     volumeMounts: [{name: data, mountPath: /data}]}
  volumes: [{name: data, emptyDir: {}}]
"#;

/// All that is mounted becomes read-only, but for the data directory and what the kernel makes of itself.
const SCRIPT: &str = "
mount --make-rprivate /
mount --bind \"$DATA\" \"$DATA\"
awk '{print $5}' /proc/self/mountinfo | while read -r at; do
  case $at in /proc*|/sys*|/dev*|\"$DATA\"*) ;; *) mount -o remount,bind,ro \"$at\" ;; esac
done
if touch /run/edge-e2e /var/edge-e2e /etc/edge-e2e /tmp/edge-e2e 2>/dev/null; then exit 9; fi
exec \"$@\"";

#[test]
fn only_the_data_directory_can_be_written() {
    let mut cluster = Cluster::prepare(&[NO_EVICTIONS]);
    let data = cluster.data_dir();
    cluster.wrap = vec!["unshare".into(), "-m".into(), "sh".into(), "-ec".into(), SCRIPT.into(), "sh".into()];
    cluster.environment.push(("DATA".into(), data.display().to_string()));
    // where everything goes by itself
    cluster.bare = true;
    cluster.launch();
    let log = cluster.log();
    assert!(log.contains("the usual place is read-only"), "{log}");
    let kubeconfig = data.join("edge.yaml");
    fs::copy(&kubeconfig, cluster.kubeconfig()).unwrap();
    cluster.await_images();
    cluster.apply(WEB);
    cluster.wait_for("pod/web", "condition=Ready");
    assert_eq!(cluster.kubectl(&["exec", "web", "--", "cat", "/data/file"]), "kept\n");
    eventually("the log is there", || match cluster.kubectl(&["logs", "web"]) {
        log if log == "started\n" => Ok(()),
        log => Err(log),
    });
    // commands find the kubeconfig where it is
    let mut status = Command::new(crate::harness::edge_binary());
    status.args(["status", "-o", "json"]).env("EDGE_DATA_DIR", &data).env_remove("KUBECONFIG");
    cluster.enter(&mut status);
    let told = success("status", status.output().unwrap());
    assert!(told.contains("the API server answers") || told.contains("ok"), "{told}");
    let id = |cluster: &Cluster| cluster.get(&["pod", "web"])["status"]["containerStatuses"][0]["containerID"].clone();
    let before = id(&cluster);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        cluster.stop(signal);
        cluster.launch();
        assert_eq!(id(&cluster), before);
        let out = cluster.try_kubectl(Kubectl::Newest, &["exec", "web", "--", "cat", "/data/file"]);
        assert_eq!(out.stdout, b"kept\n", "{out:?}");
    }
    // backups go into the data directory, too
    success("backup", cluster.edge(&["backup", &data.join("backup").display().to_string()]));
    assert!(!fs::exists("/etc/edge/edge.yaml").unwrap());
}
