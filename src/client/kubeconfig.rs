//! Clients for commands: to the cluster of any kubeconfig, over HTTP/1.1, which can become WebSockets.

use kube::Client;
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use std::path::Path;

/// Why a kubeconfig cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct KubeconfigError(String);

/// A client for the cluster of a kubeconfig, in a context of it or the current one, and the namespace of that. Must be called within a
/// tokio runtime.
///
/// # Errors
/// When the file cannot be read or makes no sense. Nobody is asked yet.
pub async fn from_kubeconfig(path: &Path, context: Option<&str>) -> Result<(Client, String), KubeconfigError> {
    let fail = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
        KubeconfigError(format!("{error}{cause}"))
    };
    let kubeconfig = Kubeconfig::read_from(path).map_err(|e| fail(&e))?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
    let mut config = Config::from_custom_kubeconfig(kubeconfig, &options).await.map_err(|e| fail(&e))?;
    // watches and logs are silent for as long as nothing happens
    config.read_timeout = None;
    let namespace = config.default_namespace.clone();
    Ok((Client::try_from(config).map_err(|e| fail(&e))?, namespace))
}
