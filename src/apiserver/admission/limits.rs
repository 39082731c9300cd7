//! `LimitRanger`: what a container asks for when it does not say, and the least and most it may ask for.

use super::{AttributesExt, Cluster};
use edge_api::quota::{Amounts, amounts};
use edge_api::{Object, Quantity, Status};
use edge_registry::{Attributes, Operation};
use serde_json::{Map, Value};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

/// The items of one type in all limit ranges of the namespace.
fn items(ranges: &[Object], kind: &str) -> Vec<Value> {
    let all = ranges.iter().filter_map(|r| r.pointer("/spec/limits")?.as_array()).flatten();
    all.filter(|i| i.get("type").and_then(Value::as_str) == Some(kind)).cloned().collect()
}

fn containers<'p>(pod: &'p Object, list: &str) -> impl Iterator<Item = &'p Value> {
    pod.pointer(&format!("/spec/{list}")).and_then(Value::as_array).into_iter().flatten()
}

/// Fills in requests and limits that a new pod leaves out.
pub(super) async fn apply_defaults(cluster: &dyn Cluster, a: &Attributes<'_>, pod: &mut Object) -> Result<(), Status> {
    let items = items(&cluster.list("", "limitranges", a.namespace).await?, "Container");
    if items.is_empty() {
        return Ok(());
    }
    let mut notes = Vec::new();
    let spec = pod.section_mut("spec");
    for (list, what) in [("containers", "container"), ("initContainers", "init container")] {
        for c in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let Some(c) = c.as_object_mut() else { continue };
            let name = c.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            for (field, default, word) in [("requests", "defaultRequest", "request"), ("limits", "default", "limit")] {
                let set = fill(c, field, &items, default);
                if !set.is_empty() {
                    notes.push(format!("{} {word} for {what} {name}", set.join(", ")));
                }
            }
        }
    }
    if notes.is_empty() {
        return Ok(());
    }
    let text = format!("LimitRanger plugin set: {}", notes.join("; "));
    let slot = pod.metadata_mut().entry("annotations").or_insert_with(|| Value::Object(Map::new()));
    if slot.is_null() {
        *slot = Value::Object(Map::new());
    }
    if let Some(annotations) = slot.as_object_mut() {
        annotations.insert(ANNOTATION.into(), text.into());
    }
    Ok(())
}

/// Sets what `resources.<field>` lacks from the items' `default`; the names that were set.
fn fill(container: &mut Map<String, Value>, field: &str, items: &[Value], default: &str) -> Vec<String> {
    let mut set = Vec::new();
    for item in items {
        for (name, amount) in item.get(default).and_then(Value::as_object).into_iter().flatten() {
            let resources = container.entry("resources").or_insert_with(|| Value::Object(Map::new()));
            let Some(resources) = resources.as_object_mut() else { return set };
            let wanted = resources.entry(field.to_owned()).or_insert_with(|| Value::Object(Map::new()));
            let Some(wanted) = wanted.as_object_mut() else { return set };
            if !wanted.contains_key(name) {
                wanted.insert(name.clone(), amount.clone());
                set.push(name.clone());
            }
        }
    }
    set.sort();
    set
}

/// Refuses what is beyond the bounds.
pub(super) async fn enforce(cluster: &dyn Cluster, a: &Attributes<'_>, object: &Object) -> Result<(), Status> {
    let is_pod = a.is("", "pods") && a.operation == Operation::Create;
    let is_claim = a.is("", "persistentvolumeclaims");
    if !is_pod && !is_claim {
        return Ok(());
    }
    let ranges = cluster.list("", "limitranges", a.namespace).await?;
    if ranges.is_empty() {
        return Ok(());
    }
    let mut errors = Vec::new();
    if is_claim {
        let requests = amounts(object.pointer("/spec/resources/requests"));
        for item in items(&ranges, "PersistentVolumeClaim") {
            Bounds { kind: "PersistentVolumeClaim", requests: &requests, limits: &requests }.check(&item, &mut errors);
        }
    } else {
        for item in items(&ranges, "Container") {
            for c in containers(object, "containers").chain(containers(object, "initContainers")) {
                let requests = amounts(c.pointer("/resources/requests"));
                let limits = amounts(c.pointer("/resources/limits"));
                Bounds { kind: "Container", requests: &requests, limits: &limits }.check(&item, &mut errors);
            }
        }
        let (requests, limits) = (pod_total(object, "requests"), pod_total(object, "limits"));
        for item in items(&ranges, "Pod") {
            Bounds { kind: "Pod", requests: &requests, limits: &limits }.check(&item, &mut errors);
        }
    }
    match errors.as_slice() {
        [] => Ok(()),
        [one] => Err(a.forbidden(Some(object), one)),
        many => Err(a.forbidden(Some(object), &format!("[{}]", many.join(", ")))),
    }
}

/// What all containers ask for together; init containers run before them, so the greater of both counts.
fn pod_total(pod: &Object, field: &str) -> Amounts {
    let mut total = Amounts::new();
    let pointer = format!("/resources/{field}");
    for c in containers(pod, "containers") {
        for (name, amount) in amounts(c.pointer(&pointer)) {
            let sum = total.get(&name).map_or(amount, |t| t.add(&amount));
            total.insert(name, sum);
        }
    }
    for c in containers(pod, "initContainers") {
        for (name, amount) in amounts(c.pointer(&pointer)) {
            if total.get(&name).is_none_or(|t| *t < amount) {
                total.insert(name, amount);
            }
        }
    }
    total
}

struct Bounds<'a> {
    kind: &'a str,
    requests: &'a Amounts,
    limits: &'a Amounts,
}

impl Bounds<'_> {
    fn check(&self, item: &Value, errors: &mut Vec<String>) {
        for (name, min) in amounts(item.get("min")) {
            self.minimum(&name, &min, errors);
        }
        for (name, max) in amounts(item.get("max")) {
            self.maximum(&name, &max, errors);
        }
        for (name, ratio) in amounts(item.get("maxLimitRequestRatio")) {
            self.ratio(&name, &ratio, errors);
        }
    }

    fn minimum(&self, name: &str, min: &Quantity, errors: &mut Vec<String>) {
        let head = format!("minimum {name} usage per {} is {min}", self.kind);
        match self.requests.get(name) {
            None => errors.push(format!("{head}.  No request is specified")),
            Some(r) if r < min => errors.push(format!("{head}, but request is {r}")),
            Some(_) => {
                if let Some(l) = self.limits.get(name).filter(|l| *l < min) {
                    errors.push(format!("{head}, but limit is {l}"));
                }
            }
        }
    }

    fn maximum(&self, name: &str, max: &Quantity, errors: &mut Vec<String>) {
        let head = format!("maximum {name} usage per {} is {max}", self.kind);
        // a claim has requests only, which stand in for its limits
        let word = if self.kind == "PersistentVolumeClaim" { "request" } else { "limit" };
        match self.limits.get(name) {
            None => errors.push(format!("{head}.  No {word} is specified")),
            Some(l) if l > max => errors.push(format!("{head}, but {word} is {l}")),
            Some(_) => {
                if let Some(r) = self.requests.get(name).filter(|r| *r > max) {
                    errors.push(format!("{head}, but request is {r}"));
                }
            }
        }
    }

    fn ratio(&self, name: &str, most: &Quantity, errors: &mut Vec<String>) {
        let head = format!("{name} max limit to request ratio per {} is {most}", self.kind);
        let positive = |amounts: &Amounts| amounts.get(name).map(Quantity::milli_value).filter(|n| *n > 0);
        let Some(request) = positive(self.requests) else {
            return errors.push(format!("{head}, but no request is specified or request is 0"));
        };
        let Some(limit) = positive(self.limits) else {
            return errors.push(format!("{head}, but no limit is specified or limit is 0"));
        };
        #[expect(clippy::cast_precision_loss, reason = "a ratio shown with six digits")]
        let (given, allowed) = (limit as f64 / request as f64, most.milli_value() as f64 / 1000.0);
        if given > allowed {
            errors.push(format!("{head}, but provided ratio is {given:.6}"));
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use futures::executor::block_on;
    use serde_json::json;

    fn run(items: Value, spec: Value) -> Result<Value, String> {
        let cluster = Fake::default().with("/limitranges/ns/r", json!({"spec": {"limits": items}}));
        let mut pod = Object::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        attributes(Operation::Create, POD, "ns", "p", |a| {
            block_on(apply_defaults(&cluster, a, &mut pod))?;
            block_on(enforce(&cluster, a, &pod))
        })
        .map_err(|s| s.message)?;
        Ok(pod.into_value())
    }

    #[test]
    fn fills_in_defaults_and_says_so() {
        let items =
            json!([{"type": "Container", "default": {"cpu": "1", "memory": "1Gi"}, "defaultRequest": {"cpu": "100m"}}]);
        let spec = json!({"containers": [{"name": "c", "resources": {"limits": {"cpu": "2"}}}]});
        let pod = run(items, spec).unwrap();
        assert_eq!(
            pod["spec"]["containers"][0]["resources"],
            json!({"limits": {"cpu": "2", "memory": "1Gi"}, "requests": {"cpu": "100m"}})
        );
        assert_eq!(
            pod["metadata"]["annotations"][ANNOTATION],
            "LimitRanger plugin set: cpu request for container c; memory limit for container c"
        );
    }

    #[test]
    fn refuses_beyond_the_bounds() {
        let container = |req: &str, lim: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": req}, "limits": {"cpu": lim}}}]});
        let bounds = || json!([{"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}, "maxLimitRequestRatio": {"cpu": "4"}}]);
        run(bounds(), container("500m", "1")).unwrap();
        assert_eq!(
            run(bounds(), container("500m", "2")).unwrap_err(),
            "pods \"p\" is forbidden: maximum cpu usage per Container is 1, but limit is 2"
        );
        assert!(
            run(bounds(), container("50m", "200m"))
                .unwrap_err()
                .contains("minimum cpu usage per Container is 100m, but request is 50m")
        );
        assert!(run(bounds(), container("100m", "1")).unwrap_err().contains("but provided ratio is 10.000000"));
        assert!(run(bounds(), json!({"containers": [{"name": "c"}]})).unwrap_err().contains("No request is specified"));
        let pod = json!([{"type": "Pod", "max": {"cpu": "1"}}]);
        let two = json!({"containers": [
            {"resources": {"limits": {"cpu": "600m"}}}, {"resources": {"limits": {"cpu": "600m"}}}]});
        assert!(run(pod, two).unwrap_err().contains("maximum cpu usage per Pod is 1, but limit is 1200m"));
    }
}
