//! Archives into the store and what becomes of them, on the real disk; needs root (owners, devices, a tmpfs).
#![expect(clippy::unwrap_used, reason = "tests")]

mod common;

use common::{TestImage, TestStore, docker_archive, gzip, noise, oci_archive, open, tar_of};
use edge_image::{ArchiveEvent, Digest, Error, GarbagePolicy, ImageKind, Platform, Reference};
use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use tokio::sync::mpsc;

async fn import(store: &TestStore, bytes: &[u8]) -> Result<Vec<std::sync::Arc<edge_image::Image>>, Error> {
    let path = store.write("archive.tar", bytes);
    store.store.import_archive(&path, |_| {}).await
}

fn foreign() -> Platform {
    Platform { os: "linux".into(), architecture: "s390x".into(), variant: None }
}

#[tokio::test]
async fn docker_archives_in_all_compressions() {
    let image = TestImage::simple("hello");
    let plain = docker_archive(&[(&["busybox:1.36", "r.io:5000/b:x"], &image)]);
    for bytes in [plain.clone(), gzip(&plain), zstd::encode_all(plain.as_slice(), 1).unwrap()] {
        let store = TestStore::new();
        let images = import(&store, &bytes).await.unwrap();
        assert_eq!(images.len(), 1);
        let found = store.store.get("busybox:1.36").unwrap();
        assert_eq!(found.id, image.id());
        assert_eq!(found.repo_tags, ["docker.io/library/busybox:1.36", "r.io:5000/b:x"]);
        assert!(found.pinned);
        assert_eq!(found.config.entrypoint, ["/bin/app"]);
        assert_eq!(found.config.cmd, ["serve"]);
        assert_eq!(found.config.env, ["PATH=/bin"]);
        assert_eq!((found.config.user.as_str(), found.config.working_dir.as_str()), ("1000", "/srv"));
        assert_eq!(found.config.exposed_ports, ["80/tcp"]);
        assert_eq!(std::fs::read(found.lower_dirs[0].join("etc/content")).unwrap(), b"hello", "top layer first");
        assert_eq!(std::fs::read(found.lower_dirs[1].join("etc/base")).unwrap(), b"1");
        assert_eq!(store.store.get(&image.id().hex()).unwrap().id, image.id());
        assert_eq!(store.store.get(&image.id().to_string()).unwrap().id, image.id());
        assert!(store.store.get("busybox").is_none(), "latest is another tag");
    }
}

#[tokio::test]
async fn oci_layouts_with_several_images_and_platforms() {
    let (ours, theirs, other) =
        (TestImage::simple("ours"), TestImage::new(&foreign(), &[]), TestImage::simple("other"));
    let store = TestStore::new();
    let archive =
        oci_archive(&[("docker.io/library/multi:1", &[&theirs, &ours]), ("docker.io/library/other:2", &[&other])]);
    assert_eq!(import(&store, &archive).await.unwrap().len(), 2);
    let multi = store.store.get("multi:1").unwrap();
    assert_eq!(multi.id, ours.id());
    let manifest = Digest::of(&ours.manifest());
    let index = Digest::of(&common::index_of(&[&theirs, &ours]));
    for digest in [manifest, index] {
        let by_digest: Reference = format!("multi@{digest}").parse().unwrap();
        assert_eq!(store.store.get_reference(&by_digest).unwrap().id, ours.id());
    }
    let blobs: usize = ours.blobs.iter().map(Vec::len).sum();
    assert_eq!(multi.size, (blobs + ours.config.len() + ours.manifest().len()) as u64);
    let base = |name: &str| store.store.get(name).unwrap().lower_dirs.last().cloned().unwrap();
    assert_eq!(base("multi:1"), base("other:2"), "equal layers are unpacked once");
    // What was there is there after a restart, and overlayfs takes it.
    let again = open(&store.content());
    assert_eq!(again.list(), store.store.list().iter().map(|i| as_restarted(&again, i)).collect::<Vec<_>>());
    overlay_shows(&again.get("multi:1").unwrap().lower_dirs, store.dir.path(), "etc/content", "ours");
}

/// `last_used` is counted anew after a restart; everything else is durable.
fn as_restarted(again: &edge_image::ImageStore, image: &edge_image::Image) -> std::sync::Arc<edge_image::Image> {
    let mut image = image.clone();
    image.last_used = again.get(&image.id.to_string()).unwrap().last_used;
    image.into()
}

/// Mounts the layers in a mount namespace that goes away with the process.
fn overlay_shows(lower: &[std::path::PathBuf], dir: &Path, file: &str, content: &str) {
    let lower: Vec<&str> = lower.iter().map(|path| path.to_str().unwrap()).collect();
    let merged = dir.join("merged");
    std::fs::create_dir(&merged).unwrap();
    let script =
        format!("mount -t overlay overlay -o lowerdir={} {m} && cat {m}/{file}", lower.join(":"), m = merged.display());
    let output = Command::new("unshare").args(["-m", "sh", "-c", &script]).output().unwrap();
    assert!(output.status.success(), "mounting an overlay (needs root): {}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout), content);
}

#[tokio::test]
async fn a_tag_moves_and_the_old_image_stays_until_collected() {
    let store = TestStore::new();
    let (old, new) = (TestImage::simple("old"), TestImage::simple("new"));
    import(&store, &docker_archive(&[(&["app:1"], &old)])).await.unwrap();
    import(&store, &docker_archive(&[(&["app:1"], &new)])).await.unwrap();
    assert_eq!(store.store.get("app:1").unwrap().id, new.id());
    assert!(store.store.get(&old.id().to_string()).unwrap().repo_tags.is_empty());
    let again = open(&store.content());
    assert_eq!(again.get("app:1").unwrap().id, new.id());
    assert_eq!(again.list().len(), 2);
    assert!(store.store.remove(&old.id().to_string()).await.unwrap());
    assert!(!store.store.remove(&old.id().to_string()).await.unwrap());
    let kept = store.store.get("app:1").unwrap();
    assert!(kept.lower_dirs.iter().all(|dir| dir.exists()), "the shared layer stays");
    assert_eq!(std::fs::read_dir(store.content().join("layers")).unwrap().count(), 2);
    assert!(store.store.remove("app:1").await.unwrap());
    assert_eq!(store.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[tokio::test]
async fn garbage_collection_keeps_pinned_and_used_images() {
    let store = TestStore::new();
    import(&store, &docker_archive(&[(&["app:1"], &TestImage::simple("x"))])).await.unwrap();
    let everything = GarbagePolicy { free_bytes: u64::MAX, ..GarbagePolicy::default() };
    let reclaimed = store.store.collect_garbage(everything).await.unwrap();
    assert_eq!(reclaimed, edge_image::Reclaimed::default(), "an image from an archive is pinned");
    std::fs::write(store.content().join("ingest").join("0.partial"), b"x").unwrap();
    store.store.collect_garbage(GarbagePolicy { keep: HashSet::new(), ..GarbagePolicy::default() }).await.unwrap();
    assert!(!store.content().join("ingest/0.partial").exists());
    let usage = store.store.usage().unwrap();
    assert!(usage.used_bytes >= 4 && usage.used_inodes >= 3 && usage.available_bytes > 0);
}

#[tokio::test]
async fn bad_archives_name_the_file_and_leave_nothing() {
    let image = TestImage::simple("x");
    let good = docker_archive(&[(&["app:1"], &image)]);
    let compressed = gzip(&good);
    let oci = oci_archive(&[("app:1", &[&image])]);
    let mut flipped = oci.clone();
    let at = flipped.windows(2).position(|w| w == [0x1f, 0x8b]).unwrap() + 20;
    flipped[at] ^= 1;
    let evil = TestImage::new(&Platform::host(), &[tar_of(&[("ok", b"")]), tar_of(&[("../evil", b"x")])]);
    let mut lying = TestImage::simple("x");
    lying.config = String::from_utf8(lying.config)
        .unwrap()
        .replace("diff_ids\":[\"sha256:", "diff_ids\":[\"sha256:0000")
        .into_bytes();
    let mut short = TestImage::simple("x");
    short.blobs.pop();
    let mut wrong_diff = TestImage::simple("x");
    wrong_diff.blobs[1] = gzip(&tar_of(&[("etc/content", b"y")]));
    type Check = fn(&Error) -> bool;
    let malformed: Check = |e| matches!(e, Error::Malformed { .. });
    let cases: Vec<(&str, Vec<u8>, Check)> = vec![
        ("empty", Vec::new(), malformed),
        ("not a tar", b"hello".repeat(500), malformed),
        ("no image", tar_of(&[("a", b"")]), malformed),
        ("truncated", good[..good.len() / 2 - 100].to_vec(), malformed),
        ("truncated gzip", compressed[..compressed.len() / 2].to_vec(), malformed),
        ("one bit flipped", flipped, |e| matches!(e, Error::DigestMismatch { .. })),
        ("evil layer", docker_archive(&[(&["app:1"], &evil)]), |e| matches!(e, Error::Layer { .. })),
        ("second image evil", docker_archive(&[(&["a:1"], &image), (&["b:1"], &evil)]), |e| {
            matches!(e, Error::Layer { .. })
        }),
        ("malformed diff id", docker_archive(&[(&["app:1"], &lying)]), malformed),
        ("layer missing", oci_archive(&[("app:1", &[&short])]), malformed),
        ("other content than the diff id", docker_archive(&[(&["app:1"], &wrong_diff)]), |e| {
            matches!(e, Error::DigestMismatch { .. })
        }),
        ("other platform", docker_archive(&[(&["app:1"], &TestImage::new(&foreign(), &[]))]), |e| {
            matches!(e, Error::NoPlatform { .. })
        }),
        ("bad tag", docker_archive(&[(&["UPPER:1"], &image)]), |e| matches!(e, Error::InvalidReference(_))),
        ("name climbs out", tar_of(&[("../../x", b"")]), malformed),
    ];
    let store = TestStore::new();
    for (name, bytes, check) in cases {
        let error = import(&store, &bytes).await.expect_err(name);
        assert!(check(error.root()), "{name}: {error:?}");
        let text = edge_image::error_chain(&error);
        assert!(text.contains("archive.tar"), "{name}: {text}");
        assert_eq!(store.leftovers(), Vec::<std::path::PathBuf>::new(), "{name} left something");
        assert!(store.store.list().is_empty(), "{name}");
    }
    import(&store, &good).await.unwrap();
}

#[tokio::test]
async fn damaged_archives_never_panic() {
    let archive = docker_archive(&[(&["app:1"], &TestImage::simple("x"))]);
    let store = TestStore::new();
    for seed in 0..150 {
        let mut bytes = archive.clone();
        for pair in noise(seed, 16).chunks(4) {
            let at = u32::from_be_bytes(pair.try_into().unwrap()) as usize % bytes.len();
            bytes[at] ^= pair[0] | 1;
        }
        let _ = import(&store, &bytes).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_leaves_the_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let mounted =
        Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(dir.path()).status().unwrap();
    assert!(mounted.success(), "mounting a tmpfs needs root");
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(self.0).status();
        }
    }
    let _unmount = Unmount(dir.path());
    let store = open(&dir.path().join("content"));
    let outside = tempfile::tempdir().unwrap();
    let write = |name: &str, image: &TestImage| {
        let path = outside.path().join(name);
        std::fs::write(&path, docker_archive(&[(&[&format!("{name}:1")], image)])).unwrap();
        path
    };
    store.import_archive(&write("small", &TestImage::simple("x")), |_| {}).await.unwrap();
    let before = store.usage().unwrap();
    // Too big to be extracted; and small compressed, but too big unpacked beside its blob.
    let big = TestImage::new(&Platform::host(), &[tar_of(&[("noise", &noise(1, 6 << 20))])]);
    let unpacks_big = TestImage::new(&Platform::host(), &[tar_of(&[("noise", &noise(1, 5 << 19))])]);
    for image in [big, unpacks_big] {
        let error = store.import_archive(&write("big", &image), |_| {}).await.unwrap_err();
        assert!(error.is_no_space(), "{error:?}");
        assert_eq!(store.usage().unwrap(), before, "the space is free again");
        assert!(store.get("small:1").is_some() && store.get("big:1").is_none());
    }
    store.import_archive(&write("next", &TestImage::simple("y")), |_| {}).await.unwrap();
}

/// Set in the child process of the next test: the directory to work in.
const CHILD: &str = "EDGE_IMAGE_TEST_IMPORT";

#[tokio::test]
async fn a_kill_at_any_time_leaves_all_or_nothing() {
    if let Some(dir) = std::env::var_os(CHILD) {
        let dir = Path::new(&dir);
        let store = open(&dir.join("content"));
        println!("child started");
        store.import_archive(&dir.join("archive.tar"), |_| {}).await.unwrap();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layers: Vec<_> = (0..4).map(|i| tar_of(&[(&format!("f{i}"), &noise(i, 8 << 20))])).collect();
    let image = TestImage::new(&Platform::host(), &layers);
    std::fs::write(dir.path().join("archive.tar"), docker_archive(&[(&["app:1"], &image)])).unwrap();
    let mut killed_before_the_end = 0;
    for wait in [5, 60, 150, 250, 400, 600] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_kill_at_any_time_leaves_all_or_nothing", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("child started") {
            line.clear();
            assert_ne!(std::io::BufRead::read_line(&mut output, &mut line).unwrap(), 0, "the child ended early");
        }
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(&dir.path().join("content"));
        assert_eq!(std::fs::read_dir(dir.path().join("content/ingest")).unwrap().count(), 0, "leftovers are removed");
        match store.get("app:1") {
            None => killed_before_the_end += 1,
            Some(found) => {
                for (i, lower) in found.lower_dirs.iter().rev().enumerate() {
                    let data = std::fs::read(lower.join(format!("f{i}"))).unwrap();
                    assert!(data == noise(i as u64, 8 << 20), "layer {i} is whole");
                }
                store.remove("app:1").await.unwrap();
            }
        }
        store.collect_garbage(GarbagePolicy::default()).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path().join("content/layers")).unwrap().count(), 0);
    }
    assert!(killed_before_the_end > 0, "no child was killed in time to test anything");
}

async fn event(events: &mut mpsc::Receiver<ArchiveEvent>) -> ArchiveEvent {
    tokio::time::timeout(Duration::from_secs(20), events.recv()).await.expect("an event").expect("the watch goes on")
}

#[tokio::test]
async fn the_drop_folder_imports_at_start_and_while_running() {
    let store = TestStore::new();
    let folder = store.dir.path().join("images");
    std::fs::create_dir(&folder).unwrap();
    let (one, two) = (TestImage::simple("one"), TestImage::simple("two"));
    std::fs::write(folder.join("one.tar.gz"), gzip(&docker_archive(&[(&["one:1"], &one)]))).unwrap();
    std::fs::write(folder.join("readme.txt"), b"no archive").unwrap();
    let watch = |store: edge_image::ImageStore, sender| {
        let folder = folder.clone();
        tokio::spawn(async move { store.watch_archives(&folder, sender).await })
    };
    let (sender, mut events) = mpsc::channel(8);
    let task = watch(store.store.clone(), sender);
    assert!(matches!(event(&mut events).await, ArchiveEvent::Imported { images, .. } if images[0].id == one.id()));
    assert!(matches!(event(&mut events).await, ArchiveEvent::Ready));
    // Written in place, and moved in.
    std::fs::write(folder.join("broken.tar"), b"nonsense").unwrap();
    match event(&mut events).await {
        ArchiveEvent::Failed { path, error } => {
            assert!(path.ends_with("broken.tar") && error.to_string().contains("broken.tar"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    let staged = store.write("staged", &zstd::encode_all(docker_archive(&[(&["two:1"], &two)]).as_slice(), 1).unwrap());
    std::fs::rename(staged, folder.join("two.tar.zst")).unwrap();
    assert!(matches!(event(&mut events).await, ArchiveEvent::Imported { images, .. } if images[0].id == two.id()));
    std::fs::remove_file(folder.join("two.tar.zst")).unwrap();
    drop(events);
    task.await.unwrap().unwrap();
    assert!(store.store.get("two:1").is_some(), "removing the file keeps the image");
    // A second start reads nothing twice.
    std::fs::remove_file(folder.join("broken.tar")).unwrap();
    let (sender, mut events) = mpsc::channel(8);
    let task = watch(open(&store.content()), sender);
    assert!(matches!(event(&mut events).await, ArchiveEvent::Ready));
    drop(events);
    task.await.unwrap().unwrap();
}

const WASM: &[u8] = b"\0asm\x01\0\0\0";

fn wasi() -> Platform {
    Platform { os: "wasi".into(), architecture: "wasm".into(), variant: None }
}

#[tokio::test]
async fn webassembly_in_every_packing() {
    let store = TestStore::new();
    let module = Digest::of(WASM);
    let cncf = TestImage::artifact("application/vnd.wasm.config.v0+json", &[("application/wasm", WASM)]);
    let spin = TestImage::artifact(
        "application/vnd.fermyon.spin.application.v1+config",
        &[
            ("application/vnd.wasm.content.layer.v1+data", b"a file"),
            ("application/vnd.wasm.content.layer.v1+wasm", WASM),
        ],
    );
    let layer = tar_of(&[("app.wasm", WASM), ("bin/app", b"\x7fELF")]);
    let buildx = TestImage::new(&wasi(), std::slice::from_ref(&layer)).running(&["/app.wasm"]);
    let scratch = TestImage::new(&Platform::host(), std::slice::from_ref(&layer)).running(&["app.wasm"]);
    let native = TestImage::new(&Platform::host(), std::slice::from_ref(&layer));
    let archive = oci_archive(&[
        ("w/cncf:1", &[&cncf]),
        ("w/spin:1", &[&spin]),
        ("w/buildx:1", &[&buildx]),
        ("w/scratch:1", &[&scratch]),
        ("w/native:1", &[&native]),
        ("w/both:1", &[&buildx, &native]),
    ]);
    import(&store, &archive).await.unwrap();
    let again = open(&store.content());
    for store in [&store.store, &again] {
        for name in ["w/cncf:1", "w/spin:1"] {
            assert_eq!(store.get(name).unwrap().kind, ImageKind::WasmModule { module }, "{name}");
        }
        for name in ["w/buildx:1", "w/scratch:1"] {
            assert_eq!(store.get(name).unwrap().kind, ImageKind::WasmRootfs { module: Some(module) }, "{name}");
        }
        // Where there is a native program it is preferred.
        for name in ["w/native:1", "w/both:1"] {
            assert_eq!(store.get(name).unwrap().kind, ImageKind::Container, "{name}");
        }
        for name in ["w/cncf:1", "w/spin:1", "w/buildx:1", "w/scratch:1"] {
            let program = store.wasm_program(store.get(name).unwrap(), None, None).await.unwrap();
            assert_eq!((program.digest, std::fs::read(program.path).unwrap().as_slice()), (module, WASM), "{name}");
        }
        let other =
            store.wasm_program(store.get("w/buildx:1").unwrap(), Some("bin/app".into()), Some("/".into())).await;
        assert_eq!(other.unwrap().digest, Digest::of(b"\x7fELF"));
        let missing = store.wasm_program(store.get("w/buildx:1").unwrap(), Some("nope.wasm".into()), None).await;
        assert!(missing.unwrap_err().to_string().contains("no such file in the image"));
        assert_eq!(store.wasm_digests(), HashSet::from([module, Digest::of(b"\x7fELF")]));
    }
}

#[tokio::test]
async fn webassembly_that_is_none_is_refused_in_words() {
    let store = TestStore::new();
    let config = "application/vnd.wasm.config.v0+json";
    let text = TestImage::artifact(config, &[("application/wasm", b"#!/bin/sh")]);
    let two = TestImage::artifact(config, &[("application/wasm", WASM), ("application/wasm", b"\0asm2")]);
    let mut truncated = TestImage::artifact(config, &[("application/wasm", WASM)]);
    let whole = oci_archive(&[("w/t:1", &[&truncated])]);
    truncated.blobs[0].truncate(4);
    for (archive, words) in [
        (oci_archive(&[("w/text:1", &[&text])]), "not a WebAssembly module"),
        (oci_archive(&[("w/two:1", &[&two])]), "2 WebAssembly modules"),
        (whole[..whole.len() - 4000].to_vec(), "archive"),
    ] {
        let error = import(&store, &archive).await.unwrap_err();
        assert!(edge_image::error_chain(&error).contains(words), "{}", edge_image::error_chain(&error));
        assert_eq!(store.leftovers(), Vec::<std::path::PathBuf>::new());
    }
}
