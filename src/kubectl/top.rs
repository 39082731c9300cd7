//! `top`: what nodes and pods use.

use crate::cli::{TopArgs, TopNodeArgs, TopPodArgs, TopSort, TopWhat};
use crate::error::Error;
use crate::print;
use crate::session::{Session, query};
use edge_api::Quantity;
use serde_json::Value;
use std::cmp::Reverse;

const API: &str = "/apis/metrics.k8s.io/v1beta1";
const MIB: i64 = 1024 * 1024;

pub(crate) async fn run(session: &Session, args: TopArgs) -> Result<(), Error> {
    match args.what {
        TopWhat::Node(args) => nodes(session, &args).await,
        TopWhat::Pod(args) => pods(session, &args).await,
    }
}

/// What something uses: thousandths of a processor, and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Usage {
    cpu: i64,
    memory: i64,
}

impl Usage {
    fn of(usage: &Value) -> Self {
        let amount = |name: &str| usage[name].as_str().and_then(|text| Quantity::parse(text).ok());
        Self { cpu: amount("cpu").map_or(0, |q| q.milli_value()), memory: amount("memory").map_or(0, |q| q.value()) }
    }

    fn plus(self, other: Self) -> Self {
        Self { cpu: self.cpu.saturating_add(other.cpu), memory: self.memory.saturating_add(other.memory) }
    }

    fn cells(self) -> [String; 2] {
        [format!("{}m", self.cpu), format!("{}Mi", self.memory / MIB)]
    }

    /// What comes first when it is sorted by this; names decide otherwise.
    fn rank(self, by: Option<TopSort>) -> Reverse<i64> {
        Reverse(match by {
            Some(TopSort::Cpu) => self.cpu,
            Some(TopSort::Memory) => self.memory,
            None => 0,
        })
    }
}

fn percent(part: i64, whole: i64) -> String {
    if whole > 0 { format!("{}%", part.saturating_mul(100) / whole) } else { "<unknown>".to_owned() }
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Asks, and says what is the matter where the API is not there at all.
async fn ask(session: &Session, path: &str) -> Result<Value, Error> {
    session.get(path).await.map_err(|error| match error {
        Error::Refused { reason, message } if reason == "NotFound" && message.contains("requested resource") => {
            Error::Usage("Metrics API not available".into())
        }
        other => other,
    })
}

fn items(list: &Value) -> Vec<Value> {
    list["items"].as_array().cloned().unwrap_or_default()
}

async fn nodes(session: &Session, args: &TopNodeArgs) -> Result<(), Error> {
    let selector = query(&[("labelSelector", args.selector.as_deref())]);
    let place = |root: &str| match &args.name {
        Some(name) => format!("{root}/nodes/{name}"),
        None if selector.is_empty() => format!("{root}/nodes"),
        None => format!("{root}/nodes?{selector}"),
    };
    let listed = |found: Value| if args.name.is_some() { vec![found] } else { items(&found) };
    let measured = listed(ask(session, &place(API)).await?);
    let known = listed(session.get(&place("/api/v1")).await?);
    let rows = node_rows(&known, &measured, args);
    print(session, &rows, usize::from(args.no_headers), false)
}

/// The table of all nodes; those of which nothing is known come last.
fn node_rows(nodes: &[Value], measured: &[Value], args: &TopNodeArgs) -> Vec<Vec<String>> {
    let usage_of = |node: &Value| measured.iter().find(|m| name(m) == name(node)).map(|m| Usage::of(&m["usage"]));
    let mut all: Vec<(&Value, Option<Usage>)> = nodes.iter().map(|node| (node, usage_of(node))).collect();
    all.sort_by_key(|(node, usage)| (usage.is_none(), usage.unwrap_or_default().rank(args.sort_by), name(node)));
    let header = ["NAME", "CPU(cores)", "CPU(%)", "MEMORY(bytes)", "MEMORY(%)"].map(str::to_owned).to_vec();
    let mut rows = vec![header];
    for (node, usage) in all {
        let mut row = vec![name(node).to_owned()];
        match usage {
            None => row.extend(std::iter::repeat_n("<unknown>".to_owned(), 4)),
            Some(usage) => {
                let whole = Usage::of(&node["status"][if args.show_capacity { "capacity" } else { "allocatable" }]);
                let [cpu, memory] = usage.cells();
                row.extend([cpu, percent(usage.cpu, whole.cpu), memory, percent(usage.memory, whole.memory)]);
            }
        }
        rows.push(row);
    }
    rows
}

async fn pods(session: &Session, args: &TopPodArgs) -> Result<(), Error> {
    let namespace = if args.all_namespaces { String::new() } else { format!("/namespaces/{}", session.namespace) };
    let selectors =
        query(&[("labelSelector", args.selector.as_deref()), ("fieldSelector", args.field_selector.as_deref())]);
    let place = |root: &str| match &args.name {
        Some(name) => format!("{root}{namespace}/pods/{name}"),
        None if selectors.is_empty() => format!("{root}{namespace}/pods"),
        None => format!("{root}{namespace}/pods?{selectors}"),
    };
    let found = ask(session, &place(API)).await?;
    let measured = if args.name.is_some() { vec![found] } else { items(&found) };
    if measured.is_empty() && !items(&session.get(&place("/api/v1")).await?).is_empty() {
        return Err(Error::Usage("metrics not available yet".into()));
    }
    print(session, &pod_rows(&measured, args), usize::from(args.no_headers), !args.all_namespaces)
}

/// The table of pods, or of their containers.
fn pod_rows(measured: &[Value], args: &TopPodArgs) -> Vec<Vec<String>> {
    let containers = |pod: &Value| {
        let list = pod["containers"].as_array().cloned().unwrap_or_default();
        list.iter().map(|c| (c["name"].as_str().unwrap_or_default().to_owned(), Usage::of(&c["usage"]))).collect()
    };
    let namespace = |pod: &Value| pod["metadata"]["namespace"].as_str().unwrap_or_default().to_owned();
    let mut all: Vec<_> = measured
        .iter()
        .map(|pod| {
            let each: Vec<(String, Usage)> = containers(pod);
            let sum = each.iter().fold(Usage::default(), |sum, (_, usage)| sum.plus(*usage));
            (pod, each, sum)
        })
        .collect();
    all.sort_by_key(|(pod, _, sum)| (sum.rank(args.sort_by), namespace(pod), name(pod).to_owned()));
    let lead = |first: &str| if args.all_namespaces { vec![first.to_owned()] } else { Vec::new() };
    let mut header = lead("NAMESPACE");
    header.extend(args.containers.then(|| "POD".to_owned()));
    header.extend(["NAME", "CPU(cores)", "MEMORY(bytes)"].map(str::to_owned));
    let mut rows = vec![header];
    for (pod, each, sum) in &all {
        if args.containers {
            for (container, usage) in each {
                let mut row = lead(&namespace(pod));
                row.extend([name(pod).to_owned(), container.clone()]);
                row.extend(usage.cells());
                rows.push(row);
            }
        } else {
            let mut row = lead(&namespace(pod));
            row.push(name(pod).to_owned());
            row.extend(sum.cells());
            rows.push(row);
        }
    }
    if args.sum && !all.is_empty() {
        let sum = all.iter().fold(Usage::default(), |total, (_, _, sum)| total.plus(*sum));
        let blanks = rows[0].len() - 3;
        let line = |cells: [&str; 3]| [vec![String::new(); blanks], cells.map(str::to_owned).to_vec()].concat();
        let [cpu, memory] = sum.cells();
        rows.push(line(["", "________", "________"]));
        rows.push(line(["", &cpu, &memory]));
    }
    rows
}

fn print(session: &Session, rows: &[Vec<String>], skip: usize, in_namespace: bool) -> Result<(), Error> {
    if rows.len() < 2 {
        let place = if in_namespace { format!(" in {} namespace", session.namespace) } else { String::new() };
        eprintln!("No resources found{place}.");
        return Ok(());
    }
    print::raw(&print::columns(&rows[skip..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn texts(rows: &[Vec<String>]) -> Vec<String> {
        rows.iter().map(|row| row.join(" ")).collect()
    }

    #[test]
    fn nodes_with_their_shares() {
        let node = |name: &str| {
            json!({"metadata": {"name": name}, "status": {
            "allocatable": {"cpu": "2", "memory": "1000Mi"}, "capacity": {"cpu": "4", "memory": "2000Mi"}}})
        };
        let used = |name: &str, cpu: &str, memory: &str| json!({"metadata": {"name": name}, "usage": {"cpu": cpu, "memory": memory}});
        let nodes = [node("a"), node("b"), node("c")];
        let measured = [used("a", "150m", "500Mi"), used("c", "1000000001n", "100Mi")];
        let args = |sort_by, show_capacity| TopNodeArgs {
            name: None,
            selector: None,
            sort_by,
            no_headers: false,
            show_capacity,
        };
        assert_eq!(
            texts(&node_rows(&nodes, &measured, &args(None, false)))[1..],
            ["a 150m 7% 500Mi 50%", "c 1001m 50% 100Mi 10%", "b <unknown> <unknown> <unknown> <unknown>"]
        );
        let rows = texts(&node_rows(&nodes, &measured, &args(Some(TopSort::Cpu), true)));
        assert_eq!(rows[0], "NAME CPU(cores) CPU(%) MEMORY(bytes) MEMORY(%)");
        assert_eq!(rows[1..3], ["c 1001m 25% 100Mi 5%", "a 150m 3% 500Mi 25%"]);
    }

    #[test]
    fn pods_and_their_containers() {
        let container =
            |name: &str, cpu: &str, memory: &str| json!({"name": name, "usage": {"cpu": cpu, "memory": memory}});
        let pod = |name: &str, containers: Vec<Value>| json!({"metadata": {"name": name, "namespace": "ns"}, "containers": containers});
        let measured = [
            pod("a", vec![container("x", "10m", "1Mi"), container("y", "1n", "3Mi")]),
            pod("b", vec![container("z", "1", "2Mi")]),
        ];
        let plain = TopPodArgs {
            name: None,
            all_namespaces: false,
            selector: None,
            field_selector: None,
            sort_by: None,
            containers: false,
            no_headers: false,
            sum: false,
        };
        assert_eq!(texts(&pod_rows(&measured, &plain)), ["NAME CPU(cores) MEMORY(bytes)", "a 11m 4Mi", "b 1000m 2Mi"]);
        let sorted = TopPodArgs { sort_by: Some(TopSort::Cpu), all_namespaces: true, sum: true, ..plain.clone() };
        let rows = texts(&pod_rows(&measured, &sorted));
        assert_eq!(rows[..3], ["NAMESPACE NAME CPU(cores) MEMORY(bytes)", "ns b 1000m 2Mi", "ns a 11m 4Mi"]);
        assert_eq!(rows[3..], ["  ________ ________", "  1011m 6Mi"]);
        let each = TopPodArgs { containers: true, ..plain };
        let rows = texts(&pod_rows(&measured, &each));
        assert_eq!(rows, ["POD NAME CPU(cores) MEMORY(bytes)", "a x 10m 1Mi", "a y 1m 3Mi", "b z 1000m 2Mi"]);
    }
}
