//! Certificate signing requests: those that nodes make for themselves are approved, approved ones are signed, old ones go.
//!
//! Who may have which certificate by himself is decided here ([`recognized`]); everything else waits for an
//! administrator (`kubectl certificate approve`).

use crate::context::{Context, each, unless_changed, unless_gone};
use edge_client::{
    Api, Client, DeleteParams, Error, Informer, Outcome, Patch, PatchParams, PostParams, Preconditions, ResourceExt,
    WorkQueue, run_workers,
};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::jiff::Timestamp;
use serde_json::json;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

const NODE_CLIENT: &str = "kubernetes.io/kube-apiserver-client-kubelet";
const NODE_SERVING: &str = "kubernetes.io/kubelet-serving";
/// Names that only servers of the cluster may have.
const SERVERS_NAMES: [&str; 2] = ["kubernetes", "localhost"];
/// How long requests are kept, by what became of them: Kubernetes' values.
const KEEP_ANSWERED: Duration = Duration::from_secs(60 * 60);
const KEEP_WAITING: Duration = Duration::from_secs(24 * 60 * 60);

/// What a certificate request asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertificateFacts {
    /// The subject's common name.
    pub common_name: String,
    /// The subject's organizations.
    pub organizations: Vec<String>,
    /// DNS names.
    pub dns: Vec<String>,
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// How many names of other kinds there are.
    pub other_names: usize,
}

/// Reads and signs certificate requests (PEM); holds the cluster's authorities.
pub trait CertificateSigner: Debug + Send + Sync {
    /// What a request asks for.
    ///
    /// # Errors
    /// Why it cannot be read.
    fn facts(&self, request: &[u8]) -> Result<CertificateFacts, String>;

    /// Signs a request in the name of `signer` (`kubernetes.io/...`); `None` when that signer is not known here.
    ///
    /// # Errors
    /// Why it cannot be signed.
    fn sign(
        &self,
        signer: &str,
        request: &[u8],
        usages: &[String],
        life: Option<Duration>,
    ) -> Option<Result<String, String>>;
}

pub(crate) async fn run(context: Context, signer: Arc<dyn CertificateSigner>) {
    let requests = context.informers.of::<CertificateSigningRequest>();
    let (services, slices) = (context.informers.of::<Service>(), context.informers.of::<EndpointSlice>());
    requests.synced().await;
    services.synced().await;
    slices.synced().await;
    let queue = WorkQueue::<String>::new();
    let watch = each(&requests, |change| queue.add(change.object().name_any()));
    let work = run_workers("certificates", queue.clone(), 2, |name: String| {
        let (client, signer) = (context.client.clone(), signer.clone());
        let request = requests.get("", &name);
        let reserved = reserved(&services, &slices);
        async move {
            match request {
                Some(request) => reconcile(&client, signer.as_ref(), &request, &reserved).await,
                None => Ok(Outcome::Done),
            }
        }
    });
    tokio::join!(watch, work);
}

/// Addresses by which servers and services of the cluster are reached: no node may have them in its certificate.
fn reserved(services: &Informer<Service>, slices: &Informer<EndpointSlice>) -> BTreeSet<String> {
    let of_services = services.list().into_iter().flat_map(|s| {
        let spec = s.spec.clone().unwrap_or_default();
        spec.cluster_ips.unwrap_or_default().into_iter().chain(spec.cluster_ip)
    });
    let of_server = slices
        .get("default", "kubernetes")
        .into_iter()
        .flat_map(|s| s.endpoints.iter().flatten().flat_map(|e| e.addresses.clone()).collect::<Vec<_>>());
    of_services.chain(of_server).collect()
}

async fn reconcile(
    client: &Client,
    signer: &dyn CertificateSigner,
    request: &CertificateSigningRequest,
    reserved: &BTreeSet<String>,
) -> Result<Outcome, Error> {
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let name = request.name_any();
    let left = time_left(request, Timestamp::now());
    if left.is_zero() {
        let this_one = Preconditions { uid: request.uid(), resource_version: None };
        let options = DeleteParams { preconditions: Some(this_one), ..DeleteParams::default() };
        unless_changed(api.delete(&name, &options).await)?;
        return Ok(Outcome::Done);
    }
    let later = Outcome::After(left);
    if has(request, "Denied") || has(request, "Failed") {
        return Ok(later);
    }
    let spec = &request.spec;
    if !has(request, "Approved") {
        let facts = signer.facts(&spec.request.0);
        let Some(right) = facts.ok().and_then(|facts| recognized(spec, &facts, reserved)) else { return Ok(later) };
        if may(client, spec, right).await? {
            let message = "a node gets certificates of its own";
            let change = condition("Approved", "AutoApproved", message);
            unless_gone(api.patch_approval(&name, &PatchParams::default(), &change).await)?;
        }
        // the approval brings the request back
        return Ok(later);
    }
    let has_certificate = request.status.as_ref().and_then(|s| s.certificate.as_ref()).is_some_and(|c| !c.0.is_empty());
    if has_certificate {
        return Ok(later);
    }
    let usages = spec.usages.clone().unwrap_or_default();
    let life = spec.expiration_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs);
    let change = match signer.sign(&spec.signer_name, &spec.request.0, &usages, life) {
        // somebody else's signer
        None => return Ok(later),
        Some(Ok(pem)) => {
            let certificate = k8s_openapi::ByteString(pem.into_bytes());
            Patch::Merge(json!({"status": {"certificate": certificate}}))
        }
        Some(Err(why)) => {
            let mut conditions = request.status.clone().unwrap_or_default().conditions.unwrap_or_default();
            conditions.retain(|c| c.type_ != "Failed");
            let mut all = serde_json::to_value(conditions).unwrap_or_default();
            if let Some(all) = all.as_array_mut() {
                all.push(
                    json!({"type": "Failed", "status": "True", "reason": "SignerValidationFailure", "message": why}),
                );
            }
            Patch::Merge(json!({"status": {"conditions": all}}))
        }
    };
    unless_gone(api.patch_status(&name, &PatchParams::default(), &change).await)?;
    Ok(later)
}

fn has(request: &CertificateSigningRequest, kind: &str) -> bool {
    let conditions = request.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == kind && c.status != "False")
}

fn condition(kind: &str, reason: &str, message: &str) -> Patch<serde_json::Value> {
    let condition = json!({
        "type": kind, "status": "True", "reason": reason, "message": message, "lastUpdateTime": Timestamp::now(),
    });
    Patch::Merge(json!({"status": {"conditions": [condition]}}))
}

/// How long a request is kept still.
fn time_left(request: &CertificateSigningRequest, now: Timestamp) -> Duration {
    let made = request.metadata.creation_timestamp.as_ref().map_or(now, |t| t.0);
    let answered = ["Approved", "Denied", "Failed"].iter().any(|kind| has(request, kind));
    let keep = if answered { KEEP_ANSWERED } else { KEEP_WAITING };
    let age = u64::try_from(now.as_second() - made.as_second()).unwrap_or(0);
    keep.saturating_sub(Duration::from_secs(age))
}

/// The right that a node needs for the certificate it asks for, if it is one that nodes have by themselves: for its own
/// name, and (serving) for names and addresses that cannot be taken for those of others.
fn recognized(
    spec: &CertificateSigningRequestSpec,
    facts: &CertificateFacts,
    reserved: &BTreeSet<String>,
) -> Option<&'static str> {
    let node = facts.common_name.strip_prefix("system:node:").filter(|n| !n.is_empty())?;
    if facts.organizations != ["system:nodes"] || facts.other_names > 0 {
        return None;
    }
    let usages: Vec<&str> = spec.usages.iter().flatten().map(String::as_str).collect();
    let only = |needed: &str| {
        usages.contains(&needed)
            && usages.iter().all(|u| *u == needed || matches!(*u, "digital signature" | "key encipherment"))
    };
    let own = spec.username.as_deref() == Some(facts.common_name.as_str())
        && spec.groups.iter().flatten().any(|g| g == "system:nodes");
    match spec.signer_name.as_str() {
        NODE_CLIENT if only("client auth") && facts.dns.is_empty() && facts.ips.is_empty() => {
            Some(if own { "selfnodeclient" } else { "nodeclient" })
        }
        NODE_SERVING if only("server auth") && own => {
            let first_label = node.split('.').next().unwrap_or_default();
            let named = facts.dns.iter().all(|d| d == node) && !SERVERS_NAMES.contains(&first_label);
            let plain = |ip: &IpAddr| !ip.is_loopback() && !ip.is_unspecified() && !ip.is_multicast();
            let addressed = facts.ips.iter().all(|ip| plain(ip) && !reserved.contains(&ip.to_string()));
            let some = !facts.dns.is_empty() || !facts.ips.is_empty();
            (named && addressed && some).then_some("selfnodeclient")
        }
        _ => None,
    }
}

/// Whether who asks may have such certificates without being asked: what an administrator can take away.
async fn may(client: &Client, spec: &CertificateSigningRequestSpec, right: &str) -> Result<bool, Error> {
    let review = SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: spec.username.clone(),
            groups: spec.groups.clone(),
            uid: spec.uid.clone(),
            extra: spec.extra.clone(),
            resource_attributes: Some(ResourceAttributes {
                group: Some("certificates.k8s.io".into()),
                resource: Some("certificatesigningrequests".into()),
                subresource: Some(right.into()),
                verb: Some("create".into()),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    };
    let api: Api<SubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await?;
    Ok(answer.status.is_some_and(|s| s.allowed))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn spec(signer: &str, usage: &str, user: &str) -> CertificateSigningRequestSpec {
        CertificateSigningRequestSpec {
            signer_name: signer.into(),
            usages: Some(vec!["digital signature".into(), usage.into()]),
            username: Some(user.into()),
            groups: Some(vec!["system:nodes".into()]),
            ..CertificateSigningRequestSpec::default()
        }
    }

    fn facts(node: &str, dns: &[&str], ips: &[&str]) -> CertificateFacts {
        CertificateFacts {
            common_name: format!("system:node:{node}"),
            organizations: vec!["system:nodes".into()],
            dns: dns.iter().map(|d| (*d).to_owned()).collect(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            other_names: 0,
        }
    }

    #[test]
    fn nodes_get_their_own_certificates_and_no_others() {
        let reserved = BTreeSet::from(["10.43.0.1".to_owned(), "192.0.2.1".to_owned()]);
        let client = |user: &str, facts: &CertificateFacts| {
            recognized(&spec(NODE_CLIENT, "client auth", user), facts, &reserved)
        };
        assert_eq!(client("system:node:a", &facts("a", &[], &[])), Some("selfnodeclient"));
        assert_eq!(client("system:bootstrap:x", &facts("a", &[], &[])), Some("nodeclient"));
        assert_eq!(client("system:node:a", &facts("a", &["a"], &[])), None);
        let masters = CertificateFacts { organizations: vec!["system:masters".into()], ..facts("a", &[], &[]) };
        assert_eq!(client("system:node:a", &masters), None);
        let admin = CertificateFacts { common_name: "admin".into(), ..facts("a", &[], &[]) };
        assert_eq!(client("system:node:a", &admin), None);
        assert_eq!(
            recognized(&spec(NODE_CLIENT, "server auth", "system:node:a"), &facts("a", &[], &[]), &reserved),
            None
        );

        let serving = |user: &str, facts: &CertificateFacts| {
            recognized(&spec(NODE_SERVING, "server auth", user), facts, &reserved)
        };
        assert_eq!(serving("system:node:a", &facts("a", &["a"], &["192.0.2.7"])), Some("selfnodeclient"));
        for bad in [
            facts("a", &["b"], &[]),
            facts("a", &["a"], &["192.0.2.1"]),
            facts("a", &["a"], &["10.43.0.1"]),
            facts("a", &["a"], &["127.0.0.1"]),
            facts("a", &[], &[]),
        ] {
            assert_eq!(serving("system:node:a", &bad), None, "{bad:?}");
        }
        assert_eq!(serving("system:node:b", &facts("a", &["a"], &[])), None);
        for name in ["kubernetes", "kubernetes.default.svc", "localhost"] {
            assert_eq!(serving(&format!("system:node:{name}"), &facts(name, &[name], &[])), None, "{name}");
        }
    }

    #[test]
    fn requests_go_when_their_time_is_over() {
        let now = Timestamp::from_second(1_000_000).unwrap();
        let mut request: CertificateSigningRequest = serde_json::from_value(json!({
            "metadata": {"name": "x"}, "spec": {"request": "", "signerName": "x"}}))
        .unwrap();
        let made = Timestamp::from_second(1_000_000 - 3600).unwrap();
        request.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(made));
        assert_eq!(time_left(&request, now), Duration::from_secs(23 * 3600));
        request.status = serde_json::from_value(json!({"conditions": [{"type": "Denied", "status": "True"}]})).unwrap();
        assert_eq!(time_left(&request, now), Duration::ZERO);
    }
}
