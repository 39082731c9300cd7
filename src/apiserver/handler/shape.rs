//! The shapes an object can be shown in besides its own: metadata only, and table rows.
//!
//! Works on the stored bytes: the metadata is cut out of them, never rebuilt.

use crate::negotiate::MetaVersion;
use bytes::{BufMut, Bytes, BytesMut};
use edge_api::Status;
use edge_registry::columns::IncludeObject;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

/// Reads the parameter `includeObject`.
///
/// # Errors
/// 400 for an unknown value.
pub(super) fn include_object(text: Option<&str>) -> Result<IncludeObject, Status> {
    match text {
        None | Some("" | "Metadata") => Ok(IncludeObject::Metadata),
        Some("None") => Ok(IncludeObject::None),
        Some("Object") => Ok(IncludeObject::Object),
        Some(other) => Err(Status::bad_request(format!("unrecognized includeObject value: {other:?}"))),
    }
}

#[derive(Deserialize)]
struct Head<'a> {
    #[serde(borrow)]
    metadata: &'a RawValue,
}

/// `PartialObjectMetadata` of an object's JSON.
///
/// # Errors
/// 500 when the stored bytes are no object with metadata.
pub(super) fn metadata_only(version: MetaVersion, object: &[u8]) -> Result<Bytes, Status> {
    let head: Head<'_> = serde_json::from_slice(object).map_err(Status::internal)?;
    let meta = head.metadata.get();
    let mut out = BytesMut::with_capacity(meta.len() + 100);
    put_head(&mut out, version.api_version(), "PartialObjectMetadata", meta);
    out.put_u8(b'}');
    Ok(out.freeze())
}

/// A list: kind, metadata and the items' bytes one behind the other.
pub(super) fn list<'b>(
    api_version: &str,
    kind: &str,
    metadata: &Value,
    items: impl Iterator<Item = &'b Bytes> + Clone,
) -> Bytes {
    let size: usize = items.clone().map(|b| b.len() + 1).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    put_head(&mut out, api_version, kind, &metadata.to_string());
    out.put_slice(b",\"items\":[");
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.put_u8(b',');
        }
        out.put_slice(item);
    }
    out.put_slice(b"]}");
    out.freeze()
}

/// A `Table`. `definitions` may be left out in all events of a watch but the first.
pub(super) fn table(version: MetaVersion, metadata: &Value, definitions: Option<&Value>, rows: Vec<Value>) -> Bytes {
    let mut out = BytesMut::with_capacity(4096);
    put_head(&mut out, version.api_version(), "Table", &metadata.to_string());
    out.put_slice(b",\"columnDefinitions\":");
    out.put_slice(definitions.unwrap_or(&Value::Null).to_string().as_bytes());
    out.put_slice(b",\"rows\":");
    out.put_slice(Value::Array(rows).to_string().as_bytes());
    out.put_u8(b'}');
    out.freeze()
}

fn put_head(out: &mut BytesMut, api_version: &str, kind: &str, metadata: &str) {
    out.put_slice(b"{\"kind\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"apiVersion\":\"");
    out.put_slice(api_version.as_bytes());
    out.put_slice(b"\",\"metadata\":");
    out.put_slice(metadata.as_bytes());
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use serde_json::json;

    #[test]
    fn shapes_are_well_formed() {
        let a = Bytes::from_static(br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a"},"spec":{"x":1}}"#);
        let read = |b: &Bytes| serde_json::from_slice::<Value>(b).unwrap();
        assert_eq!(
            read(&metadata_only(MetaVersion::V1, &a).unwrap()),
            json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}})
        );
        assert!(metadata_only(MetaVersion::V1, b"{}").is_err());
        let meta = json!({"resourceVersion": "7"});
        let items = [a.clone(), a.clone()];
        let v = read(&list("v1", "PodList", &meta, items.iter()));
        assert_eq!((&v["items"][1]["spec"]["x"], &v["metadata"]["resourceVersion"]), (&json!(1), &json!("7")));
        assert_eq!(read(&list("v1", "PodList", &meta, [].iter()))["items"], json!([]));
        let definitions = json!([{"name": "Name"}]);
        let t = read(&table(MetaVersion::V1Beta1, &meta, Some(&definitions), vec![json!({"cells": ["a"]})]));
        assert_eq!(t["apiVersion"], "meta.k8s.io/v1beta1");
        assert_eq!((&t["rows"][0]["cells"], &t["columnDefinitions"]), (&json!(["a"]), &definitions));
    }
}
