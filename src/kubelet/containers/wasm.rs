//! What is different for a container whose image is a WebAssembly program: what its pod must not ask for, and where an HTTP
//! component listens. Pure.

use k8s_openapi::api::core::v1::{Container, Pod, Probe, SeccompProfile};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Whom a program runs as when neither the pod nor the image say: no program can tell, and it needs no rights to anything.
pub(super) const USER: &str = "65532:65532";
const USER_ID: i64 = 65532;

/// Where an HTTP component listens when its container declares no TCP port.
const HTTP_PORT: u16 = 8080;

/// Why a WebAssembly program cannot run as its pod describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WasmError {
    #[error("a WebAssembly program cannot be privileged")]
    Privileged,
    #[error("a WebAssembly program cannot hold capabilities")]
    Capabilities,
    #[error("a WebAssembly program has a seccomp profile of its own, which cannot be replaced")]
    Seccomp,
    #[error("a WebAssembly program sees no /proc, so procMount cannot be Unmasked")]
    ProcMount,
    #[error("a WebAssembly program cannot use block devices (volumeDevices)")]
    BlockDevices,
    #[error(
        "the {0} probe executes a command, and beside a WebAssembly program there is none: use httpGet, tcpSocket or grpc"
    )]
    ExecProbe(&'static str),
    #[error("the {0} hook executes a command, and beside a WebAssembly program there is none: use httpGet or sleep")]
    ExecHook(&'static str),
    #[error("a dense WebAssembly program runs as user 65532, so {0} cannot hold: use the RuntimeClass wasm")]
    DenseUser(&'static str),
    #[error(
        "a dense WebAssembly program has no standard input and no terminal (stdin, tty): use the RuntimeClass wasm"
    )]
    DenseInput,
    #[error(
        "mounts that are made later do not reach a dense WebAssembly program (mountPropagation): use the RuntimeClass wasm"
    )]
    DensePropagation,
}

/// Refuses what cannot hold for a program. What only concerns native programs and does no harm is left alone.
pub(super) fn check(pod: &Pod, container: &Container) -> Result<(), WasmError> {
    let own = container.security_context.as_ref();
    if own.and_then(|c| c.privileged).unwrap_or(false) {
        return Err(WasmError::Privileged);
    }
    let added = own.and_then(|c| c.capabilities.as_ref()).and_then(|c| c.add.as_deref()).unwrap_or_default();
    if !added.is_empty() {
        return Err(WasmError::Capabilities);
    }
    let shared = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let is = |profile: Option<&SeccompProfile>, kind: &str| profile.is_some_and(|p| p.type_ == kind);
    let profile = own.and_then(|c| c.seccomp_profile.as_ref());
    let of_pod = shared.and_then(|c| c.seccomp_profile.as_ref());
    // a pod may leave its native containers unconfined; a profile that it wants for all of them is not one to be ignored
    if is(profile, "Unconfined") || is(profile.or(of_pod), "Localhost") {
        return Err(WasmError::Seccomp);
    }
    if own.and_then(|c| c.proc_mount.as_deref()) == Some("Unmasked") {
        return Err(WasmError::ProcMount);
    }
    if container.volume_devices.as_ref().is_some_and(|devices| !devices.is_empty()) {
        return Err(WasmError::BlockDevices);
    }
    let probes = [
        ("liveness", &container.liveness_probe),
        ("readiness", &container.readiness_probe),
        ("startup", &container.startup_probe),
    ];
    let executes = |probe: &Option<Probe>| probe.as_ref().is_some_and(|p| p.exec.is_some());
    if let Some((name, _)) = probes.into_iter().find(|(_, probe)| executes(probe)) {
        return Err(WasmError::ExecProbe(name));
    }
    let hooks = container.lifecycle.as_ref();
    let hooks = [
        ("postStart", hooks.and_then(|l| l.post_start.as_ref())),
        ("preStop", hooks.and_then(|l| l.pre_stop.as_ref())),
    ];
    match hooks.into_iter().find(|(_, hook)| hook.is_some_and(|h| h.exec.is_some())) {
        Some((name, _)) => Err(WasmError::ExecHook(name)),
        None => Ok(()),
    }
}

/// Refuses what cannot hold for a program that shares its process with those of other pods.
pub(super) fn check_dense(pod: &Pod, container: &Container) -> Result<(), WasmError> {
    let own = container.security_context.as_ref();
    let shared = pod.spec.as_ref().and_then(|s| s.security_context.as_ref());
    let groups = shared.and_then(|c| c.supplemental_groups.as_deref()).unwrap_or_default();
    let ids = [
        ("runAsUser", own.and_then(|c| c.run_as_user).or(shared.and_then(|c| c.run_as_user))),
        ("runAsGroup", own.and_then(|c| c.run_as_group).or(shared.and_then(|c| c.run_as_group))),
        ("fsGroup", shared.and_then(|c| c.fs_group)),
        ("supplementalGroups", groups.iter().copied().find(|group| *group != USER_ID)),
    ];
    if let Some((name, _)) = ids.into_iter().find(|(_, id)| id.is_some_and(|id| id != USER_ID)) {
        return Err(WasmError::DenseUser(name));
    }
    if container.stdin.unwrap_or(false) || container.tty.unwrap_or(false) {
        return Err(WasmError::DenseInput);
    }
    let propagates = |mode: &Option<String>| mode.as_deref().is_some_and(|mode| mode != "None");
    match container.volume_mounts.iter().flatten().any(|mount| propagates(&mount.mount_propagation)) {
        true => Err(WasmError::DensePropagation),
        false => Ok(()),
    }
}

/// Where an HTTP component listens: at all addresses of its pod, on each TCP port that the container declares.
pub(super) fn listen(pod_ips: &[IpAddr], container: &Container) -> Vec<SocketAddr> {
    // a socket of version 6 takes what comes by version 4, too
    let any: IpAddr = match pod_ips.iter().any(IpAddr::is_ipv6) {
        true => Ipv6Addr::UNSPECIFIED.into(),
        false => Ipv4Addr::UNSPECIFIED.into(),
    };
    let mut ports: Vec<u16> = container
        .ports
        .iter()
        .flatten()
        .filter(|port| port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP"))
        .filter_map(|port| u16::try_from(port.container_port).ok().filter(|port| *port > 0))
        .collect();
    ports.sort_unstable();
    ports.dedup();
    if ports.is_empty() {
        ports.push(HTTP_PORT);
    }
    ports.into_iter().map(|port| SocketAddr::new(any, port)).collect()
}

/// The name under which a program knows itself when nobody has given it one: that of its image.
pub(super) fn name(image: &str) -> String {
    let repository = image.split('@').next().unwrap_or(image);
    let last = repository.rsplit('/').next().unwrap_or(repository);
    let plain = last.split(':').next().unwrap_or(last);
    if plain.is_empty() { "main".to_owned() } else { plain.to_owned() }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn pod(context: Value, container: Value) -> Pod {
        let mut container = container;
        container["name"] = json!("c");
        serde_json::from_value(json!({"spec": {"securityContext": context, "containers": [container]}})).unwrap()
    }

    fn refused(context: Value, container: Value) -> Option<WasmError> {
        let pod = pod(context, container);
        check(&pod, &pod.spec.as_ref().unwrap().containers[0]).err()
    }

    #[test]
    fn what_cannot_hold_is_refused() {
        let of = |context: Value| refused(json!({}), json!({"securityContext": context}));
        assert_eq!(of(json!({"privileged": true})), Some(WasmError::Privileged));
        assert_eq!(of(json!({"capabilities": {"add": ["NET_ADMIN"]}})), Some(WasmError::Capabilities));
        assert_eq!(of(json!({"seccompProfile": {"type": "Unconfined"}})), Some(WasmError::Seccomp));
        assert_eq!(of(json!({"procMount": "Unmasked"})), Some(WasmError::ProcMount));
        let strict = json!({"runAsNonRoot": true, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
        assert_eq!(of(strict), None, "the restricted pod security standard");
        let by_pod = |kind: &str| refused(json!({"seccompProfile": {"type": kind}}), json!({}));
        assert_eq!(by_pod("Localhost"), Some(WasmError::Seccomp));
        assert_eq!(by_pod("Unconfined"), None);
    }

    #[test]
    fn commands_beside_the_program_are_refused() {
        let exec = json!({"exec": {"command": ["true"]}});
        for (field, name) in
            [("livenessProbe", "liveness"), ("readinessProbe", "readiness"), ("startupProbe", "startup")]
        {
            assert_eq!(refused(json!({}), json!({field: exec})), Some(WasmError::ExecProbe(name)));
            assert_eq!(refused(json!({}), json!({field: {"tcpSocket": {"port": 1}}})), None);
        }
        for name in ["postStart", "preStop"] {
            assert_eq!(refused(json!({}), json!({"lifecycle": {name: exec}})), Some(WasmError::ExecHook(name)));
            assert_eq!(refused(json!({}), json!({"lifecycle": {name: {"sleep": {"seconds": 1}}}})), None);
        }
    }

    #[test]
    fn what_cannot_hold_in_a_shared_process_is_refused() {
        let of = |context: Value, container: Value| {
            let pod = pod(context, container);
            check_dense(&pod, &pod.spec.as_ref().unwrap().containers[0]).err()
        };
        assert_eq!(of(json!({"runAsUser": 1000}), json!({})), Some(WasmError::DenseUser("runAsUser")));
        let own = json!({"securityContext": {"runAsUser": 65532}});
        assert_eq!(of(json!({"runAsUser": 1000, "runAsNonRoot": true}), own), None, "the container's own counts");
        assert_eq!(of(json!({"fsGroup": 5}), json!({})), Some(WasmError::DenseUser("fsGroup")));
        let groups = json!({"supplementalGroups": [65532, 7]});
        assert_eq!(of(groups, json!({})), Some(WasmError::DenseUser("supplementalGroups")));
        assert_eq!(of(json!({}), json!({"stdin": true})), Some(WasmError::DenseInput));
        assert_eq!(of(json!({}), json!({"tty": true})), Some(WasmError::DenseInput));
        let mounts = |mode: &str| json!({"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": mode}]});
        assert_eq!(of(json!({}), mounts("HostToContainer")), Some(WasmError::DensePropagation));
        assert_eq!(of(json!({}), mounts("None")), None);
    }

    #[test]
    fn components_listen_on_the_ports_that_are_declared() {
        let of = |ips: &[&str], ports: Value| {
            let pod = pod(json!({}), json!({"ports": ports}));
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            let all = listen(&ips, &pod.spec.as_ref().unwrap().containers[0]);
            all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(of(&["10.0.0.1"], json!([])), "0.0.0.0:8080");
        assert_eq!(of(&["10.0.0.1", "fd00::1"], json!([{"containerPort": 80}])), "[::]:80");
        let several = json!([{"containerPort": 81}, {"containerPort": 80, "protocol": "TCP"}, {"containerPort": 81},
            {"containerPort": 53, "protocol": "UDP"}]);
        assert_eq!(of(&["10.0.0.1"], several), "0.0.0.0:80 0.0.0.0:81");
    }

    #[test]
    fn names_come_from_images() {
        for (image, expected) in [
            ("hello", "hello"),
            ("registry:5000/team/hello:v1", "hello"),
            ("ghcr.io/x/y@sha256:0123", "y"),
            ("registry:5000/", "main"),
        ] {
            assert_eq!(name(image), expected, "{image}");
        }
    }
}
