//! Defaults, against what an API server of Kubernetes 1.36 answers for the same objects.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_api::GroupVersionKind;
use edge_schema::{Schema, default};
use serde_json::{Value, json};

fn defaulted(mut object: Value) -> Value {
    let api_version = object["apiVersion"].as_str().unwrap();
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let ty = Schema::builtin().kind(&GroupVersionKind::new(group, version, object["kind"].as_str().unwrap())).unwrap();
    default::apply(ty, &mut object);
    let once = object.clone();
    default::apply(ty, &mut object);
    assert_eq!(object, once, "defaults settle at once");
    object
}

fn container(image: &str) -> Value {
    json!({"name": "c", "image": image})
}

#[test]
fn deployment() {
    let got = defaulted(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "nginx", "ports": [{"containerPort": 80}]}]},
            },
        },
    }));
    let expected = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {
                    "containers": [{
                        "name": "c", "image": "nginx", "imagePullPolicy": "Always", "resources": {},
                        "ports": [{"containerPort": 80, "protocol": "TCP"}],
                        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                    }],
                    "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                    "securityContext": {}, "terminationGracePeriodSeconds": 30,
                },
            },
        },
        "status": {},
    });
    assert_eq!(got, expected);
}

#[test]
fn recreate_has_no_rolling_update() {
    let got =
        defaulted(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": {"strategy": {"type": "Recreate"}}}));
    assert_eq!(got["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn zero_pointers_stay_and_zero_values_count_as_unset() {
    let got = defaulted(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "spec": {
            "replicas": 0, "revisionHistoryLimit": 0,
            "template": {"spec": {"restartPolicy": "", "terminationGracePeriodSeconds": 0, "containers": []}},
        },
    }));
    assert_eq!(got["spec"]["replicas"], 0);
    assert_eq!(got["spec"]["revisionHistoryLimit"], 0);
    assert_eq!(got["spec"]["template"]["spec"]["terminationGracePeriodSeconds"], 0);
    assert_eq!(got["spec"]["template"]["spec"]["restartPolicy"], "Always");
}

#[test]
fn pod_gets_more_than_a_template() {
    let got = defaulted(json!({
        "apiVersion": "v1", "kind": "Pod",
        "spec": {
            "hostNetwork": true,
            "containers": [{
                "name": "c", "image": "registry:5000/a/b:1.2",
                "ports": [{"containerPort": 53, "protocol": "UDP"}, {"containerPort": 80, "hostPort": 8080}],
                "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
                "livenessProbe": {"httpGet": {"port": 80}},
                "readinessProbe": {"grpc": {"port": 9}, "periodSeconds": 3},
                "lifecycle": {"preStop": {"httpGet": {"port": "x", "path": "/bye"}}},
                "env": [{"name": "E", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
            }],
            "initContainers": [container("a@sha256:00"), container("a:latest@sha256:00"), container("a:latest"), container("")],
            "volumes": [
                {"name": "a"},
                {"name": "b", "secret": {"secretName": "s"}},
                {"name": "c", "hostPath": {"path": "/"}},
                {"name": "d", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}, {"configMap": {"name": "x"}}]}},
                {"name": "e", "configMap": {"name": "x", "defaultMode": 256}},
                {"name": "f", "iscsi": {"targetPortal": "t", "iqn": "i", "lun": 0}},
                {"name": "g", "downwardAPI": {}},
                {"name": "h", "ephemeral": {"volumeClaimTemplate": {"spec": {}}}},
            ],
        },
    }));
    let spec = &got["spec"];
    let c = &spec["containers"][0];
    assert_eq!(spec["enableServiceLinks"], true);
    assert_eq!(c["imagePullPolicy"], "IfNotPresent");
    assert_eq!(c["ports"][0], json!({"containerPort": 53, "hostPort": 53, "protocol": "UDP"}));
    assert_eq!(c["ports"][1], json!({"containerPort": 80, "hostPort": 8080, "protocol": "TCP"}));
    assert_eq!(c["resources"]["requests"], json!({"cpu": "100m", "memory": "1Gi"}));
    let probe = json!({
        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
        "failureThreshold": 3, "periodSeconds": 10, "successThreshold": 1, "timeoutSeconds": 1,
    });
    assert_eq!(c["livenessProbe"], probe);
    assert_eq!(c["readinessProbe"]["grpc"], json!({"port": 9, "service": ""}));
    assert_eq!(c["readinessProbe"]["periodSeconds"], 3);
    assert_eq!(c["lifecycle"]["preStop"]["httpGet"], json!({"port": "x", "path": "/bye", "scheme": "HTTP"}));
    assert_eq!(c["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    let policies: Vec<_> = spec["initContainers"].as_array().unwrap().iter().map(|c| &c["imagePullPolicy"]).collect();
    assert_eq!(policies, ["IfNotPresent", "Always", "Always", "IfNotPresent"]);
    let v = &spec["volumes"];
    assert_eq!(v[0], json!({"name": "a", "emptyDir": {}}));
    assert_eq!(v[1]["secret"]["defaultMode"], 420);
    assert_eq!(v[2]["hostPath"], json!({"path": "/", "type": ""}));
    assert_eq!(v[3]["projected"]["defaultMode"], 420);
    assert_eq!(v[3]["projected"]["sources"][0]["serviceAccountToken"]["expirationSeconds"], 3600);
    assert_eq!(v[3]["projected"]["sources"][1]["configMap"], json!({"name": "x"}));
    assert_eq!(v[4]["configMap"]["defaultMode"], 256);
    assert_eq!(v[5]["iscsi"]["iscsiInterface"], "default");
    assert_eq!(v[6]["downwardAPI"]["defaultMode"], 420);
    assert_eq!(v[7]["ephemeral"]["volumeClaimTemplate"]["spec"], json!({"resources": {}, "volumeMode": "Filesystem"}));
    assert_eq!(got["status"], json!({}));
}

#[test]
fn pod_level_requests_come_from_the_containers_or_the_limits() {
    let got = defaulted(json!({
        "apiVersion": "v1", "kind": "Pod",
        "spec": {
            "resources": {"limits": {"cpu": "2", "memory": "1Gi"}},
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "100m"}}},
                {"name": "b", "resources": {"requests": {"cpu": "200m"}}},
            ],
            "initContainers": [
                {"name": "s", "restartPolicy": "Always", "resources": {"requests": {"cpu": "50m"}}},
                {"name": "i", "resources": {"requests": {"cpu": "1"}}},
            ],
        },
    }));
    assert_eq!(got["spec"]["resources"]["requests"], json!({"cpu": "1050m", "memory": "1Gi"}));
}

#[test]
fn services() {
    let service = |spec: Value| defaulted(json!({"apiVersion": "v1", "kind": "Service", "spec": spec}));
    let got = service(json!({"ports": [{"port": 80}], "sessionAffinityConfig": {"clientIP": {}}}));
    let expected = json!({
        "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
        "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
    });
    assert_eq!(got["spec"], expected);
    assert_eq!(got["status"], json!({"loadBalancer": {}}));
    let got = service(
        json!({"type": "NodePort", "sessionAffinity": "ClientIP", "ports": [{"port": 1, "targetPort": "web"}]}),
    );
    assert_eq!(got["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(got["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
    assert_eq!(got["spec"]["ports"][0]["targetPort"], "web");
    let got = service(json!({"type": "LoadBalancer"}));
    assert_eq!(got["spec"]["allocateLoadBalancerNodePorts"], true);
    let got = service(json!({"type": "ExternalName", "externalName": "a.b"}));
    assert_eq!(got["spec"], json!({"type": "ExternalName", "externalName": "a.b", "sessionAffinity": "None"}));
}

#[test]
fn workloads() {
    let got = defaulted(json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "spec": {
        "serviceName": "s", "volumeClaimTemplates": [{"metadata": {"name": "d"}, "spec": {}}]}}));
    let spec = &got["spec"];
    assert_eq!(spec["updateStrategy"], json!({"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}));
    assert_eq!(spec["podManagementPolicy"], "OrderedReady");
    assert_eq!(spec["persistentVolumeClaimRetentionPolicy"], json!({"whenDeleted": "Retain", "whenScaled": "Retain"}));
    assert_eq!(spec["volumeClaimTemplates"][0]["status"]["phase"], "Pending");
    let got = defaulted(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "spec": {}}));
    assert_eq!(
        got["spec"]["updateStrategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}})
    );
    let got = defaulted(json!({"apiVersion": "apps/v1", "kind": "ReplicaSet", "spec": {}}));
    assert_eq!(got["spec"]["replicas"], 1);
    assert!(got["spec"].get("revisionHistoryLimit").is_none());
}

#[test]
fn jobs() {
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [container("x:1")]}});
    let got = defaulted(json!({"apiVersion": "batch/v1", "kind": "Job", "spec": {"template": template}}));
    for (field, value) in [
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(got["spec"][field], value, "{field}");
    }
    assert_eq!(got["metadata"]["labels"], json!({"a": "b"}));
    let got = defaulted(json!({"apiVersion": "batch/v1", "kind": "Job", "spec": {"parallelism": 3}}));
    assert!(got["spec"].get("completions").is_none());
    let got = defaulted(json!({"apiVersion": "batch/v1", "kind": "CronJob", "spec": {
        "schedule": "* * * * *", "jobTemplate": {"spec": {"template": template}}}}));
    assert_eq!(got["spec"]["concurrencyPolicy"], "Allow");
    assert_eq!(got["spec"]["successfulJobsHistoryLimit"], 3);
    assert_eq!(got["spec"]["failedJobsHistoryLimit"], 1);
    assert_eq!(got["spec"]["suspend"], false);
    let job = &got["spec"]["jobTemplate"]["spec"];
    assert!(job.get("backoffLimit").is_none(), "a job template is not a job");
    assert_eq!(job["template"]["spec"]["restartPolicy"], "Always");
}

#[test]
fn storage_network_and_rights() {
    let got =
        defaulted(json!({"apiVersion": "v1", "kind": "PersistentVolume", "spec": {"capacity": {"storage": "100u"}}}));
    assert_eq!(got["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(got["spec"]["volumeMode"], "Filesystem");
    assert_eq!(got["spec"]["capacity"]["storage"], "1m");
    assert_eq!(got["status"]["phase"], "Pending");
    let got = defaulted(json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "spec": {}}));
    assert_eq!(got["spec"]["volumeMode"], "Filesystem");
    let got = defaulted(json!({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "provisioner": "p"}));
    assert_eq!((&got["reclaimPolicy"], &got["volumeBindingMode"]), (&json!("Delete"), &json!("Immediate")));
    let got = defaulted(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {
        "ingress": [{"ports": [{"port": 80}]}], "egress": [{}]}}));
    assert_eq!(got["spec"]["policyTypes"], json!(["Ingress", "Egress"]));
    assert_eq!(got["spec"]["ingress"][0]["ports"][0]["protocol"], "TCP");
    let got = defaulted(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "roleRef": {"kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}));
    assert_eq!(got["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(got["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    assert!(got["subjects"][1].get("apiGroup").is_none());
    let got = defaulted(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "ports": [{"port": 80}]}));
    assert_eq!(got["ports"][0], json!({"name": "", "port": 80, "protocol": "TCP"}));
    let got = defaulted(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}}));
    assert_eq!(got["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "n"}));
    assert_eq!(got["status"]["phase"], "Active");
    let got = defaulted(json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": ""}}));
    assert_eq!(got["type"], "Opaque");
    let got = defaulted(json!({"apiVersion": "v1", "kind": "LimitRange", "spec": {"limits": [
        {"type": "Container", "max": {"cpu": "2"}, "min": {"cpu": "1", "memory": "1Mi"}}, {"type": "Pod", "max": {"cpu": "2"}}]}}));
    assert_eq!(got["spec"]["limits"][0]["default"], json!({"cpu": "2"}));
    assert_eq!(got["spec"]["limits"][0]["defaultRequest"], json!({"cpu": "2", "memory": "1Mi"}));
    assert!(got["spec"]["limits"][1].get("default").is_none());
    let got = defaulted(json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "spec": {
        "maxReplicas": 3, "scaleTargetRef": {"kind": "Deployment", "name": "d"}, "behavior": {"scaleUp": {"selectPolicy": "Min"}}}}));
    assert_eq!(got["spec"]["minReplicas"], 1);
    assert_eq!(got["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
    assert_eq!(got["spec"]["behavior"]["scaleUp"]["selectPolicy"], "Min");
    assert_eq!(got["spec"]["behavior"]["scaleDown"]["policies"][0]["type"], "Percent");
    let got = defaulted(json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": {
        "names": {"plural": "foos", "kind": "Foo"}, "versions": [{"name": "v1", "storage": true}]}}));
    assert_eq!(got["spec"]["names"]["singular"], "foo");
    assert_eq!(got["spec"]["names"]["listKind"], "FooList");
    assert_eq!(got["spec"]["conversion"], json!({"strategy": "None"}));
    assert_eq!(got["status"]["storedVersions"], json!(["v1"]));
}

#[test]
fn two_ways_to_say_the_same_become_one() {
    let got = defaulted(
        json!({"apiVersion": "v1", "kind": "Secret", "data": {"a": "eA=="}, "stringData": {"a": "y", "b": ""}}),
    );
    assert_eq!(got["data"], json!({"a": "eQ==", "b": ""}));
    assert!(got.get("stringData").is_none());
    let got = defaulted(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"serviceAccount": "s"}}));
    assert_eq!(got["spec"]["serviceAccountName"], "s");
    let got = defaulted(
        json!({"apiVersion": "v1", "kind": "Pod", "spec": {"serviceAccount": "s", "serviceAccountName": "n"}}),
    );
    assert_eq!(got["spec"]["serviceAccount"], "n");
    let got = defaulted(json!({"apiVersion": "v1", "kind": "Pod", "spec": {}}));
    assert!(got["spec"].get("serviceAccount").is_none());
}

#[test]
fn malformed_objects_are_left_to_validation() {
    for spec in [
        json!(null),
        json!(1),
        json!([]),
        json!({"template": 3}),
        json!({"template": {"spec": {"containers": [1, null]}}}),
    ] {
        defaulted(json!({"apiVersion": "apps/v1", "kind": "Deployment", "spec": spec}));
        defaulted(json!({"apiVersion": "v1", "kind": "Pod", "metadata": 1, "spec": spec, "status": []}));
    }
}

#[test]
fn zeros_that_json_leaves_out_are_left_out() {
    let got = defaulted(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {}, "annotations": {}, "finalizers": [], "ownerReferences": [], "generation": 0},
        "spec": {
            "hostNetwork": false, "nodeName": "", "nodeSelector": {}, "tolerations": [], "volumes": [{"name": "v", "emptyDir": {}}],
            "containers": [{"name": "c", "image": "i:1", "env": [{"name": "E", "value": ""}], "tty": false,
                            "securityContext": {"privileged": false}, "args": []}],
        },
    }));
    assert_eq!(got["metadata"], json!({"name": "p"}));
    let spec = got["spec"].as_object().unwrap();
    for absent in ["hostNetwork", "nodeName", "nodeSelector", "tolerations"] {
        assert!(!spec.contains_key(absent), "{absent}");
    }
    // pointers and structs mean something when they are there
    assert_eq!(spec["volumes"], json!([{"name": "v", "emptyDir": {}}]));
    let container = &spec["containers"][0];
    assert_eq!(container["securityContext"], json!({"privileged": false}));
    assert_eq!(container["env"], json!([{"name": "E"}]));
    assert!(container.get("tty").is_none() && container.get("args").is_none(), "{container}");
    // lists without omitempty stay
    let role = defaulted(json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "rules": []}));
    assert_eq!(role["rules"], json!([]));
}
