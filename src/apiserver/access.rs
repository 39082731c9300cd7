//! Who makes a request and whether he may: the auth room, asked in the terms of requests.

use crate::agents::JOIN_PATH;
use crate::chain::Origin;
use crate::request_info::RequestInfo;
use edge_api::{GroupResource, Status, UserInfo};
use edge_auth::{Attributes, Authenticator, Decision, Lookup, NodeAuthorizer, PolicyRule, Rbac, forbidden_message};
use http::HeaderMap;
use http::header::AUTHORIZATION;
use serde::Deserialize;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::SystemTime;

/// Paths that everybody may read, as kube-apiserver's `--authorization-always-allow-paths` has them, and the CA, which
/// a joining node reads before it trusts anything.
const PUBLIC_PATHS: [&str; 4] = ["/healthz", "/livez", "/readyz", "/cacerts"];

/// Authentication and authorization.
pub(crate) struct Access {
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) rbac: Rbac,
    pub(crate) nodes: NodeAuthorizer,
}

/// A question about what somebody may do.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Ask<'a> {
    Resource {
        verb: &'a str,
        group: &'a str,
        resource: &'a str,
        subresource: &'a str,
        namespace: &'a str,
        name: &'a str,
        /// The node that a list or watch is limited to; may be empty.
        node: &'a str,
    },
    Path {
        verb: &'a str,
        path: &'a str,
    },
}

impl<'a> Ask<'a> {
    fn of(info: &'a RequestInfo) -> Self {
        if info.is_resource {
            Self::Resource {
                verb: &info.verb,
                group: &info.group,
                resource: &info.resource,
                subresource: &info.subresource,
                namespace: &info.namespace,
                name: &info.name,
                node: &info.selected_node,
            }
        } else {
            Self::Path { verb: &info.verb, path: &info.path }
        }
    }

    fn attributes(self, user: &'a UserInfo) -> Attributes<'a> {
        let nothing = Attributes {
            user,
            verb: "",
            is_resource: false,
            group: "",
            resource: "",
            subresource: "",
            namespace: "",
            name: "",
            path: "",
            node: "",
        };
        match self {
            Self::Path { verb, path } => Attributes { verb, path, ..nothing },
            Self::Resource { verb, group, resource, subresource, namespace, name, node } => {
                Attributes { verb, is_resource: true, group, resource, subresource, namespace, name, node, ..nothing }
            }
        }
    }
}

impl Access {
    /// Tells who makes a request: the component that calls, the holder of the client certificate or of the bearer
    /// token, or nobody in particular. Takes the credentials out of the headers.
    ///
    /// # Errors
    /// 401 for credentials that do not hold. Who shows none is anonymous; who shows wrong ones is nobody.
    pub(crate) fn authenticate(
        &self,
        lookup: &dyn Lookup,
        origin: Origin<'_>,
        headers: &mut HeaderMap,
    ) -> Result<UserInfo, Status> {
        let token = headers.remove(AUTHORIZATION);
        match origin {
            Origin::Component(Some(user)) => return Ok(user),
            Origin::Connection(peer) => {
                if let Some((user, end)) = &peer.certificate_user {
                    if *end < SystemTime::now() {
                        tracing::debug!(user = user.username, "client certificate has expired");
                        return Err(Status::unauthorized());
                    }
                    return Ok(user.clone());
                }
            }
            Origin::Component(None) => {}
        }
        let Some(value) = token else { return Ok(UserInfo::anonymous()) };
        let text = value.to_str().unwrap_or_default();
        let token = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => return Err(Status::unauthorized()),
        };
        self.authenticator.authenticate(token, &[], lookup).map(|a| a.user).map_err(|error| {
            tracing::debug!(%error, "bearer token refused");
            Status::unauthorized()
        })
    }

    /// Whether a request may go on, and why.
    ///
    /// # Errors
    /// 403 in Kubernetes' words.
    pub(crate) fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Result<String, Status> {
        let is_public =
            |p: &&str| info.path.strip_prefix(*p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if !info.is_resource && info.verb == "get" && PUBLIC_PATHS.iter().any(is_public) {
            return Ok(String::new());
        }
        // who joins is known to nobody yet; the handler sees to it
        if !info.is_resource && info.verb == "post" && info.path == JOIN_PATH {
            return Ok(String::new());
        }
        self.reason(user, Ask::of(info))
    }

    /// Asks those who decide, in turn.
    fn decision(&self, attributes: &Attributes<'_>) -> Decision {
        match self.nodes.authorize(attributes) {
            Decision::NoOpinion => self.rbac.authorize(attributes),
            allowed => allowed,
        }
    }

    /// Whether a user may do something that is only part of a request (impersonate, bind, ...).
    ///
    /// # Errors
    /// 403 in Kubernetes' words.
    pub(crate) fn require(&self, user: &UserInfo, ask: Ask<'_>) -> Result<(), Status> {
        self.reason(user, ask).map(|_| ())
    }

    /// Why a user may do something.
    fn reason(&self, user: &UserInfo, ask: Ask<'_>) -> Result<String, Status> {
        let attributes = ask.attributes(user);
        if let Decision::Allow(reason) = self.decision(&attributes) {
            return Ok(reason);
        }
        let message = forbidden_message(&attributes);
        Err(if attributes.is_resource {
            Status::forbidden(&GroupResource::new(attributes.group, attributes.resource), attributes.name, &message)
        } else {
            let mut status = Status::new(403, edge_api::Reason::Forbidden, format!("forbidden: {message}"));
            status.details = Some(Box::default());
            status
        })
    }

    /// Decides, with the reason, for the reviews.
    pub(crate) fn decide(&self, user: &UserInfo, ask: Ask<'_>) -> (bool, String) {
        match self.decision(&ask.attributes(user)) {
            Decision::Allow(reason) => (true, reason),
            Decision::NoOpinion => (false, String::new()),
        }
    }

    /// The `status` of a `SelfSubjectRulesReview`.
    pub(crate) fn rules(&self, user: &UserInfo, namespace: &str) -> Value {
        let (paths, resources): (Vec<PolicyRule>, Vec<PolicyRule>) =
            self.rbac.rules(user, namespace).into_iter().partition(|r| !r.non_resource_urls.is_empty());
        json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
    }

    /// The `status` of a `TokenReview`.
    pub(crate) fn review_token(&self, lookup: &dyn Lookup, token: &str, audiences: &[String]) -> Value {
        match self.authenticator.authenticate(token, audiences, lookup) {
            Ok(a) => json!({"authenticated": true, "user": a.user, "audiences": a.audiences}),
            Err(error) => json!({"user": {}, "error": format!("[invalid bearer token, {error}]")}),
        }
    }

    /// Whether the user already holds every one of the rules.
    ///
    /// # Errors
    /// Those that he lacks, in words.
    pub(crate) fn covers(&self, user: &UserInfo, namespace: &str, rules: &[Value]) -> Result<(), String> {
        let wanted: Vec<PolicyRule> = rules.iter().filter_map(|r| PolicyRule::deserialize(r).ok()).collect();
        let missing = self.rbac.missing(user, namespace, &wanted);
        if missing.is_empty() {
            return Ok(());
        }
        Err(missing.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }

    /// `/.well-known/openid-configuration`.
    pub(crate) fn openid_configuration(&self) -> String {
        let issuer = self.authenticator.issuer();
        json!({
            "issuer": issuer,
            "jwks_uri": format!("{issuer}/openid/v1/jwks"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["ES256"],
        })
        .to_string()
    }
}
