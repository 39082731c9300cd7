//! A kubelet's counters at one moment, and the rates between two.

use edge_api::meta::parse_time;
use serde::Deserialize;
use std::collections::HashMap;

/// Shortest time since a container's start over which its use is told, in nanoseconds.
const LEAST_AGE: i64 = 1_000_000_000;
/// A container that is older than that has an earlier sample, or none that can be trusted, in nanoseconds.
const MOST_AGE: i64 = 60_000_000_000;

/// Counters of something at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Point {
    /// When, in nanoseconds since 1970 on the node's clock.
    at: i64,
    /// When it began and the counter was zero; zero where that is not known.
    started: i64,
    /// Processor time used since it began, in nanoseconds.
    cpu: i64,
    /// Working set in bytes.
    memory: i64,
}

/// What something uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rate {
    /// When, in nanoseconds since 1970 on the node's clock.
    pub(crate) at: i64,
    /// Over which time, in nanoseconds; more than zero.
    pub(crate) window: i64,
    /// Processors, in thousand-millionths of one.
    pub(crate) cpu: i64,
    /// Working set in bytes.
    pub(crate) memory: i64,
}

impl Point {
    /// The use since an earlier moment, or since it began when that is later; `None` when neither can be told.
    fn since(&self, earlier: Option<&Self>) -> Option<Rate> {
        let (from, used) = match earlier {
            // a counter that runs backwards belongs to something else
            Some(e) if e.started == self.started && e.at < self.at && e.cpu <= self.cpu => (e.at, self.cpu - e.cpu),
            _ if self.started > 0 && (LEAST_AGE..=MOST_AGE).contains(&(self.at - self.started)) => {
                (self.started, self.cpu)
            }
            _ => return None,
        };
        let window = self.at - from;
        let cpu = i128::from(used) * 1_000_000_000 / i128::from(window);
        Some(Rate { at: self.at, window, cpu: i64::try_from(cpu).ok()?, memory: self.memory })
    }
}

/// Namespace and name of a pod.
type PodName = (String, String);

/// A kubelet's counters.
#[derive(Debug, Default)]
pub(super) struct Sample {
    node: Option<Point>,
    /// The running containers of each pod with their names.
    pods: HashMap<PodName, Vec<(String, Point)>>,
}

impl Sample {
    /// Reads a kubelet's `stats/summary`.
    ///
    /// # Errors
    /// When it is none.
    pub(super) fn read(json: &[u8]) -> Result<Self, serde_json::Error> {
        let summary: Summary = serde_json::from_slice(json)?;
        let pods = summary.pods.into_iter().map(|pod| {
            let containers = pod.containers.into_iter().filter_map(|c| {
                let point = c.counters.point(c.start_time.as_deref())?;
                Some((c.name, point))
            });
            ((pod.pod_ref.namespace, pod.pod_ref.name), containers.collect())
        });
        Ok(Self { node: summary.node.point(None), pods: pods.collect() })
    }

    /// What the node uses since an earlier moment.
    pub(super) fn node_since(&self, earlier: &Self) -> Option<Rate> {
        self.node?.since(earlier.node.as_ref())
    }

    /// What the containers of a pod use; `None` when that is not known of all, or none runs.
    pub(super) fn pod_since(&self, earlier: &Self, namespace: &str, name: &str) -> Option<Vec<(&str, Rate)>> {
        let key = (namespace.to_owned(), name.to_owned());
        let before = earlier.pods.get(&key);
        let of = |container: &str| before?.iter().find(|(n, _)| n == container).map(|(_, point)| point);
        let now = self.pods.get(&key).filter(|containers| !containers.is_empty())?;
        now.iter().map(|(name, point)| Some((name.as_str(), point.since(of(name))?))).collect()
    }
}

/// As much of the kubelet's answer as is of interest.
#[derive(Deserialize)]
struct Summary {
    node: Counters,
    #[serde(default)]
    pods: Vec<Pod>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Pod {
    pod_ref: PodRef,
    #[serde(default)]
    containers: Vec<Container>,
}

#[derive(Deserialize)]
struct PodRef {
    name: String,
    namespace: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Container {
    name: String,
    #[serde(default)]
    start_time: Option<String>,
    #[serde(flatten)]
    counters: Counters,
}

#[derive(Deserialize)]
struct Counters {
    #[serde(default)]
    cpu: Option<Cpu>,
    #[serde(default)]
    memory: Option<Memory>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cpu {
    time: String,
    #[serde(default)]
    usage_core_nano_seconds: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Memory {
    #[serde(default)]
    working_set_bytes: u64,
}

impl Counters {
    fn point(&self, started: Option<&str>) -> Option<Point> {
        let nanos = |text: &str| i64::try_from(parse_time(text)?.as_nanosecond()).ok();
        let (cpu, memory) = (self.cpu.as_ref()?, self.memory.as_ref()?);
        Some(Point {
            at: nanos(&cpu.time)?,
            started: started.and_then(nanos).unwrap_or_default(),
            cpu: i64::try_from(cpu.usage_core_nano_seconds).ok()?,
            memory: i64::try_from(memory.working_set_bytes).ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    const S: i64 = 1_000_000_000;

    #[test]
    fn rates_are_over_what_can_be_told() {
        let point = |at: i64, started: i64, cpu: i64| Point { at: at * S, started: started * S, cpu, memory: 7 };
        let cases = [
            // half a processor over ten seconds
            (point(110, 1, 9 * S), Some(point(100, 1, 4 * S)), Some((10, 500_000_000))),
            // began since the earlier moment
            (point(110, 105, 5 * S), None, Some((5, S))),
            // another one of the same name, though its counter is greater
            (point(110, 105, 10 * S), Some(point(100, 1, 4 * S)), Some((5, 2 * S))),
            // only just begun, or begun at a time that nobody saw
            (point(110, 110, 0), None, None),
            (point(110, 1, 9 * S), None, None),
            // a node has no known beginning
            (point(110, 0, 9 * S), None, None),
            // a counter or a clock that ran backwards
            (point(110, 1, 3 * S), Some(point(100, 1, 4 * S)), None),
            (point(90, 1, 9 * S), Some(point(100, 1, 4 * S)), None),
        ];
        for (now, earlier, want) in cases {
            let rate = now.since(earlier.as_ref());
            assert_eq!(rate.map(|r| (r.window / S, r.cpu)), want, "{now:?} {earlier:?}");
            assert!(rate.is_none_or(|r| r.memory == 7 && r.at == now.at));
        }
    }

    fn summary(second: i64, containers: &[(&str, &str, u64)]) -> Sample {
        let time = |s: i64| jiff::Timestamp::from_second(s).unwrap();
        let figures = |cpu: u64| {
            (
                json!({"time": time(second), "usageCoreNanoSeconds": cpu}),
                json!({"time": time(second), "workingSetBytes": 9}),
            )
        };
        let pod = |(pod, container, cpu): &(&str, &str, u64)| -> Value {
            let (cpu, memory) = figures(*cpu);
            json!({"podRef": {"name": pod, "namespace": "a", "uid": "u"}, "startTime": time(1), "containers": [
                {"name": container, "startTime": time(1), "cpu": cpu, "memory": memory}]})
        };
        let (cpu, memory) = figures(second.cast_unsigned() * 2_000_000_000);
        let node = json!({"nodeName": "n", "cpu": cpu, "memory": memory, "fs": {}});
        let json = json!({"node": node, "pods": containers.iter().map(pod).collect::<Vec<_>>()});
        Sample::read(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_kubelets_summary_is_read() {
        let (before, now) = (summary(100, &[("p", "c", 0)]), summary(110, &[("p", "c", 1_000_000_000), ("q", "c", 0)]));
        assert_eq!(now.node_since(&before).map(|r| (r.cpu, r.window)), Some((2 * S, 10 * S)));
        let rates = now.pod_since(&before, "a", "p").unwrap();
        assert_eq!(rates, [("c", Rate { at: 110 * S, window: 10 * S, cpu: S / 10, memory: 9 })]);
        assert_eq!(now.pod_since(&before, "a", "q"), None, "nobody saw it begin");
        assert_eq!(now.pod_since(&before, "b", "p"), None);
        assert!(Sample::read(b"{}").is_err());
        let bare =
            Sample::read(br#"{"node": {"nodeName": "n"}, "pods": [{"podRef": {"name": "p", "namespace": "a"}}]}"#);
        assert_eq!(bare.unwrap().pod_since(&before, "a", "p"), None, "no container runs");
    }
}
