//! Clients for commands: to the cluster of any kubeconfig, over HTTP/1.1, which can become WebSockets.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::path::Path;

/// The name by which every server's certificate knows itself, whatever the address.
const SERVER_NAME: &str = "kubernetes";

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KubeconfigError(String);

/// The cluster of a kubeconfig.
pub struct KubeconfigCluster {
    /// Asks as the user that the kubeconfig names.
    pub client: Client,
    /// The namespace of the context.
    pub namespace: String,
    /// Where the server is.
    pub url: String,
    /// The authority that vouches for it, PEM as in the kubeconfig; empty when it is not in there.
    pub ca: Vec<u8>,
}

/// Reads a kubeconfig, for a context of it or the current one; `server` is another URL of the same cluster. Must be called within a
/// tokio runtime.
///
/// # Errors
/// When the file cannot be read or makes no sense. Nobody is asked yet.
pub async fn from_kubeconfig(
    path: &Path,
    context: Option<&str>,
    server: Option<&str>,
) -> Result<KubeconfigCluster, KubeconfigError> {
    let fail = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        KubeconfigError(format!("{}: {error}{cause}", path.display()))
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| fail(&e))?;
    let ca = authority(&kubeconfig, context).map_err(|e| fail(&e))?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| fail(&e))?;
    // watches and logs are silent for as long as nothing happens
    config.read_timeout = None;
    if let Some(server) = server {
        config.cluster_url = server.parse().map_err(|e| fail(&e))?;
        config.tls_server_name = Some(SERVER_NAME.to_owned());
    }
    let (namespace, url) = (config.default_namespace.clone(), config.cluster_url.to_string());
    let client = Client::try_from(config).map_err(|e| fail(&e))?;
    Ok(KubeconfigCluster { client, namespace, url: url.trim_end_matches('/').to_owned(), ca })
}

/// The authority in the kubeconfig of the context's cluster.
fn authority(kubeconfig: &Kubeconfig, context: Option<&str>) -> Result<Vec<u8>, base64::DecodeError> {
    let context = context.or(kubeconfig.current_context.as_deref());
    let context = kubeconfig.contexts.iter().find(|c| Some(c.name.as_str()) == context);
    let name = context.and_then(|c| c.context.as_ref()).map(|c| c.cluster.as_str());
    let cluster = kubeconfig.clusters.iter().find(|c| Some(c.name.as_str()) == name);
    let data = cluster.and_then(|c| c.cluster.as_ref()?.certificate_authority_data.as_ref());
    data.map_or_else(|| Ok(Vec::new()), |data| STANDARD.decode(data))
}
