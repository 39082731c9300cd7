//! Webhooks as they are kept: read when their configuration changes, not when they are needed.

use crate::admission::matching::Constraints;
use crate::admission::policy::compiled::{Conditions, conditions, env};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use edge_api::field::{ErrorList, Path};
use edge_registry::custom::Endpoint;
use serde_json::Value;
use std::time::Duration;

/// How long a webhook may take that does not say so, in seconds. What is stored always says so.
const DEFAULT_SECONDS: u64 = 10;
/// The longest that one may ask for.
const MOST_SECONDS: u64 = 30;

/// A webhook of a configuration.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) configuration: String,
    pub(super) name: String,
    pub(super) constraints: Constraints,
    /// `Err`: why they cannot be worked out.
    pub(super) conditions: Result<Conditions, String>,
    /// `None`: it says neither where, nor behind what.
    pub(super) endpoint: Option<Endpoint>,
    /// PEM; empty: the machine knows whom to trust.
    pub(super) ca_bundle: Vec<u8>,
    /// Whether a call that fails refuses the write.
    pub(super) fails: bool,
    pub(super) patience: Duration,
    pub(super) side_effects: SideEffects,
    /// It is asked again when others have changed the object after it.
    pub(super) is_asked_again: bool,
    /// Versions of AdmissionReview that it understands, the best first.
    pub(super) review_versions: Vec<String>,
}

/// What a webhook does besides answering, as far as dry runs are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SideEffects {
    /// It does not say so, which is not allowed any more.
    Unsaid,
    /// Nothing, or nothing when it is told of a dry run.
    None,
    /// Something, or nobody knows.
    Some,
}

impl Webhook {
    /// Reads a stored webhook. What is wrong with it and was let in all the same makes it match nothing, or fail.
    pub(super) fn new(configuration: &str, hook: &Value) -> Self {
        let text = |field: &str| hook[field].as_str().unwrap_or_default();
        let constraints = Constraints::of_webhook(hook).unwrap_or_else(|why| {
            tracing::error!(configuration, why, "a selector of a stored webhook is invalid; it is not asked");
            Constraints::default()
        });
        let mut errors = ErrorList::new();
        let compiled = conditions(hook, &Path::new("matchConditions"), &env(false, true), &mut errors);
        let config = &hook["clientConfig"];
        let ca_bundle = config["caBundle"].as_str().and_then(|text| BASE64_STANDARD.decode(text).ok());
        let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(DEFAULT_SECONDS).clamp(1, MOST_SECONDS);
        let versions = hook["admissionReviewVersions"].as_array().into_iter().flatten();
        Self {
            configuration: configuration.to_owned(),
            name: text("name").to_owned(),
            constraints,
            conditions: if errors.is_empty() { Ok(compiled) } else { Err(errors.to_string()) },
            endpoint: endpoint(config),
            ca_bundle: ca_bundle.unwrap_or_default(),
            fails: text("failurePolicy") != "Ignore",
            patience: Duration::from_secs(seconds),
            side_effects: match text("sideEffects") {
                "" => SideEffects::Unsaid,
                "None" | "NoneOnDryRun" => SideEffects::None,
                _ => SideEffects::Some,
            },
            is_asked_again: text("reinvocationPolicy") == "IfNeeded",
            review_versions: versions.filter_map(|v| v.as_str().map(str::to_owned)).collect(),
        }
    }
}

fn endpoint(config: &Value) -> Option<Endpoint> {
    if let Some(url) = config["url"].as_str() {
        return Some(Endpoint::Url(url.to_owned()));
    }
    let service = &config["service"];
    let text = |field: &str| service[field].as_str().unwrap_or_default().to_owned();
    (!service.is_null()).then(|| Endpoint::Service {
        namespace: text("namespace"),
        name: text("name"),
        path: text("path"),
        port: service["port"].as_u64().and_then(|p| u16::try_from(p).ok()).unwrap_or(443),
    })
}
