//! What is done to the cluster, one random decision after the other.

use super::model::{Model, Revision};
use super::objects::{self, GUARDED, NAMESPACE, ROLLING, Rolling};
use super::random::Random;
use crate::harness::Cluster;
use crate::hollow::{Fleet, Refused, Wire};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::sync::Arc;

const STATEFUL: [&str; 2] = ["ordered", "parallel"];
/// No more nodes than these are lost at once: of more than half the cluster would make an outage.
const FRAGILE: usize = 4;
/// Lost nodes come back within so many decisions, some before they are missed (after five seconds) and some long after.
const LOST_FOR: usize = 80;

/// Decides, and does it.
pub(super) struct Driver<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) wire: Wire,
    pub(super) fleet: &'a Fleet,
    pub(super) model: Arc<Mutex<Model>>,
    pub(super) random: Random,
    /// Images are numbered, so that each template is new.
    images: usize,
    jobs: Vec<Value>,
    /// How many replicas each of the rolling ones wants, and its image.
    wanted: [(usize, usize); ROLLING.len()],
    paused: [bool; ROLLING.len()],
    /// Lost nodes, and how many decisions later they come back.
    lost: Vec<(String, usize)>,
    /// What was done, for whoever has to understand a failure.
    pub(super) done: Vec<String>,
    pub(super) evicted: usize,
}

impl<'a> Driver<'a> {
    pub(super) fn new(
        cluster: &'a mut Cluster,
        wire: Wire,
        fleet: &'a Fleet,
        model: Arc<Mutex<Model>>,
        random: Random,
    ) -> Self {
        let (jobs, lost, done) = (Vec::new(), Vec::new(), Vec::new());
        let (wanted, paused) = ([(6, 0); ROLLING.len()], [false; ROLLING.len()]);
        Self { cluster, wire, fleet, model, random, images: 0, jobs, wanted, paused, lost, done, evicted: 0 }
    }

    /// Makes everything.
    pub(super) async fn begin(&mut self) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        self.wire.create("/api/v1/namespaces", &namespace).await.unwrap();
        for i in 0..ROLLING.len() {
            self.make(i).await;
        }
        self.model.lock().expect(GUARDED.name, objects::GUARDED_REPLICAS, GUARDED.surge, GUARDED.unavailable, false);
        let guarded = objects::deployment(&GUARDED, objects::GUARDED_REPLICAS, 0);
        let made = self.create("deployments", &guarded).await;
        self.model.lock().acknowledged(GUARDED.name, made);
        self.create("poddisruptionbudgets", &objects::budget()).await;
        for name in STATEFUL {
            self.create("statefulsets", &objects::stateful_set(name, name == "parallel", 4, 0)).await;
        }
        self.create("daemonsets", &objects::daemon_set("daemon", 0)).await;
    }

    async fn make(&mut self, i: usize) {
        let Rolling { name, surge, unavailable, recreate } = ROLLING[i];
        let (replicas, image) = self.wanted[i];
        self.paused[i] = false;
        self.model.lock().expect(name, replicas, surge, unavailable, recreate);
        let revision = self.create("deployments", &objects::deployment(&ROLLING[i], replicas, image)).await;
        self.model.lock().acknowledged(name, revision);
    }

    /// Creates an object.
    async fn create(&self, kind: &str, object: &Value) -> Revision {
        let made = self.wire.create(&objects::path(kind), object).await.unwrap();
        revision(&made)
    }

    async fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<Revision, Refused> {
        self.wire.patch(&format!("{}/{name}", objects::path(kind)), patch).await.map(|made| revision(&made))
    }

    /// Something that ends pods only by rollouts and evictions.
    pub(super) async fn edit(&mut self) {
        match self.random.below(12) {
            0..=3 => self.roll().await,
            4..=6 => self.scale().await,
            7 => self.pause().await,
            8 => self.evict().await,
            9 => self.change_stateful().await,
            10 => self.change_daemons().await,
            _ => self.start_job().await,
        }
    }

    /// Anything.
    pub(super) async fn disturb(&mut self) {
        self.heal_overdue().await;
        match self.random.below(10) {
            0 | 1 => self.delete_pod().await,
            2 => self.lose(),
            3 => self.recreate().await,
            _ => self.edit().await,
        }
    }

    async fn change(&mut self, i: usize, patch: Value) {
        let Rolling { name, surge, unavailable, recreate } = ROLLING[i];
        self.model.lock().expect(name, self.wanted[i].0, surge, unavailable, recreate);
        let revision = self.patch("deployments", name, &patch).await.unwrap();
        self.model.lock().acknowledged(name, revision);
    }

    async fn roll(&mut self) {
        let i = self.random.below(ROLLING.len());
        self.images += 1;
        self.wanted[i].1 = self.images;
        self.done.push(format!("{} gets image {}", ROLLING[i].name, self.images));
        self.change(i, image_patch(self.images)).await;
    }

    async fn scale(&mut self) {
        let i = self.random.below(ROLLING.len());
        self.wanted[i].0 = 2 + self.random.below(10);
        self.done.push(format!("{} is scaled to {}", ROLLING[i].name, self.wanted[i].0));
        self.change(i, json!({"spec": {"replicas": self.wanted[i].0}})).await;
    }

    async fn pause(&mut self) {
        let i = self.random.below(ROLLING.len());
        self.paused[i] = !self.paused[i];
        self.done.push(format!("{} is paused: {}", ROLLING[i].name, self.paused[i]));
        self.change(i, json!({"spec": {"paused": self.paused[i]}})).await;
    }

    async fn change_stateful(&mut self) {
        let name = *self.random.of(&STATEFUL);
        let replicas = 2 + self.random.below(5);
        let patch = if self.random.below(2) == 0 {
            self.done.push(format!("{name} is scaled to {replicas}"));
            json!({"spec": {"replicas": replicas}})
        } else {
            self.images += 1;
            self.done.push(format!("{name} gets image {}", self.images));
            image_patch(self.images)
        };
        self.patch("statefulsets", name, &patch).await.unwrap();
    }

    async fn change_daemons(&mut self) {
        self.images += 1;
        self.done.push(format!("the daemons get image {}", self.images));
        self.patch("daemonsets", "daemon", &image_patch(self.images)).await.unwrap();
    }

    pub(super) async fn start_job(&mut self) {
        let (number, indexed) = (self.jobs.len(), self.random.below(2) == 0);
        let (completions, parallelism) = (3 + self.random.below(10), 1 + self.random.below(5));
        let job = objects::job(&format!("job-{number}"), indexed, completions, parallelism);
        self.done.push(format!("job-{number} begins: {completions} by {parallelism}, indexed: {indexed}"));
        self.create("jobs", &job).await;
        self.jobs.push(job);
    }

    /// The pods of an app, names and UIDs, in the order of their names.
    async fn pods(&self, app: &str) -> Vec<(String, String)> {
        let path = format!("{}?labelSelector=app%3D{app}", objects::path("pods"));
        let list: kube::core::ObjectList<Pod> = self.wire.get(&path).await.unwrap();
        let mut names: Vec<_> = list.items.iter().map(|pod| (pod.name_any(), pod.uid().unwrap())).collect();
        names.sort();
        names
    }

    async fn evict(&mut self) {
        let pods = self.pods(GUARDED.name).await;
        let which = self.random.below(64);
        let Some((name, _)) = pods.get(which % pods.len().max(1)) else { return };
        self.done.push(format!("{name} (number {which}) is evicted"));
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        match self.wire.create(&format!("{}/{name}/eviction", objects::path("pods")), &eviction).await {
            Ok(_) => self.evicted += 1,
            // the budget does not allow it, or it has gone by itself
            Err(refused) => assert!(matches!(refused.code(), 429 | 404), "{refused}"),
        }
    }

    async fn delete_pod(&mut self) {
        let app = *self.random.of(&["both", "surge", "room", "anew", "ordered", "parallel", "daemon"]);
        let (which, at_once) = (self.random.below(64), self.random.below(4) == 0);
        let pods = self.pods(app).await;
        let Some((name, uid)) = pods.get(which % pods.len().max(1)) else { return };
        self.done.push(format!("{name} (number {which} of {app}) is deleted, at once: {at_once}"));
        let mut options = json!({"preconditions": {"uid": uid}});
        if at_once {
            options["gracePeriodSeconds"] = 0.into();
            self.fleet.will_be_forced(uid);
        }
        if let Err(refused) = self.wire.delete(&format!("{}/{name}", objects::path("pods")), &options).await {
            // it has gone by itself, and another one may have its name
            assert!(matches!(refused.code(), 404 | 409), "{refused}");
        }
    }

    /// Deletes a Deployment in one of the three ways, and makes it again.
    async fn recreate(&mut self) {
        let i = self.random.below(ROLLING.len());
        let policy = match *self.random.of(&["Foreground", "Background", "Orphan"]) {
            // pods of a lost node end when it is back, which it would not be while this waits
            "Foreground" if !self.lost.is_empty() => "Background",
            policy => policy,
        };
        let name = ROLLING[i].name;
        self.done.push(format!("{name} is deleted ({policy}) and made again"));
        self.model.lock().forget(name);
        let path = format!("{}/{name}", objects::path("deployments"));
        self.wire.delete(&path, &json!({"propagationPolicy": policy})).await.unwrap();
        // in the foreground, or as long as its ReplicaSets are being released, it is still there
        for _ in 0..600 {
            if matches!(self.wire.get::<Value>(&path).await, Err(refused) if refused.code() == 404) {
                return self.make(i).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("{name} is not gone after 30 s ({policy})");
    }

    fn lose(&mut self) {
        let (number, decisions) = (self.random.below(self.fleet.nodes().len()), 10 + self.random.below(LOST_FOR));
        if self.lost.len() >= FRAGILE {
            return;
        }
        let node = format!("hollow-{number}");
        self.done.push(format!("{node} is lost"));
        self.fleet.lose(&node);
        self.lost.push((node, decisions));
    }

    async fn heal_overdue(&mut self) {
        self.lost.iter_mut().for_each(|(_, left)| *left = left.saturating_sub(1));
        while let Some(at) = self.lost.iter().position(|(_, left)| *left == 0) {
            let (node, _) = self.lost.remove(at);
            self.done.push(format!("{node} comes back"));
            self.fleet.restore(&node).await;
        }
    }

    /// Ends the server without warning, and starts it again.
    pub(super) fn kill(&mut self) {
        self.done.push("edge is killed".into());
        tokio::task::block_in_place(|| {
            self.cluster.stop(nix::sys::signal::Signal::SIGKILL);
            self.cluster.launch();
        });
    }

    /// Ends all disturbances, and everything that holds something up.
    pub(super) async fn relent(&mut self) {
        for (node, _) in std::mem::take(&mut self.lost) {
            self.fleet.restore(&node).await;
        }
        for i in 0..ROLLING.len() {
            self.paused[i] = false;
            self.change(i, json!({"spec": {"paused": false}})).await;
        }
    }

    /// The Jobs that were begun.
    pub(super) fn jobs(&self) -> &[Value] {
        &self.jobs
    }

    /// How many replicas each rolling one should have, and its image.
    pub(super) fn wanted(&self) -> Vec<(&'static str, usize, usize)> {
        ROLLING.iter().zip(self.wanted).map(|(r, (replicas, image))| (r.name, replicas, image)).collect()
    }
}

fn image_patch(number: usize) -> Value {
    json!({"spec": {"template": {"spec": {"containers": [{"name": "c", "image": objects::image(number)}]}}}})
}

fn revision(object: &[u8]) -> Revision {
    let object: Value = serde_json::from_slice(object).unwrap();
    let meta = &object["metadata"];
    Revision { uid: meta["uid"].as_str().unwrap().to_owned(), generation: meta["generation"].as_i64().unwrap_or(0) }
}
