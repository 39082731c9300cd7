#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::types::{Class, Event, Op};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::time::Duration;

fn key(text: &str) -> Bytes {
    Bytes::copy_from_slice(text.as_bytes())
}

fn put(k: &str, v: &str, class: Class, expect: Revision) -> Transaction {
    Transaction::put(key(k), key(v), class, expect)
}

async fn committed(store: &Lmdb, transaction: Transaction) -> Revision {
    match store.transact(transaction).await.unwrap() {
        Outcome::Committed(revision) => revision,
        failed => panic!("{failed:?}"),
    }
}

const VOLATILE: Class = Class::Volatile { ttl: None };

#[tokio::test]
async fn durable_keys_survive_and_volatile_ones_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let first = committed(&store, put("/a", "1", Class::Durable, 0)).await;
    let last = committed(&store, put("/v", "1", VOLATILE, 0)).await;
    assert_eq!(last, first + 1);
    assert_eq!(store.get(b"/v").await.unwrap().unwrap().mod_revision, last);
    drop(store);
    let store = Lmdb::open(dir.path()).unwrap();
    assert!(store.revision() >= last, "the revision went back");
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().value, "1");
    assert!(store.get(b"/v").await.unwrap().is_none());
    assert!(committed(&store, put("/b", "1", Class::Durable, 0)).await > last);
}

#[tokio::test]
async fn conditions_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let revision = committed(&store, put("/a", "1", Class::Durable, 0)).await;
    let Outcome::Failed { current } = store.transact(put("/a", "2", Class::Durable, 0)).await.unwrap() else {
        panic!("created twice")
    };
    assert_eq!(current[0].as_ref().unwrap().mod_revision, revision);
    let second = committed(&store, put("/a", "2", Class::Durable, revision)).await;
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().create_revision, revision);
    committed(&store, Transaction::delete(key("/a"), second)).await;
    assert!(store.get(b"/a").await.unwrap().is_none());
    let long = "k".repeat(5000);
    assert!(matches!(store.transact(put(&long, "", Class::Durable, 0)).await, Err(Error::KeyLength { .. })));
}

#[tokio::test]
async fn volatile_changes_write_next_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    for _ in 0..2000 {
        let old = store.get(b"/lease").await.unwrap().map_or(0, |kv| kv.mod_revision);
        committed(&store, put("/lease", "x", VOLATILE, old)).await;
    }
    let stats = store.stats().await.unwrap();
    assert!(stats.commits <= 2, "{} commits", stats.commits);
    assert_eq!((stats.keys, stats.volatile_keys), (0, 1));
}

#[tokio::test]
async fn expiry_is_a_deletion_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let mut watcher = store.watch(b"/e/", store.revision()).await.unwrap();
    let ttl = Class::Volatile { ttl: Some(Duration::from_millis(30)) };
    let revision = committed(&store, put("/e/1", "x", ttl, 0)).await;
    assert!(matches!(&watcher.next().await.unwrap().events[..], [Event::Put(_)]));
    let gone = watcher.next().await.unwrap();
    assert!(matches!(&gone.events[..], [Event::Delete { .. }]) && gone.revision > revision);
    assert!(store.get(b"/e/1").await.unwrap().is_none());
}

#[tokio::test]
async fn random_operations_match_a_model_at_every_revision() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Lmdb::open(dir.path()).unwrap();
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
            store = Lmdb::open(dir.path()).unwrap();
            past.clear();
        }
    }
    for (revision, model) in past {
        let request = ListRequest { prefix: key("/k/"), revision, ..ListRequest::default() };
        let list = store.list(request).await.unwrap();
        let found: BTreeMap<String, String> = list
            .items
            .iter()
            .map(|kv| (String::from_utf8_lossy(&kv.key).into_owned(), String::from_utf8_lossy(&kv.value).into_owned()))
            .collect();
        assert_eq!(found, model, "at {revision}");
    }
    let page = ListRequest { prefix: key("/k/"), limit: 3, start: key("/k/05"), ..ListRequest::default() };
    let page = store.list(page).await.unwrap();
    assert!(page.items.len() == 3 && page.items[0].key >= key("/k/05") && page.remaining > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_see_every_change_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Lmdb::open(dir.path()).unwrap());
    let begin = store.revision();
    let writers: Vec<_> = (0..8)
        .map(|w| {
            let store = store.clone();
            tokio::spawn(async move {
                for i in 0..50 {
                    committed(&store, put(&format!("/w/{w}-{i}"), "x", Class::Durable, 0)).await;
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

/// Which watches and lists are possible: exactly those from `oldest` on.
async fn remembers_from(store: &Lmdb, oldest: Revision) {
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

#[tokio::test]
async fn history_ends_exactly_where_it_was_compacted() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
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
    assert!(matches!(store.compact(u64::MAX).await, Err(Error::FutureRevision { .. })));
    // everything
    let all = store.revision();
    store.compact(all).await.unwrap();
    assert!(matches!(store.watch(b"", all - 1).await, Err(Error::Compacted { .. })));
    store.watch(b"", all).await.unwrap();
    // after a start nothing is remembered: what was before may have been volatile
    drop(store);
    let store = Lmdb::open(dir.path()).unwrap();
    assert!(matches!(store.watch(b"", all).await, Err(Error::Compacted { .. })));
    store.watch(b"", store.revision()).await.unwrap();
}

#[tokio::test]
async fn history_is_bounded_by_number_and_by_size() {
    for (value, least, most) in
        [("x".to_owned(), 4096, 4096), ("x".repeat(100 << 10), 15, 25), ("x".repeat(9 << 20), 1, 1)]
    {
        let dir = tempfile::tempdir().unwrap();
        let store = Lmdb::open(dir.path()).unwrap();
        for i in 0..(most + 100) {
            let old = if value.len() > 1 { "/k".to_owned() } else { format!("/{i}") };
            let op = Op::Put { key: old.into(), value: key(&value), class: VOLATILE };
            committed(&store, Transaction { compares: Vec::new(), ops: vec![op] }).await;
        }
        let stats = store.stats().await.unwrap();
        assert!((least..=most).contains(&stats.log_entries), "{} entries of {} bytes", stats.log_entries, value.len());
        assert_eq!(stats.compacted, stats.revision - stats.log_entries);
        remembers_from(&store, stats.compacted).await;
    }
}

#[tokio::test]
async fn a_slow_watcher_is_ended_and_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    for i in 0..1100 {
        committed(&store, put(&format!("/{i}"), "x", VOLATILE, 0)).await;
    }
    let error = loop {
        if let Err(e) = watcher.next().await {
            break e;
        }
    };
    assert!(matches!(error, Error::Lagged), "{error}");
}

#[tokio::test]
async fn a_transaction_happens_as_a_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
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
    let failing = Transaction { compares: vec![crate::Compare { key: key("/a"), mod_revision: first }], ops };
    assert!(matches!(store.transact(failing).await.unwrap(), Outcome::Failed { .. }));
    assert_eq!(store.revision(), revision);
    // what changes nothing takes no revision
    let nothing = Transaction { compares: Vec::new(), ops: vec![Op::Delete { key: key("/none") }] };
    assert_eq!(committed(&store, nothing).await, revision);
    drop(store);
    let store = Lmdb::open(dir.path()).unwrap();
    assert!(store.get(b"/a").await.unwrap().is_none());
    for k in ["/v", "/n"] {
        assert_eq!(store.get(k.as_bytes()).await.unwrap().unwrap().mod_revision, revision);
    }
}

#[tokio::test]
async fn the_map_grows_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let value = "v".repeat(1 << 20);
    for i in 0..80 {
        committed(&store, put(&format!("/{i}"), &value, Class::Durable, 0)).await;
    }
    assert_eq!(store.get(b"/79").await.unwrap().unwrap().value.len(), 1 << 20);
}
