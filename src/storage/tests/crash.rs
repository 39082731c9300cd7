//! Processes that are killed in the middle of their work.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use edge_storage::{Class, Lmdb, Op, Outcome, Revision, Storage, Transaction};
use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Set in the child: the directory of the store.
const DIR: &str = "EDGE_STORAGE_TEST_DIR";
/// Set in the child: with which operation each thread begins, separated by commas.
const BEGIN: &str = "EDGE_STORAGE_TEST_BEGIN";

const THREADS: u64 = 4;
const ROUNDS: usize = 40;

/// This test binary again, running one test as a child that works in a directory.
fn child(test: &str, dir: &Path, begin: &str) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(DIR, dir)
        .env(BEGIN, begin)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

fn random(mut seed: u64, n: u64) -> u64 {
    for _ in 0..3 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
    (seed >> 33) % n
}

/// The keys of a thread, `None`: absent.
type Keys = BTreeMap<String, Option<String>>;

/// The `i`-th operation of a thread: always the same, and seen at a glance whether all of it happened.
fn operation(thread: u64, i: u64) -> (Class, Vec<(String, Option<String>)>) {
    let seed = thread << 32 | i;
    if random(seed, 5) == 0 {
        return (Class::Volatile { ttl: None }, vec![(format!("/volatile/{thread}"), Some(i.to_string()))]);
    }
    let changes = (0..1 + random(seed + 1, 3)).map(|n| {
        let key = format!("/t{thread}/{}", random(seed + 2, 8) + 8 * n);
        let padding = [10, 300, 6000][random(seed + n, 3) as usize];
        (key, (random(seed + 3, 4) != 0).then(|| format!("{i} {}", "x".repeat(padding))))
    });
    (Class::Durable, changes.collect())
}

fn transaction((class, changes): (Class, Vec<(String, Option<String>)>)) -> Transaction {
    let ops = changes.into_iter().map(|(key, value)| match value {
        Some(value) => Op::Put { key: key.into(), value: value.into(), class },
        None => Op::Delete { key: key.into() },
    });
    Transaction { compares: Vec::new(), ops: ops.collect() }
}

/// Works until it is killed, and says what was acknowledged.
fn work(dir: &Path) {
    let begin = std::env::var(BEGIN).unwrap();
    let store = Lmdb::open(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    println!("opened {}", store.revision());
    std::thread::scope(|scope| {
        for (thread, begin) in begin.split(',').enumerate() {
            let (store, runtime, begin) = (&store, &runtime, begin.parse::<u64>().unwrap());
            scope.spawn(move || {
                for i in begin.. {
                    let outcome = runtime.block_on(store.transact(transaction(operation(thread as u64, i)))).unwrap();
                    let Outcome::Committed(revision) = outcome else { panic!("{outcome:?}") };
                    println!("acknowledged {thread} {i} {revision}");
                }
            });
        }
    });
}

/// What is known of one thread of the children.
#[derive(Default)]
struct Known {
    /// So many operations have happened.
    done: u64,
    keys: Keys,
}

impl Known {
    fn apply(&mut self, thread: u64) {
        let (class, changes) = operation(thread, self.done);
        if class == Class::Durable {
            self.keys.extend(changes);
        }
        self.done += 1;
    }

    fn found_in(&self, store: &BTreeMap<String, String>) -> bool {
        self.keys.iter().all(|(key, value)| store.get(key) == value.as_ref())
    }
}

#[test]
fn kill_9_at_any_moment_loses_no_acknowledged_write_and_no_revision_comes_twice() {
    if let Some(dir) = std::env::var_os(DIR) {
        return work(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut known: Vec<Known> = (0..THREADS).map(|_| Known::default()).collect();
    let mut revisions: HashSet<Revision> = HashSet::new();
    let mut newest = 0;
    let mut written = 0;
    for round in 0..ROUNDS {
        let begin = known.iter().map(|k| k.done.to_string()).collect::<Vec<_>>().join(",");
        let name = "kill_9_at_any_moment_loses_no_acknowledged_write_and_no_revision_comes_twice";
        let mut child = child(name, dir.path(), &begin);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("opened ") {
            line.clear();
            assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
        }
        let killer = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(random(round as u64, 120)));
            child.kill().unwrap();
            child.wait().unwrap();
        });
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        killer.join().unwrap();
        let mut highest = newest;
        for line in text.lines() {
            let Some(rest) = line.strip_prefix("acknowledged ") else { continue };
            let numbers: Vec<u64> = rest.split(' ').map(|n| n.parse().unwrap()).collect();
            let [thread, i, revision] = numbers[..] else { panic!("{line}") };
            assert_eq!(known[thread as usize].done, i, "each thread counts on");
            known[thread as usize].apply(thread);
            // an operation that changed nothing has the revision of another
            let changed = operation(thread, i).1.iter().any(|(_, value)| value.is_some());
            assert!(!changed || revisions.insert(revision), "round {round}: revision {revision} came twice");
            assert!(revision > newest || !changed, "round {round}: revision {revision} after {newest}");
            highest = highest.max(revision);
            written += 1;
        }
        newest = highest;

        let store = Lmdb::open(dir.path()).unwrap_or_else(|e| panic!("round {round}: {e}"));
        assert!(store.revision() >= newest, "round {round}: {} after {newest}", store.revision());
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let list = runtime.block_on(store.list(edge_storage::ListRequest::default())).unwrap();
        let text = |bytes: &Bytes| String::from_utf8(bytes.to_vec()).unwrap();
        let found: BTreeMap<String, String> = list.items.iter().map(|kv| (text(&kv.key), text(&kv.value))).collect();
        assert!(found.keys().all(|k| k.starts_with("/t")), "volatile keys are gone");
        for (thread, known) in known.iter_mut().enumerate() {
            // one more may have happened than was acknowledged: all of it, or nothing
            if !known.found_in(&found) {
                known.apply(thread as u64);
                assert!(known.found_in(&found), "round {round}, thread {thread}: lost or half done: {:?}", known.keys);
            }
        }
    }
    // how many depends on the disk; with none this would show nothing
    assert!(written > 2 * ROUNDS, "{written} writes in {ROUNDS} rounds: the children were killed too early");
}

/// Copies the store again and again, which is one long read transaction each.
fn copy_forever(dir: &Path) {
    let store = Lmdb::open(dir).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    println!("opened");
    for n in 0.. {
        let copy = dir.join(format!("copy-{n}"));
        runtime.block_on(store.snapshot(&copy)).unwrap();
        std::fs::remove_file(copy).unwrap();
    }
}

/// Whether LMDB's table of readers has one of a process in the middle of a transaction. A slot is as long as a cache line:
/// the transaction, or -1, then the process.
fn is_reading(dir: &Path, pid: u32) -> bool {
    let table = std::fs::read(dir.join("lock.mdb")).unwrap();
    table.chunks_exact(64).any(|slot| {
        slot[8..12] == pid.to_ne_bytes() && slot[..8] != u64::MAX.to_ne_bytes() && slot[..8] != 0u64.to_ne_bytes()
    })
}

#[test]
fn readers_of_killed_processes_do_not_keep_pages_from_being_used_again() {
    use nix::sys::signal::{Signal, kill};
    if let Some(dir) = std::env::var_os(DIR) {
        return copy_forever(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let put = |i: u32, size: usize| {
        let (key, value) = (Bytes::from(format!("/{}", i % 400)), Bytes::from(vec![i as u8; size]));
        Transaction { compares: Vec::new(), ops: vec![Op::Put { key, value, class: Class::Durable }] }
    };
    let store = Lmdb::open(dir.path()).unwrap();
    for i in 0..400 {
        runtime.block_on(store.transact(put(i, 64 << 10))).unwrap();
    }
    drop(store);

    let name = "readers_of_killed_processes_do_not_keep_pages_from_being_used_again";
    let mut child = child(name, dir.path(), "");
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("opened") {
        line.clear();
        assert_ne!(output.read_line(&mut line).unwrap(), 0, "the child ended early");
    }
    let pid = nix::unistd::Pid::from_raw(child.id() as i32);
    loop {
        kill(pid, Signal::SIGSTOP).unwrap();
        if is_reading(dir.path(), child.id()) {
            break;
        }
        kill(pid, Signal::SIGCONT).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();

    let store = Lmdb::open(dir.path()).unwrap();
    assert!(!is_reading(dir.path(), child.id()));
    let before = runtime.block_on(store.stats()).unwrap().used_bytes;
    for i in 0..400 {
        runtime.block_on(store.transact(put(i, 64 << 10))).unwrap();
    }
    let grown = runtime.block_on(store.stats()).unwrap().used_bytes - before;
    assert!(grown < 4 << 20, "{grown} bytes more for the same records");
}
