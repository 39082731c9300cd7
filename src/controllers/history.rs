//! How a workload was before: one ControllerRevision for each pod template, for StatefulSets and DaemonSets alike.

use crate::context::{Context, unless_gone};
use crate::owners::{claim_all, controller_reference};
use edge_api::selector::LabelSelector;
use edge_client::{
    Api, DeleteParams, Error, Informer, ObjectMeta, Patch, PatchParams, PostParams, Resource, ResourceExt,
};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Debug;
use std::sync::Arc;

/// The label of a pod that tells which revision made it.
pub(crate) const POD_LABEL: &str = "controller-revision-hash";
/// So many names are tried for a revision before giving up.
const NAMES: i32 = 20;

/// A short name for something: FNV-1a over its JSON and a number, in letters that make no words.
pub(crate) fn short_hash(of: &impl serde::Serialize, collisions: i32) -> String {
    const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let text = serde_json::to_string(of).unwrap_or_default();
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in text.bytes().chain(collisions.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let mut rest = hash ^ (hash >> 32);
    let base = LETTERS.len() as u64;
    let mut name = String::with_capacity(10);
    for _ in 0..10 {
        name.push(char::from(LETTERS[usize::try_from(rest % base).unwrap_or(0)]));
        rest /= base;
    }
    name
}

/// What a revision keeps: a patch that brings the template back, as `kubectl rollout undo` applies it.
fn data_of(template: &PodTemplateSpec) -> Value {
    let mut template = serde_json::to_value(plain(template)).unwrap_or_default();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

/// A template without what says nothing about pods.
fn plain(template: &PodTemplateSpec) -> PodTemplateSpec {
    let mut template = template.clone();
    if let Some(meta) = &mut template.metadata {
        meta.creation_timestamp = None;
    }
    template
}

/// The template that a revision keeps; `None` when somebody else has made it.
pub(crate) fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok().map(|t| plain(&t))
}

fn keeps(revision: &ControllerRevision, template: &PodTemplateSpec) -> bool {
    template_of(revision).is_some_and(|t| t == plain(template))
}

/// What has to be done so that the newest revision is that of the present template.
#[derive(Debug)]
enum Step {
    Keep(Arc<ControllerRevision>),
    /// An older one becomes the newest: a rollback.
    Renumber(Arc<ControllerRevision>, i64),
    Create(i64),
}

/// Decides for revisions in the order of their numbers.
fn step(sorted: &[Arc<ControllerRevision>], template: &PodTemplateSpec) -> Step {
    let Some(newest) = sorted.last() else { return Step::Create(1) };
    match sorted.iter().rfind(|r| keeps(r, template)) {
        Some(same) if same.revision == newest.revision => Step::Keep(same.clone()),
        Some(same) => Step::Renumber(same.clone(), newest.revision + 1),
        None => Step::Create(newest.revision + 1),
    }
}

/// The oldest of sorted revisions beyond a limit, except those that pods still have.
fn surplus<'a>(
    sorted: &'a [Arc<ControllerRevision>],
    limit: usize,
    live: &dyn Fn(&ControllerRevision) -> bool,
) -> impl Iterator<Item = &'a Arc<ControllerRevision>> {
    let surplus = sorted.len().saturating_sub(limit);
    sorted.iter().filter(|r| !live(r)).take(surplus)
}

/// An owner's revisions.
pub(crate) struct History<'a, O> {
    context: &'a Context,
    owner: &'a O,
    /// In the order of their numbers.
    pub(crate) revisions: Vec<Arc<ControllerRevision>>,
}

impl<'a, O> History<'a, O>
where
    O: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    /// The revisions of an owner, after adopting and releasing.
    pub(crate) async fn of(
        context: &'a Context,
        informer: &Informer<ControllerRevision>,
        owner: &'a O,
        selector: &LabelSelector,
    ) -> Result<Self, Error> {
        let candidates = informer.list_namespace(&owner.namespace().unwrap_or_default());
        let mut revisions = claim_all(&context.client, owner, selector, candidates, |_| true).await?;
        revisions.sort_by_key(|r| (r.revision, r.metadata.creation_timestamp.clone().map(|t| t.0), r.name_any()));
        Ok(Self { context, owner, revisions })
    }

    fn api(&self) -> Api<ControllerRevision> {
        Api::namespaced(self.context.client.clone(), &self.owner.namespace().unwrap_or_default())
    }

    /// The revision of the present template, made where it is not there, and made the newest where it is not. Gives also
    /// the number of names that were taken by other templates so far.
    ///
    /// # Errors
    /// When a request failed.
    pub(crate) async fn current(
        &self,
        template: &PodTemplateSpec,
        collisions: i32,
    ) -> Result<(Arc<ControllerRevision>, i32), Error> {
        match step(&self.revisions, template) {
            Step::Keep(known) => Ok((known, collisions)),
            Step::Renumber(known, number) => {
                let patch = json!({"metadata": {"uid": known.uid(), "resourceVersion": known.resource_version()},
                    "revision": number});
                let patched =
                    self.api().patch(&known.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await?;
                Ok((Arc::new(patched), collisions))
            }
            Step::Create(number) => self.create(template, number, collisions).await,
        }
    }

    async fn create(
        &self,
        template: &PodTemplateSpec,
        number: i64,
        mut collisions: i32,
    ) -> Result<(Arc<ControllerRevision>, i32), Error> {
        let last = collisions.saturating_add(NAMES);
        loop {
            let hash = short_hash(&plain(template), collisions);
            let mut labels = template.metadata.as_ref().and_then(|m| m.labels.clone()).unwrap_or_default();
            labels.insert("controller.kubernetes.io/hash".into(), hash.clone());
            labels.insert(POD_LABEL.into(), hash.clone());
            let revision = ControllerRevision {
                metadata: ObjectMeta {
                    name: Some(format!("{}-{hash}", self.owner.name_any())),
                    labels: Some(labels),
                    annotations: self.owner.meta().annotations.clone(),
                    owner_references: Some(vec![controller_reference(self.owner)]),
                    ..ObjectMeta::default()
                },
                data: Some(RawExtension(data_of(template))),
                revision: number,
            };
            match self.api().create(&PostParams::default(), &revision).await {
                Ok(made) => return Ok((Arc::new(made), collisions)),
                Err(error) if edge_client::is_conflict(&error) => {
                    // either an earlier round made it and the cache has not seen it yet, or the name is another's
                    match unless_gone(self.api().get(&revision.name_any()).await)? {
                        Some(known) if keeps(&known, template) => return Ok((Arc::new(known), collisions)),
                        _ if collisions >= last => return Err(error),
                        _ => collisions += 1,
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Deletes the oldest revisions beyond a limit. Those that are `kept` do not count, those that are `live` do but stay.
    pub(crate) async fn truncate(
        &self,
        limit: Option<i32>,
        kept: impl Fn(&ControllerRevision) -> bool,
        live: impl Fn(&ControllerRevision) -> bool,
    ) -> Result<(), Error> {
        let Ok(limit) = usize::try_from(limit.unwrap_or(10)) else { return Ok(()) };
        let old: Vec<_> = self.revisions.iter().filter(|r| !kept(r)).cloned().collect();
        let names: Vec<String> = surplus(&old, limit, &live).map(|r| r.name_any()).collect();
        for name in names {
            unless_gone(self.api().delete(&name, &DeleteParams::default()).await)?;
        }
        Ok(())
    }
}

/// The hash of a revision, as pods of DaemonSets carry it.
pub(crate) fn hash_of(revision: &ControllerRevision) -> &str {
    let label = revision.metadata.labels.as_ref().and_then(|l| l.get(POD_LABEL));
    label.map_or_else(|| revision.metadata.name.as_deref().unwrap_or_default(), String::as_str)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn template(image: &str) -> PodTemplateSpec {
        serde_json::from_value(json!({"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": image}]}}))
        .unwrap()
    }

    fn revision(number: i64, image: &str) -> Arc<ControllerRevision> {
        Arc::new(ControllerRevision {
            metadata: ObjectMeta { name: Some(format!("r{number}")), ..ObjectMeta::default() },
            data: Some(RawExtension(data_of(&template(image)))),
            revision: number,
        })
    }

    #[test]
    fn a_template_survives_in_a_revision() {
        let kept = template_of(&revision(1, "x:1")).unwrap();
        assert_eq!(kept, template("x:1"));
        let data = &revision(1, "x:1").data.clone().unwrap().0;
        assert_eq!(data["spec"]["template"]["$patch"], "replace", "kubectl merges it over the present one");
    }

    #[test]
    fn what_a_template_does_to_history() {
        let history = [revision(1, "x:1"), revision(2, "x:2"), revision(5, "x:3")];
        assert!(matches!(step(&[], &template("x:1")), Step::Create(1)));
        assert!(matches!(step(&history, &template("x:3")), Step::Keep(r) if r.revision == 5));
        assert!(matches!(step(&history, &template("x:4")), Step::Create(6)));
        assert!(matches!(step(&history, &template("x:1")), Step::Renumber(r, 6) if r.revision == 1));
    }

    #[test]
    fn the_oldest_go_unless_pods_have_them() {
        let history: Vec<_> = (1..=5).map(|n| revision(n, "x")).collect();
        let numbers = |limit, live: &dyn Fn(&ControllerRevision) -> bool| -> Vec<i64> {
            surplus(&history, limit, live).map(|r| r.revision).collect()
        };
        assert_eq!(numbers(3, &|_| false), [1, 2]);
        assert_eq!(numbers(3, &|r| r.revision == 1), [2, 3]);
        assert!(numbers(5, &|_| false).is_empty() && numbers(9, &|_| false).is_empty());
    }

    #[test]
    fn hashes_differ_with_what_they_are_of() {
        let hash = |image: &str, n| short_hash(&template(image), n);
        assert_eq!(hash("x:1", 0), hash("x:1", 0));
        assert!(hash("x:1", 0) != hash("x:2", 0) && hash("x:1", 0) != hash("x:1", 1));
        assert!(edge_api::names::label_value(&hash("x:1", 0)).is_ok());
    }
}
