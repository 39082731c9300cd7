//! Eviction: deletion of a pod as far as disruption budgets allow.

use super::{Change, Committed, attributes};
use crate::admission::Operation;
use crate::options::{DeleteOptions, Preconditions, Target, WriteOptions};
use crate::read::{self, resource_of};
use crate::registry::{Deleted, Registry};
use crate::resource::ResourceInfo;
use crate::selection::Selection;
use crate::stored::Stored;
use edge_api::selector::{FieldSelector, LabelSelector};
use edge_api::status::StatusCause;
use edge_api::{Object, Status};
use serde_json::{Value, json};

/// After how many seconds a refused eviction may be tried again, when the budget is not up to date (Kubernetes' value).
const RETRY_SECONDS: u32 = 10;
/// So many pods may be noted in a budget before its controller has caught up (Kubernetes' value).
const MAX_DISRUPTED: usize = 2000;

impl Registry {
    pub(super) async fn evict(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        eviction: &Object,
    ) -> Result<Stored, Status> {
        let mut eviction = eviction.clone();
        self.admit_submitted(&attributes(Operation::Create, target, options, None), &mut eviction).await?;
        let pod = read::get(&self.hub, &Target { subresource: "", ..*target })?.object()?;
        let deletion = deletion_of(&eviction, &pod);
        if needs_budget(&pod) {
            self.spend_budget(target, options, &pod).await?;
        }
        let whole = Target { subresource: "", ..*target };
        self.mark_evicted(&whole, options, &pod).await?;
        match self.delete_with(&whole, options, &deletion, false).await? {
            Deleted::Gone(stored) | Deleted::Pending(stored) => Ok(stored),
        }
    }

    /// Takes one disruption out of the budget that covers the pod, if one does.
    async fn spend_budget(&self, target: &Target<'_>, options: &WriteOptions<'_>, pod: &Object) -> Result<(), Status> {
        let Some(row) = self.catalog().preferred("policy", "poddisruptionbudgets") else { return Ok(()) };
        loop {
            let Some(live) = self.budget_of(target, &row, pod)? else { return Ok(()) };
            let mut budget = live.object()?;
            if costs_nothing(&budget, pod) {
                return Ok(());
            }
            spend(&mut budget, pod)?;
            let at = Target { info: &row, namespace: live.namespace(), name: live.name(), subresource: "status" };
            let hub = resource_of(&self.hub, &at, "update")?;
            match self.commit(&at, &hub, Some(&live), Change::Put(&budget), options.dry_run).await? {
                Committed::Done(_) => return Ok(()),
                Committed::Lost => {}
            }
        }
    }

    /// Says in the pod's conditions that it does not end by itself, for whoever counts its failures.
    async fn mark_evicted(&self, target: &Target<'_>, options: &WriteOptions<'_>, pod: &Object) -> Result<(), Status> {
        let hub = resource_of(&self.hub, target, "update")?;
        loop {
            let live = read::get(&self.hub, target)?;
            let mut marked = live.object()?;
            if marked.uid() != pod.uid() || marked.is_terminating() || is_finished(&marked) {
                return Ok(());
            }
            set_evicted(&mut marked);
            match self.commit(target, &hub, Some(&live), Change::Put(&marked), options.dry_run).await? {
                Committed::Done(_) => return Ok(()),
                Committed::Lost => {}
            }
        }
    }

    fn budget_of(&self, target: &Target<'_>, row: &ResourceInfo, pod: &Object) -> Result<Option<Stored>, Status> {
        let all = Target { info: row, namespace: target.namespace, name: "", subresource: "" };
        let hub = resource_of(&self.hub, &all, "list")?;
        let everything = Selection::new(&all, &LabelSelector::everything(), &FieldSelector::default(), hub.fields())?;
        let mut covering = Vec::new();
        for budget in hub.select(&everything) {
            let selector = budget.object()?.pointer("/spec/selector").cloned().unwrap_or(Value::Null);
            if LabelSelector::from_value(&selector).is_ok_and(|s| s.matches(|k| pod.label(k))) {
                covering.push(budget);
            }
        }
        if covering.len() > 1 {
            return Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        Ok(covering.pop())
    }
}

fn deletion_of(eviction: &Object, pod: &Object) -> DeleteOptions {
    let text = |pointer: &str| eviction.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    DeleteOptions {
        grace_period_seconds: eviction.pointer("/deleteOptions/gracePeriodSeconds").and_then(Value::as_i64),
        preconditions: Preconditions {
            // the pod that the budget was asked about, and no later one of the same name
            uid: text("/deleteOptions/preconditions/uid").or_else(|| Some(pod.uid().to_owned())),
            resource_version: text("/deleteOptions/preconditions/resourceVersion"),
        },
        ..DeleteOptions::default()
    }
}

fn is_finished(pod: &Object) -> bool {
    matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed")
}

fn set_evicted(pod: &mut Object) {
    let now = edge_api::meta::now();
    let conditions = pod.section_mut("status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("DisruptionTarget"));
    list.push(json!({"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
        "message": "Eviction API: evicting", "lastTransitionTime": now}));
}

/// Whether a pod may go without the budget losing anything: one that is not ready anyway, when the budget says so or is
/// kept by the others.
fn costs_nothing(budget: &Object, pod: &Object) -> bool {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array);
    let ready = conditions.into_iter().flatten().any(|c| c["type"] == "Ready" && c["status"] == "True");
    let number = |field: &str| budget.get("status").get(field).and_then(Value::as_i64).unwrap_or(0);
    let kept = number("desiredHealthy") > 0 && number("currentHealthy") >= number("desiredHealthy");
    !ready && (kept || budget.str_at("/spec/unhealthyPodEvictionPolicy") == "AlwaysAllow")
}

/// Pods that do not run, or are going already, disrupt nobody.
fn needs_budget(pod: &Object) -> bool {
    !pod.is_terminating() && !matches!(pod.str_at("/status/phase"), "Succeeded" | "Failed" | "Pending" | "")
}

fn spend(budget: &mut Object, pod: &Object) -> Result<(), Status> {
    let name = budget.name().to_owned();
    let number = |b: &Object, field: &str| b.get("status").get(field).and_then(Value::as_i64).unwrap_or(0);
    if number(budget, "observedGeneration") < budget.generation() {
        return Err(too_many(&format!("The disruption budget {name} is still being processed by the server."))
            .retry_after(RETRY_SECONDS));
    }
    let allowed = number(budget, "disruptionsAllowed");
    let disrupted = budget.pointer("/status/disruptedPods").and_then(Value::as_object).map_or(0, |m| m.len());
    if allowed < 0 || disrupted > MAX_DISRUPTED {
        let resource = edge_api::GroupResource::new("policy", "poddisruptionbudgets");
        return Err(Status::forbidden(
            &resource,
            &name,
            "pdb disruptions allowed is negative or its disrupted pods are too many",
        ));
    }
    if allowed == 0 {
        let (healthy, desired) = (number(budget, "currentHealthy"), number(budget, "desiredHealthy"));
        return Err(too_many(&format!(
            "The disruption budget {name} needs {desired} healthy pods and has {healthy} currently"
        )));
    }
    let status = budget.section_mut("status");
    status.insert("disruptionsAllowed".into(), (allowed - 1).into());
    let pods = edge_api::object::object_entry(status, "disruptedPods");
    pods.insert(pod.name().to_owned(), edge_api::meta::now().into());
    Ok(())
}

fn too_many(cause: &str) -> Status {
    let mut status = Status::new(
        429,
        edge_api::Reason::TooManyRequests,
        "Cannot evict pod as it would violate the pod's disruption budget.",
    );
    status.details.get_or_insert_default().causes.push(StatusCause {
        reason: "DisruptionBudget".into(),
        message: cause.to_owned(),
        field: String::new(),
    });
    status
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn a_budget_is_spent_down_to_nothing() {
        let pod = Object::from_value(json!({"metadata": {"name": "p"}})).unwrap();
        let mut budget = Object::from_value(json!({"metadata": {"name": "b", "generation": 1}, "status":
            {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1}}))
        .unwrap();
        spend(&mut budget, &pod).unwrap();
        assert!(budget.pointer("/status/disruptedPods/p").unwrap().is_string());
        let e = spend(&mut budget, &pod).unwrap_err();
        assert_eq!((e.code, e.details.unwrap().causes[0].reason.as_str()), (429, "DisruptionBudget"));
        budget.metadata_mut().insert("generation".into(), 2.into());
        assert_eq!(spend(&mut budget, &pod).unwrap_err().details.unwrap().retry_after_seconds, 10);
    }

    #[test]
    fn pods_that_are_not_ready_cost_nothing_where_the_others_suffice() {
        let pod = |ready: &str| {
            Object::from_value(json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}})).unwrap()
        };
        let budget = |policy: &str, healthy: i64, desired: i64| {
            Object::from_value(json!({"spec": {"unhealthyPodEvictionPolicy": policy},
                "status": {"currentHealthy": healthy, "desiredHealthy": desired}}))
            .unwrap()
        };
        for (policy, healthy, desired, ready, want) in [
            ("", 2, 2, "False", true),
            ("IfHealthyBudget", 1, 2, "False", false),
            ("IfHealthyBudget", 0, 0, "False", false),
            ("AlwaysAllow", 0, 2, "False", true),
            ("AlwaysAllow", 2, 2, "True", false),
        ] {
            assert_eq!(
                costs_nothing(&budget(policy, healthy, desired), &pod(ready)),
                want,
                "{policy} {healthy} {desired}"
            );
        }
        let mut evicted = pod("True");
        set_evicted(&mut evicted);
        set_evicted(&mut evicted);
        assert_eq!(evicted.pointer("/status/conditions/1/reason").unwrap(), "EvictionByEvictionAPI");
        assert!(evicted.pointer("/status/conditions/2").is_none());
    }
}
