//! HorizontalPodAutoscalers: the number of pods follows what they use, or what somebody measures of them.
//!
//! An autoscaler is looked at when it is made or changed, and then once in every period, for as long as it exists: what is used
//! has no event that would tell of it. [`judge`] reads the metrics, [`replicas`] decides what each asks for, [`limits`] what of
//! that may be done.

mod judge;
mod limits;
mod metrics;
mod replicas;
mod status;
mod target;

use crate::context::{Context, each, message};
use crate::owners::matches;
use edge_api::Quantity;
use edge_api::selector::LabelSelector;
use edge_client::{Change, Error, EventType, Informer, Key, Outcome, WorkQueue, run_workers};
use judge::{Failure, Judge};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::autoscaling::v2::{HPAScalingRules, HorizontalPodAutoscaler, MetricStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use limits::{Memory, Wish};
use metrics::Metrics;
use parking_lot::Mutex;
use replicas::{Circumstances, Proposal, Tolerance};
use serde_json::{Value, json};
use status::Conditions;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;
use target::Resources;
use tokio::time::Instant;

/// How many autoscalers are looked at at once.
const WORKERS: usize = 5;
/// After this time an autoscaler is looked at again whose target somebody else was changing.
const AGAIN: Duration = Duration::from_secs(1);

/// A resource list of the API.
type Amounts = BTreeMap<String, ApiQuantity>;

/// What autoscaling goes by where an autoscaler says nothing else.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Autoscaling {
    /// How often an autoscaler is looked at.
    pub period: Duration,
    /// How far use may be from its target without anything being done, as a part of the target.
    pub tolerance: f64,
    /// For how long the number of pods is not lowered below what was recommended.
    pub downscale_window: Duration,
    /// For so long after its start a pod's processor time counts only while it is ready.
    pub cpu_initialization: Duration,
    /// A pod that became unready within this time after its start has never been ready.
    pub readiness_delay: Duration,
}

struct Controller {
    context: Context,
    options: Autoscaling,
    autoscalers: Arc<Informer<HorizontalPodAutoscaler>>,
    pods: Arc<Informer<Pod>>,
    resources: Resources,
    memories: Mutex<HashMap<Key, Memory>>,
    /// Which pods each autoscaler goes by.
    selectors: Mutex<HashMap<Key, LabelSelector>>,
}

pub(crate) async fn run(context: Context, options: Autoscaling) {
    let controller = Arc::new(Controller {
        autoscalers: context.informers.of(),
        pods: context.informers.of(),
        resources: Resources::default(),
        memories: Mutex::default(),
        selectors: Mutex::default(),
        options,
        context,
    });
    controller.autoscalers.synced().await;
    controller.pods.synced().await;
    let queue = WorkQueue::<Key>::new();
    let watch = each(&controller.autoscalers, |change| {
        if is_news(change) {
            queue.add(Key::of(&**change.object()));
        }
    });
    let worker = controller.clone();
    let work = run_workers("horizontalpodautoscaler", queue.clone(), WORKERS, move |key: Key| {
        let controller = worker.clone();
        async move { Box::pin(controller.reconcile(&key)).await }
    });
    tokio::join!(watch, work);
}

/// Whether a change is not only one of the status, which is the controller's own.
fn is_news(change: &Change<HorizontalPodAutoscaler>) -> bool {
    match change {
        Change::Applied { old: Some(old), new } => old.metadata.generation != new.metadata.generation,
        Change::Applied { old: None, .. } | Change::Deleted(_) => true,
    }
}

/// An autoscaler's status as it will be.
struct Draft {
    conditions: Conditions,
    /// Unknown while the target is.
    current: Option<i32>,
    desired: i32,
    metrics: Vec<MetricStatus>,
    /// Whether the target was changed.
    is_rescaled: bool,
}

impl Draft {
    fn new(autoscaler: &HorizontalPodAutoscaler) -> Self {
        let known = autoscaler.status.as_ref();
        Self {
            conditions: Conditions {
                list: known.and_then(|s| s.conditions.clone()).unwrap_or_default(),
                now: Timestamp::now(),
            },
            current: None,
            desired: known.map_or(0, |s| s.desired_replicas),
            metrics: Vec::new(),
            is_rescaled: false,
        }
    }

    fn into_value(self) -> Value {
        let mut status = json!({"conditions": self.conditions.list});
        if let Some(current) = self.current {
            // a zero is not written
            status["currentReplicas"] = if current == 0 { Value::Null } else { current.into() };
            status["desiredReplicas"] = self.desired.into();
            status["currentMetrics"] = if self.metrics.is_empty() { Value::Null } else { json!(self.metrics) };
        }
        if self.is_rescaled {
            status["lastScaleTime"] = json!(Time(self.conditions.now));
        }
        status
    }
}

/// Why nothing, or less than wanted, was done.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("{0}")]
    Metrics(String),
    #[error("the target has changed meanwhile")]
    Conflict,
    #[error("{0}")]
    Target(String),
}

impl Controller {
    async fn reconcile(&self, key: &Key) -> Result<Outcome, Error> {
        let Some(autoscaler) = self.autoscalers.get_key(key) else {
            self.memories.lock().remove(key);
            self.selectors.lock().remove(key);
            return Ok(Outcome::Done);
        };
        let mut draft = Draft::new(&autoscaler);
        let done = self.follow(key, &autoscaler, &mut draft).await;
        let (client, status) = (&self.context.client, autoscaler.status.as_ref());
        crate::status::write(client, &*autoscaler, status, draft.into_value()).await?;
        match done {
            Ok(()) => Ok(Outcome::After(self.options.period)),
            Err(trouble) => {
                tracing::debug!(autoscaler = %key, %trouble, "the number of pods does not follow");
                let wait = if matches!(trouble, Trouble::Conflict) { AGAIN } else { self.options.period };
                Ok(Outcome::After(wait.min(self.options.period)))
            }
        }
    }

    fn tell(&self, autoscaler: &HorizontalPodAutoscaler, kind: EventType, reason: &str, message: impl Into<String>) {
        self.context.recorder.event(autoscaler, kind, reason, message);
    }

    /// Gives the target the number of pods that it should have.
    async fn follow(&self, key: &Key, autoscaler: &HorizontalPodAutoscaler, draft: &mut Draft) -> Result<(), Trouble> {
        let spec = &autoscaler.spec;
        let client = &self.context.client;
        let found = self.resources.scale(client, &key.namespace, &spec.scale_target_ref).await;
        let (path, scale) = found.map_err(|error| {
            let text = error.to_string();
            self.tell(autoscaler, EventType::Warning, "FailedGetScale", text.as_str());
            let message = format!("the HPA controller was unable to get the target's current scale: {text}");
            draft.conditions.set("AbleToScale", false, "FailedGetScale", message);
            Trouble::Target(text)
        })?;
        let message = "the HPA controller was able to get the target's current scale";
        draft.conditions.set("AbleToScale", true, "SucceededGetScale", message);
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        draft.current = Some(current);
        self.memories.lock().entry(key.clone()).or_default().begin(Instant::now(), current);
        let (least, most) = (spec.min_replicas.unwrap_or(1), spec.max_replicas);
        let mut partial = Ok(());
        let (desired, why) = if current == 0 && least != 0 {
            let message = "scaling is disabled since the replica count of the target is zero";
            draft.conditions.set("ScalingActive", false, "ScalingDisabled", message);
            (0, String::new())
        } else if current > most {
            (most, "Current number of replicas above Spec.MaxReplicas".to_owned())
        } else if current < least {
            (least, "Current number of replicas below Spec.MinReplicas".to_owned())
        } else {
            let asked = self.ask(key, autoscaler, &scale, draft).await?;
            partial = asked.trouble.map_or(Ok(()), |text| Err(Trouble::Metrics(text)));
            self.limit(key, autoscaler, current, &asked.name, asked.replicas, draft)
        };
        if desired == current {
            draft.desired = current;
            return partial;
        }
        self.rescale(key, autoscaler, (path, scale), (desired, &why), draft).await?;
        partial
    }

    /// What may be done of what the metrics ask for, and why.
    fn limit(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        current: i32,
        metric: &str,
        desired: i32,
        draft: &mut Draft,
    ) -> (i32, String) {
        let spec = &autoscaler.spec;
        let wish = Wish {
            current,
            desired,
            least: spec.min_replicas.unwrap_or(1),
            most: spec.max_replicas,
            behavior: spec.behavior.as_ref(),
            window: self.options.downscale_window,
        };
        let granted = self.memories.lock().entry(key.clone()).or_default().grant(Instant::now(), &wish);
        draft.conditions.set_reason("AbleToScale", true, granted.able);
        draft.conditions.set_reason("ScalingLimited", granted.limited.0, granted.limited.1);
        let why = match desired.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{metric} above target"),
            std::cmp::Ordering::Less => "All metrics below target".to_owned(),
            std::cmp::Ordering::Equal => String::new(),
        };
        (granted.replicas, why)
    }

    async fn rescale(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        (path, mut scale): (String, Scale),
        (desired, why): (i32, &str),
        draft: &mut Draft,
    ) -> Result<(), Trouble> {
        let before = draft.current.unwrap_or(0);
        scale.spec.get_or_insert_default().replicas = Some(desired);
        if let Err(error) = target::put(&self.context.client, &path, &scale).await {
            let text = message(&error);
            let message = format!("New size: {desired}; reason: {why}; error: {text}");
            self.tell(autoscaler, EventType::Warning, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {text}");
            draft.conditions.set("AbleToScale", false, "FailedUpdateScale", message);
            let conflict = edge_client::is_conflict(&error);
            return Err(if conflict { Trouble::Conflict } else { Trouble::Target(text) });
        }
        let message = format!("the HPA controller was able to update the target scale to {desired}");
        draft.conditions.set("AbleToScale", true, "SucceededRescale", message);
        let message = format!("New size: {desired}; reason: {why}");
        self.tell(autoscaler, EventType::Normal, "SuccessfulRescale", message);
        let behavior = autoscaler.spec.behavior.as_ref();
        self.memories.lock().entry(key.clone()).or_default().done(Instant::now(), before, desired, behavior);
        tracing::info!(autoscaler = %key, from = before, to = desired, why, "rescaled");
        (draft.desired, draft.is_rescaled) = (desired, true);
        Ok(())
    }

    /// Asks all metrics; the one that wants most pods counts.
    async fn ask(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        scale: &Scale,
        draft: &mut Draft,
    ) -> Result<Asked, Trouble> {
        let text = scale.status.as_ref().and_then(|s| s.selector.clone()).unwrap_or_default();
        let pods = self.selected(key, autoscaler, &text, draft)?;
        let specs = autoscaler.spec.metrics.as_deref().unwrap_or_default();
        let current = scale.spec.as_ref().and_then(|s| s.replicas).unwrap_or(0);
        let judge = Judge {
            metrics: Metrics { client: &self.context.client, resources: &self.resources, namespace: &key.namespace },
            selector: &text,
            circumstances: Circumstances {
                current,
                pods: &pods,
                tolerance: tolerance(autoscaler, self.options.tolerance),
                initialization: self.options.cpu_initialization,
                readiness_delay: self.options.readiness_delay,
                now: Timestamp::now(),
            },
            counted: scale.status.as_ref().map_or(0, |s| s.replicas),
        };
        let mut answers = Vec::new();
        for spec in specs {
            let answer = judge.judge(spec).await;
            if let Err(failure) = &answer {
                self.tell(autoscaler, EventType::Warning, failure.reason, failure.text.as_str());
            }
            let found = answer.as_ref().map(|(found, _)| status::metric(spec, found));
            draft.metrics.push(found.unwrap_or_default());
            answers.push(answer);
        }
        match weigh(answers, current) {
            Ok(asked) => {
                let message = format!("the HPA was able to successfully calculate a replica count from {}", asked.name);
                draft.conditions.set("ScalingActive", true, "ValidMetricFound", message);
                Ok(asked)
            }
            Err((failure, text)) => {
                if let Some(f) = failure {
                    let message = format!("the HPA was unable to compute the replica count: {}", f.text);
                    draft.conditions.set("ScalingActive", false, f.reason, message);
                }
                self.tell(autoscaler, EventType::Warning, "FailedComputeMetricsReplicas", text.as_str());
                Err(Trouble::Metrics(text))
            }
        }
    }

    /// The pods of the target.
    fn selected(
        &self,
        key: &Key,
        autoscaler: &HorizontalPodAutoscaler,
        text: &str,
        draft: &mut Draft,
    ) -> Result<Vec<Arc<Pod>>, Trouble> {
        let mut refuse = |event: &str, reason: &str, text: String, message: String| {
            self.tell(autoscaler, EventType::Warning, event, text.as_str());
            draft.conditions.set("ScalingActive", false, reason, message);
            Trouble::Metrics(text)
        };
        if text.is_empty() {
            let message = "the HPA target's scale is missing a selector".to_owned();
            return Err(refuse("SelectorRequired", "InvalidSelector", "selector is required".to_owned(), message));
        }
        let selector = LabelSelector::parse(text).map_err(|e| {
            let text = format!("couldn't convert selector into a corresponding internal selector object: {e}");
            refuse("InvalidSelector", "InvalidSelector", text.clone(), text)
        })?;
        let mut pods = self.pods.list_namespace(&key.namespace);
        pods.retain(|pod| matches(&selector, &**pod));
        let mut selectors = self.selectors.lock();
        selectors.insert(key.clone(), selector);
        let rivals = rivals(&selectors, &key.namespace, &pods);
        drop(selectors);
        if rivals.len() > 1 {
            let names: Vec<String> = rivals.iter().map(|k| format!("{{{} {}}}", k.name, k.namespace)).collect();
            let text = format!("pods by selector {text} are controlled by multiple HPAs: [{}]", names.join(" "));
            return Err(refuse("AmbiguousSelector", "AmbiguousSelector", text.clone(), text));
        }
        Ok(pods)
    }
}

/// What the metrics ask for together.
#[derive(Debug, PartialEq, Eq)]
struct Asked {
    replicas: i32,
    /// What people call the metric that counts.
    name: String,
    /// Why not all metrics could be asked.
    trouble: Option<String>,
}

/// The answer that wants most pods. None of them counts when all failed, nor when some did and the others want fewer pods than
/// there are: those that failed might want more. Then the first failure is given, and what to tell.
fn weigh(answers: Vec<Result<(Proposal, String), Failure>>, current: i32) -> Result<Asked, (Option<Failure>, String)> {
    let (all, mut failed) = (answers.len(), Vec::new());
    let mut best: Option<Asked> = None;
    for answer in answers {
        match answer {
            Err(failure) => failed.push(failure),
            Ok((found, name)) if best.as_ref().is_none_or(|b| b.replicas == 0 || found.replicas > b.replicas) => {
                best = Some(Asked { replicas: found.replicas, name, trouble: None });
            }
            Ok(_) => {}
        }
    }
    let failures = failed.len();
    let first = failed.into_iter().next();
    let trouble = first
        .as_ref()
        .map(|f| format!("invalid metrics ({failures} invalid out of {all}), first error is: {}", f.whole));
    match best {
        Some(asked) if trouble.is_none() || asked.replicas >= current => Ok(Asked { trouble, ..asked }),
        _ => Err((first, trouble.unwrap_or_else(|| "there are no metrics".to_owned()))),
    }
}

/// All autoscalers of a namespace that go by one of these pods, in the order of their names.
fn rivals(selectors: &HashMap<Key, LabelSelector>, namespace: &str, pods: &[Arc<Pod>]) -> Vec<Key> {
    let selects = |selector: &LabelSelector| pods.iter().any(|pod| matches(selector, &**pod));
    let of_namespace = selectors.iter().filter(|(key, _)| key.namespace == namespace);
    let mut keys: Vec<Key> = of_namespace.filter(|(_, s)| selects(s)).map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys
}

/// What the autoscaler's behaviour says, else the cluster's.
fn tolerance(autoscaler: &HorizontalPodAutoscaler, default: f64) -> Tolerance {
    let behavior = autoscaler.spec.behavior.as_ref();
    let of = |rules: Option<&HPAScalingRules>| {
        let quantity = rules.and_then(|r| r.tolerance.as_ref())?;
        Some(Quantity::parse(&quantity.0).ok()?.as_f64())
    };
    Tolerance {
        up: behavior.and_then(|b| of(b.scale_up.as_ref())).unwrap_or(default),
        down: behavior.and_then(|b| of(b.scale_down.as_ref())).unwrap_or(default),
    }
}

#[cfg(test)]
mod tests;
