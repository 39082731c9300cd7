//! What one metric of an autoscaler asks for: reads it, and compares it with its target.

use super::metrics::Metrics;
use super::replicas::{Circumstances, Proposal};
use edge_api::Quantity;
use edge_api::selector::LabelSelector;
use k8s_openapi::api::autoscaling::v2::{
    ExternalMetricSource, MetricIdentifier, MetricSpec, MetricTarget, ObjectMetricSource, PodsMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use std::fmt::Display;

/// Why a metric asks for nothing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// Of the condition and the event.
    pub(super) reason: &'static str,
    /// What went wrong.
    pub(super) text: String,
    /// The same with what it was about.
    pub(super) whole: String,
}

/// A proposal, and what people call what it follows from.
type Judged = (Proposal, String);

/// Reads and compares.
pub(super) struct Judge<'a> {
    pub(super) metrics: Metrics<'a>,
    /// The pods' selector, as text.
    pub(super) selector: &'a str,
    pub(super) circumstances: Circumstances<'a>,
    /// How many pods the target says it has.
    pub(super) counted: i32,
}

impl Judge<'_> {
    /// What a metric asks for.
    ///
    /// # Errors
    /// [`Failure`].
    pub(super) async fn judge(&self, spec: &MetricSpec) -> Result<Judged, Failure> {
        let (reason, about, result) = match (spec.type_.as_str(), spec) {
            ("Resource", MetricSpec { resource: Some(s), .. }) => (
                "FailedGetResourceMetric",
                format!("failed to get {} resource metric value", s.name),
                self.resource(&s.name, None, &s.target).await,
            ),
            ("ContainerResource", MetricSpec { container_resource: Some(s), .. }) => (
                "FailedGetContainerResourceMetric",
                format!("failed to get {} container metric value", s.container),
                self.resource(&s.name, Some(&s.container), &s.target).await,
            ),
            ("Pods", MetricSpec { pods: Some(s), .. }) => {
                ("FailedGetPodsMetric", "failed to get pods metric value".to_owned(), self.pods(s).await)
            }
            ("Object", MetricSpec { object: Some(s), .. }) => {
                ("FailedGetObjectMetric", "failed to get object metric value".to_owned(), self.object(s).await)
            }
            ("External", MetricSpec { external: Some(s), .. }) => (
                "FailedGetExternalMetric",
                format!("failed to get {} external metric value", s.metric.name),
                self.external(s).await,
            ),
            (other, _) => {
                let text = format!("unknown metric source type {other:?}");
                return Err(Failure { reason: "InvalidMetricSourceType", whole: text.clone(), text });
            }
        };
        result.map_err(|text| Failure { reason, whole: format!("{about}: {text}"), text })
    }

    async fn resource(&self, name: &str, container: Option<&str>, target: &MetricTarget) -> Result<Judged, String> {
        let read = async || {
            let read = self.metrics.resource(self.selector, name, container).await;
            read.map_err(|e| format!("unable to get metrics for resource {name}: {e}"))
        };
        if let Some(wanted) = &target.average_value {
            let usage = |e: &dyn Display| format!("failed to get {name} usage: {e}");
            let measures = read().await.map_err(|e| usage(&e))?;
            let found = self.circumstances.average(measures, name, milli(wanted)?).map_err(|e| usage(&e))?;
            return Ok((found, format!("{name} resource")));
        }
        let Some(percent) = target.average_utilization else {
            return Err("invalid resource metric source: neither an average utilization target nor an average value \
                        (usage) target was set"
                .to_owned());
        };
        let utilization = |e: &dyn Display| format!("failed to get {name} utilization: {e}");
        let measures = read().await.map_err(|e| utilization(&e))?;
        let found = self.circumstances.utilization(measures, name, container, percent).map_err(|e| utilization(&e))?;
        let of = if container.is_some() { "container resource" } else { "resource" };
        Ok((found, format!("{name} {of} utilization (percentage of request)")))
    }

    async fn pods(&self, source: &PodsMetricSource) -> Result<Judged, String> {
        let name = &source.metric.name;
        let target = source.target.average_value.as_ref().map(milli).transpose()?;
        let target = target.ok_or("invalid pods metric source: no average value target was set")?;
        let labels = labels(&source.metric)?;
        let measures = self.metrics.of_pods(self.selector, name, &labels).await;
        let measures = measures.map_err(|e| format!("unable to get metric {name}: {e}"))?;
        let found = self.circumstances.average(measures, "", target).map_err(|e| e.to_string())?;
        Ok((found, format!("pods metric {name}")))
    }

    async fn object(&self, source: &ObjectMetricSource) -> Result<Judged, String> {
        let (name, object, target) = (&source.metric.name, &source.described_object, &source.target);
        let labels = labels(&source.metric)?;
        let read = async || {
            let read = self.metrics.of_object(object, name, &labels).await;
            read.map_err(|e| format!("unable to get metric {name} of {} {}: {e}", object.kind, object.name))
        };
        match (target.type_.as_str(), &target.value, &target.average_value) {
            ("Value", Some(wanted), _) => {
                let found = self.circumstances.total(read().await?, milli(wanted)?).map_err(|e| e.to_string())?;
                Ok((found, format!("{} metric {name}", object.kind)))
            }
            ("AverageValue", _, Some(wanted)) => {
                let used = read().await.map_err(|e| format!("failed to get {name} object metric: {e}"))?;
                let found = self.circumstances.share(used, milli(wanted)?, self.counted);
                Ok((found, format!("{} metric {name}", object.kind)))
            }
            _ => Err("invalid object metric source: neither a value target nor an average value target was set".into()),
        }
    }

    async fn external(&self, source: &ExternalMetricSource) -> Result<Judged, String> {
        let (name, target) = (&source.metric.name, &source.target);
        let labels = labels(&source.metric)?;
        let called = format!("external metric {name}({labels})");
        let read = async || {
            let read = self.metrics.external(name, &labels).await;
            read.map_err(|e| format!("unable to get external metric {}/{name}/{labels}: {e}", self.metrics.namespace))
        };
        if let Some(wanted) = &target.average_value {
            let used = read().await.map_err(|e| format!("failed to get {name} external metric: {e}"))?;
            return Ok((self.circumstances.share(used, milli(wanted)?, self.counted), called));
        }
        let Some(wanted) = &target.value else {
            return Err(
                "invalid external metric source: neither a value target nor an average value target was set".into()
            );
        };
        let failed = |e: &dyn Display| format!("failed to get external metric {name}: {e}");
        let used = read().await.map_err(|e| failed(&e))?;
        let found = self.circumstances.total(used, milli(wanted)?).map_err(|e| failed(&e))?;
        Ok((found, called))
    }
}

/// A target in thousandths, more than zero: validation sees to that, and nothing can be divided by others.
fn milli(quantity: &ApiQuantity) -> Result<i64, String> {
    let value = Quantity::parse(&quantity.0).map_err(|e| e.to_string())?.milli_value();
    if value > 0 { Ok(value) } else { Err(format!("the target {} is not more than zero", quantity.0)) }
}

fn labels(metric: &MetricIdentifier) -> Result<LabelSelector, String> {
    let Some(selector) = &metric.selector else { return Ok(LabelSelector::everything()) };
    let value = serde_json::to_value(selector).map_err(|e| e.to_string())?;
    LabelSelector::from_value(&value).map_err(|e| e.to_string())
}
