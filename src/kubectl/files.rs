//! Manifests from files, directories and the standard input.

use crate::error::Error;
use serde::Deserialize;
use serde_json::Value;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The objects of all files, in their order; lists are taken apart.
pub(crate) fn objects(files: &[PathBuf]) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    for path in files {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text)?;
            documents(path, &text, &mut all)?;
        } else if path.is_dir() {
            let entries = std::fs::read_dir(path).map_err(|e| fail(path, e.to_string()))?;
            let mut inside: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(|p| is_manifest(p)).collect();
            inside.sort();
            for path in inside {
                read(&path, &mut all)?;
            }
        } else {
            read(path, &mut all)?;
        }
    }
    if all.is_empty() {
        return Err(Error::Usage("no objects were given".into()));
    }
    Ok(all)
}

fn fail(path: &Path, reason: String) -> Error {
    Error::File { path: path.into(), reason }
}

fn is_manifest(path: &Path) -> bool {
    matches!(path.extension().and_then(|e| e.to_str()), Some("yaml" | "yml" | "json"))
}

fn read(path: &Path, all: &mut Vec<Value>) -> Result<(), Error> {
    let text = std::fs::read_to_string(path).map_err(|e| fail(path, e.to_string()))?;
    documents(path, &text, all)
}

fn documents(path: &Path, text: &str, all: &mut Vec<Value>) -> Result<(), Error> {
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = Value::deserialize(document).map_err(|e| fail(path, e.to_string()))?;
        take(path, value, all)?;
    }
    Ok(())
}

fn take(path: &Path, mut value: Value, all: &mut Vec<Value>) -> Result<(), Error> {
    if value.is_null() {
        return Ok(());
    }
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if kind.ends_with("List") && value["items"].is_array() {
        for item in value["items"].as_array_mut().map(std::mem::take).unwrap_or_default() {
            take(path, item, all)?;
        }
        return Ok(());
    }
    let has = |pointer: &str| value.pointer(pointer).and_then(Value::as_str).is_some_and(|text| !text.is_empty());
    for pointer in ["/apiVersion", "/kind"] {
        if !has(pointer) {
            return Err(fail(path, format!("an object has no {}", &pointer[1..])));
        }
    }
    if !has("/metadata/name") && !has("/metadata/generateName") {
        return Err(fail(path, format!("a {kind} has no name")));
    }
    all.push(value);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(text: &str) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        documents(Path::new("f"), text, &mut all).map_err(|e| e.to_string())?;
        Ok(all
            .iter()
            .map(|o| format!("{} {}", o["kind"].as_str().unwrap(), o["metadata"]["name"].as_str().unwrap()))
            .collect())
    }

    #[test]
    fn documents_and_lists() {
        let text = "---\n{apiVersion: v1, kind: A, metadata: {name: a}}\n---\n---\napiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: B, metadata: {name: b}}\n";
        assert_eq!(parse(text).unwrap(), ["A a", "B b"]);
        assert!(parse("kind: A\nmetadata: {name: a}\n").unwrap_err().contains("no apiVersion"));
        assert!(parse("{apiVersion: v1, kind: A}").unwrap_err().contains("a A has no name"));
        assert!(parse("a: [").unwrap_err().starts_with("f: "));
    }
}
