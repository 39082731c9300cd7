//! Pulling: from Debian's docker-registry (plain, TLS, basic auth), and from one that misbehaves.
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use bytes::Bytes;
use common::{TestImage, config, noise, tar_of};
use edge_image::{
    Artifact, Choice, Credentials, Digest, Error, GarbagePolicy, ImageKind, ImageStore, Keyring, Platform, Progress,
    PullOptions, Reference, Registries, RegistryError,
};
use http::Response;
use http_body_util::Full;
use registry::{Answer, DockerRegistry, FakeRegistry};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use tempfile::TempDir;

/// A store whose `registries.yaml` is `yaml`.
fn store(dir: &TempDir, yaml: &str) -> ImageStore {
    let file = dir.path().join("registries.yaml");
    std::fs::write(&file, yaml).unwrap();
    let mut config = config(&dir.path().join("content"));
    config.registries = Registries::load(&file).unwrap();
    ImageStore::open(config).unwrap()
}

fn plain_http(host: &str) -> String {
    format!("mirrors: {{\"{host}\": {{endpoint: [\"http://{host}\"]}}}}\n")
}

fn reference(text: String) -> Reference {
    text.parse().unwrap()
}

fn basic(username: &str, password: &str) -> PullOptions {
    let credentials = Credentials::Basic { username: username.into(), password: password.into() };
    PullOptions { credentials: vec![credentials], ..PullOptions::default() }
}

fn registry_error(error: &Error) -> &RegistryError {
    match error.root() {
        Error::Registry(error) => error,
        other => panic!("{other:?}"),
    }
}

/// Options that count the blobs that bytes came for.
fn counting() -> (PullOptions, Arc<Mutex<std::collections::BTreeSet<Digest>>>) {
    let received: Arc<Mutex<std::collections::BTreeSet<Digest>>> = Arc::default();
    let log = Arc::clone(&received);
    let progress = move |progress| {
        if let Progress::Received { digest, .. } = progress {
            log.lock().unwrap().insert(digest);
        }
    };
    (PullOptions { progress: Some(Arc::new(progress)), ..PullOptions::default() }, received)
}

#[tokio::test]
async fn by_tag_and_digest_over_plain_http() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path(), "", "");
    let host = &registry.host;
    let foreign = Platform { os: "linux".into(), architecture: "s390x".into(), variant: None };
    let (first, second, theirs) =
        (TestImage::simple("first"), TestImage::simple("second"), TestImage::new(&foreign, &[tar_of(&[("x", b"")])]));
    registry.push("team/app", "1", &[&first]).await;
    registry.push("team/app", "multi", &[&theirs, &second]).await;
    registry.push("team/app", "foreign", &[&theirs]).await;
    let store = store(&dir, &plain_http(host));

    let (options, received) = counting();
    let image = store.pull(&reference(format!("{host}/team/app:1")), options).await.unwrap();
    assert_eq!(image.id, first.id());
    assert_eq!(image.repo_tags, [format!("{host}/team/app:1")]);
    assert_eq!(image.repo_digests, [format!("{host}/team/app@{}", Digest::of(&first.manifest()))]);
    assert!(!image.pinned);
    assert_eq!(received.lock().unwrap().len(), 2);
    assert_eq!(std::fs::read(image.lower_dirs[0].join("etc/content")).unwrap(), b"first");

    let (options, received) = counting();
    store.pull(&reference(format!("{host}/team/app:1")), options).await.unwrap();
    assert!(received.lock().unwrap().is_empty(), "what is here is not fetched again");

    let (options, received) = counting();
    let multi = store.pull(&reference(format!("{host}/team/app:multi")), options).await.unwrap();
    assert_eq!(multi.id, second.id(), "the platform of this machine out of the index");
    assert_eq!(received.lock().unwrap().len(), 1, "the common layer is not fetched again");
    assert_eq!(multi.repo_digests.len(), 2, "the index and the manifest both name it");

    let by_digest = reference(format!("{host}/team/app@{}", Digest::of(&second.manifest())));
    assert_eq!(store.get_reference(&by_digest).unwrap().id, second.id());
    assert_eq!(store.pull(&by_digest, PullOptions::default()).await.unwrap().id, second.id());

    let error = store.pull(&reference(format!("{host}/team/app:none")), PullOptions::default()).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::NotFound { .. }), "{error:?}");
    assert!(error.to_string().contains("team/app:none"), "{error}");
    let error = store.pull(&reference(format!("{host}/team/app:foreign")), PullOptions::default()).await.unwrap_err();
    assert!(matches!(error.root(), Error::NoPlatform { .. }), "{error:?}");

    // A pulled image is not pinned; the least recently used one goes first, those in use stay.
    store.touch(first.id());
    let policy = GarbagePolicy { keep: [first.id()].into(), free_bytes: u64::MAX, ..GarbagePolicy::default() };
    assert_eq!(store.collect_garbage(policy).await.unwrap().images, [second.id()]);
    assert!(store.get(&format!("{host}/team/app:1")).is_some());
}

#[tokio::test]
async fn of_an_index_with_both_everybody_finds_his_own() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path(), "", "");
    let host = &registry.host;
    let native = TestImage::simple("native");
    let wasm = TestImage::artifact("application/vnd.wasm.config.v0+json", &[("application/wasm", b"\0asm\x01\0\0\0")]);
    registry.push("app", "both", &[&native, &wasm]).await;
    registry.push("app", "native", &[&native]).await;
    registry.push("app", "wasm", &[&wasm]).await;
    let name = |tag: &str| reference(format!("{host}/app:{tag}"));
    let (both, wanted) = (name("both"), || PullOptions { choice: Choice::Wasm, ..PullOptions::default() });
    let first = store(&dir, &plain_http(host));

    // The native one comes first, and it is known that it is not what others want.
    let got = first.pull(&both, PullOptions::default()).await.unwrap();
    assert_eq!((got.id, got.repo_tags.len()), (native.id(), 1));
    assert_eq!(first.get_reference(&both).unwrap().id, native.id());
    assert!(first.get_wasm(&both).is_none(), "to be pulled");
    let module = first.pull(&both, wanted()).await.unwrap();
    assert!(module.id != native.id() && module.kind != ImageKind::Container);
    assert_eq!(module.repo_tags, [format!("{host}/app:both")]);
    let check = |store: &ImageStore| {
        assert_eq!(store.get_reference(&both).unwrap().id, native.id());
        assert_eq!(store.get_wasm(&both).unwrap().id, module.id);
    };
    check(&first);
    // Pulled again in any order, and after a restart, they are the same.
    first.pull(&both, PullOptions::default()).await.unwrap();
    check(&first);
    first.pull(&both, wanted()).await.unwrap();
    check(&first);
    drop(first);
    let second = store(&dir, &plain_http(host));
    check(&second);
    // One alone is everybody's.
    for (tag, choice) in [("native", Choice::Wasm), ("wasm", Choice::Native)] {
        let pulled = second.pull(&name(tag), PullOptions { choice, ..PullOptions::default() }).await.unwrap();
        assert_eq!(second.get_wasm(&name(tag)).unwrap().id, pulled.id);
        assert_eq!(second.get_reference(&name(tag)).unwrap().id, pulled.id);
    }
    // When that for WebAssembly goes it is known again that it is to be pulled.
    assert!(second.remove(&module.id.to_string()).await.unwrap());
    assert!(second.get_wasm(&both).is_none() && second.get_reference(&both).is_some());

    // It may be here alone; then nobody else has a name for it.
    let other = tempfile::tempdir().unwrap();
    let third = store(&other, &plain_http(host));
    third.pull(&both, wanted()).await.unwrap();
    assert!(third.get_reference(&both).is_none());
    assert_eq!(third.get_wasm(&both).unwrap().id, module.id);
    // The tag becomes something else.
    registry.push("app", "both", &[&native]).await;
    assert_eq!(third.pull(&both, PullOptions::default()).await.unwrap().id, native.id());
    assert_eq!(third.get_reference(&both).unwrap().id, native.id());
}

#[tokio::test]
async fn mirrors_are_tried_first_with_rewritten_names() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path(), "", "");
    let image = TestImage::simple("x");
    registry.push("mirror/busybox", "1", &[&image]).await;
    let yaml = format!(
        "mirrors: {{docker.io: {{endpoint: [\"http://127.0.0.1:1\", \"http://{}\"], rewrite: {{\"^library/(.*)\": \"mirror/$1\"}}}}}}",
        registry.host
    );
    let store = store(&dir, &yaml);
    let pulled = store.pull(&reference("busybox:1".into()), PullOptions::default()).await.unwrap();
    assert_eq!(pulled.repo_tags, ["docker.io/library/busybox:1"]);
}

#[tokio::test]
async fn errors_name_host_and_reason() {
    let dir = tempfile::tempdir().unwrap();
    let registry = DockerRegistry::start(dir.path(), "", "");
    let store = store(&dir, "");
    let refused = store.pull(&reference("127.0.0.1:1/x".into()), PullOptions::default()).await.unwrap_err();
    assert!(matches!(registry_error(&refused), RegistryError::Connect { .. }), "{refused:?}");
    let text = edge_image::error_chain(&refused);
    assert!(text.contains("127.0.0.1:1") && text.to_lowercase().contains("refused"), "{text}");
    let not_tls = reference(format!("{}/x", registry.host));
    let not_tls = store.pull(&not_tls, PullOptions::default()).await.unwrap_err();
    assert!(
        matches!(registry_error(&not_tls), RegistryError::Tls { .. }),
        "plain HTTP only where configured: {not_tls:?}"
    );
}

#[tokio::test]
async fn tls_with_a_configured_ca() {
    let dir = tempfile::tempdir().unwrap();
    let image = TestImage::simple("tls");
    let plain = DockerRegistry::start(dir.path(), "", "");
    plain.push("app", "1", &[&image]).await;
    let certified = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, certified.cert.pem()).unwrap();
    std::fs::write(&key, certified.signing_key.serialize_pem()).unwrap();
    let tls = format!("  tls: {{certificate: {}, key: {}}}\n", cert.display(), key.display());
    let registry = DockerRegistry::start(dir.path(), &tls, "");
    let host = &registry.host;
    let name = reference(format!("{host}/app:1"));
    let pull = |tls: &str| {
        let fresh = tempfile::tempdir().unwrap();
        let store = store(&fresh, &format!("configs: {{\"{host}\": {{tls: {{{tls}}}}}}}"));
        let name = name.clone();
        async move { (store.pull(&name, PullOptions::default()).await.map(|image| image.id), fresh).0 }
    };
    assert_eq!(pull(&format!("ca_file: {}", cert.display())).await.unwrap(), image.id());
    assert_eq!(pull("insecure_skip_verify: true").await.unwrap(), image.id());
    let untrusted = pull("").await.unwrap_err();
    assert!(matches!(registry_error(&untrusted), RegistryError::Tls { .. }), "{untrusted:?}");
    let missing = pull("ca_file: /nonexistent").await.unwrap_err();
    assert!(matches!(registry_error(&missing), RegistryError::Config { .. }), "{missing:?}");
}

fn htpasswd(file: &Path) {
    let made = Command::new("htpasswd").args(["-Bbn", "user", "secret"]).output().expect("htpasswd (apache2-utils)");
    assert!(made.status.success());
    std::fs::write(file, made.stdout).unwrap();
}

#[tokio::test]
async fn basic_auth_from_pull_secrets_and_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let image = TestImage::simple("private");
    DockerRegistry::start(dir.path(), "", "").push("app", "1", &[&image]).await;
    htpasswd(&dir.path().join("htpasswd"));
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", dir.path().join("htpasswd").display());
    let registry = DockerRegistry::start(dir.path(), "", &auth);
    let host = &registry.host;
    let name = reference(format!("{host}/app:1"));
    let store_without = store(&dir, &plain_http(host));
    for options in [PullOptions::default(), basic("user", "wrong")] {
        let error = store_without.pull(&name, options).await.unwrap_err();
        assert!(matches!(registry_error(&error), RegistryError::Unauthorized { .. }), "{error:?}");
    }
    let mut keyring = Keyring::new();
    keyring
        .add("s", format!(r#"{{"auths":{{"http://{host}":{{"username":"user","password":"wrong"}}}}}}"#).as_bytes())
        .unwrap();
    keyring
        .add("s", format!(r#"{{"auths":{{"{host}/app":{{"username":"user","password":"bad"}}}}}}"#).as_bytes())
        .unwrap();
    keyring
        .add("s", format!(r#"{{"auths":{{"{host}":{{"username":"user","password":"secret"}}}}}}"#).as_bytes())
        .unwrap();
    let options = PullOptions { credentials: keyring.lookup(&name), ..PullOptions::default() };
    assert_eq!(options.credentials.len(), 3, "all are tried until one fits");
    assert_eq!(store_without.pull(&name, options).await.unwrap().id, image.id());
    let fresh = tempfile::tempdir().unwrap();
    let yaml = format!("{}configs: {{\"{host}\": {{auth: {{username: user, password: secret}}}}}}", plain_http(host));
    assert_eq!(store(&fresh, &yaml).pull(&name, PullOptions::default()).await.unwrap().id, image.id());
}

fn status(code: u16, headers: &[(&str, &str)], body: &str) -> Answer {
    let mut response = Response::builder().status(code);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    Answer::Other(response.body(Full::from(Bytes::from(body.to_owned()))).unwrap())
}

#[tokio::test]
async fn bearer_tokens_are_fetched_and_renewed() {
    let image = TestImage::simple("token");
    let token_server = FakeRegistry::start("none", &[], |seen| match seen.authorization.as_deref() {
        _ if seen.body.contains("refresh_token=idtoken") => status(200, &[], r#"{"access_token":"good1"}"#),
        // user:secret
        Some("Basic dXNlcjpzZWNyZXQ=") => status(200, &[], r#"{"token":"good1"}"#),
        _ => status(401, &[], r#"{"details":"incorrect username or password"}"#),
    })
    .await;
    let challenge =
        format!(r#"Bearer realm="http://{}/token",service="fake",scope="repository:a/app:pull""#, token_server.host);
    let answers = AtomicUsize::new(0);
    let registry = FakeRegistry::start("a/app", &[("1", &image)], move |seen| match seen.authorization.as_deref() {
        // The token runs out once, in the middle of the pull.
        Some("Bearer good1") if answers.fetch_add(1, Ordering::SeqCst) != 1 => Answer::Content,
        _ => status(401, &[("www-authenticate", &challenge)], r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#),
    })
    .await;
    let name = reference(format!("{}/a/app:1", registry.host));
    for credentials in [
        Credentials::Basic { username: "user".into(), password: "secret".into() },
        Credentials::IdentityToken("idtoken".into()),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir, &plain_http(&registry.host));
        let options = PullOptions { credentials: vec![credentials], ..PullOptions::default() };
        assert_eq!(store.pull(&name, options).await.unwrap().id, image.id());
    }
    let asked = token_server.seen("/token");
    assert_eq!(asked[0].query, "service=fake&scope=repository%3Aa%2Fapp%3Apull");
    assert!(asked.len() >= 3, "renewed: {asked:?}");
    let dir = tempfile::tempdir().unwrap();
    let error = store(&dir, &plain_http(&registry.host)).pull(&name, basic("user", "wrong")).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::Unauthorized { .. }), "{error:?}");
    assert!(error.to_string().contains("incorrect username or password"), "{error}");
}

fn noisy_image() -> TestImage {
    TestImage::new(&Platform::host(), &[tar_of(&[("noise", &noise(7, 300_000))])])
}

#[tokio::test]
async fn a_broken_download_is_continued_where_it_stopped() {
    let image = noisy_image();
    let layer = Digest::of(&image.blobs[0]);
    let cuts = AtomicUsize::new(0);
    let registry = FakeRegistry::start("app", &[("1", &image)], move |seen| {
        let is_layer = seen.path.ends_with(&layer.to_string());
        if is_layer && cuts.fetch_add(1, Ordering::SeqCst) < 3 { Answer::CutAfter(50_000) } else { Answer::Content }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, &plain_http(&registry.host));
    let pulled = store.pull(&reference(format!("{}/app:1", registry.host)), PullOptions::default()).await.unwrap();
    assert_eq!(pulled.id, image.id());
    let ranges: Vec<_> = registry.seen(&layer.to_string()).into_iter().map(|seen| seen.range).collect();
    let at = |n: usize| Some(format!("bytes={n}-"));
    assert_eq!(ranges, [None, at(50_000), at(100_000), at(150_000)]);
    assert_eq!(std::fs::read_dir(dir.path().join("content/ingest")).unwrap().count(), 0, "no blob stays behind");
}

#[tokio::test]
async fn a_download_survives_a_restart() {
    let image = noisy_image();
    let layer = Digest::of(&image.blobs[0]);
    let broken = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&broken);
    let registry = FakeRegistry::start("app", &[("1", &image)], move |seen| {
        if !seen.path.ends_with(&layer.to_string()) {
            return Answer::Content;
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            0 => Answer::CutAfter(100_000),
            1..=4 => status(503, &[], ""),
            _ => Answer::Content,
        }
    })
    .await;
    let name = reference(format!("{}/app:1", registry.host));
    let dir = tempfile::tempdir().unwrap();
    let error = store(&dir, &plain_http(&registry.host)).pull(&name, PullOptions::default()).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::Status { .. }), "{error:?}");
    broken.store(100, Ordering::SeqCst);
    let again = store(&dir, &plain_http(&registry.host));
    assert_eq!(again.pull(&name, PullOptions::default()).await.unwrap().id, image.id());
    let last = registry.seen(&layer.to_string()).pop().unwrap();
    assert_eq!(last.range.as_deref(), Some("bytes=100000-"));
}

#[tokio::test]
async fn wrong_bytes_are_refused_and_forgotten() {
    let image = noisy_image();
    let layer = Digest::of(&image.blobs[0]);
    let mut wrong = image.blobs[0].clone();
    wrong[1000] ^= 1;
    let registry = FakeRegistry::start("app", &[("1", &image)], move |seen| {
        let response = Response::new(Full::from(Bytes::from(wrong.clone())));
        if seen.path.ends_with(&layer.to_string()) { Answer::Other(response) } else { Answer::Content }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, &plain_http(&registry.host));
    let error = store.pull(&reference(format!("{}/app:1", registry.host)), PullOptions::default()).await.unwrap_err();
    assert!(matches!(error.root(), Error::DigestMismatch { want, .. } if *want == layer), "{error:?}");
    assert!(store.list().is_empty());
    assert_eq!(std::fs::read_dir(dir.path().join("content/ingest")).unwrap().count(), 0);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_to_another_host() {
    let image = noisy_image();
    let layer = Digest::of(&image.blobs[0]);
    let other = FakeRegistry::start("app", &[("1", &image)], |_| Answer::Content).await;
    let elsewhere = format!("http://{}/v2/app/blobs/{layer}", other.host);
    let registry = FakeRegistry::start("app", &[("1", &image)], move |seen| {
        if seen.authorization.is_none() {
            return status(401, &[("www-authenticate", "Basic realm=\"x\"")], "");
        }
        let is_layer = seen.path.ends_with(&layer.to_string());
        if is_layer { status(307, &[("location", &elsewhere)], "") } else { Answer::Content }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, &plain_http(&registry.host));
    store.pull(&reference(format!("{}/app:1", registry.host)), basic("u", "p")).await.unwrap();
    assert_eq!(other.seen("blobs").len(), 1);
    assert!(other.seen("blobs")[0].authorization.is_none());
}

#[tokio::test]
async fn pulls_of_the_same_image_share_one_download() {
    let image = noisy_image();
    let registry = FakeRegistry::start("app", &[("1", &image), ("2", &image)], |_| Answer::Content).await;
    let dir = tempfile::tempdir().unwrap();
    let store = store(&dir, &plain_http(&registry.host));
    let pulls = (0..8).map(|i| {
        let (store, name) = (store.clone(), reference(format!("{}/app:{}", registry.host, 1 + i % 2)));
        async move { store.pull(&name, PullOptions::default()).await.unwrap().id }
    });
    let ids = futures::future::join_all(pulls).await;
    assert!(ids.iter().all(|id| *id == image.id()));
    assert_eq!(registry.seen(&Digest::of(&image.blobs[0]).to_string()).len(), 1);
    let tags = store.get(&image.id().to_string()).unwrap().repo_tags.clone();
    assert_eq!(tags.len(), 2, "{tags:?}");
}

#[tokio::test]
async fn hostile_registries() {
    let image = noisy_image();
    type Decide = fn(&registry::Seen) -> Answer;
    let cases: [(&str, Decide); 5] = [
        ("endless redirects", |seen| status(302, &[("location", &seen.path)], "")),
        ("redirect to nowhere", |_| status(302, &[], "")),
        ("no manifest", |_| status(200, &[], "<html>")),
        ("challenge without end", |_| status(401, &[("www-authenticate", "Bearer realm=\"")], "")),
        ("token server is no URL", |_| status(401, &[("www-authenticate", "Bearer realm=\"::\"")], "")),
    ];
    for (name, decide) in cases {
        let registry = FakeRegistry::start("app", &[("1", &image)], decide).await;
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir, &plain_http(&registry.host));
        let error = store.pull(&reference(format!("{}/app:1", registry.host)), PullOptions::default()).await;
        assert!(error.is_err(), "{name} was accepted");
    }
}

#[tokio::test]
async fn artifacts_are_pushed_and_pulled_again() {
    let dir = tempfile::tempdir().unwrap();
    htpasswd(&dir.path().join("htpasswd"));
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {}}}}}\n", dir.path().join("htpasswd").display());
    let registry = DockerRegistry::start(dir.path(), "", &auth);
    let host = &registry.host;
    let store = store(&dir, &plain_http(host));
    let file = dir.path().join("registries.yaml");
    let registries = Registries::load(&file).unwrap();
    let name = reference(format!("{host}/team/app:v1"));
    let module = Bytes::from([b"\0asm\x01\0\0\0".to_vec(), noise(7, 300_000)].concat());
    let artifact =
        Artifact::of_component(module.clone(), &["wasi:io/poll@0.2.0".into()], &["wasi:cli/run@0.2.0".into()]);

    let error = artifact.push(&registries, &name, Vec::new()).await.unwrap_err();
    assert!(matches!(registry_error(&error), RegistryError::Unauthorized { .. }), "{error:?}");
    let credentials = basic("user", "secret").credentials;
    artifact.push(&registries, &name, credentials.clone()).await.unwrap();
    // Once more, when all is there.
    artifact.push(&registries, &name, credentials).await.unwrap();
    let image = store.pull(&name, basic("user", "secret")).await.unwrap();
    assert_eq!(image.repo_digests, [format!("{host}/team/app@{}", artifact.digest())]);
    assert_eq!(image.kind, ImageKind::WasmModule { module: Digest::of(&module) });

    let archive = dir.path().join("app.tar");
    let name = reference("other.example/app:v2".to_owned());
    artifact.write_archive(&name, &archive).unwrap();
    store.import_archive(&archive, |_| {}).await.unwrap();
    assert_eq!(store.get_reference(&name).unwrap().kind, image.kind);
}
