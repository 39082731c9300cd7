//! What a cluster-wide cache keeps of a pod.
//!
//! The cache of all pods is the largest thing in a server. Of what a pod is to do on its node (commands, environments, probes, mounts,
//! volumes that the node makes) nobody reads anything but the node, whose kubelet watches its own pods. So that is not kept of pods that
//! have a node; one that waits for a node is kept whole, as extenders of the scheduler may be asked about it.
//!
//! What is cached so must not be written back: changes are patches, as they are everywhere above the API.

use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, Volume};

/// Takes away what only the pod's node needs.
pub(crate) fn slim(pod: &mut Pod) {
    let Some(spec) = pod.spec.as_mut().filter(|spec| spec.node_name.as_ref().is_some_and(|n| !n.is_empty())) else {
        return;
    };
    for container in spec.init_containers.iter_mut().flatten().chain(&mut spec.containers) {
        slim_container(container);
    }
    spec.ephemeral_containers = None;
    spec.volumes = spec.volumes.take().map(|all| all.into_iter().filter(is_elsewhere).collect());
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

/// Whether anybody but the pod's node reads of a volume: claims and disks matter to who decides about them, what the node makes does not.
fn is_elsewhere(volume: &Volume) -> bool {
    let is_made_by_the_node = volume.projected.is_some()
        || volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.downward_api.is_some()
        || volume.empty_dir.is_some()
        || volume.host_path.is_some()
        || volume.image.is_some();
    !is_made_by_the_node
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
        assert_eq!(pod["spec"]["volumes"], json!([{"name": "v", "persistentVolumeClaim": {"claimName": "k"}}]));
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
