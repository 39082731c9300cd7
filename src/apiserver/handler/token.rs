//! `serviceaccounts/token`: a token for a service account, usually bound to the pod that asks for it.

use super::{Context, read_body};
use crate::body::Body;
use crate::decode::{self, Decoded};
use crate::encode;
use crate::negotiate::request_encoding;
use edge_api::field::{ErrorList, Path};
use edge_api::{GroupResource, GroupVersionKind, Object, Status};
use edge_auth::{BoundObject, TokenSpec, node_of};
use edge_schema::Schema;
use http::{Response, StatusCode};
use serde_json::{Value, json};

/// What a request that names no lifetime gets, in seconds.
const DEFAULT_SECONDS: i64 = 3600;
const LEAST_SECONDS: i64 = 600;
const MOST_SECONDS: i64 = 1 << 32;

pub(super) async fn create(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let dry_run = context.query.dry_run("CreateOptions")?;
    let mode = context.query.field_validation("CreateOptions")?;
    let encoding = request_encoding(context.headers)?;
    let bytes = read_body(body).await?;
    let gvk = GroupVersionKind::new("authentication.k8s.io", "v1", "TokenRequest");
    let Decoded { mut object, warnings } = decode::object(encoding, &bytes, &gvk, Schema::builtin().kind(&gvk), mode)?;
    let (namespace, name) = (context.info.namespace.as_str(), context.info.name.as_str());
    let account = stored(context, "serviceaccounts", namespace, name)?;
    context.admit_submitted(&mut object, dry_run).await?;
    let lifetime = lifetime(&object, &gvk)?;
    let (bound, node) = bound(context, &object)?;
    if let Some(asking) = node_of(context.user) {
        of_own_pod(context, asking, bound.as_ref(), &object)?;
    }
    let spec = TokenSpec { namespace, name, uid: account.uid(), audiences: audiences(&object), lifetime, bound, node };
    let minted = context.server.access.authenticator.mint(&spec).map_err(Status::internal)?;
    let expires = i64::try_from(minted.expires).ok().and_then(|s| jiff::Timestamp::from_second(s).ok());
    object.set_meta("name", name);
    object.set_meta("namespace", namespace);
    object.set_meta("creationTimestamp", &edge_api::meta::now());
    let request = object.section_mut("spec");
    request.insert("audiences".into(), minted.audiences.into());
    request.insert("expirationSeconds".into(), lifetime.into());
    let status = json!({
        "token": if dry_run { "" } else { &minted.token },
        "expirationTimestamp": expires.map(edge_api::meta::time),
    });
    object.fields_mut().insert("status".into(), status);
    let mut response = encode::respond(&context.accepted, StatusCode::CREATED, object.into_value()).await;
    encode::add_warnings(&mut response, warnings.iter().map(String::as_str));
    Ok(response)
}

fn stored(context: &Context<'_>, resource: &str, namespace: &str, name: &str) -> Result<Object, Status> {
    let missing = || Status::not_found(&GroupResource::new("", resource), name);
    context.server.stored_object("", resource, namespace, name).ok_or_else(missing)
}

fn audiences(object: &Object) -> Vec<String> {
    let list = object.pointer("/spec/audiences").and_then(Value::as_array);
    list.into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

fn lifetime(object: &Object, gvk: &GroupVersionKind) -> Result<u64, Status> {
    let asked = object.pointer("/spec/expirationSeconds").and_then(Value::as_i64).unwrap_or(DEFAULT_SECONDS);
    let mut errors = ErrorList::new();
    let path = Path::new("spec").child("expirationSeconds");
    if asked < LEAST_SECONDS {
        errors.invalid(&path, &asked.into(), "may not specify a duration less than 10 minutes");
    } else if asked > MOST_SECONDS {
        errors.invalid(&path, &asked.into(), "may not specify a duration larger than 2^32 seconds");
    }
    if !errors.is_empty() {
        return Err(Status::invalid(&gvk.group_kind(), "", &errors));
    }
    u64::try_from(asked).map_err(Status::internal)
}

/// Nodes get tokens for the pods that run on them, bound to those.
fn of_own_pod(context: &Context<'_>, node: &str, bound: Option<&BoundObject>, request: &Object) -> Result<(), Status> {
    let refuse = |why: &str| {
        let accounts = GroupResource::new("", "serviceaccounts");
        Err(Status::forbidden(&accounts, &context.info.name, &format!("node {node:?} {why}")))
    };
    let Some(pod) = bound.filter(|b| b.kind == "Pod") else {
        return refuse("requested token not bound to a pod");
    };
    if request.str_at("/spec/boundObjectRef/uid").is_empty() {
        return refuse("requested token bound to a pod without a uid");
    }
    let pod = stored(context, "pods", &context.info.namespace, &pod.name)?;
    if pod.str_at("/spec/nodeName") != node {
        return refuse("requested token bound to a pod scheduled on a different node");
    }
    Ok(())
}

type Node = Option<(String, String)>;

/// What the token is to be bound to, checked to be there; with it the node of a pod.
fn bound(context: &Context<'_>, object: &Object) -> Result<(Option<BoundObject>, Node), Status> {
    let text = |field: &str| object.str_at(&format!("/spec/boundObjectRef/{field}"));
    let (kind, name) = (text("kind"), text("name"));
    if kind.is_empty() && name.is_empty() {
        return Ok((None, None));
    }
    let (resource, namespace) = match kind {
        "Pod" => ("pods", context.info.namespace.as_str()),
        "Secret" => ("secrets", context.info.namespace.as_str()),
        "Node" => ("nodes", ""),
        _ => return Err(Status::bad_request(format!("cannot bind token for serviceaccount to object of type {kind}"))),
    };
    let target = stored(context, resource, namespace, name)?;
    if !text("uid").is_empty() && text("uid") != target.uid() {
        let why = format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been \
             deleted and then recreated",
            text("uid")
        );
        return Err(Status::conflict(&GroupResource::new("", resource), name, &why));
    }
    let mut node = None;
    if kind == "Pod" {
        let account = target.str_at("/spec/serviceAccountName");
        if account != context.info.name {
            return Err(Status::bad_request(format!(
                "cannot bind token to a Pod running with ServiceAccount {account:?}"
            )));
        }
        let name = target.str_at("/spec/nodeName");
        node = context.server.stored_object("", "nodes", "", name).map(|n| (name.to_owned(), n.uid().to_owned()));
    }
    let bound = BoundObject { kind: kind.into(), name: name.into(), uid: target.uid().into() };
    Ok((Some(bound), node))
}
