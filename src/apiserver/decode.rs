//! Request bodies in: bytes of any of the three encodings become an object of the expected kind.

use crate::negotiate::Encoding;
use edge_api::{GroupVersionKind, Object, Status};
use edge_schema::document::{DocumentError, parse_json, parse_yaml};
use edge_schema::validate::{self, DecodeError, FieldValidation};
use edge_schema::{Document, Schema, TypeRef, proto};
use serde_json::Value;

/// How much of an unrecognizable body is quoted in the refusal.
const QUOTED: usize = 30;

/// A decoded body.
#[derive(Debug)]
pub(crate) struct Decoded {
    /// The object, with `apiVersion` and `kind` set.
    pub(crate) object: Object,
    /// What the client should be warned of.
    pub(crate) warnings: Vec<String>,
}

/// Reads an object of kind `gvk`, whose type is `ty` (`None`: anything goes).
///
/// # Errors
/// 400 that says what is wrong, in Kubernetes' wording.
pub(crate) fn object(
    encoding: Encoding,
    body: &[u8],
    gvk: &GroupVersionKind,
    ty: Option<TypeRef<'_>>,
    mode: FieldValidation,
) -> Result<Decoded, Status> {
    let document = match encoding {
        Encoding::Json => parse_json(body),
        Encoding::Yaml => parse_yaml(body),
        Encoding::Protobuf => return from_protobuf(body, gvk),
    }
    .map_err(|e: DocumentError| unrecognized(gvk, &e, body))?;
    let text = |field: &str| document.value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    check_kind(gvk, &api_version, &kind)?;
    let (value, warnings) = match ty {
        Some(ty) => validate::decode(ty, document, mode).map_err(|e| {
            if kind.is_empty() { unrecognized(gvk, &e, body) } else { cannot_be_handled(gvk, &kind, &e) }
        })?,
        None => (document.value, Vec::new()),
    };
    let mut object = Object::from_value(value).map_err(|_| unrecognized(gvk, &"not an object", body))?;
    object.set_gvk(gvk);
    crate::audit::submitted(&object);
    Ok(Decoded { object, warnings })
}

fn from_protobuf(body: &[u8], gvk: &GroupVersionKind) -> Result<Decoded, Status> {
    let bad = |e: &proto::ProtoError| unrecognized(gvk, e, body);
    if let Some(found) = proto::peek_kind(body).map_err(|e| bad(&e))? {
        check_kind(gvk, &found.api_version(), &found.kind)?;
    }
    let value = proto::decode(Schema::builtin(), body, Some(gvk)).map_err(|e| bad(&e))?;
    let mut object = Object::from_value(value).map_err(|_| unrecognized(gvk, &"not an object", body))?;
    object.set_gvk(gvk);
    crate::audit::submitted(&object);
    Ok(Decoded { object, warnings: Vec::new() })
}

/// Reads any document (a patch, delete options) as a tree.
///
/// # Errors
/// 400 when it is malformed.
pub(crate) fn tree(encoding: Encoding, body: &[u8], gvk: &GroupVersionKind) -> Result<Document, Status> {
    let document = match encoding {
        Encoding::Json => parse_json(body).map_err(|e| unrecognized(gvk, &e, body)),
        Encoding::Yaml => parse_yaml(body).map_err(|e| unrecognized(gvk, &e, body)),
        Encoding::Protobuf => {
            let value = proto::decode(Schema::builtin(), body, Some(gvk)).map_err(|e| unrecognized(gvk, &e, body))?;
            Ok(Document { value, duplicates: Vec::new() })
        }
    }?;
    crate::audit::submitted_document(&document.value);
    Ok(document)
}

/// An object may leave out what it is, but not say something else than the path does.
fn check_kind(want: &GroupVersionKind, api_version: &str, kind: &str) -> Result<(), Status> {
    let expected = want.api_version();
    if !api_version.is_empty() && api_version != expected {
        return Err(Status::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    if !kind.is_empty() && kind != want.kind {
        return Err(cannot_be_handled(want, kind, &"the kind in the data is another one"));
    }
    Ok(())
}

fn cannot_be_handled(gvk: &GroupVersionKind, kind: &str, error: &dyn std::fmt::Display) -> Status {
    Status::bad_request(format!("{kind} in version \"{}\" cannot be handled as a {}: {error}", gvk.version, gvk.kind))
}

fn unrecognized(gvk: &GroupVersionKind, error: &dyn std::fmt::Display, body: &[u8]) -> Status {
    Status::bad_request(format!(
        "the object provided is unrecognized (must be of type {}): {error} ({})",
        gvk.kind,
        summary(body)
    ))
}

fn summary(body: &[u8]) -> String {
    let head = &body[..body.len().min(QUOTED)];
    let tail = if body.len() > QUOTED { " ..." } else { "" };
    match body {
        [] => "<empty>".into(),
        [b'{', ..] => format!("{}{tail}", String::from_utf8_lossy(head)),
        _ => format!("{}{tail}", head.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// The 400 for a document that is not of its type.
pub(crate) fn decode_error(gvk: &GroupVersionKind, error: &DecodeError) -> Status {
    cannot_be_handled(gvk, &gvk.kind, error)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn pod(encoding: Encoding, body: &[u8], mode: FieldValidation) -> Result<Decoded, String> {
        let gvk = GroupVersionKind::new("", "v1", "Pod");
        object(encoding, body, &gvk, Schema::builtin().kind(&gvk), mode).map_err(|s| {
            assert_eq!((s.code, s.reason), (400, edge_api::Reason::BadRequest));
            s.message
        })
    }

    #[test]
    fn all_encodings_give_the_same_object() {
        let json = br#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"p"},"spec":{"containers":[{"name":"c"}]}}"#;
        let yaml = b"apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec:\n  containers:\n  - name: c\n";
        let a = pod(Encoding::Json, json, FieldValidation::Strict).unwrap().object;
        assert_eq!(a, pod(Encoding::Yaml, yaml, FieldValidation::Strict).unwrap().object);
        let proto = proto::encode(Schema::builtin(), &a.clone().into_value()).unwrap();
        let b = pod(Encoding::Protobuf, &proto, FieldValidation::Strict).unwrap().object;
        assert_eq!((b.name(), b.str_at("/spec/containers/0/name")), ("p", "c"));
        let untyped = pod(Encoding::Json, br#"{"metadata":{"name":"p"}}"#, FieldValidation::Strict).unwrap().object;
        assert_eq!((untyped.kind(), untyped.api_version()), ("Pod", "v1"));
    }

    #[test]
    fn refusals_say_what_and_where() {
        use FieldValidation::{Ignore, Strict, Warn};
        let unknown = br#"{"apiVersion":"v1","kind":"Pod","spec":{"nme":1,"nme":2}}"#;
        assert!(pod(Encoding::Json, unknown, Ignore).unwrap().warnings.is_empty());
        let warnings = pod(Encoding::Json, unknown, Warn).unwrap().warnings;
        assert!(warnings.iter().any(|w| w == "unknown field \"spec.nme\""), "{warnings:?}");
        assert!(warnings.iter().any(|w| w == "duplicate field \"spec.nme\""), "{warnings:?}");
        let e = pod(Encoding::Json, unknown, Strict).unwrap_err();
        assert!(e.starts_with("Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: "), "{e}");
        let e = pod(Encoding::Json, br#"{"apiVersion":"v2","kind":"Pod"}"#, Warn).unwrap_err();
        assert_eq!(e, "the API version in the data (v2) does not match the expected API version (v1)");
        let e = pod(Encoding::Json, br#"{"apiVersion":"v1","kind":"Service"}"#, Warn).unwrap_err();
        assert!(e.starts_with("Service in version \"v1\" cannot be handled as a Pod: "), "{e}");
        let e = pod(Encoding::Json, b"", Warn).unwrap_err();
        assert!(
            e.starts_with("the object provided is unrecognized (must be of type Pod): ") && e.ends_with("(<empty>)"),
            "{e}"
        );
        let e = pod(Encoding::Json, b"{\"a\": 12345678901234567890, \"b\" broken", Warn).unwrap_err();
        assert!(e.ends_with("({\"a\": 12345678901234567890, \"b ...)"), "{e}");
        let e = pod(Encoding::Protobuf, b"nonsense", Warn).unwrap_err();
        assert!(e.ends_with("(6e6f6e73656e7365)"), "{e}");
        for bad in [&b"[]"[..], b"3", b"null", b"{\"spec\": []}", b"{\"metadata\": 3}", b"{\"apiVersion\": 3}"] {
            assert!(pod(Encoding::Json, bad, Warn).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }
}
