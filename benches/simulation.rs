//! Large clusters of hollow nodes: how fast the controllers and the scheduler are, and what a server needs for them.
//!
//! `scripts/bench simulate [PART …] [KEY=NUMBER …]` runs this with the release binary, as root. Nothing is asserted: figures
//! depend on the machine, which the hollow nodes share.
#![expect(clippy::unwrap_used, reason = "a benchmark that cannot run should say where and stop")]
#![expect(dead_code, unused_imports, reason = "the tests' harness has more than is needed here")]

mod common;
#[path = "../tests/e2e/harness/mod.rs"]
mod harness;
#[path = "../tests/hollow/mod.rs"]
mod hollow;

#[path = "simulation/controllers.rs"]
mod controllers;
#[path = "simulation/large.rs"]
mod large;
#[path = "simulation/scheduling.rs"]
mod scheduling;

use harness::Cluster;
use hollow::{Fleet, Options, Wire};
use std::collections::BTreeMap;

/// What is to be measured, and how much of it.
struct Asked {
    parts: Vec<String>,
    numbers: BTreeMap<String, usize>,
}

impl Asked {
    fn read(arguments: impl Iterator<Item = String>) -> Self {
        let (mut parts, mut numbers) = (Vec::new(), BTreeMap::new());
        for argument in arguments {
            match argument.split_once('=') {
                Some((key, value)) => drop(numbers.insert(key.to_owned(), value.parse().unwrap())),
                None if argument.starts_with("--") => {}
                None => parts.push(argument),
            }
        }
        Self { parts, numbers }
    }

    /// A number that may be given on the command line.
    fn number(&self, key: &str, otherwise: usize) -> usize {
        self.numbers.get(key).copied().unwrap_or(otherwise)
    }

    fn wants(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|p| p == part)
    }
}

fn main() {
    let asked = Asked::read(std::env::args().skip(1));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    println!("{:<58} {:>14}   goal (k3s 1.21)", "figure", "edge");
    for (part, measure) in [
        ("deployment", controllers::deployment as fn(&tokio::runtime::Runtime, &Asked)),
        ("namespace", controllers::namespace),
        ("loss", controllers::loss),
        ("rate", scheduling::rate),
        ("waiting", scheduling::waiting),
        ("affinity", scheduling::affinity),
        ("large", large::large),
    ] {
        if asked.wants(part) {
            measure(&runtime, &asked);
        }
    }
}

fn row(name: &str, edge: String, goal: &str) {
    println!("{name:<58} {edge:>14}   {goal}");
}

fn seconds(time: std::time::Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

/// A server without a node of its own; its pods' network is large enough for thousands of nodes.
fn server() -> Cluster {
    let mut cluster = Cluster::prepare(&["--disable-agent", "--cluster-cidr=100.64.0.0/10"]);
    cluster.launch();
    cluster
}

/// A client of a cluster, and hollow nodes in it.
async fn populated(cluster: &Cluster, options: Options, nodes: usize) -> (Wire, Fleet) {
    let client = common::connect(cluster).await;
    let fleet = Fleet::start(common::connect(cluster).await, options, nodes).await;
    (Wire::new(client), fleet)
}
