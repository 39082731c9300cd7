//! Reads: get, list, watch, with the meaning that Kubernetes gives to resource versions and continue tokens.

use crate::hub::{Begin, Hub, ResourceHub, TooOld};
use crate::options::{ListOptions, Target, VersionMatch, WatchOptions, parse_resource_version};
use crate::selection::Selection;
use crate::stored::{List, Stored};
use crate::watch::WatchStream;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use edge_api::Status;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// How long a read waits for a resource version that does not exist yet (kube-apiserver's value).
const FUTURE_PATIENCE: Duration = Duration::from_secs(3);

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.";

/// Where the next page begins.
#[derive(Debug, Serialize, Deserialize)]
struct Continue {
    #[serde(rename = "v")]
    version: String,
    #[serde(rename = "rv")]
    revision: u64,
    /// Key of the last object of the page before.
    #[serde(rename = "start")]
    after: String,
}

impl Continue {
    const VERSION: &str = "meta.k8s.io/v1";

    fn encode(revision: u64, after: &str) -> String {
        let token = Self { version: Self::VERSION.into(), revision, after: after.into() };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("invariant: a token of strings serializes"))
    }

    fn decode(text: &str) -> Result<Self, Status> {
        let invalid = |why: &str| Status::bad_request(format!("invalid continue token: {why}"));
        let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| invalid("it is no base64"))?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| invalid("it is malformed"))?;
        if token.version != Self::VERSION || token.revision == 0 {
            return Err(invalid("its version is not known"));
        }
        Ok(token)
    }
}

/// `namespace/name` or `name`.
pub(crate) fn object_key(target: &Target<'_>) -> String {
    if target.info.namespaced { format!("{}/{}", target.namespace, target.name) } else { target.name.to_owned() }
}

/// The part of the hub that holds a row's objects.
///
/// # Errors
/// 405 for rows without storage.
pub(crate) fn resource_of(hub: &Hub, target: &Target<'_>, verb: &str) -> Result<Arc<ResourceHub>, Status> {
    hub.of(target.info).ok_or_else(|| match &target.info.custom {
        // its definition went meanwhile
        Some(_) => Status::unknown_path(),
        None => Status::method_not_supported(&target.info.group_resource(), verb),
    })
}

pub(crate) fn get(hub: &Hub, target: &Target<'_>) -> Result<Stored, Status> {
    resource_of(hub, target, "get")?
        .get(&object_key(target))
        .ok_or_else(|| Status::not_found(&target.info.group_resource(), target.name))
}

/// Returns when everything up to a revision is visible.
///
/// # Errors
/// 504 when it does not exist and does not come into being either.
pub(crate) async fn wait_for(hub: &Hub, revision: u64) -> Result<(), Status> {
    if hub.revision() >= revision || tokio::time::timeout(FUTURE_PATIENCE, hub.settled(revision)).await.is_ok() {
        return Ok(());
    }
    let mut status =
        Status::timeout(format!("Too large resource version: {revision}, current: {}", hub.revision())).retry_after(1);
    status.details.get_or_insert_default().causes.push(edge_api::status::StatusCause {
        reason: "ResourceVersionTooLarge".into(),
        message: "Too large resource version".into(),
        field: String::new(),
    });
    Err(status)
}

pub(crate) async fn list(hub: &Hub, target: &Target<'_>, options: &ListOptions) -> Result<List, Status> {
    let resource = resource_of(hub, target, "list")?;
    let selection = Selection::new(target, &options.labels, &options.fields, resource.fields())?;
    let asked = parse_resource_version(&options.resource_version)?;
    check_list(options, asked)?;
    let (revision, after) = if options.continue_token.is_empty() {
        (first_revision(hub, asked, options.version_match).await?, String::new())
    } else {
        let token = Continue::decode(&options.continue_token)?;
        // it may be another server's
        if wait_for(hub, token.revision).await.is_err() {
            return Err(Status::bad_request("invalid continue token: it is from the future"));
        }
        (token.revision, token.after)
    };
    let (items, following) = resource.list(&selection, revision, &after, options.limit).map_err(|e| {
        if options.continue_token.is_empty() { too_old(revision, e) } else { Status::expired(CONTINUE_EXPIRED) }
    })?;
    let continue_token = match items.last().filter(|_| following > 0) {
        Some(last) => Continue::encode(revision, last.key()),
        None => String::new(),
    };
    let remaining = selection.is_everything().then_some(following as u64);
    Ok(List { items, resource_version: revision, continue_token, remaining })
}

/// The revision of which a list without a continue token is.
async fn first_revision(hub: &Hub, asked: Option<u64>, how: Option<VersionMatch>) -> Result<u64, Status> {
    match (asked, how) {
        (None | Some(0), _) => Ok(hub.revision()),
        (Some(exact), Some(VersionMatch::Exact)) => {
            wait_for(hub, exact).await?;
            Ok(exact)
        }
        (Some(least), _) => {
            wait_for(hub, least).await?;
            Ok(hub.revision())
        }
    }
}

/// Combinations that Kubernetes refuses.
fn check_list(options: &ListOptions, asked: Option<u64>) -> Result<(), Status> {
    let bad = |message: &str| Err(Status::bad_request(message));
    if !options.continue_token.is_empty() && !matches!(asked, None | Some(0)) {
        return bad("specifying resource version is not allowed when using continue");
    }
    match options.version_match {
        Some(_) if !options.continue_token.is_empty() => {
            bad("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden when continue is provided")
        }
        Some(_) if asked.is_none() => {
            bad("resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided")
        }
        Some(VersionMatch::Exact) if asked == Some(0) => bad(
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        _ => Ok(()),
    }
}

pub(crate) async fn watch(hub: &Hub, target: &Target<'_>, options: &WatchOptions) -> Result<WatchStream, Status> {
    let resource = resource_of(hub, target, "watch")?;
    let selection = Selection::new(target, &options.labels, &options.fields, resource.fields())?;
    let asked = parse_resource_version(&options.resource_version)?;
    if let Some(revision) = asked {
        wait_for(hub, revision).await?;
    }
    let begin = match (options.send_initial_events, asked) {
        (Some(true), _) if options.bookmarks => Begin::NowWithMark,
        (Some(true), _) | (None, None | Some(0)) => Begin::Now,
        (Some(false), None | Some(0)) => Begin::Next,
        (_, Some(revision)) => Begin::After(revision),
    };
    let asked = asked.unwrap_or_default();
    resource.watch(selection, begin, options.bookmarks, hub.revision()).map_err(|e| too_old(asked, e))
}

fn too_old(asked: u64, error: TooOld) -> Status {
    Status::expired(format!("too old resource version: {asked} ({})", error.oldest))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn tokens_round_trip_and_nonsense_is_400() {
        let token = Continue::decode(&Continue::encode(7, "ns/a")).unwrap();
        assert_eq!((token.revision, token.after.as_str()), (7, "ns/a"));
        for bad in ["nonsense", "", "e30", "%%%", &URL_SAFE_NO_PAD.encode("{\"v\":\"x\",\"rv\":1,\"start\":\"\"}")] {
            assert_eq!(Continue::decode(bad).unwrap_err().code, 400, "{bad}");
        }
    }
}
