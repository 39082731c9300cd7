//! `edge status`: whether this machine and its cluster are fine, and what to do where they are not.

use super::access::{Access, Cluster};
use super::certificate_command::{self, Certificate};
use super::check_command::{clock, disk};
use super::report::{self, Check, Output, State};
use super::server::{Failure, doing};
use super::{GIT_VERSION, fail};
use clap::Args;
use edge_client::{Api, ListParams, ResourceExt};
use k8s_openapi::api::core::v1::{ContainerStatus, Node, Pod};
use k8s_openapi::jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// How long a healthy server takes at most.
const ANSWER: Duration = Duration::from_secs(5);
/// How many pods with troubles are named.
const NAMED: usize = 10;
/// A pod that has waited for less is on its way.
const PATIENCE_SECONDS: i64 = 30;
/// Certificates are renewed long before: who sees less has a server that does not.
const DAYS_LEFT: i64 = 30;

/// `edge status`
#[derive(Args)]
pub(crate) struct StatusArgs {
    #[command(flatten)]
    access: Access,
    /// Configuration file of edge, for where things are
    #[arg(long, env = "EDGE_CONFIG_FILE", default_value = "/etc/edge/config.yaml", value_name = "FILE")]
    config: PathBuf,
    /// Directory for all state, as edge was told
    #[arg(long, short, env = "EDGE_DATA_DIR", default_value = "/var/lib/edge", value_name = "DIR")]
    data_dir: PathBuf,
    /// Format
    #[arg(long, short, value_enum, default_value_t, value_name = "FORMAT")]
    output: Output,
}

/// Runs the command.
pub(crate) fn main(args: &StatusArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(1, &doing("starting the runtime")(error)),
    };
    let checks = runtime.block_on(all(args));
    report::print(&checks, args.output)
}

async fn all(args: &StatusArgs) -> Vec<Check> {
    let mut checks = vec![process(&args.data_dir)];
    if args.access.kubeconfig().exists() || args.data_dir.join("server").exists() {
        match Cluster::open(&args.access).await {
            Ok(cluster) => checks.extend(of_cluster(&cluster).await),
            Err(error) => checks.push(Check::new(
                "API server",
                false,
                State::Failure,
                super::with_causes(&error),
                "say with --kubeconfig where the administrator's kubeconfig is",
            )),
        }
    }
    checks.extend(certificates(&args.data_dir));
    checks.extend(disk(&args.data_dir));
    checks.push(clock());
    checks
}

/// The edge of this machine.
fn process(data_dir: &Path) -> Check {
    let fix = "start it: `systemctl start edge`; `journalctl -u edge` says why it ended";
    match running(data_dir) {
        Some((pid, since)) => Check::ok("edge", format!("{GIT_VERSION}, process {pid}, for {since}")),
        None => Check::new("edge", false, State::Failure, format!("does not run in {}", data_dir.display()), fix),
    }
}

/// The process that works in a data directory, and for how long.
pub(super) fn running(data_dir: &Path) -> Option<(i32, String)> {
    let pid: i32 = std::fs::read_to_string(data_dir.join("run/lock")).ok()?.trim().parse().ok()?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if command.trim() != "edge" {
        return None;
    }
    let started = std::fs::metadata(format!("/proc/{pid}")).and_then(|m| m.modified()).ok()?;
    Some((pid, age(started.elapsed().unwrap_or_default().as_secs())))
}

/// A length of time as people say it.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

async fn of_cluster(cluster: &Cluster) -> Vec<Check> {
    let mut checks = Vec::new();
    match ready(cluster).await {
        Ok(None) => checks.push(Check::ok("API server", format!("{} is ready", cluster.url))),
        Ok(Some(problems)) => {
            let fix = "`journalctl -u edge` says more";
            checks.push(Check::new("API server", false, State::Failure, problems, fix));
        }
        Err(error) => {
            let fix = "is the server running, and does this machine reach it?";
            checks.push(Check::new("API server", false, State::Failure, super::with_causes(&error), fix));
            return checks;
        }
    }
    let all = ListParams::default();
    match cluster.call(Api::<Node>::all(cluster.client.clone()).list(&all)).await {
        Ok(list) => checks.extend(nodes(&list.items)),
        Err(error) => checks.push(unknown("nodes", &error)),
    }
    match cluster.call(Api::<Pod>::all(cluster.client.clone()).list(&all)).await {
        Ok(list) => checks.extend(pods(&list.items, Timestamp::now())),
        Err(error) => checks.push(unknown("pods", &error)),
    }
    checks
}

fn unknown(name: &'static str, error: &Failure) -> Check {
    Check::new(
        name,
        false,
        State::Failure,
        super::with_causes(error),
        "the administrator's kubeconfig may look at everything",
    )
}

/// The checks of the API server that failed, if any.
async fn ready(cluster: &Cluster) -> Result<Option<String>, Failure> {
    let what = "asking the server";
    let request = http::Request::get("/readyz?verbose").body(Vec::new()).map_err(doing(what))?;
    match tokio::time::timeout(ANSWER, cluster.client.request_text(request)).await.map_err(doing(what))? {
        Ok(_) => Ok(None),
        Err(edge_client::Error::Api(status)) => {
            let failed: Vec<&str> = status.message.lines().filter_map(|line| line.strip_prefix("[-]")).collect();
            Ok(Some(if failed.is_empty() { status.message.trim().to_owned() } else { failed.join("; ") }))
        }
        Err(error) => Err(doing(what)(super::with_causes(&error))),
    }
}

fn nodes(nodes: &[Node]) -> Vec<Check> {
    let condition = |node: &Node, kind: &str| {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        conditions.iter().find(|c| c.type_ == kind).map(|c| (c.status.clone(), c.message.clone().unwrap_or_default()))
    };
    let (mut checks, mut ready) = (Vec::new(), 0);
    for node in nodes {
        let name = node.name_any();
        match condition(node, "Ready") {
            Some((status, _)) if status == "True" => ready += 1,
            found => {
                let message = found.map_or_else(|| "has never been heard of".to_owned(), |(_, message)| message);
                let fix =
                    format!("is edge running on {name}, and does it reach this server? `edge status` there says more");
                checks.push(Check::new("node", false, State::Warning, format!("{name} is not ready: {message}"), fix));
            }
        }
        for (kind, fix) in [
            ("DiskPressure", "make space: `edge image prune` removes images that no pod uses"),
            ("MemoryPressure", "give pods memory limits, or the node more memory"),
            ("PIDPressure", "find the pod that starts so many processes"),
        ] {
            if let Some((_, message)) = condition(node, kind).filter(|(status, _)| status == "True") {
                checks.push(Check::new("node", false, State::Warning, format!("{name}: {kind}: {message}"), fix));
            }
        }
        if node.spec.as_ref().and_then(|s| s.unschedulable) == Some(true) {
            let fix = format!("when the work on it is done: `kubectl uncordon {name}`");
            checks.push(Check::new("node", false, State::Warning, format!("{name} takes no pods"), fix));
        }
    }
    let state = if ready == 0 { State::Failure } else { State::Warning };
    let summary = format!("{ready} of {} ready", nodes.len());
    checks.insert(0, Check::new("nodes", ready == nodes.len() && ready > 0, state, summary, ""));
    checks
}

fn pods(pods: &[Pod], now: Timestamp) -> Vec<Check> {
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|s| s.phase.clone()).unwrap_or_default();
    let living: Vec<&Pod> = pods.iter().filter(|p| !["Succeeded", "Failed"].contains(&phase(p).as_str())).collect();
    let troubles: Vec<(String, String)> = living
        .iter()
        .filter_map(|pod| {
            Some((format!("{} -n {}", pod.name_any(), pod.namespace().unwrap_or_default()), trouble(pod, now)?))
        })
        .collect();
    let summary = format!("{} of {} fine", living.len() - troubles.len(), living.len());
    let mut checks = vec![Check::new("pods", troubles.is_empty(), State::Warning, summary, "")];
    for (pod, trouble) in troubles.iter().take(NAMED) {
        let fix = format!("kubectl describe pod {pod}");
        checks.push(Check::new("pod", false, State::Warning, trouble.as_str(), fix));
    }
    if troubles.len() > NAMED {
        let more = format!("and {} more", troubles.len() - NAMED);
        checks.push(Check::new("pod", false, State::Warning, more, "kubectl get pods -A"));
    }
    checks
}

/// What keeps a pod from doing its work, when that is not only the time.
fn trouble(pod: &Pod, now: Timestamp) -> Option<String> {
    let status = pod.status.as_ref()?;
    let name = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let containers = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let all = [containers(&status.init_container_statuses), containers(&status.container_statuses)].concat();
    let waiting = all.iter().find_map(|c| {
        let waiting = c.state.as_ref()?.waiting.as_ref()?;
        let reason = waiting.reason.as_deref().filter(|r| !["ContainerCreating", "PodInitializing"].contains(r))?;
        Some(format!("{name}: {reason}: {}", waiting.message.as_deref().unwrap_or(&c.name)))
    });
    let since = |time: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>| {
        time.map_or(0, |t| now.as_second() - t.0.as_second())
    };
    let conditions = status.conditions.as_deref().unwrap_or_default();
    let is_false = |kind: &str| conditions.iter().find(|c| c.type_ == kind && c.status == "False");
    let late = |kind: &str| is_false(kind).filter(|c| since(c.last_transition_time.as_ref()) >= PATIENCE_SECONDS);
    let unscheduled = || is_false("PodScheduled").and_then(|c| Some(format!("{name}: {}", c.message.as_deref()?)));
    let unready = || {
        late("Ready").map(|c| format!("{name} is not ready: {}", c.message.as_deref().unwrap_or("it is being started")))
    };
    let ending = || {
        let overdue = since(pod.metadata.deletion_timestamp.as_ref()) >= PATIENCE_SECONDS;
        (pod.metadata.deletion_timestamp.is_some() && overdue).then(|| format!("{name} should be gone, and is not"))
    };
    waiting.or_else(unscheduled).or_else(ending).or_else(unready)
}

/// Certificates of this machine that end soon.
fn certificates(data_dir: &Path) -> Option<Check> {
    let all = certificate_command::all(data_dir);
    let next: &Certificate = all.iter().min_by_key(|c| c.end)?;
    let days = next.days_left(Timestamp::now());
    let found = format!("{}, the first ends in {days} days ({})", all.len(), next.file.display());
    let fix = "edge renews certificates by itself while it runs: `edge certificate rotate` tries it now";
    Some(Check::new(
        "certificates",
        days >= DAYS_LEFT,
        if days < 0 { State::Failure } else { State::Warning },
        found,
        fix,
    ))
}
