//! Who makes a request.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An authenticated identity, with the field names of `authentication.k8s.io/v1` `UserInfo`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserInfo {
    /// Unique name among all users, for instance `system:serviceaccount:default:default`.
    pub username: String,
    /// Stable identity of the user across name reuse; may be empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Groups the user is a member of.
    pub groups: Vec<String>,
    /// Further facts of the authenticator.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// The group whose members may do everything, before any role is read.
    pub const MASTERS: &'static str = "system:masters";
    /// The group of everybody who was authenticated.
    pub const AUTHENTICATED: &'static str = "system:authenticated";
    /// The group of everybody who was not.
    pub const UNAUTHENTICATED: &'static str = "system:unauthenticated";
    /// The name of whoever presents no credentials.
    pub const ANONYMOUS: &'static str = "system:anonymous";

    /// An authenticated user in `groups` (and in `system:authenticated`).
    pub fn new<I, S>(username: impl Into<String>, groups: I) -> Self
    where
        I: IntoIterator<Item = S>,
        S: Into<String>,
    {
        let mut groups: Vec<String> = groups.into_iter().map(Into::into).collect();
        if !groups.iter().any(|g| g == Self::AUTHENTICATED) {
            groups.push(Self::AUTHENTICATED.into());
        }
        Self { username: username.into(), groups, ..Self::default() }
    }

    /// The user of a request without credentials.
    pub fn anonymous() -> Self {
        Self { username: Self::ANONYMOUS.into(), groups: vec![Self::UNAUTHENTICATED.into()], ..Self::default() }
    }

    /// Whether the user is in `group`.
    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}
