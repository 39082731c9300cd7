//! What configMap, secret, downwardAPI and projected volumes hold. Pure.

use super::atomic::{FileContent, Payload};
use crate::env::fields::{Facts, FieldError, pod_field, resource_field};
use k8s_openapi::api::core::v1::{ConfigMap, DownwardAPIVolumeFile, KeyToPath, Pod, Secret};
use std::collections::BTreeMap;

/// Mode of files when nobody says otherwise.
pub(crate) const DEFAULT_MODE: i32 = 0o644;

/// Why a volume has no content.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PayloadError {
    #[error("references non-existent {what} key: {key}")]
    NoKey { what: &'static str, key: String },
    #[error(transparent)]
    Field(#[from] FieldError),
}

/// The keys of a configMap.
pub(crate) fn config_map_data(object: &ConfigMap) -> BTreeMap<String, Vec<u8>> {
    let text = object.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    let binary = object.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    text.chain(binary).collect()
}

/// The keys of a secret.
pub(crate) fn secret_data(object: &Secret) -> BTreeMap<String, Vec<u8>> {
    object.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o7777
}

/// The files of keys: all of them, or those that `items` names, where it says.
pub(crate) fn keys(
    what: &'static str,
    data: &BTreeMap<String, Vec<u8>>,
    items: Option<&[KeyToPath]>,
    default_mode: i32,
    optional: bool,
) -> Result<Payload, PayloadError> {
    let items = items.unwrap_or_default();
    if items.is_empty() {
        let file = |data: &Vec<u8>| FileContent { data: data.clone(), mode: bits(default_mode) };
        return Ok(data.iter().map(|(key, value)| (key.clone(), file(value))).collect());
    }
    let mut files = Payload::new();
    for item in items {
        match data.get(&item.key) {
            Some(value) => {
                let mode = bits(item.mode.unwrap_or(default_mode));
                files.insert(item.path.clone(), FileContent { data: value.clone(), mode });
            }
            None if optional => {}
            None => return Err(PayloadError::NoKey { what, key: item.key.clone() }),
        }
    }
    Ok(files)
}

/// The files of a downwardAPI volume.
pub(crate) fn downward(
    pod: &Pod,
    items: Option<&[DownwardAPIVolumeFile]>,
    default_mode: i32,
    facts: &Facts,
) -> Result<Payload, PayloadError> {
    let mut files = Payload::new();
    for item in items.unwrap_or_default() {
        let text = match (&item.field_ref, &item.resource_field_ref) {
            (Some(field), _) => pod_field(pod, &field.field_path, facts)?,
            (None, Some(resource)) => resource_field(pod, None, resource, facts)?,
            (None, None) => String::new(),
        };
        let mode = bits(item.mode.unwrap_or(default_mode));
        files.insert(item.path.clone(), FileContent { data: text.into_bytes(), mode });
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn items_choose_rename_and_set_modes() {
        let data = BTreeMap::from([("a".to_owned(), b"1".to_vec()), ("b".to_owned(), b"2".to_vec())]);
        let all = keys("config", &data, None, 0o600, false).unwrap();
        assert_eq!(all.iter().map(|(p, f)| (p.as_str(), f.mode)).collect::<Vec<_>>(), [("a", 0o600), ("b", 0o600)]);
        let item = |key: &str, mode| KeyToPath { key: key.into(), path: format!("dir/{key}"), mode };
        let some = keys("config", &data, Some(&[item("b", Some(0o400))]), 0o644, false).unwrap();
        assert_eq!(some["dir/b"], FileContent { data: b"2".to_vec(), mode: 0o400 });
        assert_eq!(some.len(), 1);
        let missing = [item("c", None)];
        assert_eq!(
            keys("config", &data, Some(&missing), 0o644, false).unwrap_err().to_string(),
            "references non-existent config key: c"
        );
        assert!(keys("config", &data, Some(&missing), 0o644, true).unwrap().is_empty());
    }
}
