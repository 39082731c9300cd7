//! What makes pods: selectors that fit their templates, numbers that make sense, what may not change.

use super::{Strategy, immutable, template};
use edge_api::Object;
use edge_api::cron::Schedule;
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
    validate: |o, errors| selected_template(&with_claims(o), errors),
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
        job(o, errors);
    },
    validate_update: |new, live, errors| {
        for pointer in [
            "/spec/selector",
            "/spec/completionMode",
            "/spec/podFailurePolicy",
            "/spec/successPolicy",
            "/spec/backoffLimitPerIndex",
            "/spec/managedBy",
        ] {
            immutable(new, live, pointer, errors);
        }
        let at = |o: &Object, field: &str| o.get("spec").get(field).cloned();
        // an indexed Job may grow and shrink as a whole
        let elastic = |o: &Object| {
            at(o, "completionMode") == Some("Indexed".into()) && at(o, "completions") == at(o, "parallelism")
        };
        if !(elastic(new) && elastic(live)) {
            immutable(new, live, "/spec/completions", errors);
        }
        if live.pointer("/spec/suspend") != Some(&Value::Bool(true)) {
            immutable(new, live, "/spec/template", errors);
        }
    },
    ..BASE
};

pub(crate) static CRON_JOB: Strategy = Strategy {
    validate: |o, errors| {
        let path = Path::new("spec");
        schedule(o, &path, errors);
        let spec = &o.get("spec")["jobTemplate"]["spec"]["template"]["spec"];
        template::pod_spec(spec, &path.child("jobTemplate").child("spec").child("template").child("spec"), errors);
    },
    ..BASE
};

/// What belongs together in a Job.
fn job(o: &Object, errors: &mut ErrorList) {
    /// No more pods of an indexed Job may run at once (Kubernetes' value).
    const MOST_INDEXED: i64 = 100_000;
    let path = Path::new("spec");
    let spec = o.get("spec");
    let has = |field: &str| spec.get(field).is_some_and(|v| !v.is_null());
    let value = |field: &str| spec.get(field).cloned().unwrap_or_default();
    for field in ["activeDeadlineSeconds", "ttlSecondsAfterFinished", "backoffLimitPerIndex", "maxFailedIndexes"] {
        if let Some(n) = spec.get(field).and_then(Value::as_i64).filter(|n| *n < 0) {
            errors.invalid(&path.child(field), &n.into(), "must be greater than or equal to 0");
        }
    }
    let mode = o.str_at("/spec/completionMode");
    let indexed = mode == "Indexed";
    if !["", "Indexed", "NonIndexed"].contains(&mode) {
        errors.not_supported(&path.child("completionMode"), &mode.into(), &["Indexed", "NonIndexed"]);
    }
    if indexed && !has("completions") {
        errors.required(&path.child("completions"), "when completion mode is Indexed");
    }
    if let Some(n) = value("parallelism").as_i64().filter(|n| indexed && *n > MOST_INDEXED) {
        let text = format!("must be less than or equal to {MOST_INDEXED} when completion mode is Indexed");
        errors.invalid(&path.child("parallelism"), &n.into(), &text);
    }
    for field in ["backoffLimitPerIndex", "successPolicy"] {
        if has(field) && !indexed {
            errors.invalid(&path.child(field), &value(field), "requires indexed completion mode");
        }
    }
    if has("maxFailedIndexes") && !has("backoffLimitPerIndex") {
        errors.required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified");
    }
    let at = path.child("template").child("spec").child("restartPolicy");
    match o.str_at("/spec/template/spec/restartPolicy") {
        "" | "Always" => errors.required(&at, "valid values: \"OnFailure\", \"Never\""),
        "OnFailure" if has("podFailurePolicy") => {
            let text = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.invalid(&at, &"OnFailure".into(), text);
        }
        _ => {}
    }
    let replacement = o.str_at("/spec/podReplacementPolicy");
    let known: &[&str] = if has("podFailurePolicy") { &["Failed"] } else { &["Failed", "TerminatingOrFailed"] };
    if !replacement.is_empty() && !known.contains(&replacement) {
        errors.not_supported(&path.child("podReplacementPolicy"), &replacement.into(), known);
    }
}

/// A schedule that can be read, in a time zone that exists.
fn schedule(o: &Object, path: &Path, errors: &mut ErrorList) {
    let (line, at) = (o.str_at("/spec/schedule"), path.child("schedule"));
    let zone = o.pointer("/spec/timeZone").and_then(Value::as_str);
    match Schedule::parse(line) {
        _ if line.is_empty() => errors.required(&at, ""),
        Err(why) => errors.invalid(&at, &line.into(), &why.to_string()),
        Ok(s) if s.names_zone() && zone.is_some() => {
            errors.invalid(&at, &line.into(), "cannot use both timeZone field and TZ or CRON_TZ in schedule");
        }
        Ok(s) if s.names_zone() => {
            errors.invalid(&at, &line.into(), "cannot use TZ or CRON_TZ in schedule, use timeZone field instead");
        }
        Ok(_) => {}
    }
    if let Some(zone) = zone {
        let at = path.child("timeZone");
        if zone.is_empty() {
            errors.invalid(&at, &zone.into(), "timeZone must be nil or non-empty string");
        } else if zone.eq_ignore_ascii_case("local") {
            errors.invalid(
                &at,
                &zone.into(),
                "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones",
            );
        } else if jiff::tz::TimeZone::get(zone).is_err() {
            errors.invalid(&at, &zone.into(), &format!("unknown time zone {zone}"));
        }
    }
    let policy = o.str_at("/spec/concurrencyPolicy");
    let known = ["Allow", "Forbid", "Replace"];
    if !policy.is_empty() && !known.contains(&policy) {
        errors.not_supported(&path.child("concurrencyPolicy"), &policy.into(), &known);
    }
    for field in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        if let Some(n) = o.get("spec").get(field).and_then(Value::as_i64).filter(|n| *n < 0) {
            errors.invalid(&path.child(field), &n.into(), "must be greater than or equal to 0");
        }
    }
    // a Job's name is its CronJob's and ten digits
    if o.name().len() > 52 {
        errors.invalid(&Path::new("metadata").child("name"), &o.name().into(), "must be no more than 52 characters");
    }
}

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

/// A StatefulSet as its pods see it: each claim template is a volume.
fn with_claims(o: &Object) -> Object {
    let claims = o.pointer("/spec/volumeClaimTemplates").and_then(Value::as_array).into_iter().flatten();
    let names: Vec<&Value> = claims.filter_map(|c| c.pointer("/metadata/name")).collect();
    let mut seen = o.clone();
    let template = edge_api::object::object_entry(seen.section_mut("spec"), "template");
    let spec = edge_api::object::object_entry(template, "spec");
    if let Some(volumes) = spec.entry("volumes").or_insert_with(|| json!([])).as_array_mut() {
        volumes.retain(|v| !v.get("name").is_some_and(|n| names.contains(&n)));
        volumes.extend(names.into_iter().map(|n| json!({"name": n, "persistentVolumeClaim": {}})));
    }
    seen
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

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn claims_of_stateful_sets_are_volumes() {
        let set = |mount: &str| {
            Object::from_value(json!({"metadata": {"name": "s"}, "spec": {"selector": {"matchLabels": {"a": "b"}},
                "volumeClaimTemplates": [{"metadata": {"name": "data"}}],
                "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"volumes": [{"name": "data", "emptyDir": {}}],
                    "containers": [{"name": "c", "image": "i", "volumeMounts": [{"name": mount, "mountPath": "/d"}]}]}}}}))
            .unwrap()
        };
        let told = |mount: &str| {
            let mut errors = ErrorList::new();
            (STATEFUL_SET.validate)(&set(mount), &mut errors);
            errors.to_string()
        };
        assert_eq!(told("data"), "");
        assert!(told("other").contains("volumeMounts[0].name"));
    }

    #[test]
    fn what_belongs_together_in_a_job() {
        let told = |spec: Value| {
            let mut whole = json!({"template": {"spec": {"restartPolicy": "Never"}}});
            whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
            let mut errors = ErrorList::new();
            job(&Object::from_value(json!({"spec": whole})).unwrap(), &mut errors);
            errors.to_string()
        };
        let on_failure = json!({"spec": {"restartPolicy": "OnFailure"}});
        for (spec, part) in [
            (json!({}), ""),
            (
                json!({"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1, "maxFailedIndexes": 1}),
                "",
            ),
            (json!({"completionMode": "Indexed"}), "spec.completions: Required value: when completion mode is Indexed"),
            (json!({"completionMode": "Some"}), "spec.completionMode: Unsupported value"),
            (
                json!({"backoffLimitPerIndex": 1}),
                "spec.backoffLimitPerIndex: Invalid value: 1: requires indexed completion mode",
            ),
            (
                json!({"maxFailedIndexes": 1}),
                "spec.backoffLimitPerIndex: Required value: when maxFailedIndexes is specified",
            ),
            (json!({"successPolicy": {"rules": []}}), "spec.successPolicy"),
            (json!({"podFailurePolicy": {"rules": []}, "template": on_failure}), "only \"Never\" is supported"),
            (
                json!({"podFailurePolicy": {"rules": []}, "podReplacementPolicy": "TerminatingOrFailed"}),
                "spec.podReplacementPolicy: Unsupported value",
            ),
            (
                json!({"template": {"spec": {"restartPolicy": "Always"}}}),
                "spec.template.spec.restartPolicy: Required value",
            ),
            (json!({"ttlSecondsAfterFinished": -1}), "spec.ttlSecondsAfterFinished"),
        ] {
            let text = told(spec.clone());
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{spec}: {text:?}");
        }
        let job = |completions: i64, parallelism: i64, mode: &str| {
            Object::from_value(
                json!({"spec": {"completions": completions, "parallelism": parallelism, "completionMode": mode}}),
            )
            .unwrap()
        };
        let changed = |new: &Object, live: &Object| {
            let mut errors = ErrorList::new();
            (JOB.validate_update)(new, live, &mut errors);
            errors.to_string()
        };
        assert_eq!(changed(&job(5, 5, "Indexed"), &job(3, 3, "Indexed")), "", "as a whole");
        assert!(changed(&job(5, 3, "Indexed"), &job(3, 3, "Indexed")).contains("spec.completions"));
        assert!(changed(&job(5, 5, "NonIndexed"), &job(3, 3, "NonIndexed")).contains("spec.completions"));
        assert_eq!(changed(&job(3, 9, "NonIndexed"), &job(3, 3, "NonIndexed")), "");
    }

    #[test]
    fn cron_jobs_have_schedules_that_can_be_read() {
        let told = |spec: Value| {
            let o = Object::from_value(json!({"metadata": {"name": "c"}, "spec": spec})).unwrap();
            let mut errors = ErrorList::new();
            schedule(&o, &Path::new("spec"), &mut errors);
            errors.to_string()
        };
        for (spec, part) in [
            (json!({"schedule": "*/5 * * * *", "timeZone": "Europe/Berlin"}), ""),
            (json!({"schedule": "@hourly", "concurrencyPolicy": "Forbid"}), ""),
            (json!({}), "spec.schedule: Required value"),
            (json!({"schedule": "soon"}), "expected exactly 5 fields, found 1: [soon]"),
            (json!({"schedule": "TZ=UTC 0 0 * * *"}), "use timeZone field instead"),
            (json!({"schedule": "0 0 * * *", "timeZone": "Nowhere/Land"}), "unknown time zone Nowhere/Land"),
            (json!({"schedule": "0 0 * * *", "timeZone": "local"}), "must be an explicit time zone"),
            (
                json!({"schedule": "0 0 * * *", "concurrencyPolicy": "Sometimes"}),
                "spec.concurrencyPolicy: Unsupported value",
            ),
            (json!({"schedule": "0 0 * * *", "startingDeadlineSeconds": -1}), "spec.startingDeadlineSeconds"),
        ] {
            let text = told(spec.clone());
            assert!(if part.is_empty() { text.is_empty() } else { text.contains(part) }, "{spec}: {text:?}");
        }
    }
}
