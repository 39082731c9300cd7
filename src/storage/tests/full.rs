//! Full disks and full stores, on real file systems. Needs root.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use edge_storage::{Class, Error, Event, Lmdb, LmdbOptions, Op, Outcome, Revision, Storage, Transaction};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// A file system of its own, which nobody else sees and which goes with the test, whatever happens.
struct Volume {
    dir: tempfile::TempDir,
}

impl Volume {
    fn new(kind: &str, megabytes: usize) -> Self {
        use nix::mount::{MsFlags, mount};
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).expect("mounting needs root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("volume");
        std::fs::create_dir(&at).unwrap();
        match kind {
            "tmpfs" => {
                let options = format!("size={megabytes}m");
                mount(Some("tmpfs"), &at, Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
            }
            _ => {
                let image = dir.path().join("image");
                std::fs::File::create(&image).unwrap().set_len((megabytes as u64) << 20).unwrap();
                let run = |command: &mut Command| assert!(command.status().unwrap().success(), "{command:?}");
                run(Command::new("mkfs.ext4").args(["-q", "-m", "0"]).arg(&image));
                run(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
            }
        }
        Self { dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("volume")
    }

    /// Takes all that is free, to the last byte.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.path().join("filler")).unwrap();
        for size in [1 << 16, 4096, 512, 1] {
            let block = vec![7u8; size];
            while file.write_all(&block).and_then(|()| file.sync_data()).is_ok() {}
        }
    }

    /// What somebody else will delete one day.
    fn put_by(&self, megabytes: usize) {
        std::fs::write(self.path().join("other"), vec![7u8; megabytes << 20]).unwrap();
    }

    fn free(&self) {
        std::fs::remove_file(self.path().join("filler")).unwrap();
        let _ = std::fs::remove_file(self.path().join("other"));
        // what was deleted comes back at the next transaction of the file system's journal
        nix::unistd::sync();
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

fn put(key: &str, value: Vec<u8>, class: Class) -> Transaction {
    let key = Bytes::copy_from_slice(key.as_bytes());
    Transaction { compares: Vec::new(), ops: vec![Op::Put { key, value: value.into(), class }] }
}

async fn commit(store: &Lmdb, transaction: Transaction) -> Result<Revision, Error> {
    match store.transact(transaction).await? {
        Outcome::Committed(revision) => Ok(revision),
        Outcome::Failed { .. } => panic!("no conditions, but one failed"),
    }
}

async fn delete(store: &Lmdb, key: &str) -> Result<Revision, Error> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    commit(store, Transaction { compares: Vec::new(), ops: vec![Op::Delete { key }] }).await
}

fn value(i: usize) -> Vec<u8> {
    vec![i as u8; [100, 3000, 40_000][i % 3]]
}

async fn is_intact(store: &Lmdb, acknowledged: &[usize]) {
    for i in acknowledged {
        let found = store.get(format!("/{i}").as_bytes()).await.unwrap();
        assert!(found.is_some_and(|kv| kv.value == value(*i)), "{i} is lost");
    }
}

async fn a_full_disk(volume: &Volume) {
    let db = volume.path().join("db");
    volume.put_by(6);
    let store = Arc::new(Lmdb::open(&db).unwrap());
    let mut watcher = store.watch(b"/", store.revision()).await.unwrap();
    // until it is full by itself
    let mut acknowledged = Vec::new();
    let mut failed = 0;
    for i in 0.. {
        match commit(&store, put(&format!("/{i}"), value(i), Class::Durable)).await {
            Ok(_) => {
                acknowledged.push(i);
                watcher.next().await.unwrap();
            }
            Err(Error::Full { path }) => {
                assert_eq!(path, db.join("data.mdb"));
                failed += 1;
                if failed > 5 {
                    break;
                }
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(acknowledged.len() > 100);
    volume.fill();

    // several at once: each gets its own answer
    let condition = Transaction::put("/1".into(), "x".into(), Class::Durable, 0);
    let big = || put("/big", vec![1; 2 << 20], Class::Durable);
    let (a, b, c, d) = tokio::join!(
        store.transact(big()),
        store.transact(condition),
        store.transact(put("/volatile", vec![1], Class::Volatile { ttl: None })),
        store.transact(big())
    );
    assert!(matches!(a, Err(Error::Full { .. })), "{a:?}");
    let Ok(Outcome::Failed { current }) = b else { panic!("{b:?}") };
    assert_eq!(current[0].as_ref().unwrap().key, "/1");
    assert!(matches!(c, Ok(Outcome::Committed(_))), "{c:?}");
    assert!(matches!(d, Err(Error::Full { .. })), "{d:?}");

    // what is there can be read, watched and deleted; what lives in memory goes on, longer than revisions are reserved
    is_intact(&store, &acknowledged).await;
    for _ in 0..9000 {
        commit(&store, put("/volatile", vec![2], Class::Volatile { ttl: None })).await.unwrap();
        watcher.next().await.unwrap();
    }
    let gone: Vec<usize> = acknowledged.drain(..20).collect();
    for i in &gone {
        delete(&store, &format!("/{i}")).await.unwrap();
    }
    let seen = loop {
        let batch = watcher.next().await.unwrap();
        if let Event::Delete { key } = &batch.events[0] {
            break key.clone();
        }
    };
    assert_eq!(seen, "/0");

    // a start finds all of it, on the full disk
    let revision = store.revision();
    drop(watcher);
    drop(Arc::into_inner(store).unwrap());
    let store = Lmdb::open(&db).unwrap();
    assert!(store.revision() >= revision);
    is_intact(&store, &acknowledged).await;
    for i in gone {
        assert!(store.get(format!("/{i}").as_bytes()).await.unwrap().is_none());
    }
    // more readers than LMDB has by itself, on pages of its table that were not touched before
    let store = Arc::new(store);
    let readers: Vec<_> = (0..400)
        .map(|_| {
            tokio::spawn({
                let store = store.clone();
                async move { store.get(b"/30").await }
            })
        })
        .collect();
    for reader in readers {
        assert!(reader.await.unwrap().unwrap().is_some());
    }

    // space again: everything works, without a restart
    assert!(matches!(commit(&store, big()).await, Err(Error::Full { .. })));
    volume.free();
    commit(&store, big()).await.unwrap();
    is_intact(&store, &acknowledged).await;
}

#[test]
fn a_full_tmpfs_is_told_and_nothing_is_lost() {
    runtime_on_this_thread("tmpfs", 16);
}

#[test]
fn a_full_ext4_is_told_and_nothing_is_lost() {
    runtime_on_this_thread("ext4", 32);
}

fn runtime_on_this_thread(kind: &str, megabytes: usize) {
    let volume = Volume::new(kind, megabytes);
    runtime().block_on(a_full_disk(&volume));
}

#[test]
fn a_store_cannot_be_made_on_a_full_disk_and_can_later() {
    let volume = Volume::new("tmpfs", 4);
    volume.fill();
    let db = volume.path().join("server/db");
    let error = Lmdb::open(&db).unwrap_err();
    assert!(matches!(error, Error::Full { .. }), "{error:?}");
    assert!(!db.join("data.mdb").exists());
    volume.free();
    Lmdb::open(&db).unwrap();
}

#[test]
fn the_file_grows_up_to_its_limit_and_deleting_makes_room() {
    let dir = tempfile::tempdir().unwrap();
    let limit = 48 << 20;
    let options = LmdbOptions { limit };
    let open = |dir: &Path| Lmdb::open_with(dir, options).unwrap();
    runtime().block_on(async {
        let store = open(dir.path());
        let megabyte = || vec![5u8; 1 << 20];
        let mut count = 0;
        let error = loop {
            match commit(&store, put(&format!("/{count}"), megabyte(), Class::Durable)).await {
                Ok(_) => count += 1,
                Err(error) => break error,
            }
        };
        assert!((40..48).contains(&count), "{count}");
        let text = error.to_string();
        assert!(matches!(error, Error::LimitReached { limit: l, .. } if l == limit), "{error:?}");
        assert!(text.contains("50331648 bytes") && text.contains("data.mdb"), "{text}");
        // to the last page
        for i in 0.. {
            if commit(&store, put(&format!("/small/{i}"), vec![1; 3000], Class::Durable)).await.is_err() {
                break;
            }
        }
        assert!(store.stats().await.unwrap().file_bytes <= limit);
        commit(&store, put("/volatile", vec![1], Class::Volatile { ttl: None })).await.unwrap();
        assert!(store.get(b"/1").await.unwrap().is_some());
        for i in 0..10 {
            delete(&store, &format!("/{i}")).await.unwrap();
        }
        for i in 0..5 {
            commit(&store, put(&format!("/again/{i}"), megabyte(), Class::Durable)).await.unwrap();
        }
        let keys = store.stats().await.unwrap().keys;
        drop(store);
        let store = open(dir.path());
        assert_eq!(store.stats().await.unwrap().keys, keys);
        // a higher limit holds at the next start
        drop(store);
        let store = Lmdb::open(dir.path()).unwrap();
        for i in 0..30 {
            commit(&store, put(&format!("/more/{i}"), megabyte(), Class::Durable)).await.unwrap();
        }
    });
}
