//! Which functions a node executes: when it starts, when it idles, when it works.
//!
//! `scripts/gen-functions` runs this with a release binary that has its symbols; the list that it writes, `scripts/functions.txt.gz`, is what
//! `scripts/ordered-cc` orders the functions of the program by. A page of code costs memory as soon as one function on it is executed, so functions
//! that are used together have to lie together.
//!
//! Every function of the traced processes begins with a breakpoint, which is taken out when it is reached: exact, and after the first call at
//! full speed. x86-64 only; the names are those of any processor.
#![expect(clippy::unwrap_used, reason = "a generator that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;

#[cfg(target_arch = "x86_64")]
mod tracer;

#[cfg(target_arch = "x86_64")]
fn main() {
    let program = |name| std::env::var_os(name).map(std::path::PathBuf::from);
    match (program(tracer::BINARY), program(tracer::RECORD)) {
        (Some(binary), Some(record)) if std::env::args().nth(1).is_some_and(|a| a == "server" || a == "agent") => {
            tracer::trace(&binary, &record)
        }
        (Some(_), Some(record)) => workload::run(&record),
        _ => workload::start_over_as_the_traced_program(),
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn main() {
    eprintln!("functions: this works on x86-64 only; its result is for all");
}

#[cfg(target_arch = "x86_64")]
mod workload {
    use super::harness::{Agent, Cluster, edge_binary};
    use super::{common, tracer};
    use std::collections::HashSet;
    use std::path::Path;
    use std::process::Command;
    use std::time::Duration;

    /// After this long a start is over.
    const SETTLED: Duration = Duration::from_secs(20);
    /// In this time an idle node has done all that it does now and then, such as beginning its watches anew.
    const IDLE: Duration = Duration::from_secs(700);

    /// What the harness starts as `edge` is this program, which starts and traces the real one.
    pub(super) fn start_over_as_the_traced_program() {
        let record = std::env::temp_dir().join(format!("edge-functions-{}", std::process::id()));
        std::fs::create_dir(&record).unwrap();
        let me = std::env::current_exe().unwrap();
        let status = Command::new(&me)
            .env(tracer::BINARY, edge_binary())
            .env(tracer::RECORD, &record)
            .env("EDGE_BINARY", &me)
            .status()
            .unwrap();
        let result = std::fs::read_to_string(record.join("functions.txt"));
        std::fs::remove_dir_all(&record).unwrap();
        assert!(status.success());
        print!("{}", result.unwrap());
    }

    pub(super) fn run(record: &Path) {
        let cluster = Cluster::start();
        let agent = Agent::start(&cluster, 1);
        eprintln!("functions: started; waiting until that has settled");
        std::thread::sleep(SETTLED);
        tracer::next_phase(record);
        eprintln!("functions: recording what idle nodes execute");
        std::thread::sleep(IDLE);
        tracer::next_phase(record);
        eprintln!("functions: recording what nodes with pods execute");
        work(&cluster);
        tracer::next_phase(record);
        drop(agent);
        drop(cluster);
        std::fs::write(record.join("functions.txt"), ordered(record)).unwrap();
    }

    fn work(cluster: &Cluster) {
        let node = |n| format!("node-{n}");
        for n in [1, 2] {
            let manifest = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
                {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": format!("web-{n}")}, "spec": {
                    "replicas": 2, "selector": {"matchLabels": {"app": format!("web-{n}")}},
                    "template": {"metadata": {"labels": {"app": format!("web-{n}")}}, "spec": {
                        "nodeName": node(n), "terminationGracePeriodSeconds": 0, "containers": [{
                            "name": "main", "image": "busybox:test", "command": ["sh", "-c", "echo up; exec httpd -f -p 80 -h /"],
                            "readinessProbe": {"httpGet": {"port": 80, "path": "/etc/passwd"}},
                            "volumeMounts": [{"name": "map", "mountPath": "/map"}],
                        }], "volumes": [{"name": "map", "configMap": {"name": "kube-root-ca.crt"}}]}}}},
                {"apiVersion": "v1", "kind": "Service", "metadata": {"name": format!("web-{n}")}, "spec": {
                    "selector": {"app": format!("web-{n}")}, "ports": [{"port": 80}]}},
            ]});
            cluster.apply(&manifest.to_string());
        }
        for n in [1, 2] {
            let deployment = format!("deployment/web-{n}");
            cluster.kubectl(&["rollout", "status", &deployment, "--timeout=60s"]);
            cluster.kubectl(&["logs", &deployment]);
            let address = format!("http://web-{n}/etc/passwd");
            cluster.kubectl(&["exec", &deployment, "--", "wget", "-qO-", &address]);
        }
        cluster.kubectl(&["get", "pods,nodes,events", "-A"]);
        cluster.kubectl(&["delete", "deployment,service", "web-1", "web-2"]);
    }

    /// The names by phase: first what an idle node executes, then what is added by pods, and last what only a start needs.
    fn ordered(record: &Path) -> String {
        let mut of_phase = [const { Vec::new() }; 3];
        for file in std::fs::read_dir(record).unwrap().flatten() {
            for line in std::fs::read_to_string(file.path()).unwrap().lines() {
                let (phase, name) = line.split_once(' ').unwrap();
                if let Some(names) = of_phase.get_mut(phase.parse::<usize>().unwrap()) {
                    names.push(name.to_owned());
                }
            }
        }
        let [start, idle, work] = of_phase;
        let mut seen = HashSet::new();
        let mut text = String::new();
        for (title, names) in [("idle", idle), ("work", work), ("start", start)] {
            text.push_str(&format!("# {title}\n"));
            for name in names {
                if seen.insert(name.clone()) {
                    text.push_str(&name);
                    text.push('\n');
                }
            }
        }
        text
    }
}
