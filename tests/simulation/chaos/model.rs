//! What must hold at every moment, checked at every event of a watch.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use std::collections::{BTreeMap, HashMap, HashSet};

/// As much of a pod as matters.
struct Seen {
    name: String,
    app: String,
    owner: String,
    going: bool,
    finished: bool,
    ready: bool,
    node: String,
    index: Option<String>,
}

impl Seen {
    fn counts(&self) -> bool {
        !self.going && !self.finished
    }
}

/// An object as the server has taken it.
#[derive(Debug)]
pub(super) struct Revision {
    pub(super) uid: String,
    pub(super) generation: i64,
}

/// Between what numbers the pods of a Deployment must stay.
#[derive(Debug)]
pub(super) struct Bounds {
    /// Most pods that are not terminating.
    pub(super) most: usize,
    /// Fewest available ones while nothing but the rollout acts; not yet known: it has never had so many.
    pub(super) fewest: Option<usize>,
    /// What is wanted at last.
    pub(super) wanted: (usize, usize),
    /// The UID and generation with which that was acknowledged; not yet known while it is being asked for.
    pub(super) acknowledged: Option<Revision>,
    pub(super) recreate: bool,
    /// The version from which on all have seen and done what is wanted, as far as is known.
    settled: Option<u64>,
}

#[derive(Default)]
pub(super) struct Model {
    pods: HashMap<String, Seen>,
    sets: HashMap<String, ReplicaSet>,
    deployments: HashMap<String, Deployment>,
    jobs: HashMap<String, Job>,
    /// The version up to which each kind is known: watches of several kinds are not in step.
    known: HashMap<String, u64>,
    bounds: BTreeMap<String, Bounds>,
    /// Whether nobody but rollouts and evictions ends pods.
    pub(super) calm: bool,
    pub(super) events: usize,
    pub(super) faults: Vec<String>,
    /// Those that only count while no node is missed.
    pub(super) calm_faults: Vec<String>,
    /// Whether a node was missed while all was to be calm: the machine is too busy for hollow nodes that are heard of in time.
    pub(super) outage: bool,
}

fn note(faults: &mut Vec<String>, found: Vec<String>) {
    for fault in found {
        if !faults.contains(&fault) {
            faults.push(fault);
        }
    }
}

/// The kinds that say how far a rollout is.
const ROLLOUT: [&str; 3] = ["Deployment", "ReplicaSet", "Pod"];

fn version(object: &impl ResourceExt) -> u64 {
    object.resource_version().unwrap().parse().unwrap()
}

fn controller(references: Option<&Vec<OwnerReference>>) -> Option<&OwnerReference> {
    references.into_iter().flatten().find(|r| r.controller == Some(true))
}

impl Model {
    /// A Deployment is about to be made, or changed, so that it wants `replicas` with these limits.
    pub(super) fn expect(&mut self, name: &str, replicas: usize, surge: usize, unavailable: usize, recreate: bool) {
        let wanted = (replicas + surge, replicas.saturating_sub(unavailable));
        let bounds = self.bounds.entry(name.to_owned()).or_insert(Bounds {
            most: 0,
            fewest: None,
            wanted,
            acknowledged: None,
            recreate,
            settled: None,
        });
        bounds.acknowledged = None;
        bounds.settled = None;
        bounds.most = bounds.most.max(wanted.0);
        bounds.fewest = bounds.fewest.map(|known| known.min(wanted.1));
        bounds.wanted = wanted;
    }

    /// The server has taken that.
    pub(super) fn acknowledged(&mut self, name: &str, revision: Revision) {
        if let Some(bounds) = self.bounds.get_mut(name) {
            bounds.acknowledged = Some(revision);
        }
    }

    /// A Deployment is about to be deleted. The next one of its name may adopt any number of pods.
    pub(super) fn forget(&mut self, name: &str) {
        if let Some(bounds) = self.bounds.get_mut(name) {
            (bounds.most, bounds.fewest, bounds.acknowledged) = (usize::MAX, None, None);
        }
    }

    pub(super) fn pod(&mut self, pod: Pod) {
        let status = pod.status.as_ref();
        let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        let seen = Seen {
            name: pod.name_any(),
            app: pod.labels().get("app").cloned().unwrap_or_default(),
            owner: controller(pod.metadata.owner_references.as_ref()).map(|r| r.uid.clone()).unwrap_or_default(),
            going: pod.metadata.deletion_timestamp.is_some(),
            finished: matches!(status.and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed")),
            ready: conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
            index: pod.annotations().get("batch.kubernetes.io/job-completion-index").cloned(),
        };
        self.pods.insert(pod.uid().unwrap(), seen);
    }

    pub(super) fn pod_gone(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    pub(super) fn set(&mut self, set: ReplicaSet) {
        self.sets.insert(set.uid().unwrap(), set);
    }

    pub(super) fn set_gone(&mut self, uid: &str) {
        self.sets.remove(uid);
    }

    pub(super) fn deployment(&mut self, deployment: Deployment) {
        self.deployments.insert(deployment.name_any(), deployment);
    }

    pub(super) fn deployment_gone(&mut self, uid: &str) {
        self.deployments.retain(|_, d| d.uid().as_deref() != Some(uid));
    }

    pub(super) fn job(&mut self, job: Job) {
        self.jobs.insert(job.uid().unwrap(), job);
    }

    pub(super) fn job_gone(&mut self, uid: &str) {
        self.jobs.remove(uid);
    }

    pub(super) fn node(&mut self, node: Node) {
        let conditions = node.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
        self.outage |= self.calm && conditions.iter().any(|c| c.type_ == "Ready" && c.status != "True");
    }

    pub(super) fn node_gone(&mut self, _: &str) {}

    /// A kind is known up to a version.
    pub(super) fn reached(&mut self, kind: &str, version: u64) {
        match self.known.get_mut(kind) {
            Some(known) => *known = version.max(*known),
            None => drop(self.known.insert(kind.to_owned(), version)),
        }
    }

    /// What a new list does not show any more is gone.
    pub(super) fn retain(&mut self, kind: &str, listed: &HashSet<String>) {
        // what one watch knows may now be older than what another one knows
        self.bounds.values_mut().for_each(|b| b.settled = None);
        match kind {
            "Pod" => self.pods.retain(|uid, _| listed.contains(uid)),
            "ReplicaSet" => self.sets.retain(|uid, _| listed.contains(uid)),
            "Node" => {}
            "Deployment" => self.deployments.retain(|_, d| listed.contains(&d.uid().unwrap())),
            _ => self.jobs.retain(|uid, _| listed.contains(uid)),
        }
    }

    /// Checks everything; to be called after each event.
    pub(super) fn check(&mut self) {
        self.events += 1;
        let (mut found, mut calm) = (Vec::new(), Vec::new());
        let names: Vec<String> = self.bounds.keys().cloned().collect();
        for name in names {
            self.check_deployment(&name, &mut found, &mut calm);
        }
        self.check_places(&mut found);
        self.check_jobs(&mut found);
        if self.calm {
            self.check_ordered(&mut calm);
        }
        note(&mut self.faults, found);
        note(&mut self.calm_faults, calm);
    }

    fn check_deployment(&mut self, name: &str, found: &mut Vec<String>, calm: &mut Vec<String>) {
        let (Some(deployment), Some(bounds)) = (self.deployments.get(name), self.bounds.get_mut(name)) else { return };
        let uid = deployment.uid().unwrap();
        let owned =
            |set: &&ReplicaSet| controller(set.metadata.owner_references.as_ref()).is_some_and(|r| r.uid == uid);
        let sets: Vec<&ReplicaSet> = self.sets.values().filter(owned).collect();
        let is_of = |pod: &&Seen| sets.iter().any(|s| s.metadata.uid.as_ref() == Some(&pod.owner));
        let pods: Vec<&Seen> = self.pods.values().filter(is_of).collect();
        let count = pods.iter().filter(|p| p.counts()).count();
        let available = pods.iter().filter(|p| p.counts() && p.ready).count();
        if count > bounds.most {
            let listed: Vec<_> = pods.iter().filter(|p| p.counts()).map(|p| p.name.as_str()).collect();
            found.push(format!("{name} has {count} pods and not {} at most: {listed:?}", bounds.most));
        }
        if bounds.recreate {
            let mut owners: Vec<&str> = pods.iter().filter(|p| !p.finished).map(|p| p.owner.as_str()).collect();
            owners.sort_unstable();
            owners.dedup();
            if owners.len() > 1 {
                found.push(format!("{name} recreates, and has pods of {owners:?}"));
            }
        }
        if let Some(fewest) = bounds.fewest.filter(|fewest| self.calm && available < *fewest) {
            calm.push(format!("{name} has {available} available pods and not {fewest} at least"));
        }
        // once everybody has seen what is wanted, and acted on it, there is no reason for more, or fewer
        let observed = deployment.status.as_ref().and_then(|s| s.observed_generation);
        let known = bounds.acknowledged.as_ref().is_some_and(|r| r.uid == uid && observed >= Some(r.generation));
        let acted = sets.iter().all(|s| s.status.as_ref().and_then(|t| t.observed_generation) >= s.metadata.generation);
        let planned: i32 = sets.iter().filter_map(|s| s.spec.as_ref()?.replicas).sum();
        if !known || !acted || usize::try_from(planned).unwrap_or(0) > bounds.wanted.0 {
            bounds.settled = None;
            return;
        }
        let newest = sets.iter().map(|s| version(*s)).fold(version(deployment), u64::max);
        let since = *bounds.settled.get_or_insert(newest);
        if ROLLOUT.iter().all(|kind| self.known.get(*kind).is_some_and(|known| *known >= since)) {
            if count <= bounds.wanted.0 {
                bounds.most = bounds.wanted.0;
            }
            if available >= bounds.wanted.1 && !bounds.recreate {
                bounds.fewest = Some(bounds.wanted.1);
            }
        }
    }

    /// A node has one pod of a DaemonSet, and a completion index one pod that works on it.
    fn check_places(&self, found: &mut Vec<String>) {
        let mut places: HashMap<(&str, &str), &str> = HashMap::new();
        for pod in self.pods.values().filter(|p| p.counts()) {
            let place = match &pod.index {
                Some(index) => index.as_str(),
                None if pod.app.starts_with("daemon") && !pod.node.is_empty() => pod.node.as_str(),
                None => continue,
            };
            if let Some(other) = places.insert((&pod.owner, place), &pod.name) {
                let mut both = [other, &pod.name];
                both.sort_unstable();
                found.push(format!("{both:?} are both for {place}"));
            }
        }
    }

    fn check_jobs(&self, found: &mut Vec<String>) {
        for (uid, job) in &self.jobs {
            let active = self.pods.values().filter(|p| p.owner == *uid && p.counts()).count();
            let parallel = job.spec.as_ref().and_then(|s| s.parallelism).unwrap_or(1);
            if active > usize::try_from(parallel).unwrap() {
                found.push(format!("{} has {active} active pods and not {parallel}", job.name_any()));
            }
            let status = job.status.as_ref();
            let completions = job.spec.as_ref().and_then(|s| s.completions);
            if status.and_then(|s| s.succeeded) > completions && completions.is_some() {
                found.push(format!("{} has succeeded more than {completions:?} times", job.name_any()));
            }
        }
    }

    /// A StatefulSet that keeps order changes one at a time of those pods that are always wanted. (One that is not wanted any more may
    /// go while another is being updated.)
    fn check_ordered(&self, found: &mut Vec<String>) {
        let is_wanted = |p: &&Seen| ["ordered-0", "ordered-1"].contains(&p.name.as_str());
        let changing = self.pods.values().filter(is_wanted).filter(|p| p.going || !p.ready);
        let changing: Vec<&str> = changing.map(|p| p.name.as_str()).collect();
        if changing.len() > 1 {
            found.push(format!("{changing:?} change at once"));
        }
    }
}
