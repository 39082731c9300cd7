//! What each file has applied, remembered in a ConfigMap: a key per file, a line per object.

use edge_client::{Api, Client, Error, ObjectMeta, Patch, PatchParams, PostParams};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt;

pub(super) const NAMESPACE: &str = "kube-system";

/// An object that was applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    pub(super) api_version: String,
    pub(super) kind: String,
    /// Empty for cluster-scoped objects.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Reference {
    /// Whether both are the same object, in whatever version of its group.
    pub(super) fn same(&self, other: &Self) -> bool {
        let group = |r: &Self| r.api_version.split_once('/').map(|(g, _)| g.to_owned());
        group(self) == group(other)
            && self.kind == other.kind
            && self.namespace == other.namespace
            && self.name == other.name
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ').map(str::to_owned);
        let (api_version, kind, place) = (words.next()?, words.next()?, words.next()?);
        let (namespace, name) = place.split_once('/')?;
        Some(Self { api_version, kind, namespace: namespace.into(), name: name.into() })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}/{}", self.api_version, self.kind, self.namespace, self.name)
    }
}

/// The memory; what is in it was written to the API before.
pub(super) struct Applied {
    api: Api<ConfigMap>,
    /// Of the ConfigMap.
    pub(super) name: String,
    files: Option<BTreeMap<String, Vec<Reference>>>,
}

impl Applied {
    pub(super) fn new(client: Client, name: String) -> Self {
        Self { api: Api::namespaced(client, NAMESPACE), name, files: None }
    }

    /// Reads what an earlier run has remembered, once.
    pub(super) async fn load(&mut self) -> Result<(), Error> {
        if self.files.is_some() {
            return Ok(());
        }
        let data = self.api.get_opt(&self.name).await?.and_then(|m| m.data).unwrap_or_default();
        let files = data
            .into_iter()
            .filter_map(|(key, text)| Some((decode(&key)?, text.lines().filter_map(Reference::parse).collect())))
            .collect();
        self.files = Some(files);
        Ok(())
    }

    pub(super) fn files(&self) -> impl Iterator<Item = &str> {
        self.files.iter().flatten().map(|(k, _)| k.as_str())
    }

    pub(super) fn of(&self, file: &str) -> Vec<Reference> {
        self.files.as_ref().and_then(|f| f.get(file).cloned()).unwrap_or_default()
    }

    /// Whether another file has applied the object too.
    pub(super) fn others_have(&self, file: &str, reference: &Reference) -> bool {
        self.files.iter().flatten().any(|(f, list)| f != file && list.iter().any(|r| r.same(reference)))
    }

    /// Adds to what a file has applied.
    pub(super) async fn add(&mut self, file: &str, references: &[Reference]) -> Result<(), Error> {
        let mut all = self.of(file);
        for r in references {
            if !all.iter().any(|a| a.same(r)) {
                all.push(r.clone());
            }
        }
        self.set(file, &all).await
    }

    /// Replaces what a file has applied; nothing forgets the file.
    pub(super) async fn set(&mut self, file: &str, references: &[Reference]) -> Result<(), Error> {
        if self.of(file) == references && (!references.is_empty() || self.files().all(|f| f != file)) {
            return Ok(());
        }
        let text = references.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let value = if references.is_empty() { serde_json::Value::Null } else { text.clone().into() };
        let patch = Patch::Merge(json!({"data": {encode(file): value}}));
        match self.api.patch(&self.name, &PatchParams::default(), &patch).await {
            Err(e) if edge_client::is_not_found(&e) => {
                let map = ConfigMap {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    data: (!references.is_empty()).then(|| [(encode(file), text)].into()),
                    ..ConfigMap::default()
                };
                self.api.create(&PostParams::default(), &map).await?;
            }
            other => drop(other?),
        }
        let files = self.files.get_or_insert_default();
        if references.is_empty() {
            files.remove(file);
        } else {
            files.insert(file.to_owned(), references.to_vec());
        }
        Ok(())
    }
}

/// A path as a ConfigMap key: letters, digits, `-` and `.` stay, all else becomes `_` and its hexadecimal code.
fn encode(file: &str) -> String {
    let mut out = String::from("f-");
    for byte in file.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' => out.push(char::from(byte)),
            other => out.push_str(&format!("_{other:02x}")),
        }
    }
    out
}

fn decode(key: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = key.strip_prefix("f-")?.bytes();
    while let Some(b) = bytes.next() {
        if b == b'_' {
            let hex = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&hex).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn file_names_survive_as_keys() {
        for name in ["a.yaml", "sub dir/ä_b.yml", "_", "..x"] {
            let key = encode(name);
            assert!(edge_api::names::config_map_key(&key).is_ok(), "{key}");
            assert_eq!(decode(&key).unwrap(), name);
        }
        assert_eq!(decode("other"), None);
        assert_eq!(decode("f-_zz"), None);
    }

    #[test]
    fn references_survive_as_lines() {
        for (namespace, api) in [("ns", "apps/v1"), ("", "v1")] {
            let r =
                Reference { api_version: api.into(), kind: "K".into(), namespace: namespace.into(), name: "n".into() };
            assert_eq!(Reference::parse(&r.to_string()).unwrap(), r);
        }
        let a = Reference::parse("apps/v1 Deployment ns/n").unwrap();
        assert!(a.same(&Reference::parse("apps/v1beta1 Deployment ns/n").unwrap()));
        assert!(!a.same(&Reference::parse("v1 Deployment ns/n").unwrap()));
    }
}
