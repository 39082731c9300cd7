//! Forgets etcd's history as kube-apiserver does: what is older than some minutes. Several servers on one etcd agree by a
//! key that counts the rounds, so that one of them does it.

use super::Inner;
use super::messages::Range;
use crate::error::Result;
use crate::types::{Class, Compare, Op, Revision, Transaction};
use bytes::Bytes;
use std::sync::Arc;
use std::time::Duration;

/// History is kept for so long, and up to twice that.
pub(super) const EVERY: Duration = Duration::from_secs(300);
/// kube-apiserver's key.
const KEY: &str = "compact_rev_key";

/// Compacts for ever.
pub(super) async fn run(inner: Arc<Inner>, every: Duration) {
    // the round that this server has seen last, and the revision of that time
    let mut last: (Revision, Revision) = (0, 0);
    loop {
        tokio::time::sleep(every).await;
        match round(&inner, last).await {
            Ok(next) => last = next,
            Err(error) => tracing::debug!(%error, "history of etcd is not compacted this time"),
        }
    }
}

/// One round. `last`: the key's revision and the newest one as this server has seen them one round ago.
async fn round(inner: &Inner, (mark, then): (Revision, Revision)) -> Result<(Revision, Revision)> {
    let newest = inner.read_newest().await?;
    if newest == then {
        // nothing was written meanwhile: nothing is to be forgotten
        return Ok((mark, then));
    }
    let key = Bytes::from_static(KEY.as_bytes());
    let claim = Transaction {
        compares: vec![Compare { key: key.clone(), mod_revision: mark }],
        ops: vec![Op::Put { key, value: then.to_string().into(), class: Class::Durable }],
    };
    let answer = inner.transact(&claim).await?;
    if !answer.succeeded {
        // another server does it, or did while this one was away
        let found = inner.range(&Range { key: KEY.as_bytes(), ..Range::default() }).await?;
        return Ok((found.items.first().map_or(0, |kv| kv.mod_revision), found.revision));
    }
    if then > 0 {
        inner.compact(then).await?;
        tracing::debug!(revision = then, "history of etcd is compacted");
    }
    Ok((answer.revision, answer.revision))
}

#[cfg(test)]
pub(super) async fn round_for_test(inner: &Inner, last: (Revision, Revision)) -> Result<(Revision, Revision)> {
    round(inner, last).await
}
