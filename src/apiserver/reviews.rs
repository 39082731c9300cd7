//! The create-only kinds that are questions: who am I, may he, is this token good.
//!
//! Nothing is stored. The answer is the object that was posted, with its `status` filled in.

use crate::access::Ask;
use crate::body::Body;
use crate::decode::{self, Decoded};
use crate::encode;
use crate::handler::{Context, read_body};
use crate::negotiate::request_encoding;
use crate::request_info::RequestInfo;
use edge_api::{GroupVersionKind, Object, Status, UserInfo};
use edge_schema::Schema;
use http::{Response, StatusCode};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Which question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Review {
    SubjectAccess,
    SelfSubjectAccess,
    LocalSubjectAccess,
    SelfSubjectRules,
    SelfSubject,
    Token,
}

impl Review {
    /// The question that a request asks, if it is one.
    pub(crate) fn of(info: &RequestInfo) -> Option<Self> {
        match (info.group.as_str(), info.resource.as_str()) {
            ("authorization.k8s.io", "subjectaccessreviews") => Some(Self::SubjectAccess),
            ("authorization.k8s.io", "selfsubjectaccessreviews") => Some(Self::SelfSubjectAccess),
            ("authorization.k8s.io", "localsubjectaccessreviews") => Some(Self::LocalSubjectAccess),
            ("authorization.k8s.io", "selfsubjectrulesreviews") => Some(Self::SelfSubjectRules),
            ("authentication.k8s.io", "selfsubjectreviews") => Some(Self::SelfSubject),
            ("authentication.k8s.io", "tokenreviews") => Some(Self::Token),
            _ => None,
        }
    }
}

/// Answers a question.
///
/// # Errors
/// 400 or 422 for a malformed one, 405 for any verb but create.
pub(crate) async fn create(context: &Context<'_>, review: Review, body: Body) -> Result<Response<Body>, Status> {
    let info = context.info;
    if info.verb != "create" || !info.subresource.is_empty() {
        return Err(Status::method_not_supported(&info.group_resource(), &info.verb));
    }
    if (review == Review::LocalSubjectAccess) == info.namespace.is_empty() {
        return Err(Status::unknown_path());
    }
    let dry_run = context.query.dry_run("CreateOptions")?;
    let mode = context.query.field_validation("CreateOptions")?;
    let encoding = request_encoding(context.headers)?;
    let bytes = read_body(body).await?;
    let gvk = &context.row.gvk();
    let Decoded { mut object, warnings } = decode::object(encoding, &bytes, gvk, Schema::builtin().kind(gvk), mode)?;
    context.admit_submitted(&mut object, dry_run).await?;
    let status = answer(context, review, gvk, &object)?;
    object.metadata_mut();
    object.fields_mut().insert("status".into(), status);
    let mut response = encode::respond(&context.accepted, StatusCode::CREATED, object.into_value()).await;
    encode::add_warnings(&mut response, warnings.iter().map(String::as_str));
    Ok(response)
}

fn answer(context: &Context<'_>, review: Review, gvk: &GroupVersionKind, object: &Object) -> Result<Value, Status> {
    let access = &context.server.access;
    match review {
        Review::SelfSubject => Ok(json!({"userInfo": context.user})),
        Review::Token => {
            let token = object.str_at("/spec/token");
            if token.is_empty() {
                return Err(Status::bad_request("token is required for TokenReview in authentication"));
            }
            Ok(access.review_token(context.server.as_ref(), token, &strings(object.pointer("/spec/audiences"))))
        }
        Review::SelfSubjectRules => {
            let namespace = object.str_at("/spec/namespace");
            if namespace.is_empty() {
                return Err(Status::bad_request("no namespace on request"));
            }
            Ok(access.rules(context.user, namespace))
        }
        Review::SelfSubjectAccess => decide(context, object, context.user, gvk),
        Review::SubjectAccess => decide(context, object, &subject(object, gvk)?, gvk),
        Review::LocalSubjectAccess => {
            if object.str_at("/spec/resourceAttributes/namespace") != context.info.namespace {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must match namespace: {}",
                    context.info.namespace
                )));
            }
            decide(context, object, &subject(object, gvk)?, gvk)
        }
    }
}

fn strings(value: Option<&Value>) -> Vec<String> {
    value.and_then(Value::as_array).into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

/// The user that the question is about.
fn subject(object: &Object, gvk: &GroupVersionKind) -> Result<UserInfo, Status> {
    let user = UserInfo {
        username: object.str_at("/spec/user").to_owned(),
        uid: object.str_at("/spec/uid").to_owned(),
        groups: strings(object.pointer("/spec/groups")),
        extra: object
            .pointer("/spec/extra")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .map(|(k, v)| (k.clone(), strings(Some(v))))
            .collect::<BTreeMap<_, _>>(),
    };
    if user.username.is_empty() && user.groups.is_empty() {
        let mut errors = edge_api::field::ErrorList::new();
        let path = edge_api::field::Path::new("spec").child("user");
        errors.invalid(&path, &"".into(), "at least one of user or group must be specified");
        return Err(Status::invalid(&gvk.group_kind(), "", &errors));
    }
    Ok(user)
}

fn decide(context: &Context<'_>, object: &Object, user: &UserInfo, gvk: &GroupVersionKind) -> Result<Value, Status> {
    let given = |field: &str| object.pointer(&format!("/spec/{field}")).filter(|v| !v.is_null()).is_some();
    let ask = match (given("resourceAttributes"), given("nonResourceAttributes")) {
        (true, false) => {
            let text = |field: &str| object.str_at(&format!("/spec/resourceAttributes/{field}"));
            Ask::Resource {
                verb: text("verb"),
                group: text("group"),
                resource: text("resource"),
                subresource: text("subresource"),
                namespace: text("namespace"),
                name: text("name"),
                node: "",
            }
        }
        (false, true) => Ask::Path {
            verb: object.str_at("/spec/nonResourceAttributes/verb"),
            path: object.str_at("/spec/nonResourceAttributes/path"),
        },
        (both, _) => {
            let mut errors = edge_api::field::ErrorList::new();
            let detail = if both {
                "cannot be specified in combination with resourceAttributes"
            } else {
                "exactly one of nonResourceAttributes or resourceAttributes must be specified"
            };
            let path = edge_api::field::Path::new("spec").child(if both {
                "nonResourceAttributes"
            } else {
                "resourceAttributes"
            });
            errors.invalid(&path, &Value::Null, detail);
            return Err(Status::invalid(&gvk.group_kind(), "", &errors));
        }
    };
    let (allowed, reason) = context.server.access.decide(user, ask);
    let mut status = json!({"allowed": allowed});
    if !reason.is_empty() {
        status["reason"] = reason.into();
    }
    Ok(status)
}
