//! Computed cells.

use super::human_duration;
use edge_api::selector::LabelSelector;
use edge_api::{Object, Quantity};
use jiff::Timestamp;
use serde_json::Value;

const NONE: &str = "<none>";

fn list<'a>(o: &'a Object, pointer: &str) -> &'a [Value] {
    o.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn int(o: &Object, pointer: &str) -> i64 {
    o.pointer(pointer).and_then(Value::as_i64).unwrap_or(0)
}

fn text<'a>(v: &'a Value, field: &str) -> &'a str {
    v.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn or_nothing(parts: Vec<String>) -> Value {
    if parts.is_empty() { NONE.into() } else { parts.join(",").into() }
}

fn since(timestamp: &str) -> Option<String> {
    let then = edge_api::meta::parse_time(timestamp)?;
    Some(human_duration(Timestamp::now().as_second() - then.as_second()))
}

pub(super) fn length(o: &Object, pointer: &str) -> Value {
    list(o, pointer).len().into()
}

pub(super) fn joined(o: &Object, pointer: &str) -> Value {
    or_nothing(list(o, pointer).iter().filter_map(|v| v.as_str().map(str::to_owned)).collect())
}

pub(super) fn flag(o: &Object, pointer: &str) -> Value {
    (o.pointer(pointer) == Some(&Value::Bool(true))).into()
}

pub(super) fn flag_text(o: &Object, pointer: &str) -> Value {
    if flag(o, pointer) == Value::Bool(true) { "True".into() } else { "False".into() }
}

fn scalar(o: &Object, pointer: &str) -> Option<String> {
    match o.pointer(pointer)? {
        Value::String(s) => Some(s.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    }
}

pub(super) fn or_none(o: &Object, pointer: &str) -> Value {
    scalar(o, pointer).unwrap_or_else(|| NONE.into()).into()
}

/// The phase of a claim or a volume; one that is deleted and still used is `Terminating`.
pub(super) fn phase_or_going(o: &Object) -> Value {
    if o.pointer("/metadata/deletionTimestamp").is_some() { "Terminating".into() } else { or_none(o, "/status/phase") }
}

/// How far a claim to devices is.
pub(super) fn claim_state(o: &Object) -> Value {
    let going = o.pointer("/metadata/deletionTimestamp").is_some();
    let allocated = o.pointer("/status/allocation").is_some_and(|a| !a.is_null());
    let states = [
        (going, "deleted"),
        (!going && !allocated, "pending"),
        (allocated, "allocated"),
        (allocated && !list(o, "/status/reservedFor").is_empty(), "reserved"),
    ];
    states.iter().filter(|(is, _)| *is).map(|(_, name)| *name).collect::<Vec<_>>().join(",").into()
}

/// The Service of an APIService.
pub(super) fn aggregated_service(o: &Object) -> Value {
    match o.pointer("/spec/service") {
        Some(Value::Object(_)) => {
            format!("{}/{}", o.str_at("/spec/service/namespace"), o.str_at("/spec/service/name")).into()
        }
        _ => "Local".into(),
    }
}

/// Whether an APIService is available, and why not.
pub(super) fn availability(o: &Object) -> Value {
    let conditions = list(o, "/status/conditions");
    let Some(condition) = conditions.iter().find(|c| c.get("type").and_then(Value::as_str) == Some("Available")) else {
        return "Unknown".into();
    };
    let text = |name: &str| condition.get(name).and_then(Value::as_str).unwrap_or_default();
    match (text("status"), text("reason")) {
        (status @ "True", _) | (status, "") => status.into(),
        (status, reason) => format!("{status} ({reason})").into(),
    }
}

pub(super) fn or_na(o: &Object, pointer: &str) -> Value {
    scalar(o, pointer).unwrap_or_else(|| "N/A".into()).into()
}

pub(super) fn ratio(o: &Object, part: &str, whole: &str) -> Value {
    format!("{}/{}", int(o, part), int(o, whole)).into()
}

pub(super) fn labels(map: Option<&Value>) -> Value {
    let pairs = map.and_then(Value::as_object).into_iter().flatten();
    or_nothing(pairs.map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect())
}

pub(super) fn selector(value: Option<&Value>) -> Value {
    let parsed = value.and_then(|v| LabelSelector::from_value(v).ok()).map(|s| s.to_string());
    parsed.filter(|s| !s.is_empty()).unwrap_or_else(|| NONE.into()).into()
}

pub(super) fn container_names(o: &Object, pointer: &str) -> Value {
    list(o, pointer).iter().map(|c| text(c, "name")).collect::<Vec<_>>().join(",").into()
}

pub(super) fn container_images(o: &Object, pointer: &str) -> Value {
    list(o, pointer).iter().map(|c| text(c, "image")).collect::<Vec<_>>().join(",").into()
}

fn is_sidecar(o: &Object, name: &str) -> bool {
    list(o, "/spec/initContainers").iter().any(|c| text(c, "name") == name && text(c, "restartPolicy") == "Always")
}

pub(super) fn pod_ready(o: &Object) -> Value {
    let sidecars = list(o, "/spec/initContainers").iter().filter(|c| text(c, "restartPolicy") == "Always").count();
    let total = list(o, "/spec/containers").len() + sidecars;
    let is_ready = |s: &&Value| s.get("ready") == Some(&Value::Bool(true)) && s.pointer("/state/running").is_some();
    let started = list(o, "/status/initContainerStatuses")
        .iter()
        .filter(|s| is_sidecar(o, text(s, "name")) && s.get("started") == Some(&Value::Bool(true)))
        .filter(is_ready)
        .count();
    let ready = list(o, "/status/containerStatuses").iter().filter(is_ready).count() + started;
    format!("{ready}/{total}").into()
}

/// What a container that has ended or waits says about its pod.
fn container_reason(status: &Value) -> Option<String> {
    if let Some(waiting) = status.pointer("/state/waiting").filter(|w| !text(w, "reason").is_empty()) {
        return Some(text(waiting, "reason").to_owned());
    }
    let ended = status.pointer("/state/terminated")?;
    let number = |field: &str| ended.get(field).and_then(Value::as_i64).unwrap_or(0);
    Some(match (text(ended, "reason"), number("signal"), number("exitCode")) {
        ("", 0, code) => format!("ExitCode:{code}"),
        ("", signal, _) => format!("Signal:{signal}"),
        (reason, ..) => reason.to_owned(),
    })
}

/// What the init containers say, as long as they are not through.
fn init_reason(o: &Object) -> Option<String> {
    let total = list(o, "/spec/initContainers").len();
    for (i, status) in list(o, "/status/initContainerStatuses").iter().enumerate() {
        let ended = status.pointer("/state/terminated");
        let succeeded = ended.and_then(|e| e.get("exitCode")).and_then(Value::as_i64) == Some(0);
        let started = is_sidecar(o, text(status, "name")) && status.get("started") == Some(&Value::Bool(true));
        if succeeded || started {
            continue;
        }
        return Some(match container_reason(status).filter(|r| r != "PodInitializing") {
            Some(reason) => format!("Init:{reason}"),
            None => format!("Init:{i}/{total}"),
        });
    }
    None
}

pub(super) fn pod_status(o: &Object) -> Value {
    let phase = o.str_at("/status/phase");
    let mut reason = if o.str_at("/status/reason").is_empty() { phase } else { o.str_at("/status/reason") }.to_owned();
    let condition = |kind: &str, status: &str| {
        list(o, "/status/conditions").iter().find(|c| text(c, "type") == kind && text(c, "status") == status)
    };
    if condition("PodScheduled", "False").is_some_and(|c| text(c, "reason") == "SchedulingGated") {
        reason = "SchedulingGated".into();
    }
    let initializing = init_reason(o).filter(|_| condition("Initialized", "True").is_none());
    if let Some(init) = initializing {
        reason = init;
    } else {
        let statuses = list(o, "/status/containerStatuses");
        if let Some(first) = statuses.iter().find_map(container_reason) {
            reason = first;
        }
        let running = statuses
            .iter()
            .any(|s| s.pointer("/state/running").is_some() && s.get("ready") == Some(&Value::Bool(true)));
        if reason == "Completed" && running {
            reason = if condition("Ready", "True").is_some() { "Running" } else { "NotReady" }.into();
        }
    }
    if o.is_terminating() {
        reason = match o.str_at("/status/reason") {
            "NodeLost" => "Unknown".into(),
            _ if matches!(phase, "Succeeded" | "Failed") => reason,
            _ => "Terminating".into(),
        };
    }
    reason.into()
}

pub(super) fn pod_restarts(o: &Object) -> Value {
    let mut restarts = 0;
    let mut last: Option<&str> = None;
    let sidecars = list(o, "/status/initContainerStatuses").iter().filter(|s| is_sidecar(o, text(s, "name")));
    for status in list(o, "/status/containerStatuses").iter().chain(sidecars) {
        restarts += status.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
        let ended = status.pointer("/lastState/terminated/finishedAt").and_then(Value::as_str);
        last = last.max(ended);
    }
    match last.and_then(since).filter(|_| restarts > 0) {
        Some(ago) => format!("{restarts} ({ago} ago)").into(),
        None => restarts.to_string().into(),
    }
}

pub(super) fn readiness_gates(o: &Object) -> Value {
    let gates = list(o, "/spec/readinessGates");
    if gates.is_empty() {
        return NONE.into();
    }
    let holds = |gate: &&Value| {
        let kind = text(gate, "conditionType");
        list(o, "/status/conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
    };
    format!("{}/{}", gates.iter().filter(holds).count(), gates.len()).into()
}

pub(super) fn load_balancer(o: &Object) -> Value {
    let ingress = list(o, "/status/loadBalancer/ingress");
    let of =
        |i: &Value| if text(i, "ip").is_empty() { text(i, "hostname").to_owned() } else { text(i, "ip").to_owned() };
    ingress.iter().map(of).collect::<Vec<_>>().join(",").into()
}

pub(super) fn external_ip(o: &Object) -> Value {
    let ips = list(o, "/spec/externalIPs").iter().filter_map(|v| v.as_str().map(str::to_owned)).collect::<Vec<_>>();
    match o.str_at("/spec/type") {
        "ExternalName" => or_none(o, "/spec/externalName"),
        "LoadBalancer" => {
            let balanced = load_balancer(o);
            let mut all: Vec<String> =
                balanced.as_str().filter(|s| !s.is_empty()).map(str::to_owned).into_iter().collect();
            all.extend(ips);
            if all.is_empty() { "<pending>".into() } else { all.join(",").into() }
        }
        _ => or_nothing(ips),
    }
}

pub(super) fn service_ports(o: &Object) -> Value {
    let port = |p: &Value| {
        let number = |field: &str| p.get(field).and_then(Value::as_i64).unwrap_or(0);
        match number("nodePort") {
            0 => format!("{}/{}", number("port"), text(p, "protocol")),
            node => format!("{}:{node}/{}", number("port"), text(p, "protocol")),
        }
    };
    or_nothing(list(o, "/spec/ports").iter().map(port).collect())
}

pub(super) fn node_status(o: &Object) -> Value {
    let ready = list(o, "/status/conditions").iter().find(|c| text(c, "type") == "Ready").map(|c| text(c, "status"));
    let mut status = match ready {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if o.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    status.into()
}

pub(super) fn node_roles(o: &Object) -> Value {
    let labels = o.metadata().and_then(|m| m.get("labels")).and_then(Value::as_object);
    let role = |(k, v): (&String, &Value)| {
        let by_name = k.strip_prefix("node-role.kubernetes.io/").filter(|r| !r.is_empty());
        by_name
            .map(str::to_owned)
            .or_else(|| (k == "kubernetes.io/role").then(|| v.as_str().unwrap_or_default().to_owned()))
    };
    or_nothing(labels.into_iter().flatten().filter_map(role).collect())
}

pub(super) fn node_address(o: &Object, kind: &str) -> Value {
    let found = list(o, "/status/addresses").iter().find(|a| text(a, "type") == kind).map(|a| text(a, "address"));
    found.unwrap_or(NONE).into()
}

pub(super) fn config_size(o: &Object) -> Value {
    let size = |field: &str| o.get(field).as_object().map_or(0, |m| m.len());
    (size("data") + size("binaryData")).into()
}

/// The first three of a list, and how many more.
fn first_three(all: &[String]) -> Value {
    if all.len() <= 3 {
        return or_nothing(all.to_vec());
    }
    format!("{} + {} more...", all[..3].join(","), all.len() - 3).into()
}

pub(super) fn endpoints(o: &Object) -> Value {
    let mut all = Vec::new();
    for subset in list(o, "/subsets") {
        let addresses = subset.get("addresses").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let ports = subset.get("ports").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        for a in addresses {
            if ports.is_empty() {
                all.push(text(a, "ip").to_owned());
            }
            all.extend(
                ports
                    .iter()
                    .map(|p| format!("{}:{}", text(a, "ip"), p.get("port").and_then(Value::as_i64).unwrap_or(0))),
            );
        }
    }
    first_three(&all)
}

pub(super) fn slice_ports(o: &Object) -> Value {
    let ports: Vec<String> = list(o, "/ports")
        .iter()
        .map(|p| p.get("port").and_then(Value::as_i64).map_or_else(|| "*".into(), |n| n.to_string()))
        .collect();
    if ports.is_empty() { "<unset>".into() } else { first_three(&ports) }
}

pub(super) fn slice_endpoints(o: &Object) -> Value {
    let all: Vec<String> = list(o, "/endpoints")
        .iter()
        .flat_map(|e| e.get("addresses").and_then(Value::as_array).into_iter().flatten())
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    if all.is_empty() { "<unset>".into() } else { first_three(&all) }
}

pub(super) fn trimmed(text: &str) -> Value {
    text.trim().into()
}

fn event_time(o: &Object, pointers: &[&str]) -> Value {
    let found = pointers.iter().map(|p| o.str_at(p)).find(|t| !t.is_empty());
    found.and_then(since).unwrap_or_else(|| "<unknown>".into()).into()
}

pub(super) fn event_last_seen(o: &Object) -> Value {
    event_time(o, &["/series/lastObservedTime", "/lastTimestamp", "/eventTime"])
}

pub(super) fn event_first_seen(o: &Object) -> Value {
    event_time(o, &["/firstTimestamp", "/eventTime"])
}

pub(super) fn event_object(o: &Object) -> Value {
    format!("{}/{}", o.str_at("/involvedObject/kind").to_lowercase(), o.str_at("/involvedObject/name")).into()
}

pub(super) fn event_source(o: &Object) -> Value {
    let component = match o.str_at("/source/component") {
        "" => o.str_at("/reportingComponent"),
        c => c,
    };
    let host = match o.str_at("/source/host") {
        "" => o.str_at("/reportingInstance"),
        h => h,
    };
    if host.is_empty() { component.into() } else { format!("{component}, {host}").into() }
}

pub(super) fn access_modes(o: &Object) -> Value {
    let modes = match list(o, "/status/accessModes") {
        [] => list(o, "/spec/accessModes"),
        found => found,
    };
    let short = |m: &Value| match m.as_str().unwrap_or_default() {
        "ReadWriteOnce" => "RWO",
        "ReadOnlyMany" => "ROX",
        "ReadWriteMany" => "RWX",
        "ReadWriteOncePod" => "RWOP",
        _ => "",
    };
    modes.iter().map(short).collect::<Vec<_>>().join(",").into()
}

pub(super) fn claim_of(o: &Object) -> Value {
    match o.str_at("/spec/claimRef/name") {
        "" => "".into(),
        name => format!("{}/{name}", o.str_at("/spec/claimRef/namespace")).into(),
    }
}

pub(super) fn quota(o: &Object, limits: bool) -> Value {
    let hard = o.pointer("/status/hard").and_then(Value::as_object);
    let of = |(name, hard): (&String, &Value)| {
        let used = o.get("status").get("used").and_then(|u| u.get(name)).and_then(Value::as_str).unwrap_or("0");
        format!("{name}: {used}/{}", hard.as_str().unwrap_or_default())
    };
    let parts: Vec<String> =
        hard.into_iter().flatten().filter(|(n, _)| n.starts_with("limits") == limits).map(of).collect();
    parts.join(", ").into()
}

pub(super) fn component_status(o: &Object) -> Value {
    let healthy = list(o, "/conditions").iter().any(|c| text(c, "type") == "Healthy" && text(c, "status") == "True");
    if healthy { "Healthy".into() } else { "Unhealthy".into() }
}

pub(super) fn role_ref(o: &Object) -> Value {
    format!("{}/{}", o.str_at("/roleRef/kind"), o.str_at("/roleRef/name")).into()
}

pub(super) fn subjects(o: &Object, kind: &str) -> Value {
    let of = |s: &&Value| text(s, "kind") == kind;
    let name = |s: &Value| match text(s, "namespace") {
        "" => text(s, "name").to_owned(),
        namespace => format!("{namespace}/{}", text(s, "name")),
    };
    list(o, "/subjects").iter().filter(of).map(name).collect::<Vec<_>>().join(", ").into()
}

fn has_condition(o: &Object, kind: &str) -> bool {
    list(o, "/status/conditions").iter().any(|c| text(c, "type") == kind && text(c, "status") == "True")
}

pub(super) fn job_status(o: &Object) -> Value {
    let found = [
        ("Complete", "Complete"),
        ("Failed", "Failed"),
        ("Suspended", "Suspended"),
        ("FailureTarget", "FailureTarget"),
        ("SuccessCriteriaMet", "SuccessCriteriaMet"),
    ]
    .into_iter()
    .find(|(kind, _)| has_condition(o, kind));
    match found {
        Some((_, name)) => name.into(),
        None if o.is_terminating() => "Terminating".into(),
        None => "Running".into(),
    }
}

pub(super) fn job_completions(o: &Object) -> Value {
    let done = int(o, "/status/succeeded");
    match o.pointer("/spec/completions").and_then(Value::as_i64) {
        Some(wanted) => format!("{done}/{wanted}").into(),
        None => match int(o, "/spec/parallelism") {
            n if n > 1 => format!("{done}/1 of {n}").into(),
            _ => format!("{done}/1").into(),
        },
    }
}

pub(super) fn job_duration(o: &Object) -> Value {
    let time = |pointer: &str| edge_api::meta::parse_time(o.str_at(pointer));
    match (time("/status/startTime"), time("/status/completionTime")) {
        (None, _) => "".into(),
        (Some(start), end) => human_duration(end.unwrap_or_else(Timestamp::now).as_second() - start.as_second()).into(),
    }
}

pub(super) fn last_schedule(o: &Object) -> Value {
    since(o.str_at("/status/lastScheduleTime")).unwrap_or_else(|| NONE.into()).into()
}

pub(super) fn controller(o: &Object) -> Value {
    let owners = o.metadata().and_then(|m| m.get("ownerReferences")).and_then(Value::as_array);
    let owner = owners.into_iter().flatten().find(|r| r.get("controller") == Some(&Value::Bool(true)));
    match owner {
        Some(r) => {
            let group = text(r, "apiVersion").split_once('/').map(|(g, _)| format!(".{g}")).unwrap_or_default();
            format!("{}{group}/{}", text(r, "kind").to_lowercase(), text(r, "name")).into()
        }
        None => NONE.into(),
    }
}

pub(super) fn scale_target(o: &Object) -> Value {
    format!("{}/{}", o.str_at("/spec/scaleTargetRef/kind"), o.str_at("/spec/scaleTargetRef/name")).into()
}

/// What the containers of a `PodMetrics` use together of a resource.
pub(super) fn containers_use(o: &Object, resource: &str) -> Value {
    let of = |c: &Value| Quantity::parse(c.get("usage")?.get(resource)?.as_str()?).ok();
    let sum = list(o, "/containers").iter().filter_map(of).reduce(|a, b| a.add(&b));
    sum.unwrap_or(Quantity::ZERO).to_string().into()
}

pub(super) fn ingress_hosts(o: &Object) -> Value {
    let hosts: Vec<String> =
        list(o, "/spec/rules").iter().map(|r| text(r, "host")).filter(|h| !h.is_empty()).map(str::to_owned).collect();
    if hosts.is_empty() { "*".into() } else { first_three(&hosts) }
}

pub(super) fn ingress_ports(o: &Object) -> Value {
    if list(o, "/spec/tls").is_empty() { "80".into() } else { "80, 443".into() }
}

pub(super) fn requested_duration(o: &Object) -> Value {
    o.pointer("/spec/expirationSeconds")
        .and_then(Value::as_i64)
        .map_or_else(|| NONE.into(), |s| human_duration(s).into())
}

pub(super) fn csr_condition(o: &Object) -> Value {
    let conditions = list(o, "/status/conditions");
    let has = |kind: &str| conditions.iter().any(|c| text(c, "type") == kind);
    let mut status = match (has("Denied"), has("Approved")) {
        (true, _) => "Denied".to_owned(),
        (false, true) => "Approved".to_owned(),
        (false, false) => "Pending".to_owned(),
    };
    if has("Failed") {
        status.push_str(",Failed");
    }
    if !o.str_at("/status/certificate").is_empty() {
        status.push_str(",Issued");
    }
    status.into()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    fn pod(v: Value) -> Object {
        Object::from_value(v).unwrap()
    }

    #[test]
    fn the_state_of_a_pod_in_a_word() {
        let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}]});
        let with = |status: Value| pod(json!({"spec": spec, "status": status}));
        assert_eq!(pod_status(&with(json!({"phase": "Pending"}))), "Pending");
        let waiting = |reason: &str| {
            json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"terminated": {"exitCode": 0}}}],
            "containerStatuses": [{"name": "a", "state": {"waiting": {"reason": reason}}}]})
        };
        assert_eq!(pod_status(&with(waiting("ImagePullBackOff"))), "ImagePullBackOff");
        let init = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"running": {}}}]});
        assert_eq!(pod_status(&with(init)), "Init:0/1");
        let crash = json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        assert_eq!(pod_status(&with(crash)), "Init:CrashLoopBackOff");
        let mut going = with(json!({"phase": "Running"}));
        going.set_meta("deletionTimestamp", "2026-01-01T00:00:00Z");
        assert_eq!(pod_status(&going), "Terminating");
        let up = with(
            json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}}]}),
        );
        assert_eq!((pod_ready(&up), pod_restarts(&up)), (json!("1/1"), json!("2")));
    }

    #[test]
    fn services_and_lists() {
        let s = pod(
            json!({"spec": {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080, "protocol": "TCP"}, {"port": 53, "protocol": "UDP"}]}}),
        );
        assert_eq!(service_ports(&s), "80:30080/TCP,53/UDP");
        assert_eq!(external_ip(&s), NONE);
        let all: Vec<String> = (0..5).map(|i| i.to_string()).collect();
        assert_eq!(first_three(&all), "0,1,2 + 2 more...");
    }
}
