//! What informers knew last, on disk: a node that starts without its server goes on by it.
//!
//! An informer that [`Informers::remember`](crate::Informers::remember)s begins with what its file holds; the first list from
//! the server takes its place. The file is written when what is kept of the objects has changed, not when an object has: a node's
//! heartbeat or a pod's condition costs nothing. It is written [`SETTLE`] later; [`BURST`] times in a row, then every
//! [`INTERVAL`]; and what is left at a clean end. So a power cut loses some seconds on a quiet cluster and five minutes on one
//! that never rests, which costs 288 files a day at most (of some 10 kB for a hundred services: a few MB a day, where a memory
//! card bears several GB a day for years).
//!
//! A file is gzip of lines of JSON: one that says what it holds, then one for each object. gzip's checksum tells damage; a damaged
//! or unknown file is left out.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use futures::FutureExt;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::informer::{Informer, InformerKind, Key};

/// How long after a change it is written: what belongs together usually comes together.
const SETTLE: Duration = Duration::from_secs(10);
/// The time between two writes of one file, in the long run.
const INTERVAL: Duration = Duration::from_secs(300);
/// How many writes may come in a row after a quiet time: somebody deploys something.
const BURST: u32 = 4;
/// The form of the files.
const VERSION: u32 = 1;
/// No file is larger when unpacked, in bytes: more is damage.
const LONGEST: u64 = 1 << 30;

/// The first line of a file.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Header {
    version: u32,
    resource: String,
    selector: String,
}

/// Makes of an object what is worth keeping of it.
pub type Keep<K> = fn(&mut K);

/// Writes what one informer knows.
pub(crate) struct Snapshot<K> {
    informer: Arc<Informer<K>>,
    file: PathBuf,
    selector: String,
    keep: Keep<K>,
    /// Digest of what is in the file; held while it is written.
    written: Mutex<Option<u64>>,
}

/// A snapshot of any kind.
pub(crate) trait Save: Send + Sync {
    /// Writes the file if what it should hold has changed. Blocks.
    /// Whether it was written.
    fn save(&self) -> bool;
}

impl<K: InformerKind + Serialize> Snapshot<K> {
    /// Reads what was written before into the informer, which nobody watches for yet.
    pub(crate) fn open(informer: Arc<Informer<K>>, dir: &Path, selector: &str, keep: Keep<K>) -> Arc<Self> {
        // `services`, `endpointslices.discovery.k8s.io`
        let mut name = format!("{}.{}", K::plural(&()), K::group(&())).trim_end_matches('.').to_owned();
        if !selector.is_empty() {
            // what a selector may contain is no matter for a file's name; which selector it was is in the file
            let mut hasher = DefaultHasher::new();
            hasher.write(selector.as_bytes());
            name = format!("{name}-{:016x}", hasher.finish());
        }
        let file = dir.join(format!("{name}.json.gz"));
        let snapshot = Self { informer, file, selector: selector.to_owned(), keep, written: Mutex::new(None) };
        let file = snapshot.file.display();
        match snapshot.read() {
            Ok(Some(objects)) => {
                tracing::info!(%file, objects = objects.len(), "beginning with what was known last");
                snapshot.informer.restore(objects);
                *snapshot.written.lock() = snapshot.encode(&mut io::sink()).ok();
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%file, %error, "what was known last cannot be read, waiting for the server"),
        }
        Arc::new(snapshot)
    }

    fn header(&self) -> Header {
        Header { version: VERSION, resource: K::plural(&()).into_owned(), selector: self.selector.clone() }
    }

    fn read(&self) -> io::Result<Option<Vec<K>>> {
        let file = match File::open(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut lines = BufReader::new(GzDecoder::new(BufReader::new(file)).take(LONGEST));
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let header: Header = serde_json::from_str(&line)?;
        if header != self.header() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it holds something else, or is of another version",
            ));
        }
        // the whole file before any of it is believed: the checksum is at its end
        let mut objects = Vec::new();
        loop {
            line.clear();
            if lines.read_line(&mut line)? == 0 {
                return Ok(Some(objects));
            }
            objects.push(serde_json::from_str(&line)?);
        }
    }

    /// Writes the informer's objects; gives a digest of what was written.
    fn encode(&self, to: &mut dyn Write) -> io::Result<u64> {
        let mut objects = self.informer.list();
        objects.sort_by_cached_key(|object| Key::of(object.as_ref()));
        let mut digest = DefaultHasher::new();
        let mut line = serde_json::to_vec(&self.header())?;
        for object in std::iter::once(None).chain(objects.into_iter().map(Some)) {
            if let Some(object) = object {
                let mut kept = K::clone(&object);
                (self.keep)(&mut kept);
                // it changes with everything that is not kept
                kept.meta_mut().resource_version = None;
                line = serde_json::to_vec(&kept)?;
            }
            line.push(b'\n');
            digest.write(&line);
            to.write_all(&line)?;
        }
        Ok(digest.finish())
    }

    fn try_save(&self) -> io::Result<bool> {
        // what was read from the file is not written back
        if !self.informer.has_synced() {
            return Ok(false);
        }
        let mut written = self.written.lock();
        if *written == Some(self.encode(&mut io::sink())?) {
            return Ok(false);
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        // an object may have changed since: what counts is what is written
        let digest = self.encode(&mut packed)?;
        edge_sys::fsutil::write_atomic(&self.file, &packed.finish()?, 0o600)?;
        *written = Some(digest);
        Ok(true)
    }

    /// Writes the file after changes, for ever.
    pub(crate) async fn follow(self: Arc<Self>) {
        // every write puts this an interval further; it may be some intervals ahead of now (GCRA)
        let mut paid_until = Instant::now();
        loop {
            self.informer.changed().await;
            let settled = Instant::now() + SETTLE;
            let allowed = paid_until.checked_sub(INTERVAL * (BURST - 1)).unwrap_or(settled);
            tokio::time::sleep_until(settled.max(allowed)).await;
            // what came meanwhile is written with it
            let _ = self.informer.changed().now_or_never();
            let snapshot = self.clone();
            // a panic in there has been told of already
            if tokio::task::spawn_blocking(move || snapshot.save()).await.unwrap_or(true) {
                paid_until = paid_until.max(Instant::now()) + INTERVAL;
            }
        }
    }
}

impl<K: InformerKind + Serialize> Save for Snapshot<K> {
    fn save(&self) -> bool {
        self.try_save().unwrap_or_else(|error| {
            tracing::warn!(file = %self.file.display(), %error, "what is known was not written");
            true
        })
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::{Change, Informers, local};
    use http_body_util::{BodyExt, Full};
    use k8s_openapi::api::core::v1::Node;
    use serde_json::json;
    use std::os::unix::fs::MetadataExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::watch;

    /// A server that has some nodes, or is away.
    struct Server {
        nodes: watch::Sender<Vec<(&'static str, u64)>>,
        client: crate::Client,
    }

    /// A node with an address, and something that always changes.
    fn node(name: &str, address: u64) -> serde_json::Value {
        static BEAT: AtomicU64 = AtomicU64::new(1);
        let beat = BEAT.fetch_add(1, Ordering::Relaxed).to_string();
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": beat},
            "status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{address}")}],
                "nodeInfo": {"machineID": beat, "systemUUID": "", "bootID": "", "kernelVersion": "", "osImage": "",
                    "containerRuntimeVersion": "", "kubeletVersion": "", "kubeProxyVersion": "", "operatingSystem": "",
                    "architecture": ""}}})
    }

    fn keep(node: &mut Node) {
        node.status.as_mut().unwrap().node_info = None;
    }

    impl Server {
        fn new(nodes: &[(&'static str, u64)]) -> Self {
            let (sender, receiver) = watch::channel(nodes.to_vec());
            let client = local(move |request| {
                let mut nodes = receiver.clone();
                Box::pin(async move {
                    let body = if request.uri().query().is_some_and(|query| query.contains("watch=true")) {
                        // until something changes: then it is listed again
                        nodes.borrow_and_update();
                        let _ = nodes.changed().await;
                        json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                            "message": "too old", "reason": "Expired", "code": 410}})
                        .to_string()
                            + "\n"
                    } else {
                        let items: Vec<_> = nodes.borrow().iter().map(|(name, ip)| node(name, *ip)).collect();
                        if items.is_empty() {
                            std::future::pending::<()>().await;
                        }
                        json!({"apiVersion": "v1", "kind": "NodeList", "metadata": {"resourceVersion": "1"}, "items": items})
                            .to_string()
                    };
                    let body = Full::new(bytes::Bytes::from(body)).map_err(|never| match never {});
                    http::Response::new(body.boxed_unsync())
                })
            });
            Self { nodes: sender, client }
        }

        fn informers(&self, dir: &Path) -> (Informers, Arc<Informer<Node>>) {
            let informers = Informers::new(self.client.clone());
            informers.remember::<Node>(dir, "", keep);
            let nodes = informers.of::<Node>();
            (informers, nodes)
        }
    }

    fn address(informer: &Informer<Node>, name: &str) -> Option<String> {
        let node = informer.get("", name)?;
        Some(node.status.as_ref()?.addresses.as_ref()?[0].address.clone())
    }

    fn only_file(dir: &Path) -> Option<PathBuf> {
        let mut files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let first = files.next();
        assert_eq!(files.next(), None);
        first
    }

    #[tokio::test]
    async fn what_was_known_is_known_without_the_server() {
        let dir = tempfile::tempdir().unwrap();
        let (informers, nodes) = Server::new(&[("a", 1), ("b", 2)]).informers(dir.path());
        nodes.synced().await;
        informers.save().await;
        drop((informers, nodes));

        let server = Server::new(&[]);
        let (informers, nodes) = server.informers(dir.path());
        nodes.known().await;
        assert!(!nodes.has_synced());
        assert_eq!(address(&nodes, "b").unwrap(), "192.0.2.2");
        let kept = nodes.get("", "a").unwrap();
        assert!(kept.metadata.resource_version.is_none() && kept.status.as_ref().unwrap().node_info.is_none());
        let before = std::fs::metadata(only_file(dir.path()).unwrap()).unwrap().modified().unwrap();
        informers.save().await;
        let after = std::fs::metadata(only_file(dir.path()).unwrap()).unwrap().modified().unwrap();
        assert_eq!(before, after, "what comes from the disk is not written to it");

        // the server is back: what is new, what changed, and what is gone are ordinary changes
        let mut changes = nodes.subscribe();
        for _ in 0..2 {
            assert!(matches!(changes.recv().await.unwrap(), Change::Applied { old: None, .. }));
        }
        drop((informers, nodes));
        let (_informers, nodes) = Server::new(&[("b", 3), ("c", 4)]).informers(dir.path());
        let mut changes = nodes.subscribe();
        nodes.synced().await;
        let mut known: Vec<(bool, String)> = Vec::new();
        while let Ok(change) = changes.try_recv() {
            known.push((matches!(change, Change::Deleted(_)), change.object().metadata.name.clone().unwrap()));
        }
        assert!(known.contains(&(true, "a".into())) && known.contains(&(false, "c".into())), "{known:?}");
        assert_eq!(address(&nodes, "b").unwrap(), "192.0.2.3");
        assert_eq!(address(&nodes, "a"), None);
    }

    #[tokio::test]
    async fn damaged_and_foreign_files_are_left_out() {
        let dir = tempfile::tempdir().unwrap();
        let (informers, nodes) = Server::new(&[("a", 1), ("b", 2)]).informers(dir.path());
        nodes.synced().await;
        informers.save().await;
        let file = only_file(dir.path()).unwrap();
        let good = std::fs::read(&file).unwrap();
        let mut damaged: Vec<Vec<u8>> = vec![Vec::new(), b"nonsense".to_vec(), good[..good.len() - 1].to_vec()];
        for position in 0..good.len() {
            // the header's time, flags and system say nothing about the content
            if (3..10).contains(&position) {
                continue;
            }
            let mut one = good.clone();
            one[position] ^= 0x10;
            damaged.push(one);
        }
        let mut packed = GzEncoder::new(Vec::new(), Compression::default());
        packed.write_all(b"{\"version\":2,\"resource\":\"nodes\",\"selector\":\"\"}\n").unwrap();
        damaged.push(packed.finish().unwrap());
        let mut whole = 0;
        for content in damaged {
            std::fs::write(&file, &content).unwrap();
            let (_informers, nodes) = Server::new(&[]).informers(dir.path());
            // some bits of a packed stream mean nothing
            let found: Vec<_> = ["a", "b"].iter().filter_map(|name| address(&nodes, name)).collect();
            assert!(found.is_empty() || found == ["192.0.2.1", "192.0.2.2"], "{found:?} {content:?}");
            assert!(!nodes.has_synced());
            whole += usize::from(!found.is_empty());
        }
        assert!(whole < 3, "{whole} damaged files were believed");
        std::fs::write(&file, good).unwrap();
        assert_eq!(Server::new(&[]).informers(dir.path()).1.list().len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn files_are_written_rarely() {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(&[("a", 1)]);
        let (_informers, nodes) = server.informers(dir.path());
        // time passes only while no thread writes
        let pass = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        nodes.synced().await;
        pass(5).await;
        assert_eq!(only_file(dir.path()), None, "not at once");
        pass(6).await;
        let file = only_file(dir.path()).expect("soon after the first change");
        let stamp = || std::fs::metadata(&file).unwrap().ino();
        // churn: for half an hour something changes every few seconds
        let (mut writes, mut last) = (1, stamp());
        for round in 0..360_u64 {
            server.nodes.send_replace(vec![("a", round % 200)]);
            pass(5).await;
            if std::mem::replace(&mut last, stamp()) != last {
                writes += 1;
            }
        }
        assert!((6..=10).contains(&writes), "four and one every five minutes: {writes}");
        pass(900).await;
        let settled = stamp();
        // heartbeats change nothing that is kept
        for _ in 0..20 {
            server.nodes.send_modify(|_| {});
            pass(60).await;
        }
        assert_eq!(stamp(), settled);
        server.nodes.send_replace(vec![("b", 1)]);
        pass(11).await;
        assert_ne!(stamp(), settled, "after a quiet time changes are written soon");
    }
}
