//! What every store has to do, whatever is below it: the same tests for all of them.
#![expect(clippy::unwrap_used, reason = "tests")]

use crate::{Class, Compare, Error, Event, ListRequest, Op, Outcome, Revision, Storage, Transaction};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A store of some kind, of a test's own; what is in it goes with this.
pub(crate) trait Backend {
    type Store: Storage;
    /// The shortest time that volatile keys may live.
    const SHORTEST: Duration;
    /// Whether volatile keys go with the process.
    const FORGETS: bool;

    /// Opens the store, for the first time or again: then nothing of it was open, and its process was killed.
    async fn open(&mut self) -> Self::Store;
}

/// Makes the tests for a backend; the expression makes a new one.
macro_rules! suite {
    ($backend:expr; $($name:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                crate::suite::$name(&mut $backend).await;
            }
        )*
    };
    ($backend:expr) => {
        crate::suite::suite!(
            $backend;
            durable_keys_survive,
            conditions_are_kept,
            expiry_is_a_deletion_like_any_other,
            random_operations_match_a_model_at_every_revision,
            watchers_see_every_change_once_and_in_order,
            watchers_see_their_prefix_alone,
            history_ends_exactly_where_it_was_compacted,
            a_transaction_happens_as_a_whole_or_not_at_all,
            long_lists_are_of_one_revision,
            large_and_odd_values_come_back,
        );
    };
}
pub(crate) use suite;

pub(crate) fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

pub(crate) fn put(k: &str, v: &str, class: Class, expect: Revision) -> Transaction {
    Transaction::put(key(k), key(v), class, expect)
}

pub(crate) async fn committed(store: &impl Storage, transaction: Transaction) -> Revision {
    match store.transact(transaction).await.unwrap() {
        Outcome::Committed(revision) => revision,
        failed => panic!("{failed:?}"),
    }
}

pub(crate) const VOLATILE: Class = Class::Volatile { ttl: None };

pub(crate) async fn durable_keys_survive<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let first = committed(&store, put("/a", "1", Class::Durable, 0)).await;
    let last = committed(&store, put("/v", "1", VOLATILE, 0)).await;
    assert_eq!(last, first + 1);
    assert_eq!(store.get(b"/v").await.unwrap().unwrap().mod_revision, last);
    assert_eq!((store.revision(), store.newest().await.unwrap()), (last, last));
    drop(store);
    let store = backend.open().await;
    assert!(store.revision() >= last, "the revision went back");
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().value, "1");
    assert_eq!(store.get(b"/v").await.unwrap().is_none(), B::FORGETS);
    assert!(committed(&store, put("/b", "1", Class::Durable, 0)).await > last);
}

pub(crate) async fn conditions_are_kept<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let revision = committed(&store, put("/a", "1", Class::Durable, 0)).await;
    let Outcome::Failed { current } = store.transact(put("/a", "2", Class::Durable, 0)).await.unwrap() else {
        panic!("created twice")
    };
    assert_eq!(current[0].as_ref().unwrap().mod_revision, revision);
    let second = committed(&store, put("/a", "2", Class::Durable, revision)).await;
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().create_revision, revision);
    committed(&store, Transaction::delete(key("/a"), second)).await;
    assert!(store.get(b"/a").await.unwrap().is_none());
    // of a key that is gone nothing is told
    let gone = store.transact(Transaction::delete(key("/a"), second)).await.unwrap();
    assert_eq!(gone, Outcome::Failed { current: vec![None] });
    // of several conditions all are told
    let newest = committed(&store, put("/b", "1", Class::Durable, 0)).await;
    let compare = |k: &str, mod_revision| Compare { key: key(k), mod_revision };
    let several = Transaction { compares: vec![compare("/a", 0), compare("/b", newest - 1)], ops: Vec::new() };
    let Outcome::Failed { current } = store.transact(several).await.unwrap() else { panic!("the second did not hold") };
    assert!(current[0].is_none() && current[1].as_ref().unwrap().mod_revision == newest);
    for bad in ["k".repeat(5000), String::new()] {
        let done = store.transact(put(&bad, "", Class::Durable, 0)).await;
        assert!(matches!(done, Err(Error::KeyLength { .. })), "{done:?}");
        assert!(matches!(store.get(bad.as_bytes()).await, Err(Error::KeyLength { .. })));
    }
}

pub(crate) async fn expiry_is_a_deletion_like_any_other<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let mut watcher = store.watch(b"/e/", store.revision()).await.unwrap();
    let ttl = Class::Volatile { ttl: Some(B::SHORTEST) };
    let revision = committed(&store, put("/e/1", "x", ttl, 0)).await;
    // one that is put again without a time stays
    let old = committed(&store, put("/stays", "x", ttl, 0)).await;
    committed(&store, put("/stays", "y", Class::Durable, old)).await;
    assert!(matches!(&watcher.next().await.unwrap().events[..], [Event::Put(_)]));
    let gone = watcher.next().await.unwrap();
    assert!(matches!(&gone.events[..], [Event::Delete { .. }]) && gone.revision > revision);
    assert!(store.get(b"/e/1").await.unwrap().is_none());
    tokio::time::sleep(B::SHORTEST).await;
    assert_eq!(store.get(b"/stays").await.unwrap().unwrap().value, "y");
}

pub(crate) async fn random_operations_match_a_model_at_every_revision<B: Backend>(backend: &mut B) {
    let mut store = backend.open().await;
    let mut model: BTreeMap<String, String> = BTreeMap::new();
    let mut seed = 42u64;
    let mut random = move |n: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (seed >> 33) % n
    };
    let mut past: Vec<(Revision, BTreeMap<String, String>)> = Vec::new();
    for step in 0..600 {
        let k = format!("/k/{:02}", random(20));
        let op = if random(4) == 0 {
            model.remove(&k);
            Op::Delete { key: key(&k) }
        } else {
            model.insert(k.clone(), step.to_string());
            Op::Put { key: key(&k), value: key(&step.to_string()), class: Class::Durable }
        };
        let revision = committed(&store, Transaction { compares: Vec::new(), ops: vec![op] }).await;
        past.push((revision, model.clone()));
        if step == 300 {
            drop(store);
            store = backend.open().await;
            past.clear();
        }
    }
    for (revision, model) in past {
        let request = ListRequest { prefix: key("/k/"), revision, ..ListRequest::default() };
        let list = store.list(request).await.unwrap();
        let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
        let found: BTreeMap<String, String> = list.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
        assert_eq!(found, model, "at {revision}");
    }
    let page = ListRequest { prefix: key("/k/"), limit: 3, start: key("/k/05"), ..ListRequest::default() };
    let page = store.list(page).await.unwrap();
    let following = model.keys().filter(|k| k.as_str() >= "/k/05").count();
    assert!(page.items.len() == 3 && page.items[0].key >= key("/k/05") && page.remaining == following - 3);
    for (start, all) in [("/a", model.len()), ("/k0", 0), ("/z", 0)] {
        let request = ListRequest { prefix: key("/k/"), start: key(start), ..ListRequest::default() };
        let list = store.list(request).await.unwrap();
        assert_eq!((list.items.len(), list.remaining, list.revision), (all, 0, store.revision()), "{start}");
    }
}

pub(crate) async fn watchers_see_every_change_once_and_in_order<B: Backend>(backend: &mut B) {
    let store = Arc::new(backend.open().await);
    let begin = store.revision();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..50 {
                    committed(&*store, put(&format!("/w/{w}-{i}"), "x", Class::Durable, 0)).await;
                }
            })
        })
        .collect();
    let mut early = store.watch(b"/w/", begin).await.unwrap();
    for w in writers {
        w.await.unwrap();
    }
    let mut late = store.watch(b"/w/", begin).await.unwrap();
    for watcher in [&mut early, &mut late] {
        let mut revisions = Vec::new();
        while revisions.len() < 400 {
            revisions.push(watcher.next().await.unwrap().revision);
        }
        assert!(revisions.windows(2).all(|w| w[0] < w[1]));
        assert_eq!(watcher.try_next().unwrap(), None);
    }
}

pub(crate) async fn watchers_see_their_prefix_alone<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let begin = store.revision();
    let mut some = store.watch(b"/s/", begin).await.unwrap();
    let mut all = store.watch(b"", begin).await.unwrap();
    let mut revisions = Vec::new();
    for k in ["/r", "/s", "/s/1", "/s0", "other", "/s/2"] {
        revisions.push(committed(&store, put(k, "x", Class::Durable, 0)).await);
    }
    for (k, revision) in [("/s/1", revisions[2]), ("/s/2", revisions[5])] {
        let batch = some.next().await.unwrap();
        assert_eq!((batch.revision, batch.events[0].key()), (revision, &key(k)));
    }
    for revision in revisions {
        assert_eq!(all.next().await.unwrap().revision, revision, "every revision passes who watches all");
    }
}

/// Which watches and lists are possible: exactly those from `oldest` on.
pub(crate) async fn remembers_from(store: &impl Storage, oldest: Revision) {
    let list = |revision| ListRequest { revision, ..ListRequest::default() };
    for revision in [oldest, oldest + 1, store.revision()] {
        store.watch(b"", revision).await.unwrap();
        assert_eq!(store.list(list(revision)).await.unwrap().revision, revision);
    }
    for requested in [oldest - 1, 1] {
        let errors = [store.watch(b"", requested).await.err(), store.list(list(requested)).await.err()];
        for error in errors.map(Option::unwrap) {
            assert!(
                matches!(error, Error::Compacted { requested: r, compacted } if (r, compacted) == (requested, oldest)),
                "{error:?}"
            );
        }
    }
    let requested = store.revision() + 1;
    assert!(matches!(store.watch(b"", requested).await, Err(Error::FutureRevision { .. })));
    assert!(matches!(store.list(list(requested)).await, Err(Error::FutureRevision { .. })));
}

pub(crate) async fn history_ends_exactly_where_it_was_compacted<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let mut revisions = Vec::new();
    for i in 0..20 {
        revisions.push(committed(&store, put("/k", &i.to_string(), VOLATILE, 0)).await);
        committed(&store, Transaction { compares: Vec::new(), ops: vec![Op::Delete { key: key("/k") }] }).await;
    }
    store.compact(revisions[7]).await.unwrap();
    remembers_from(&store, revisions[7]).await;
    let mut watcher = store.watch(b"", revisions[7]).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().revision, revisions[7] + 1);
    assert!(matches!(store.compact(revisions[6]).await, Err(Error::Compacted { .. })));
    assert!(matches!(store.compact(store.revision() + 1000).await, Err(Error::FutureRevision { .. })));
    // everything
    let all = store.revision();
    store.compact(all).await.unwrap();
    assert!(matches!(store.watch(b"", all - 1).await, Err(Error::Compacted { .. })));
    store.watch(b"", all).await.unwrap();
    assert_eq!(store.stats().await.unwrap().compacted, all);
}

pub(crate) async fn a_transaction_happens_as_a_whole_or_not_at_all<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let op = |k: &str, v: &str, class| Op::Put { key: key(k), value: key(v), class };
    committed(&store, put("/v", "1", VOLATILE, 0)).await;
    let first = committed(&store, put("/a", "1", Class::Durable, 0)).await;
    // all classes and kinds in one, and a key that changes its class both ways
    let ops = vec![
        op("/a", "2", VOLATILE),
        op("/v", "2", Class::Durable),
        op("/n", "1", Class::Durable),
        Op::Delete { key: key("/none") },
    ];
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    let revision = committed(&store, Transaction { compares: Vec::new(), ops: ops.clone() }).await;
    assert_eq!(watcher.next().await.unwrap().events.len(), 3);
    let a = store.get(b"/a").await.unwrap().unwrap();
    assert_eq!((a.create_revision, a.mod_revision, &a.value[..]), (first, revision, &b"2"[..]));
    let failing = Transaction { compares: vec![Compare { key: key("/a"), mod_revision: first }], ops };
    assert!(matches!(store.transact(failing).await.unwrap(), Outcome::Failed { .. }));
    assert_eq!(store.newest().await.unwrap(), revision);
    // what changes nothing takes no revision
    let nothing = Transaction { compares: Vec::new(), ops: vec![Op::Delete { key: key("/none") }] };
    assert_eq!(committed(&store, nothing).await, revision);
    drop(store);
    let store = backend.open().await;
    assert_eq!(store.get(b"/a").await.unwrap().is_none(), B::FORGETS);
    for k in ["/v", "/n"] {
        assert_eq!(store.get(k.as_bytes()).await.unwrap().unwrap().mod_revision, revision);
    }
}

pub(crate) async fn long_lists_are_of_one_revision<B: Backend>(backend: &mut B) {
    let store = Arc::new(backend.open().await);
    for block in 0..50 {
        let class = Class::Durable;
        let ops = (0..100).map(|i| Op::Put { key: key(&format!("/l/{block:02}{i:02}")), value: key("x"), class });
        committed(&*store, Transaction { compares: Vec::new(), ops: ops.collect() }).await;
    }
    // somebody moves a key to and fro meanwhile: every list has it once
    let mover = tokio::spawn({
        let store = store.clone();
        async move {
            for i in 0..200 {
                let (to, from) = if i % 2 == 0 { ("/l/9999", "/l/0000") } else { ("/l/0000", "/l/9999") };
                let ops = vec![
                    Op::Put { key: key(to), value: key("x"), class: Class::Durable },
                    Op::Delete { key: key(from) },
                ];
                committed(&*store, Transaction { compares: Vec::new(), ops }).await;
            }
        }
    });
    let request = |limit| ListRequest { prefix: key("/l/"), limit, ..ListRequest::default() };
    while !mover.is_finished() {
        let list = store.list(request(0)).await.unwrap();
        assert_eq!((list.items.len(), list.remaining), (5000, 0));
        assert!(list.items.windows(2).all(|two| two[0].key < two[1].key));
        let part = store.list(request(3000)).await.unwrap();
        assert_eq!((part.items.len(), part.remaining), (3000, 2000));
    }
    mover.await.unwrap();
}

pub(crate) async fn large_and_odd_values_come_back<B: Backend>(backend: &mut B) {
    let store = backend.open().await;
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    let values = [Vec::new(), vec![0], vec![0xff; 3], (0..1_000_000u32).map(|i| (i % 251) as u8).collect()];
    for (i, value) in values.into_iter().enumerate() {
        let name = Bytes::from(vec![b'/', i as u8, 0xff, 0]);
        let revision = committed(&store, Transaction::put(name.clone(), value.clone().into(), Class::Durable, 0)).await;
        let kv = store.get(&name).await.unwrap().unwrap();
        assert_eq!((&kv.value[..], kv.mod_revision, kv.create_revision), (&value[..], revision, revision));
        let batch = watcher.next().await.unwrap();
        assert_eq!((batch.revision, &batch.events[..]), (revision, &[Event::Put(kv)][..]));
    }
}
