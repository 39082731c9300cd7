//! Webhooks that judge what is written, all at once.

use super::super::Cluster;
use super::Set;
use super::call::{self, Called};
use edge_api::{Object, Status};
use edge_registry::Attributes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};

/// Asks all webhooks that are about a write, at the same time.
///
/// # Errors
/// A refusal: the first in the order of the webhooks.
pub(in super::super) async fn validate(
    cluster: &dyn Cluster,
    set: &Set,
    a: &Attributes<'_>,
    object: Option<&Object>,
) -> Result<(), Status> {
    if set.validating.is_empty() {
        return Ok(());
    }
    let mut asked = Vec::new();
    for hook in &set.validating {
        if let Some(seen) = call::seen(cluster, a, hook, object).await? {
            asked.push((hook, seen));
        }
    }
    let calls: Vec<BoxFuture<'_, Called>> =
        asked.iter().map(|(hook, seen)| call::call(cluster, a, hook, seen, false).boxed()).collect();
    for called in join_all(calls).await {
        if let Called::Refused(status) = called {
            return Err(status);
        }
    }
    Ok(())
}
