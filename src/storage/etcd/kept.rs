//! Objects that were brought into etcd from another store, with the revisions that they had there.
//!
//! Such a value has a head with its revisions, until it is written again. The store's revisions are etcd's and an offset, so
//! that all that come are newer than all that were brought.

use super::messages::{self, Range};
use super::{Inner, Kind, malformed};
use crate::error::{Error, Result};
use crate::types::{Class, Compare, KeyValue, ListRequest, Op, Revision, Transaction};
use crate::{Etcd, EtcdError, EtcdOptions, Storage};
use bytes::{BufMut, Bytes, BytesMut};
use std::sync::Arc;

/// Objects are JSON, which does not begin like this.
const HEAD: &[u8] = b"\0edge\x01";
/// Bytes of the head, with two revisions.
const HEAD_LEN: usize = HEAD.len() + 16;
/// The offset, in decimal.
const OFFSET: &[u8] = b"/edge/revisions";
/// Is there while objects are being brought.
const UNFINISHED: &[u8] = b"/edge/migration";
/// What a transaction may have: etcd allows 128 operations and 1.5 MiB.
const BATCH: (usize, usize) = (100, 512 << 10);

/// The revision that no key has.
const NONE: Revision = i64::MAX as u64;

pub(super) async fn read_offset(inner: &Inner) -> Result<Revision> {
    let found = inner.range(&Range { key: OFFSET, ..Range::default() }).await?.items.pop();
    let Some(found) = found else { return Ok(0) };
    let number = std::str::from_utf8(&found.value).ok().and_then(|text| text.parse().ok());
    number.ok_or_else(|| EtcdError::Refused("the key /edge/revisions has no number".to_owned()).into())
}

/// Makes of what etcd has what the store shows.
pub(super) fn show(kv: &mut KeyValue, offset: Revision) {
    if offset == 0 {
        return;
    }
    let head = kv.value.get(..HEAD_LEN).and_then(|h| h.strip_prefix(HEAD));
    if let Some((create, modified)) = head.and_then(|h| h.split_first_chunk::<8>())
        && let Some((modified, _)) = modified.split_first_chunk::<8>()
    {
        (kv.create_revision, kv.mod_revision) = (u64::from_le_bytes(*create), u64::from_le_bytes(*modified));
        kv.value = kv.value.slice(HEAD_LEN..);
    } else {
        kv.create_revision += offset;
        kv.mod_revision += offset;
    }
}

fn with_head(kv: &KeyValue) -> Bytes {
    let mut value = BytesMut::with_capacity(HEAD_LEN + kv.value.len());
    value.put_slice(HEAD);
    value.put_u64_le(kv.create_revision);
    value.put_u64_le(kv.mod_revision);
    value.put_slice(&kv.value);
    value.freeze()
}

/// etcd's revision of a key that was brought and is still as it was; else one that does not hold.
pub(super) async fn raw_revision(inner: &Inner, compare: &Compare) -> Result<Revision> {
    let message = Range { key: &compare.key, ..Range::default() }.message();
    let answer = inner.channel.call(Kind::Read, super::RANGE, message).await?;
    let Some(found) = messages::Ranged::read(answer).map_err(malformed)?.items.pop() else { return Ok(NONE) };
    let mut shown = found.clone();
    show(&mut shown, inner.offset);
    Ok(if shown.mod_revision == compare.mod_revision { found.mod_revision } else { NONE })
}

/// How objects are brought into an etcd that has none.
#[derive(Debug)]
pub struct Import {
    etcd: Etcd,
}

impl Import {
    /// Connects, and looks whether there is room for a cluster.
    ///
    /// # Errors
    /// As [`Etcd::connect`]; [`EtcdError::NotEmpty`].
    pub async fn open(options: &EtcdOptions) -> Result<Self> {
        let etcd = Etcd::connect_without_compactor(options).await?;
        let is_left_over = etcd.get(UNFINISHED).await?.is_some();
        for prefix in ["/registry/", "/edge/"] {
            let request = ListRequest { prefix: prefix.into(), limit: 1, ..ListRequest::default() };
            if !is_left_over && !etcd.list(request).await?.items.is_empty() {
                return Err(EtcdError::NotEmpty.into());
            }
        }
        Ok(Self { etcd })
    }

    /// Brings objects with their revisions, none of which is greater than `revision`, reads them back and compares; together
    /// with the last step, `last` is put. Until that has happened there is no cluster in etcd, whatever breaks off; then this can be
    /// done again.
    ///
    /// # Errors
    /// When etcd cannot be written, or has something else than it was given ([`EtcdError::Differs`]).
    pub async fn bring(self, items: &[KeyValue], revision: Revision, last: (Bytes, Bytes)) -> Result<()> {
        let inner = &self.etcd.inner;
        let put = |key: Bytes, value: Bytes| Op::Put { key, value, class: Class::Durable };
        let write = async |ops| {
            let transaction = Transaction { compares: Vec::new(), ops };
            inner.transact(&transaction).await.map(drop)
        };
        write(vec![put(UNFINISHED.into(), Bytes::from_static(b"1"))]).await?;
        self.clear().await?;
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for kv in items {
            batch.push(put(kv.key.clone(), with_head(kv)));
            bytes += kv.key.len() + kv.value.len();
            if batch.len() >= BATCH.0 || bytes >= BATCH.1 {
                write(std::mem::take(&mut batch)).await?;
                bytes = 0;
            }
        }
        if !batch.is_empty() {
            write(batch).await?;
        }
        let view = Etcd { inner: Arc::new(Inner::new(inner.channel.clone(), revision)), _compactor: None };
        let found = view.list(ListRequest { prefix: "/registry/".into(), ..ListRequest::default() }).await?;
        if found.items != items {
            return Err(EtcdError::Differs.into());
        }
        let offset = put(OFFSET.into(), revision.to_string().into());
        write(vec![offset, put(last.0, last.1), Op::Delete { key: UNFINISHED.into() }]).await
    }

    /// Removes what an attempt before has left.
    async fn clear(&self) -> Result<()> {
        let range =
            edge_grpc::wire::Message::default().bytes(1, b"/registry/").bytes(2, &messages::end_of(b"/registry/"));
        self.etcd.inner.channel.call(Kind::Write, super::DELETE_RANGE, range).await.map(drop).map_err(Error::from)
    }
}

impl Etcd {
    /// Whether objects were being brought and that broke off.
    ///
    /// # Errors
    /// When etcd cannot be read.
    pub async fn is_unfinished(&self) -> Result<bool> {
        Ok(self.get(UNFINISHED).await?.is_some())
    }
}
