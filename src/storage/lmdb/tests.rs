#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::suite::{Backend, VOLATILE, committed, key, put, remembers_from, suite};
use crate::types::{Class, Event, Op};
use std::time::Duration;

/// A directory with a store.
struct Directory(tempfile::TempDir);

impl Backend for Directory {
    type Store = Lmdb;
    const SHORTEST: Duration = Duration::from_millis(30);
    const FORGETS: bool = true;

    async fn open(&mut self) -> Lmdb {
        Lmdb::open(self.0.path()).unwrap()
    }
}

suite!(Directory(tempfile::tempdir().unwrap()));

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

/// An Event lives for an hour; whoever makes many must not fill the memory of a small machine.
#[tokio::test]
async fn what_expires_goes_early_when_there_is_too_much_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let value = "x".repeat(100 << 10);
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    let long = Class::Volatile { ttl: Some(Duration::from_secs(3600)) };
    committed(&store, put("/stays", &value, VOLATILE, 0)).await;
    for i in 0..60 {
        committed(&store, put(&format!("/e/{i:02}"), &value, long, 0)).await;
    }
    // the writer removes right after what made it too much, and before the next
    committed(&store, put("/last", "x", VOLATILE, 0)).await;
    let left = store.list(ListRequest { prefix: "/e/".into(), ..ListRequest::default() }).await.unwrap().items;
    let bytes: usize = left.iter().map(|kv| kv.key.len() + kv.value.len()).sum();
    assert!(bytes <= memory::MAX_EXPIRING && left.len() > 30, "{} of {bytes} bytes", left.len());
    assert_eq!(left.last().map(|kv| kv.key.clone()), Some("/e/59".into()), "the eldest go");
    assert!(store.get(b"/stays").await.unwrap().is_some(), "what does not expire stays");
    let mut gone = 0;
    while gone + left.len() < 60 {
        let batch = watcher.next().await.unwrap();
        gone += batch.events.iter().filter(|e| matches!(e, Event::Delete { .. })).count();
    }
}

#[tokio::test]
async fn after_a_start_nothing_is_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let last = committed(&store, put("/k", "1", VOLATILE, 0)).await;
    drop(store);
    // what was before may have been volatile
    let store = Lmdb::open(dir.path()).unwrap();
    assert!(matches!(store.watch(b"", last).await, Err(Error::Compacted { .. })));
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
async fn the_map_grows_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = Lmdb::open(dir.path()).unwrap();
    let value = "v".repeat(1 << 20);
    for i in 0..80 {
        committed(&store, put(&format!("/{i}"), &value, Class::Durable, 0)).await;
    }
    assert_eq!(store.get(b"/79").await.unwrap().unwrap().value.len(), 1 << 20);
}

#[tokio::test]
async fn keys_are_imported_with_their_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let db = dir.path().join("db");
    let items: Vec<KeyValue> = (0..5000u64)
        .map(|i| KeyValue {
            key: key(&format!("/{i:05}")),
            value: key("x"),
            create_revision: i + 1,
            mod_revision: i + 9,
        })
        .collect();
    std::fs::create_dir(dir.path().join("db.new")).unwrap();
    Lmdb::import(&db, &items, 6000).unwrap();
    assert!(matches!(Lmdb::import(&db, &items, 6000), Err(Error::Io { .. })));
    let store = Lmdb::open(&db).unwrap();
    let list = store.list(ListRequest::default()).await.unwrap();
    assert_eq!(crate::digest(&list.items), crate::digest(&items));
    assert!(committed(&store, put("/00007", "y", Class::Durable, 16)).await > 6000);
}
