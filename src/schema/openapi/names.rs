//! Names that the documents derive from groups, versions and kinds.

use edge_api::GroupVersion;

/// Path of a group version without its leading slash: `api/v1`, `apis/apps/v1`.
pub(super) fn group_version_path(gv: &GroupVersion) -> String {
    if gv.group.is_empty() { format!("api/{}", gv.version) } else { format!("apis/{}/{}", gv.group, gv.version) }
}

/// `pod` as `Pod`.
pub(super) fn capitalized(word: &str) -> String {
    let mut chars = word.chars();
    chars.next().map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// Group and version as they appear in operation ids: `CoreV1`, `RbacAuthorizationV1`.
pub(super) fn operation_prefix(gv: &GroupVersion) -> String {
    group_words(gv).map(capitalized).chain([capitalized(&gv.version)]).collect()
}

/// The tag of a group version: `core_v1`, `rbacAuthorization_v1`.
pub(super) fn tag(gv: &GroupVersion) -> String {
    let mut words = group_words(gv);
    let first = words.next().unwrap_or_default().to_owned();
    let group: String = std::iter::once(first).chain(words.map(capitalized)).collect();
    format!("{group}_{}", gv.version)
}

fn group_words(gv: &GroupVersion) -> impl Iterator<Item = &str> {
    let group = if gv.group.is_empty() { "core" } else { gv.group.trim_end_matches(".k8s.io") };
    group.split(['.', '-'])
}

/// The last three parts of an OpenAPI name: `core.v1.Pod`.
pub(super) fn short(name: &str) -> &str {
    let at = name.rmatch_indices('.').nth(2).map_or(0, |(at, _)| at + 1);
    &name[at..]
}
