//! Update and every kind of patch: read, transform, prepare, write; again when somebody else was faster.

use super::{Change, Committed, attributes, invalid_unless_empty, record_fields};
use crate::admission::Operation;
use crate::custom::values;
use crate::hub::ResourceHub;
use crate::meta;
use crate::options::{Target, UpdateKind, WriteOptions};
use crate::read::resource_of;
use crate::registry::{Registry, Transform, Updated};
use crate::resource::SubresourceKind;
use crate::scale;
use crate::stored::Stored;
use edge_api::field::{ErrorList, Path};
use edge_api::{Object, Status};
use std::borrow::Cow;

impl Registry {
    pub(crate) async fn do_update(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        kind: UpdateKind,
        transform: Transform<'_>,
    ) -> Result<Updated, Status> {
        if target.subresource.is_empty() {
            return self.update_object(target, options, kind, transform).await;
        }
        match target.info.subresource(target.subresource).map(|s| s.serves) {
            Some(SubresourceKind::Scale) => {
                let rescale = |live: Option<&Object>| scale::update(target, live, transform);
                let updated = self.update_object(target, options, kind, &rescale).await?;
                let served = self.served(target.info, updated.object.object()?).await?;
                let object = scale::of(target.info, &served, &updated.object);
                Ok(Updated { object, ..updated })
            }
            Some(SubresourceKind::Fields(_)) => self.update_object(target, options, kind, transform).await,
            _ => Err(Status::method_not_supported(&target.info.group_resource(), "update")),
        }
    }

    async fn update_object(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        kind: UpdateKind,
        transform: Transform<'_>,
    ) -> Result<Updated, Status> {
        let key = crate::read::object_key(target);
        loop {
            // the definition of a custom resource may change under us
            let hub = resource_of(&self.hub, target, "update")?;
            let Some(live) = hub.get(&key) else {
                match self.create_by_update(target, options, kind, transform).await {
                    // it came into being meanwhile
                    Err(e) if e.reason == edge_api::Reason::AlreadyExists => continue,
                    other => return other,
                }
            };
            let old = live.object()?;
            let served = match &target.info.conversion {
                None => Cow::Borrowed(&old),
                Some(_) => Cow::Owned(self.served(target.info, old.clone()).await?),
            };
            let new = transform(Some(&served))?;
            check_version(target, kind, &new, &old)?;
            if let Some(object) = self.attempt(target, options, kind, &hub, &live, (&old, &served, new)).await? {
                return Ok(Updated { object, created: false });
            }
        }
    }

    async fn create_by_update(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        kind: UpdateKind,
        transform: Transform<'_>,
    ) -> Result<Updated, Status> {
        let info = target.info;
        let creates = match kind {
            UpdateKind::Replace => info.strategy.create_on_update,
            UpdateKind::Apply => true,
            UpdateKind::Patch => false,
        };
        if !creates || !target.subresource.is_empty() {
            return Err(Status::not_found(&info.group_resource(), target.name));
        }
        let mut object = transform(None)?;
        if !object.resource_version().is_empty() {
            return Err(Status::modified(&info.group_resource(), target.name));
        }
        object.set_meta("name", target.name);
        let object = self.create_once(target, options, object, kind == UpdateKind::Apply).await?;
        Ok(Updated { object, created: true })
    }

    /// One attempt; `None` when somebody else was faster.
    async fn attempt(
        &self,
        target: &Target<'_>,
        options: &WriteOptions<'_>,
        kind: UpdateKind,
        hub: &ResourceHub,
        live: &Stored,
        (old, served_old, mut new): (&Object, &Object, Object),
    ) -> Result<Option<Stored>, Status> {
        let info = target.info;
        new.set_gvk(&info.gvk());
        meta::carry_over(&mut new, served_old);
        let a = attributes(Operation::Update, target, options, Some(served_old));
        self.mutate(&a, &mut new).await?;
        let main = target.subresource.is_empty();
        if let Some(SubresourceKind::Fields(merge)) = info.subresource(target.subresource).map(|s| s.serves) {
            merge(&mut new, served_old);
        } else if info.subresource("status").is_some() {
            copy_field(&mut new, served_old, "status");
        }
        if main {
            (info.strategy.prepare_update)(&mut new, served_old);
        } else if target.subresource == "status" {
            (info.strategy.prepare_status)(&mut new, served_old);
        }
        if info.strategy.generation && meta::desired_state_differs(info, &new, served_old) {
            meta::set_generation(&mut new, old.generation() + 1);
        }
        if kind != UpdateKind::Apply || target.subresource == "scale" {
            record_fields(target, options, Some(served_old), &mut new);
        }
        let mut errors = ErrorList::new();
        values::check(info, &new, Some(served_old), &mut errors);
        let served = info.custom.is_some().then(|| new.clone());
        new = self.to_stored(info, new).await?;
        meta::validate(info, &new, &mut errors);
        meta::validate_update(&new, old, &mut errors);
        if target.subresource == "status" {
            (info.strategy.validate_status)(&new, old, &mut errors);
        } else {
            (info.strategy.validate)(&new, &mut errors);
        }
        if main {
            (info.strategy.validate_news)(&new, Some(old), &mut errors);
            (info.strategy.validate_update)(&new, old, &mut errors);
        }
        invalid_unless_empty(info, target.name, &errors)?;
        self.validate_admission(&a, Some(served.as_ref().unwrap_or(&new))).await?;
        if new == *old && !live.is_modernized() {
            return Ok(Some(live.clone()));
        }
        let claims = self.hub.claims();
        let claim = if main { self.allocate(info, &mut new, Some(old))? } else { Default::default() };
        let claims = (!claim.is_empty()).then_some(claims);
        // the last finalizer of an object that is to be deleted has gone
        let ends = new.is_terminating()
            && !(info.strategy.is_held)(&new)
            && new.metadata().and_then(|m| m.get("deletionGracePeriodSeconds")).is_none_or(|g| g.as_i64() == Some(0));
        let change = if ends { Change::Delete } else { Change::Put(&new) };
        match self.commit_claim(target, hub, Some(live), change, options.dry_run, claims).await? {
            Committed::Done(stored) => Ok(Some(stored)),
            Committed::Lost => Ok(None),
        }
    }
}

pub(crate) fn copy_field(to: &mut Object, from: &Object, field: &str) {
    match from.fields().get(field) {
        Some(value) => drop(to.fields_mut().insert(field.into(), value.clone())),
        None => drop(to.fields_mut().remove(field)),
    }
}

/// Whether the new object may follow the live one.
fn check_version(target: &Target<'_>, kind: UpdateKind, new: &Object, live: &Object) -> Result<(), Status> {
    let info = target.info;
    let version = new.resource_version();
    if version.is_empty() || version == "0" {
        if kind == UpdateKind::Replace && !info.strategy.unconditional_update && target.subresource != "scale" {
            let mut errors = ErrorList::new();
            let path = Path::new("metadata").child("resourceVersion");
            errors.invalid(&path, &version.into(), "must be specified for an update");
            return Err(Status::invalid(&info.group_kind(), target.name, &errors));
        }
    } else if version != live.resource_version() {
        if version.parse::<u64>().is_err() {
            let mut errors = ErrorList::new();
            let path = Path::new("metadata").child("resourceVersion");
            errors.invalid(&path, &version.into(), "must be a number");
            return Err(Status::invalid(&info.group_kind(), target.name, &errors));
        }
        return Err(Status::modified(&info.group_resource(), target.name));
    }
    if !new.uid().is_empty() && new.uid() != live.uid() {
        let why =
            format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", new.uid(), live.uid());
        return Err(Status::conflict(&info.group_resource(), target.name, &why));
    }
    Ok(())
}
