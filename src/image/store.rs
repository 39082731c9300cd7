//! The image store: what images there are, adding and removing them.
//!
//! All state is in memory and on disk at the same time; the disk is written first. Changes run one at a time on
//! blocking threads, reading takes a short lock and never touches the disk.

use crate::archive;
use crate::content::ContentDir;
use crate::digest::Digest;
use crate::distribution::Registries;
use crate::error::Error;
use crate::image::{DiskUsage, Image, ImageConfig, ImageKind, Progress, ProgressFn};
use crate::layers::{self, LayerRecord, LayerSource, chain_ids};
use crate::module;
use crate::platform::Platform;
use crate::pull::Pulls;
use crate::record::{self, Record};
use crate::reference::Reference;
use crate::unpack::Limits;
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How to open an [`ImageStore`].
#[derive(Clone, Debug)]
pub struct ImageStoreConfig {
    /// `<data-dir>/agent/content`; made when missing.
    pub content_dir: PathBuf,
    /// What images are chosen for, mostly [`Platform::host`].
    pub platform: Platform,
    /// Sizes beyond which a layer or archive is refused.
    pub limits: Limits,
    /// The registries to pull from, mostly [`Registries::load`] of `registries.yaml`.
    pub registries: Registries,
}

/// The images of this node. Cheap to clone; all clones are the same store.
#[derive(Clone)]
pub struct ImageStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) content: ContentDir,
    pub(crate) platform: Platform,
    pub(crate) limits: Limits,
    pub(crate) pulls: Pulls,
    state: Mutex<State>,
    /// Digests of programs in layers, by their files.
    pub(crate) programs: Mutex<HashMap<PathBuf, Digest>>,
    /// Held while the store changes on disk.
    changing: Mutex<()>,
}

#[derive(Default)]
struct State {
    records: HashMap<Digest, Record>,
    images: HashMap<Digest, Arc<Image>>,
    /// `name:tag` and `name@digest` to image id.
    names: HashMap<String, Digest>,
    layers: HashMap<Digest, LayerRecord>,
    /// Layers that a pull in progress counts on.
    leased: HashMap<Digest, usize>,
}

/// What to reclaim, and what to leave alone.
#[derive(Clone, Debug, Default)]
pub struct GarbagePolicy {
    /// Ids of images that containers use.
    pub keep: HashSet<Digest>,
    /// How many bytes of images to free by removing the least recently used ones; 0 removes only what belongs to no image.
    pub free_bytes: u64,
    /// Images used more recently than this ago stay.
    pub unused_for: Duration,
}

/// What a collection of garbage removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Ids of removed images.
    pub images: Vec<Digest>,
    /// Bytes of removed layers.
    pub bytes: u64,
}

/// An image about to be added: checked documents, and where its layers are.
#[derive(Debug)]
pub(crate) struct NewImage {
    pub(crate) id: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) kind: ImageKind,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    pub(crate) size: u64,
    pub(crate) pinned: bool,
    pub(crate) layers: Vec<LayerSource>,
    /// The file of a WebAssembly module, to be moved into the store.
    pub(crate) module: Option<(Digest, PathBuf)>,
}

impl ImageStore {
    /// Opens the store, making it when there is none, and removes what a crash left unfinished. Blocking.
    ///
    /// # Errors
    /// When the directory cannot be read or written, or was written by a newer version.
    pub fn open(config: ImageStoreConfig) -> Result<Self, Error> {
        let content = ContentDir::open(&config.content_dir)?;
        let layers = layers::load(&content)?;
        let records = record::load(&content, &layers)?;
        let mut state = State { layers, ..State::default() };
        for record in records.into_values() {
            let added = record.added();
            state.insert(&content, record, added);
        }
        let inner = Inner {
            content,
            platform: config.platform,
            limits: config.limits,
            pulls: Pulls::new(config.registries),
            state: Mutex::new(state),
            programs: Mutex::default(),
            changing: Mutex::new(()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Imports all images of an OCI or docker archive (plain, gzip or zstd) that fit this machine, pinned.
    ///
    /// All of them or none become visible.
    ///
    /// # Errors
    /// [`Error::Archive`] naming the file, with the reason in [`Error::root`]; the store is then as it was.
    pub async fn import_archive(
        &self,
        path: &Path,
        progress: impl Fn(Progress) + Send + Sync + 'static,
    ) -> Result<Vec<Arc<Image>>, Error> {
        let (inner, path) = (Arc::clone(&self.inner), path.to_owned());
        blocking(move || {
            let imported = archive::import(&inner, &path, &progress);
            imported.map_err(|reason| Error::Archive { path, reason: Box::new(reason) })
        })
        .await
    }

    /// The image of that id (`sha256:…` or its hex digits alone) or name, if it is here.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.inner.state.lock();
        let id = match name.parse().or_else(|_| format!("sha256:{name}").parse()) {
            Ok(id) => id,
            Err(_) => state.resolve(&name.parse().ok()?)?,
        };
        state.images.get(&id).cloned()
    }

    /// The image that `reference` names, if it is here.
    #[must_use]
    pub fn get_reference(&self, reference: &Reference) -> Option<Arc<Image>> {
        let state = self.inner.state.lock();
        state.images.get(&state.resolve(reference)?).cloned()
    }

    /// The image that `reference` names for a pod that runs WebAssembly: of an index with native programs, too, the WebAssembly.
    /// `None` also when it is only known that there is one.
    #[must_use]
    pub fn get_wasm(&self, reference: &Reference) -> Option<Arc<Image>> {
        let state = self.inner.state.lock();
        let named = State::name(reference).and_then(|name| state.names.get(&record::wasm_name(&name)));
        match named.and_then(|id| state.images.get(id)) {
            Some(image) if image.kind == ImageKind::Container => None,
            Some(image) => Some(Arc::clone(image)),
            None => state.images.get(&state.resolve(reference)?).cloned(),
        }
    }

    /// All images, by id.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<Image>> {
        let mut images: Vec<_> = self.inner.state.lock().images.values().cloned().collect();
        images.sort_by_key(|image| image.id);
        images
    }

    /// Notes that a container uses image `id` now. In memory only: an idle node writes nothing, and after a restart
    /// every image counts as used when it was added, until it is touched again.
    pub fn touch(&self, id: Digest) {
        if let Some(image) = self.inner.state.lock().images.get_mut(&id) {
            Arc::make_mut(image).last_used = SystemTime::now();
        }
    }

    /// Removes the image of that id or name, with its layers as far as no other image has them; pinned ones too. The
    /// caller makes sure that no container uses it. Returns whether there was one.
    ///
    /// # Errors
    /// When the disk refuses.
    pub async fn remove(&self, name: &str) -> Result<bool, Error> {
        let Some(image) = self.get(name) else { return Ok(false) };
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _changing = inner.changing.lock();
            inner.remove(image.id)?;
            inner.sweep().map(|_| true)
        })
        .await
    }

    /// Removes layers, modules and partial downloads that belong to no image, then as many unused images as `policy`
    /// asks for.
    ///
    /// # Errors
    /// When the disk refuses; what was removed until then stays removed.
    pub async fn collect_garbage(&self, policy: GarbagePolicy) -> Result<Reclaimed, Error> {
        let inner = Arc::clone(&self.inner);
        blocking(move || inner.collect_garbage(&policy)).await
    }

    /// What the images take, and what the file system has left.
    ///
    /// # Errors
    /// When the file system cannot be asked.
    pub fn usage(&self) -> Result<DiskUsage, Error> {
        let root = self.inner.content.root();
        let fs = rustix::fs::statvfs(root).map_err(|errno| Error::io("stat", root)(errno.into()))?;
        let state = self.inner.state.lock();
        Ok(DiskUsage {
            used_bytes: state.layers.values().map(|layer| layer.bytes).sum(),
            used_inodes: state.layers.values().map(|layer| layer.inodes).sum(),
            capacity_bytes: fs.f_blocks.saturating_mul(fs.f_frsize),
            available_bytes: fs.f_bavail.saturating_mul(fs.f_frsize),
            capacity_inodes: fs.f_files,
            available_inodes: fs.f_favail,
        })
    }
}

impl Inner {
    /// Unpacks and records `images`; all become visible, or none.
    pub(crate) fn add(&self, images: Vec<NewImage>, progress: &ProgressFn) -> Result<Vec<Arc<Image>>, Error> {
        let _changing = self.changing.lock();
        let added = self.add_locked(images, progress);
        if added.is_err() {
            // What was unpacked before the failure belongs to no image. The error to report is the first one.
            if let Err(error) = self.sweep() {
                tracing::warn!(%error, "clean up after a failed import");
            }
        }
        added
    }

    fn add_locked(&self, mut images: Vec<NewImage>, progress: &ProgressFn) -> Result<Vec<Arc<Image>>, Error> {
        for image in &mut images {
            let known = self.state.lock().layers.clone();
            let new = layers::unpack_missing(&self.content, &known, &image.layers, &self.limits, progress)?;
            self.state.lock().layers.extend(new.into_iter().map(|layer| (layer.chain_id, layer)));
            let chains = chain_ids(image.layers.iter().map(|layer| layer.diff_id));
            let lower_dirs: Vec<_> = chains.iter().rev().map(|chain| self.content.layer_fs(*chain)).collect();
            image.kind = module::kind(image.kind.clone(), &image.config, &lower_dirs)?;
            if let Some((digest, file)) = &image.module {
                let blob = self.content.blob(*digest);
                // Several artifacts may hold the same module.
                if !blob.exists() {
                    module::check(*digest, file)?;
                    self.content.publish(file, &blob)?;
                    self.content.sync()?;
                }
            }
        }
        images.into_iter().map(|image| self.record(image)).collect()
    }

    /// Writes the record of an image whose layers are in place, and takes its tags from images that had them.
    fn record(&self, new: NewImage) -> Result<Arc<Image>, Error> {
        let chains = chain_ids(new.layers.iter().map(|layer| layer.diff_id));
        let mut record = Record::new(new.id, new.config, new.kind, chains, new.size);
        let mut losers = Vec::new();
        {
            let state = self.state.lock();
            if let Some(old) = state.records.get(&new.id) {
                record.repo_tags.clone_from(&old.repo_tags);
                record.repo_digests.clone_from(&old.repo_digests);
                record.pinned = old.pinned;
            }
            for other in state.records.values().filter(|other| other.id != new.id) {
                if new.repo_tags.iter().any(|tag| other.repo_tags.contains(tag) && other.contends(&record.kind, tag)) {
                    losers.push(other.clone());
                }
            }
        }
        record.pinned |= new.pinned;
        record.repo_digests.extend(new.repo_digests);
        for loser in &mut losers {
            let lost = |tag: &String| new.repo_tags.contains(tag) && loser.contends(&record.kind, tag);
            loser.repo_tags = loser.repo_tags.iter().filter(|tag| !lost(tag)).cloned().collect();
        }
        record.repo_tags.extend(new.repo_tags);
        for record in losers.iter().chain([&record]) {
            self.content.write_json(&Record::path(&self.content, record.id), record)?;
        }
        let mut state = self.state.lock();
        for loser in losers {
            let last_used = state.images.get(&loser.id).map_or(SystemTime::UNIX_EPOCH, |image| image.last_used);
            state.insert(&self.content, loser, last_used);
        }
        Ok(state.insert(&self.content, record, SystemTime::now()))
    }

    fn remove(&self, id: Digest) -> Result<(), Error> {
        self.content.retract(&Record::path(&self.content, id))?;
        let mut state = self.state.lock();
        state.records.remove(&id);
        state.images.remove(&id);
        state.names.retain(|_, named| *named != id);
        state.find_names_again();
        Ok(())
    }

    /// Removes what belongs to no image; returns the bytes of the removed layers. The caller holds `changing`.
    fn sweep(&self) -> Result<u64, Error> {
        let (unused, modules) = {
            let mut state = self.state.lock();
            let mut used: HashSet<Digest> = state.records.values().flat_map(|r| r.layers.iter().copied()).collect();
            used.extend(state.leased.keys().copied());
            let unused: Vec<LayerRecord> =
                state.layers.values().filter(|layer| !used.contains(&layer.chain_id)).cloned().collect();
            for layer in &unused {
                state.layers.remove(&layer.chain_id);
            }
            let modules: HashSet<PathBuf> = state
                .records
                .values()
                .filter_map(|record| match record.kind {
                    ImageKind::WasmModule { module } => Some(self.content.blob(module)),
                    ImageKind::Container | ImageKind::WasmRootfs { .. } => None,
                })
                .collect();
            (unused, modules)
        };
        for layer in &unused {
            self.content.retract(&self.content.layer(layer.chain_id))?;
        }
        for blob in crate::content::read_dir(&self.content.blobs())? {
            if !modules.contains(&blob) {
                self.content.retract(&blob)?;
            }
        }
        Ok(unused.iter().map(|layer| layer.bytes).sum())
    }

    fn collect_garbage(&self, policy: &GarbagePolicy) -> Result<Reclaimed, Error> {
        let _changing = self.changing.lock();
        for partial in self.content.partials()? {
            if !self.pulls.is_fetching(&partial) {
                crate::content::remove_any(&partial)?;
            }
        }
        let mut reclaimed = Reclaimed { images: Vec::new(), bytes: self.sweep()? };
        while reclaimed.bytes < policy.free_bytes {
            let Some(id) = self.state.lock().least_recently_used(policy) else { break };
            self.remove(id)?;
            reclaimed.images.push(id);
            reclaimed.bytes += self.sweep()?;
        }
        Ok(reclaimed)
    }

    /// Keeps the unpacked layers of `chains` from being collected until the guard is dropped, and says which there are.
    pub(crate) fn lease(self: &Arc<Self>, chains: &[Digest]) -> (Lease, Vec<bool>) {
        let mut state = self.state.lock();
        for chain in chains {
            *state.leased.entry(*chain).or_default() += 1;
        }
        let present = chains.iter().map(|chain| state.layers.contains_key(chain)).collect();
        (Lease { inner: Arc::clone(self), chains: chains.to_vec() }, present)
    }

    /// Whether any image has this name.
    pub(crate) fn knows(&self, name: &str) -> bool {
        self.state.lock().names.contains_key(name)
    }

    /// The image that has the repository digest `name@digest`.
    pub(crate) fn find(&self, name: &str) -> Option<Arc<Image>> {
        let state = self.state.lock();
        state.images.get(state.names.get(name)?).cloned()
    }

    /// Gives an image that is here already further names.
    pub(crate) fn add_names(&self, id: Digest, tags: Vec<String>, digests: Vec<String>) -> Result<Arc<Image>, Error> {
        let _changing = self.changing.lock();
        let known = self.state.lock().records.get(&id).cloned();
        let Some(old) = known else {
            return Err(Error::malformed(format!("image {id}"), "was removed while it was pulled"));
        };
        let layers = self.state.lock().sources(&old);
        self.record(NewImage {
            id,
            config: old.config,
            kind: old.kind,
            repo_tags: tags,
            repo_digests: digests,
            size: old.size,
            pinned: false,
            layers,
            module: None,
        })
    }
}

impl State {
    fn insert(&mut self, content: &ContentDir, record: Record, last_used: SystemTime) -> Arc<Image> {
        let id = record.id;
        self.names.retain(|_, named| *named != id);
        for name in record.names() {
            let has = |id: &Digest| self.images.get(id).is_some_and(|image| image.kind != ImageKind::Container);
            let kept = record.is_native() && record::is_wasm_name(name) && self.names.get(name).is_some_and(has);
            if !kept {
                self.names.insert(name.clone(), id);
            }
        }
        let image = Arc::new(record.to_image(content, last_used));
        self.images.insert(id, Arc::clone(&image));
        self.records.insert(id, record);
        image
    }

    /// Gives names that are free again to images which have them, too.
    fn find_names_again(&mut self) {
        for record in self.records.values() {
            for name in record.names().filter(|name| record::is_wasm_name(name)) {
                self.names.entry(name.clone()).or_insert(record.id);
            }
        }
    }

    fn name(reference: &Reference) -> Option<String> {
        match reference.digest() {
            Some(digest) => Some(reference.repo_digest(digest)),
            None => reference.repo_tag(),
        }
    }

    fn resolve(&self, reference: &Reference) -> Option<Digest> {
        self.names.get(&Self::name(reference)?).copied()
    }

    fn sources(&self, record: &Record) -> Vec<LayerSource> {
        let known = record.layers.iter().filter_map(|chain| self.layers.get(chain));
        known.map(|layer| LayerSource { diff_id: layer.diff_id, blob: None }).collect()
    }

    fn least_recently_used(&self, policy: &GarbagePolicy) -> Option<Digest> {
        let now = SystemTime::now();
        let unused = |image: &&Arc<Image>| {
            let age = now.duration_since(image.last_used).unwrap_or_default();
            !image.pinned && !policy.keep.contains(&image.id) && age >= policy.unused_for
        };
        self.images.values().filter(unused).min_by_key(|image| image.last_used).map(|image| image.id)
    }
}

/// Keeps layers from being collected.
pub(crate) struct Lease {
    inner: Arc<Inner>,
    chains: Vec<Digest>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.inner.state.lock();
        for chain in &self.chains {
            if let Some(count) = state.leased.get_mut(chain) {
                *count -= 1;
                if *count == 0 {
                    state.leased.remove(chain);
                }
            }
        }
    }
}

/// Runs `work` where blocking is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await.map_err(Error::Worker)?
}
