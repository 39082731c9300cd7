//! Who makes a request ([`Authenticator`]), and whether he may ([`Rbac`], for nodes [`NodeAuthorizer`]).
//!
//! No IO: the API server feeds the index with roles and bindings as they change, and answers for the existence of the
//! objects that tokens are bound to.

mod bootstrap;
mod join;
mod jwt;
mod node;
mod rbac;
mod rules;
mod tokens;

pub use bootstrap::bootstrap_policy;
pub use join::{BOOTSTRAPPERS, JoinSecrets, password_hash, password_matches, split_bootstrap_token};
pub use jwt::TokenError;
pub use node::{NODES, NodeAuthorizer, node_of};
pub use rbac::{Attributes, Decision, Rbac, forbidden_message};
pub use rules::{PolicyRule, uncovered};
pub use tokens::{
    Authenticated, Authenticator, AuthenticatorOptions, BoundObject, Lookup, Minted, TokenFailure, TokenSpec,
    lasting_token,
};

/// The user name of a service account.
pub fn service_account_user(namespace: &str, name: &str) -> String {
    format!("system:serviceaccount:{namespace}:{name}")
}

/// The groups of a service account, apart from `system:authenticated`.
pub fn service_account_groups(namespace: &str) -> [String; 2] {
    ["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")]
}
