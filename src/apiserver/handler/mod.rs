//! The verbs, written once for all resources.
//!
//! In: an authorized request and the row of its resource. Out: the answer. What a resource does differently is in its row
//! and the registry's hooks; here are only the forms of requests and answers.

mod components;
mod computed;
mod connect;
mod delete;
mod patch;
mod read;
mod shape;
mod token;
mod usage;
mod watch;
mod write;

use crate::Server;
use crate::admission::{self, policy};
use crate::body::{Body, BodyError};
use crate::encode::add_warnings;
use crate::negotiate::{Accepted, Scope, accept_of};
use crate::query::Query;
use crate::request_info::RequestInfo;
use crate::reviews;
use bytes::Bytes;
use edge_api::{Object, Status, UserInfo};
use edge_registry::{Attributes, Operation, ResourceInfo, Target, WriteOptions};
use http::{HeaderMap, Request, Response};
use std::sync::Arc;

/// The longest body that is read, in bytes (kube-apiserver's value).
pub(crate) const BODY_LIMIT: usize = 3 * 1024 * 1024;

/// A request on its way through a handler.
pub(crate) struct Context<'a> {
    pub(crate) server: &'a Arc<Server>,
    pub(crate) user: &'a UserInfo,
    pub(crate) info: &'a RequestInfo,
    pub(crate) query: &'a Query<'a>,
    pub(crate) row: &'a Arc<ResourceInfo>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) accepted: Accepted,
    /// Who writes, for the field managers: as the query says, else the user agent up to its first slash.
    field_manager: String,
}

/// Answers a request for a resource.
///
/// # Errors
/// Whatever the verb refuses; 404 for an unknown resource and 405 for a verb that it does not have.
pub(crate) async fn handle(
    server: &Arc<Server>,
    user: &UserInfo,
    info: &RequestInfo,
    query: &Query<'_>,
    request: Request<Body>,
) -> Result<Response<Body>, Status> {
    let row = server.row_as_of_now(info).await?;
    if let Some(connection) = connect::Connection::of(info) {
        connect::admit(server, user, info, &row, query).await?;
        return connect::connect(server, user, info, connection, request).await;
    }
    let (parts, body) = request.into_parts();
    let scope = match info.verb.as_str() {
        "list" | "watch" | "deletecollection" => Scope::Many,
        _ => Scope::One,
    };
    let protobuf = row.custom.is_none();
    let accepted = accept_of(&parts.headers, scope, query.optional_flag("pretty"), info.verb == "watch", protobuf)?;
    let field_manager = field_manager(query, &parts.headers);
    let context = Context { server, user, info, query, row: &row, headers: &parts.headers, accepted, field_manager };
    if let Some(review) = reviews::Review::of(info) {
        return reviews::create(&context, review, body).await;
    }
    context.check_served()?;
    if (row.group.as_ref(), row.plural.as_ref()) == ("", "componentstatuses") {
        return components::read(&context).await;
    }
    if row.group == crate::usage::GROUP {
        return usage::read(&context).await;
    }
    let mut response = answer(&context, body).await?;
    if let Some(warning) = row.custom.as_ref().and_then(|c| c.warning.as_deref()) {
        add_warnings(&mut response, [warning]);
    }
    Ok(response)
}

/// The verbs of a resource whose objects are stored.
async fn answer(context: &Context<'_>, body: Body) -> Result<Response<Body>, Status> {
    let (row, info) = (context.row, context.info);
    match info.verb.as_str() {
        "get" => read::get(context).await,
        "list" => read::list(context).await,
        "watch" => watch::watch(context).await,
        "create" if (row.plural.as_ref(), info.subresource.as_str()) == ("serviceaccounts", "token") => {
            token::create(context, body).await
        }
        "create" => write::create(context, body).await,
        "update" => write::update(context, body).await,
        "patch" => write::patch(context, body).await,
        "delete" => delete::one(context, body).await,
        _ => delete::collection(context, body).await,
    }
}

impl Context<'_> {
    /// Whether the row has the verb, on this form of path.
    fn check_served(&self) -> Result<(), Status> {
        let info = self.info;
        let verbs = if info.subresource.is_empty() {
            self.row.verbs
        } else {
            self.row.subresource(&info.subresource).ok_or_else(Status::unknown_path)?.verbs
        };
        let is_in_place = match (self.row.namespaced, info.namespace.is_empty()) {
            // a collection may be read over all namespaces; everything else has its namespace in the path
            (true, true) => matches!(info.verb.as_str(), "list" | "watch"),
            (false, false) => info.resource == "namespaces",
            _ => true,
        };
        let has_needed_name = match info.verb.as_str() {
            "create" => info.subresource.is_empty() == info.name.is_empty(),
            "update" | "patch" => !info.name.is_empty(),
            _ => true,
        };
        if !is_in_place {
            return Err(Status::unknown_path());
        }
        if verbs.names().any(|v| v == info.verb) && has_needed_name {
            return Ok(());
        }
        Err(Status::new(
            405,
            edge_api::Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        ))
    }

    /// What the request is about, as the registry takes it.
    pub(crate) fn target(&self) -> Target<'_> {
        Target {
            info: self.row,
            namespace: if self.row.namespaced { &self.info.namespace } else { "" },
            name: &self.info.name,
            subresource: &self.info.subresource,
        }
    }

    fn write_options(&self, dry_run: bool) -> WriteOptions<'_> {
        WriteOptions { user: self.user, field_manager: &self.field_manager, dry_run }
    }

    /// Both kinds of admission for what is submitted to a subresource that the API server itself answers, or as a question.
    pub(crate) async fn admit_submitted(&self, submitted: &mut Object, dry_run: bool) -> Result<(), Status> {
        let target = self.target();
        let a = Attributes {
            operation: Operation::Create,
            info: target.info,
            subresource: target.subresource,
            namespace: target.namespace,
            name: target.name,
            user: self.user,
            dry_run,
            old: None,
            field_manager: &self.field_manager,
            deletion: None,
        };
        admission::mutate(self.server.as_ref(), &a, submitted).await?;
        admission::validate(self.server.as_ref(), &a, Some(submitted)).await
    }

    /// Waits until a change of RBAC objects, admission policies or webhooks holds for the next request.
    async fn settle_rights(&self) {
        if matches!(self.row.group.as_ref(), "rbac.authorization.k8s.io" | policy::GROUP) {
            self.server.settle_rights().await;
        }
    }
}

fn field_manager(query: &Query<'_>, headers: &HeaderMap) -> String {
    if let Some(manager) = query.get("fieldManager").filter(|m| !m.is_empty()) {
        return manager.to_owned();
    }
    let agent = headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name: String = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
    if name.is_empty() { "unknown".into() } else { name }
}

/// Reads a request's body.
///
/// # Errors
/// 413 beyond [`BODY_LIMIT`], 400 when the client breaks off.
pub(crate) async fn read_body(body: Body) -> Result<Bytes, Status> {
    body.into_bytes(BODY_LIMIT).await.map_err(|e| match e {
        BodyError::TooLarge { limit } => Status::too_large(format!("Request entity too large: limit is {limit}")),
        BodyError::Read(_) => Status::bad_request(e.to_string()),
    })
}
