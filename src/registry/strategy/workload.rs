//! What makes pods: selectors that fit their templates, numbers that make sense, what may not change.

use super::{Strategy, immutable, template};
use edge_api::Object;
use edge_api::field::{ErrorList, Path};
use edge_api::selector::LabelSelector;
use serde_json::{Value, json};

const BASE: Strategy = Strategy { generation: true, ..Strategy::DEFAULT };

pub(crate) static DEPLOYMENT: Strategy = Strategy {
    validate: |o, errors| {
        selected_template(o, errors);
        let strategy = o.str_at("/spec/strategy/type");
        let path = Path::new("spec").child("strategy");
        if strategy == "Recreate" && o.pointer("/spec/strategy/rollingUpdate").is_some_and(|v| !v.is_null()) {
            errors.forbidden(&path.child("rollingUpdate"), "may not be specified when strategy `type` is 'Recreate'");
        } else if !["Recreate", "RollingUpdate"].contains(&strategy) {
            errors.not_supported(&path.child("type"), &strategy.into(), &["Recreate", "RollingUpdate"]);
        }
    },
    validate_update: |new, live, errors| immutable(new, live, "/spec/selector", errors),
    ..BASE
};

pub(crate) static REPLICA_SET: Strategy = Strategy {
    prepare_create: no_pods,
    validate: selected_template,
    validate_update: |new, live, errors| immutable(new, live, "/spec/selector", errors),
    ..BASE
};

pub(crate) static REPLICATION_CONTROLLER: Strategy = Strategy {
    prepare_create: no_pods,
    validate: |o, errors| {
        numbers(o, errors);
        template::pod_spec(
            &o.get("spec")["template"]["spec"],
            &Path::new("spec").child("template").child("spec"),
            errors,
        );
    },
    ..BASE
};

pub(crate) static STATEFUL_SET: Strategy = Strategy {
    prepare_create: no_pods,
    validate: selected_template,
    validate_update: |new, live, errors| {
        for pointer in
            ["/spec/selector", "/spec/serviceName", "/spec/podManagementPolicy", "/spec/volumeClaimTemplates"]
        {
            if new.pointer(pointer) != live.pointer(pointer) {
                errors.forbidden(&Path::new("spec"), "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden");
                return;
            }
        }
    },
    ..BASE
};

pub(crate) static DAEMON_SET: Strategy = Strategy {
    validate: selected_template,
    validate_update: |new, live, errors| immutable(new, live, "/spec/selector", errors),
    ..BASE
};

pub(crate) static JOB: Strategy = Strategy {
    propagation: crate::options::Propagation::Background,
    prepare_create: |o| {
        if o.pointer("/spec/manualSelector") == Some(&Value::Bool(true)) {
            return;
        }
        // pods of a job are recognised by its uid
        let (uid, name) = (o.uid().to_owned(), o.name().to_owned());
        let labels = json!({"batch.kubernetes.io/controller-uid": uid, "controller-uid": uid,
            "batch.kubernetes.io/job-name": name, "job-name": name});
        let spec = o.section_mut("spec");
        let template = edge_api::object::object_entry(spec, "template");
        let meta = edge_api::object::object_entry(template, "metadata");
        let own = edge_api::object::object_entry(meta, "labels");
        own.extend(labels.as_object().cloned().unwrap_or_default());
        spec.insert("selector".into(), json!({"matchLabels": {"batch.kubernetes.io/controller-uid": uid}}));
    },
    validate: |o, errors| {
        selected_template(o, errors);
        let policy = o.get("spec")["template"]["spec"]["restartPolicy"].as_str().unwrap_or_default();
        if !["OnFailure", "Never"].contains(&policy) {
            let path = Path::new("spec").child("template").child("spec").child("restartPolicy");
            if policy == "Always" || policy.is_empty() {
                errors.required(&path, "valid values: \"OnFailure\", \"Never\"");
            }
        }
    },
    validate_update: |new, live, errors| {
        immutable(new, live, "/spec/selector", errors);
        if live.pointer("/spec/suspend") != Some(&Value::Bool(true)) {
            immutable(new, live, "/spec/template", errors);
        }
    },
    ..BASE
};

pub(crate) static CRON_JOB: Strategy = Strategy {
    validate: |o, errors| {
        let path = Path::new("spec");
        if o.str_at("/spec/schedule").is_empty() {
            errors.required(&path.child("schedule"), "");
        }
        let spec = &o.get("spec")["jobTemplate"]["spec"]["template"]["spec"];
        template::pod_spec(spec, &path.child("jobTemplate").child("spec").child("template").child("spec"), errors);
    },
    ..BASE
};

/// A status that says that there are no pods yet.
fn no_pods(o: &mut Object) {
    o.fields_mut().insert("status".into(), json!({"replicas": 0}));
}

fn numbers(o: &Object, errors: &mut ErrorList) {
    for field in [
        "replicas",
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
        "completions",
        "parallelism",
        "backoffLimit",
    ] {
        if let Some(n) = o.get("spec").get(field).and_then(Value::as_i64).filter(|n| *n < 0) {
            errors.invalid(&Path::new("spec").child(field), &n.into(), "must be greater than or equal to 0");
        }
    }
}

/// A template of pods, and a selector that selects them.
fn selected_template(o: &Object, errors: &mut ErrorList) {
    let path = Path::new("spec");
    numbers(o, errors);
    let selector = o.get("spec").get("selector").unwrap_or(&Value::Null);
    let labels = &o.get("spec")["template"]["metadata"]["labels"];
    match LabelSelector::from_value(selector) {
        Err(e) => errors.invalid(&path.child("selector"), selector, &e.to_string()),
        Ok(_) if selector.is_null() => errors.required(&path.child("selector"), ""),
        Ok(s) if s.is_everything() => {
            errors.invalid(&path.child("selector"), selector, "empty selector is invalid for deployment")
        }
        Ok(s) if !s.matches(|k| labels.get(k).and_then(Value::as_str)) => {
            errors.invalid(
                &path.child("template").child("metadata").child("labels"),
                labels,
                "`selector` does not match template `labels`",
            );
        }
        Ok(_) => {}
    }
    template::pod_spec(&o.get("spec")["template"]["spec"], &path.child("template").child("spec"), errors);
}
