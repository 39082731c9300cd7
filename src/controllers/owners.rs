//! Controller references: which object manages which.

use crate::context::unless_changed;
use edge_api::selector::LabelSelector;
use edge_client::{Api, Client, Error, Patch, PatchParams};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as metav1;
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::sync::Arc;

/// The reference that marks `owner` as the controller of something.
pub(crate) fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> metav1::OwnerReference {
    metav1::OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller of an object.
pub(crate) fn controller_of<K: ResourceExt>(object: &K) -> Option<&metav1::OwnerReference> {
    object.owner_references().iter().find(|r| r.controller == Some(true))
}

/// The controller of an object, when it is of kind `K`.
pub(crate) fn controller_of_kind<K: Resource<DynamicType = ()>>(
    object: &impl ResourceExt,
) -> Option<&metav1::OwnerReference> {
    controller_of(object).filter(|r| {
        let group = r.api_version.split_once('/').map_or("", |(g, _)| g);
        r.kind == K::kind(&()) && group == K::group(&())
    })
}

/// The selector of a workload in matchable form. One that does not parse matches nothing: validation refuses such.
pub(crate) fn selector(selector: &metav1::LabelSelector) -> LabelSelector {
    serde_json::to_value(selector)
        .ok()
        .and_then(|v| LabelSelector::from_value(&v).ok())
        .unwrap_or_else(LabelSelector::nothing)
}

/// Whether an object's labels match.
pub(crate) fn matches(selector: &LabelSelector, object: &impl ResourceExt) -> bool {
    selector.matches(|k| object.labels().get(k).map(String::as_str))
}

/// What an owner makes of an object that it may manage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claim {
    /// It is managed already.
    Owned,
    /// Nobody manages it and it matches: to be adopted.
    Adopt,
    /// It is managed but no longer matches: to be released.
    Release,
    /// It is none of the owner's business.
    Ignore,
}

/// Decides about one object.
pub(crate) fn claim<K>(owner: &K, selector: &LabelSelector, object: &impl ResourceExt) -> Claim
where
    K: Resource<DynamicType = ()>,
{
    let fits = matches(selector, object);
    let going = owner.meta().deletion_timestamp.is_some();
    match controller_of(object) {
        Some(r) if Some(&r.uid) != owner.meta().uid.as_ref() => Claim::Ignore,
        Some(_) if fits => Claim::Owned,
        Some(_) if going => Claim::Ignore,
        Some(_) => Claim::Release,
        None if fits && !going && object.meta().deletion_timestamp.is_none() => Claim::Adopt,
        None => Claim::Ignore,
    }
}

/// The strategic merge patch that adopts an object, on condition that it is still the same one. That it may have changed
/// meanwhile is no hindrance: what is new is scheduled and started while it is adopted, and one that were left out would be
/// made once more.
pub(crate) fn adoption<K: Resource<DynamicType = ()>>(owner: &K, object: &impl ResourceExt) -> serde_json::Value {
    ownership(object, serde_json::json!(controller_reference(owner)))
}

/// The strategic merge patch that releases an object, on condition that it is still the same one.
pub(crate) fn release<K: Resource<DynamicType = ()>>(owner: &K, object: &impl ResourceExt) -> serde_json::Value {
    ownership(object, serde_json::json!({"$patch": "delete", "uid": owner.meta().uid}))
}

fn ownership(object: &impl ResourceExt, reference: serde_json::Value) -> serde_json::Value {
    serde_json::json!({"metadata": {"uid": object.uid(), "ownerReferences": [reference]}})
}

/// The objects of an owner among some of its namespace, after adopting those that nobody manages (as far as `adoptable`
/// lets) and releasing those that no longer match. What was adopted counts at once.
///
/// # Errors
/// When a request failed; the owner must be worked on again.
pub(crate) async fn claim_all<O, K>(
    client: &Client,
    owner: &O,
    selector: &LabelSelector,
    candidates: Vec<Arc<K>>,
    adoptable: impl Fn(&K) -> bool,
) -> Result<Vec<Arc<K>>, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    // whether the owner is really there: the cache may be behind its deletion, and what is adopted then would go with it
    let mut may_adopt = None;
    let mut owned = Vec::new();
    for object in candidates {
        match claim(owner, selector, &*object) {
            Claim::Ignore => {}
            Claim::Owned => owned.push(object),
            Claim::Adopt if !adoptable(&object) => {}
            Claim::Adopt => {
                let may = match may_adopt {
                    Some(known) => known,
                    None => *may_adopt.insert(is_current(client, owner).await?),
                };
                if may {
                    let patch = Patch::Strategic(adoption(owner, &*object));
                    let adopted = api.patch(&object.name_any(), &PatchParams::default(), &patch).await;
                    owned.extend(unless_changed(adopted)?.map(Arc::new));
                }
            }
            Claim::Release => {
                let patch = Patch::Strategic(release(owner, &*object));
                unless_changed(api.patch(&object.name_any(), &PatchParams::default(), &patch).await)?;
            }
        }
    }
    Ok(owned)
}

/// Whether the API server knows the owner as the cache does, and not as going.
async fn is_current<O>(client: &Client, owner: &O) -> Result<bool, Error>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<O> = Api::namespaced(client.clone(), &owner.namespace().unwrap_or_default());
    let live = crate::context::unless_gone(api.get(&owner.name_any()).await)?;
    Ok(live.is_some_and(|l| l.meta().uid == owner.meta().uid && l.meta().deletion_timestamp.is_none()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::ReplicaSet;
    use k8s_openapi::api::core::v1::Pod;

    fn owner(uid: &str) -> ReplicaSet {
        let mut rs = ReplicaSet::default();
        rs.metadata.name = Some("rs".into());
        rs.metadata.uid = Some(uid.into());
        rs
    }

    fn pod(label: &str, owner: Option<&ReplicaSet>) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.labels = Some([("app".to_owned(), label.to_owned())].into());
        pod.metadata.owner_references = owner.map(|o| vec![controller_reference(o)]);
        pod
    }

    #[test]
    fn claims() {
        let (mine, other) = (owner("1"), owner("2"));
        let selector = LabelSelector::from_map([("app", "a")]);
        assert_eq!(claim(&mine, &selector, &pod("a", Some(&mine))), Claim::Owned);
        assert_eq!(claim(&mine, &selector, &pod("b", Some(&mine))), Claim::Release);
        assert_eq!(claim(&mine, &selector, &pod("a", None)), Claim::Adopt);
        assert_eq!(claim(&mine, &selector, &pod("b", None)), Claim::Ignore);
        assert_eq!(claim(&mine, &selector, &pod("a", Some(&other))), Claim::Ignore);
        assert_eq!(controller_of_kind::<ReplicaSet>(&pod("a", Some(&mine))).map(|r| r.uid.as_str()), Some("1"));
        assert!(controller_of_kind::<Pod>(&pod("a", Some(&mine))).is_none());
    }
}
