//! Hostile protobuf: every malformed message is an error or a value, never a panic, and costs no more than its size warrants.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_api::GroupVersionKind;
use edge_schema::{ProtoError, Schema, default, proto, validate};
use serde_json::{Value, json};

/// A small deterministic generator (xorshift), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "labels": {"a": "b"}, "creationTimestamp": "2026-01-01T00:00:00Z",
            "managedFields": [{"manager": "m", "fieldsV1": {"f:spec": {}}}]},
        "spec": {"containers": [{"name": "c", "image": "i", "args": ["x", "y"], "ports": [{"containerPort": -1}],
            "resources": {"limits": {"cpu": "100m"}}, "livenessProbe": {"httpGet": {"port": "web"}}}],
            "volumes": [{"name": "v", "emptyDir": {}}], "nodeSelector": {"k": "v"}},
    })
}

fn crd() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "metadata": {"name": "x"},
        "spec": {"group": "g", "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"type": "object",
            "properties": {"a": {"type": "array", "items": {"type": "string", "enum": ["x", 1]}, "x-kubernetes-list-type": "set"},
                "b": {"additionalProperties": true, "default": {"k": [1]}}, "c": {"additionalProperties": {"$ref": "r"}}}}}}]},
    })
}

/// Encodes, decodes, and expects the object back with what Kubernetes' structs always show.
#[test]
fn custom_resource_definitions_round_trip() {
    let bytes = proto::encode(Schema::builtin(), &crd()).unwrap();
    let back = proto::decode(Schema::builtin(), &bytes, None).unwrap();
    let schema = |v: &Value| v["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    assert_eq!(schema(&back), schema(&crd()));
}

#[test]
fn mutated_messages_never_panic() {
    let schema = Schema::builtin();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for object in [pod(), crd()] {
        let good = proto::encode(schema, &object).unwrap();
        let gvk = proto::peek_kind(&good).unwrap().unwrap();
        let ty = schema.kind(&gvk).unwrap();
        let mut decoded = 0;
        for _ in 0..20_000 {
            let mut bytes = good.clone();
            for _ in 0..=random.below(4) {
                let at = 4 + random.below(bytes.len() - 4);
                match random.below(4) {
                    0 => bytes[at] = random.next() as u8,
                    1 => bytes.truncate(at.max(5)),
                    2 => bytes.insert(at, random.next() as u8),
                    _ => bytes[at] ^= 1 << random.below(8),
                }
            }
            if let Ok(mut value) = proto::decode(schema, &bytes, Some(&gvk)) {
                decoded += 1;
                if value["kind"] == *gvk.kind {
                    let _ = proto::encode_as(ty, "", "", &value);
                    if validate::conform(ty, &mut value).is_ok() {
                        default::apply(ty, &mut value);
                    }
                }
            }
        }
        assert!(decoded > 500, "{decoded} of the mutations still decode");
    }
}

#[test]
fn random_bytes_never_panic() {
    let mut random = Random(42);
    let gvk = GroupVersionKind::new("", "v1", "Pod");
    for _ in 0..20_000 {
        let mut bytes = b"k8s\0".to_vec();
        bytes.extend((0..random.below(64)).map(|_| random.next() as u8));
        let _ = proto::decode(Schema::builtin(), &bytes, Some(&gvk));
    }
}

fn envelope(raw: &[u8]) -> Vec<u8> {
    let mut bytes = b"k8s\0\x12".to_vec();
    let mut n = raw.len();
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes.extend(raw);
    bytes
}

fn decode_as(group: &str, kind: &str, raw: &[u8]) -> Result<Value, ProtoError> {
    let gvk = GroupVersionKind::new(group, "v1", kind);
    proto::decode(Schema::builtin(), &envelope(raw), Some(&gvk))
}

#[test]
fn each_fault_has_its_error() {
    let builtin = Schema::builtin();
    assert!(matches!(proto::decode(builtin, b"{}", None), Err(ProtoError::Magic)));
    assert!(matches!(proto::decode(builtin, b"k8s\0", None), Err(ProtoError::Kind(_))));
    assert!(matches!(proto::decode(builtin, b"k8s\0\x0a\x05\x0a", None), Err(ProtoError::Truncated)));
    assert!(matches!(proto::decode(builtin, b"k8s\0\x1a\x04gzip", None), Err(ProtoError::Encoding(_))));
    assert!(matches!(decode_as("", "Pod", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"), Err(ProtoError::Overflow)));
    assert!(matches!(decode_as("", "Pod", b"\x0a\xff\xff\xff\xff\x0f"), Err(ProtoError::Truncated)));
    assert!(matches!(decode_as("", "Pod", b"\x08\x01"), Err(ProtoError::WireType { wire: 0, .. })));
    assert!(matches!(decode_as("", "Pod", b"\x0b"), Err(ProtoError::Tag(11))));
    assert!(matches!(decode_as("", "Pod", b"\x02\x00"), Err(ProtoError::Tag(2))));
    assert!(matches!(decode_as("", "Pod", b"\x0a\x03\x0a\x01\xff"), Err(ProtoError::Utf8 { .. })));
    // ControllerRevision.data holds JSON
    assert!(matches!(decode_as("apps", "ControllerRevision", b"\x12\x03\x0a\x01{"), Err(ProtoError::Json { .. })));
    // metadata.creationTimestamp in the year 10000
    let late = b"\x0a\x0a\x42\x08\x08\x80\xf8\xff\xff\xaf\x07\x10";
    assert!(decode_as("", "Pod", late).is_err());
    let value = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"name": 1}]}});
    let error = proto::encode(builtin, &value).unwrap_err().to_string();
    assert_eq!(error, "spec.containers[0].name: expected a string");
    let value = json!({"apiVersion": "example.com/v1", "kind": "Foo"});
    assert!(matches!(proto::encode(builtin, &value), Err(ProtoError::Kind(_))));
}

#[test]
fn nesting_is_bounded() {
    // JSONSchemaProps.not (28) of JSONSchemaProps ...
    let mut raw = Vec::new();
    for _ in 0..10_000 {
        let mut outer = vec![0xe2, 0x01];
        let mut n = raw.len();
        while n >= 0x80 {
            outer.push(n as u8 | 0x80);
            n >>= 7;
        }
        outer.push(n as u8);
        outer.extend(&raw);
        raw = outer;
    }
    let wrap = |number: u8, inner: &[u8]| {
        let mut w = envelope(inner);
        w.splice(0..5, [number << 3 | 2]);
        w
    };
    // spec (2) . versions (7) . schema (4) . openAPIV3Schema (1)
    let raw = wrap(2, &wrap(7, &wrap(4, &wrap(1, &raw))));
    assert!(matches!(decode_as("apiextensions.k8s.io", "CustomResourceDefinition", &raw), Err(ProtoError::Depth)));
    // a WatchEvent whose object is a WatchEvent ...
    let mut event = Vec::new();
    for _ in 0..1000 {
        event = proto::encode_watch_frame("ADDED", &event).split_off(4);
        event = [b"k8s\0\x0a\x10\x0a\x02v1\x12\x0aWatchEvent".as_slice(), &envelope(&event)[4..]].concat();
    }
    assert!(matches!(proto::decode(Schema::builtin(), &event, None), Err(ProtoError::Depth)));
    // encoding is bounded too
    let mut schema = json!({});
    for _ in 0..120 {
        schema = json!({"not": schema});
    }
    let mut object = crd();
    object["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = schema.clone();
    assert!(proto::encode(Schema::builtin(), &object).is_ok());
    object["spec"]["versions"][0]["schema"]["openAPIV3Schema"] =
        json!({"not": {"not": {"not": {"not": {"not": schema}}}}});
    assert!(matches!(proto::encode(Schema::builtin(), &object), Err(ProtoError::Depth)));
}

#[test]
fn empty_messages_do_not_multiply() {
    // a PodList of 500,000 empty pods in a megabyte
    let raw = b"\x12\x00".repeat(500_000);
    assert!(matches!(decode_as("", "PodList", &raw), Err(ProtoError::Size)));
}

#[test]
fn zero_and_absent() {
    // a Pod as a Go client sends it: values are always there, pointers only when set
    let object = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "", "image": "i"}], "terminationGracePeriodSeconds": 0, "automountServiceAccountToken": false}});
    let bytes = proto::encode(Schema::builtin(), &object).unwrap();
    let back = proto::decode(Schema::builtin(), &bytes, None).unwrap();
    let expected = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "", "image": "i", "resources": {}}], "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": false},
        "status": {}});
    assert_eq!(back, expected);
    let times = json!({"apiVersion": "v1", "kind": "Event", "metadata": {}, "eventTime": "1969-12-31T23:59:59.500000Z",
        "firstTimestamp": "1969-12-31T23:59:59Z", "involvedObject": {}, "source": {}, "reportingComponent": "", "reportingInstance": ""});
    let bytes = proto::encode(Schema::builtin(), &times).unwrap();
    assert_eq!(proto::decode(Schema::builtin(), &bytes, None).unwrap(), times);
}

#[test]
fn watch_frames() {
    let object = proto::encode(Schema::builtin(), &pod()).unwrap();
    let frame = proto::encode_watch_frame("ADDED", &object);
    let (length, event) = frame.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, event.len());
    let mut enveloped = b"k8s\0".to_vec();
    enveloped.extend(&envelope(event)[4..]);
    let gvk = GroupVersionKind::new("", "v1", "WatchEvent");
    let event = proto::decode(Schema::builtin(), &enveloped, Some(&gvk)).unwrap();
    assert_eq!(event["type"], "ADDED");
    assert_eq!(event["object"]["spec"]["containers"][0]["name"], "c");
}
