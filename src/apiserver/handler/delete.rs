//! Delete and deletecollection.

use super::{Context, read, read_body};
use crate::body::Body;
use crate::decode;
use crate::encode;
use crate::negotiate::{content_type, request_encoding};
use crate::query::dry_run_of;
use edge_api::field::{ErrorList, Path};
use edge_api::status::StatusDetails;
use edge_api::{GroupKind, GroupVersionKind, Object, Status};
use edge_registry::options::{Preconditions, Propagation};
use edge_registry::{DeleteOptions, Deleted};
use http::{Response, StatusCode};
use serde_json::Value;

/// Deletes one object. Where it is gone at once the answer is a `Status`, else the object that is now going.
pub(super) async fn one(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let (options, dry_run) = options(context, body).await?;
    let write = context.write_options(dry_run);
    let deleted = context.server.registry.delete(&context.target(), &write, &options).await?;
    context.settle_rights().await;
    match deleted {
        Deleted::Pending(stored) => read::object(context, StatusCode::OK, &stored).await,
        Deleted::Gone(stored) => {
            let mut status = Status::success();
            status.details = Some(Box::new(StatusDetails {
                name: context.info.name.clone(),
                group: context.info.group.clone(),
                kind: context.info.resource.clone(),
                uid: stored.object()?.uid().to_owned(),
                ..StatusDetails::default()
            }));
            let value = serde_json::to_value(&status).map_err(Status::internal)?;
            Ok(encode::respond(&context.accepted, StatusCode::OK, value).await)
        }
    }
}

/// Deletes what a selection holds; the answer lists it.
pub(super) async fn collection(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let (options, dry_run) = options(context, body).await?;
    let write = context.write_options(dry_run);
    let selection = read::list_options(context)?;
    let result = context.server.registry.delete_collection(&context.target(), &write, &selection, &options).await?;
    context.settle_rights().await;
    let bytes = read::list_bytes(context, &result).await?;
    Ok(encode::respond(&context.accepted, StatusCode::OK, bytes).await)
}

/// The options, from the body if there is one, else from the query; and whether it is a dry run.
async fn options(context: &Context<'_>, body: Body) -> Result<(DeleteOptions, bool), Status> {
    let bytes = read_body(body).await?;
    if bytes.is_empty() {
        return from_query(context);
    }
    let gvk = GroupVersionKind::new("", "v1", "DeleteOptions");
    // kubectl and old clients send options without saying in what encoding; it is JSON
    let encoding = match content_type(context.headers) {
        "application/x-www-form-urlencoded" => crate::negotiate::Encoding::Json,
        _ => request_encoding(context.headers)?,
    };
    let value = decode::tree(encoding, &bytes, &gvk)?.value;
    let value = Object::from_value(value)
        .map_err(|_| Status::bad_request("the object provided is unrecognized (must be of type DeleteOptions)"))?;
    if !matches!(value.kind(), "" | "DeleteOptions") {
        return Err(Status::bad_request(format!(
            "decoded object cannot be converted to DeleteOptions: it is a {}",
            value.kind()
        )));
    }
    from_object(&value)
}

fn from_query(context: &Context<'_>) -> Result<(DeleteOptions, bool), Status> {
    let q = context.query;
    let options = DeleteOptions {
        grace_period_seconds: q.int("gracePeriodSeconds")?,
        orphan_dependents: q.optional_flag("orphanDependents"),
        propagation: propagation(q.get("propagationPolicy"))?,
        preconditions: Preconditions::default(),
    };
    check(&options)?;
    Ok((options, q.dry_run("DeleteOptions")?))
}

fn from_object(value: &Object) -> Result<(DeleteOptions, bool), Status> {
    let wrong = |field: &str| Status::bad_request(format!("DeleteOptions: {field} has the wrong type"));
    let text = |pointer: &str| match value.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(_) => Err(wrong(pointer)),
    };
    let grace_period_seconds = match value.get("gracePeriodSeconds") {
        Value::Null => None,
        v => Some(v.as_i64().ok_or_else(|| wrong("gracePeriodSeconds"))?),
    };
    let orphan_dependents = match value.get("orphanDependents") {
        Value::Null => None,
        v => Some(v.as_bool().ok_or_else(|| wrong("orphanDependents"))?),
    };
    let options = DeleteOptions {
        grace_period_seconds,
        orphan_dependents,
        propagation: propagation(text("/propagationPolicy")?.as_deref())?,
        preconditions: Preconditions {
            uid: text("/preconditions/uid")?,
            resource_version: text("/preconditions/resourceVersion")?,
        },
    };
    check(&options)?;
    let dry_run = value.get("dryRun").as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or("?"));
    Ok((options, dry_run_of(dry_run, "DeleteOptions")?))
}

fn propagation(text: Option<&str>) -> Result<Option<Propagation>, Status> {
    match text {
        None | Some("") => Ok(None),
        Some("Orphan") => Ok(Some(Propagation::Orphan)),
        Some("Background") => Ok(Some(Propagation::Background)),
        Some("Foreground") => Ok(Some(Propagation::Foreground)),
        Some(other) => {
            let mut errors = ErrorList::new();
            let path = Path::new("propagationPolicy");
            errors.not_supported(&path, &other.into(), &["Foreground", "Background", "Orphan", "nil"]);
            Err(invalid(&errors))
        }
    }
}

fn check(options: &DeleteOptions) -> Result<(), Status> {
    if options.propagation.is_some() && options.orphan_dependents.is_some() {
        let mut errors = ErrorList::new();
        let detail = "orphanDependents and deletionPropagation cannot be both set";
        errors.invalid(&Path::new("propagationPolicy"), &Value::Null, detail);
        return Err(invalid(&errors));
    }
    Ok(())
}

fn invalid(errors: &ErrorList) -> Status {
    Status::invalid(&GroupKind { group: "meta.k8s.io".into(), kind: "DeleteOptions".into() }, "", errors)
}
