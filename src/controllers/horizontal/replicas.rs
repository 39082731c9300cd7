//! How many pods a metric asks for. Pure.

use crate::pods;
use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Why a metric says nothing about the number of pods.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unknown {
    #[error("no pods returned by selector while calculating replica count")]
    Pods,
    #[error("did not receive metrics for targeted pods (pods might be unready)")]
    Measured,
    #[error("no metrics returned matched known pods")]
    Requested,
    #[error("missing request for {resource} in container {container} of Pod {pod}")]
    Request { resource: String, container: String, pod: String },
    #[error("container {container} not found in Pod {pod}")]
    Container { container: String, pod: String },
}

/// What was measured of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Measure {
    /// In thousandths.
    pub(super) value: i64,
    pub(super) at: Timestamp,
    /// The time that was measured over.
    pub(super) window: Duration,
}

/// By the names of pods.
pub(super) type Measures = HashMap<String, Measure>;

/// How far use may be from its target without anything being done, as parts of the target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tolerance {
    pub(super) up: f64,
    pub(super) down: f64,
}

impl Tolerance {
    fn covers(self, ratio: f64) -> bool {
        (1.0 - self.down..=1.0 + self.up).contains(&ratio)
    }
}

/// What a target of pods is judged by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Circumstances<'a> {
    /// How many pods there are to be at the moment.
    pub(super) current: i32,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) tolerance: Tolerance,
    /// For so long after its start a pod's processor time counts only while it is ready.
    pub(super) initialization: Duration,
    /// A pod that became unready within this time after its start has never been ready.
    pub(super) readiness_delay: Duration,
    pub(super) now: Timestamp,
}

/// What a metric asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) replicas: i32,
    /// Use in percent of what is requested, where the target is such a one.
    pub(super) utilization: Option<i32>,
    /// Use, in thousandths: of the average pod, or of what the metric is of.
    pub(super) value: i64,
}

/// The pods by what their measures are good for.
#[derive(Debug, Default, PartialEq, Eq)]
struct Groups {
    /// How many count.
    ready: usize,
    /// Those that do not serve yet.
    unready: Vec<String>,
    /// Those of which nothing is known.
    missing: Vec<String>,
}

/// Values in thousandths by the names of pods.
type Values = HashMap<String, i64>;

/// How use compares with its target.
struct Ratio {
    ratio: f64,
    utilization: Option<i32>,
    value: i64,
}

/// A number of pods; what is more than can be counted is the most that can.
fn ceil(replicas: f64) -> i32 {
    // the cast saturates, and no number is none
    replicas.ceil() as i32
}

impl Circumstances<'_> {
    /// For a target in percent of what the pods (or, named, one of their containers) request of a resource.
    ///
    /// # Errors
    /// [`Unknown`] when there are no pods, no measures or no requests to compare.
    pub(super) fn utilization(
        &self,
        measures: Measures,
        resource: &str,
        container: Option<&str>,
        target: i32,
    ) -> Result<Proposal, Unknown> {
        let (groups, values) = self.group(measures, resource)?;
        let mut requests = Values::new();
        for pod in self.pods {
            requests.insert(name(pod).to_owned(), request(pod, resource, container)?);
        }
        let ratio = |values: &Values| {
            let known: Vec<(i64, i64)> = values.iter().filter_map(|(p, v)| Some((*v, *requests.get(p)?))).collect();
            let used: i64 = known.iter().map(|(v, _)| v).fold(0, |a, b| a.saturating_add(*b));
            let requested: i64 = known.iter().map(|(_, r)| r).fold(0, |a, b| a.saturating_add(*b));
            if requested == 0 {
                return Err(Unknown::Requested);
            }
            let percent = i32::try_from(i128::from(used) * 100 / i128::from(requested)).unwrap_or(i32::MAX);
            let count = i64::try_from(known.len()).unwrap_or(i64::MAX);
            let ratio = f64::from(percent) / f64::from(target);
            Ok(Ratio { ratio, utilization: Some(percent), value: used / count })
        };
        // who wants more than all that is requested counts those of whom nothing is known for as much
        let assumed = i64::from(target.max(100));
        let full = |pod: &str| requests.get(pod).copied().unwrap_or_default().saturating_mul(assumed) / 100;
        self.propose(groups, values, ratio, full)
    }

    /// For a target of so many thousandths for the average pod; `resource` is empty for what is no resource.
    ///
    /// # Errors
    /// [`Unknown`] when there are no pods or no measures.
    pub(super) fn average(&self, measures: Measures, resource: &str, target: i64) -> Result<Proposal, Unknown> {
        let (groups, values) = self.group(measures, resource)?;
        let ratio = |values: &Values| {
            let used = values.values().fold(0i64, |a, b| a.saturating_add(*b));
            let average = used / i64::try_from(values.len()).unwrap_or(i64::MAX).max(1);
            Ok(Ratio { ratio: average as f64 / target as f64, utilization: None, value: average })
        };
        self.propose(groups, values, ratio, |_| target)
    }

    /// For a target of so many thousandths of something that all pods share.
    ///
    /// # Errors
    /// [`Unknown::Pods`].
    pub(super) fn total(&self, used: i64, target: i64) -> Result<Proposal, Unknown> {
        let ratio = used as f64 / target as f64;
        let replicas = if self.current == 0 {
            ceil(ratio)
        } else if self.tolerance.covers(ratio) {
            self.current
        } else if self.pods.is_empty() {
            return Err(Unknown::Pods);
        } else {
            let ready = self.pods.iter().filter(|p| pods::phase(p) == "Running" && pods::is_ready(p)).count();
            ceil(ratio * ready as f64)
        };
        Ok(Proposal { replicas, utilization: None, value: used })
    }

    /// For a target of so many thousandths for each of the `counted` pods of something that all pods share.
    pub(super) fn share(&self, used: i64, target: i64, counted: i32) -> Proposal {
        let ratio = used as f64 / (target as f64 * f64::from(counted));
        let replicas = if self.tolerance.covers(ratio) { counted } else { ceil(used as f64 / target as f64) };
        let value = if counted > 0 { (used as f64 / f64::from(counted)).ceil() as i64 } else { used };
        Proposal { replicas, utilization: None, value }
    }

    /// The number of pods by which the ratio would become one. Pods of which nothing is known, and those that do not serve yet,
    /// are assumed to be what speaks against a change.
    fn propose(
        &self,
        groups: Groups,
        mut values: Values,
        ratio_of: impl Fn(&Values) -> Result<Ratio, Unknown>,
        full: impl Fn(&str) -> i64,
    ) -> Result<Proposal, Unknown> {
        let Ratio { ratio, utilization, value } = ratio_of(&values)?;
        let propose = |replicas| Ok(Proposal { replicas, utilization, value });
        let counts_unready = !groups.unready.is_empty() && ratio > 1.0;
        if !counts_unready && groups.missing.is_empty() {
            let covered = self.tolerance.covers(ratio);
            return propose(if covered { self.current } else { ceil(ratio * groups.ready as f64) });
        }
        for pod in groups.missing {
            if ratio < 1.0 {
                values.insert(pod.clone(), full(&pod));
            } else if ratio > 1.0 {
                values.insert(pod, 0);
            }
        }
        if counts_unready {
            values.extend(groups.unready.into_iter().map(|pod| (pod, 0)));
        }
        let again = ratio_of(&values)?.ratio;
        let turned = (ratio < 1.0 && again > 1.0) || (ratio > 1.0 && again < 1.0);
        if self.tolerance.covers(again) || turned {
            return propose(self.current);
        }
        let replicas = ceil(again * values.len() as f64);
        let turned = (again < 1.0 && replicas > self.current) || (again > 1.0 && replicas < self.current);
        propose(if turned { self.current } else { replicas })
    }

    /// Sorts the pods, and leaves those measures that count.
    fn group(&self, mut measures: Measures, resource: &str) -> Result<(Groups, Values), Unknown> {
        if self.pods.is_empty() {
            return Err(Unknown::Pods);
        }
        let mut groups = Groups::default();
        for pod in self.pods {
            let name = name(pod);
            if pod.metadata.deletion_timestamp.is_some() || pods::phase(pod) == "Failed" {
                measures.remove(name);
            } else if pods::phase(pod) == "Pending" {
                measures.remove(name);
                groups.unready.push(name.to_owned());
            } else if let Some(measure) = measures.get(name) {
                if resource == "cpu" && self.is_starting(pod, measure) {
                    measures.remove(name);
                    groups.unready.push(name.to_owned());
                } else {
                    groups.ready += 1;
                }
            } else {
                groups.missing.push(name.to_owned());
            }
        }
        if measures.is_empty() {
            return Err(Unknown::Measured);
        }
        Ok((groups, measures.into_iter().map(|(pod, measure)| (pod, measure.value)).collect()))
    }

    /// Whether the processor time of a pod is, or may be, that of its start.
    fn is_starting(&self, pod: &Pod, measure: &Measure) -> bool {
        let started = pod.status.as_ref().and_then(|s| s.start_time.as_ref());
        let (Some(ready), Some(started)) = (pods::condition(pod, "Ready"), started) else { return true };
        let changed = ready.last_transition_time.as_ref().map_or(Timestamp::MIN, |t| t.0);
        let after = |time: Timestamp, by: Duration| {
            time.saturating_add(SignedDuration::try_from(by).unwrap_or(SignedDuration::MAX)).unwrap_or(Timestamp::MAX)
        };
        let is_unready = ready.status == "False";
        if after(started.0, self.initialization) > self.now {
            return is_unready || measure.at < after(changed, measure.window);
        }
        is_unready && after(started.0, self.readiness_delay) > changed
    }
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

/// What a pod (or, named, one of its containers) requests of a resource, in thousandths.
fn request(pod: &Pod, resource: &str, container: Option<&str>) -> Result<i64, Unknown> {
    let Some(spec) = &pod.spec else { return Ok(0) };
    let amount = |list: Option<&crate::horizontal::Amounts>| {
        let quantity = list?.get(resource)?;
        Quantity::parse(&quantity.0).ok().map(|q| q.milli_value())
    };
    let of_pod = spec.resources.as_ref().and_then(|r| r.requests.as_ref()).filter(|r| !r.is_empty());
    if container.is_none()
        && let Some(whole) = amount(of_pod)
    {
        return Ok(whole);
    }
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let of_container = |c: &Container| {
        amount(c.resources.as_ref().and_then(|r| r.requests.as_ref())).ok_or_else(|| Unknown::Request {
            resource: resource.to_owned(),
            container: c.name.clone(),
            pod: name(pod).to_owned(),
        })
    };
    let mut all = spec.containers.iter().chain(sidecars);
    match container {
        Some(wanted) => all.find(|c| c.name == wanted).map_or_else(
            || Err(Unknown::Container { container: wanted.to_owned(), pod: name(pod).to_owned() }),
            of_container,
        ),
        None => all.map(of_container).try_fold(0i64, |sum, one| Ok(sum.saturating_add(one?))),
    }
}

#[cfg(test)]
#[path = "replicas_tests.rs"]
mod tests;
