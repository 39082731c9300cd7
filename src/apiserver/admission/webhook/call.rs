//! Whether a webhook is to be asked about a write, and asking it.

use super::super::policy::run::Subject;
use super::super::{AttributesExt, Cluster, request};
use super::compiled::{SideEffects, Webhook};
use super::metrics::Outcome;
use super::{review, views};
use crate::outgoing::{CallError, Callee};
use edge_api::{Object, Status};
use edge_cel::{Budget, PER_CALL};
use edge_registry::{Attributes, ResourceInfo};
use edge_schema::patch::JsonPatch;
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Instant;

/// What the conditions of a webhook may cost together (Kubernetes' value).
const CONDITIONS_BUDGET: u64 = 2_500_000;
/// The longest answer that is read, in bytes: a patch may hold a whole object, in base64.
const LONGEST: usize = 8 << 20;
/// Versions of AdmissionReview; they differ in their name, and in how much of an answer is checked.
const REVIEWS: [&str; 2] = ["v1", "v1beta1"];

/// A write, as one webhook sees it.
pub(super) struct Seen<'o> {
    /// The version of the resource that the webhook is about.
    pub(super) row: Arc<ResourceInfo>,
    pub(super) object: Option<Cow<'o, Object>>,
    pub(super) old: Option<Cow<'o, Object>>,
}

/// What became of a call.
pub(super) enum Called {
    /// It goes on, perhaps with another object.
    Allowed(Option<JsonPatch>),
    /// The webhook could not be asked, and does not insist.
    FailedOpen,
    Refused(Status),
}

/// How a webhook sees a write; `None` when it is not about it.
///
/// # Errors
/// When that cannot be said.
pub(super) async fn seen<'o>(
    cluster: &dyn Cluster,
    a: &Attributes<'o>,
    hook: &Webhook,
    object: Option<&'o Object>,
) -> Result<Option<Seen<'o>>, Status> {
    let (object, old) = (object.map(|o| views::written(a, o)), a.old.map(|o| views::written(a, o)));
    let written = Attributes { old: old.as_deref(), ..*a };
    let Some(row) = hook.constraints.matches(cluster, &written, object.as_deref())? else { return Ok(None) };
    let mut seen = Seen { row, object: None, old: None };
    for (from, to) in [(object, &mut seen.object), (old, &mut seen.old)] {
        *to = match from {
            Some(Cow::Borrowed(o)) => Some(views::in_version(cluster, a, &seen.row, o).await?),
            other => other,
        };
    }
    if !is_wanted(cluster, a, hook, &seen)? {
        return Ok(None);
    }
    Ok(Some(seen))
}

/// Whether the webhook's conditions hold.
fn is_wanted(cluster: &dyn Cluster, a: &Attributes<'_>, hook: &Webhook, seen: &Seen<'_>) -> Result<bool, Status> {
    let met = match &hook.conditions {
        Ok(conditions) if conditions.is_empty() => return Ok(true),
        Ok(conditions) => {
            let a = Attributes { old: seen.old.as_deref(), ..*a };
            let subject = Subject::new(cluster, &a, seen.object.as_deref(), &seen.row);
            subject.meets(conditions, &mut Budget::new(PER_CALL, CONDITIONS_BUDGET))
        }
        Err(why) => Err(why.clone()),
    };
    met.or_else(|why| {
        if hook.fails { Err(a.forbidden(seen.object.as_deref().or(seen.old.as_deref()), &why)) } else { Ok(false) }
    })
}

/// Asks a webhook.
pub(super) async fn call(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    hook: &Webhook,
    seen: &Seen<'_>,
    is_mutating: bool,
) -> Called {
    let begun = Instant::now();
    let (called, outcome) = match ask(cluster, a, hook, seen, is_mutating).await {
        Ok(answer) if answer.is_allowed => (Called::Allowed(answer.patch), Outcome::Allowed),
        Ok(answer) => {
            let status = review::denial(&hook.name, &answer.status);
            tracing::debug!(webhook = hook.name, why = status.message, "denied");
            let outcome = Outcome::Rejected(status.code);
            (Called::Refused(status), outcome)
        }
        Err(Failure::Refused(status)) => {
            let outcome = Outcome::ServerError(status.code);
            (Called::Refused(status), outcome)
        }
        Err(Failure::Call { why, code }) => {
            let failed = format!("failed calling webhook {:?}: {why}", hook.name);
            tracing::warn!(configuration = hook.configuration, fails = hook.fails, "{failed}");
            if hook.fails {
                (Called::Refused(Status::internal(failed)), Outcome::CallFailed(code))
            } else {
                (Called::FailedOpen, Outcome::FailedOpen(code))
            }
        }
    };
    cluster.hook_metrics().observe(&hook.name, is_mutating, a.operation, outcome, begun.elapsed());
    called
}

/// Why a webhook has not answered.
enum Failure {
    /// Its failure policy says what follows.
    Call { why: String, code: u16 },
    /// Whatever its failure policy says.
    Refused(Status),
}

async fn ask(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    hook: &Webhook,
    seen: &Seen<'_>,
    is_mutating: bool,
) -> Result<review::Answer, Failure> {
    let failed = |why: String, code: u16| Failure::Call { why, code };
    match hook.side_effects {
        SideEffects::Unsaid if a.dry_run => return Err(failed("Webhook SideEffects is nil".into(), 400)),
        SideEffects::Some if a.dry_run => {
            let why = format!("admission webhook {:?} does not support dry run", hook.name);
            return Err(Failure::Refused(Status::bad_request(why)));
        }
        _ => {}
    }
    let known = hook.review_versions.iter().find(|v| REVIEWS.contains(&v.as_str()));
    let version = known.ok_or_else(|| {
        let why = "webhook does not accept known AdmissionReview versions (v1, v1beta1)";
        failed(format!("could not create admission objects: {why}"), 400)
    })?;
    let endpoint = hook.endpoint.as_ref().ok_or_else(|| {
        failed("could not get REST client: webhook configuration must have either service or URL".into(), 500)
    })?;
    let uid = edge_registry::uid().map_err(Failure::Refused)?;
    let name = request::name(a, seen.object.as_deref());
    let facts = request::facts(a, name, &seen.row);
    let review = review::review(version, &uid, facts, seen.object.as_deref(), seen.old.as_deref());
    let callee = Callee {
        endpoint,
        ca_bundle: &hook.ca_bundle,
        patience: hook.patience,
        knows_patience: true,
        longest: LONGEST,
    };
    let answer = cluster.ask(&callee, review.to_string().into()).await;
    let answer = answer.map_err(|e| match e {
        CallError::Setup(_) => failed(e.to_string(), e.code()),
        _ => failed(format!("failed to call webhook: {e}"), e.code()),
    })?;
    let answer = review::answer(version, &uid, is_mutating, answer).map_err(|why| failed(why, 503))?;
    for (key, value) in &answer.annotations {
        crate::audit::annotate(&format!("{}/{key}", hook.name), value);
    }
    for warning in &answer.warnings {
        crate::warnings::add(warning.clone());
    }
    Ok(answer)
}
