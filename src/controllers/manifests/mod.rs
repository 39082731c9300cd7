//! Manifests in a watched directory are applied when they appear or change, and pruned when they or parts of them go.
//!
//! What each file has applied is remembered in a ConfigMap of `kube-system`, so that a file taken away
//! while edge was down is pruned at the next start. A broken file changes nothing: its last good state stays, an Event
//! and a log line say which file and line.

mod applied;
mod apply;
mod parse;
mod watch;

use crate::context::Context;
use applied::{Applied, Reference};
use apply::Applier;
use edge_client::{EventType, WorkQueue};
use k8s_openapi::api::core::v1::ObjectReference;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// First pause before something that the API refused is tried again; it doubles up to the longest.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// What the deployer must be told.
#[derive(Clone, Debug)]
pub struct ManifestsOptions {
    /// The watched directory; made when it is absent.
    pub directory: PathBuf,
    /// Name of the ConfigMap in which is remembered what was applied; each server with a directory has its own.
    pub record: String,
}

/// Runs the deployer, for ever; dropping the future ends it.
pub async fn run(context: Context, options: ManifestsOptions) {
    let queue = WorkQueue::<Scan>::new();
    let mut deployer = Deployer {
        applier: Applier::new(context.client.clone()),
        applied: Applied::new(context.client.clone(), options.record),
        seen: BTreeMap::new(),
        delay: FIRST_RETRY,
        directory: options.directory.clone(),
        context,
    };
    queue.add(Scan);
    let watcher = watch::run(options.directory, {
        let queue = queue.clone();
        move || queue.add(Scan)
    });
    tokio::join!(watcher, deployer.run(queue));
}

/// The only key of the queue: look at the directory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Scan;

struct Deployer {
    context: Context,
    applier: Applier,
    applied: Applied,
    directory: PathBuf,
    /// Content (by its hash) with which each file was last dealt with, whatever came of it.
    seen: BTreeMap<String, u64>,
    delay: Duration,
}

impl Deployer {
    async fn run(&mut self, queue: Arc<WorkQueue<Scan>>) {
        loop {
            let scan = queue.next().await;
            match self.scan().await {
                Ok(true) => self.delay = FIRST_RETRY,
                Ok(false) => {
                    queue.add_after(Scan, self.delay);
                    self.delay = (self.delay * 2).min(LONGEST_RETRY);
                }
                Err(error) => {
                    tracing::warn!(%error, directory = %self.directory.display(), "cannot look at the manifests");
                    queue.add_after(Scan, self.delay);
                    self.delay = (self.delay * 2).min(LONGEST_RETRY);
                }
            }
            queue.done(&scan);
        }
    }

    /// Brings the cluster to what the files say; `false` when something has to be tried again.
    async fn scan(&mut self) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
        let directory = self.directory.clone();
        let files = tokio::task::spawn_blocking(move || watch::files(&directory)).await??;
        self.applied.load().await?;
        let mut settled = true;
        for (name, file) in &files {
            if file.skipped || self.seen.get(name) == Some(&file.hash) {
                continue;
            }
            if self.deploy(name, &file.text).await? {
                self.seen.insert(name.clone(), file.hash);
            } else {
                settled = false;
            }
        }
        // a suspended file is neither applied nor pruned
        let gone: Vec<String> = self.applied.files().filter(|f| !files.contains_key(*f)).map(str::to_owned).collect();
        for name in gone {
            tracing::info!(file = name, "manifest is gone, pruning what it applied");
            settled &= self.prune(&name, &[]).await?;
        }
        self.seen.retain(|name, _| files.get(name).is_some_and(|f| !f.skipped));
        Ok(settled)
    }

    /// Applies one file; `false` when the API refused something that may work later.
    async fn deploy(&mut self, name: &str, text: &str) -> Result<bool, edge_client::Error> {
        let objects = match parse::documents(text) {
            Ok(objects) => objects,
            Err(error) => {
                let path = self.directory.join(name);
                self.complain(name, "ParseManifestFailed", &format!("{}: {error}", path.display()));
                return Ok(true);
            }
        };
        let mut references = Vec::new();
        let mut failures = Vec::new();
        for object in apply::ordered(objects) {
            match self.applier.apply(&object).await {
                Ok(reference) => references.push(reference),
                Err(error) => failures.push(format!("line {}: {error}", object.line)),
            }
        }
        if failures.is_empty() {
            let settled = self.prune(name, &references).await?;
            tracing::info!(file = name, objects = references.len(), "manifest applied");
            return Ok(settled);
        }
        // what worked is remembered, what was there before is kept
        self.applied.add(name, &references).await?;
        let path = self.directory.join(name);
        self.complain(name, "ApplyManifestFailed", &format!("{}: {}", path.display(), failures.join("; ")));
        Ok(false)
    }

    /// Deletes what a file applied before and does not name any more, and remembers what it names.
    async fn prune(&mut self, name: &str, keep: &[Reference]) -> Result<bool, edge_client::Error> {
        let mut left = Vec::new();
        for reference in self.applied.of(name).into_iter().rev().filter(|r| !keep.iter().any(|k| k.same(r))) {
            if self.applied.others_have(name, &reference) {
                continue;
            }
            if let Err(error) = self.applier.delete(&reference).await {
                tracing::warn!(file = name, object = %reference, %error, "cannot prune, trying again");
                left.push(reference);
            }
        }
        let settled = left.is_empty();
        let remembered: Vec<Reference> = keep.iter().cloned().chain(left).collect();
        self.applied.set(name, &remembered).await?;
        Ok(settled)
    }

    /// Tells people what is wrong with a file: a log line, and an Event about the remembered state.
    fn complain(&self, name: &str, reason: &str, message: &str) {
        tracing::error!(file = name, "{message}");
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("ConfigMap".into()),
            namespace: Some(applied::NAMESPACE.into()),
            name: Some(self.applied.name.clone()),
            ..ObjectReference::default()
        };
        self.context.recorder.event_ref(about, EventType::Warning, reason, message);
    }
}

/// The path of a file below the watched directory, with slashes.
fn relative(directory: &Path, file: &Path) -> Option<String> {
    file.strip_prefix(directory).ok()?.to_str().map(str::to_owned)
}
