//! The cluster's authorities and keys as the controllers use them.

use edge_controllers::{CertificateFacts, CertificateSigner, TokenSigner};
use edge_pki::{ClusterPki, RequestFacts};
use std::sync::Arc;
use std::time::Duration;

/// Signs with the cluster's authorities.
#[derive(Debug)]
pub(crate) struct Signer {
    pub(crate) pki: Arc<ClusterPki>,
    /// How long certificates hold at most.
    pub(crate) longest: Duration,
}

impl CertificateSigner for Signer {
    fn facts(&self, request: &[u8]) -> Result<CertificateFacts, String> {
        let RequestFacts { common_name, organizations, dns, ips, other_names } =
            RequestFacts::parse(request).map_err(|e| e.to_string())?;
        Ok(CertificateFacts { common_name, organizations, dns, ips, other_names })
    }

    fn sign(
        &self,
        signer: &str,
        request: &[u8],
        usages: &[String],
        life: Option<Duration>,
    ) -> Option<Result<String, String>> {
        let authority = match signer {
            "kubernetes.io/kube-apiserver-client" | "kubernetes.io/kube-apiserver-client-kubelet" => {
                &self.pki.client_ca
            }
            "kubernetes.io/kubelet-serving" => &self.pki.server_ca,
            _ => return None,
        };
        Some(authority.sign_request(request, usages, life, self.longest).map_err(|e| super::with_causes(&e)))
    }
}

impl TokenSigner for Signer {
    fn sign(&self, namespace: &str, account: (&str, &str), secret: &str) -> Result<String, String> {
        edge_auth::lasting_token(&self.pki.service_account, namespace, account, secret).map_err(|e| e.to_string())
    }
}
