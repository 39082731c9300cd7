//! etcd's requests and answers, those parts of them that are used. The numbers are those of etcd's `rpc.proto` and `kv.proto`.

use crate::types::{Event, KeyValue, Op, Revision, Transaction};
use bytes::Bytes;
use edge_grpc::wire::{Fields, Malformed, Message};

/// The key after all keys with a prefix; of the empty one (and of one that nothing comes after): one zero, "to the end".
pub(super) fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    vec![0]
}

/// Which keys to read.
#[derive(Clone, Debug, Default)]
pub(super) struct Range<'a> {
    pub(super) key: &'a [u8],
    /// Empty: only the key.
    pub(super) end: &'a [u8],
    pub(super) limit: u64,
    /// Zero: the newest.
    pub(super) revision: Revision,
    pub(super) count_only: bool,
}

impl Range<'_> {
    pub(super) fn message(&self) -> Message {
        Message::default()
            .bytes(1, self.key)
            .bytes(2, self.end)
            .number(3, self.limit)
            .number(4, self.revision)
            .flag(9, self.count_only)
    }
}

/// The answer to a [`Range`].
#[derive(Debug, Default)]
pub(super) struct Ranged {
    pub(super) revision: Revision,
    pub(super) items: Vec<KeyValue>,
    /// Keys in the range, whatever the limit.
    pub(super) count: u64,
}

impl Ranged {
    pub(super) fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => answer.revision = header(value.bytes())?,
                2 => answer.items.push(key_value(value.bytes())?),
                4 => answer.count = value.number(),
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// The revision in the header of an answer.
fn header(message: Bytes) -> Result<Revision, Malformed> {
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == 3 {
            return Ok(value.number());
        }
    }
    Ok(0)
}

fn key_value(message: Bytes) -> Result<KeyValue, Malformed> {
    let mut kv = KeyValue { key: Bytes::new(), value: Bytes::new(), create_revision: 0, mod_revision: 0 };
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => kv.key = value.bytes(),
            2 => kv.create_revision = value.number(),
            3 => kv.mod_revision = value.number(),
            // a copy of its own: the answer that it is part of may be much larger
            5 => kv.value = Bytes::copy_from_slice(&value.bytes()),
            _ => {}
        }
    }
    kv.key = Bytes::copy_from_slice(&kv.key);
    Ok(kv)
}

/// A transaction; `lease` tells which lease an operation's key gets (zero: none). When a condition fails, the answer has
/// the keys of all of them.
pub(super) fn transaction(transaction: &Transaction, lease: impl Fn(&Op) -> u64) -> Message {
    let mut message = Message::default();
    for compare in &transaction.compares {
        // equal (0), of the revision of the last change (2)
        let condition = Message::default().number(2, 2).bytes(3, &compare.key).present_number(6, compare.mod_revision);
        message = message.message(1, &condition);
    }
    for op in &transaction.ops {
        let op = match op {
            Op::Put { key, value, .. } => {
                let put = Message::default().bytes(1, key).bytes(2, value).number(3, lease(op));
                Message::default().message(2, &put)
            }
            Op::Delete { key } => Message::default().message(3, &Message::default().bytes(1, key)),
        };
        message = message.message(2, &op);
    }
    for compare in &transaction.compares {
        let range = Range { key: &compare.key, ..Range::default() };
        message = message.message(3, &Message::default().message(1, &range.message()));
    }
    message
}

/// The answer to a [`transaction`].
#[derive(Debug, Default)]
pub(super) struct Transacted {
    pub(super) revision: Revision,
    pub(super) succeeded: bool,
    /// What the ranges found, in their order; nothing else answers with any.
    pub(super) found: Vec<Option<KeyValue>>,
}

impl Transacted {
    pub(super) fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                1 => answer.revision = header(value.bytes())?,
                2 => answer.succeeded = value.number() != 0,
                3 => {
                    if let Some((1, range)) = Fields::of(value.bytes()).next()? {
                        answer.found.push(Ranged::read(range.bytes())?.items.pop());
                    }
                }
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// Asks for a lease of so many seconds.
pub(super) fn lease(seconds: u64) -> Message {
    Message::default().number(1, seconds)
}

/// The lease's number, and its seconds, which may be more than were asked for.
pub(super) fn granted(message: Bytes) -> Result<(u64, u64), Malformed> {
    let mut answer = (0, 0);
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            2 => answer.0 = value.number(),
            3 => answer.1 = value.number(),
            _ => {}
        }
    }
    Ok(answer)
}

/// Forgets history up to a revision.
pub(super) fn compaction(revision: Revision) -> Message {
    Message::default().number(1, revision)
}

/// Begins to watch the keys with a prefix, from a revision on. Answers may come in pieces.
pub(super) fn watch(prefix: &[u8], start: Revision) -> Message {
    let key = if prefix.is_empty() { &[0][..] } else { prefix };
    let create = Message::default().bytes(1, key).bytes(2, &end_of(prefix)).number(3, start).flag(8, true);
    Message::default().message(1, &create)
}

/// What a watch answers.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// The watch has begun.
    pub(super) created: bool,
    pub(super) canceled: bool,
    /// Not zero: history is forgotten up to this.
    pub(super) compacted: Revision,
    pub(super) reason: String,
    /// More of the same revisions follows.
    pub(super) fragment: bool,
    /// Changes with their revisions, in order.
    pub(super) events: Vec<(Revision, Event)>,
}

impl Watched {
    pub(super) fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                3 => answer.created = value.number() != 0,
                4 => answer.canceled = value.number() != 0,
                5 => answer.compacted = value.number(),
                6 => answer.reason = String::from_utf8_lossy(&value.bytes()).into_owned(),
                7 => answer.fragment = value.number() != 0,
                11 => answer.events.push(event(value.bytes())?),
                _ => {}
            }
        }
        Ok(answer)
    }
}

fn event(message: Bytes) -> Result<(Revision, Event), Malformed> {
    let (mut deleted, mut kv) = (false, None);
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        match field {
            1 => deleted = value.number() == 1,
            2 => kv = Some(key_value(value.bytes())?),
            _ => {}
        }
    }
    let kv = kv.ok_or(Malformed)?;
    let revision = kv.mod_revision;
    Ok((revision, if deleted { Event::Delete { key: kv.key } } else { Event::Put(kv) }))
}

/// How a member is.
#[derive(Debug, Default)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) file_bytes: u64,
    pub(super) used_bytes: u64,
}

impl Status {
    pub(super) fn read(message: Bytes) -> Result<Self, Malformed> {
        let mut answer = Self::default();
        let mut fields = Fields::of(message);
        while let Some((field, value)) = fields.next()? {
            match field {
                2 => answer.version = String::from_utf8_lossy(&value.bytes()).into_owned(),
                3 => answer.file_bytes = value.number(),
                9 => answer.used_bytes = value.number(),
                _ => {}
            }
        }
        Ok(answer)
    }
}

/// A piece of a snapshot.
pub(super) fn blob(message: Bytes) -> Result<Bytes, Malformed> {
    let mut fields = Fields::of(message);
    while let Some((field, value)) = fields.next()? {
        if field == 3 {
            return Ok(value.bytes());
        }
    }
    Ok(Bytes::new())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_prefixes() {
        assert_eq!(end_of(b"/a/"), b"/a0");
        assert_eq!(end_of(&[b'a', 0xff]), b"b");
        assert_eq!(end_of(&[0xff, 0xff]), [0]);
        assert_eq!(end_of(b""), [0]);
    }
}
