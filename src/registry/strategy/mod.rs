//! What a resource does differently from the others: plain functions in a file named after it.
//!
//! In: the submitted object (defaults filled in) and, for updates, the live one. Out: the object as it is stored, or field
//! errors in Kubernetes' wording. The generic store calls them in the order prepare, validate.

pub mod api_service;
mod autoscaler;
pub(crate) mod config;
pub(crate) mod custom;
pub mod definition;
mod devices;
pub(crate) mod namespace;
mod network;
pub(crate) mod pod;
pub(crate) mod service;
mod slices;
mod storage;
pub(crate) mod template;
pub(crate) mod workload;

use crate::options::Propagation;
use edge_api::Object;
use edge_api::field::ErrorList;

/// How names of a resource are checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameRule {
    /// DNS subdomain (most resources).
    Subdomain,
    /// DNS label.
    Label,
    /// DNS label that begins with a letter (services).
    Label1035,
    /// Anything that fits into a path (RBAC).
    PathSegment,
}

/// What the API server allocates for a resource besides the object itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// Nothing.
    None,
    /// Cluster addresses and node ports.
    Service,
}

/// The hooks of a resource. Rows override [`Strategy::DEFAULT`].
#[derive(Debug)]
pub struct Strategy {
    /// Shape of names.
    pub name: NameRule,
    /// Whether `metadata.generation` counts changes of the desired state.
    pub generation: bool,
    /// Whether a submitted status survives creation (nodes).
    pub keeps_status_on_create: bool,
    /// Whether PUT to an absent name creates.
    pub create_on_update: bool,
    /// Whether PUT without a resourceVersion is allowed.
    pub unconditional_update: bool,
    /// Completes a new object.
    pub prepare_create: fn(&mut Object),
    /// Completes a changed object; the second is the live one.
    pub prepare_update: fn(&mut Object, &Object),
    /// Completes a new status, as its subresource writes it; the second is the live object.
    pub prepare_status: fn(&mut Object, &Object),
    /// Judges the object as it would be stored.
    pub validate: fn(&Object, &mut ErrorList),
    /// Judges what was already judged when the live object has it, too: `None` where there is none, as for a new object.
    pub validate_news: fn(&Object, Option<&Object>, &mut ErrorList),
    /// Judges the change from the live object (second).
    pub validate_update: fn(&Object, &Object, &mut ErrorList),
    /// Judges a new status, as its subresource writes it; the second is the live object.
    pub validate_status: fn(&Object, &Object, &mut ErrorList),
    /// The grace period in seconds that a deletion gets, given what was asked for; `None`: no graceful deletion.
    pub grace_period: Option<fn(&Object, Option<i64>) -> i64>,
    /// Whether something keeps a deleted object from going.
    pub is_held: fn(&Object) -> bool,
    /// What a deletion that is not at its end leaves on the object.
    pub prepare_delete: fn(&mut Object),
    /// What becomes of dependents when the client does not say.
    pub propagation: Propagation,
    /// What is allocated along with the object.
    pub allocation: Allocation,
}

impl Strategy {
    /// Nothing special.
    pub const DEFAULT: Self = Self {
        name: NameRule::Subdomain,
        generation: false,
        keeps_status_on_create: false,
        create_on_update: false,
        unconditional_update: true,
        prepare_create: |_| {},
        prepare_update: |_, _| {},
        prepare_status: |_, _| {},
        validate: |_, _| {},
        validate_news: |_, _, _| {},
        validate_update: |_, _, _| {},
        validate_status: |_, _, _| {},
        grace_period: None,
        is_held: |o| o.finalizers().next().is_some(),
        prepare_delete: |_| {},
        propagation: Propagation::Background,
        allocation: Allocation::None,
    };
}

/// What ordinary resources do.
pub static DEFAULT: Strategy = Strategy::DEFAULT;
/// Objects whose desired state is counted.
static COUNTED: Strategy = Strategy { generation: true, ..Strategy::DEFAULT };
/// Nodes bring their status along.
static NODE: Strategy = Strategy { keeps_status_on_create: true, ..Strategy::DEFAULT };
/// RBAC's names may be anything that fits into a path.
static RBAC: Strategy = Strategy { name: NameRule::PathSegment, ..Strategy::DEFAULT };
/// Leases may be made by an update, and need a version to be updated.
static LEASE: Strategy = Strategy { create_on_update: true, unconditional_update: false, ..Strategy::DEFAULT };
/// Events may be made by an update.
static EVENT: Strategy = Strategy { create_on_update: true, ..Strategy::DEFAULT };

/// The strategy of a built-in resource.
pub(crate) fn of(group: &str, plural: &str) -> &'static Strategy {
    match (group, plural) {
        ("", "pods") => &pod::STRATEGY,
        ("", "services") => &service::STRATEGY,
        ("", "configmaps") => &config::CONFIG_MAP,
        ("", "secrets") => &config::SECRET,
        ("", "namespaces") => &namespace::STRATEGY,
        ("", "nodes") => &NODE,
        ("", "persistentvolumeclaims") => &storage::CLAIM,
        ("", "persistentvolumes") => &storage::VOLUME,
        ("storage.k8s.io", "storageclasses") => &storage::CLASS,
        ("storage.k8s.io", "volumeattributesclasses") => &storage::ATTRIBUTES_CLASS,
        ("storage.k8s.io", "volumeattachments") => &storage::ATTACHMENT,
        ("", "replicationcontrollers") => &workload::REPLICATION_CONTROLLER,
        ("apps", "deployments") => &workload::DEPLOYMENT,
        ("apps", "replicasets") => &workload::REPLICA_SET,
        ("apps", "statefulsets") => &workload::STATEFUL_SET,
        ("apps", "daemonsets") => &workload::DAEMON_SET,
        ("batch", "jobs") => &workload::JOB,
        ("batch", "cronjobs") => &workload::CRON_JOB,
        ("" | "events.k8s.io", "events") => &EVENT,
        ("networking.k8s.io", "networkpolicies") => &network::NETWORK_POLICY,
        ("networking.k8s.io", "ipaddresses") => &network::IP_ADDRESS,
        ("networking.k8s.io", "servicecidrs") => &network::SERVICE_CIDR,
        ("discovery.k8s.io", "endpointslices") => &network::ENDPOINT_SLICE,
        ("resource.k8s.io", "deviceclasses") => &devices::CLASS,
        ("resource.k8s.io", "resourceclaims") => &devices::CLAIM,
        ("resource.k8s.io", "resourceclaimtemplates") => &devices::TEMPLATE,
        ("resource.k8s.io", "resourceslices") => &devices::SLICE,
        ("coordination.k8s.io", _) => &LEASE,
        ("rbac.authorization.k8s.io", _) => &RBAC,
        crate::custom::DEFINITIONS => &definition::STRATEGY,
        ("apiregistration.k8s.io", "apiservices") => &api_service::STRATEGY,
        ("autoscaling", "horizontalpodautoscalers") => &autoscaler::AUTOSCALER,
        ("discovery.k8s.io" | "networking.k8s.io" | "policy" | "admissionregistration.k8s.io", _) => &COUNTED,
        ("flowcontrol.apiserver.k8s.io", _) => &COUNTED,
        _ => &DEFAULT,
    }
}

/// What `/status` may change: the status, and metadata that clients may change.
pub(crate) fn status_only(new: &mut Object, live: &Object) {
    keep_other_fields(new, live, &["metadata", "status"]);
}

/// What `/approval` may change: the conditions.
pub(crate) fn approval_only(new: &mut Object, live: &Object) {
    let conditions = new.pointer("/status/conditions").cloned();
    keep_other_fields(new, live, &[]);
    if let Some(conditions) = conditions {
        new.section_mut("status").insert("conditions".into(), conditions);
    }
}

/// Gives every top-level field but some the live object's value.
pub(crate) fn keep_other_fields(new: &mut Object, live: &Object, changed: &[&str]) {
    new.fields_mut().retain(|k, _| changed.contains(&k.as_str()));
    for (k, v) in live.fields() {
        if !changed.contains(&k.as_str()) {
            new.fields_mut().insert(k.clone(), v.clone());
        }
    }
}

/// Complains when a field that may not change did.
pub(crate) fn immutable(new: &Object, live: &Object, pointer: &str, errors: &mut ErrorList) {
    if new.pointer(pointer) != live.pointer(pointer) {
        let path = edge_api::field::Path::new(&pointer.trim_start_matches('/').replace('/', "."));
        let value = new.pointer(pointer).cloned().unwrap_or_default();
        errors.invalid(&path, &value, "field is immutable");
    }
}
