//! The install script, on a machine with systemd: install, use, change, upgrade under running pods, end, remove.

use crate::harness::systemd::Debian;
use serde_json::Value;
use std::collections::BTreeSet;

const POD: &str = "
apiVersion: v1
kind: Pod
metadata: {name: survivor}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'busybox:test', command: [sleep, '100000']}]
";

/// Installs from the program at hand. `settings` are variables and arguments, as on a command line.
fn install(debian: &Debian, settings: &str, arguments: &str) -> String {
    debian
        .run(&format!("INSTALL_EDGE_BINARY=/tmp/test/edge {settings} sh /tmp/test/script/install.sh {arguments} 2>&1"))
}

/// What the script says when it refuses.
fn refused(debian: &Debian, settings: &str, arguments: &str) -> String {
    let script = format!("{settings} sh /tmp/test/script/install.sh {arguments} 2>&1");
    let out = debian.try_run(&script);
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(!out.status.success(), "{script}: {told}");
    told
}

fn main_pid(debian: &Debian) -> String {
    debian.run("systemctl show -P MainPID edge")
}

/// Id and restarts of the pod's container.
fn container(debian: &Debian) -> Value {
    let pod: Value = serde_json::from_str(&debian.run("kubectl get pod survivor -o json")).unwrap();
    let status = &pod["status"]["containerStatuses"][0];
    serde_json::json!([status["containerID"], status["restartCount"], status["ready"]])
}

fn ready(debian: &Debian) {
    debian.run_until("the node is ready", "kubectl wait node/debian --for=condition=Ready --timeout=5s");
}

#[test]
fn install_use_change_upgrade_and_remove() {
    let debian = Debian::start();
    // somebody else's, with a name like ours
    let theirs = "/etc/systemd/system/edgecore.service";
    debian.run(&format!(
        "printf '[Service]\\nExecStart=/usr/bin/tail -f /dev/null\\n' > {theirs} && systemctl start edgecore"
    ));
    let before = debian.state();

    // A wrong checksum, and nothing was changed.
    let told = refused(&debian, "INSTALL_EDGE_BINARY=/tmp/test/edge INSTALL_EDGE_SHA256=00ff", "");
    assert!(told.contains("its SHA-256 is") && told.contains("Nothing was changed"), "{told}");
    assert_eq!(debian.state(), before);

    let told = install(&debian, "", "--node-name=debian --eviction-hard= --write-kubeconfig-mode=0640");
    assert!(told.contains("installed as the service edge (systemd)") && told.contains("ready"), "{told}");
    assert_eq!(debian.run("systemctl is-active edge; systemctl is-enabled edge"), "active\nenabled\n");
    ready(&debian);
    debian.run("cp /tmp/test/busybox.tar /var/lib/edge/agent/images/busybox.tar");
    debian.run(&format!("echo \"{POD}\" | kubectl apply -f -"));
    debian.run("kubectl wait pod/survivor --for=condition=Ready --timeout=60s");
    let (pid, survivor) = (main_pid(&debian), container(&debian));

    // The same again changes nothing.
    let told = install(&debian, "", "--node-name=debian --eviction-hard= --write-kubeconfig-mode=0640");
    assert!(told.contains("nothing has changed"), "{told}");
    assert_eq!(main_pid(&debian), pid);

    // Other settings: the service starts anew, the pod does not.
    install(&debian, "EDGE_DEBUG=true", "server --node-name=debian --eviction-hard= --tls-san=edge.example.com");
    assert_ne!(main_pid(&debian), pid);
    ready(&debian);
    assert_eq!(container(&debian), survivor);
    let served =
        debian.run("openssl s_client -connect 127.0.0.1:6443 </dev/null 2>/dev/null | openssl x509 -noout -text");
    assert!(served.contains("edge.example.com"), "{served}");
    assert_eq!(debian.run("stat -c %a /etc/edge/edge.env; cat /etc/edge/edge.env"), "600\nEDGE_DEBUG=\"true\"\n");

    // A newer program, under the running pod.
    let pid = main_pid(&debian);
    debian.run("cp /tmp/test/edge /tmp/test/newer && echo newer >> /tmp/test/newer");
    debian.run("sha256sum /tmp/test/newer > /tmp/test/newer.sha256");
    install(&debian, "INSTALL_EDGE_BINARY=/tmp/test/newer", "--node-name=debian --eviction-hard=");
    debian.run("cmp /tmp/test/newer /usr/local/bin/edge");
    assert_ne!(main_pid(&debian), pid);
    ready(&debian);
    assert_eq!(container(&debian), survivor);

    // It ends, or hangs: it comes back.
    let pid = main_pid(&debian);
    debian.run("systemctl kill --kill-who=main --signal=KILL edge");
    debian.run_until("it comes back", &format!("test $(systemctl show -P MainPID edge) -gt {}", pid.trim()));
    ready(&debian);
    debian.run("mkdir /run/systemd/system/edge.service.d");
    debian.run("printf '[Service]\\nWatchdogSec=4\\n' > /run/systemd/system/edge.service.d/test.conf");
    debian.run("systemctl daemon-reload && systemctl restart edge");
    let pid = main_pid(&debian);
    debian.run(&format!("kill -STOP {pid}"));
    debian.run_until("it is found out", &format!("test $(systemctl show -P MainPID edge) -gt {}", pid.trim()));
    debian.run("rm -r /run/systemd/system/edge.service.d && systemctl daemon-reload");
    ready(&debian);
    assert_eq!(container(&debian), survivor);

    // Everything ends, and what is stored stays.
    debian.run("edge-killall.sh");
    assert_eq!(debian.try_run("systemctl is-active edge").stdout, b"inactive\n");
    assert_eq!(debian.run("ip -o link | grep -c edge || true"), "0\n");
    assert_eq!(debian.run("pgrep -c 'edge|sleep' || true"), "0\n");
    debian.run("systemctl start edge");
    ready(&debian);
    debian.run("kubectl wait pod/survivor --for=condition=Ready --timeout=60s");

    debian.run("edge-uninstall.sh");
    assert_eq!(debian.run("systemctl is-active edgecore"), "active\n");
    let after = debian.state();
    let lines = |state: &str| state.lines().map(str::to_owned).collect::<BTreeSet<String>>();
    let (before, after) = (lines(&before), lines(&after));
    let changed: Vec<&String> = before.symmetric_difference(&after).collect();
    assert!(changed.is_empty(), "the machine is not as it was before: {changed:#?}");
}

#[test]
fn settings_of_the_install_script() {
    let debian = Debian::start();
    let local = "INSTALL_EDGE_BINARY=/tmp/test/edge";
    for (settings, arguments, why) in [
        ("", "", "where is edge?"),
        ("INSTALL_EDGE_BINARY=/nowhere", "", "/nowhere does not exist"),
        ("INSTALL_EDGE_BINARY=/etc/passwd", "", "does not run on this machine"),
        ("INSTALL_EDGE_SKIP_DOWNLOAD=true", "", "there is no /usr/local/bin/edge"),
        (local, "worker", "unknown command 'worker'"),
        (local, "agent", "an agent needs its server"),
        ("EDGE_URL=https://10.0.0.1:6443", "", "an agent needs a token"),
        (local, "'--node-label=a=b c'", "cannot be on the command line"),
        ("INSTALL_EDGE_NAME=../x INSTALL_EDGE_BINARY=/tmp/test/edge", "", "only letters, digits"),
    ] {
        let told = refused(&debian, settings, arguments);
        assert!(told.contains(why), "{settings} {arguments}: {told}");
    }
    assert_eq!(debian.run("ls -d /etc/edge /usr/local/bin/edge* 2>/dev/null || true"), "");

    // A k3s user's environment.
    let k3s = "K3S_URL=https://10.0.0.1:6443 K3S_TOKEN=K10abc::node:it\\'s\\$1 INSTALL_K3S_SKIP_START=true INSTALL_K3S_CHANNEL=stable \
        INSTALL_K3S_BIN_DIR=/opt/edge/bin INSTALL_K3S_EXEC='--node-label=place=garden'";
    let told = install(&debian, k3s, "");
    assert!(told.contains("INSTALL_K3S_CHANNEL means nothing to edge"), "{told}");
    let unit = debian.run("systemctl cat edge-agent");
    assert!(unit.contains("ExecStart=/opt/edge/bin/edge agent --node-label=place=garden\n"), "{unit}");
    assert!(unit.contains("Type=notify") && unit.contains("KillMode=process") && unit.contains("Delegate=yes"));
    assert_eq!(
        debian.run("systemctl is-enabled edge-agent; systemctl is-active edge-agent || true"),
        "enabled\ninactive\n"
    );
    let env = debian.run("stat -c %a /etc/edge/edge-agent.env; cat /etc/edge/edge-agent.env");
    assert_eq!(env, "600\nEDGE_TOKEN=\"K10abc::node:it's\\$1\"\nEDGE_URL=\"https://10.0.0.1:6443\"\n");
    // systemd reads the quotes as a shell does
    let read = "systemd-run -q --wait --pipe -p EnvironmentFile=/etc/edge/edge-agent.env printenv EDGE_TOKEN";
    assert_eq!(debian.run(read), "K10abc::node:it's$1\n");
    assert_eq!(debian.run(". /etc/edge/edge-agent.env; echo $EDGE_TOKEN"), "K10abc::node:it's$1\n");
    for file in ["/opt/edge/bin/edge-killall.sh", "/opt/edge/bin/edge-uninstall.sh", "/etc/edge/config.yaml.example"] {
        debian.run(&format!("test -s {file} && ! grep -q '@[A-Z]*@' {file}"));
    }
    // What completes edge's commands.
    let completes = "bash -c '. /usr/share/bash-completion/completions/edge; COMP_WORDS=(edge serv) COMP_CWORD=1; _edge edge serv edge; echo ${COMPREPLY[*]}'";
    assert_eq!(debian.run(completes), "server\n");

    // Whether the machine is fit, and what it says where it is not.
    let fit = debian.run("/opt/edge/bin/edge check");
    assert!(fit.contains("memory cgroup") && !fit.contains("FAILURE"), "{fit}");
    let taken = debian.try_run(
        "busybox nc -l -p 6443 >/dev/null 2>&1 & nc=$!; sleep 1; /opt/edge/bin/edge check -o json; code=$?; kill $nc; exit $code",
    );
    let checks: Vec<Value> = serde_json::from_slice(&taken.stdout).unwrap();
    let ports = checks.iter().find(|check| check["name"] == "ports").unwrap();
    assert!(ports["state"] == "failure" && ports["found"].as_str().unwrap().contains("API 6443/tcp"), "{ports}");
    assert_eq!(taken.status.code(), Some(1));

    // The same for OpenRC, which this machine does not have.
    debian.run("edge=/opt/edge/bin/edge; $edge unpack /tmp/files && sh -n /tmp/files/rootfs/etc/init.d/edge");
    debian.run("/opt/edge/bin/edge-uninstall.sh");
    assert_eq!(
        debian.run("ls /etc/edge /opt/edge/bin /etc/systemd/system/edge-agent.service 2>/dev/null || true"),
        "/opt/edge/bin:\n"
    );
}

/// Makes the machine one with OpenRC: its programs, and nothing to be seen of systemd, which goes on as the first process.
const OPENRC: &str = "
tar -C /tmp/test/openrc -c . | tar -C / -x --keep-directory-symlink
rm -rf /etc/init.d/cgroups
printf '#!/sbin/openrc-run\ndepend() { provide net; }\nstart() { :; }\n' > /etc/init.d/wire
chmod 755 /etc/init.d/wire
mv /run/systemd /run/not-systemd
for name in daemons exclusive failed hotplugged inactive options scheduled started starting stopping tmp wasinactive; do
  mkdir -p /run/openrc/$name
done
mkdir -p /etc/runlevels/default
touch /run/openrc/softlevel";

#[test]
fn openrc_runs_it() {
    let debian = Debian::start();
    debian.run(OPENRC);
    let told = install(&debian, "", "--node-name=debian --eviction-hard=");
    assert!(told.contains("installed as the service edge (openrc)") && told.contains("ready"), "{told}");
    assert_eq!(debian.run("rc-update show default | grep -o edge"), "edge\n");
    ready(&debian);
    debian.run("cp /tmp/test/busybox.tar /var/lib/edge/agent/images/busybox.tar");
    debian.run(&format!("echo \"{POD}\" | kubectl apply -f -"));
    debian.run("kubectl wait pod/survivor --for=condition=Ready --timeout=60s");
    let survivor = container(&debian);
    let pid = || debian.run("cat /var/lib/edge/run/lock");

    // other settings, another start; the pod does not notice
    let before = pid();
    install(&debian, "EDGE_DEBUG=true", "--node-name=debian --eviction-hard=");
    assert_ne!(pid(), before);
    ready(&debian);
    assert_eq!(container(&debian), survivor);
    // a crash
    let before = pid();
    debian.run("kill -9 $(cat /var/lib/edge/run/lock)");
    debian.run_until("it comes back", &format!("test \"$(cat /var/lib/edge/run/lock)\" != {}", before.trim()));
    debian.run_until("the API answers", "kubectl get node debian");
    ready(&debian);
    assert_eq!(container(&debian), survivor);
    debian.run("rc-service edge stop");
    assert_eq!(debian.run("pgrep -c sleep; rc-service edge status >/dev/null; echo $?"), "1\n3\n");

    debian.run("rc-service edge start");
    debian.run("edge-killall.sh");
    assert_eq!(debian.run("pgrep -c 'edge|sleep' || true"), "0\n");
    debian.run("edge-uninstall.sh");
    let left = debian.run("ls -d /etc/init.d/edge /etc/runlevels/default/edge /var/lib/edge /usr/local/bin/edge* /etc/edge 2>/dev/null || true");
    assert_eq!(left, "");
}
