//! Image archives: OCI layouts and `docker save`, plain or compressed.
//!
//! The archive is read once from front to back. Since an archive may hold its layers before it says what they are for,
//! its files are first laid down in a scratch directory, hashed on the way; then the images are put together.

use crate::compression::decompress;
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Image, ImageKind, Progress, ProgressFn};
use crate::layers::LayerSource;
use crate::oci::{self, ConfigFile, Descriptor, Document, Index, MAX_DOCUMENT, Manifest};
use crate::platform::{Choice, Platform};
use crate::record;
use crate::reference::Reference;
use crate::store::{Inner, NewImage};
use crate::tarball::{EntryKind, TarReader};
use serde::Deserialize;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most files in one archive.
const MAX_FILES: usize = 100_000;
/// How deep indexes may be nested; one more than any builder does.
const MAX_DEPTH: usize = 3;
/// Where containerd and Docker put an image's full name.
const NAME_ANNOTATION: &str = "io.containerd.image.name";
/// OCI's own annotation: a full name or only a tag, depending on who wrote it.
const REF_ANNOTATION: &str = "org.opencontainers.image.ref.name";

/// Imports all images of the archive that fit this machine. Blocking.
pub(crate) fn import(store: &Inner, path: &Path, progress: &ProgressFn) -> Result<Vec<Arc<Image>>, Error> {
    let scratch = store.content.scratch("import-")?;
    let files = Files::extract(path, scratch.path(), store.limits.archive_bytes)?;
    let images = files.images(&store.platform)?;
    for image in &images {
        progress(Progress::Resolved { digest: image.id, total: image.size });
    }
    store.add(images, progress)
}

/// A file of the archive.
#[derive(Clone, Debug)]
struct Stored {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// The files of an archive by their names in it.
struct Files {
    stored: HashMap<String, Stored>,
    /// Links between them; old versions of Docker use them for layers that occur twice.
    links: HashMap<String, String>,
}

impl Files {
    fn extract(path: &Path, scratch: &Path, limit: u64) -> Result<Self, Error> {
        let malformed = |error: io::Error| Error::malformed("archive", error);
        let file = File::open(path).map_err(Error::io("open", path))?;
        let mut tar = TarReader::new(decompress(file).map_err(malformed)?);
        let mut files = Self { stored: HashMap::new(), links: HashMap::new() };
        let mut total = 0_u64;
        while let Some(entry) = tar.next_entry().map_err(malformed)? {
            let Some(name) = normalize(&String::from_utf8_lossy(&entry.path)) else {
                return Err(Error::malformed(
                    "archive",
                    format!("unsafe path {:?}", String::from_utf8_lossy(&entry.path)),
                ));
            };
            let link = || String::from_utf8_lossy(&entry.link).into_owned();
            match entry.kind {
                EntryKind::Regular if entry.sparse.is_some() => {
                    return Err(Error::malformed("archive", "holds a sparse file"));
                }
                EntryKind::Regular => {
                    total = total.saturating_add(entry.size);
                    if total > limit {
                        return Err(Error::malformed("archive", format!("holds more than {limit} bytes")));
                    }
                    // The name in the archive is never a name on disk.
                    let to = scratch.join(files.stored.len().to_string());
                    let stored = store_file(&mut tar, &to)?;
                    check_blob_name(&name, &stored)?;
                    files.stored.insert(name, stored);
                }
                EntryKind::HardLink => drop(normalize(&link()).map(|to| files.links.insert(name, to))),
                EntryKind::Symlink => {
                    let beside = name.rsplit_once('/').map_or(String::new(), |(parent, _)| format!("{parent}/"));
                    drop(normalize(&format!("{beside}{}", link())).map(|to| files.links.insert(name, to)));
                }
                _ => {}
            }
            if files.stored.len() + files.links.len() > MAX_FILES {
                return Err(Error::malformed("archive", format!("holds more than {MAX_FILES} files")));
            }
        }
        Ok(files)
    }

    fn get(&self, name: &str) -> Option<&Stored> {
        let name = normalize(name)?;
        self.stored.get(&name).or_else(|| self.stored.get(self.links.get(&name)?))
    }

    fn require(&self, name: &str) -> Result<&Stored, Error> {
        self.get(name).ok_or_else(|| Error::malformed("archive", format!("{name} is missing")))
    }

    /// The blob of `descriptor`; its digest was checked when it was stored.
    fn blob(&self, descriptor: &Descriptor) -> Result<&Stored, Error> {
        let stored = self.require(&blob_name(descriptor.digest))?;
        if stored.size != descriptor.size {
            let (digest, want, got) = (descriptor.digest, descriptor.size, stored.size);
            return Err(Error::SizeMismatch { digest, want, got });
        }
        Ok(stored)
    }

    fn images(&self, platform: &Platform) -> Result<Vec<NewImage>, Error> {
        if self.get("oci-layout").is_some() && self.get("index.json").is_some() {
            return self.oci_images(platform);
        }
        match self.get("manifest.json") {
            Some(manifest) => self.docker_images(&read_document(manifest)?, platform),
            None => Err(Error::malformed("archive", "no image archive: neither index.json nor manifest.json in it")),
        }
    }

    fn oci_images(&self, platform: &Platform) -> Result<Vec<NewImage>, Error> {
        let index: Index = oci::parse("index.json", &read_document(self.require("index.json")?)?)?;
        let docker_tags = self.docker_tags()?;
        let mut images = Vec::new();
        let mut unfit = None;
        for descriptor in &index.manifests {
            let mut names = Vec::new();
            match self.oci_image(descriptor, (platform, Choice::Native), &mut names, 0) {
                Ok(mut image) => {
                    let tags = match archive_name(descriptor) {
                        Some(name) => vec![name],
                        None => docker_tags.get(&image.id).cloned().unwrap_or_default(),
                    };
                    add_names(&mut image, &tags, &names)?;
                    let beside = self.wasm_beside(descriptor, platform, &image, &tags)?;
                    images.push(image);
                    images.extend(beside);
                }
                // An archive may hold one image for several machines, one descriptor each.
                Err(error @ Error::NoPlatform { .. }) => drop(unfit.get_or_insert(error)),
                Err(error) => return Err(error),
            }
        }
        match (images.is_empty(), unfit) {
            (false, _) => Ok(images),
            (true, Some(error)) => Err(error),
            (true, None) => Err(Error::malformed("index.json", "lists no images")),
        }
    }

    /// The WebAssembly image of an index beside its native one, under names of its own.
    fn wasm_beside(
        &self,
        descriptor: &Descriptor,
        platform: &Platform,
        native: &NewImage,
        tags: &[String],
    ) -> Result<Option<NewImage>, Error> {
        let mut names = Vec::new();
        let mut image = self.oci_image(descriptor, (platform, Choice::Wasm), &mut names, 0)?;
        if image.id == native.id {
            return Ok(None);
        }
        add_names(&mut image, tags, &names)?;
        image.name_as_wasm();
        Ok(Some(image))
    }

    /// Follows `descriptor` to the image for this machine; `digests` collects those of the documents passed.
    fn oci_image(
        &self,
        descriptor: &Descriptor,
        (platform, choice): (&Platform, Choice),
        digests: &mut Vec<Digest>,
        depth: usize,
    ) -> Result<NewImage, Error> {
        if depth > MAX_DEPTH {
            return Err(Error::malformed("archive", "indexes are nested too deep"));
        }
        digests.push(descriptor.digest);
        let what = blob_name(descriptor.digest);
        match Document::parse(&what, &read_document(self.blob(descriptor)?)?)? {
            Document::Manifest(manifest) => self.manifest_image(descriptor, &manifest, platform),
            Document::Index(index) => {
                let fitting = oci::candidates(&index, platform, choice);
                // Archives of multi-platform images often hold only the blobs of one platform.
                let present = fitting.into_iter().filter(|d| self.get(&blob_name(d.digest)).is_some());
                for candidate in present {
                    let mut inner = digests.clone();
                    match self.oci_image(&candidate, (platform, choice), &mut inner, depth + 1) {
                        Err(Error::NoPlatform { .. }) => {}
                        found => {
                            *digests = inner;
                            return found;
                        }
                    }
                }
                Err(oci::no_platform(&index, platform))
            }
        }
    }

    fn manifest_image(
        &self,
        descriptor: &Descriptor,
        manifest: &Manifest,
        platform: &Platform,
    ) -> Result<NewImage, Error> {
        let size = manifest.content_size().saturating_add(descriptor.size);
        if let Some(module) = manifest.wasm_module()? {
            let file = self.blob(module)?;
            return Ok(NewImage::wasm_module(descriptor.digest, module.digest, Some(file.path.clone()), size));
        }
        let config = ConfigFile::parse("image configuration", &read_document(self.blob(&manifest.config)?)?)?;
        config.check_platform(platform)?;
        let blobs = manifest.layers.iter().map(|layer| Ok(Some(self.blob(layer)?.path.clone())));
        let layers = layer_sources(&config, blobs.collect::<Result<_, Error>>()?)?;
        Ok(NewImage::container(manifest.config.digest, &config, layers, size))
    }

    fn docker_manifest(bytes: &[u8]) -> Result<Vec<DockerImage>, Error> {
        oci::parse("manifest.json", bytes)
    }

    /// The tags that `manifest.json` gives, when an OCI layout has one too (Docker 25 and later write both).
    fn docker_tags(&self) -> Result<HashMap<Digest, Vec<String>>, Error> {
        let Some(manifest) = self.get("manifest.json") else { return Ok(HashMap::new()) };
        let images = Self::docker_manifest(&read_document(manifest)?)?;
        let tags = images.into_iter().filter_map(|image| Some((self.get(&image.config)?.digest, image.repo_tags)));
        Ok(tags.collect())
    }

    fn docker_images(&self, manifest: &[u8], platform: &Platform) -> Result<Vec<NewImage>, Error> {
        let images = Self::docker_manifest(manifest)?;
        if images.is_empty() {
            return Err(Error::malformed("manifest.json", "lists no images"));
        }
        images.iter().map(|image| self.docker_image(image, platform)).collect()
    }

    fn docker_image(&self, image: &DockerImage, platform: &Platform) -> Result<NewImage, Error> {
        let stored = self.require(&image.config)?;
        let config = ConfigFile::parse(&image.config, &read_document(stored)?)?;
        config.check_platform(platform)?;
        let blobs = image.layers.iter().map(|name| self.require(name)).collect::<Result<Vec<_>, _>>()?;
        let size = blobs.iter().fold(stored.size, |sum, blob| sum.saturating_add(blob.size));
        let layers = layer_sources(&config, blobs.iter().map(|blob| Some(blob.path.clone())).collect())?;
        let mut new = NewImage::container(stored.digest, &config, layers, size);
        add_names(&mut new, &image.repo_tags, &[])?;
        new.pinned = true;
        Ok(new)
    }
}

/// An entry of `docker save`'s `manifest.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default, deserialize_with = "oci::null_is_default")]
    repo_tags: Vec<String>,
    #[serde(default, deserialize_with = "oci::null_is_default")]
    layers: Vec<String>,
}

impl NewImage {
    /// Leaves its names to the native image of the same index, and takes those for pods that want WebAssembly.
    pub(crate) fn name_as_wasm(&mut self) {
        for name in self.repo_tags.iter_mut().chain(&mut self.repo_digests) {
            *name = record::wasm_name(name);
        }
    }

    pub(crate) fn container(id: Digest, config: &ConfigFile, layers: Vec<LayerSource>, size: u64) -> Self {
        Self {
            id,
            config: config.image_config(),
            kind: config.kind(),
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size,
            pinned: false,
            layers,
            module: None,
        }
    }

    /// Artifacts may share one empty configuration, so their manifest identifies them.
    pub(crate) fn wasm_module(manifest: Digest, module: Digest, file: Option<PathBuf>, size: u64) -> Self {
        Self {
            id: manifest,
            config: crate::image::ImageConfig { architecture: "wasm".into(), os: "wasi".into(), ..Default::default() },
            kind: ImageKind::WasmModule { module },
            repo_tags: Vec::new(),
            repo_digests: Vec::new(),
            size,
            pinned: false,
            layers: Vec::new(),
            module: file.map(|file| (module, file)),
        }
    }
}

/// Pairs the layers' blobs with the diff ids of the configuration.
pub(crate) fn layer_sources(config: &ConfigFile, blobs: Vec<Option<PathBuf>>) -> Result<Vec<LayerSource>, Error> {
    let diff_ids = config.diff_ids();
    if diff_ids.len() != blobs.len() {
        let reason = format!("{} layers in the manifest, but {} diff ids", blobs.len(), diff_ids.len());
        return Err(Error::malformed("image configuration", reason));
    }
    Ok(diff_ids.iter().zip(blobs).map(|(&diff_id, blob)| LayerSource { diff_id, blob }).collect())
}

fn add_names(image: &mut NewImage, tags: &[String], digests: &[Digest]) -> Result<(), Error> {
    for tag in tags {
        let reference: Reference = tag.parse()?;
        image.repo_tags.extend(reference.repo_tag());
        image.repo_digests.extend(digests.iter().map(|digest| reference.repo_digest(*digest)));
    }
    image.pinned = true;
    Ok(())
}

/// The image name that a descriptor of `index.json` carries, if it is a full one.
fn archive_name(descriptor: &Descriptor) -> Option<String> {
    let full = |name: &&String| name.contains(['/', ':']);
    let annotation = |key: &str| descriptor.annotations.get(key);
    annotation(NAME_ANNOTATION).or_else(|| annotation(REF_ANNOTATION).filter(full)).cloned()
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A file in `blobs/sha256` must be what its name says.
fn check_blob_name(name: &str, stored: &Stored) -> Result<(), Error> {
    let Some(hex) = name.strip_prefix("blobs/sha256/") else { return Ok(()) };
    let want: Digest = format!("sha256:{hex}").parse()?;
    if want != stored.digest {
        return Err(Error::DigestMismatch { want, got: stored.digest });
    }
    Ok(())
}

/// Brings a name to `a/b/c`; `None` when it would climb out of the archive. Leading slashes mean nothing here.
fn normalize(name: &str) -> Option<String> {
    let mut components = Vec::new();
    for component in name.split('/') {
        match component {
            "" | "." => {}
            ".." => drop(components.pop()?),
            other => components.push(other),
        }
    }
    Some(components.join("/"))
}

fn store_file(from: &mut impl Read, to: &Path) -> Result<Stored, Error> {
    let file = File::create_new(to).map_err(Error::io("create", to))?;
    let mut hashing = Hashing::new(file);
    let mut buffer = vec![0; 128 * 1024];
    // Not `io::copy`: a damaged archive and a full disk are different errors.
    loop {
        let n = from.read(&mut buffer).map_err(|error| Error::malformed("archive", error))?;
        if n == 0 {
            break;
        }
        io::Write::write_all(&mut hashing, &buffer[..n]).map_err(Error::io("write", to))?;
    }
    let (digest, size, _) = hashing.finish();
    Ok(Stored { path: to.to_owned(), digest, size })
}

fn read_document(stored: &Stored) -> Result<Vec<u8>, Error> {
    if stored.size > MAX_DOCUMENT {
        return Err(Error::malformed("archive", format!("document {} is larger than 8 MiB", stored.digest)));
    }
    std::fs::read(&stored.path).map_err(Error::io("read", &stored.path))
}
