//! The durable record of an image, one JSON file each.

use crate::content::{ContentDir, read_dir, read_json, remove_any};
use crate::digest::Digest;
use crate::error::Error;
use crate::image::{Image, ImageConfig, ImageKind};
use crate::layers::LayerRecord;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

/// Version of the file format; a higher one was written by a newer edge.
const VERSION: u32 = 1;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    version: u32,
    pub(crate) id: Digest,
    pub(crate) repo_tags: BTreeSet<String>,
    pub(crate) repo_digests: BTreeSet<String>,
    pub(crate) size: u64,
    pub(crate) pinned: bool,
    /// Seconds since 1970.
    added: u64,
    /// Chain ids, bottom first.
    pub(crate) layers: Vec<Digest>,
    pub(crate) config: ImageConfig,
    pub(crate) kind: ImageKind,
}

/// After the name of a WebAssembly image whose plain name is that of the native image of the same index. No name can hold it. The
/// native one has this name, too, which says that there is a WebAssembly one; it counts only while that is not here.
const WASM_MARK: &str = "#wasm";

/// The name by which pods that want WebAssembly find what may be another image for others.
pub(crate) fn wasm_name(name: &str) -> String {
    format!("{name}{WASM_MARK}")
}

pub(crate) fn is_wasm_name(name: &str) -> bool {
    name.ends_with(WASM_MARK)
}

impl Record {
    pub(crate) fn new(id: Digest, config: ImageConfig, kind: ImageKind, layers: Vec<Digest>, size: u64) -> Self {
        let added = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let (repo_tags, repo_digests) = (BTreeSet::new(), BTreeSet::new());
        Self { version: VERSION, id, repo_tags, repo_digests, size, pinned: false, added, layers, config, kind }
    }

    /// The file of the record of image `id`.
    pub(crate) fn path(content: &ContentDir, id: Digest) -> PathBuf {
        content.images().join(id.hex()).with_extension("json")
    }

    pub(crate) fn added(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(self.added)
    }

    pub(crate) fn to_image(&self, content: &ContentDir, last_used: SystemTime) -> Image {
        Image {
            id: self.id,
            repo_tags: self.told(&self.repo_tags),
            repo_digests: self.told(&self.repo_digests),
            size: self.size,
            pinned: self.pinned,
            last_used,
            config: self.config.clone(),
            lower_dirs: self.layers.iter().rev().map(|chain| content.layer_fs(*chain)).collect(),
            kind: self.kind.clone(),
        }
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &String> {
        self.repo_tags.iter().chain(&self.repo_digests)
    }

    pub(crate) fn is_native(&self) -> bool {
        self.kind == ImageKind::Container
    }

    /// Whether another image gives this one a name away by having it, too.
    pub(crate) fn contends(&self, other: &ImageKind, name: &str) -> bool {
        !is_wasm_name(name) || self.is_native() == (*other == ImageKind::Container)
    }

    /// Names as users know them.
    fn told(&self, names: &BTreeSet<String>) -> Vec<String> {
        let known = |name: &String| match name.strip_suffix(WASM_MARK) {
            Some(_) if self.is_native() => None,
            Some(plain) => Some(plain.to_owned()),
            None => Some(name.clone()),
        };
        names.iter().filter_map(known).collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// Whether everything the image needs is there.
    fn is_complete(&self, content: &ContentDir, layers: &HashMap<Digest, LayerRecord>) -> bool {
        let module = match &self.kind {
            ImageKind::WasmModule { module } => content.blob(*module).exists(),
            ImageKind::Container | ImageKind::WasmRootfs { .. } => true,
        };
        module && self.layers.iter().all(|chain| layers.contains_key(chain))
    }
}

/// Reads all records. One that cannot be read or lacks a layer is dropped (the image will be pulled again), but a
/// record of a newer version is an error: an older edge must not throw away what it does not understand.
pub(crate) fn load(
    content: &ContentDir,
    layers: &HashMap<Digest, LayerRecord>,
) -> Result<HashMap<Digest, Record>, Error> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let mut records: Vec<Record> = Vec::new();
    for path in read_dir(&content.images())? {
        if read_json::<Versioned>(&path).is_ok_and(|v| v.version > VERSION) {
            return Err(Error::malformed(path.display().to_string(), "written by a newer version of edge"));
        }
        match read_json::<Record>(&path) {
            Ok(record) if record.is_complete(content, layers) && Record::path(content, record.id) == path => {
                records.push(record);
            }
            other => {
                tracing::warn!(path = %path.display(), error = ?other.err(), "dropping a damaged image record");
                remove_any(&path)?;
            }
        }
    }
    // A crash while a tag moved leaves it on two images; the newer one has it.
    records.sort_by_key(|record| std::cmp::Reverse(record.added));
    let mut seen = BTreeSet::new();
    for record in &mut records {
        let native = record.is_native();
        record.repo_tags.retain(|tag| seen.insert((tag.clone(), native && is_wasm_name(tag))));
    }
    Ok(records.into_iter().map(|record| (record.id, record)).collect())
}
