//! The columns of the built-in resources, as `kubectl get` of Kubernetes 1.36 shows them.

use super::autoscalers;
use super::cells::*;
use super::{Cell, Column};
use edge_api::Object;
use serde_json::Value;

fn column(name: &'static str, kind: &'static str, priority: i32, cell: Cell) -> Column {
    let description = match &cell {
        Cell::Pointer(p) => format!("The field {}.", p.trim_start_matches('/').replace('/', ".")),
        Cell::Age(_) => "Time since it came into being.".into(),
        Cell::Computed(_) => format!("{name}, made out of several fields."),
        Cell::Path(_) | Cell::Nothing => String::new(),
    };
    Column { name: name.into(), kind: kind.into(), format: "".into(), description: description.into(), priority, cell }
}

/// Text at a pointer.
fn text(name: &'static str, pointer: &'static str) -> Column {
    column(name, "string", 0, Cell::Pointer(pointer.into()))
}

/// A number at a pointer.
fn number(name: &'static str, pointer: &'static str) -> Column {
    column(name, "integer", 0, Cell::Pointer(pointer.into()))
}

/// Something computed.
fn made(name: &'static str, cell: fn(&Object) -> Value) -> Column {
    column(name, "string", 0, Cell::Computed(cell))
}

fn age() -> Column {
    column("Age", "string", 0, Cell::Age("/metadata/creationTimestamp".into()))
}

fn wide(mut column: Column) -> Column {
    column.priority = 1;
    column
}

/// The columns of a resource, after its name.
pub(crate) fn of(group: &str, plural: &str) -> Vec<Column> {
    match (group, plural) {
        ("", _) => core(plural),
        ("apps" | "batch" | "autoscaling" | "policy", _) => workloads(plural),
        ("networking.k8s.io" | "discovery.k8s.io", _) => networking(plural),
        ("storage.k8s.io", _) => storage(plural),
        ("resource.k8s.io", "resourceclaims") => vec![made("State", claim_state), age()],
        ("resource.k8s.io", "resourceslices") => {
            vec![text("Node", "/spec/nodeName"), text("Driver", "/spec/driver"), text("Pool", "/spec/pool/name"), age()]
        }
        ("events.k8s.io", "events") => core("events"),
        ("rbac.authorization.k8s.io", "rolebindings" | "clusterrolebindings") => vec![
            made("Role", role_ref),
            age(),
            wide(made("Users", |o| subjects(o, "User"))),
            wide(made("Groups", |o| subjects(o, "Group"))),
            wide(made("ServiceAccounts", |o| subjects(o, "ServiceAccount"))),
        ],
        ("rbac.authorization.k8s.io", _) => vec![text("Created At", "/metadata/creationTimestamp")],
        ("coordination.k8s.io", _) => vec![text("Holder", "/spec/holderIdentity"), age()],
        crate::custom::DEFINITIONS => {
            vec![column("Created At", "date", 0, Cell::Pointer("/metadata/creationTimestamp".into()))]
        }
        ("apiregistration.k8s.io", _) => {
            vec![made("Service", aggregated_service), made("Available", availability), age()]
        }
        ("node.k8s.io", _) => vec![text("Handler", "/handler"), age()],
        ("metrics.k8s.io", "nodes") => {
            vec![text("cpu", "/usage/cpu"), text("memory", "/usage/memory"), text("Window", "/window")]
        }
        ("metrics.k8s.io", _) => vec![
            made("cpu", |o| containers_use(o, "cpu")),
            made("memory", |o| containers_use(o, "memory")),
            text("Window", "/window"),
        ],
        ("scheduling.k8s.io", _) => {
            vec![
                number("Value", "/value"),
                made("Global-Default", |o| flag(o, "/globalDefault")),
                age(),
                text("PreemptionPolicy", "/preemptionPolicy"),
            ]
        }
        ("certificates.k8s.io", _) => vec![
            age(),
            text("SignerName", "/spec/signerName"),
            text("Requestor", "/spec/username"),
            made("RequestedDuration", requested_duration),
            made("Condition", csr_condition),
        ],
        ("admissionregistration.k8s.io", "mutatingwebhookconfigurations" | "validatingwebhookconfigurations") => {
            vec![made("Webhooks", |o| length(o, "/webhooks")), age()]
        }
        ("admissionregistration.k8s.io", "validatingadmissionpolicies") => vec![
            made("Validations", |o| length(o, "/spec/validations")),
            text("ParamKind", "/spec/paramKind/kind"),
            age(),
        ],
        ("admissionregistration.k8s.io", _) => {
            vec![text("PolicyName", "/spec/policyName"), text("ParamRef", "/spec/paramRef/name"), age()]
        }
        ("flowcontrol.apiserver.k8s.io", "flowschemas") => vec![
            text("PriorityLevel", "/spec/priorityLevelConfiguration/name"),
            number("MatchingPrecedence", "/spec/matchingPrecedence"),
            text("DistinguisherMethod", "/spec/distinguisherMethod/type"),
            age(),
        ],
        ("flowcontrol.apiserver.k8s.io", _) => vec![
            text("Type", "/spec/type"),
            text("NominalConcurrencyShares", "/spec/limited/nominalConcurrencyShares"),
            age(),
        ],
        _ => vec![age()],
    }
}

fn core(plural: &str) -> Vec<Column> {
    match plural {
        "pods" => vec![
            made("Ready", pod_ready),
            made("Status", pod_status),
            made("Restarts", pod_restarts),
            age(),
            wide(text("IP", "/status/podIP")),
            wide(text("Node", "/spec/nodeName")),
            wide(text("Nominated Node", "/status/nominatedNodeName")),
            wide(made("Readiness Gates", readiness_gates)),
        ],
        "services" => vec![
            text("Type", "/spec/type"),
            text("Cluster-IP", "/spec/clusterIP"),
            made("External-IP", external_ip),
            made("Port(s)", service_ports),
            age(),
            wide(made("Selector", |o| labels(o.pointer("/spec/selector")))),
        ],
        "nodes" => vec![
            made("Status", node_status),
            made("Roles", node_roles),
            age(),
            text("Version", "/status/nodeInfo/kubeletVersion"),
            wide(made("Internal-IP", |o| node_address(o, "InternalIP"))),
            wide(made("External-IP", |o| node_address(o, "ExternalIP"))),
            wide(text("OS-Image", "/status/nodeInfo/osImage")),
            wide(text("Kernel-Version", "/status/nodeInfo/kernelVersion")),
            wide(text("Container-Runtime", "/status/nodeInfo/containerRuntimeVersion")),
        ],
        "namespaces" => vec![text("Status", "/status/phase"), age()],
        "configmaps" => vec![made("Data", config_size), age()],
        "secrets" => vec![text("Type", "/type"), made("Data", config_size), age()],
        "serviceaccounts" => vec![made("Secrets", |o| length(o, "/secrets")), age()],
        "endpoints" => vec![made("Endpoints", endpoints), age()],
        "events" => vec![
            column("Last Seen", "string", 0, Cell::Computed(event_last_seen)),
            text("Type", "/type"),
            text("Reason", "/reason"),
            made("Object", event_object),
            wide(text("Subobject", "/involvedObject/fieldPath")),
            wide(made("Source", event_source)),
            made("Message", |o| trimmed(o.str_at("/message"))),
            wide(column("First Seen", "string", 0, Cell::Computed(event_first_seen))),
            wide(number("Count", "/count")),
            wide(text("Name", "/metadata/name")),
        ],
        "persistentvolumes" => vec![
            text("Capacity", "/spec/capacity/storage"),
            made("Access Modes", access_modes),
            text("Reclaim Policy", "/spec/persistentVolumeReclaimPolicy"),
            made("Status", phase_or_going),
            made("Claim", claim_of),
            text("StorageClass", "/spec/storageClassName"),
            text("VolumeAttributesClass", "/spec/volumeAttributesClassName"),
            text("Reason", "/status/reason"),
            age(),
            wide(text("VolumeMode", "/spec/volumeMode")),
        ],
        "persistentvolumeclaims" => vec![
            made("Status", phase_or_going),
            text("Volume", "/spec/volumeName"),
            text("Capacity", "/status/capacity/storage"),
            made("Access Modes", access_modes),
            text("StorageClass", "/spec/storageClassName"),
            text("VolumeAttributesClass", "/spec/volumeAttributesClassName"),
            age(),
            wide(text("VolumeMode", "/spec/volumeMode")),
        ],
        "replicationcontrollers" => {
            let mut out = replicas();
            out.extend(template(|o| labels(o.pointer("/spec/selector"))));
            out
        }
        "resourcequotas" => vec![made("Request", |o| quota(o, false)), made("Limit", |o| quota(o, true)), age()],
        "componentstatuses" => vec![
            made("Status", component_status),
            text("Message", "/conditions/0/message"),
            text("Error", "/conditions/0/error"),
        ],
        "podtemplates" => {
            vec![
                made("Containers", |o| container_names(o, "/template/spec/containers")),
                made("Images", |o| container_images(o, "/template/spec/containers")),
                made("Pod Labels", |o| labels(o.pointer("/template/metadata/labels"))),
            ]
        }
        "limitranges" => vec![text("Created At", "/metadata/creationTimestamp")],
        _ => vec![age()],
    }
}

/// Desired, current and ready replicas, and the age.
fn replicas() -> Vec<Column> {
    vec![
        number("Desired", "/spec/replicas"),
        number("Current", "/status/replicas"),
        number("Ready", "/status/readyReplicas"),
        age(),
    ]
}

/// What is in the pods of a workload.
fn template(selector: fn(&Object) -> Value) -> Vec<Column> {
    vec![
        wide(made("Containers", |o| container_names(o, "/spec/template/spec/containers"))),
        wide(made("Images", |o| container_images(o, "/spec/template/spec/containers"))),
        wide(made("Selector", selector)),
    ]
}

fn workloads(plural: &str) -> Vec<Column> {
    let object_selector: fn(&Object) -> Value = |o| selector(o.pointer("/spec/selector"));
    let mut out = match plural {
        "deployments" => vec![
            made("Ready", |o| ratio(o, "/status/readyReplicas", "/spec/replicas")),
            number("Up-to-date", "/status/updatedReplicas"),
            number("Available", "/status/availableReplicas"),
            age(),
        ],
        "replicasets" => replicas(),
        "statefulsets" => {
            return vec![
                made("Ready", |o| ratio(o, "/status/readyReplicas", "/spec/replicas")),
                age(),
                wide(made("Containers", |o| container_names(o, "/spec/template/spec/containers"))),
                wide(made("Images", |o| container_images(o, "/spec/template/spec/containers"))),
            ];
        }
        "daemonsets" => vec![
            number("Desired", "/status/desiredNumberScheduled"),
            number("Current", "/status/currentNumberScheduled"),
            number("Ready", "/status/numberReady"),
            number("Up-to-date", "/status/updatedNumberScheduled"),
            number("Available", "/status/numberAvailable"),
            made("Node Selector", |o| labels(o.pointer("/spec/template/spec/nodeSelector"))),
            age(),
        ],
        "jobs" => vec![
            made("Status", job_status),
            made("Completions", job_completions),
            made("Duration", job_duration),
            age(),
        ],
        "cronjobs" => {
            return vec![
                text("Schedule", "/spec/schedule"),
                text("Timezone", "/spec/timeZone"),
                made("Suspend", |o| flag_text(o, "/spec/suspend")),
                made("Active", |o| length(o, "/status/active")),
                made("Last Schedule", last_schedule),
                age(),
                wide(made("Containers", |o| container_names(o, "/spec/jobTemplate/spec/template/spec/containers"))),
                wide(made("Images", |o| container_images(o, "/spec/jobTemplate/spec/template/spec/containers"))),
                wide(made("Selector", |o| selector(o.pointer("/spec/jobTemplate/spec/selector")))),
            ];
        }
        "controllerrevisions" => return vec![made("Controller", controller), number("Revision", "/revision"), age()],
        "poddisruptionbudgets" => {
            return vec![
                made("Min Available", |o| or_na(o, "/spec/minAvailable")),
                made("Max Unavailable", |o| or_na(o, "/spec/maxUnavailable")),
                number("Allowed Disruptions", "/status/disruptionsAllowed"),
                age(),
            ];
        }
        "horizontalpodautoscalers" => {
            return vec![
                made("Reference", scale_target),
                made("Targets", autoscalers::targets),
                number("MinPods", "/spec/minReplicas"),
                number("MaxPods", "/spec/maxReplicas"),
                number("Replicas", "/status/currentReplicas"),
                age(),
            ];
        }
        _ => return vec![age()],
    };
    out.extend(template(object_selector));
    out
}

fn networking(plural: &str) -> Vec<Column> {
    match plural {
        "ingresses" => vec![
            made("Class", |o| or_none(o, "/spec/ingressClassName")),
            made("Hosts", ingress_hosts),
            made("Address", load_balancer),
            made("Ports", ingress_ports),
            age(),
        ],
        "ingressclasses" => {
            vec![text("Controller", "/spec/controller"), text("Parameters", "/spec/parameters/name"), age()]
        }
        "networkpolicies" => vec![made("Pod-Selector", |o| selector(o.pointer("/spec/podSelector"))), age()],
        "endpointslices" => vec![
            text("AddressType", "/addressType"),
            made("Ports", slice_ports),
            made("Endpoints", slice_endpoints),
            age(),
        ],
        "servicecidrs" => vec![made("CIDRs", |o| joined(o, "/spec/cidrs")), age()],
        "ipaddresses" => vec![text("ParentRef", "/spec/parentRef/name")],
        _ => vec![age()],
    }
}

fn storage(plural: &str) -> Vec<Column> {
    match plural {
        "storageclasses" => vec![
            text("Provisioner", "/provisioner"),
            text("ReclaimPolicy", "/reclaimPolicy"),
            text("VolumeBindingMode", "/volumeBindingMode"),
            made("AllowVolumeExpansion", |o| flag(o, "/allowVolumeExpansion")),
            age(),
        ],
        "volumeattachments" => vec![
            text("Attacher", "/spec/attacher"),
            text("PV", "/spec/source/persistentVolumeName"),
            text("Node", "/spec/nodeName"),
            made("Attached", |o| flag(o, "/status/attached")),
            age(),
        ],
        "volumeattributesclasses" => vec![text("DriverName", "/driverName"), age()],
        "csinodes" => vec![made("Drivers", |o| length(o, "/spec/drivers")), age()],
        "csidrivers" => vec![
            made("AttachRequired", |o| flag(o, "/spec/attachRequired")),
            made("PodInfoOnMount", |o| flag(o, "/spec/podInfoOnMount")),
            age(),
        ],
        "csistoragecapacities" => {
            vec![text("StorageClassName", "/storageClassName"), text("Capacity", "/capacity"), age()]
        }
        _ => vec![age()],
    }
}
