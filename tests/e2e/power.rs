//! Power cuts of a whole server, at any moment: its data directory is on a disk that forgets what was not flushed.
//!
//! `EDGE_E2E_CUTS` says how many (8). Unlike those in [`crate::vm`], which cut the power of a whole machine, these take a second each.

use crate::harness::disk::{Disk, Random};
use crate::harness::writers::{self, Knowledge};
use crate::harness::{Cluster, Kubectl, SURVIVOR, eventually};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

const CUTS: usize = 8;
const WRITERS: usize = 4;
/// MiB.
const SIZE: u32 = 512;
/// A first start writes some so many times, a later one so many: a power cut after fewer writes is one during it.
const WRITES_OF_A_FIRST_START: u64 = 300;
const WRITES_OF_A_START: u64 = 40;
/// The node is to be ready again after so long. A machine that has much else to do may take longer now and then.
const READY: Duration = Duration::from_secs(10);

/// Files that are made once, with what is in them.
type Kept = BTreeMap<PathBuf, Vec<u8>>;

/// The regular files below a directory that are the server's and the node's own: no layers of images, no containers' files.
fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        let others = ["layers", "upper", "volumes", "lost+found", "logs", "db"].iter().any(|name| path.ends_with(name));
        if kind.is_dir() && !others {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

/// Files are whole: keys, certificates, tokens, JSON, blobs of images; and those that are made once are as they were.
fn are_whole(data: &Path, kept: &mut Kept) {
    let mut all = Vec::new();
    files(data, &mut all);
    let mut kinds = BTreeMap::new();
    for path in all {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // what was being written has such a name, and is nobody's
        if name.starts_with('.') || path.components().any(|part| part.as_os_str() == "ingest") {
            continue;
        }
        // some go while others are looked at
        let Ok(content) = fs::read(&path) else { continue };
        let place = path.strip_prefix(data).unwrap();
        let kind = match path.extension().and_then(|e| e.to_str()) {
            Some("crt" | "pem" | "key") => {
                let text = String::from_utf8_lossy(&content);
                let ends = text.trim_end().ends_with("-----");
                assert!(text.starts_with("-----BEGIN ") && ends, "{}: {text:?}", place.display());
                "PEM"
            }
            Some("json") => {
                let parsed = serde_json::from_slice::<serde_json::Value>(&content);
                assert!(parsed.is_ok(), "{}: {parsed:?} {content:?}", place.display());
                "JSON"
            }
            _ if name.contains("token") || name.contains("password") => {
                assert!(content.len() > 10 && !content.contains(&0), "{}: {content:?}", place.display());
                "secret"
            }
            _ => "other",
        };
        *kinds.entry(kind).or_insert(0) += 1;
        let is_made_once = name.contains("-ca.") || kind == "secret" || name.starts_with("service");
        if is_made_once && place.starts_with("server") {
            assert_eq!(kept.entry(place.into()).or_insert_with(|| content.clone()), &content, "{}", place.display());
        }
    }
    assert!(["PEM", "secret"].iter().all(|kind| kinds.contains_key(kind)), "{kinds:?}");
    assert!(kept.keys().all(|place| data.join(place).exists()), "{:?}", kept.keys());
}

/// The layers of images are whole: of all files in them there is one hash, and the shell is that of this machine.
fn layers_are_whole(data: &Path, known: &mut BTreeMap<PathBuf, String>) {
    let mut all = Vec::new();
    let layers = fs::read_dir(data.join("agent/content/layers")).unwrap().flatten();
    layers.for_each(|layer| files(&layer.path().join("fs"), &mut all));
    let hash = |path: &Path| hex::encode(Sha256::digest(fs::read(path).unwrap()));
    assert!(all.iter().any(|path| path.ends_with("bin/busybox") && hash(path) == hash(Path::new("/bin/busybox"))));
    for path in all {
        let found = hash(&path);
        let place = path.strip_prefix(data).unwrap();
        assert_eq!(*known.entry(place.into()).or_insert_with(|| found.clone()), found, "{}", place.display());
    }
}

/// Nine of ten starts were as fast as they are to be.
fn were_fast(mut starts: Vec<Duration>) {
    starts.sort();
    let (median, worst) = (starts[starts.len() / 2], starts[starts.len() - 1]);
    println!("ready after {median:?}, {worst:?} at most");
    assert!(starts[(starts.len() * 9 / 10).saturating_sub(1)] < READY, "{starts:?}");
}

fn is_there(cluster: &Cluster) -> Result<(), String> {
    let out = cluster.try_kubectl(Kubectl::Newest, &["exec", "survivor", "--", "busybox", "echo", "whole"]);
    if out.stdout == b"whole\n" { Ok(()) } else { Err(String::from_utf8_lossy(&out.stderr).into_owned()) }
}

fn cuts() -> usize {
    std::env::var("EDGE_E2E_CUTS").map_or(CUTS, |text| text.parse().unwrap())
}

/// A cluster whose server has everything in its data directory, and the image of a disk with what is there before the first start.
fn prepare() -> (Cluster, PathBuf) {
    let mut cluster = Cluster::prepare_on_disk();
    let data = cluster.data_dir();
    for (flag, name) in [("write-kubeconfig", "edge.yaml"), ("pod-logs-dir", "logs")] {
        cluster.add_flag(format!("--{flag}={}", data.join(name).display()));
    }
    let image = cluster.dir.join("disk.img");
    (cluster, image)
}

#[test]
fn power_cuts_of_a_first_start_leave_a_machine_that_starts() {
    let mut random = Random::new();
    let (mut cluster, image) = prepare();
    let data = cluster.data_dir();
    let (mut during, mut starts) = (0, Vec::new());
    for cut in 0..cuts().div_ceil(2) {
        let disk = Disk::make(&image, &data, SIZE);
        let mut mounted = disk.mount(&data);
        disk.arm(1 + random.below(WRITES_OF_A_FIRST_START));
        let ready = cluster.try_launch(|| disk.is_dark());
        during += usize::from(ready.is_none());
        let losses = disk.cut(&mut random);
        println!("cut {cut}, ready {ready:?}: {losses:?}");
        cluster.cut_power(|| mounted.let_go());
        drop(mounted);
        disk.restore_power();
        mounted = disk.mount(&data);
        starts.push(cluster.try_launch(|| false).unwrap());
        fs::copy(data.join("edge.yaml"), cluster.kubeconfig()).unwrap();
        cluster.wait_for("node/node-1", "condition=Ready");
        cluster.kubectl(&["create", "configmap", "story"]);
        are_whole(&data, &mut Kept::new());
        disk.cut(&mut random);
        cluster.cut_power(|| mounted.let_go());
        drop(mounted);
    }
    println!("{during} during the start");
    assert!(during > 0);
    were_fast(starts);
}

#[test]
fn power_cuts_of_a_server_lose_nothing_that_was_acknowledged() {
    let cuts = cuts();
    let mut random = Random::new();
    let (mut cluster, image) = prepare();
    let data = cluster.data_dir();
    let disk = Disk::make(&image, &data, SIZE);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let knowledge = Arc::new(Mutex::new(Knowledge::default()));
    let (mut kept, mut layers) = (Kept::new(), BTreeMap::new());
    let (mut newest, mut acknowledged) = (0, 0);
    let (mut starts, mut longest, mut during_starts) = (Vec::new(), Duration::ZERO, 0);
    for cut in 0..=cuts {
        let mounted = disk.mount(&data);
        if cut < cuts && cut % 3 == 0 {
            disk.arm(1 + random.below(if cut == 0 { WRITES_OF_A_FIRST_START } else { WRITES_OF_A_START }));
        }
        let begun = Instant::now();
        let ready = cluster.try_launch(|| disk.is_dark());
        let Some(ready) = ready.filter(|_| disk.disarm()) else {
            during_starts += 1;
            let losses = disk.cut(&mut random);
            cluster.cut_power(|| mounted.let_go());
            println!("cut {cut}, during a start: {losses:?}");
            drop(mounted);
            disk.restore_power();
            continue;
        };
        fs::copy(data.join("edge.yaml"), cluster.kubeconfig()).unwrap();
        let client = runtime.block_on(crate::rust_client::client(&cluster));
        newest = runtime.block_on(writers::check(&client, &knowledge, newest));
        cluster.apply(SURVIVOR);
        eventually("the pod is there again", || is_there(&cluster));
        starts.push(ready);
        longest = longest.max(begun.elapsed());
        are_whole(&data, &mut kept);
        layers_are_whole(&data, &mut layers);
        if cut == cuts {
            break;
        }
        let (count, writing) = writers::start(&runtime, &client, &knowledge, WRITERS, cut);
        let enough = 20 + random.below(60) as usize;
        eventually("writes are acknowledged", || match count.load(Ordering::Relaxed) {
            n if n >= enough => Ok(()),
            n => Err(format!("{n} of {enough}")),
        });
        newest = newest.max(runtime.block_on(writers::volatile_version(&client)));
        let losses = disk.fail_after(1 + random.below(20), &mut random);
        cluster.cut_power(|| mounted.let_go());
        for writer in writing {
            runtime.block_on(async { tokio::time::timeout(crate::harness::PATIENCE, writer).await.unwrap().unwrap() });
        }
        acknowledged += count.load(Ordering::Relaxed);
        println!("cut {cut}: ready after {ready:?}, {} writes acknowledged, {losses:?}", count.load(Ordering::Relaxed));
        drop(mounted);
        disk.restore_power();
    }
    println!(
        "{cuts} cuts, {during_starts} during starts, {acknowledged} writes acknowledged; pod there after {longest:?} at most"
    );
    assert!(acknowledged >= 10 * (cuts - during_starts), "{acknowledged}");
    were_fast(starts);
}

/// Or else the tests above would prove nothing.
#[test]
fn the_disk_forgets_what_was_not_flushed() {
    let mut random = Random::new();
    let (mut cluster, image) = prepare();
    let data = cluster.data_dir();
    let disk = Disk::make(&image, &data, SIZE);
    let mounted = disk.mount(&data);
    let write = |name: &str| {
        let file = fs::File::create(data.join(name)).unwrap();
        std::io::Write::write_all(&mut &file, &[b'x'; 100_000]).unwrap();
        file
    };
    let _lost = write("lost");
    write("kept").sync_all().unwrap();
    // a name that is not flushed, for a content that is
    fs::rename(data.join("kept"), data.join("other name")).unwrap();
    disk.cut(&mut random);
    cluster.cut_power(|| mounted.let_go());
    drop(mounted);
    disk.restore_power();
    let _mounted = disk.mount(&data);
    assert_eq!(fs::read(data.join("kept")).unwrap(), [b'x'; 100_000]);
    assert!(!data.join("other name").exists());
    assert!(fs::read(data.join("lost")).unwrap_or_default().is_empty());
}
