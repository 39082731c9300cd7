//! Hollow nodes: nodes without machines, for tests of scale and chaos.
//!
//! A [`Fleet`] is a client of the API like any other. It registers nodes, keeps their leases, and says of each pod that it
//! is given what a kubelet would say (it runs, it has ended, it is gone); it starts nothing. Thousands of nodes share one
//! watch, one queue with one timer, and a few workers.
//!
//! What a pod does is written into its annotations:
//!
//! | annotation | meaning |
//! |---|---|
//! | `hollow/starts-in` | milliseconds until it runs (0) |
//! | `hollow/stops-in` | milliseconds from being told to stop until it has ended, its grace period at most (0) |
//! | `hollow/runs-for` | milliseconds until it ends by itself (for ever) |
//! | `hollow/exit-code` | the exit code with which it does (0) |
//! | `hollow/fails` | so many pods of the same owner (and completion index) fail before one does not (0) |
#![allow(dead_code, reason = "tests and benchmarks each use a part")]

mod kubelet;
mod mirror;
mod node;
mod pod;
mod wire;

pub(crate) use node::NodeShape;
pub(crate) use wire::{Refused, Wire};

use edge_client::WorkQueue;
use kubelet::Instance;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How a fleet behaves.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// How its nodes look.
    pub(crate) shape: NodeShape,
    /// How often each node renews its lease.
    pub(crate) renewal: Duration,
    /// For how long it takes it, in seconds.
    pub(crate) lease_seconds: u32,
    /// Whether it says anything of pods; without, they stay pending on their nodes.
    pub(crate) reports: bool,
    /// How many requests about pods are under way at once.
    pub(crate) workers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            shape: NodeShape::default(),
            renewal: Duration::from_secs(10),
            lease_seconds: 40,
            reports: true,
            workers: 16,
        }
    }
}

/// How many pods of a fleet are where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// On a node.
    pub(crate) bound: usize,
    /// Said to run, and neither ended nor gone.
    pub(crate) running: usize,
}

/// The end of a pod that ended by itself, as the API server has acknowledged it, or shows it (one that dies after it has taken an
/// end in acknowledges nothing).
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    /// UID of the owner, and the completion index if it has one.
    pub(crate) owner: (String, Option<String>),
    pub(crate) exit_code: i32,
    /// Somebody had told it to go before: whoever counts ends may have counted it as stopped already.
    pub(crate) was_going: bool,
}

#[derive(Default)]
struct State {
    /// By UID.
    pods: HashMap<String, Instance>,
    by_node: HashMap<String, HashSet<String>>,
    /// Which of the pods of a namespace and name runs, by the fleet's own knowledge.
    running: HashMap<(String, String), String>,
    /// How many pods of an owner (and index) have been made to fail.
    failures: HashMap<(String, Option<String>), u32>,
    lost: HashSet<String>,
    /// UIDs of pods that somebody takes out of the API without waiting for their nodes.
    forced: HashSet<String>,
    nodes: Vec<String>,
    ended: BTreeMap<String, Ended>,
    faults: Vec<String>,
}

struct Shared {
    wire: Wire,
    options: Options,
    state: Mutex<State>,
    queue: Arc<WorkQueue<String>>,
    counts: watch::Sender<Counts>,
    /// For how long leases are taken, in seconds.
    lease_seconds: AtomicU32,
}

/// Hollow nodes. They are all gone silent when it is dropped.
pub(crate) struct Fleet {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Fleet {
    /// A fleet without nodes. Must be called within a tokio runtime.
    pub(crate) fn new(client: kube::Client, options: Options) -> Self {
        let shared = Arc::new(Shared {
            wire: Wire::new(client),
            lease_seconds: AtomicU32::new(options.lease_seconds),
            options,
            state: Mutex::default(),
            queue: WorkQueue::new(),
            counts: watch::Sender::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(mirror::follow(shared.clone()));
        tasks.spawn(node::keep_leases(shared.clone()));
        tasks.spawn(node::keep_ready(shared.clone()));
        if shared.options.reports {
            tasks.spawn(kubelet::work(shared.clone()));
        }
        Self { shared, tasks }
    }

    /// A fleet of so many nodes, all registered and ready: `hollow-0`, `hollow-1`, …
    pub(crate) async fn start(client: kube::Client, options: Options, nodes: usize) -> Self {
        let fleet = Self::new(client, options);
        fleet.grow(nodes).await;
        fleet
    }

    /// Registers further nodes.
    pub(crate) async fn grow(&self, nodes: usize) {
        let first = self.shared.state.lock().nodes.len();
        node::register(&self.shared, first..first + nodes).await;
    }

    /// The nodes' names.
    pub(crate) fn nodes(&self) -> Vec<String> {
        self.shared.state.lock().nodes.clone()
    }

    /// From the next renewals on leases are taken for so long.
    pub(crate) fn take_leases_for(&self, seconds: u32) {
        self.shared.lease_seconds.store(seconds, Ordering::Relaxed);
    }

    /// Lets a node fall silent: its pods go on as they are, and nobody hears of them.
    pub(crate) fn lose(&self, node: &str) {
        self.shared.state.lock().lost.insert(node.to_owned());
    }

    /// A pod is about to be taken out of the API, whether its node has ended it or not.
    pub(crate) fn will_be_forced(&self, uid: &str) {
        self.shared.state.lock().forced.insert(uid.to_owned());
    }

    /// Lets a lost node come back: it says that it is ready, and does what it has missed.
    pub(crate) async fn restore(&self, node: &str) {
        if !self.shared.state.lock().lost.remove(node) {
            return;
        }
        node::come_back(&self.shared, node).await;
        let pods = self.shared.state.lock().by_node.get(node).cloned().unwrap_or_default();
        pods.into_iter().for_each(|uid| self.shared.queue.add(uid));
    }

    /// The nodes that are lost.
    pub(crate) fn lost(&self) -> HashSet<String> {
        self.shared.state.lock().lost.clone()
    }

    /// How many pods there are, now and at every change.
    pub(crate) fn counts(&self) -> watch::Receiver<Counts> {
        self.shared.counts.subscribe()
    }

    /// Waits until the counts are as asked for.
    pub(crate) async fn until(&self, is_reached: impl Fn(&Counts) -> bool) {
        // the sender lives as long as self
        let _ = self.counts().wait_for(|counts| is_reached(counts)).await;
    }

    /// The pods that have ended by themselves, by UID.
    pub(crate) fn ended(&self) -> BTreeMap<String, Ended> {
        self.shared.state.lock().ended.clone()
    }

    /// What no kubelet should ever be asked for, such as two pods of one name that run at the same time.
    pub(crate) fn faults(&self) -> Vec<String> {
        self.shared.state.lock().faults.clone()
    }
}

impl Shared {
    /// Counts anew; to be called whenever a pod comes, goes, starts or ends.
    fn recount(&self, state: &State) {
        let now = Counts { bound: state.pods.len(), running: state.running.len() };
        self.counts.send_if_modified(|known| std::mem::replace(known, now) != now);
    }
}
