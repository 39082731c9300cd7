//! Pulling an image: from its name to unpacked layers, trying endpoints and credentials in order.

use crate::archive::layer_sources;
use crate::digest::Digest;
use crate::distribution::{BlobTarget, Credentials, FetchedManifest, Registries, RegistryError, Repository, Transport};
use crate::error::Error;
use crate::image::{Image, Progress, ProgressFn};
use crate::layers::chain_ids;
use crate::oci::{self, ConfigFile, Descriptor, Document, Manifest};
use crate::platform::Choice;
use crate::record;
use crate::reference::Reference;
use crate::store::{ImageStore, Inner, NewImage, blocking};
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::{self, StreamExt, TryStreamExt};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::OwnedMutexGuard;

/// Layers that are fetched at the same time.
const PARALLEL_LAYERS: usize = 3;

/// How to pull.
#[derive(Clone, Default)]
pub struct PullOptions {
    /// Tried one after the other at the image's own registry (never at mirrors), mostly of
    /// [`Keyring::lookup`](crate::Keyring::lookup). Without any, those of `registries.yaml`, then none.
    pub credentials: Vec<Credentials>,
    /// What is wanted of an index that has both.
    pub choice: Choice,
    /// Told what happens; when several pulls of the same image run, only the first one's is.
    pub progress: Option<Arc<ProgressFn>>,
}

type PullResult = Result<Arc<Image>, Arc<Error>>;
/// Image name, credentials (whoever may not see an image must not get it from somebody else's pull), and what is wanted of it.
type PullKey = (String, Vec<Credentials>, Choice);
type PullFuture = BoxFuture<'static, PullResult>;

/// Pulls in progress, and the registries to pull from.
pub(crate) struct Pulls {
    registries: Registries,
    /// Pulls of the same image with the same credentials share one download, which ends when nobody waits any more.
    running: Mutex<HashMap<PullKey, WeakShared<PullFuture>>>,
    /// Files being downloaded. Different images may want the same blob; one fetches it, the others wait.
    fetching: Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Pulls {
    pub(crate) fn new(registries: Registries) -> Self {
        Self { registries, running: Mutex::default(), fetching: Mutex::default() }
    }

    pub(crate) fn is_fetching(&self, file: &Path) -> bool {
        self.fetching.lock().get(file).is_some_and(|lock| Arc::strong_count(lock) > 1)
    }

    /// Locks the files of a pull, always in the same order, so that two pulls never wait for each other.
    async fn lock(&self, mut files: Vec<PathBuf>) -> Vec<OwnedMutexGuard<()>> {
        files.sort();
        files.dedup();
        let locks: Vec<_> = {
            let mut fetching = self.fetching.lock();
            fetching.retain(|_, lock| Arc::strong_count(lock) > 1);
            files.into_iter().map(|file| Arc::clone(fetching.entry(file).or_default())).collect()
        };
        let mut guards = Vec::with_capacity(locks.len());
        for lock in locks {
            guards.push(lock.lock_owned().await);
        }
        guards
    }
}

impl ImageStore {
    /// Pulls an image: asks the registry which manifest `reference` means, and fetches what is not here yet.
    ///
    /// The future may be dropped; what was fetched is kept and continued by the next pull of it.
    ///
    /// # Errors
    /// [`Error::Registry`], [`Error::NoPlatform`], [`Error::DigestMismatch`], [`Error::NoSpace`] and the others, also
    /// behind [`Error::Shared`]: look at [`Error::root`].
    pub async fn pull(&self, reference: &Reference, options: PullOptions) -> Result<Arc<Image>, Error> {
        let key = (reference.to_string(), options.credentials.clone(), options.choice);
        let shared: Shared<PullFuture> = {
            let mut running = self.inner.pulls.running.lock();
            running.retain(|_, pull| pull.upgrade().is_some());
            match running.get(&key).and_then(WeakShared::upgrade) {
                Some(pull) => pull,
                None => {
                    let pull = Pull::new(Arc::clone(&self.inner), reference.clone(), options);
                    let future: PullFuture = async move { pull.run().await.map_err(Arc::new) }.boxed();
                    let shared = future.shared();
                    if let Some(weak) = shared.downgrade() {
                        running.insert(key, weak);
                    }
                    shared
                }
            }
        };
        // The only waiter gets the error itself, others a shared one.
        shared.await.map_err(|error| Arc::try_unwrap(error).unwrap_or_else(Error::Shared))
    }
}

/// What of another kind an index has beside the image that was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    Native,
    Wasm,
}

struct Pull {
    store: Arc<Inner>,
    reference: Reference,
    credentials: Vec<Credentials>,
    choice: Choice,
    progress: Arc<ProgressFn>,
    transport: Arc<Transport>,
}

impl Pull {
    fn new(store: Arc<Inner>, reference: Reference, options: PullOptions) -> Self {
        let transport = Arc::new(Transport::new(&store.pulls.registries));
        let progress = options.progress.unwrap_or_else(|| Arc::new(|_| {}));
        Self { store, reference, credentials: options.credentials, choice: options.choice, progress, transport }
    }

    async fn run(self) -> Result<Arc<Image>, Error> {
        let (repository, manifest) = self.resolve().await?;
        let mut digests = vec![manifest.digest];
        let (descriptor, manifest, beside) = self.choose(&repository, manifest, &mut digests).await?;
        let tags = self.names(self.reference.repo_tag().into_iter(), beside);
        let own = self.reference.repo_digest(descriptor.digest);
        let asked = digests.iter().map(|digest| self.reference.repo_digest(*digest)).filter(|name| *name != own);
        let repo_digests = self.names(asked, beside).into_iter().chain([own]).collect();
        let total = manifest.layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        (self.progress)(Progress::Resolved { digest: descriptor.digest, total });
        if let Some(known) = self.store.find(&self.reference.repo_digest(descriptor.digest)) {
            let store = Arc::clone(&self.store);
            return blocking(move || store.add_names(known.id, tags, repo_digests)).await;
        }
        self.fetch(&repository, &descriptor, &manifest, tags, repo_digests).await
    }

    /// Finds an endpoint that has the image and lets us in.
    async fn resolve(&self) -> Result<(Repository, FetchedManifest), Error> {
        let digest = self.reference.digest().map(|digest| digest.to_string());
        let wanted = digest.as_deref().or(self.reference.tag()).unwrap_or("latest");
        let registries = &self.store.pulls.registries;
        let mut last = None;
        for endpoint in registries.endpoints(self.reference.registry(), self.reference.repository()) {
            let configured = self.transport.host_config(&endpoint.host).credentials;
            let mut attempts: Vec<Option<Credentials>> = match endpoint.is_upstream {
                true => self.credentials.iter().cloned().map(Some).collect(),
                false => Vec::new(),
            };
            if attempts.is_empty() || configured.is_some() {
                attempts.push(configured);
            }
            for credentials in attempts {
                let repository = Repository::new(Arc::clone(&self.transport), endpoint.clone(), credentials);
                match repository.manifest(wanted).await {
                    Ok(manifest) => return Ok((repository, manifest)),
                    Err(error) => {
                        let go_on = matches!(error, Error::Registry(RegistryError::Unauthorized { .. }));
                        if let Some(before) = last.replace(error) {
                            tracing::info!(image = %self.reference, error = %crate::error_chain(&before), "trying on");
                        }
                        if !go_on {
                            break;
                        }
                    }
                }
            }
        }
        Err(last.unwrap_or_else(|| Error::malformed(self.reference.to_string(), "no endpoint to pull from")))
    }

    /// What an image is called that was found under `names`.
    fn names(&self, names: impl Iterator<Item = String>, beside: Beside) -> Vec<String> {
        let of = |plain: String| {
            let marked = record::wasm_name(&plain);
            match beside {
                Beside::Native => vec![marked],
                Beside::Wasm => vec![plain, marked],
                // There is no other one any more.
                Beside::Nothing if self.store.knows(&marked) => vec![plain, marked],
                Beside::Nothing => vec![plain],
            }
        };
        names.flat_map(of).collect()
    }

    /// Goes from an index to the manifest for this machine; `digests` collects what may be called the image's digest.
    async fn choose(
        &self,
        repository: &Repository,
        fetched: FetchedManifest,
        digests: &mut Vec<Digest>,
    ) -> Result<(Descriptor, Manifest, Beside), Error> {
        let what = format!("manifest {}", fetched.digest);
        match Document::parse(&what, &fetched.bytes)? {
            Document::Manifest(manifest) => Ok((fetched.descriptor(), manifest, Beside::Nothing)),
            Document::Index(index) => {
                let candidates = oci::candidates(&index, &self.store.platform, self.choice);
                for candidate in &candidates {
                    let inner = repository.manifest(&candidate.digest.to_string()).await?;
                    let what = format!("manifest {}", inner.digest);
                    let Document::Manifest(manifest) = Document::parse(&what, &inner.bytes)? else { continue };
                    digests.push(inner.digest);
                    let beside = match candidates.iter().any(|other| other.is_wasm() != candidate.is_wasm()) {
                        true if candidate.is_wasm() => Beside::Native,
                        true => Beside::Wasm,
                        false => Beside::Nothing,
                    };
                    return Ok((inner.descriptor(), manifest, beside));
                }
                Err(oci::no_platform(&index, &self.store.platform))
            }
        }
    }

    async fn fetch(
        &self,
        repository: &Repository,
        descriptor: &Descriptor,
        manifest: &Manifest,
        repo_tags: Vec<String>,
        repo_digests: Vec<String>,
    ) -> Result<Arc<Image>, Error> {
        let size = manifest.content_size().saturating_add(descriptor.size);
        let (mut image, wanted, _locks, _lease) = if let Some(module) = manifest.wasm_module()? {
            let path = self.store.content.partial(module.digest);
            let locks = self.store.pulls.lock(vec![path.clone()]).await;
            let image = NewImage::wasm_module(descriptor.digest, module.digest, Some(path), size);
            (image, vec![module], locks, None)
        } else {
            let document = repository.small_blob(manifest.config.digest, manifest.config.size).await?;
            let config = ConfigFile::parse(&format!("image configuration {}", manifest.config.digest), &document)?;
            config.check_platform(&self.store.platform)?;
            let file = |layer: &Descriptor| self.store.content.partial(layer.digest);
            // Checks the numbers before anything is fetched.
            layer_sources(&config, manifest.layers.iter().map(|_| None).collect())?;
            let locks = self.store.pulls.lock(manifest.layers.iter().map(file).collect()).await;
            // After the locks: another pull may just have unpacked what we want.
            let (lease, present) = self.store.lease(&chain_ids(config.diff_ids().iter().copied()));
            let blobs = manifest.layers.iter().zip(&present).map(|(layer, here)| (!here).then(|| file(layer)));
            let sources = layer_sources(&config, blobs.collect())?;
            let wanted = manifest.layers.iter().zip(&present).filter(|(_, here)| !**here).map(|(layer, _)| layer);
            (NewImage::container(manifest.config.digest, &config, sources, size), wanted.collect(), locks, Some(lease))
        };
        image.repo_tags = repo_tags;
        image.repo_digests = repo_digests;
        let files = self.fetch_blobs(repository, &wanted).await?;
        let (store, progress) = (Arc::clone(&self.store), Arc::clone(&self.progress));
        let added = blocking(move || {
            let added = store.add(vec![image], &*progress);
            // Unpacked they are not needed any more; and what did not unpack will not do so next time either.
            for file in files {
                crate::content::remove_any(&file)?;
            }
            added
        });
        added.await?.pop().ok_or_else(|| Error::malformed("pull", "added no image"))
    }

    /// Downloads blobs, several at once; those that occur twice once. Returns their files.
    async fn fetch_blobs(&self, repository: &Repository, wanted: &[&Descriptor]) -> Result<Vec<PathBuf>, Error> {
        let distinct: BTreeMap<Digest, u64> = wanted.iter().map(|blob| (blob.digest, blob.size)).collect();
        stream::iter(distinct)
            .map(|(digest, size)| async move {
                let target = BlobTarget { digest, size, path: self.store.content.partial(digest) };
                let progress = |received| (self.progress)(Progress::Received { digest, received, total: size });
                repository.blob(&target, progress).await.map(|()| target.path)
            })
            .buffer_unordered(PARALLEL_LAYERS)
            .try_collect()
            .await
    }
}

impl FetchedManifest {
    fn descriptor(&self) -> Descriptor {
        Descriptor {
            media_type: String::new(),
            digest: self.digest,
            size: self.bytes.len() as u64,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }
}
