//! Acting as somebody else: the `Impersonate-*` headers, for who may.

use crate::access::{Access, Ask};
use edge_api::{Status, UserInfo};
use http::{HeaderMap, HeaderName};
use std::collections::BTreeMap;

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const EXTRA: &str = "impersonate-extra-";
const ACCOUNT: &str = "system:serviceaccount:";
const AUTHENTICATION: &str = "authentication.k8s.io";

/// Gives back whom the request acts as, and takes the headers out of it.
///
/// # Errors
/// 403 when `user` may not act as that one, 500 when the headers name groups but no user.
pub(crate) fn apply(access: &Access, user: UserInfo, headers: &mut HeaderMap) -> Result<UserInfo, Status> {
    let text = |name: &HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
    let (name, uid) = (text(&USER), text(&UID));
    let groups: Vec<String> =
        headers.get_all(GROUP).iter().filter_map(|v| v.to_str().ok()).map(str::to_owned).collect();
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, value) in headers.iter() {
        let Some(key) = key.as_str().strip_prefix(EXTRA) else { continue };
        let key = percent_encoding::percent_decode_str(key).decode_utf8_lossy().into_owned();
        extra.entry(key).or_default().push(value.to_str().unwrap_or_default().to_owned());
    }
    if name.is_empty() {
        if uid.is_empty() && groups.is_empty() && extra.is_empty() {
            return Ok(user);
        }
        return Err(Status::internal("requested groups, a UID or extra data without impersonating a user"));
    }
    authorize(access, &user, &name, &uid, &groups, &extra)?;
    let names: Vec<HeaderName> = headers.keys().filter(|k| k.as_str().starts_with("impersonate-")).cloned().collect();
    for n in names {
        headers.remove(n);
    }
    Ok(UserInfo { groups: with_implied(&name, groups), username: name, uid, extra })
}

fn authorize(
    access: &Access,
    user: &UserInfo,
    name: &str,
    uid: &str,
    groups: &[String],
    extra: &BTreeMap<String, Vec<String>>,
) -> Result<(), Status> {
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        access.require(
            user,
            Ask::Resource { verb: "impersonate", group, resource, subresource, namespace, name, node: "" },
        )
    };
    match account(name) {
        Some((namespace, name)) => may("", "serviceaccounts", "", namespace, name)?,
        None => may("", "users", "", "", name)?,
    }
    if !uid.is_empty() {
        may(AUTHENTICATION, "uids", "", "", uid)?;
    }
    for g in groups {
        may("", "groups", "", "", g)?;
    }
    for (key, values) in extra {
        for v in values {
            may(AUTHENTICATION, "userextras", key, "", v)?;
        }
    }
    Ok(())
}

/// Namespace and name of a service account's user name.
fn account(user: &str) -> Option<(&str, &str)> {
    user.strip_prefix(ACCOUNT)?.split_once(':').filter(|(ns, name)| !ns.is_empty() && !name.is_empty())
}

/// The groups that come with being that user.
fn with_implied(name: &str, mut groups: Vec<String>) -> Vec<String> {
    if groups.is_empty()
        && let Some((namespace, _)) = account(name)
    {
        groups.push("system:serviceaccounts".into());
        groups.push(format!("system:serviceaccounts:{namespace}"));
    }
    let implied = if name == UserInfo::ANONYMOUS { UserInfo::UNAUTHENTICATED } else { UserInfo::AUTHENTICATED };
    let has_either = |g: &String| g == UserInfo::AUTHENTICATED || g == UserInfo::UNAUTHENTICATED;
    if !groups.iter().any(has_either) {
        groups.push(implied.into());
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_follow_from_the_name() {
        assert_eq!(with_implied("jane", vec!["dev".into()]), ["dev", "system:authenticated"]);
        assert_eq!(
            with_implied("system:serviceaccount:ns:sa", vec![]),
            ["system:serviceaccounts", "system:serviceaccounts:ns", "system:authenticated"]
        );
        assert_eq!(with_implied("system:anonymous", vec![]), ["system:unauthenticated"]);
        assert_eq!(account("system:serviceaccount:ns:"), None);
    }
}
