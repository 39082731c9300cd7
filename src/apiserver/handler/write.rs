//! Create, update and patch.

use super::patch::{Patch, apply_configuration};
use super::{Context, read, read_body};
use crate::body::Body;
use crate::decode::{self, Decoded};
use crate::encode::{self, add_warnings};
use crate::negotiate::{PatchKind, custom_request_encoding, patch_kind, request_encoding};
use edge_api::{GroupVersionKind, Object, Status};
use edge_registry::{Stored, SubresourceKind, UpdateKind, Updated};
use edge_schema::apply::{self, Writer};
use edge_schema::validate::FieldValidation;
use edge_schema::{Schema, TypeRef};
use http::{Response, StatusCode};

impl Context<'_> {
    /// The kind of the body: the resource's, or the subresource's own (`Scale`, `Binding`, ...).
    fn body_kind(&self) -> GroupVersionKind {
        match self.row.subresource(&self.info.subresource) {
            Some(s) => GroupVersionKind::new(s.group.as_ref(), s.version.as_ref(), s.kind.as_ref()),
            None => self.row.gvk(),
        }
    }

    /// The type of the body's kind.
    fn body_type(&self, gvk: &GroupVersionKind) -> Option<TypeRef<'_>> {
        self.row.types().kind(gvk).or_else(|| Schema::builtin().kind(gvk))
    }

    async fn written(&self, code: StatusCode, stored: &Stored, warnings: &[String]) -> Result<Response<Body>, Status> {
        self.settle_rights().await;
        let mut response = read::object(self, code, stored).await?;
        add_warnings(&mut response, warnings.iter().map(String::as_str));
        Ok(response)
    }

    async fn updated(&self, updated: &Updated, warnings: &[String]) -> Result<Response<Body>, Status> {
        let code = if updated.created { StatusCode::CREATED } else { StatusCode::OK };
        self.written(code, &updated.object, warnings).await
    }

    /// Reads the object in the body.
    async fn decode(&self, body: Body, mode: FieldValidation) -> Result<Decoded, Status> {
        let encoding = match self.row.custom {
            Some(_) => custom_request_encoding(self.headers)?,
            None => request_encoding(self.headers)?,
        };
        let bytes = read_body(body).await?;
        let gvk = self.body_kind();
        let mut decoded = decode::object(encoding, &bytes, &gvk, self.body_type(&gvk), mode)?;
        check_place(&self.target(), &mut decoded.object)?;
        Ok(decoded)
    }
}

/// What an object says of its place must agree with the path; what it leaves out, the path says.
fn check_place(target: &edge_registry::Target<'_>, object: &mut Object) -> Result<(), Status> {
    if object.namespace().is_empty() && !target.namespace.is_empty() {
        object.set_meta("namespace", target.namespace);
    } else if object.namespace() != target.namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    if target.name.is_empty() {
        return Ok(());
    }
    match object.name() {
        "" => object.set_meta("name", target.name),
        own if own != target.name => {
            return Err(Status::bad_request(format!(
                "the name of the object ({own}) does not match the name on the URL ({})",
                target.name
            )));
        }
        _ => {}
    }
    Ok(())
}

pub(super) async fn create(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let dry_run = context.query.dry_run("CreateOptions")?;
    let mode = context.query.field_validation("CreateOptions")?;
    let Decoded { object, warnings } = context.decode(body, mode).await?;
    let stored = context.server.registry.create(&context.target(), &context.write_options(dry_run), object).await?;
    let submitted = context.row.subresource(&context.info.subresource).map(|s| s.serves);
    if matches!(submitted, Some(SubresourceKind::Binding | SubresourceKind::Eviction)) {
        let success = Status { code: StatusCode::CREATED.as_u16(), ..Status::success() };
        let value = serde_json::to_value(success).map_err(Status::internal)?;
        return Ok(encode::respond(&context.accepted, StatusCode::CREATED, value).await);
    }
    context.written(StatusCode::CREATED, &stored, &warnings).await
}

pub(super) async fn update(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let dry_run = context.query.dry_run("UpdateOptions")?;
    let mode = context.query.field_validation("UpdateOptions")?;
    let Decoded { object, warnings } = context.decode(body, mode).await?;
    let transform = |_: Option<&Object>| Ok(object.clone());
    let updated = context
        .server
        .registry
        .update(&context.target(), &context.write_options(dry_run), UpdateKind::Replace, &transform)
        .await?;
    context.updated(&updated, &warnings).await
}

pub(super) async fn patch(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let kind = patch_kind(context.headers)?;
    let dry_run = context.query.dry_run("PatchOptions")?;
    let mode = context.query.field_validation("PatchOptions")?;
    let force = context.query.optional_flag("force");
    let gvk = context.body_kind();
    let ty = context.body_type(&gvk);
    if kind == PatchKind::Strategic && context.row.custom.is_some() {
        return Err(Patch::not_strategic());
    }
    if kind == PatchKind::Apply {
        let bytes = read_body(body).await?;
        return apply(context, &bytes, (&gvk, ty), mode, dry_run).await;
    }
    if force.is_some() {
        let mut errors = edge_api::field::ErrorList::new();
        errors.forbidden(&edge_api::field::Path::new("force"), "may not be specified for non-apply patch");
        return Err(Status::invalid(&super::patch::options_kind(), "", &errors));
    }
    let bytes = read_body(body).await?;
    let patch = Patch::parse(kind, &bytes, &gvk, ty, mode)?;
    let target = context.target();
    let transform = |live: Option<&Object>| {
        let live = live.ok_or_else(|| Status::not_found(&context.row.group_resource(), target.name))?;
        let mut object = patch.apply(live)?;
        check_place(&target, &mut object)?;
        Ok(object)
    };
    let updated =
        context.server.registry.update(&target, &context.write_options(dry_run), UpdateKind::Patch, &transform).await?;
    context.updated(&updated, &patch.into_warnings()).await
}

async fn apply(
    context: &Context<'_>,
    bytes: &[u8],
    (gvk, ty): (&GroupVersionKind, Option<TypeRef<'_>>),
    mode: FieldValidation,
    dry_run: bool,
) -> Result<Response<Body>, Status> {
    let force = context.query.flag("force");
    let Decoded { mut object, warnings } = apply_configuration(context, bytes, gvk, ty, mode)?;
    let target = context.target();
    check_place(&target, &mut object)?;
    let config = object.into_value();
    let (api_version, now) = (gvk.api_version(), edge_api::meta::now());
    let resets: &[&str] = match target.subresource {
        "" if context.row.subresource("status").is_some() => &["status"],
        "status" => &["spec"],
        _ => &[],
    };
    let writer = Writer {
        manager: &context.field_manager,
        api_version: &api_version,
        subresource: target.subresource,
        resets,
        now: &now,
    };
    let transform = |live: Option<&Object>| {
        let live = live.map(|l| l.clone().into_value());
        let merged = apply::apply(ty, live.as_ref(), &config, &writer, force)?;
        Object::from_value(merged).map_err(|_| Status::bad_request("the configuration does not make an object"))
    };
    let updated =
        context.server.registry.update(&target, &context.write_options(dry_run), UpdateKind::Apply, &transform).await?;
    context.updated(&updated, &warnings).await
}
