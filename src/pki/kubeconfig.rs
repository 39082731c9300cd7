//! Kubeconfig files with everything embedded.

use crate::authority::Authority;
use crate::files::{self, PkiError};
use crate::identity::Identity;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::path::Path;

/// Writes a kubeconfig that logs in to `server` (a URL) as `identity`. The file is replaced only when its content changes; it gets
/// the permission bits `mode` (0600 unless the administrator wants otherwise: it holds a private key).
///
/// # Errors
/// When the directory cannot be made or the file not written.
pub fn write_kubeconfig(
    path: &Path,
    mode: u32,
    server: &str,
    authority: &Authority,
    identity: &Identity,
) -> Result<(), PkiError> {
    let text = render(server, authority, identity);
    if files::read(path)?.is_some_and(|old| old == text.as_bytes()) && mode_of(path) == Some(mode) {
        return Ok(());
    }
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).map_err(|source| PkiError::Io {
            action: "create",
            path: dir.to_owned(),
            source,
        })?;
    }
    files::write(path, &text, mode)
}

fn mode_of(path: &Path) -> Option<u32> {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).ok().map(|m| m.permissions().mode() & 0o7777)
}

/// YAML of a form that needs no quoting rules: every value is a JSON string, which YAML reads as it is.
fn render(server: &str, authority: &Authority, identity: &Identity) -> String {
    let quoted = |text: &str| Value::from(text).to_string();
    let data = |pem: &str| STANDARD.encode(pem);
    let name = json!("default");
    [
        "apiVersion: v1".to_owned(),
        "kind: Config".to_owned(),
        "clusters:".to_owned(),
        format!("- name: {name}"),
        "  cluster:".to_owned(),
        format!("    certificate-authority-data: {}", data(authority.pem())),
        format!("    server: {}", quoted(server)),
        "users:".to_owned(),
        format!("- name: {name}"),
        "  user:".to_owned(),
        format!("    client-certificate-data: {}", data(identity.certificate_pem())),
        format!("    client-key-data: {}", data(&identity.key_pem())),
        "contexts:".to_owned(),
        format!("- name: {name}"),
        "  context:".to_owned(),
        format!("    cluster: {name}"),
        format!("    user: {name}"),
        format!("current-context: {name}"),
        String::new(),
    ]
    .join("\n")
}
