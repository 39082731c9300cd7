//! What a cluster-wide cache keeps of a pod.
//!
//! The cache of all pods is the largest thing in a server. Of what a pod is to do on its node (commands, environments, probes, mounts,
//! what is in its volumes) nobody reads anything but the node, whose kubelet watches its own pods. So that is not kept of pods that
//! have a node; one that waits for a node is kept whole, as extenders of the scheduler may be asked about it.
//!
//! What is cached so must not be written back: changes are patches, as they are everywhere above the API.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, ProjectedVolumeSource, Volume};

/// Takes away what only the pod's node needs.
pub(crate) fn slim(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut().filter(|spec| spec.node_name.as_ref().is_some_and(|n| !n.is_empty())) else {
        return;
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        slim_container(container);
    }
    spec.ephemeral_containers = None;
    spec.volumes.iter_mut().flatten().for_each(slim_volume);
    spec.security_context = None;
    spec.dns_config = None;
    spec.image_pull_secrets = None;
    spec.host_aliases = None;
    let Some(status) = &mut pod.status else { return };
    status.ephemeral_container_statuses = None;
    let statuses = [&mut status.init_container_statuses, &mut status.container_statuses];
    statuses.into_iter().flatten().flatten().for_each(slim_status);
}

fn slim_container(container: &mut Container) {
    let kept = Container {
        name: std::mem::take(&mut container.name),
        image: container.image.take(),
        ports: container.ports.take(),
        resources: container.resources.take(),
        resize_policy: container.resize_policy.take(),
        restart_policy: container.restart_policy.take(),
        ..Container::default()
    };
    *container = kept;
}

/// Volumes that are somewhere else (claims, disks of a cloud) matter to who decides about them.
fn slim_volume(volume: &mut Volume) {
    if let Some(projected) = &mut volume.projected {
        *projected = ProjectedVolumeSource::default();
    }
    if let Some(map) = &mut volume.config_map {
        map.items = None;
    }
    if let Some(secret) = &mut volume.secret {
        secret.items = None;
    }
    volume.downward_api = volume.downward_api.take().map(|_| Default::default());
}

fn slim_status(status: &mut ContainerStatus) {
    let kept = ContainerStatus {
        name: std::mem::take(&mut status.name),
        ready: status.ready,
        started: status.started,
        restart_count: status.restart_count,
        state: status.state.take(),
        last_state: status.last_state.take(),
        allocated_resources: status.allocated_resources.take(),
        resources: status.resources.take(),
        ..ContainerStatus::default()
    };
    *status = kept;
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::{Value, json};

    fn slimmed(node: &str) -> Value {
        let mut pod: Pod = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": "p", "labels": {"a": "b"}},
            "spec": {"nodeName": node, "containers": [{"name": "c", "image": "i", "command": ["sh"], "env": [{"name": "E", "value": "x"}],
                    "ports": [{"containerPort": 80}], "resources": {"requests": {"cpu": "1"}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]}],
                "volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "k"}},
                    {"name": "t", "projected": {"sources": [{"serviceAccountToken": {"path": "token"}}]}}]},
            "status": {"phase": "Running", "containerStatuses": [{"name": "c", "image": "i", "imageID": "x", "ready": true, "restartCount": 2,
                "state": {"terminated": {"exitCode": 3}}}]}}))
        .unwrap();
        slim(&mut pod);
        serde_json::to_value(&pod).unwrap()
    }

    #[test]
    fn what_only_the_node_needs_is_not_kept() {
        let pod = slimmed("n");
        let container = &pod["spec"]["containers"][0];
        assert_eq!(
            (&container["command"], &container["env"], &container["volumeMounts"]),
            (&Value::Null, &Value::Null, &Value::Null)
        );
        assert_eq!(container["ports"][0]["containerPort"], 80);
        assert_eq!(container["resources"]["requests"]["cpu"], "1");
        assert_eq!(pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], "k");
        assert_eq!(pod["spec"]["volumes"][1], json!({"name": "t", "projected": {}}));
        let status = &pod["status"]["containerStatuses"][0];
        assert_eq!((&status["ready"], &status["restartCount"]), (&json!(true), &json!(2)));
        assert_eq!(status["state"]["terminated"]["exitCode"], 3);
        assert_eq!(pod["metadata"]["labels"]["a"], "b");
    }

    #[test]
    fn one_that_waits_for_a_node_is_whole() {
        assert_eq!(slimmed("")["spec"]["containers"][0]["command"][0], "sh");
    }
}
