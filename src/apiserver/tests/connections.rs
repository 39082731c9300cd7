//! Clients that do not speak, or speak nonsense, on a real TLS port.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::Cluster;
use edge_pki::{ClientName, ClusterPki, ServerNames};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// As many as the cluster of these tests allows.
const LIMIT: usize = 64;

struct Listening {
    cluster: Cluster,
    address: SocketAddr,
    admin: TlsConnector,
    nobody: TlsConnector,
    serving: JoinHandle<io::Result<()>>,
    _dir: tempfile::TempDir,
}

impl Listening {
    async fn start() -> Self {
        let cluster = Cluster::start().await;
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::load_or_create(dir.path()).unwrap();
        let names = ServerNames::new("cluster.local", &[Ipv4Addr::LOCALHOST.into()], &[]);
        let config = edge_pki::server_config(&pki.serving(&names).unwrap(), &pki.client_ca).unwrap();
        let admin = pki.client("admin", &ClientName::admin()).unwrap();
        let connector = |identity| {
            let mut config = edge_pki::client_config(&pki.server_ca, identity).unwrap();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            TlsConnector::from(Arc::new(config))
        };
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let serving = tokio::spawn({
            let api = cluster.api.clone();
            async move { api.serve(socket, Arc::new(config)).await }
        });
        Self { cluster, address, admin: connector(Some(&admin)), nobody: connector(None), serving, _dir: dir }
    }

    async fn raw(&self, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        let _ = socket.write_all(bytes).await;
        socket
    }

    async fn tls(&self, who: &TlsConnector, bytes: &[u8]) -> io::Result<TlsStream<TcpStream>> {
        let socket = TcpStream::connect(self.address).await?;
        let mut tls = who.connect("127.0.0.1".try_into().unwrap(), socket).await?;
        tls.write_all(bytes).await?;
        Ok(tls)
    }

    /// A whole request and answer of the administrator.
    async fn answers(&self) {
        let mut tls = self.tls(&self.admin, &get("/api/v1/namespaces/default", "Connection: close\r\n")).await.unwrap();
        let mut text = String::new();
        let _ = tls.read_to_string(&mut text).await;
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
}

fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n").into_bytes()
}

/// Whether the other end has closed a connection.
async fn is_closed(stream: &mut (impl AsyncReadExt + Unpin)) -> bool {
    let mut buffer = [0u8; 4096];
    loop {
        match tokio::time::timeout(Duration::from_millis(200), stream.read(&mut buffer)).await {
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(_)) => {}
            Err(_) => return false,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_silent_lose_their_places_and_who_works_does_not() {
    let s = Listening::start().await;
    let mut watch = s.tls(&s.admin, &get("/api/v1/configmaps?watch=1", "")).await.unwrap();
    let mut byte = [0u8; 12];
    watch.read_exact(&mut byte).await.unwrap();
    assert_eq!(&byte, b"HTTP/1.1 200");

    let hello = [22u8, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let (mut silent, mut halves, mut mute, mut slow) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..LIMIT {
        silent.push(s.raw(b"").await);
        halves.push(s.raw(&hello).await);
        // these have gone through the handshake, as anybody can
        mute.push(s.tls(&s.nobody, b"").await.unwrap());
        slow.push(s.tls(&s.nobody, b"GET /version HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap());
    }
    s.answers().await;
    // the oldest have gone, the youngest may still try
    for i in 0..LIMIT - 20 {
        assert!(is_closed(&mut silent[i]).await && is_closed(&mut halves[i]).await, "{i}");
        assert!(is_closed(&mut mute[i]).await && is_closed(&mut slow[i]).await, "{i}");
    }
    assert!(!is_closed(slow.last_mut().unwrap()).await);
    // the watch is where it was
    let map = serde_json::json!({"metadata": {"name": "seen"}});
    s.cluster.create("/api/v1/namespaces/default/configmaps", &map).await;
    let mut text = String::new();
    while !text.contains("\"seen\"") {
        let mut buffer = [0u8; 4096];
        let n = tokio::time::timeout(Duration::from_secs(20), watch.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(n, 0, "the watch was closed");
        text.push_str(&String::from_utf8_lossy(&buffer[..n]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_costs_its_own_connection() {
    let s = Listening::start().await;
    let mut seed = 1u64;
    for length in [1, 2, 5, 100, 5000, 100_000] {
        for kind in 0..3 {
            let noise = (0..length).map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            });
            // outside of TLS, as a record of TLS, and inside of it
            let bytes: Vec<u8> = match kind {
                0 | 2 => noise.collect(),
                _ => [22, 3, 1, 0x3f, 0xff].into_iter().chain(noise).collect(),
            };
            if kind < 2 {
                drop(s.raw(&bytes).await);
            } else if let Ok(mut tls) = s.tls(&s.nobody, &bytes).await {
                let mut text = Vec::new();
                let _ = tokio::time::timeout(Duration::from_millis(100), tls.read_to_end(&mut text)).await;
            }
        }
    }
    // plain HTTP on the TLS port, HTTP/2 that breaks off, and framing that contradicts itself
    drop(s.raw(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await);
    drop(s.tls(&s.nobody, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0").await);
    let twice = b"POST /version HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc";
    let mut tls = s.tls(&s.nobody, twice).await.unwrap();
    let mut text = String::new();
    let _ = tls.read_to_string(&mut text).await;
    assert!(text.starts_with("HTTP/1.1 400"), "{text}");
    s.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_end_at_a_limit() {
    let s = Listening::start().await;
    let one = format!("X-Big: {}\r\n", "x".repeat(2 << 20));
    let many: String = (0..20_000).map(|i| format!("X-{i}: y\r\n")).collect();
    for headers in [one, many] {
        let mut tls = s.tls(&s.nobody, b"").await.unwrap();
        // it may be cut off in the middle
        let _ = tls.write_all(&get("/version", &headers)).await;
        let mut text = Vec::new();
        let _ = tokio::time::timeout(Duration::from_secs(20), tls.read_to_end(&mut text)).await.expect("closed");
        let text = String::from_utf8_lossy(&text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }
    s.answers().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_waits_for_nobody_who_says_nothing() {
    let s = Listening::start().await;
    let _silent = s.raw(b"").await;
    let _mute = s.tls(&s.nobody, b"").await.unwrap();
    let _slow = s.tls(&s.nobody, b"GET /version HTTP/1.1\r\n").await.unwrap();
    let mut kept = s.tls(&s.admin, &get("/version", "")).await.unwrap();
    assert!(!is_closed(&mut kept).await);
    let begin = std::time::Instant::now();
    drop(s.cluster);
    tokio::time::timeout(Duration::from_secs(60), s.serving).await.unwrap().unwrap().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "waited for somebody: {:?}", begin.elapsed());
    assert!(is_closed(&mut kept).await);
}
