//! Questions about rights: `authorizer.group('apps').resource('deployments').check('create').allowed()`.

use super::{Context, Function, member, text};
use crate::error::Error;
use crate::value::{Opaque, Value};
use std::fmt;
use std::sync::Arc;

const AT: &[&str] = &["resourcecheck string : resourcecheck"];

pub(super) static FUNCTIONS: &[Function] = &[
    member("path", &["authorizer string : pathcheck"], path),
    member("group", &["authorizer string : groupcheck"], |_, a| {
        said(a, Stage::Start, Stage::Group, |k, t| k.group = t)
    }),
    member("serviceAccount", &["authorizer string string : authorizer"], service_account),
    member("resource", &["groupcheck string : resourcecheck"], |_, a| {
        said(a, Stage::Group, Stage::Resource, |k, t| k.resource = t)
    }),
    member("subresource", AT, |_, a| said(a, Stage::Resource, Stage::Resource, |k, t| k.subresource = t)),
    member("namespace", AT, |_, a| said(a, Stage::Resource, Stage::Resource, |k, t| k.namespace = t)),
    member("name", AT, |_, a| said(a, Stage::Resource, Stage::Resource, |k, t| k.name = t)),
    member("fieldSelector", AT, |_, a| said(a, Stage::Resource, Stage::Resource, |_, _| {})),
    member("labelSelector", AT, |_, a| said(a, Stage::Resource, Stage::Resource, |_, _| {})),
    member("check", &["pathcheck string : decision", "resourcecheck string : decision"], check),
    member("allowed", &["decision : bool"], |_, a| decided(a, |d| Value::Bool(d.allowed))),
    member("reason", &["decision : string"], |_, a| decided(a, |d| Value::owned(&*d.reason))),
    member("errored", &["decision : bool"], |_, a| decided(a, |d| Value::Bool(!d.error.is_empty()))),
    member("error", &["decision : string"], |_, a| decided(a, |d| Value::owned(&*d.error))),
];

/// Kubernetes' cost of a question.
const COST: u64 = 350_000;

/// What is asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Namespace and name of a service account to ask about; otherwise about who makes the request.
    pub service_account: Option<(String, String)>,
    /// A path that belongs to no resource; all below is empty then.
    pub path: String,
    /// The verb.
    pub verb: String,
    /// The API group.
    pub group: String,
    /// The resource.
    pub resource: String,
    /// The subresource.
    pub subresource: String,
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may be done.
    pub allowed: bool,
    /// Why.
    pub reason: String,
    /// Why that could not be found out; empty when it could.
    pub error: String,
}

/// Who answers.
pub trait Authorizer: Send + Sync {
    /// Decides.
    fn decide(&self, check: &Check) -> Decision;
}

/// How far a question is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Start,
    Path,
    Group,
    Resource,
}

/// A question as far as it is said, or its answer.
#[derive(Clone)]
pub struct Asking<'a> {
    authorizer: &'a dyn Authorizer,
    stage: Stage,
    check: Check,
    decision: Option<Decision>,
}

impl fmt::Debug for Asking<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asking").field("check", &self.check).field("decision", &self.decision).finish_non_exhaustive()
    }
}

impl<'a> Asking<'a> {
    pub(crate) fn type_name(&self) -> &'static str {
        match (&self.decision, self.stage) {
            (Some(_), _) => "kubernetes.authorization.Decision",
            (None, Stage::Start) => "kubernetes.authorization.Authorizer",
            (None, Stage::Path) => "kubernetes.authorization.PathCheck",
            (None, Stage::Group) => "kubernetes.authorization.GroupCheck",
            (None, Stage::Resource) => "kubernetes.authorization.ResourceCheck",
        }
    }
}

impl<'a> Value<'a> {
    /// The variable `authorizer`.
    pub fn authorizer(authorizer: &'a dyn Authorizer) -> Self {
        let asking = Asking { authorizer, stage: Stage::Start, check: Check::default(), decision: None };
        Value::opaque(Opaque::Authorizer(Box::new(asking)))
    }

    /// The variable `authorizer.requestResource`.
    pub fn resource_check(authorizer: &'a dyn Authorizer, check: Check) -> Self {
        Value::opaque(Opaque::Authorizer(Box::new(Asking {
            authorizer,
            stage: Stage::Resource,
            check,
            decision: None,
        })))
    }
}

fn asking<'v, 'a>(a: &'v [Value<'a>]) -> Result<&'v Asking<'a>, Error> {
    match a.first() {
        Some(Value::Opaque(opaque)) => match &**opaque {
            Opaque::Authorizer(asking) => Ok(asking),
            _ => Err(Error::no_overload()),
        },
        _ => Err(Error::no_overload()),
    }
}

fn said<'a>(a: &[Value<'a>], from: Stage, to: Stage, set: fn(&mut Check, String)) -> Result<Value<'a>, Error> {
    let mut next = asking(a)?.clone();
    if next.stage != from || next.decision.is_some() {
        return Err(Error::no_overload());
    }
    next.stage = to;
    set(&mut next.check, text(a, 1)?.to_string());
    Ok(Value::Opaque(Arc::new(Opaque::Authorizer(Box::new(next)))))
}

fn path<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    if text(a, 1)?.is_empty() {
        return Err(Error::new("path must not be empty"));
    }
    said(a, Stage::Start, Stage::Path, |k, t| k.path = t)
}

fn service_account<'a>(_: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    let mut next = asking(a)?.clone();
    if next.stage != Stage::Start {
        return Err(Error::no_overload());
    }
    let (namespace, name) = (text(a, 1)?, text(a, 2)?);
    if edge_api::names::dns1123_label(namespace).is_err() || edge_api::names::dns1123_subdomain(name).is_err() {
        return Err(Error::new("invalid service account"));
    }
    next.check.service_account = Some((namespace.to_string(), name.to_string()));
    Ok(Value::Opaque(Arc::new(Opaque::Authorizer(Box::new(next)))))
}

fn check<'a>(c: &mut Context<'_>, a: &[Value<'a>]) -> Result<Value<'a>, Error> {
    c.budget.pay(COST)?;
    let mut next = asking(a)?.clone();
    if !matches!(next.stage, Stage::Path | Stage::Resource) || next.decision.is_some() {
        return Err(Error::no_overload());
    }
    next.check.verb = text(a, 1)?.to_string();
    next.decision = Some(next.authorizer.decide(&next.check));
    Ok(Value::Opaque(Arc::new(Opaque::Authorizer(Box::new(next)))))
}

fn decided<'a>(a: &[Value<'a>], what: fn(&Decision) -> Value<'a>) -> Result<Value<'a>, Error> {
    asking(a)?.decision.as_ref().map(what).ok_or_else(Error::no_overload)
}
