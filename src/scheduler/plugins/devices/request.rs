//! What a claim asks for, with its classes looked up and its expressions compiled.

use super::select::{Selector, Selectors};
use k8s_openapi::api::resource::v1::{
    DeviceAllocationConfiguration, DeviceClass, DeviceConstraint, DeviceSelector, DeviceToleration, ResourceClaim,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Devices that one claim gets at most (Kubernetes' value).
pub(super) const MAX_RESULTS: usize = 32;

/// How many devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Exactly(usize),
    /// All that fit, and at least one.
    All,
}

/// One way of satisfying a request.
pub(super) struct Alternative {
    /// As results name it: `request`, or `request/alternative`.
    pub(super) name: String,
    pub(super) amount: Amount,
    pub(super) is_admin: bool,
    pub(super) selectors: Vec<Selector>,
    pub(super) tolerations: Vec<DeviceToleration>,
    /// How much of its capacities a device is to give.
    pub(super) capacity: Option<BTreeMap<String, Quantity>>,
    /// What the class says to the driver.
    pub(super) class: Arc<DeviceClass>,
}

/// What a claim asks for.
pub(super) struct Plan {
    /// `namespace/name`.
    pub(super) claim: String,
    /// The alternatives of each request, the best first.
    pub(super) requests: Vec<Vec<Alternative>>,
    pub(super) constraints: Vec<DeviceConstraint>,
    /// What the claim says to drivers.
    pub(super) config: Vec<DeviceAllocationConfiguration>,
}

fn expressions(of: Option<&Vec<DeviceSelector>>, selectors: &Selectors) -> Vec<Selector> {
    let all = of.into_iter().flatten().filter_map(|s| s.cel.as_ref());
    all.map(|cel| selectors.of(&cel.expression)).collect()
}

/// Looks a claim through.
///
/// # Errors
/// What makes it impossible at the moment.
pub(super) fn plan(
    claim: &ResourceClaim,
    classes: &dyn Fn(&str) -> Option<Arc<DeviceClass>>,
    selectors: &Selectors,
) -> Result<Plan, String> {
    let metadata = &claim.metadata;
    let of = format!(
        "{}/{}",
        metadata.namespace.as_deref().unwrap_or_default(),
        metadata.name.as_deref().unwrap_or_default()
    );
    let alternative = |name: String,
                       class: &str,
                       mode: Option<&str>,
                       count: Option<i64>,
                       own: Option<&Vec<DeviceSelector>>,
                       tolerations: Option<&Vec<DeviceToleration>>|
     -> Result<Alternative, String> {
        let class = classes(class).ok_or_else(|| format!("request {name}: device class {class} does not exist"))?;
        let amount = match mode {
            None | Some("ExactCount") => Amount::Exactly(usize::try_from(count.unwrap_or(1)).unwrap_or(usize::MAX)),
            Some("All") => Amount::All,
            Some(other) => return Err(format!("claim {of}, request {name}: unsupported count mode {other}")),
        };
        let mut all = expressions(class.spec.selectors.as_ref(), selectors);
        all.extend(expressions(own, selectors));
        let tolerations = tolerations.cloned().unwrap_or_default();
        Ok(Alternative { name, amount, is_admin: false, selectors: all, tolerations, capacity: None, class })
    };
    let devices = claim.spec.devices.as_ref();
    let mut requests = Vec::new();
    for request in devices.and_then(|d| d.requests.as_ref()).into_iter().flatten() {
        let mut alternatives = Vec::new();
        if let Some(exactly) = &request.exactly {
            let (mode, count) = (exactly.allocation_mode.as_deref(), exactly.count);
            let (own, tolerations) = (exactly.selectors.as_ref(), exactly.tolerations.as_ref());
            let mut a = alternative(request.name.clone(), &exactly.device_class_name, mode, count, own, tolerations)?;
            a.is_admin = exactly.admin_access == Some(true);
            a.capacity = exactly.capacity.as_ref().and_then(|c| c.requests.clone());
            alternatives.push(a);
        }
        for sub in request.first_available.iter().flatten() {
            let name = format!("{}/{}", request.name, sub.name);
            let (mode, count) = (sub.allocation_mode.as_deref(), sub.count);
            let (own, tolerations) = (sub.selectors.as_ref(), sub.tolerations.as_ref());
            let mut a = alternative(name, &sub.device_class_name, mode, count, own, tolerations)?;
            a.capacity = sub.capacity.as_ref().and_then(|c| c.requests.clone());
            alternatives.push(a);
        }
        if alternatives.is_empty() {
            return Err(format!("request {}: unsupported request type", request.name));
        }
        requests.push(alternatives);
    }
    let config = devices.and_then(|d| d.config.as_ref()).into_iter().flatten().map(|c| DeviceAllocationConfiguration {
        source: "FromClaim".into(),
        requests: c.requests.clone(),
        opaque: c.opaque.clone(),
    });
    let constraints = devices.and_then(|d| d.constraints.clone()).unwrap_or_default();
    let config = config.collect();
    Ok(Plan { claim: of, requests, constraints, config })
}

/// Whether a list of requests, as constraints and configurations have it, means the request of a result.
pub(super) fn is_meant(list: Option<&Vec<String>>, name: &str) -> bool {
    let whole = name.split('/').next().unwrap_or(name);
    list.is_none_or(|list| list.is_empty() || list.iter().any(|r| r == name || r == whole))
}
