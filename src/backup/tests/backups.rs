//! Backups of real stores: what comes back, and what is refused.
#![expect(clippy::unwrap_used, reason = "tests")]

use bytes::Bytes;
use edge_backup::{About, Error, Manifest, create, restore, verify};
use edge_storage::{Class, Lmdb, Outcome, Storage, Transaction};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn put(store: &Lmdb, key: &str, value: &str) -> u64 {
    let transaction = Transaction {
        compares: Vec::new(),
        ops: vec![edge_storage::Op::Put {
            key: Bytes::copy_from_slice(key.as_bytes()),
            value: Bytes::copy_from_slice(value.as_bytes()),
            class: Class::Durable,
        }],
    };
    match run(store.transact(transaction)).unwrap() {
        Outcome::Committed(revision) => revision,
        Outcome::Failed { .. } => panic!("a put without conditions"),
    }
}

fn get(data_dir: &Path, key: &str) -> Option<String> {
    let store = Lmdb::open(&data_dir.join("server/db")).unwrap();
    run(store.get(key.as_bytes())).unwrap().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap())
}

/// A server's directory with a store of `keys` keys.
fn server(data_dir: &Path, keys: usize) {
    for (path, content, mode) in [
        ("server/tls/server-ca.key", "a secret", 0o600),
        ("server/tls/server-ca.crt", "a certificate", 0o644),
        ("server/token", "K10", 0o600),
        ("server/manifests/mine.yaml", "kind: List", 0o644),
        ("server/manifests/.mine.yaml.7.0.tmp", "half", 0o644),
        ("agent/tls/node-password", "who I am", 0o600),
        ("agent/tls/client-kubelet.pem", "made again", 0o600),
    ] {
        let path = data_dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    }
    let store = Lmdb::open(&data_dir.join("server/db")).unwrap();
    for key in 0..keys {
        put(&store, &format!("/registry/things/{key}"), &"v".repeat(key % 3000));
    }
    put(&store, "/registry/which", "backed up");
}

fn back_up(data_dir: &Path, target: &Path) -> Result<Manifest, Error> {
    let about = About { edge: "v1".into(), node: "pi".into() };
    create(data_dir, target, about, |copy| Lmdb::copy(&data_dir.join("server/db"), copy))
}

/// Everything below a directory.
fn tree(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(tree(&path));
        } else {
            all.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_server_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let (data, other, file) = (dir.path().join("data"), dir.path().join("other"), dir.path().join("backup"));
    server(&data, 500);
    let made = back_up(&data, &file).unwrap();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(made.keys, 501);
    let names: Vec<&str> = made.files.keys().map(String::as_str).collect();
    let expected = ["db/data.mdb", "manifests/mine.yaml", "tls/server-ca.crt", "tls/server-ca.key", "token"];
    let expected = expected.map(|name| format!("server/{name}"));
    assert_eq!(names, [&["agent/tls/node-password".to_owned()], &expected[..]].concat());
    assert_eq!(verify(&file).unwrap(), made);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no litter");

    // on another machine
    fs::create_dir(&other).unwrap();
    let restored = restore(&file, &other).unwrap();
    assert_eq!((restored.manifest, restored.before), (made.clone(), None));
    assert_eq!(get(&other, "/registry/which").as_deref(), Some("backed up"));
    assert_eq!(fs::read_to_string(other.join("server/tls/server-ca.key")).unwrap(), "a secret");
    let mode = |path: &str| fs::metadata(other.join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("server/tls/server-ca.key"), mode("server/tls")), (0o600, 0o700));
    assert_eq!(tree(&other).len(), names.len() + 2, "and LMDB's and the store's lock");
    assert_eq!(fs::read_to_string(other.join("agent/tls/node-password")).unwrap(), "who I am");

    // where a server has gone on since: its state is kept, and revisions do not come again
    let store = Lmdb::open(&data.join("server/db")).unwrap();
    let later = put(&store, "/registry/which", "later");
    drop(store);
    let before = restore(&file, &data).unwrap().before.unwrap();
    assert_eq!(get(&data, "/registry/which").as_deref(), Some("backed up"));
    let store = Lmdb::open(&data.join("server/db")).unwrap();
    assert!(store.revision() > later + 1_000_000, "{} after {later}", store.revision());
    assert!(run(store.watch(b"/", later)).is_err(), "who knows what came later has to look again");
    drop(store);
    assert!(before.join("db/data.mdb").exists(), "{before:?}");
    // and again
    let again = restore(&file, &data).unwrap().before.unwrap();
    assert!(again != before && before.exists());
}

#[test]
fn a_backup_is_made_while_others_write() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("backup"));
    server(&data, 0);
    // LMDB does not open a file twice in one process: another one copies
    let writer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer", "--ignored"])
        .env("BACKED_UP", &data)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut revisions = Vec::new();
    for round in 0..20 {
        let made = back_up(&data, &file).unwrap();
        assert_eq!(verify(&file).unwrap(), made);
        let there = dir.path().join(format!("restored-{round}"));
        fs::create_dir(&there).unwrap();
        restore(&file, &there).unwrap();
        // each pair was written in one transaction
        assert_eq!(get(&there, "/registry/left"), get(&there, "/registry/right"));
        revisions.push(made.revision);
    }
    let mut writer = writer;
    writer.kill().unwrap();
    writer.wait().unwrap();
    assert!(revisions.is_sorted() && revisions.first() != revisions.last(), "{revisions:?}");
}

/// Started by the test above, as another process.
#[test]
#[ignore = "it never ends"]
fn writer() {
    let Some(data) = std::env::var_os("BACKED_UP") else { return };
    let store = Lmdb::open(&Path::new(&data).join("server/db")).unwrap();
    let op = |key: &'static str, value: &Bytes| edge_storage::Op::Put {
        key: Bytes::from_static(key.as_bytes()),
        value: value.clone(),
        class: Class::Durable,
    };
    for round in 0_usize.. {
        let value = Bytes::from(round.to_string().repeat(round % 2000 + 1));
        let ops = vec![op("/registry/left", &value), op("/registry/right", &value)];
        run(store.transact(Transaction { compares: Vec::new(), ops })).unwrap();
    }
}

#[test]
fn damage_is_found_and_nothing_changes() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file, bad) = (dir.path().join("data"), dir.path().join("backup"), dir.path().join("bad"));
    server(&data, 60);
    let made = back_up(&data, &file).unwrap();
    let whole = fs::read(&file).unwrap();
    let before = tree(&data);
    let refused = |content: &[u8], what: &str| {
        fs::write(&bad, content).unwrap();
        // other bits can stand for the same content: zeros that are copied from elsewhere among zeros
        if verify(&bad).is_ok_and(|manifest| manifest == made) && content.len() == whole.len() {
            return;
        }
        let error = restore(&bad, &data).expect_err(what);
        assert!(!matches!(error, Error::Io { .. }), "{what}: {error}");
    };
    for length in (0..whole.len()).step_by(whole.len() / 50) {
        refused(&whole[..length], &format!("cut off at {length}"));
    }
    let mut seed = 7_usize;
    for _ in 0..150 {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // the ten bytes of the gzip header say nothing that matters
        let (at, bit) = (10 + (seed >> 20) % (whole.len() - 10), (seed >> 11) % 8);
        let mut wrong = whole.clone();
        wrong[at] ^= 1 << bit;
        refused(&wrong, &format!("bit {bit} of byte {at} of {}", whole.len()));
    }
    refused(b"kind: List\n", "a manifest");
    assert!(before == tree(&data), "something changed");
    let error = restore(&dir.path().join("none"), &data).unwrap_err();
    assert!(matches!(error, Error::Io { .. }), "{error}");
}

/// An archive with members of one's own.
fn archive(path: &Path, members: &[(&str, &str)]) {
    let mut tar = tar::Builder::new(flate2::write::GzEncoder::new(fs::File::create(path).unwrap(), Default::default()));
    for (name, content) in members {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        // by hand: the library refuses to write what must be refused here
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap();
}

#[test]
fn what_is_no_backup_is_refused_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("backup"));
    fs::create_dir(&data).unwrap();
    let manifest = |format: u32, path: &str| {
        format!(
            r#"{{"format": {format}, "edge": "v9", "node": "a", "time": "2026-01-01T00:00:00Z", "revision": 1, "keys": 0,
                "files": {{"{path}": {{"size": 1, "mode": 420, "sha256": "00"}}}}}}"#
        )
    };
    for (members, reason) in [
        (vec![("readme", "x".to_owned())], "its first file is not backup.json"),
        (vec![("backup.json", manifest(2, "server/token"))], "use the edge that wrote it, v9"),
        (vec![("backup.json", "{".to_owned())], "backup.json"),
        (vec![("backup.json", manifest(1, "../../etc/passwd"))], "no file of a server"),
        (vec![("backup.json", manifest(1, "server/../../x"))], "no file of a server"),
        (vec![("backup.json", manifest(1, "/etc/passwd"))], "no file of a server"),
        (vec![("backup.json", manifest(1, "agent/tls/other"))], "no file of a server"),
        (vec![("backup.json", manifest(1, "server/token"))], "server/token and all that follows is missing"),
        (vec![("backup.json", manifest(1, "server/token")), ("server/token", "a".into())], "not as it was written"),
        (vec![("backup.json", manifest(1, "server/token")), ("../token", "a".into())], "does not belong in it"),
    ] {
        let members: Vec<(&str, &str)> = members.iter().map(|(name, content)| (*name, content.as_str())).collect();
        archive(&file, &members);
        let error = restore(&file, &data).unwrap_err().to_string();
        assert!(error.contains(reason), "{error:?} instead of {reason:?}");
        assert_eq!(fs::read_dir(&data).unwrap().count(), 0);
    }
    let error = back_up(&data, &file).unwrap_err();
    assert!(matches!(error, Error::NoStore { .. }), "{error}");
}
