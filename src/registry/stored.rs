//! An object as it is kept and answered: finished JSON, shared by everybody who reads or watches it.

use crate::scan::{Found, Paths};
use bytes::{BufMut, Bytes, BytesMut};
use edge_api::{Object, Status};
use std::borrow::Borrow;
use std::cmp::Ordering;
use std::sync::Arc;

/// The members with which the metadata of a stored object begins.
const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// A stored object: immutable, cheap to clone. Ordered by namespace and name.
#[derive(Clone, Debug)]
pub struct Stored(Arc<Entry>);

/// The one copy of an object that the hub keeps, with what selectors need.
#[derive(Debug)]
struct Entry {
    /// Finished JSON, `resourceVersion` included.
    bytes: Bytes,
    revision: u64,
    /// `namespace/name`, or `name` for cluster-scoped objects.
    key: Box<str>,
    labels: Box<[(Box<str>, Box<str>)]>,
    /// Values of the selectable fields, in the order of the stored version's row.
    fields: Box<[Box<str>]>,
    /// Whether the store has another form of it: one that an earlier schema of a custom resource gave it.
    modernized: bool,
}

impl Stored {
    /// Makes the finished form of what is in the store: JSON whose `metadata` has no resourceVersion yet. Revision zero
    /// leaves it out (the answer to a dry run).
    ///
    /// # Errors
    /// When the bytes are no object with metadata.
    pub(crate) fn new(key: &str, json: &[u8], revision: u64, paths: &Paths) -> Result<Self, serde_json::Error> {
        let Found { labels, fields } = paths.scan(json)?;
        let bytes = splice(json, revision);
        Ok(Self(Arc::new(Entry {
            bytes,
            revision,
            key: key.into(),
            labels: labels.into(),
            fields: fields.into(),
            modernized: false,
        })))
    }

    /// The same, said to be in another form than the store has it.
    pub(crate) fn modernized(self) -> Self {
        match Arc::try_unwrap(self.0) {
            Ok(entry) => Self(Arc::new(Entry { modernized: true, ..entry })),
            Err(shared) => Self(shared),
        }
    }

    /// Whether the store has another form of it, so that a write changes something even when it changes nothing.
    pub(crate) fn is_modernized(&self) -> bool {
        self.0.modernized
    }

    /// The same object in another version's form.
    pub(crate) fn with_bytes(&self, bytes: Bytes) -> Self {
        let e = &self.0;
        Self(Arc::new(Entry {
            bytes,
            revision: e.revision,
            key: e.key.clone(),
            labels: e.labels.clone(),
            fields: Box::default(),
            modernized: false,
        }))
    }

    /// Whether the object is in a version (`apiVersion`), told without reading it.
    pub(crate) fn is_of(&self, api_version: &str) -> bool {
        let rest = self.0.bytes.strip_prefix(b"{\"apiVersion\":\"");
        rest.and_then(|r| r.strip_prefix(api_version.as_bytes())).is_some_and(|r| r.starts_with(b"\""))
    }

    /// Finished JSON that selectors have no business with, such as a `Scale` or a bookmark.
    pub(crate) fn opaque(key: &str, json: Bytes, revision: u64) -> Self {
        Self(Arc::new(Entry {
            bytes: json,
            revision,
            key: key.into(),
            labels: Box::default(),
            fields: Box::default(),
            modernized: false,
        }))
    }

    /// The same object with another resourceVersion: the last state of one that has gone.
    pub(crate) fn at(&self, revision: u64) -> Self {
        let e = &self.0;
        Self(Arc::new(Entry {
            bytes: replace_version(&e.bytes, e.revision, revision),
            revision,
            key: e.key.clone(),
            labels: e.labels.clone(),
            fields: e.fields.clone(),
            modernized: e.modernized,
        }))
    }

    /// The object as finished JSON of its stored version, `metadata.resourceVersion` included.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// Whether its JSON has a text in it, wherever: what does not need not be read for what the text says.
    pub fn may_have(&self, text: &str) -> bool {
        memchr::memmem::find(&self.0.bytes, text.as_bytes()).is_some()
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> u64 {
        self.0.revision
    }

    /// `metadata.namespace`; empty for cluster-scoped objects.
    pub fn namespace(&self) -> &str {
        self.0.key.split_once('/').map_or("", |(ns, _)| ns)
    }

    /// `metadata.name`.
    pub fn name(&self) -> &str {
        self.0.key.split_once('/').map_or(&self.0.key, |(_, name)| name)
    }

    /// The value of a label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.0.labels.iter().find(|(k, _)| **k == *key).map(|(_, v)| &**v)
    }

    /// The value of a selectable field.
    pub(crate) fn field(&self, index: usize) -> &str {
        self.0.fields.get(index).map_or("", |v| v)
    }

    /// `namespace/name`, or `name`.
    pub(crate) fn key(&self) -> &str {
        &self.0.key
    }

    /// The object as a tree.
    ///
    /// # Errors
    /// 500 when the bytes are no object, which means that the store was changed by somebody else.
    pub fn object(&self) -> Result<Object, Status> {
        Object::from_slice(&self.0.bytes).map_err(Status::internal)
    }
}

impl PartialEq for Stored {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key()
    }
}

impl Eq for Stored {}

impl PartialOrd for Stored {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Stored {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key().cmp(other.key())
    }
}

impl Borrow<str> for Stored {
    fn borrow(&self) -> &str {
        self.key()
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// Puts the resourceVersion in as the first member of the metadata.
fn splice(json: &[u8], revision: u64) -> Bytes {
    let Some(at) = find(json, METADATA).map(|i| i + METADATA.len()).filter(|_| revision > 0) else {
        return Bytes::copy_from_slice(json);
    };
    let number = revision.to_string();
    let mut out = BytesMut::with_capacity(json.len() + VERSION.len() + number.len() + 2);
    out.put_slice(&json[..at]);
    out.put_slice(VERSION);
    out.put_slice(number.as_bytes());
    out.put_u8(b'"');
    if json.get(at) != Some(&b'}') {
        out.put_u8(b',');
    }
    out.put_slice(&json[at..]);
    out.freeze()
}

/// Replaces what [`splice`] has put in.
fn replace_version(json: &Bytes, old: u64, new: u64) -> Bytes {
    let (old, new) = (old.to_string(), new.to_string());
    let Some(start) = find(json, METADATA).map(|i| i + METADATA.len() + VERSION.len()) else { return json.clone() };
    let Some(tail) = json.get(start + old.len()..) else { return json.clone() };
    let mut out = BytesMut::with_capacity(json.len() + new.len());
    out.put_slice(&json[..start]);
    out.put_slice(new.as_bytes());
    out.put_slice(tail);
    out.freeze()
}

/// One page of a list.
#[derive(Clone, Debug)]
pub struct List {
    /// The objects, in the order of namespace and name.
    pub items: Vec<Stored>,
    /// The list's resourceVersion.
    pub resource_version: u64,
    /// Token for the next page; empty on the last.
    pub continue_token: String,
    /// How many objects follow this page; unknown when selectors are given.
    pub remaining: Option<u64>,
}

/// What a watch reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// The object came into being, or into the selection.
    Added,
    /// It changed.
    Modified,
    /// It is gone, or left the selection; the object is its last state with the event's resourceVersion.
    Deleted,
    /// Nothing happened up to the object's resourceVersion; the object has no other content.
    Bookmark,
}

impl EventKind {
    /// As watches write it, for instance `ADDED`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// An event of a watch.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    /// What happened.
    pub kind: EventKind,
    /// To which object.
    pub object: Stored,
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn the_version_is_spliced_in_and_replaced() {
        let json = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"metadata":"{"}}"#;
        let s = Stored::new("ns/a", json, 9, &Paths::new(&[])).unwrap();
        assert_eq!(
            s.bytes(),
            &br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"resourceVersion":"9","name":"a"},"data":{"metadata":"{"}}"#[..]
        );
        assert_eq!((s.namespace(), s.name(), s.resource_version()), ("ns", "a", 9));
        let later = s.at(1234);
        assert_eq!(later.object().unwrap().resource_version(), "1234");
        assert_eq!(later.at(9).bytes(), s.bytes());
        let dry = Stored::new("ns/a", json, 0, &Paths::new(&[])).unwrap();
        assert_eq!(dry.bytes(), &json[..]);
        let bare = Stored::new("a", br#"{"metadata":{}}"#, 7, &Paths::new(&[])).unwrap();
        assert_eq!(bare.bytes(), &br#"{"metadata":{"resourceVersion":"7"}}"#[..]);
    }
}
