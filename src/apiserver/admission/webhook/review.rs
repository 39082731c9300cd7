//! AdmissionReview: what is sent to a webhook, and what is believed of its answer. Pure.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use edge_api::status::{StatusCause, StatusDetails};
use edge_api::{Object, Reason, Status};
use edge_schema::patch::JsonPatch;
use serde_json::{Value, json};

/// The one type of patches that there is.
const JSON_PATCH: &str = "JSONPatch";

/// A review for a webhook, of one version of AdmissionReview. `facts` is everything but the objects.
pub(super) fn review(
    version: &str,
    uid: &str,
    mut facts: Value,
    object: Option<&Object>,
    old: Option<&Object>,
) -> Value {
    let tree = |o: Option<&Object>| o.map_or(Value::Null, |o| Value::Object(o.fields().clone()));
    facts["uid"] = uid.into();
    facts["object"] = tree(object);
    facts["oldObject"] = tree(old);
    json!({"apiVersion": format!("admission.k8s.io/{version}"), "kind": "AdmissionReview", "request": facts})
}

/// What a webhook says.
#[derive(Debug, Default)]
pub(super) struct Answer {
    pub(super) is_allowed: bool,
    /// How the object is to be changed; with operations.
    pub(super) patch: Option<JsonPatch>,
    /// Why it is refused.
    pub(super) status: Value,
    pub(super) warnings: Vec<String>,
    /// Keys and values.
    pub(super) annotations: Vec<(String, String)>,
}

/// Takes an answer apart.
///
/// # Errors
/// What is wrong with it.
pub(super) fn answer(version: &str, uid: &str, is_mutating: bool, mut review: Value) -> Result<Answer, String> {
    let response = review.get_mut("response").map(Value::take).unwrap_or_default();
    // the old version had fewer rules
    let is_strict = version != "v1beta1";
    let checked = check(&review, &response, uid, is_mutating, is_strict);
    let (is_allowed, patch) = checked.map_err(|why| format!("received invalid webhook response: {why}"))?;
    let patch = match patch.is_empty() || !is_allowed || !is_mutating {
        true => None,
        false if is_strict => operations(&patch, response["patchType"].as_str().unwrap_or_default())?,
        false => operations(&patch, JSON_PATCH)?,
    };
    let warnings = response["warnings"].as_array().into_iter().flatten();
    let annotations = response["auditAnnotations"].as_object().into_iter().flatten();
    Ok(Answer {
        is_allowed,
        patch,
        warnings: warnings.filter_map(|w| w.as_str().map(str::to_owned)).collect(),
        annotations: annotations.filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned()))).collect(),
        status: response["status"].clone(),
    })
}

/// Whether an answer is one at all: whether it allows the write, and the bytes of its patch.
fn check(
    review: &Value,
    response: &Value,
    uid: &str,
    is_mutating: bool,
    is_strict: bool,
) -> Result<(bool, Vec<u8>), String> {
    if response.is_null() {
        return Err("webhook response was absent".into());
    }
    if !response.is_object() {
        return Err("webhook response is no object".into());
    }
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    if is_strict {
        let given = text(response, "uid");
        if given != uid {
            return Err(format!("expected response.uid={uid:?}, got {given:?}"));
        }
        let (api_version, kind) = (text(review, "apiVersion"), text(review, "kind"));
        if (api_version.as_str(), kind.as_str()) != ("admission.k8s.io/v1", "AdmissionReview") {
            let api_version = if api_version.is_empty() { "/".to_owned() } else { api_version };
            return Err(format!(
                "expected webhook response of admission.k8s.io/v1, Kind=AdmissionReview, got {api_version}, Kind={kind}"
            ));
        }
    }
    let patch = match &response["patch"] {
        Value::Null => Vec::new(),
        Value::String(text) => BASE64_STANDARD.decode(text).map_err(|e| format!("response.patch is no base64: {e}"))?,
        _ => return Err("response.patch is no string".into()),
    };
    let (has_patch, kind) = (!patch.is_empty(), &response["patchType"]);
    let wrong = match (is_mutating, has_patch, kind.is_null()) {
        _ if !is_strict => None,
        (false, true, _) => Some("validating webhook may not return response.patch"),
        (false, false, false) => Some("validating webhook may not return response.patchType"),
        (true, true, true) => Some("webhook returned response.patch but not response.patchType"),
        (true, false, false) => Some("webhook returned response.patchType but not response.patch"),
        _ => None,
    };
    if let Some(wrong) = wrong {
        return Err(wrong.into());
    }
    if is_strict && !kind.is_null() && kind.as_str().unwrap_or_default().is_empty() {
        return Err(r#"webhook returned invalid response.patchType of """#.into());
    }
    match &response["allowed"] {
        Value::Null => Ok((false, patch)),
        Value::Bool(allowed) => Ok((*allowed, patch)),
        _ => Err("response.allowed is no boolean".into()),
    }
}

/// The operations of a patch, if there are some.
fn operations(bytes: &[u8], kind: &str) -> Result<Option<JsonPatch>, String> {
    if kind != JSON_PATCH {
        return Err(format!("unsupported patch type {kind:?}"));
    }
    let undecodable = |why: &dyn std::fmt::Display| format!("received undecodable patch in webhook response: {why}");
    let operations: Value = serde_json::from_slice(bytes).map_err(|e| undecodable(&e))?;
    if operations.is_null() || operations.as_array().is_some_and(Vec::is_empty) {
        return Ok(None);
    }
    JsonPatch::parse(&operations).map(Some).map_err(|e| undecodable(&e))
}

/// The refusal that a webhook wants its client to get. `status` is a `metav1.Status` or a part of one, or anything else.
pub(super) fn denial(webhook: &str, status: &Value) -> Status {
    let text = |value: &Value, field: &str| value[field].as_str().unwrap_or_default().to_owned();
    let by = format!("admission webhook {webhook:?} denied the request");
    let (said, reason) = (text(status, "message"), text(status, "reason"));
    let message = match (said.as_str(), reason.as_str()) {
        ("", "") => format!("{by} without explanation"),
        ("", reason) => format!("{by}: {reason}"),
        (said, _) => format!("{by}: {said}"),
    };
    // a success would be believed, and what is no HTTP status could not be sent
    let code = match status["code"].as_i64().unwrap_or_default() {
        code @ 400..=599 => u16::try_from(code).unwrap_or(500),
        code if code > 599 => 500,
        _ => 400,
    };
    let reason = serde_json::from_value::<Reason>(reason.into()).unwrap_or(Reason::Unknown);
    let given = &status["details"];
    let details = given.is_object().then(|| {
        let causes = given["causes"].as_array().into_iter().flatten();
        Box::new(StatusDetails {
            name: text(given, "name"),
            group: text(given, "group"),
            kind: text(given, "kind"),
            uid: text(given, "uid"),
            causes: causes
                .map(|c| StatusCause {
                    reason: text(c, "reason"),
                    message: text(c, "message"),
                    field: text(c, "field"),
                })
                .collect(),
            retry_after_seconds: given["retryAfterSeconds"].as_u64().and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        })
    });
    Status { code, reason, message, details }
}
