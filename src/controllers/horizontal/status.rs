//! What an autoscaler's status says. Pure.

use super::limits::Reason;
use super::replicas::Proposal;
use edge_api::Quantity;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscalerCondition, MetricSpec, MetricStatus,
    MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

/// The conditions of an autoscaler, to be changed one by one.
pub(super) struct Conditions {
    pub(super) list: Vec<HorizontalPodAutoscalerCondition>,
    pub(super) now: Timestamp,
}

impl Conditions {
    /// Sets a condition; its time is that of the last change between true and false.
    pub(super) fn set(&mut self, kind: &str, holds: bool, reason: &str, message: impl Into<String>) {
        let status = if holds { "True" } else { "False" };
        let at = match self.list.iter().position(|c| c.type_ == kind) {
            Some(at) => at,
            None => {
                let new = HorizontalPodAutoscalerCondition { type_: kind.to_owned(), ..Default::default() };
                self.list.push(new);
                self.list.len() - 1
            }
        };
        let condition = &mut self.list[at];
        if condition.status != status {
            condition.last_transition_time = Some(Time(self.now));
        }
        condition.status = status.to_owned();
        condition.reason = Some(reason.to_owned());
        condition.message = Some(message.into());
    }

    /// The same with a reason that has its message.
    pub(super) fn set_reason(&mut self, kind: &str, holds: bool, (reason, message): Reason) {
        self.set(kind, holds, reason, message);
    }
}

fn milli(value: i64) -> ApiQuantity {
    ApiQuantity(Quantity::from_millis(value).to_string())
}

/// What a metric is at the moment.
pub(super) fn metric(spec: &MetricSpec, found: &Proposal) -> MetricStatus {
    let average = || MetricValueStatus {
        average_utilization: found.utilization,
        average_value: Some(milli(found.value)),
        value: None,
    };
    // of something that is shared: for each pod, or as a whole, as the target is meant
    let of = |is_average: bool| match is_average {
        true => average(),
        false => MetricValueStatus { value: Some(milli(found.value)), ..MetricValueStatus::default() },
    };
    MetricStatus {
        type_: spec.type_.clone(),
        resource: spec.resource.as_ref().map(|s| ResourceMetricStatus { name: s.name.clone(), current: average() }),
        container_resource: spec.container_resource.as_ref().map(|s| ContainerResourceMetricStatus {
            name: s.name.clone(),
            container: s.container.clone(),
            current: average(),
        }),
        pods: spec.pods.as_ref().map(|s| PodsMetricStatus { metric: s.metric.clone(), current: average() }),
        object: spec.object.as_ref().map(|s| ObjectMetricStatus {
            described_object: s.described_object.clone(),
            metric: s.metric.clone(),
            current: of(s.target.type_ == "AverageValue"),
        }),
        external: spec
            .external
            .as_ref()
            .map(|s| ExternalMetricStatus { metric: s.metric.clone(), current: of(s.target.average_value.is_some()) }),
    }
}
