//! `PodSecurity`: the pod security standards that a namespace's labels ask for.
//!
//! `pod-security.kubernetes.io/enforce: baseline|restricted` refuses pods that go beyond the standard. The checks are
//! those of the newest version, whichever the namespace names.

use super::{AttributesExt, Cluster};
use edge_api::{Object, Status};
use edge_registry::Attributes;
use serde_json::Value;

const LABEL: &str = "pod-security.kubernetes.io/enforce";

/// Capabilities that a container may add under `baseline`: those it has by default.
const BASELINE_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

const BASELINE_SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];

const RESTRICTED_VOLUMES: [&str; 8] =
    ["configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"];

const SELINUX_TYPES: [&str; 5] = ["", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"];

pub(super) fn validate(cluster: &dyn Cluster, a: &Attributes<'_>, pod: &Object) -> Result<(), Status> {
    let ephemeral = a.info.group.is_empty() && a.info.plural == "pods" && a.subresource == "ephemeralcontainers";
    if !a.is("", "pods") && !ephemeral {
        return Ok(());
    }
    // what cannot be changed any more was judged when the pod was made
    if a.old.is_some_and(|old| old.get("spec") == pod.get("spec")) {
        return Ok(());
    }
    let Some(namespace) = cluster.get("", "namespaces", "", a.namespace) else { return Ok(()) };
    let Some(level @ ("baseline" | "restricted")) = namespace.label(LABEL) else { return Ok(()) };
    let mut violations = Vec::new();
    baseline(pod, &mut violations);
    if level == "restricted" {
        restricted(pod, &mut violations);
    }
    if violations.is_empty() {
        return Ok(());
    }
    Err(a.forbidden(Some(pod), &format!("violates PodSecurity \"{level}:latest\": {}", violations.join(", "))))
}

fn containers(pod: &Object) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers", "ephemeralContainers"]
        .into_iter()
        .filter_map(|list| pod.get("spec").get(list)?.as_array())
        .flatten()
}

/// The quoted names of the containers that `bad` says true of.
fn offenders(pod: &Object, bad: impl Fn(&Value) -> bool) -> Option<String> {
    let names: Vec<String> = containers(pod)
        .filter(|c| bad(c))
        .map(|c| format!("\"{}\"", c.get("name").and_then(Value::as_str).unwrap_or_default()))
        .collect();
    match names.as_slice() {
        [] => None,
        [one] => Some(format!("container {one}")),
        many => Some(format!("containers {}", many.join(", "))),
    }
}

fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

fn flag(value: &Value, pointer: &str) -> Option<bool> {
    value.pointer(pointer).and_then(Value::as_bool)
}

fn strings<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = &'v str> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
}

fn baseline(pod: &Object, out: &mut Vec<String>) {
    let spec = pod.get("spec");
    let shared: Vec<String> = ["hostNetwork", "hostPID", "hostIPC"]
        .into_iter()
        .filter(|f| flag(spec, &format!("/{f}")) == Some(true))
        .map(|f| format!("{f}=true"))
        .collect();
    if !shared.is_empty() {
        out.push(format!("host namespaces ({})", shared.join(", ")));
    }
    let volumes = || spec.get("volumes").and_then(Value::as_array).into_iter().flatten();
    let host_paths: Vec<&str> =
        volumes().filter(|v| v.get("hostPath").is_some_and(|p| !p.is_null())).map(|v| text(v, "/name")).collect();
    if !host_paths.is_empty() {
        out.push(format!("hostPath volumes (volume \"{}\")", host_paths.join("\", \"")));
    }
    let has_host_port = |c: &Value| {
        let ports = c.get("ports").and_then(Value::as_array).into_iter().flatten();
        ports.filter_map(|p| p.get("hostPort")?.as_u64()).any(|p| p != 0)
    };
    let unmasked = |c: &Value| !matches!(text(c, "/securityContext/procMount"), "" | "Default");
    let adds = |c: &Value| strings(c, "/securityContext/capabilities/add").any(|x| !BASELINE_CAPABILITIES.contains(&x));
    type Check<'c> = (&'c str, &'c dyn Fn(&Value) -> bool, &'c str);
    let checks: [Check<'_>; 4] = [
        (
            "privileged",
            &|c| flag(c, "/securityContext/privileged") == Some(true),
            "must not set securityContext.privileged=true",
        ),
        ("hostPort", &has_host_port, "must not use a hostPort"),
        ("procMount", &unmasked, "must not set securityContext.procMount"),
        ("non-default capabilities", &adds, "must not add other capabilities in securityContext.capabilities.add"),
    ];
    for (title, bad, must) in checks {
        if let Some(who) = offenders(pod, bad) {
            out.push(format!("{title} ({who} {must})"));
        }
    }
    let unconfined = |v: &Value| text(v, "/securityContext/seccompProfile/type") == "Unconfined";
    if unconfined(spec) || containers(pod).any(unconfined) {
        out.push("seccompProfile (must not set securityContext.seccompProfile.type to \"Unconfined\")".into());
    }
    let selinux = |v: &Value| {
        !SELINUX_TYPES.contains(&text(v, "/securityContext/seLinuxOptions/type"))
            || !text(v, "/securityContext/seLinuxOptions/user").is_empty()
            || !text(v, "/securityContext/seLinuxOptions/role").is_empty()
    };
    if selinux(spec) || containers(pod).any(selinux) {
        out.push("seLinuxOptions (must not set securityContext.seLinuxOptions)".into());
    }
    let sysctls: Vec<&str> = spec
        .pointer("/securityContext/sysctls")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .map(|s| text(s, "/name"))
        .filter(|n| !BASELINE_SYSCTLS.contains(n))
        .collect();
    if !sysctls.is_empty() {
        out.push(format!("forbidden sysctls ({})", sysctls.join(", ")));
    }
}

fn restricted(pod: &Object, out: &mut Vec<String>) {
    let spec = pod.get("spec");
    let mut push = |title: &str, who: Option<String>, must: &str| {
        if let Some(who) = who {
            out.push(format!("{title} ({who} {must})"));
        }
    };
    let escalates = |c: &Value| flag(c, "/securityContext/allowPrivilegeEscalation") != Some(false);
    push(
        "allowPrivilegeEscalation != false",
        offenders(pod, escalates),
        "must set securityContext.allowPrivilegeEscalation=false",
    );
    let capable = |c: &Value| {
        !strings(c, "/securityContext/capabilities/drop").any(|d| d == "ALL")
            || strings(c, "/securityContext/capabilities/add").any(|x| x != "NET_BIND_SERVICE")
    };
    push("unrestricted capabilities", offenders(pod, capable), "must set securityContext.capabilities.drop=[\"ALL\"]");
    let other: Vec<&str> = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|v| {
            v.as_object().is_some_and(|v| !v.keys().any(|k| RESTRICTED_VOLUMES.contains(&k.as_str())) && v.len() > 1)
        })
        .map(|v| text(v, "/name"))
        .collect();
    let other = (!other.is_empty()).then(|| format!("volume \"{}\"", other.join("\", \"")));
    push("restricted volume types", other, "uses a restricted volume type");
    let by_pod = flag(spec, "/securityContext/runAsNonRoot") == Some(true);
    let may_be_root = |c: &Value| !flag(c, "/securityContext/runAsNonRoot").unwrap_or(by_pod);
    let pod_or = |who: Option<String>| who.map(|w| format!("pod or {w}"));
    push("runAsNonRoot != true", pod_or(offenders(pod, may_be_root)), "must set securityContext.runAsNonRoot=true");
    let is_root = |v: &Value| v.pointer("/securityContext/runAsUser").and_then(Value::as_i64) == Some(0);
    push("runAsUser=0", pod_or(offenders(pod, is_root)), "must not set runAsUser=0");
    if is_root(spec) {
        push("runAsUser=0", Some("pod".into()), "must not set runAsUser=0");
    }
    let confined =
        |v: &Value| matches!(text(v, "/securityContext/seccompProfile/type"), "RuntimeDefault" | "Localhost");
    let by_pod = confined(spec);
    let open = |c: &Value| match text(c, "/securityContext/seccompProfile/type") {
        "" => !by_pod,
        _ => !confined(c),
    };
    push(
        "seccompProfile",
        pod_or(offenders(pod, open)),
        "must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
    );
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::super::testing::{Fake, POD, attributes};
    use super::*;
    use edge_registry::Operation;
    use serde_json::json;

    fn judge(level: &str, spec: Value) -> Result<(), String> {
        let cluster = Fake::default().with("/namespaces//ns", json!({"metadata": {"labels": {LABEL: level}}}));
        let pod = Object::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap();
        attributes(Operation::Create, POD, "ns", "p", |a| validate(&cluster, a, &pod)).map_err(|s| s.message)
    }

    #[test]
    fn each_level_allows_what_it_should() {
        let plain = json!({"containers": [{"name": "c"}]});
        judge("privileged", json!({"hostNetwork": true})).unwrap();
        judge("baseline", plain.clone()).unwrap();
        assert_eq!(
            judge("restricted", plain).unwrap_err(),
            "pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": allowPrivilegeEscalation != false \
             (container \"c\" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities \
             (container \"c\" must set securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or \
             container \"c\" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must \
             set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        let tight = json!({
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "securityContext": {
                "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}],
        });
        judge("restricted", tight.clone()).unwrap();
        let mut loose = tight;
        loose["volumes"][0] = json!({"name": "v", "nfs": {}});
        assert!(judge("restricted", loose).unwrap_err().contains("restricted volume types (volume \"v\""));
    }

    #[test]
    fn baseline_keeps_pods_off_the_host() {
        for (spec, what) in [
            (json!({"hostPID": true, "hostNetwork": true}), "host namespaces (hostNetwork=true, hostPID=true)"),
            (json!({"volumes": [{"name": "h", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"h\")"),
            (
                json!({"containers": [{"name": "c", "securityContext": {"privileged": true}}]}),
                "privileged (container \"c\"",
            ),
            (json!({"initContainers": [{"name": "i", "ports": [{"hostPort": 80}]}]}), "hostPort (container \"i\""),
            (
                json!({"containers": [{"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}}]}),
                "non-default capabilities",
            ),
            (json!({"securityContext": {"seccompProfile": {"type": "Unconfined"}}}), "seccompProfile"),
            (json!({"securityContext": {"sysctls": [{"name": "kernel.msgmax"}]}}), "forbidden sysctls (kernel.msgmax)"),
        ] {
            let e = judge("baseline", spec).unwrap_err();
            assert!(e.contains(what), "{e}");
        }
    }
}
