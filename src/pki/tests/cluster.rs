//! The whole room on a real directory, and over real TLS handshakes in memory.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_pki::{
    ClientName, ClusterPki, Identity, ServerNames, SharedIdentity, Trust, client_config, outgoing_config,
    server_config, user_of_certificate, write_kubeconfig,
};
use rustls::{ClientConnection, ServerConnection};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

fn names() -> ServerNames {
    ServerNames::new("cluster.local", &["10.43.0.1".parse().unwrap()], &["edge.example".into(), "192.0.2.7".into()])
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

/// Drives both ends of a handshake until it is done or one of them refuses.
fn handshake(client: &mut ClientConnection, server: &mut ServerConnection) -> Result<(), rustls::Error> {
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            server.read_tls(&mut read).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut read = wire.as_slice();
        while !read.is_empty() {
            client.read_tls(&mut read).unwrap();
            client.process_new_packets()?;
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    Ok(())
}

fn connect(
    pki: &ClusterPki,
    serving: &Identity,
    client: Option<&Identity>,
    to: &str,
) -> Result<ServerConnection, rustls::Error> {
    let server = server_config(serving, &pki.client_ca).unwrap();
    let client = client_config(&pki.server_ca, client).unwrap();
    let mut client = ClientConnection::new(Arc::new(client), to.to_owned().try_into().unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    handshake(&mut client, &mut server)?;
    assert_eq!(client.alpn_protocol(), Some(b"h2".as_slice()));
    Ok(server)
}

#[test]
fn handshakes() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ClusterPki::load_or_create(&dir.path().join("tls")).unwrap();
    let serving = pki.serving(&names()).unwrap();
    for to in [
        "kubernetes",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        "::1",
        "10.43.0.1",
        "edge.example",
        "192.0.2.7",
    ] {
        let server = connect(&pki, &serving, None, to).unwrap();
        assert!(server.peer_certificates().is_none());
    }
    assert!(connect(&pki, &serving, None, "elsewhere.example").is_err());

    let admin = pki.client("admin", &ClientName::admin()).unwrap();
    let server = connect(&pki, &serving, Some(&admin), "localhost").unwrap();
    let user = user_of_certificate(&server.peer_certificates().unwrap()[0]).unwrap();
    assert_eq!(user.username, "system:admin");
    assert_eq!(user.groups, ["system:masters", "system:authenticated"]);
    assert!(user.extra["authentication.kubernetes.io/credential-id"][0].starts_with("X509SHA256="));

    // Signed by another cluster's authority.
    let other = ClusterPki::load_or_create(&dir.path().join("other")).unwrap();
    let stranger = other.client("admin", &ClientName::admin()).unwrap();
    assert!(connect(&pki, &serving, Some(&stranger), "localhost").is_err());
    // A server certificate is no client certificate.
    assert!(connect(&pki, &serving, Some(&serving), "localhost").is_err());
}

#[test]
fn what_extension_servers_are_shown_is_good_for_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ClusterPki::load_or_create(&dir.path().join("tls")).unwrap();
    let (serving, front_proxy) = (pki.serving(&names()).unwrap(), pki.front_proxy().unwrap());
    assert_eq!(user_of_certificate(front_proxy.certificate()).unwrap().username, ClusterPki::FRONT_PROXY);
    assert!(connect(&pki, &serving, Some(&front_proxy), "localhost").is_err());
    assert_eq!(pki.front_proxy().unwrap().certificate(), front_proxy.certificate(), "it stays");

    let meet = |trust: Trust, identity: &Identity, to: &str| {
        let client = outgoing_config(trust, Some(&SharedIdentity::new(identity).unwrap())).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), to.to_owned().try_into().unwrap()).unwrap();
        let server = server_config(&serving, &pki.request_header_ca).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        handshake(&mut client, &mut server).is_ok() && client.alpn_protocol() == Some(b"http/1.1")
    };
    let known = || Trust::in_pem(pki.server_ca.pem().as_bytes()).unwrap();
    assert!(meet(known(), &front_proxy, "localhost"));
    assert!(!meet(known(), &front_proxy, "elsewhere.example"), "whoever it is");
    assert!(meet(Trust::Nobody, &front_proxy, "elsewhere.example"));
    let stranger = ClusterPki::load_or_create(&dir.path().join("other")).unwrap();
    assert!(!meet(Trust::in_pem(stranger.server_ca.pem().as_bytes()).unwrap(), &front_proxy, "localhost"));
    let admin = pki.client("admin", &ClientName::admin()).unwrap();
    assert!(!meet(known(), &admin, "localhost"), "no client passes for the front proxy");
    assert!(Trust::in_pem(b"no certificate").is_err());
}

#[test]
fn files_are_private_and_stay() {
    let dir = tempfile::tempdir().unwrap();
    let tls = dir.path().join("server/tls");
    let first = ClusterPki::load_or_create(&tls).unwrap();
    let node = first.client("kubelet", &ClientName::node("n1")).unwrap();
    first.serving(&names()).unwrap();
    assert_eq!(mode(&tls), 0o700);
    for entry in std::fs::read_dir(&tls).unwrap() {
        let path = entry.unwrap().path();
        let public = path.extension().is_some_and(|e| e == "crt");
        assert_eq!(mode(&path), if public { 0o644 } else { 0o600 }, "{}", path.display());
    }
    let second = ClusterPki::load_or_create(&tls).unwrap();
    assert_eq!(first.server_ca.pem(), second.server_ca.pem());
    assert_eq!(first.service_account.id(), second.service_account.id());
    assert_eq!(second.client("kubelet", &ClientName::node("n1")).unwrap().certificate(), node.certificate());
}

#[test]
fn damaged_files_are_errors_that_name_them() {
    let dir = tempfile::tempdir().unwrap();
    drop(ClusterPki::load_or_create(dir.path()).unwrap());
    for file in ["server-ca.crt", "server-ca.key", "client-ca.key", "service.key"] {
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).unwrap();
        for content in [&whole[..whole.len() / 2], b"", b"\xff\xfe"] {
            std::fs::write(&path, content).unwrap();
            let error = ClusterPki::load_or_create(dir.path()).unwrap_err();
            assert!(error.to_string().contains(file), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
        std::fs::write(&path, whole).unwrap();
    }
    let key = dir.path().join("server-ca.key");
    std::fs::copy(dir.path().join("client-ca.key"), &key).unwrap();
    assert!(ClusterPki::load_or_create(dir.path()).unwrap_err().to_string().contains("does not belong"));
    std::fs::remove_file(&key).unwrap();
    assert!(ClusterPki::load_or_create(dir.path()).unwrap_err().to_string().contains("server-ca.key does not"));
    assert!(!key.exists());
}

#[test]
fn a_crash_between_key_and_certificate_heals() {
    let dir = tempfile::tempdir().unwrap();
    drop(ClusterPki::load_or_create(dir.path()).unwrap());
    let key = std::fs::read(dir.path().join("server-ca.key")).unwrap();
    std::fs::remove_file(dir.path().join("server-ca.crt")).unwrap();
    ClusterPki::load_or_create(dir.path()).unwrap();
    assert_eq!(std::fs::read(dir.path().join("server-ca.key")).unwrap(), key);
}

#[test]
fn service_account_signatures() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ClusterPki::load_or_create(dir.path()).unwrap();
    let key = &pki.service_account;
    let mut signature = key.sign(b"message").unwrap();
    assert_eq!(signature.len(), 64);
    assert!(key.verify(b"message", &signature));
    assert!(!key.verify(b"massage", &signature));
    signature[3] ^= 1;
    assert!(!key.verify(b"message", &signature));
    assert!(!key.verify(b"message", b""));
    let jwks = key.jwks();
    assert_eq!(jwks["keys"][0]["kid"], key.id());
    assert_eq!(jwks["keys"][0]["x"].as_str().unwrap().len(), 43);
}

#[test]
fn kubeconfig() {
    let dir = tempfile::tempdir().unwrap();
    let pki = ClusterPki::load_or_create(&dir.path().join("tls")).unwrap();
    let admin = pki.client("admin", &ClientName::admin()).unwrap();
    let path = dir.path().join("etc/edge.yaml");
    write_kubeconfig(&path, 0o600, "https://127.0.0.1:6443", &pki.server_ca, &admin).unwrap();
    assert_eq!(mode(&path), 0o600);
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("server: \"https://127.0.0.1:6443\"\n"), "{text}");
    write_kubeconfig(&path, 0o640, "https://127.0.0.1:6443", &pki.server_ca, &admin).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[test]
fn certificates_that_are_none() {
    assert!(user_of_certificate(b"").is_none());
    assert!(user_of_certificate(&[0x30; 300]).is_none());
}
