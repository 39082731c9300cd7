//! Objects as a webhook is to see them: in the version that it is about, and the scale of an object where that is what is written.

use super::super::Cluster;
use edge_api::{Object, Status};
use edge_registry::{Attributes, ResourceInfo, SubresourceKind, scale};
use std::borrow::Cow;

/// Whether replicas are written by the subresource for that.
pub(super) fn is_scale(a: &Attributes<'_>) -> bool {
    !a.subresource.is_empty()
        && matches!(a.info.subresource(a.subresource).map(|s| s.serves), Some(SubresourceKind::Scale))
}

/// What is written, as far as webhooks are concerned.
pub(super) fn written<'o>(a: &Attributes<'_>, object: &'o Object) -> Cow<'o, Object> {
    if is_scale(a) { Cow::Owned(scale::view(a.info, object)) } else { Cow::Borrowed(object) }
}

/// An object in the version of a row, if it is one of this resource at all (and not something that is submitted to a subresource).
///
/// # Errors
/// When a webhook would have to convert it, and does not.
pub(super) async fn in_version<'o>(
    cluster: &dyn Cluster,
    a: &Attributes<'_>,
    row: &ResourceInfo,
    object: &'o Object,
) -> Result<Cow<'o, Object>, Status> {
    let api_version = row.api_version();
    if object.kind() != row.kind || object.api_version() == api_version {
        return Ok(Cow::Borrowed(object));
    }
    let rows = cluster.catalog().rows();
    let of_object = |r: &&std::sync::Arc<ResourceInfo>| {
        r.plural == a.info.plural && r.prefix == a.info.prefix && r.api_version() == object.api_version()
    };
    let from = rows.iter().find(of_object);
    cluster.convert(from.map(AsRef::as_ref), row, object.clone()).await.map(Cow::Owned)
}
