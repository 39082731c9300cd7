//! What tells whether two stores hold the same.

use crate::types::KeyValue;
use sha2::{Digest, Sha256};

/// SHA-256 of keys with their values and revisions, in hexadecimal. The order matters.
pub fn digest<'k>(items: impl IntoIterator<Item = &'k KeyValue>) -> String {
    let mut hasher = Sha256::new();
    for kv in items {
        for part in [&kv.key, &kv.value] {
            hasher.update((part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        hasher.update(kv.create_revision.to_le_bytes());
        hasher.update(kv.mod_revision.to_le_bytes());
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
