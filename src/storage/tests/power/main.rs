//! Power cuts and failing disks, on a file system that forgets whatever was not synced. Needs root and `/dev/fuse`.
#![expect(clippy::unwrap_used, reason = "tests")]

mod disk;

use bytes::Bytes;
use disk::{Disk, Operation, Random};
use edge_storage::{Class, Error, Lmdb, Op, Outcome, Revision, Storage, Transaction};
use fuser::Errno;
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A place for mounts that nobody else sees and that go with this test, whatever happens.
fn private_mounts() -> tempfile::TempDir {
    use nix::mount::{MsFlags, mount};
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mounting needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let dir = tempfile::tempdir().unwrap();
    for name in ["disk", "elsewhere", "cuts"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    dir
}

/// An empty disk, and where it is mounted.
fn disk() -> (Disk, PathBuf, tempfile::TempDir) {
    let dir = private_mounts();
    let mounted = dir.path().join("disk");
    (Disk::mount(&mounted, &dir.path().join("elsewhere")), mounted, dir)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn put(key: &str, value: &str) -> Transaction {
    let (key, value) = (Bytes::copy_from_slice(key.as_bytes()), Bytes::copy_from_slice(value.as_bytes()));
    Transaction { compares: Vec::new(), ops: vec![Op::Put { key, value, class: Class::Durable }] }
}

async fn write(store: &Lmdb, key: &str, value: &str) -> edge_storage::Result<Revision> {
    match store.transact(put(key, value)).await? {
        Outcome::Committed(revision) => Ok(revision),
        Outcome::Failed { .. } => panic!("a write without conditions failed one"),
    }
}

async fn read(store: &Lmdb, key: &str) -> Option<String> {
    let found = store.get(key.as_bytes()).await.unwrap();
    found.map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// What has been acknowledged: the newest value of each key, and the newest revision.
#[derive(Clone, Default)]
struct Acknowledged {
    values: BTreeMap<String, u64>,
    revision: Revision,
}

#[test]
fn a_power_cut_at_any_moment_loses_nothing_that_was_acknowledged() {
    let (disk, mounted, dir) = disk();
    let cuts = dir.path().join("cuts");
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));
    let taken: Arc<Mutex<Vec<Acknowledged>>> = Arc::default();
    disk.observe({
        let (acknowledged, taken, cuts, mut random) = (acknowledged.clone(), taken.clone(), cuts.clone(), Random(7));
        move |state| {
            // every moment of the first start, and some of the later ones
            let mut taken = taken.lock();
            if taken.len() < 60 || random.below(12) == 0 {
                let known = acknowledged.lock().clone();
                state.cut(&mut random, &cuts.join(taken.len().to_string()));
                taken.push(known);
            }
        }
    });
    runtime().block_on(async {
        let store = Arc::new(Lmdb::open(&mounted.join("server/db")).unwrap());
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let (store, acknowledged) = (store.clone(), acknowledged.clone());
                tokio::spawn(async move {
                    let mut random = Random(writer);
                    for i in 1..=60u64 {
                        let key = format!("/k/{writer}-{}", random.below(6));
                        // some on pages of their own
                        let padding = if random.below(4) == 0 { 9000 } else { 50 };
                        let revision = write(&store, &key, &format!("{i} {}", "x".repeat(padding))).await.unwrap();
                        let mut known = acknowledged.lock();
                        known.values.insert(key, i);
                        known.revision = known.revision.max(revision);
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
    let taken = std::mem::take(&mut *taken.lock());
    assert!(taken.len() > 80, "{} cuts", taken.len());
    assert!(taken.iter().filter(|t| !t.values.is_empty()).count() > 40);
    runtime().block_on(async {
        for (i, known) in taken.iter().enumerate() {
            let store = Lmdb::open(&cuts.join(i.to_string()).join("server/db"))
                .unwrap_or_else(|e| panic!("cut {i}, with {} keys acknowledged: {e}", known.values.len()));
            for (key, least) in &known.values {
                let value = read(&store, key).await.unwrap_or_else(|| panic!("cut {i}: {key} is lost"));
                let found: u64 = value.split(' ').next().unwrap().parse().unwrap();
                assert!(found >= *least, "cut {i}: {key} is {found}, but {least} was acknowledged");
            }
            assert!(store.revision() >= known.revision, "cut {i}: the revision went back");
            write(&store, "/after", "the cut").await.unwrap();
        }
    });
}

#[test]
fn writers_that_wait_share_one_sync() {
    let (disk, mounted, _dir) = disk();
    runtime().block_on(async {
        let store = Arc::new(Lmdb::open(&mounted.join("db")).unwrap());
        write(&store, "/first", "x").await.unwrap();
        let before = store.stats().await.unwrap().commits;
        // the next sync waits until it is let go
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let syncs = Arc::new(AtomicUsize::new(0));
        disk.set_fault({
            let (gate, syncs) = (gate.clone(), syncs.clone());
            move |operation| {
                if matches!(operation, Operation::Sync { name } if *name == "data.mdb") {
                    syncs.fetch_add(1, Ordering::SeqCst);
                    let mut open = gate.0.lock();
                    while !*open {
                        gate.1.wait(&mut open);
                    }
                }
                None
            }
        });
        let one = tokio::spawn({
            let store = store.clone();
            async move { write(&store, "/one", "x").await.unwrap() }
        });
        while syncs.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..100).map(|i| put(&format!("/many/{i}"), "x")).collect();
        // the requests are sent when they are polled for the first time, before the gate opens
        let mut waiting: Vec<_> = others.into_iter().map(|t| store.transact(t)).collect();
        for request in &mut waiting {
            assert!(futures_poll(request).is_none(), "acknowledged before its sync");
        }
        *gate.0.lock() = true;
        gate.1.notify_all();
        let mut revisions = vec![one.await.unwrap()];
        for request in waiting {
            match request.await.unwrap() {
                Outcome::Committed(revision) => revisions.push(revision),
                failed => panic!("{failed:?}"),
            }
        }
        assert!(revisions.windows(2).all(|w| w[0] + 1 == w[1]), "in the order of the requests");
        let commits = store.stats().await.unwrap().commits - before;
        // pages, then which transaction is the last: two syncs for a commit
        assert_eq!((commits, syncs.load(Ordering::SeqCst)), (2, 4), "101 writes");
    });
}

/// Polls once.
fn futures_poll<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// The two first pages, which say which transaction is the last.
fn is_meta(operation: &Operation<'_>) -> bool {
    matches!(operation, Operation::Write { name, offset, length } if *name == "data.mdb" && *offset < 8192 && *length < 4096)
}

#[test]
fn whatever_write_or_sync_fails_nothing_is_half_done_and_it_goes_on() {
    let (disk, mounted, _dir) = disk();
    runtime().block_on(async {
        let store = Lmdb::open(&mounted.join("db")).unwrap();
        let mut expected = "0".to_owned();
        write(&store, "/a", &expected).await.unwrap();
        let mut watcher = store.watch(b"", store.revision()).await.unwrap();
        let mut failed = 0;
        // fail the n-th operation of a commit, with either error; then the one that says which transaction is the last
        for (n, errno) in (0..8).flat_map(|n| [(n, Errno::ENOSPC), (n, Errno::EIO)]) {
            let mut seen = 0;
            disk.set_fault(move |operation| {
                let counts = matches!(operation, Operation::Write { name, .. } | Operation::Sync { name } if *name == "data.mdb");
                seen += usize::from(counts);
                (counts && seen == n + 1).then_some(errno)
            });
            let value = format!("{n} {} {}", i32::from(errno), "v".repeat(9000));
            let before = store.revision();
            match write(&store, "/a", &value).await {
                Ok(_) => expected = value,
                Err(Error::Full { .. }) => {
                    assert_eq!(i32::from(errno), i32::from(Errno::ENOSPC));
                    failed += 1;
                }
                Err(error) => {
                    assert!(matches!(error, Error::Io { .. }), "{error:?}");
                    failed += 1;
                }
            }
            disk.heal();
            assert_eq!(read(&store, "/a").await.as_ref(), Some(&expected), "after failure {n} with {errno:?}");
            let revision = write(&store, "/b", "goes on").await.unwrap();
            assert!(revision > before);
        }
        assert!(failed >= 8, "{failed}");
        // who watched has seen what happened and nothing else
        let mut last = None;
        while let Some(batch) = watcher.try_next().unwrap() {
            for event in batch.events {
                if let edge_storage::Event::Put(kv) = event
                    && kv.key == "/a"
                {
                    last = Some(kv.value);
                }
            }
        }
        assert_eq!(last.as_deref(), Some(expected.as_bytes()));
        drop(store);
        let store = Lmdb::open(&mounted.join("db")).unwrap();
        assert_eq!(read(&store, "/a").await, Some(expected));
    });
}

#[test]
fn when_it_cannot_be_said_which_transaction_is_the_last_the_store_opens_again() {
    let (disk, mounted, _dir) = disk();
    runtime().block_on(async {
        let store = Lmdb::open(&mounted.join("db")).unwrap();
        write(&store, "/a", "old").await.unwrap();
        for errno in [Errno::ENOSPC, Errno::EIO] {
            disk.set_fault(move |operation| is_meta(operation).then_some(errno));
            let error = write(&store, "/a", "new").await.unwrap_err();
            assert!(matches!(error, Error::Full { .. } | Error::Io { .. }), "{error:?}");
            assert_eq!(read(&store, "/a").await.as_deref(), Some("old"));
            disk.heal();
            assert_eq!(read(&store, "/a").await.as_deref(), Some("old"));
            write(&store, "/b", "goes on").await.unwrap();
        }
        drop(store);
        let store = Lmdb::open(&mounted.join("db")).unwrap();
        assert_eq!(read(&store, "/a").await.as_deref(), Some("old"));
        assert_eq!(read(&store, "/b").await.as_deref(), Some("goes on"));
    });
}

#[test]
fn expired_keys_that_cannot_be_removed_are_tried_again_without_haste() {
    let (disk, mounted, _dir) = disk();
    runtime().block_on(async {
        let store = Lmdb::open(&mounted.join("db")).unwrap();
        let class = Class::Volatile { ttl: Some(Duration::from_millis(300)) };
        let key = Bytes::from_static(b"/expires");
        let op = Op::Put { key: key.clone(), value: Bytes::new(), class };
        let transaction = Transaction { compares: Vec::new(), ops: vec![op] };
        store.transact(transaction.clone()).await.unwrap();
        let attempts = Arc::new(AtomicUsize::new(0));
        disk.set_fault({
            let attempts = attempts.clone();
            move |_| {
                attempts.fetch_add(1, Ordering::SeqCst);
                Some(Errno::ENOSPC)
            }
        });
        // until there is no reserved revision left, not even for the expiry
        while store.transact(transaction.clone()).await.is_ok() {}
        assert!(matches!(store.transact(transaction).await, Err(Error::Full { .. })));
        let before = attempts.swap(0, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(900)).await;
        let tried = attempts.load(Ordering::SeqCst);
        assert!((1..=3 * before).contains(&tried), "{tried} operations, {before} before");
        let mut watcher = store.watch(b"", store.revision()).await.unwrap();
        disk.heal();
        assert!(
            matches!(&watcher.next().await.unwrap().events[..], [edge_storage::Event::Delete { key: k }] if *k == key)
        );
    });
}

#[test]
fn writes_go_on_during_a_snapshot() {
    let (disk, mounted, dir) = disk();
    runtime().block_on(async {
        // the store is elsewhere; the copy goes to the disk, and stands still there
        let store = Arc::new(Lmdb::open(&dir.path().join("db")).unwrap());
        write(&store, "/before", "x").await.unwrap();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let stands = Arc::new(AtomicUsize::new(0));
        disk.set_fault({
            let (gate, stands) = (gate.clone(), stands.clone());
            move |operation| {
                if matches!(operation, Operation::Write { name, .. } if *name == "copy") {
                    stands.fetch_add(1, Ordering::SeqCst);
                    let mut open = gate.0.lock();
                    while !*open {
                        gate.1.wait(&mut open);
                    }
                }
                None
            }
        });
        let copying = tokio::spawn({
            let (store, target) = (store.clone(), mounted.join("copy"));
            async move { store.snapshot(&target).await }
        });
        while stands.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        for i in 0..50 {
            write(&store, &format!("/meanwhile/{i}"), &"x".repeat(5000)).await.unwrap();
        }
        assert_eq!(read(&store, "/meanwhile/49").await.map(|v| v.len()), Some(5000));
        assert!(!copying.is_finished());
        *gate.0.lock() = true;
        gate.1.notify_all();
        copying.await.unwrap().unwrap();
        disk.heal();
        // the copy is of the moment at which it began; one that fails leaves nothing
        let restored = dir.path().join("restored");
        std::fs::create_dir(&restored).unwrap();
        std::fs::copy(mounted.join("copy"), restored.join("data.mdb")).unwrap();
        let restored = Lmdb::open(&restored).unwrap();
        assert!(read(&restored, "/before").await.is_some() && read(&restored, "/meanwhile/0").await.is_none());
        disk.set_fault(|operation| matches!(operation, Operation::Write { .. }).then_some(Errno::ENOSPC));
        let target = mounted.join("second");
        assert!(matches!(store.snapshot(&target).await, Err(Error::Full { .. })));
        assert!(!target.exists());
    });
}

#[test]
fn a_store_that_could_not_be_made_is_not_there() {
    let (disk, mounted, _dir) = disk();
    let db = mounted.join("db");
    for errno in [Errno::ENOSPC, Errno::EIO] {
        for n in 0..3 {
            let mut seen = 0;
            disk.set_fault(move |operation| {
                let counts = matches!(operation, Operation::Write { name, .. } | Operation::Sync { name } if *name == "data.mdb");
                seen += usize::from(counts);
                (counts && seen > n).then_some(errno)
            });
            let error = Lmdb::open(&db).unwrap_err();
            let expected = if i32::from(errno) == i32::from(Errno::ENOSPC) { "full" } else { "data.mdb" };
            assert!(error.to_string().contains(expected), "{error}");
            assert!(!db.join("data.mdb").exists() && !db.join("new").exists(), "{errno:?} {n}");
        }
    }
    disk.heal();
    Lmdb::open(&db).unwrap();
    assert!(db.join("data.mdb").exists());
}
