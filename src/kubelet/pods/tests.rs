//! The decision core against a simulated node: actions are carried out by the test, in any order, with any outcome.

#![expect(clippy::unwrap_used, reason = "tests")]

use super::record::{
    Event, Eviction, Image, ImageRef, Kind, ProbeResult, Problem, Record, Running, Sandbox, Stage, StartFailure, State,
    Terminated, spec_container,
};
use super::step::{Action, Step, step};
use crate::status::compute::{Now, compute, with_foreign_conditions};
use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;

/// A node with one pod.
struct Node {
    pod: Pod,
    record: Record,
    now: Instant,
    begin: Instant,
    /// Actions begun but not ended.
    pending: Vec<Action>,
    /// All actions ever.
    log: Vec<Action>,
    due: Option<Instant>,
    starts: u32,
    status: PodStatus,
}

fn pod(spec: Value) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u", "generation": 3}, "spec": spec,
    }))
    .unwrap()
}

fn container(name: &str) -> Value {
    json!({"name": name, "image": "i:1"})
}

fn ended(id: &str, code: i32) -> Terminated {
    Terminated {
        id: id.to_owned(),
        exit_code: code,
        signal: None,
        reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
        message: None,
        started_at: Some(Timestamp::UNIX_EPOCH),
        finished_at: Timestamp::UNIX_EPOCH,
    }
}

impl Node {
    fn new(spec: Value) -> Self {
        let pod = pod(spec);
        let now = Instant::now();
        let record = Record::new(&pod, Timestamp::UNIX_EPOCH, now);
        let mut node = Self {
            pod,
            record,
            now,
            begin: now,
            pending: Vec::new(),
            log: Vec::new(),
            due: None,
            starts: 0,
            status: PodStatus::default(),
        };
        node.step();
        node
    }

    fn step(&mut self) {
        let Step { actions, due } = step(&self.pod, &mut self.record, self.now);
        assert!(due.is_none_or(|due| due > self.now), "a timer that is due already would make the worker spin");
        self.due = due;
        self.pending.extend(actions.iter().cloned());
        self.log.extend(actions);
        let now = Now { instant: self.now, wall: Timestamp::UNIX_EPOCH };
        self.status = compute(&self.pod, &self.record, &self.status, &["192.0.2.1".parse().unwrap()], now);
    }

    fn event(&mut self, event: Event) {
        self.record.apply(event, self.now);
        self.step();
    }

    /// Lets time pass until a timer is due.
    fn wait(&mut self) -> Duration {
        let due = self.due.expect("something is due");
        let waited = due - self.now;
        self.now = due;
        self.step();
        waited
    }

    /// Carries out one action well.
    fn succeed(&mut self, action: &Action) {
        match action.clone() {
            Action::Admit => self.event(Event::Admitted(Ok(()))),
            Action::SetUpVolumes => self.event(Event::Volumes(Ok(()))),
            Action::CreateSandbox => self.event(Event::Sandbox(Ok(vec!["10.0.0.2".parse().unwrap()]))),
            Action::RemoveSandbox => self.event(Event::SandboxRemoved(Ok(()))),
            Action::EnsureImage(container) => {
                let image = ImageRef { image: "i:1".into(), id: "sha256:1".into() };
                self.event(Event::Image { container, result: Ok(image) });
            }
            Action::Start { container, .. } => self.started(container),
            Action::PreStop { id, .. } => self.event(Event::PreStopped { id }),
            Action::Kill { id, .. } => self.event(Event::Exited(ended(&id, 143))),
            Action::TearDown => self.event(Event::TornDown(Ok(()))),
            Action::Finalize => {
                self.event(Event::Finalized(Ok(())));
                self.record.gone = true;
                self.step();
            }
            Action::TellBackOff(_) | Action::TellPullBackOff(_) => {}
        }
    }

    fn started(&mut self, container: usize) {
        self.starts += 1;
        let spec = spec_container(&self.pod, container).unwrap();
        let running = Running {
            id: format!("{}-{}", spec.name, self.starts),
            started_at: Timestamp::UNIX_EPOCH,
            spec_image: spec.image.clone().unwrap(),
            hook_runs: spec.lifecycle.as_ref().is_some_and(|l| l.post_start.is_some()),
            stop: None,
        };
        let (has_startup_probe, has_readiness_probe) = (spec.startup_probe.is_some(), spec.readiness_probe.is_some());
        self.event(Event::Started { container, running, has_startup_probe, has_readiness_probe });
    }

    /// Carries out everything that can be, well.
    fn settle(&mut self) {
        while !self.pending.is_empty() {
            let action = self.pending.remove(0);
            self.succeed(&action);
        }
    }

    /// Takes a pending action away without carrying it out.
    fn take(&mut self, wanted: impl Fn(&Action) -> bool) -> Option<Action> {
        let index = self.pending.iter().position(wanted)?;
        Some(self.pending.remove(index))
    }

    fn id(&self, name: &str) -> String {
        let c = self.record.containers.iter().find(|c| c.name == name).unwrap();
        let State::Running(running) = &c.state else { panic!("{name} does not run: {:?}", c.state) };
        running.id.clone()
    }

    fn running(&self) -> Vec<&str> {
        self.record.containers.iter().filter(|c| c.is_running()).map(|c| c.name.as_str()).collect()
    }

    fn exit(&mut self, name: &str, code: i32) {
        let id = self.id(name);
        self.event(Event::Exited(ended(&id, code)));
    }

    fn delete(&mut self, grace: i64) {
        self.pod.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        self.pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.step();
    }

    fn phase(&self) -> &str {
        self.status.phase.as_deref().unwrap()
    }

    fn condition(&self, name: &str) -> &str {
        let conditions = self.status.conditions.as_deref().unwrap_or_default();
        conditions.iter().find(|c| c.type_ == name).map_or("absent", |c| c.status.as_str())
    }

    fn of(&self, name: &str) -> &ContainerStatus {
        let init = self.status.init_container_statuses.iter().flatten();
        init.chain(self.status.container_statuses.iter().flatten()).find(|c| c.name == name).unwrap()
    }

    fn waiting(&self, name: &str) -> &str {
        let waiting = self.of(name).state.as_ref().and_then(|s| s.waiting.as_ref());
        waiting.and_then(|w| w.reason.as_deref()).unwrap_or("not waiting")
    }
}

#[test]
fn everything_independent_begins_at_once_and_running_is_told_in_one_step() {
    let mut node = Node::new(json!({"containers": [container("a"), container("b")]}));
    assert_eq!(node.log, [Action::SetUpVolumes, Action::CreateSandbox, Action::EnsureImage(0), Action::EnsureImage(1)]);
    assert_eq!((node.phase(), node.waiting("a")), ("Pending", "ContainerCreating"));
    node.settle();
    assert_eq!(node.running(), ["a", "b"]);
    assert_eq!((node.phase(), node.condition("Ready")), ("Running", "True"));
    let status = &node.status;
    assert_eq!((status.pod_ip.as_deref(), status.host_ip.as_deref()), (Some("10.0.0.2"), Some("192.0.2.1")));
    assert_eq!(status.observed_generation, Some(3));
    assert_eq!(node.of("a").container_id.as_deref(), Some("edge://a-1"));
    assert_eq!(node.of("a").image_id, "sha256:1");
    assert_eq!(node.due, None, "an idle pod needs no timer");
}

#[test]
fn init_containers_run_in_order_and_sidecars_stay() {
    let sidecar = json!({"name": "s", "image": "i:1", "restartPolicy": "Always", "startupProbe": {"periodSeconds": 1}});
    let mut node = Node::new(json!({
        "initContainers": [container("i1"), sidecar, container("i2")], "containers": [container("m")],
    }));
    node.settle();
    assert_eq!(node.running(), ["i1"]);
    assert_eq!(
        (node.phase(), node.waiting("m"), node.condition("Initialized")),
        ("Pending", "PodInitializing", "False")
    );
    node.exit("i1", 0);
    node.settle();
    assert_eq!(node.running(), ["s"], "what comes later waits for the sidecar's startup probe");
    let id = node.id("s");
    node.event(Event::Probe { id, result: ProbeResult::Started { has_readiness_probe: false } });
    node.settle();
    assert_eq!(node.running(), ["s", "i2"]);
    node.exit("i2", 0);
    node.settle();
    assert_eq!(node.running(), ["s", "m"]);
    assert_eq!((node.phase(), node.condition("Initialized"), node.condition("Ready")), ("Running", "True", "True"));
    assert!(node.of("i1").ready);
    // a sidecar always comes back; init containers that are done do not
    node.exit("s", 0);
    node.settle();
    assert_eq!(node.running(), ["s", "m"]);
    assert_eq!(node.starts, 5);
}

#[test]
fn a_failed_init_container_fails_the_pod_only_with_policy_never() {
    for (policy, phase) in [("Never", "Failed"), ("OnFailure", "Pending"), ("Always", "Pending")] {
        let mut node = Node::new(json!({
            "restartPolicy": policy, "initContainers": [container("i")], "containers": [container("m")],
        }));
        node.settle();
        node.exit("i", 1);
        node.settle();
        assert_eq!(node.phase(), phase, "{policy}");
        assert_eq!(node.record.teardown == Stage::Done, policy == "Never");
    }
}

#[test]
fn restart_policies() {
    for (policy, code, phase, restarted) in [
        ("Always", 0, "Running", true),
        ("Always", 1, "Running", true),
        ("OnFailure", 0, "Succeeded", false),
        ("OnFailure", 1, "Running", true),
        ("Never", 0, "Succeeded", false),
        ("Never", 1, "Failed", false),
    ] {
        let mut node = Node::new(json!({"restartPolicy": policy, "containers": [container("a")]}));
        node.settle();
        node.exit("a", code);
        node.settle();
        assert_eq!((node.phase(), !node.running().is_empty()), (phase, restarted), "{policy} {code}");
        assert_eq!(node.of("a").restart_count, i32::from(restarted));
        if !restarted {
            assert_eq!(node.record.teardown, Stage::Done);
            assert_eq!(node.condition("Ready"), "False");
        }
    }
}

fn evict(node: &mut Node, is_disruption: bool) {
    node.event(Event::Evicted(Eviction { message: "too much. ".into(), is_disruption }));
}

#[test]
fn an_evicted_pod_is_killed_and_fails_once_nothing_runs() {
    let hook = json!({"preStop": {"sleep": {"seconds": 9}}});
    let container = json!({"name": "a", "image": "i:1", "lifecycle": hook});
    for is_disruption in [true, false] {
        let mut node = Node::new(json!({"containers": [container], "terminationGracePeriodSeconds": 100}));
        node.settle();
        node.log.clear();
        evict(&mut node, is_disruption);
        let kill = Action::Kill { container: 0, id: "a-1".into(), grace: Duration::ZERO };
        assert_eq!(node.log, [kill], "neither a hook nor a grace period");
        assert_eq!((node.phase(), node.status.reason.as_deref()), ("Running", None));
        node.settle();
        assert_eq!((node.phase(), node.status.reason.as_deref()), ("Failed", Some("Evicted")));
        assert_eq!(node.status.message.as_deref(), Some("too much. "));
        assert_eq!(node.condition("DisruptionTarget"), if is_disruption { "True" } else { "absent" });
        assert_eq!((node.record.teardown.clone(), node.starts), (Stage::Done, 1));
        assert!(!node.record.is_active() && !node.log.contains(&Action::Finalize), "its object stays");
        node.delete(0);
        assert!(node.log.contains(&Action::Finalize));
    }
}

#[test]
fn what_was_ending_when_it_was_evicted() {
    // a deletion takes too long for the node
    let mut node = Node::new(json!({"containers": [container("a")], "terminationGracePeriodSeconds": 100}));
    node.settle();
    node.delete(100);
    evict(&mut node, true);
    assert!(node.pending.contains(&Action::Kill { container: 0, id: "a-1".into(), grace: Duration::ZERO }));
    node.settle();
    assert_eq!((node.phase(), node.status.reason.as_deref()), ("Failed", Some("Evicted")));
    // what has ended by itself stays what it is
    let mut node = Node::new(json!({"restartPolicy": "Never", "containers": [container("a")]}));
    node.settle();
    node.exit("a", 0);
    evict(&mut node, true);
    node.settle();
    assert_eq!((node.phase(), node.status.reason.as_deref()), ("Succeeded", None));
    // nothing of it runs yet, and nothing will
    let mut node = Node::new(json!({"containers": [container("a")]}));
    evict(&mut node, true);
    node.settle();
    assert_eq!((node.phase(), node.starts), ("Failed", 0));
}

#[test]
fn an_eviction_that_was_noted_goes_on_after_a_restart() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.settle();
    let eviction = Eviction { message: "too much. ".into(), is_disruption: true };
    node.record.evicted = Some(eviction);
    node.step();
    node.settle();
    assert_eq!((node.phase(), node.running().len(), node.starts), ("Failed", 0, 1));
    // the condition of somebody else gives way
    let theirs = json!({"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "Theirs"},
        {"type": "Other", "status": "True"}]});
    let merged = with_foreign_conditions(node.status.clone(), &serde_json::from_value(theirs).unwrap());
    let of = |name: &str| merged.conditions.iter().flatten().filter(|c| c.type_ == name).collect::<Vec<_>>();
    assert_eq!((of("DisruptionTarget").len(), of("Other").len()), (1, 1));
    assert_eq!(of("DisruptionTarget")[0].reason.as_deref(), Some("TerminationByKubelet"));
}

#[test]
fn an_end_that_somebody_else_declares_holds() {
    let lost = json!({"phase": "Failed", "reason": "NodeLost", "message": "The node is out of service."});
    for (status, deleted) in [(lost.clone(), false), (lost.clone(), true), (json!({"phase": "Succeeded"}), false)] {
        let mut node = Node::new(json!({"containers": [container("a")], "terminationGracePeriodSeconds": 9}));
        node.settle();
        node.log.clear();
        node.pod.status = Some(serde_json::from_value(status.clone()).unwrap());
        if deleted {
            node.delete(9);
        } else {
            node.step();
        }
        let expected = |node: &Node| {
            let text = |name: &str| status.get(name).and_then(Value::as_str);
            assert_eq!(node.phase(), text("phase").unwrap());
            assert_eq!(
                (node.status.reason.as_deref(), node.status.message.as_deref()),
                (text("reason"), text("message"))
            );
        };
        expected(&node);
        assert_eq!(node.log, [Action::Kill { container: 0, id: "a-1".into(), grace: Duration::from_secs(9) }]);
        node.settle();
        expected(&node);
        assert_eq!((node.record.teardown.clone(), node.starts), (Stage::Done, 1), "whatever its restart policy is");
        assert_eq!((node.condition("Ready"), node.log.contains(&Action::Finalize)), ("False", deleted));
    }
    // nothing of it is begun
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.pod.status = Some(serde_json::from_value(lost).unwrap());
    node.step();
    node.settle();
    assert_eq!((node.phase(), node.starts), ("Failed", 0));
    // the node's own news comes back: its reasons are its own
    let mut node = Node::new(json!({"restartPolicy": "Never", "containers": [container("a")]}));
    node.settle();
    node.exit("a", 0);
    node.pod.status = Some(node.status.clone());
    node.step();
    assert_eq!((node.phase(), &node.record.declared), ("Succeeded", &None));
}

#[test]
fn restart_rules_of_a_container_come_first() {
    let rules = json!([{"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}]);
    let c = json!({"name": "a", "image": "i:1", "restartPolicy": "Never", "restartPolicyRules": rules});
    let mut node = Node::new(json!({"restartPolicy": "Always", "containers": [c]}));
    node.settle();
    node.exit("a", 42);
    node.settle();
    assert_eq!(node.running(), ["a"]);
    node.exit("a", 1);
    node.settle();
    assert_eq!(node.phase(), "Failed");
}

#[test]
fn restarts_back_off_and_say_so() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.settle();
    node.exit("a", 1);
    node.settle();
    assert_eq!(node.running(), ["a"], "the first restart is immediate");
    let mut waits = Vec::new();
    for _ in 0..7 {
        node.exit("a", 3);
        assert_eq!((node.waiting("a"), node.phase()), ("CrashLoopBackOff", "Running"));
        node.settle();
        let told = node.log.iter().filter(|a| matches!(a, Action::TellBackOff(0))).count();
        waits.push(node.wait().as_secs());
        assert_eq!(told, waits.len(), "told once for each time");
        node.settle();
        assert_eq!(node.running(), ["a"]);
    }
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300]);
    let status = node.of("a");
    assert_eq!(status.restart_count, 8);
    assert_eq!(status.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 3);
    node.exit("a", 3);
    let message = node.of("a").state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(message, "back-off 5m0s restarting failed container=a pod=p_ns(u)");
}

#[test]
fn a_deleted_pod_ends_in_order_and_leaves_the_api() {
    let hook = json!({"preStop": {"sleep": {"seconds": 1}}});
    let sidecar = |name: &str| json!({"name": name, "image": "i:1", "restartPolicy": "Always"});
    let mut node = Node::new(json!({
        "initContainers": [sidecar("s1"), sidecar("s2")],
        "containers": [{"name": "m", "image": "i:1", "lifecycle": hook}, container("n")],
    }));
    node.settle();
    node.log.clear();
    node.delete(30);
    assert_eq!(node.log.len(), 2);
    assert!(matches!(&node.log[0], Action::PreStop { container: 2, .. }));
    assert!(matches!(&node.log[1], Action::Kill { container: 3, grace, .. } if grace.as_secs() == 30));
    node.settle();
    let killed: Vec<usize> = node
        .log
        .iter()
        .filter_map(|a| if let Action::Kill { container, .. } = a { Some(*container) } else { None })
        .collect();
    assert_eq!(killed, [3, 2, 1, 0], "main containers first, then the sidecars from the last to the first");
    assert_eq!(node.log[node.log.len() - 2..], [Action::TearDown, Action::Finalize]);
    assert!(node.record.is_over());
}

#[test]
fn impatience_shortens_the_grace() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.settle();
    node.delete(60);
    assert!(
        matches!(node.take(|a| matches!(a, Action::Kill { .. })), Some(Action::Kill { grace, .. }) if grace.as_secs() == 60)
    );
    node.step();
    assert!(node.pending.is_empty(), "told once");
    node.delete(0);
    let again = node.take(|a| matches!(a, Action::Kill { .. }));
    assert!(matches!(again, Some(Action::Kill { grace, .. }) if grace.as_secs() == 2), "{again:?}");
}

#[test]
fn a_hanging_pre_stop_hook_uses_up_the_grace() {
    let hook = json!({"preStop": {"sleep": {"seconds": 99}}});
    let mut node = Node::new(json!({"containers": [{"name": "a", "image": "i:1", "lifecycle": hook}]}));
    node.settle();
    node.delete(5);
    node.pending.clear();
    assert_eq!(node.wait().as_secs(), 5);
    assert!(matches!(node.pending.as_slice(), [Action::Kill { grace, .. }] if grace.as_secs() == 2));
}

#[test]
fn a_pod_deleted_before_it_started_goes_too() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.delete(30);
    node.settle();
    assert!(node.record.is_over());
    assert_eq!(node.starts, 0, "nothing is started for a pod that is to end");
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.record.gone = true;
    node.step();
    node.settle();
    assert!(node.record.is_over(), "an object that simply vanished");
}

#[test]
fn the_deadline_ends_a_pod() {
    let mut node = Node::new(json!({"activeDeadlineSeconds": 100, "containers": [container("a")]}));
    node.settle();
    assert_eq!(node.wait().as_secs(), 100);
    assert_eq!((node.phase(), node.status.reason.as_deref()), ("Failed", Some("DeadlineExceeded")));
    node.settle();
    assert_eq!((node.phase(), node.record.teardown == Stage::Done), ("Failed", true));
}

#[test]
fn pulls_back_off_until_an_image_arrives() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    let fail = |node: &mut Node| {
        assert!(node.take(|a| matches!(a, Action::EnsureImage(0))).is_some());
        let result = Err(Problem::new("ErrImagePull", "no such host"));
        node.event(Event::Image { container: 0, result });
    };
    fail(&mut node);
    node.settle();
    assert_eq!(node.waiting("a"), "ErrImagePull");
    node.wait();
    assert_eq!(node.waiting("a"), "ImagePullBackOff");
    let message = node.of("a").state.as_ref().unwrap().waiting.as_ref().unwrap().message.clone().unwrap();
    assert_eq!(message, "Back-off pulling image \"i:1\": ErrImagePull: no such host");
    let begin = node.begin;
    node.wait();
    assert_eq!((node.now - begin).as_secs(), 10);
    fail(&mut node);
    node.event(Event::ImageArrived);
    node.settle();
    assert_eq!(node.running(), ["a"]);
    assert_eq!(node.record.containers[0].image, Image::Present);
}

#[test]
fn a_container_that_cannot_be_described_is_tried_again() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    for action in node.pending.split_off(0) {
        node.succeed(&action);
    }
    assert!(node.take(|a| matches!(a, Action::Start { .. })).is_some());
    let problem = Problem::new("CreateContainerConfigError", "configmap \"c\" not found");
    node.event(Event::StartFailed { container: 0, failure: StartFailure::NotMade(problem) });
    assert_eq!(node.waiting("a"), "CreateContainerConfigError");
    node.wait();
    node.settle();
    assert_eq!((node.running(), node.of("a").restart_count), (vec!["a"], 0));
    // a command that does not exist counts as an exit
    let mut node = Node::new(json!({"restartPolicy": "Never", "containers": [container("a")]}));
    for action in node.pending.split_off(0) {
        node.succeed(&action);
    }
    node.take(|a| matches!(a, Action::Start { .. })).unwrap();
    node.event(Event::StartFailed { container: 0, failure: StartFailure::NotRun(ended("a-1", 128)) });
    node.settle();
    assert_eq!(node.phase(), "Failed");
}

#[test]
fn an_exit_that_overtakes_the_news_of_its_start_is_not_lost() {
    let mut node = Node::new(json!({"restartPolicy": "Never", "containers": [container("a")]}));
    for action in node.pending.split_off(0) {
        node.succeed(&action);
    }
    node.take(|a| matches!(a, Action::Start { .. })).unwrap();
    node.event(Event::Exited(ended("a-1", 0)));
    node.started(0);
    node.settle();
    assert_eq!(node.phase(), "Succeeded");
}

#[test]
fn a_lost_sandbox_is_made_anew_and_init_containers_run_again() {
    let mut node = Node::new(json!({"initContainers": [container("i")], "containers": [container("m")]}));
    node.settle();
    node.exit("i", 0);
    node.settle();
    assert_eq!(node.running(), ["m"]);
    node.event(Event::SandboxLost);
    node.exit("m", 137);
    node.settle();
    assert_eq!(node.running(), ["i"]);
    assert_eq!(node.of("i").restart_count, 1);
    node.exit("i", 0);
    node.settle();
    assert_eq!((node.running(), node.of("m").restart_count), (vec!["m"], 1));
    assert_eq!(node.record.sandbox, Sandbox::Ready);
}

#[test]
fn probes_decide_about_started_ready_and_restarts() {
    let probe = json!({"periodSeconds": 1});
    let mut node = Node::new(json!({"terminationGracePeriodSeconds": 7, "containers": [
        {"name": "a", "image": "i:1", "startupProbe": probe, "readinessProbe": probe}]}));
    node.settle();
    let id = node.id("a");
    assert_eq!((node.of("a").started, node.of("a").ready), (Some(false), false));
    node.event(Event::Probe { id: id.clone(), result: ProbeResult::Started { has_readiness_probe: true } });
    assert_eq!((node.of("a").started, node.of("a").ready), (Some(true), false));
    node.event(Event::Probe { id: id.clone(), result: ProbeResult::Ready(true) });
    assert_eq!((node.of("a").ready, node.condition("Ready")), (true, "True"));
    node.event(Event::Probe { id: id.clone(), result: ProbeResult::Ready(false) });
    assert_eq!((node.of("a").ready, node.condition("ContainersReady")), (false, "False"));
    node.event(Event::Probe { id, result: ProbeResult::Failed(None) });
    let kill = node.pending.last().cloned();
    assert!(matches!(kill, Some(Action::Kill { grace, .. }) if grace.as_secs() == 7), "{kill:?}");
    node.settle();
    assert_eq!((node.running(), node.of("a").restart_count), (vec!["a"], 1));
    node.event(Event::Probe { id: "a-1".into(), result: ProbeResult::Failed(None) });
    assert!(node.pending.is_empty(), "news of an older container concerns nobody");
    let id = node.id("a");
    node.event(Event::Probe { id, result: ProbeResult::Failed(Some(Duration::from_secs(3))) });
    assert!(matches!(node.pending.last(), Some(Action::Kill { grace, .. }) if grace.as_secs() == 3));
}

#[test]
fn post_start_hooks_hold_back_readiness_and_their_failure_restarts() {
    let hook = json!({"postStart": {"sleep": {"seconds": 1}}});
    let mut node = Node::new(json!({"containers": [{"name": "a", "image": "i:1", "lifecycle": hook}]}));
    node.settle();
    assert_eq!((node.of("a").started, node.of("a").ready), (Some(false), false));
    let done = |id: &str, result| Event::PostStart {
        id: id.to_owned(),
        result,
        has_startup_probe: false,
        has_readiness_probe: false,
    };
    node.event(done("a-1", Err(())));
    node.settle();
    assert_eq!(node.of("a").restart_count, 1);
    node.event(done("a-2", Ok(())));
    assert_eq!((node.of("a").started, node.condition("Ready")), (Some(true), "True"));
}

#[test]
fn a_changed_image_restarts_the_container() {
    let mut node = Node::new(json!({"containers": [container("a"), container("b")]}));
    node.settle();
    node.pod.spec.as_mut().unwrap().containers[0].image = Some("i:2".into());
    node.step();
    node.settle();
    assert_eq!((node.of("a").restart_count, node.of("b").restart_count), (1, 0));
}

#[test]
fn readiness_gates_and_foreign_conditions() {
    let mut node = Node::new(json!({"readinessGates": [{"conditionType": "lb/ok"}], "containers": [container("a")]}));
    node.settle();
    assert_eq!((node.condition("ContainersReady"), node.condition("Ready")), ("True", "False"));
    let theirs = json!({"conditions": [{"type": "lb/ok", "status": "True"}, {"type": "Ready", "status": "Unknown"}]});
    node.pod.status = Some(serde_json::from_value(theirs).unwrap());
    node.step();
    assert_eq!((node.condition("Ready"), node.condition("lb/ok")), ("True", "True"));
    assert_eq!(node.status.conditions.as_ref().unwrap().iter().filter(|c| c.type_ == "Ready").count(), 1);
}

#[test]
fn a_refused_pod_fails_and_can_be_deleted() {
    let mut node = Node::new(json!({"containers": [container("a")]}));
    node.record.rejected = Some(Problem::new("OutOfcpu", "Node didn't have enough resource: cpu"));
    node.step();
    assert_eq!((node.phase(), node.status.reason.as_deref()), ("Failed", Some("OutOfcpu")));
    node.log.clear();
    node.pending.clear();
    node.delete(30);
    node.settle();
    assert!(node.log == [Action::Finalize] && node.record.is_over());
}

/// A pod that asks for devices of plugins.
fn with_devices() -> Node {
    let limits = json!({"limits": {"x.io/d": "1"}});
    let containers = json!([{"name": "a", "image": "i:1", "resources": limits}]);
    let mut node = Node::new(json!({"restartPolicy": "Never", "containers": containers}));
    node.record.admission = Stage::Todo;
    (node.record.volumes, node.record.sandbox) = (Stage::Todo, Sandbox::Absent);
    node.record.containers[0].image = Image::Unknown;
    node.log.clear();
    node.pending.clear();
    node.step();
    node
}

#[test]
fn a_pod_that_asks_for_devices_begins_when_it_has_them() {
    let mut node = with_devices();
    assert_eq!((node.log.as_slice(), node.phase()), (&[Action::Admit][..], "Pending"));
    node.settle();
    assert_eq!(node.running(), ["a"]);
    // it has not ended before it has given them up
    node.exit("a", 0);
    assert_eq!(node.phase(), "Running");
    node.settle();
    assert_eq!(node.phase(), "Succeeded");
    // a pod that is refused is told why
    let mut node = with_devices();
    let action = node.pending.remove(0);
    fail(&mut node, action);
    assert_eq!((node.phase(), node.status.reason.as_deref()), ("Failed", Some("UnexpectedAdmissionError")));
    assert!(node.pending.is_empty());
    // and one that is deleted meanwhile goes as soon as nobody works on it
    let mut node = with_devices();
    node.delete(30);
    assert_eq!(node.log, [Action::Admit]);
    node.settle();
    assert!(node.log == [Action::Admit, Action::TearDown, Action::Finalize] && node.record.is_over());
}

/// Random numbers that are the same in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

fn fail(node: &mut Node, action: Action) {
    let id = |n: u32| format!("failed-{n}");
    match action {
        Action::Admit => node.event(Event::Admitted(Err(Problem::new("UnexpectedAdmissionError", "x")))),
        Action::SetUpVolumes => node.event(Event::Volumes(Err(()))),
        Action::CreateSandbox => node.event(Event::Sandbox(Err(()))),
        Action::RemoveSandbox => node.event(Event::SandboxRemoved(Err(()))),
        Action::EnsureImage(container) => {
            node.event(Event::Image { container, result: Err(Problem::new("ErrImagePull", "x")) });
        }
        Action::Start { container, restarts } => {
            let failure = if restarts % 2 == 0 {
                StartFailure::NotMade(Problem::new("CreateContainerError", "x"))
            } else {
                StartFailure::NotRun(ended(&id(node.starts), 128))
            };
            node.event(Event::StartFailed { container, failure });
        }
        Action::Kill { id, .. } => {
            node.event(Event::KillFailed { id });
        }
        Action::TearDown => node.event(Event::TornDown(Err(()))),
        Action::Finalize => node.event(Event::Finalized(Err(()))),
        other => node.succeed(&other),
    }
}

fn check(node: &Node) {
    let of = |wanted: fn(&Action) -> Option<usize>| {
        let mut found: Vec<usize> = node.pending.iter().filter_map(wanted).collect();
        let all = found.len();
        found.sort_unstable();
        found.dedup();
        assert_eq!(found.len(), all, "the same twice at once: {:?}", node.pending);
    };
    of(|a| if let Action::Start { container, .. } = a { Some(*container) } else { None });
    of(|a| if let Action::EnsureImage(container) = a { Some(*container) } else { None });
    of(|a| matches!(a, Action::CreateSandbox | Action::RemoveSandbox | Action::TearDown).then_some(0));
    of(|a| matches!(a, Action::SetUpVolumes).then_some(0));
    for (index, c) in node.record.containers.iter().enumerate() {
        if c.kind == Kind::Main && c.is_active() && !node.record.initialized {
            for before in &node.record.containers[..index] {
                let done = match before.kind {
                    Kind::Init => matches!(&before.state, State::Exited(t, _) if t.exit_code == 0),
                    Kind::Sidecar | Kind::Main => true,
                };
                assert!(done, "{} runs before {} is done", c.name, before.name);
            }
        }
    }
    if node.record.teardown != Stage::Todo {
        assert!(node.running().is_empty(), "removed under running containers");
    }
}

#[test]
fn whatever_happens_nothing_runs_twice_and_every_pod_can_be_deleted() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let policy = ["Always", "OnFailure", "Never"][random.below(3)];
        let hook = json!({"preStop": {"sleep": {"seconds": 1}}, "postStart": {"sleep": {"seconds": 1}}});
        let mut node = Node::new(json!({
            "restartPolicy": policy,
            "initContainers": [container("i"), {"name": "s", "image": "i:1", "restartPolicy": "Always"}],
            "containers": [container("m"), {"name": "n", "image": "i:1", "lifecycle": hook}],
        }));
        for _ in 0..120 {
            match random.below(10) {
                0..5 if !node.pending.is_empty() => {
                    let action = node.pending.remove(random.below(node.pending.len()));
                    if random.below(5) == 0 { fail(&mut node, action) } else { node.succeed(&action) }
                }
                5 | 6 => {
                    let running: Vec<String> = node.running().into_iter().map(str::to_owned).collect();
                    if !running.is_empty() {
                        let name = running[random.below(running.len())].clone();
                        let code = i32::try_from(random.below(2)).unwrap();
                        node.exit(&name, code);
                    }
                }
                7 if node.due.is_some() => {
                    node.wait();
                }
                8 if random.below(20) == 0 && node.record.sandbox == Sandbox::Ready => {
                    node.event(Event::SandboxLost);
                    for name in node.running().into_iter().map(str::to_owned).collect::<Vec<_>>() {
                        node.exit(&name, 137);
                    }
                }
                9 => {
                    let running: Vec<String> = node.running().into_iter().map(str::to_owned).collect();
                    for name in running {
                        let id = node.id(&name);
                        let result = [ProbeResult::Ready(true), ProbeResult::Ready(false), ProbeResult::Failed(None)];
                        node.event(Event::Probe { id, result: result[random.below(3)] });
                    }
                }
                _ => {}
            }
            check(&node);
        }
        node.delete(30);
        for _ in 0..200 {
            node.settle();
            check(&node);
            if node.record.is_over() || node.due.is_none() {
                break;
            }
            node.wait();
        }
        assert!(node.record.is_over(), "seed {seed}: {:#?}", node.record);
    }
}
