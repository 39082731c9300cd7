#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use crate::suite::{Backend, committed, key, put, suite};
use crate::testing::{Server, tool};
use nix::sys::signal::Signal;
use std::path::PathBuf;

/// An etcd, which is killed and started again before the store is opened again.
struct Process {
    server: Server,
    used: bool,
}

impl Process {
    fn new() -> Self {
        Self { server: Server::start(), used: false }
    }
}

impl Backend for Process {
    type Store = Etcd;
    const SHORTEST: Duration = Duration::from_secs(1);
    const FORGETS: bool = false;

    async fn open(&mut self) -> Etcd {
        if std::mem::replace(&mut self.used, true) {
            self.server.restart();
        }
        Etcd::connect(&self.server.options()).await.unwrap()
    }
}

suite!(Process::new());

/// The same after objects were brought there, with revisions of their own.
mod with_kept_objects {
    use super::*;

    struct Kept(Process);

    impl Backend for Kept {
        type Store = Etcd;
        const SHORTEST: Duration = Process::SHORTEST;
        const FORGETS: bool = Process::FORGETS;

        async fn open(&mut self) -> Etcd {
            if !self.0.used {
                let import = Import::open(&self.0.server.options()).await.unwrap();
                import.bring(&[], 5_000_000, (key("/edge/x"), key("x"))).await.unwrap();
            }
            let store = self.0.open().await;
            assert!(store.revision() > 5_000_000);
            store
        }
    }

    suite!(Kept(Process::new()));
}

fn object(k: &str, value: &str, create_revision: Revision, mod_revision: Revision) -> KeyValue {
    KeyValue { key: key(k), value: key(value), create_revision, mod_revision }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_brought_with_their_revisions() {
    let server = Server::start();
    let items: Vec<KeyValue> =
        (0..1000).map(|i| object(&format!("/registry/x/{i:04}"), &format!("{{{i}}}"), i + 1, 10_000 + i)).collect();
    let last = || (key("/edge/x"), key("x"));
    // one that breaks off leaves no cluster, and can be done again
    let plain = Etcd::connect_without_compactor(&server.options()).await.unwrap();
    committed(&plain, put("/edge/migration", "1", Class::Durable, 0)).await;
    committed(&plain, put("/registry/x/left", "over", Class::Durable, 0)).await;
    assert!(plain.is_unfinished().await.unwrap());
    Import::open(&server.options()).await.unwrap().bring(&items, 20_000, last()).await.unwrap();
    let again = Import::open(&server.options()).await.map(drop).unwrap_err();
    assert!(matches!(again, Error::Etcd(EtcdError::NotEmpty)), "{again}");
    let store = Etcd::connect_without_compactor(&server.options()).await.unwrap();
    assert!(!store.is_unfinished().await.unwrap() && store.revision() > 20_000);
    let request = ListRequest { prefix: "/registry/".into(), ..ListRequest::default() };
    let list = store.list(request).await.unwrap();
    assert_eq!(crate::digest(&list.items), crate::digest(&items));
    // they change as any others, on condition of the revision that they had
    let k = "/registry/x/0007";
    for wrong in [0, 7, 10_006, 10_008, 20_000, store.revision()] {
        let outcome = store.transact(put(k, "new", Class::Durable, wrong)).await.unwrap();
        let Outcome::Failed { current } = outcome else { panic!("{wrong} held") };
        assert_eq!(current[0].as_ref(), Some(&items[7]), "{wrong}");
    }
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    let changed = committed(&store, put(k, "new", Class::Durable, 10_007)).await;
    assert!(changed > 20_000);
    assert_eq!(store.get(k.as_bytes()).await.unwrap().unwrap().mod_revision, changed);
    assert_eq!(watcher.next().await.unwrap().revision, changed);
    assert!(matches!(store.transact(put(k, "x", Class::Durable, 10_007)).await.unwrap(), Outcome::Failed { .. }));
    committed(&store, Transaction::delete(key("/registry/x/0008"), 10_008)).await;
    // and of the time before nothing is remembered
    for revision in [1, 10_007, 20_000] {
        assert!(matches!(store.watch(b"", revision).await, Err(Error::Compacted { .. })), "{revision}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_after_etcd_was_killed() {
    let mut server = Server::start();
    let store = Etcd::connect(&server.options()).await.unwrap();
    let mut watcher = store.watch(b"", store.revision()).await.unwrap();
    let mut revisions = Vec::new();
    for round in 0..3 {
        for i in 0..5 {
            revisions.push(committed(&store, put(&format!("/{round}-{i}"), "x", Class::Durable, 0)).await);
        }
        server.restart();
        // reads wait until it is there again
        assert_eq!(store.newest().await.unwrap(), *revisions.last().unwrap());
    }
    for revision in revisions {
        assert_eq!(watcher.next().await.unwrap().revision, revision);
    }
    // history that goes while nobody watches is told about
    let last = store.revision();
    server.kill();
    let other = {
        assert!(server.launch());
        Etcd::connect(&server.options()).await.unwrap()
    };
    let next = committed(&other, put("/next", "x", Class::Durable, 0)).await;
    assert_eq!((next, watcher.next().await.unwrap().revision), (last + 1, last + 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_knows_is_never_called_a_success() {
    let server = Server::start();
    let store = Arc::new(Etcd::connect(&server.options()).await.unwrap());
    committed(&*store, put("/before", "x", Class::Durable, 0)).await;
    server.signal(Signal::SIGSTOP);
    let write = tokio::spawn({
        let store = store.clone();
        async move { store.transact(put("/unknown", "x", Class::Durable, 0)).await }
    });
    let read = store.get(b"/before").await.unwrap_err();
    assert!(matches!(read, Error::Etcd(EtcdError::Unreachable { .. })), "{read}");
    let written = write.await.unwrap().unwrap_err();
    assert!(matches!(written, Error::Etcd(EtcdError::Unknown { .. })), "{written}");
    server.signal(Signal::SIGCONT);
    assert_eq!(store.get(b"/before").await.unwrap().unwrap().value, "x");
    // now it can be looked up what became of it; it is whole, or nothing
    committed(&*store, put("/after", "x", Class::Durable, 0)).await;
    assert!(store.get(b"/unknown").await.unwrap().is_none_or(|kv| kv.value == "x"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_answers_or_something_else_does() {
    let began = Instant::now();
    let of = async |endpoints: &str| {
        let options = EtcdOptions { endpoints: endpoints.to_owned(), ..EtcdOptions::default() };
        Etcd::connect(&options).await.map(drop).unwrap_err().to_string()
    };
    let nobody = of("http://127.0.0.1:1,http://127.0.0.1:2").await;
    assert!(nobody.contains("no etcd answers at http://127.0.0.1:1, http://127.0.0.1:2"), "{nobody}");
    assert!(nobody.contains("refused") && nobody.contains("check that etcd runs"), "{nobody}");
    assert!(began.elapsed() < Duration::from_secs(15));
    // TLS where there is none, and the other way round
    let server = Server::start();
    let tls = of(&server.url().replace("http", "https")).await;
    assert!(tls.contains("no etcd answers"), "{tls}");
    for (version, words) in [("3.3.25", "is version 3.3.25, version 3.4 or later is needed"), ("x", "is no etcd")] {
        let old = of(&fake(version).await).await;
        assert!(old.contains(words), "{old}");
    }
}

/// Something that says that it is an etcd of a version; gives its address.
async fn fake(version: &'static str) -> String {
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = hyper::service::service_fn(move |_| async move {
                let answer = wire::Message::default().bytes(2, version.as_bytes()).into_frame();
                let mut code = http::HeaderMap::new();
                code.insert("grpc-status", "0".parse().unwrap());
                let frames = [Frame::data(answer), Frame::trailers(code)].map(Ok::<_, std::convert::Infallible>);
                Ok::<_, std::convert::Infallible>(http::Response::new(StreamBody::new(tokio_stream::iter(frames))))
            });
            let http2 = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
            tokio::spawn(http2.serve_connection(hyper_util::rt::TokioIo::new(stream), serve));
        }
    });
    url
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_and_its_clients_know_each_other_by_certificates() {
    let make = |dir: &Path| {
        authority(dir, "ca", &["server", "client"]);
        authority(dir, "other", &["stranger"]);
        let file = |flag: &str, name: &str| format!("--{flag}={}", dir.join(name).display());
        vec![
            "--client-cert-auth".to_owned(),
            file("trusted-ca-file", "ca.crt"),
            file("cert-file", "server.crt"),
            file("key-file", "server.key"),
        ]
    };
    let server = Server::start_with("https", make);
    let file = |name: &str| -> Option<PathBuf> { Some(server.dir.path().join(name)) };
    let with = |ca: &str, who: &str| EtcdOptions {
        endpoints: server.url(),
        ca_file: file(&format!("{ca}.crt")),
        cert_file: file(&format!("{who}.crt")),
        key_file: file(&format!("{who}.key")),
    };
    let store = Etcd::connect(&with("ca", "client")).await.unwrap();
    committed(&store, put("/a", "1", Class::Durable, 0)).await;
    for options in [
        with("other", "client"),
        with("ca", "stranger"),
        EtcdOptions { cert_file: None, key_file: None, ..with("ca", "client") },
        EtcdOptions { ca_file: None, ..with("ca", "client") },
    ] {
        let error = Etcd::connect(&options).await.map(drop).unwrap_err();
        assert!(matches!(error, Error::Etcd(EtcdError::Unreachable { .. })), "{error}");
    }
    let mixed = EtcdOptions { key_file: file("stranger.key"), ..with("ca", "client") };
    let error = Etcd::connect(&mixed).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("client.crt") && error.contains("does not go with"), "{error}");
}

/// Makes an authority and certificates that it has signed, for 127.0.0.1 and for clients.
fn authority(dir: &Path, name: &str, signed: &[&str]) {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
    let write = |name: String, text: String| std::fs::write(dir.join(name), text).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    write(format!("{name}.crt"), params.self_signed(&key).unwrap().pem());
    let issuer = Issuer::new(params, key);
    for name in signed {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, *name);
        write(format!("{name}.crt"), params.signed_by(&key, &issuer).unwrap().pem());
        write(format!("{name}.key"), key.serialize_pem());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_agree_on_who_compacts() {
    let server = Server::start();
    let one = Etcd::connect_without_compactor(&server.options()).await.unwrap();
    let two = Etcd::connect_without_compactor(&server.options()).await.unwrap();
    let write = async |k: &str| committed(&one, put(k, "x", Class::Durable, 0)).await;
    let first = write("/1").await;
    let round = async |store: &Etcd, last| compactor::round_for_test(&store.inner, last).await.unwrap();
    // the first round of each only looks
    let a = round(&one, (0, 0)).await;
    let b = round(&two, (0, 0)).await;
    assert_eq!((a.0, b.0), (first + 1, first + 1));
    let second = write("/2").await;
    let a = round(&one, a).await;
    assert_eq!(one.stats().await.unwrap().compacted, first + 1);
    let b = round(&two, b).await;
    assert_eq!((b.0, two.stats().await.unwrap().compacted), (a.0, first + 1));
    // the one goes away, the other does it
    write("/3").await;
    let b = round(&two, b).await;
    assert_eq!(two.stats().await.unwrap().compacted, second + 1);
    // nothing happens while nothing is written
    assert_eq!(round(&two, b).await, b);
    assert_eq!(two.newest().await.unwrap(), b.1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_too_large_is_refused_and_a_full_etcd_says_so() {
    let server = Server::start_with("http", |_| vec!["--quota-backend-bytes=2000000".to_owned()]);
    let store = Etcd::connect(&server.options()).await.unwrap();
    let put = |i: usize, bytes: usize| {
        store.transact(Transaction::put(format!("/{i}").into(), vec![7; bytes].into(), Class::Durable, 0))
    };
    let error = put(0, 2 << 20).await.unwrap_err();
    assert!(matches!(error, Error::Etcd(EtcdError::TooLarge)), "{error}");
    let mut result = Ok(Outcome::Committed(0));
    for i in 1..100 {
        result = put(i, 100 << 10).await;
        if result.is_err() {
            break;
        }
    }
    let error = result.unwrap_err();
    assert!(matches!(error, Error::Etcd(EtcdError::Full)), "{error}");
    // reading and deleting go on
    assert_eq!(store.get(b"/1").await.unwrap().unwrap().value.len(), 100 << 10);
    committed(&store, Transaction { compares: Vec::new(), ops: vec![Op::Delete { key: key("/1") }] }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_gone_is_replaced() {
    let server = Server::start();
    let store = Etcd::connect(&server.options()).await.unwrap();
    let class = Class::Volatile { ttl: Some(Duration::from_secs(60)) };
    store.inner.leases.lock().await.put(Duration::from_secs(60), 4711, 3600, Instant::now());
    let revision = committed(&store, put("/a", "x", class, 0)).await;
    assert_eq!(store.get(b"/a").await.unwrap().unwrap().mod_revision, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_etcds_own() {
    let server = Server::start();
    let store = Etcd::connect(&server.options()).await.unwrap();
    committed(&store, put("/a", "1", Class::Durable, 0)).await;
    let file = server.dir.path().join("snapshot");
    store.snapshot(&file).await.unwrap();
    let mut status = std::process::Command::new(tool("etcdctl"));
    let output = status.args(["snapshot", "status"]).arg(&file).env("ETCDCTL_API", "3").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(matches!(store.snapshot(&file).await, Err(Error::Io { .. })), "it was overwritten");
}
