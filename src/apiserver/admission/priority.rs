//! `Priority`: priority class names become numbers, and at most one class is everybody's.

use super::{AttributesExt, Cluster};
use edge_api::{Object, Status};
use edge_registry::{Attributes, Operation};
use serde_json::Value;

const GROUP: &str = "scheduling.k8s.io";
const CLASSES: &str = "priorityclasses";

pub(super) async fn admit_pod(cluster: &dyn Cluster, a: &Attributes<'_>, pod: &mut Object) -> Result<(), Status> {
    let name = pod.str_at("/spec/priorityClassName").to_owned();
    let class = if name.is_empty() {
        default_class(cluster).await?
    } else {
        let class = cluster.get(GROUP, CLASSES, "", &name);
        let missing = || a.forbidden(Some(pod), &format!("no PriorityClass with name {name} was found"));
        Some(class.ok_or_else(missing)?)
    };
    let value = class.as_ref().map_or(0, |c| c.get("value").as_i64().unwrap_or(0));
    let policy = class.as_ref().map_or("", |c| c.get("preemptionPolicy").as_str().unwrap_or_default());
    let policy = if policy.is_empty() { "PreemptLowerPriority" } else { policy };
    let given = pod.pointer("/spec/priority").and_then(Value::as_i64);
    if let Some(given) = given.filter(|g| *g != value) {
        let why = format!(
            "the integer value of priority ({given}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        );
        return Err(a.forbidden(Some(pod), &why));
    }
    let given = pod.str_at("/spec/preemptionPolicy");
    if !given.is_empty() && given != policy {
        let why = format!(
            "the string value of PreemptionPolicy ({given}) must not be provided in pod spec; priority admission \
             controller computed {policy} from the given PriorityClass name"
        );
        return Err(a.forbidden(Some(pod), &why));
    }
    let policy = policy.to_owned();
    let spec = pod.section_mut("spec");
    if let Some(class) = class.filter(|_| name.is_empty()) {
        spec.insert("priorityClassName".into(), class.name().into());
    }
    spec.insert("priority".into(), value.into());
    spec.insert("preemptionPolicy".into(), policy.into());
    Ok(())
}

/// The class of pods that name none: of several (a race can make them), the least.
async fn default_class(cluster: &dyn Cluster) -> Result<Option<Object>, Status> {
    let classes = cluster.list_having(GROUP, CLASSES, "\"globalDefault\":true").await?;
    Ok(classes
        .into_iter()
        .filter(|c| c.get("globalDefault").as_bool() == Some(true))
        .min_by_key(|c| c.get("value").as_i64()))
}

pub(super) async fn validate_class(cluster: &dyn Cluster, a: &Attributes<'_>, class: &Object) -> Result<(), Status> {
    if !a.is(GROUP, CLASSES) || class.get("globalDefault").as_bool() != Some(true) {
        return Ok(());
    }
    match default_class(cluster).await? {
        Some(other) if a.operation == Operation::Create || other.name() != class.name() => {
            let why =
                format!("PriorityClass {} is already marked as default. Only one default can exist", other.name());
            Err(a.forbidden(Some(class), &why))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use futures::executor::block_on;
    use serde_json::json;

    fn run(cluster: &Fake, spec: Value) -> Result<Value, String> {
        let mut pod = Object::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        attributes(Operation::Create, POD, "ns", "p", |a| block_on(admit_pod(cluster, a, &mut pod)))
            .map_err(|s| s.message)?;
        Ok(pod.into_value()["spec"].take())
    }

    #[test]
    fn names_become_numbers() {
        let high = json!({"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"});
        let cluster = Fake::default().with("scheduling.k8s.io/priorityclasses//high", high);
        assert_eq!(
            run(&cluster, json!({})).unwrap(),
            json!({"priority": 0, "preemptionPolicy": "PreemptLowerPriority"})
        );
        assert_eq!(
            run(&cluster, json!({"priorityClassName": "high"})).unwrap(),
            json!({"priorityClassName": "high", "priority": 1000, "preemptionPolicy": "Never"})
        );
        assert_eq!(
            run(&cluster, json!({"priorityClassName": "x"})).unwrap_err(),
            "pods \"p\" is forbidden: no PriorityClass with name x was found"
        );
        assert!(run(&cluster, json!({"priority": 5})).unwrap_err().contains("computed 0 from"));
        assert!(run(&cluster, json!({"priorityClassName": "high", "priority": 1000})).is_ok());
    }

    #[test]
    fn one_class_may_be_everybodys() {
        let usual = json!({"metadata": {"name": "usual"}, "value": 7, "globalDefault": true});
        let cluster = Fake::default().with("scheduling.k8s.io/priorityclasses//usual", usual);
        let spec = run(&cluster, json!({})).unwrap();
        assert_eq!((&spec["priorityClassName"], &spec["priority"]), (&json!("usual"), &json!(7)));
        let row = (GROUP, CLASSES, "PriorityClass");
        let other = Object::from_value(json!({"metadata": {"name": "other"}, "globalDefault": true})).unwrap();
        let check = |op, name: &str| attributes(op, row, "", name, |a| block_on(validate_class(&cluster, a, &other)));
        assert_eq!(
            check(Operation::Create, "other").unwrap_err().message,
            "priorityclasses.scheduling.k8s.io \"other\" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"
        );
    }
}
