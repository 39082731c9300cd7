//! Create, and what is submitted to a subresource: bindings and evictions.

use super::{Change, Committed, attributes, invalid_unless_empty, record_fields};
use crate::admission::Operation;
use crate::custom::values;
use crate::meta;
use crate::options::{Target, WriteOptions};
use crate::read::resource_of;
use crate::registry::Registry;
use crate::resource::SubresourceKind;
use crate::stored::Stored;
use crate::strategy::Allocation;
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, Status};
use serde_json::{Value, json};

/// So many generated names are tried (Kubernetes' value).
const NAME_ATTEMPTS: usize = 8;

impl Registry {
    pub(crate) async fn do_create(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        object: Object,
    ) -> Result<Stored, Status> {
        match target.info.subresource(target.subresource).map(|s| s.serves) {
            Some(SubresourceKind::Binding) => return self.bind(target, options, &object).await,
            Some(SubresourceKind::Eviction) => return self.evict(target, options, &object).await,
            None if target.subresource.is_empty() => {}
            _ => return Err(Status::method_not_supported(&target.info.group_resource(), "create")),
        }
        if target.info.group.is_empty() && target.info.plural == "bindings" {
            let Some(pods) = self.catalog().preferred("", "pods") else {
                return Err(Status::internal("there is no row of pods"));
            };
            let pod = Target { info: &pods, namespace: target.namespace, name: object.name(), subresource: "binding" };
            return self.bind(&pod, options, &object).await;
        }
        if !object.resource_version().is_empty() {
            return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if !object.name().is_empty() || object.generate_name().is_empty() {
            return self.create_once(target, options, object, false).await;
        }
        let mut attempts = 0;
        loop {
            let mut named = object.clone();
            named.set_meta("name", &meta::generate_name(object.generate_name())?);
            attempts += 1;
            match self.create_once(target, options, named, false).await {
                Err(e) if e.reason == edge_api::Reason::AlreadyExists && attempts < NAME_ATTEMPTS => {}
                other => return other,
            }
        }
    }

    /// Creates an object with a name. `is_applied`: it is a configuration that somebody applies.
    pub(super) async fn create_once(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        mut object: Object,
        is_applied: bool,
    ) -> Result<Stored, Status> {
        let info = target.info;
        if info.custom.as_ref().is_some_and(|c| c.terminating) {
            let mut status = Status::method_not_supported(&info.group_resource(), "create");
            status.message = "create not allowed while custom resource definition is terminating".into();
            return Err(status);
        }
        let hub = resource_of(&self.hub, target, "create")?;
        object.set_gvk(&info.gvk());
        if info.namespaced {
            object.set_meta("namespace", target.namespace);
        }
        let name = object.name().to_owned();
        let target = &Target { name: &name, ..*target };
        if !options.dry_run && !name.is_empty() && hub.get(&crate::read::object_key(target)).is_some() {
            // the common case of a repetition, without the work of preparing it
            return Err(Status::already_exists(&info.group_resource(), &name));
        }
        meta::complete_new(&mut object, info.strategy.generation)?;
        let a = attributes(Operation::Create, target, options, None);
        self.mutate(&a, &mut object).await?;
        if info.subresource("status").is_some() && !info.strategy.keeps_status_on_create {
            object.fields_mut().remove("status");
        }
        (info.strategy.prepare_create)(&mut object);
        // what was applied says already who has applied it; as an update it would also be somebody's who never lets it go
        if !is_applied {
            record_fields(target, options, None, &mut object);
        }
        let mut errors = ErrorList::new();
        values::check(info, &object, None, &mut errors);
        let served = info.custom.is_some().then(|| object.clone());
        object = self.to_stored(info, object).await?;
        meta::validate(info, &object, &mut errors);
        (info.strategy.validate)(&object, &mut errors);
        (info.strategy.validate_news)(&object, None, &mut errors);
        invalid_unless_empty(info, &name, &errors)?;
        self.validate_admission(&a, Some(served.as_ref().unwrap_or(&object))).await?;
        let key = crate::read::object_key(target);
        let exists = options.dry_run && hub.get(&key).is_some();
        let prepared = (info.strategy.allocation != Allocation::None).then(|| object.clone());
        loop {
            let claims = self.hub.claims();
            let claim = self.allocate(info, &mut object, None)?;
            let claims = (!claim.is_empty()).then_some(claims);
            let change = Change::Put(&object);
            match (self.commit_claim(target, &hub, None, change, options.dry_run, claims).await?, &prepared) {
                (Committed::Done(stored), _) if !exists => return Ok(stored),
                // another server has claimed something meanwhile, which is known now
                (Committed::Lost, Some(prepared)) if hub.get(&key).is_none() => object = prepared.clone(),
                _ => return Err(Status::already_exists(&info.group_resource(), &name)),
            }
        }
    }

    /// Assigns a pod to a node.
    async fn bind(&self, target: &Target<'_>, options: &WriteOptions<'_>, binding: &Object) -> Result<Stored, Status> {
        let mut binding = binding.clone();
        self.admit_submitted(&attributes(Operation::Create, target, options, None), &mut binding).await?;
        let binding = &binding;
        let mut errors = ErrorList::new();
        let (kind, node) = (binding.str_at("/target/kind"), binding.str_at("/target/name"));
        let path = Path::new("target");
        if !matches!(kind, "" | "Node") {
            errors.not_supported(&path.child("kind"), &kind.into(), &["Node", "<empty>"]);
        }
        if node.is_empty() {
            errors.required(&path.child("name"), "");
        }
        let binding_kind = edge_api::GroupKind { group: String::new(), kind: "Binding".into() };
        if !errors.is_empty() {
            return Err(Status::invalid(&binding_kind, target.name, &errors));
        }
        let hub = resource_of(&self.hub, target, "create")?;
        loop {
            let live = crate::read::get(&self.hub, target)?;
            let mut pod = live.object()?;
            check_unassigned(target, &pod, binding)?;
            pod.section_mut("spec").insert("nodeName".into(), node.into());
            if let Some(annotations) = binding.metadata().and_then(|m| m.get("annotations")).and_then(Value::as_object)
            {
                let own = edge_api::object::object_entry(pod.metadata_mut(), "annotations");
                own.extend(annotations.clone());
            }
            set_scheduled(&mut pod);
            match self.commit(target, &hub, Some(&live), Change::Put(&pod), options.dry_run).await? {
                Committed::Done(stored) => return Ok(stored),
                Committed::Lost => {}
            }
        }
    }
}

fn check_unassigned(target: &Target<'_>, pod: &Object, binding: &Object) -> Result<(), Status> {
    let conflict = |why: &str| Err(Status::conflict(&target.info.group_resource(), target.name, why));
    let name = target.name;
    if !binding.uid().is_empty() && binding.uid() != pod.uid() {
        return conflict(&format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            binding.uid(),
            pod.uid()
        ));
    }
    if pod.is_terminating() {
        return conflict(&format!("pod {name} is being deleted, cannot be assigned to a host"));
    }
    let node = pod.str_at("/spec/nodeName");
    if !node.is_empty() {
        return conflict(&format!("pod {name} is already assigned to node {node:?}"));
    }
    if pod.pointer("/spec/schedulingGates").and_then(Value::as_array).is_some_and(|g| !g.is_empty()) {
        return conflict(&format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    Ok(())
}

fn set_scheduled(pod: &mut Object) {
    let now = edge_api::meta::now();
    let status = pod.section_mut("status");
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = conditions.as_array_mut() else { return };
    list.retain(|c| c.get("type").and_then(Value::as_str) != Some("PodScheduled"));
    list.push(json!({"type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": now}));
}
