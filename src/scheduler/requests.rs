//! What pods ask for, and what nodes have.

use edge_api::Quantity;
use k8s_openapi::api::core::v1::{Pod, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use std::sync::Arc;

/// What a container asks for when it asks for nothing, for spreading load: a tenth of a core and 200 MB.
pub(crate) const DEFAULT_CPU: i64 = 100;
/// See [`DEFAULT_CPU`].
pub(crate) const DEFAULT_MEMORY: i64 = 200 << 20;

/// Amounts of resources. The three that nearly every pod has are fields: every decision compares them on every node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// Thousandths of a core.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) ephemeral_storage: i64,
    /// The others, by name, in units or bytes; sorted.
    pub(crate) others: Vec<(Arc<str>, i64)>,
}

impl Amounts {
    /// The amounts that a list of quantities names. Quantities that do not parse count as nothing: validation refuses such.
    pub(crate) fn of_list<'a>(list: impl IntoIterator<Item = (&'a String, &'a Wire)>) -> Self {
        let mut out = Self::default();
        for (name, quantity) in list {
            let Ok(q) = Quantity::parse(&quantity.0) else { continue };
            *out.slot(name) = if name == "cpu" { q.milli_value() } else { q.value() };
        }
        out
    }

    /// How much of a resource.
    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            other => self.others.iter().find(|(n, _)| **n == *other).map_or(0, |(_, n)| *n),
        }
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        match name {
            "cpu" => &mut self.cpu,
            "memory" => &mut self.memory,
            "ephemeral-storage" => &mut self.ephemeral_storage,
            other => {
                let at = match self.others.binary_search_by(|(n, _)| (**n).cmp(other)) {
                    Ok(at) => at,
                    Err(at) => {
                        self.others.insert(at, (other.into(), 0));
                        at
                    }
                };
                &mut self.others[at].1
            }
        }
    }

    fn each(&mut self, other: &Self, f: impl Fn(i64, i64) -> i64) {
        self.cpu = f(self.cpu, other.cpu);
        self.memory = f(self.memory, other.memory);
        self.ephemeral_storage = f(self.ephemeral_storage, other.ephemeral_storage);
        for (name, n) in &other.others {
            let slot = self.slot(name);
            *slot = f(*slot, *n);
        }
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.each(more, i64::saturating_add);
    }

    pub(crate) fn subtract(&mut self, less: &Self) {
        self.each(less, i64::saturating_sub);
    }

    fn raise(&mut self, other: &Self) {
        self.each(other, i64::max);
    }
}

fn requested(resources: Option<&ResourceRequirements>) -> Amounts {
    resources.and_then(|r| r.requests.as_ref()).map(Amounts::of_list).unwrap_or_default()
}

/// What the containers of a pod ask for. `of` tells it for one container.
fn of_containers(pod: &Pod, of: impl Fn(Option<&ResourceRequirements>) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut running = Amounts::default();
    for c in &spec.containers {
        running.add(&of(c.resources.as_ref()));
    }
    let (mut sidecars, mut start) = (Amounts::default(), Amounts::default());
    for c in spec.init_containers.iter().flatten() {
        let mut now = of(c.resources.as_ref());
        if c.restart_policy.as_deref() == Some("Always") {
            sidecars.add(&now);
            start.raise(&sidecars);
        } else {
            now.add(&sidecars);
            start.raise(&now);
        }
    }
    running.add(&sidecars);
    running.raise(&start);
    running
}

/// What a pod asks for: the larger of all its containers together and of its start (each init container together with the
/// sidecars that run by then), or what the pod as a whole says; and its overhead.
pub(crate) fn of(pod: &Pod) -> Amounts {
    with_whole(pod, of_containers(pod, requested))
}

fn with_whole(pod: &Pod, mut amounts: Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return amounts };
    for (name, q) in spec.resources.as_ref().and_then(|r| r.requests.as_ref()).into_iter().flatten() {
        if let Ok(q) = Quantity::parse(&q.0) {
            *amounts.slot(name) = if name == "cpu" { q.milli_value() } else { q.value() };
        }
    }
    if let Some(overhead) = &spec.overhead {
        amounts.add(&Amounts::of_list(overhead));
    }
    amounts
}

/// CPU and memory as they count for spreading load: containers that ask for nothing count as small ones.
pub(crate) fn for_scoring(pod: &Pod) -> (i64, i64) {
    let counted = of_containers(pod, |resources| {
        let requests = resources.and_then(|r| r.requests.as_ref());
        let mut asked = requested(resources);
        if requests.is_none_or(|r| !r.contains_key("cpu")) {
            asked.cpu = DEFAULT_CPU;
        }
        if requests.is_none_or(|r| !r.contains_key("memory")) {
            asked.memory = DEFAULT_MEMORY;
        }
        asked
    });
    let counted = with_whole(pod, counted);
    (counted.cpu, counted.memory)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_sidecars_and_overhead() {
        let c = |name: &str, cpu: &str, always: bool| {
            let mut v = json!({"name": name, "resources": {"requests": {"cpu": cpu, "memory": "1Mi"}}});
            if always {
                v["restartPolicy"] = "Always".into();
            }
            v
        };
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {
            "overhead": {"cpu": "10m"},
            "initContainers": [c("early", "900m", false), c("side", "100m", true), c("late", "700m", false)],
            "containers": [c("a", "200m", false), c("b", "300m", false)]}}))
        .unwrap();
        // start: early 900, late with sidecar 800; running: 200 + 300 + 100
        assert_eq!(of(&pod).cpu, 910);
        assert_eq!(of(&pod).memory, 3 << 20);
        assert_eq!(for_scoring(&pod), (910, 3 << 20));
    }

    #[test]
    fn who_asks_for_nothing_counts_as_small() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {}, "spec": {"containers": [
            {"name": "a"}, {"name": "b", "resources": {"requests": {"cpu": "1"}}}]}}))
        .unwrap();
        assert_eq!(of(&pod), Amounts { cpu: 1000, ..Amounts::default() });
        assert_eq!(for_scoring(&pod), (1100, 400 << 20));
    }

    #[test]
    fn other_resources_stay_sorted() {
        let list = [("z/gpu".to_owned(), Wire("2".into())), ("hugepages-2Mi".to_owned(), Wire("4Mi".into()))];
        let mut amounts = Amounts::of_list(list.iter().map(|(n, q)| (n, q)));
        amounts.add(&amounts.clone());
        assert_eq!((amounts.get("z/gpu"), amounts.get("hugepages-2Mi"), amounts.get("none")), (4, 8 << 20, 0));
        amounts.subtract(&amounts.clone());
        assert_eq!(amounts.get("z/gpu"), 0);
    }
}
