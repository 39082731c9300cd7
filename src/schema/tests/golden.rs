//! Golden files of Kubernetes 1.36: the same object as JSON and as protobuf, for every built-in kind.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{fs, path::PathBuf};

use edge_api::GroupVersionKind;
use edge_schema::{Schema, proto};
use serde_json::Value;

/// The facts that the table was generated from; they lie beside the project and are no part of it.
fn facts() -> Option<PathBuf> {
    let dir = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/k8s-1.36"));
    if !dir.is_dir() {
        eprintln!("SKIPPED: {} is not there, so the golden files are not compared", dir.display());
        return None;
    }
    Some(dir)
}

/// Kind, JSON form, protobuf form of every golden object.
fn goldens() -> Vec<(GroupVersionKind, Value, Vec<u8>)> {
    let Some(dir) = facts() else { return Vec::new() };
    let mut out = Vec::new();
    for entry in fs::read_dir(dir.join("testdata")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "json") {
            continue;
        }
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let (rest, kind) = stem.rsplit_once('.').unwrap();
        let (group, version) = rest.rsplit_once('.').unwrap();
        let gvk = GroupVersionKind::new(if group == "core" { "" } else { group }, version, kind);
        let json = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        out.push((gvk, json, fs::read(path.with_extension("pb")).unwrap()));
    }
    assert_eq!(out.len(), 185);
    out
}

#[test]
fn protobuf_to_json() {
    let mut failed = 0;
    for (gvk, json, pb) in goldens() {
        match proto::decode(Schema::builtin(), &pb, Some(&gvk)) {
            Ok(value) if value == json => {}
            Ok(value) => {
                failed += 1;
                eprintln!("{gvk}:\n{value}\n{json}");
            }
            Err(e) => {
                failed += 1;
                eprintln!("{gvk}: {e}");
            }
        }
    }
    assert_eq!(failed, 0);
}

#[test]
fn json_to_protobuf() {
    let mut failed = 0;
    for (gvk, json, pb) in goldens() {
        let ty = Schema::builtin().kind(&gvk).unwrap();
        let text = |f: &str| json.get(f).and_then(Value::as_str).unwrap_or_default();
        match proto::encode_as(ty, text("apiVersion"), text("kind"), &json) {
            Ok(bytes) if bytes == pb => {}
            Ok(bytes) => {
                failed += 1;
                eprintln!("{gvk}: differs\n{}\n{}", bytes.escape_ascii(), pb.escape_ascii());
            }
            Err(e) => {
                failed += 1;
                eprintln!("{gvk}: {e}");
            }
        }
    }
    assert_eq!(failed, 0);
}
