//! Transcoding between JSON values and Kubernetes' protobuf form.
//!
//! In and out: an object as a [`Value`], and as the bytes of `application/vnd.kubernetes.protobuf`: the four bytes `k8s\0` followed by a
//! `runtime.Unknown` message that carries apiVersion, kind and the raw message. The bytes equal those of Kubernetes' own encoder: fields
//! in number order, scalars held by value always written, map entries sorted.

mod decode;
mod encode;
pub(crate) mod wire;

use edge_api::{GroupVersion, GroupVersionKind};
use serde_json::Value;

use crate::{Schema, TypeRef};

/// The bytes every object in protobuf form begins with.
pub const MAGIC: &[u8] = b"k8s\0";

/// How deep messages (and the JSON that custom values carry) may nest.
const MAX_DEPTH: usize = 128;

/// Why an object cannot be transcoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProtoError {
    /// The four magic bytes are missing.
    #[error("the provided data does not appear to be a protobuf message: expected the prefix \"k8s\\0\"")]
    Magic,
    /// The message ends in the middle of a field.
    #[error("unexpected end of protobuf data")]
    Truncated,
    /// A variable-length integer of more than 64 bits.
    #[error("integer overflow in protobuf data")]
    Overflow,
    /// A field tag that protobuf does not allow here.
    #[error("illegal protobuf tag {0}")]
    Tag(u64),
    /// The wire type of a field does not fit its type.
    #[error("wrong wire type {wire} for field {field}")]
    WireType {
        /// Wire type found.
        wire: u8,
        /// JSON name of the field.
        field: String,
    },
    /// A string field that is no UTF-8.
    #[error("field {field} is not valid UTF-8")]
    Utf8 {
        /// JSON name of the field.
        field: String,
    },
    /// Embedded JSON that cannot be read.
    #[error("field {field} does not hold valid JSON")]
    Json {
        /// JSON name of the field.
        field: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A time outside of the years that RFC 3339 can write.
    #[error("field {0} holds a time out of range")]
    Time(String),
    /// Messages nested deeper than any object needs.
    #[error("messages are nested too deeply")]
    Depth,
    /// A message that would grow out of all proportion.
    #[error("message expands to too many values")]
    Size,
    /// The raw bytes are compressed or otherwise encoded.
    #[error("content encoding {0:?} is not supported")]
    Encoding(String),
    /// Neither the message nor the caller says what kind the object is, or the kind has no protobuf form.
    #[error("no protobuf form is known for kind {0:?}")]
    Kind(String),
    /// A JSON value that the field's type cannot hold.
    #[error("{path}: expected {expected}")]
    Value {
        /// Path of the field, for instance `spec.containers[0].ports`.
        path: String,
        /// What the type accepts.
        expected: &'static str,
    },
}

/// Encodes an object that says its own apiVersion and kind, with the envelope.
///
/// # Errors
/// [`ProtoError::Kind`] when the kind is not built in, [`ProtoError::Value`] when a value does not fit its field's type.
pub fn encode(schema: &Schema, object: &Value) -> Result<Vec<u8>, ProtoError> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let unknown = || ProtoError::Kind(format!("{api_version}, Kind={kind}"));
    let gvk = GroupVersion::parse(api_version).ok_or_else(unknown)?.with_kind(kind);
    let ty = schema.kind(&gvk).ok_or_else(unknown)?;
    encode_as(ty, api_version, kind, object)
}

/// Encodes an object of a known type, with the envelope; `api_version` and `kind` (either may be empty) go into the envelope.
///
/// # Errors
/// [`ProtoError::Value`] when a value does not fit its field's type.
pub fn encode_as(ty: TypeRef<'_>, api_version: &str, kind: &str, object: &Value) -> Result<Vec<u8>, ProtoError> {
    let mut w = wire::Writer::new();
    w.string(4, "");
    w.string(3, "");
    let raw = w.mark();
    encode::message(&mut w, ty, object)?;
    w.close(2, raw);
    let meta = w.mark();
    w.string(2, kind);
    w.string(1, api_version);
    w.close(1, meta);
    w.raw(MAGIC);
    Ok(w.finish())
}

/// Encodes one frame of a protobuf watch: a bare `WatchEvent` behind its length (four bytes, big-endian).
///
/// `object` is the object's bytes with their envelope ([`encode`]).
pub fn encode_watch_frame(event_type: &str, object: &[u8]) -> Vec<u8> {
    let mut w = wire::Writer::new();
    let extension = w.mark();
    w.string_bytes(1, object);
    w.close(2, extension);
    w.string(1, event_type);
    let length = u32::try_from(w.mark()).expect("invariant: objects are far below 4 GiB");
    w.raw(&length.to_be_bytes());
    w.finish()
}

/// The kind that an encoded object's envelope names, without decoding the object.
///
/// # Errors
/// When the envelope is malformed.
pub fn peek_kind(bytes: &[u8]) -> Result<Option<GroupVersionKind>, ProtoError> {
    Ok(decode::envelope(bytes)?.gvk())
}

/// Decodes an object with its envelope. When the envelope does not name a kind, `default` is taken.
///
/// # Errors
/// Any malformed message; [`ProtoError::Kind`] when no kind is known. Unknown fields are skipped.
pub fn decode(schema: &Schema, bytes: &[u8], default: Option<&GroupVersionKind>) -> Result<Value, ProtoError> {
    decode_at(schema, bytes, default, 0)
}

fn decode_at(
    schema: &Schema,
    bytes: &[u8],
    default: Option<&GroupVersionKind>,
    depth: usize,
) -> Result<Value, ProtoError> {
    let envelope = decode::envelope(bytes)?;
    let gvk = envelope.gvk().or_else(|| default.cloned()).ok_or_else(|| ProtoError::Kind(String::new()))?;
    let ty = schema.kind(&gvk).ok_or_else(|| ProtoError::Kind(gvk.to_string()))?;
    let mut object = decode::message(schema, ty, envelope.raw, depth)?;
    if let Value::Object(fields) = &mut object
        && ty.field("kind").is_some_and(|f| f.number() == 0)
    {
        fields.insert("apiVersion".to_owned(), gvk.api_version().into());
        fields.insert("kind".to_owned(), gvk.kind.into());
    }
    Ok(object)
}
