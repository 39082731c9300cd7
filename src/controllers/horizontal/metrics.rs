//! Where metrics come from: the APIs `metrics.k8s.io`, `custom.metrics.k8s.io` and `external.metrics.k8s.io`.

use super::replicas::{Measure, Measures};
use super::target::{self, Resources};
use crate::context::message;
use edge_api::selector::LabelSelector;
use edge_api::{Quantity, duration};
use edge_client::{Client, Error};
use k8s_openapi::api::autoscaling::v2::CrossVersionObjectReference;
use k8s_openapi::jiff::Timestamp;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::time::Duration;

/// The time that a custom metric was measured over, where it does not say.
const CUSTOM_WINDOW: Duration = Duration::from_secs(60);

/// Why there is no metric.
#[derive(Debug, thiserror::Error)]
pub(super) enum Missing {
    #[error("unable to fetch metrics from {api} metrics API: {reason}")]
    Refused { api: &'static str, reason: String },
    #[error("no metrics returned from {api} metrics API")]
    Nothing { api: &'static str },
    #[error("failed to get container metrics: container {container} not present in metrics for pod {namespace}/{pod}")]
    NoContainer { container: String, namespace: String, pod: String },
    #[error("no known available metric versions found")]
    NotServed,
}

/// Reads metrics under the controller's identity.
pub(super) struct Metrics<'a> {
    pub(super) client: &'a Client,
    pub(super) resources: &'a Resources,
    pub(super) namespace: &'a str,
}

impl Metrics<'_> {
    /// What the selected pods (or, named, one of their containers) use of a resource. Pods of which that is not told are
    /// left out.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) async fn resource(
        &self,
        selector: &str,
        resource: &str,
        container: Option<&str>,
    ) -> Result<Measures, Missing> {
        let path = format!("/apis/metrics.k8s.io/v1beta1/namespaces/{}/pods", self.namespace);
        let list: List<PodMetrics> = self.read("resource", &path, &[("labelSelector", selector)]).await?;
        if list.items.is_empty() {
            return Err(Missing::Nothing { api: "resource" });
        }
        let mut measures = Measures::new();
        for pod in list.items {
            let value = match container {
                None => pod.total(resource),
                Some(container) => pod.of_container(container, resource)?,
            };
            if let Some(value) = value {
                measures.insert(pod.metadata.name.clone(), pod.measure(value));
            }
        }
        Ok(measures)
    }

    /// A custom metric of the selected pods.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) async fn of_pods(
        &self,
        selector: &str,
        metric: &str,
        metric_selector: &LabelSelector,
    ) -> Result<Measures, Missing> {
        let version = self.custom_version().await?;
        let path = format!("/apis/{version}/namespaces/{}/pods/*/{}", self.namespace, target::segment(metric));
        let labels = metric_selector.to_string();
        let query = [("labelSelector", selector), ("metricLabelSelector", &labels)];
        let list: List<MetricValue> = self.read("custom", &path, &query).await?;
        if list.items.is_empty() {
            return Err(Missing::Nothing { api: "custom" });
        }
        let measure = |m: MetricValue| {
            let window = m.window_seconds.map_or(CUSTOM_WINDOW, Duration::from_secs);
            Some((m.described_object.name, Measure { value: milli(&m.value)?, at: m.timestamp, window }))
        };
        Ok(list.items.into_iter().filter_map(measure).collect())
    }

    /// A custom metric of an object, in thousandths.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) async fn of_object(
        &self,
        object: &CrossVersionObjectReference,
        metric: &str,
        metric_selector: &LabelSelector,
    ) -> Result<i64, Missing> {
        let version = self.custom_version().await?;
        let (namespace, metric) = (self.namespace, target::segment(metric));
        let group = object.api_version.as_deref().and_then(|v| v.split_once('/')).map_or("", |(group, _)| group);
        // an autoscaler sees its own namespace, whatever name it gives
        let path = if group.is_empty() && object.kind == "Namespace" {
            format!("/apis/{version}/namespaces/{namespace}/metrics/{metric}")
        } else {
            let found = self.resources.find(self.client, object).await;
            let resource = found.map_err(|e| Missing::Refused { api: "custom", reason: e.to_string() })?;
            let name = target::segment(&object.name);
            format!("/apis/{version}/namespaces/{namespace}/{}/{name}/{metric}", resource.group_resource())
        };
        let labels = metric_selector.to_string();
        let list: List<MetricValue> = self.read("custom", &path, &[("metricLabelSelector", &labels)]).await?;
        list.items.first().and_then(|m| milli(&m.value)).ok_or(Missing::Nothing { api: "custom" })
    }

    /// All values of an external metric together, in thousandths.
    ///
    /// # Errors
    /// [`Missing`].
    pub(super) async fn external(&self, metric: &str, selector: &LabelSelector) -> Result<i64, Missing> {
        let path =
            format!("/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}", self.namespace, target::segment(metric));
        let labels = selector.to_string();
        let list: List<ExternalValue> = self.read("external", &path, &[("labelSelector", &labels)]).await?;
        if list.items.is_empty() {
            return Err(Missing::Nothing { api: "external" });
        }
        Ok(list.items.iter().filter_map(|m| milli(&m.value)).fold(0, i64::saturating_add))
    }

    /// Group and version of the custom metrics that are served.
    async fn custom_version(&self) -> Result<String, Missing> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Group {
            preferred_version: Version,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Version {
            group_version: String,
        }
        match target::get::<Group>(self.client, "/apis/custom.metrics.k8s.io").await {
            Ok(group) => Ok(group.preferred_version.group_version),
            Err(e) if edge_client::is_not_found(&e) => {
                Err(Missing::Refused { api: "custom", reason: Missing::NotServed.to_string() })
            }
            Err(e) => Err(refused("custom", &e)),
        }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        api: &'static str,
        path: &str,
        query: &[(&str, &str)],
    ) -> Result<T, Missing> {
        let query: Vec<String> = query
            .iter()
            .filter(|(_, value)| !value.is_empty())
            .map(|(name, value)| format!("{name}={}", target::segment(value)))
            .collect();
        let uri = if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) };
        target::get(self.client, &uri).await.map_err(|e| refused(api, &e))
    }
}

fn refused(api: &'static str, error: &Error) -> Missing {
    Missing::Refused { api, reason: message(error) }
}

/// In thousandths.
fn milli(quantity: &str) -> Option<i64> {
    Quantity::parse(quantity).ok().map(|q| q.milli_value())
}

#[derive(Deserialize)]
struct List<T> {
    #[serde(default = "Vec::new")]
    items: Vec<T>,
}

#[derive(Deserialize)]
struct Metadata {
    name: String,
    #[serde(default)]
    namespace: String,
}

#[derive(Deserialize)]
struct PodMetrics {
    metadata: Metadata,
    timestamp: Timestamp,
    window: String,
    #[serde(default)]
    containers: Vec<ContainerMetrics>,
}

#[derive(Deserialize)]
struct ContainerMetrics {
    name: String,
    #[serde(default)]
    usage: BTreeMap<String, String>,
}

impl ContainerMetrics {
    fn of(&self, resource: &str) -> Option<i64> {
        milli(self.usage.get(resource)?)
    }
}

impl PodMetrics {
    /// `None` when one of the containers does not tell it.
    fn total(&self, resource: &str) -> Option<i64> {
        let first = self.containers.first()?.of(resource)?;
        self.containers.iter().skip(1).try_fold(first, |sum, c| Some(sum.saturating_add(c.of(resource)?)))
    }

    fn of_container(&self, container: &str, resource: &str) -> Result<Option<i64>, Missing> {
        let found = self.containers.iter().find(|c| c.name == container);
        found.map(|c| c.of(resource)).ok_or_else(|| Missing::NoContainer {
            container: container.to_owned(),
            namespace: self.metadata.namespace.clone(),
            pod: self.metadata.name.clone(),
        })
    }

    fn measure(&self, value: i64) -> Measure {
        let window = duration::parse(&self.window).and_then(|n| u64::try_from(n).ok()).unwrap_or_default();
        Measure { value, at: self.timestamp, window: Duration::from_nanos(window) }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct MetricValue {
    described_object: Metadata,
    timestamp: Timestamp,
    #[serde(default)]
    window_seconds: Option<u64>,
    value: String,
}

#[derive(Deserialize)]
struct ExternalValue {
    value: String,
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
