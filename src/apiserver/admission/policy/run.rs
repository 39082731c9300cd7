//! One policy's expressions about one write.

use super::super::{Cluster, request};
use super::compiled::{Conditions, Mutation, Policy, Validation};
use super::{differs, in_version, is_deletion};
use edge_api::{Object, UserInfo};
use edge_cel::admission::{
    AUTHORIZER, NAMESPACE, OBJECT, OLD_OBJECT, OWN, PARAMS, REQUEST, REQUEST_RESOURCE, request_type,
};
use edge_cel::{Authorizer, Budget, Check, Decision, Error, Program, Value, Variables};
use edge_registry::{Attributes, ResourceInfo};
use serde_json::Value as Json;
use std::borrow::Cow;
use std::cell::RefCell;

/// Messages that expressions make are not longer than this, in bytes.
const MAX_MESSAGE: usize = 5 * 1024;
/// Nor values of audit annotations.
const MAX_ANNOTATION: usize = 10 * 1024;

/// A demand that is not met, or an expression that came to nothing.
#[derive(Debug, PartialEq)]
pub(super) struct Finding {
    pub(super) message: String,
    pub(super) reason: String,
    /// Which of the policy's demands it is about.
    pub(super) index: usize,
    /// Whether the binding says what follows.
    pub(super) is_validation: bool,
}

/// A write, as expressions see it.
pub(in super::super) struct Subject<'a> {
    object: Option<Cow<'a, Object>>,
    old: Option<Cow<'a, Object>>,
    request: Json,
    namespace: Option<Object>,
    rights: Rights<'a>,
    resource: Check,
}

/// Whose rights expressions ask about.
struct Rights<'a> {
    cluster: &'a dyn Cluster,
    user: &'a UserInfo,
}

impl Authorizer for Rights<'_> {
    fn decide(&self, check: &Check) -> Decision {
        self.cluster.decide(self.user, check)
    }
}

impl<'a> Subject<'a> {
    /// `matched` is the version of the resource that the policy is about.
    pub(in super::super) fn new(
        cluster: &'a dyn Cluster,
        a: &Attributes<'a>,
        object: Option<&'a Object>,
        matched: &ResourceInfo,
    ) -> Self {
        let seen =
            |o: &'a Object| if differs(matched, o) { Cow::Owned(in_version(matched, o)) } else { Cow::Borrowed(o) };
        let object = object.filter(|_| !is_deletion(a));
        let name = if a.name.is_empty() { object.map_or("", Object::name) } else { a.name };
        let namespace = (!a.namespace.is_empty()).then(|| cluster.get("", "namespaces", "", a.namespace)).flatten();
        Self {
            object: object.map(seen),
            old: a.old.map(seen),
            request: request::facts(a, name, matched),
            namespace,
            rights: Rights { cluster, user: a.user },
            resource: Check {
                group: a.info.group.to_string(),
                resource: a.info.plural.to_string(),
                subresource: a.subresource.to_owned(),
                namespace: a.namespace.to_owned(),
                name: name.to_owned(),
                ..Check::default()
            },
        }
    }

    /// Everything that the policy finds fault with.
    pub(super) fn judge(&self, policy: &Policy, param: Option<&Object>, budget: &mut Budget) -> Vec<Finding> {
        let activation = self.activation(&policy.variables, param);
        match are_met(&policy.conditions, &activation, budget) {
            Ok(true) => {}
            Ok(false) => return Vec::new(),
            Err(why) => return error(policy, why, true).into_iter().collect(),
        }
        let mut out = Vec::new();
        for (index, validation) in policy.validations.iter().enumerate() {
            let found = match validation.program.run(&activation, budget) {
                Ok(Value::Bool(true)) => None,
                Ok(_) => Some(failure(validation, &activation, budget)),
                Err(e @ Error::BudgetSpent) => {
                    out.extend(error(policy, e.to_string(), true).map(|finding| Finding { index, ..finding }));
                    return out;
                }
                Err(e) => error(policy, failed(&validation.program, &e), true),
            };
            out.extend(found.map(|finding| Finding { index, ..finding }));
        }
        for (key, program) in &policy.annotations {
            match program.run(&activation, budget) {
                Ok(Value::String(value)) => {
                    let value: String = value.trim().chars().take(MAX_ANNOTATION).collect();
                    crate::audit::annotate_also(&format!("{}/{key}", policy.name), &value);
                }
                Ok(Value::Null) => {}
                Ok(other) => {
                    let why = format!(
                        "valueExpression '{}' resulted in unsupported return type: {}. Return type must be either string or null.",
                        program.source(),
                        other.type_name()
                    );
                    out.extend(error(policy, why, false));
                }
                Err(e) => out.extend(error(policy, failed(program, &e), false)),
            }
        }
        out
    }

    /// What one mutation of a policy makes; `None` when the policy's conditions do not hold.
    ///
    /// # Errors
    /// Why nothing can be made.
    pub(super) fn mutation(
        &self,
        policy: &Policy,
        mutation: &Mutation,
        param: Option<&Object>,
        budget: &mut Budget,
    ) -> Result<Option<Json>, String> {
        let activation = self.activation(&policy.variables, param);
        if !are_met(&policy.conditions, &activation, budget)? {
            return Ok(None);
        }
        let value = mutation.program.run(&activation, budget).map_err(|e| failed(&mutation.program, &e))?;
        let made = value.to_json();
        made.map(Some).ok_or_else(|| format!("expression '{}' made what JSON cannot say", mutation.program.source()))
    }

    /// Whether all of some conditions hold that have no variables of their own.
    ///
    /// # Errors
    /// Why that cannot be said.
    pub(in super::super) fn meets(&self, conditions: &Conditions, budget: &mut Budget) -> Result<bool, String> {
        are_met(conditions, &self.activation(&[], None), budget)
    }

    fn activation<'s>(&'s self, variables: &'s [(String, Program)], param: Option<&'s Object>) -> Activation<'s> {
        let object = |o: Option<&'s Object>| o.map_or(Value::Null, |o| Value::object(o.fields()));
        let mut facts = vec![Value::Null; OWN];
        for (place, value) in [
            (OBJECT, object(self.object.as_deref())),
            (OLD_OBJECT, object(self.old.as_deref())),
            (REQUEST, Value::from_json(&self.request, request_type())),
            (PARAMS, object(param)),
            (NAMESPACE, object(self.namespace.as_ref())),
            (AUTHORIZER, Value::authorizer(&self.rights)),
            (REQUEST_RESOURCE, Value::resource_check(&self.rights, self.resource.clone())),
        ] {
            if let Some(slot) = facts.get_mut(place) {
                *slot = value;
            }
        }
        Activation { facts, variables, known: RefCell::new(vec![None; variables.len()]) }
    }
}

/// The values of an expression's variables; a policy's own are worked out when they are first named.
struct Activation<'s> {
    facts: Vec<Value<'s>>,
    variables: &'s [(String, Program)],
    known: RefCell<Vec<Option<Result<Value<'s>, Error>>>>,
}

impl<'s> Variables<'s> for Activation<'s> {
    fn get(&self, place: usize, budget: &mut Budget) -> Result<Value<'s>, Error> {
        let missing = || Error::Failed("no such variable".into());
        let Some(own) = place.checked_sub(OWN) else { return self.facts.get(place).cloned().ok_or_else(missing) };
        if let Some(known) = self.known.borrow().get(own).cloned().flatten() {
            return known;
        }
        // a variable names only those before it, so this ends
        let (name, program) = self.variables.get(own).ok_or_else(missing)?;
        let value = program.run(self, budget).map_err(|e| match e {
            Error::Failed(why) => Error::Failed(format!("composited variable {name:?} fails to evaluate: {why}")),
            other => other,
        });
        if let Some(slot) = self.known.borrow_mut().get_mut(own) {
            *slot = Some(value.clone());
        }
        value
    }
}

fn failed(program: &Program, error: &Error) -> String {
    format!("expression '{}' resulted in error: {error}", program.source())
}

fn error(policy: &Policy, message: String, is_validation: bool) -> Option<Finding> {
    policy.fails.then(|| Finding { message, reason: String::new(), index: 0, is_validation })
}

/// Whether all conditions hold. One that does not makes up for errors of others.
fn are_met<'s>(conditions: &'s Conditions, activation: &Activation<'s>, budget: &mut Budget) -> Result<bool, String> {
    let mut errors = Vec::new();
    for (name, program) in conditions {
        match program.run(activation, budget) {
            Ok(Value::Bool(true)) => {}
            Ok(Value::Bool(false)) => return Ok(false),
            Ok(_) => errors.push(format!("match condition '{name}' does not evaluate to bool")),
            Err(e) => errors.push(failed(program, &e)),
        }
    }
    if errors.is_empty() { Ok(true) } else { Err(errors.join(", ")) }
}

fn failure<'s>(validation: &'s Validation, activation: &Activation<'s>, budget: &mut Budget) -> Finding {
    let made = validation.message_expression.as_ref().and_then(|program| {
        let value = program.run(activation, budget).ok()?;
        let text = value.as_str()?.trim().to_owned();
        (!text.is_empty() && text.len() <= MAX_MESSAGE && !text.contains('\n')).then_some(text)
    });
    let message = made.unwrap_or_else(|| match validation.message.trim() {
        "" => format!("failed expression: {}", validation.program.source().trim()),
        message => message.to_owned(),
    });
    Finding { message, reason: validation.reason.clone(), index: 0, is_validation: true }
}
