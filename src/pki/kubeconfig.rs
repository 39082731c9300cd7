//! Kubeconfig files with everything embedded.

use crate::Identity;
use base64::{Engine, prelude::BASE64_STANDARD};

/// A kubeconfig (YAML) for one cluster and one user. `authority` is the server's certificate authority, PEM.
pub fn kubeconfig(server: &str, authority: &str, user: &Identity) -> String {
    let encode = |pem: &str| BASE64_STANDARD.encode(pem);
    format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: default\n  cluster:\n    server: {server}\n    certificate-authority-data: {}\nusers:\n- name: default\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: default\n  context:\n    cluster: default\n    user: default\ncurrent-context: default\n",
        encode(authority),
        encode(&user.certificate),
        encode(&user.key),
    )
}
