//! Full disks, data of another version, and clients that mean no good, against a real server.

use crate::harness::images::{busybox_archive, echo_archive};
use crate::harness::{Cluster, Kubectl, eventually, http_get};
use nix::sys::signal::Signal;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {terminationGracePeriodSeconds: 0, containers: [{name: web, image: "echo:v1"}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 30080}]}
"#;

fn web(cluster: &Cluster) -> SocketAddr {
    SocketAddr::new(cluster.ip.into(), 30080)
}

fn start_web(cluster: &Cluster) {
    cluster.apply(WEB);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
    eventually("the service answers", || http_get(web(cluster), "/"));
}

/// Mounts a small file system as the data directory, with the logs of pods on it. What is mounted below the cluster's directory goes with it.
fn small_data_dir(cluster: &Cluster, megabytes: u32) {
    use nix::mount::{MsFlags, mount};
    let options = format!("size={megabytes}m");
    mount(Some("tmpfs"), &cluster.data_dir(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    let images = cluster.data_dir().join("agent/images");
    fs::create_dir_all(&images).unwrap();
    fs::copy(busybox_archive(), images.join("busybox.tar")).unwrap();
    fs::copy(echo_archive(), images.join("echo.tar")).unwrap();
    let (there, logs) = (cluster.data_dir().join("logs"), cluster.dir.join("logs"));
    fs::create_dir(&there).unwrap();
    fs::create_dir_all(&logs).unwrap();
    mount(Some(&there), &logs, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn fill(file: &Path) {
    let mut file = File::options().create(true).append(true).open(file).unwrap();
    for size in [1 << 20, 1 << 12, 1] {
        let block = vec![7u8; size];
        while file.write_all(&block).is_ok() {}
    }
}

fn lease_time(cluster: &Cluster) -> String {
    cluster.kubectl(&["get", "lease", "-n", "kube-node-lease", "node-1", "-o", "jsonpath={.spec.renewTime}"])
}

/// What `kubectl create` says when it fails; `None` when it does not.
fn create(cluster: &Cluster, name: &str, file: &Path) -> Option<String> {
    let from = format!("--from-file={}", file.display());
    let out = cluster.try_kubectl(Kubectl::Newest, &["create", "cm", name, &from]);
    (!out.status.success()).then(|| String::from_utf8_lossy(&out.stderr).into_owned())
}

#[test]
fn a_full_disk_is_told_and_the_node_goes_on() {
    let mut cluster = Cluster::prepare(&[]);
    small_data_dir(&cluster, 96);
    cluster.launch();
    start_web(&cluster);
    let pod = cluster.kubectl(&["get", "pods", "-l", "app=web", "-o", "name"]).trim().to_owned();
    let big = cluster.dir.join("big");
    fs::write(&big, "x".repeat(500_000)).unwrap();
    assert_eq!(create(&cluster, "before", &big), None);

    let filler = cluster.data_dir().join("filler");
    fill(&filler);
    let mut made = 0;
    let refusal = loop {
        // what is free in the store's file is used up
        match create(&cluster, &format!("more-{made}"), &big) {
            None => made += 1,
            Some(refusal) => break refusal,
        }
        assert!(made < 20, "the disk is not full");
    };
    let says = "Internal error occurred: the disk is full: no space left on the device of ";
    assert!(refusal.contains(says) && refusal.contains("server/db/data.mdb: free some and try again"), "{refusal}");
    fill(&filler);

    // reads, the node's heartbeat, the pod, its service, its logs and deletions go on
    cluster.kubectl(&["get", "nodes", "-o", "wide"]);
    let heartbeat = lease_time(&cluster);
    eventually("the node's lease is renewed", || match lease_time(&cluster) {
        same if same == heartbeat => Err(same),
        _ => Ok(()),
    });
    cluster.wait_for("node/node-1", "condition=Ready");
    // more than a page of its log, so that some of it has no room
    for i in 0..300 {
        http_get(web(&cluster), &format!("/full/{i}")).unwrap();
    }
    http_get(web(&cluster), "/").unwrap();
    assert!(cluster.kubectl(&["logs", &pod]).contains("200 OK /"));
    cluster.kubectl(&["delete", "cm", "before"]);
    let restarts = "jsonpath={.status.containerStatuses[0].restartCount}";
    assert_eq!(cluster.kubectl(&["get", &pod, "-o", restarts]), "0");

    // a restart of the server on the full disk finds everything
    let status = cluster.stop(Signal::SIGTERM);
    assert!(status.success(), "{status}");
    fill(&filler);
    cluster.launch();
    cluster.wait_for("node/node-1", "condition=Ready");
    http_get(web(&cluster), "/").unwrap();
    assert_eq!(cluster.kubectl(&["get", &pod, "-o", restarts]), "0");
    let maps = cluster.kubectl(&["get", "cm", "-o", "name"]);
    assert!(!maps.contains("before\n"), "{maps}");
    for i in 0..made {
        assert!(maps.contains(&format!("more-{i}\n")), "{maps}");
    }

    // space again: everything works, and what could not be done is made up for
    fill(&filler);
    assert!(create(&cluster, "again", &big).is_some());
    fs::remove_file(&filler).unwrap();
    assert_eq!(create(&cluster, "again", &big), None);
    let _ = http_get(web(&cluster), "/space/again");
    eventually("the log goes on", || {
        let log = cluster.kubectl(&["logs", &pod]);
        if log.contains("200 OK /space/again") { Ok(()) } else { Err(log) }
    });
    let _ = http_get(web(&cluster), "/exit/3");
    eventually("the container restarts", || match cluster.kubectl(&["get", &pod, "-o", restarts]).as_str() {
        "1" => Ok(()),
        other => Err(other.to_owned()),
    });
    cluster.kubectl(&["scale", "deploy/web", "--replicas=2"]);
    cluster.kubectl(&["rollout", "status", "deploy/web", "--timeout=60s"]);
}

/// All files below a directory: content and when it was changed.
fn everything(dir: &Path) -> BTreeMap<PathBuf, (Vec<u8>, SystemTime)> {
    let mut out = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let metadata = entry.metadata().unwrap();
        if metadata.is_dir() {
            out.extend(everything(&entry.path()));
        } else if metadata.is_file() {
            out.insert(entry.path(), (fs::read(entry.path()).unwrap(), metadata.modified().unwrap()));
        }
    }
    out
}

/// A fact as the store writes it: a number and the checksum of its name and itself.
fn fact(name: &str, number: u64) -> Vec<u8> {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(name.as_bytes());
    hasher.update(&number.to_le_bytes());
    [&number.to_le_bytes()[..], &hasher.finalize().to_le_bytes()].concat()
}

#[test]
fn data_of_a_newer_version_and_damaged_data_are_refused_and_not_touched() {
    let mut cluster = Cluster::start();
    cluster.stop(Signal::SIGTERM);
    let server = cluster.data_dir().join("server");
    let file = server.join("db/data.mdb");
    let whole = fs::read(&file).unwrap();
    let (old, new) = (fact("format", 1), fact("format", 99));
    let mut newer = whole.clone();
    for at in 0..newer.len() - old.len() {
        if newer[at..].starts_with(&old) {
            newer[at..at + new.len()].copy_from_slice(&new);
        }
    }
    assert!(newer != whole);
    let cut = whole[..whole.len() / 2].to_vec();
    for (content, says) in [
        (&newer, &["store format 99", "up to 1", "use the version of the program that wrote it"][..]),
        (&cut, &["is damaged", "cut off", "restore it from a snapshot"]),
        (&Vec::new(), &["is damaged", "restore it from a snapshot"]),
    ] {
        fs::write(&file, content).unwrap();
        let before = everything(&server);
        let out = cluster.server_command().output().unwrap();
        assert_eq!(out.status.code(), Some(1));
        let text = String::from_utf8_lossy(&out.stderr).into_owned();
        let reason = text.lines().last().unwrap_or_default();
        assert!(reason.starts_with("edge: opening the store: ") && reason.contains("db/data.mdb"), "{text}");
        for say in says {
            assert!(reason.contains(say), "{say}: {text}");
        }
        let after = everything(&server);
        let changed: Vec<_> = after.iter().filter(|(path, file)| before.get(*path) != Some(file)).collect();
        assert!(
            changed.is_empty() && before.len() == after.len(),
            "{:?}",
            changed.iter().map(|(p, _)| p).collect::<Vec<_>>()
        );
    }
    fs::write(&file, &whole).unwrap();
    cluster.launch();
    cluster.wait_for("node/node-1", "condition=Ready");
}

/// Believes any server: the tests attack it, they do not trust it.
#[derive(Debug)]
struct AnyServer;

impl rustls::client::danger::ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

type Tls = rustls::StreamOwned<rustls::ClientConnection, TcpStream>;

/// Somebody without credentials who knows how to shake hands.
struct Attacker {
    api: SocketAddr,
    config: Arc<rustls::ClientConfig>,
}

impl Attacker {
    fn new(cluster: &Cluster) -> Self {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyServer))
            .with_no_client_auth();
        Self { api: SocketAddr::new(cluster.ip.into(), 6443), config: Arc::new(config) }
    }

    fn tcp(to: SocketAddr, bytes: &[u8]) -> TcpStream {
        let mut socket = TcpStream::connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // it may be closed before everything is written
        let _ = socket.write_all(bytes);
        socket
    }

    fn tls(&self, bytes: &[u8]) -> Tls {
        let client = rustls::ClientConnection::new(self.config.clone(), "edge".try_into().unwrap()).unwrap();
        let mut tls = rustls::StreamOwned::new(client, Self::tcp(self.api, b""));
        tls.conn.complete_io(&mut tls.sock).unwrap();
        let _ = tls.write_all(bytes);
        tls
    }
}

/// Resident memory in bytes of the cluster's server process.
fn resident(cluster: &Cluster) -> u64 {
    let mark = format!("EDGE_E2E={}", cluster.dir.file_name().unwrap().to_string_lossy());
    let servers = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let environment = fs::read(entry.path().join("environ")).ok()?;
        environment.split(|b| *b == 0).any(|v| v == mark.as_bytes()).then_some(())?;
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let line = status.lines().find(|l| l.starts_with("VmRSS:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    // the zygote and the monitors are far smaller
    servers.max().expect("the server runs") * 1024
}

struct Noise(u64);

impl Noise {
    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let byte = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 56) as u8
        };
        std::iter::repeat_with(byte).take(length).collect()
    }
}

#[test]
fn nonsense_silence_and_slowness_disturb_nobody() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, most, most).unwrap();
    let cluster = Cluster::start();
    start_web(&cluster);
    let attacker = Attacker::new(&cluster);
    let mut watch = cluster.spawn_kubectl(Kubectl::Newest, &["get", "cm", "-w", "-o", "name"]);
    watch.read_until("configmap/kube-root-ca.crt\n");
    let before = resident(&cluster);

    // noise: raw, as TLS, inside TLS, on the port of a service, and for the DNS
    let mut noise = Noise(1);
    for i in 0..200 {
        let bytes = noise.bytes([1, 7, 100, 3000, 70_000][i % 5]);
        drop(Attacker::tcp(attacker.api, &bytes));
        drop(Attacker::tcp(attacker.api, &[&[22, 3, 1, 0x3f, 0xff][..], &bytes].concat()));
        drop(attacker.tls(&bytes));
        drop(attacker.tls(&[b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &bytes[..]].concat()));
        drop(Attacker::tcp(web(&cluster), &bytes));
    }
    cluster.inside(|| {
        let dns: SocketAddr = "10.43.0.10:53".parse().unwrap();
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut noise = Noise(2);
        for i in 0..500 {
            udp.send_to(&noise.bytes(1 + i * 2), dns).unwrap();
            if i % 10 == 0 {
                drop(Attacker::tcp(dns, &noise.bytes(1 + i * 20)));
            }
        }
    });

    // heads without an end
    for headers in [format!("X-Big: {}", "x".repeat(4 << 20)), "X: y\r\n".repeat(300_000)] {
        let mut tls = attacker.tls(format!("GET /version HTTP/1.1\r\nHost: x\r\n{headers}").as_bytes());
        let mut text = Vec::new();
        let _ = tls.read_to_end(&mut text);
        let text = String::from_utf8_lossy(&text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 431"), "{text}");
    }

    // more connections than there are places, all of them slow or silent, and kept
    let hello = [22u8, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3];
    let (mut sockets, mut sessions) = (Vec::new(), Vec::new());
    for i in 0..1200 {
        sockets.push(Attacker::tcp(attacker.api, if i % 2 == 0 { &hello } else { b"" }));
        sessions.push(attacker.tls(if i % 2 == 0 { b"GET /version HTTP/1.1\r\nX-Slow: " } else { b"" }));
        if i % 300 == 0 {
            cluster.kubectl(&["get", "nodes"]);
        }
    }
    cluster.kubectl(&["create", "cm", "meanwhile"]);
    watch.read_until("configmap/meanwhile\n");
    http_get(web(&cluster), "/").unwrap();
    let during = resident(&cluster);
    assert!(during < before + (160 << 20), "{} MiB, {} MiB before", during >> 20, before >> 20);
    drop((sockets, sessions));

    cluster.wait_for("node/node-1", "condition=Ready");
    let exec = ["exec", "deploy/web", "--", "wget", "-q", "-O", "-", "http://web.default.svc.cluster.local/"];
    assert!(cluster.kubectl(&exec).contains("version=v1"));
    assert!(!cluster.log().contains("panicked"), "something panicked");
    eprintln!("resident: {} MiB, then {} MiB, now {} MiB", before >> 20, during >> 20, resident(&cluster) >> 20);
}
