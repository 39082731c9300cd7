//! Unpacked layers: which there are, and adding those that an image lacks.

use crate::compression::decompress;
use crate::content::{ContentDir, read_dir, read_json, remove_any, sync_directory};
use crate::digest::{Digest, Hashing};
use crate::error::Error;
use crate::image::{Progress, ProgressFn};
use crate::unpack::{LayerError, Limits, Unpacked, inherit_directories, unpack_layer};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Layers of one image that are unpacked at the same time.
const PARALLEL: usize = 3;

/// What is remembered of an unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LayerRecord {
    pub(crate) chain_id: Digest,
    pub(crate) diff_id: Digest,
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
}

/// A layer of an image to be: its diff id, and its blob if that had to be fetched.
#[derive(Clone, Debug)]
pub(crate) struct LayerSource {
    pub(crate) diff_id: Digest,
    /// The (compressed) blob, not needed for a layer that is unpacked already.
    pub(crate) blob: Option<PathBuf>,
}

/// The chain ids that belong to `diff_ids`, bottom first.
pub(crate) fn chain_ids(diff_ids: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
    let chain = |parent: &mut Option<Digest>, diff_id| {
        *parent = Some(Digest::chain(*parent, diff_id));
        *parent
    };
    diff_ids.into_iter().scan(None, chain).collect()
}

/// Reads the records of all unpacked layers; a directory without a readable one is no layer and is removed.
pub(crate) fn load(content: &ContentDir) -> Result<HashMap<Digest, LayerRecord>, Error> {
    let mut layers = HashMap::new();
    for path in read_dir(&content.layers())? {
        match read_json::<LayerRecord>(&path.join("layer.json")) {
            Ok(record) if content.layer(record.chain_id) == path => {
                layers.insert(record.chain_id, record);
            }
            other => {
                tracing::warn!(path = %path.display(), error = ?other.err(), "removing a damaged layer");
                remove_any(&path)?;
            }
        }
    }
    Ok(layers)
}

/// Unpacks those of `sources` (bottom first) that `known` lacks, and returns the records of the new ones.
///
/// All or nothing becomes visible only after everything is on disk. Blocking; one call at a time per store.
pub(crate) fn unpack_missing(
    content: &ContentDir,
    known: &HashMap<Digest, LayerRecord>,
    sources: &[LayerSource],
    limits: &Limits,
    progress: &ProgressFn,
) -> Result<Vec<LayerRecord>, Error> {
    let chains = chain_ids(sources.iter().map(|source| source.diff_id));
    let mut missing: Vec<usize> = (0..sources.len()).filter(|&i| !known.contains_key(&chains[i])).collect();
    // The same layer may occur twice in one image only under different chains; but be safe against malformed ones.
    missing.dedup_by_key(|i| chains[*i]);
    if missing.is_empty() {
        return Ok(Vec::new());
    }
    let scratch = content.scratch("unpack-")?;
    let unpacked = unpack_parallel(&missing, sources, scratch.path(), limits, progress)?;
    let mut records = Vec::with_capacity(missing.len());
    for (&i, unpacked) in missing.iter().zip(&unpacked) {
        let diff_id = sources[i].diff_id;
        let directory = scratch.path().join(i.to_string());
        // What lies below is published already, or in the scratch directory with its metadata complete.
        let below: Vec<PathBuf> = (0..i)
            .rev()
            .map(|j| match missing.contains(&j) {
                true => scratch.path().join(j.to_string()).join("fs"),
                false => content.layer_fs(chains[j]),
            })
            .collect();
        inherit_directories(&directory.join("fs"), &unpacked.implied, &below)
            .map_err(|source| Error::Layer { diff_id, source })?;
        let record = LayerRecord { chain_id: chains[i], diff_id, bytes: unpacked.bytes, inodes: unpacked.inodes };
        content.write_json(&directory.join("layer.json"), &record)?;
        records.push(record);
    }
    content.sync()?;
    for (&i, record) in missing.iter().zip(&records) {
        content.publish(&scratch.path().join(i.to_string()), &content.layer(record.chain_id))?;
    }
    sync_directory(&content.layers()).map_err(Error::io("sync", &content.layers()))?;
    Ok(records)
}

/// Unpacks the layers `missing` into `<scratch>/<index>/fs`, the results in the same order.
fn unpack_parallel(
    missing: &[usize],
    sources: &[LayerSource],
    scratch: &Path,
    limits: &Limits,
    progress: &ProgressFn,
) -> Result<Vec<Unpacked>, Error> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<Unpacked>>> = Mutex::new(vec![None; missing.len()]);
    let failure: Mutex<Option<Error>> = Mutex::new(None);
    let work = || {
        while failure.lock().is_none() {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&index) = missing.get(at) else { break };
            let target = scratch.join(index.to_string()).join("fs");
            match unpack_one(&sources[index], &target, limits) {
                Ok(unpacked) => {
                    progress(Progress::Unpacked { diff_id: sources[index].diff_id });
                    results.lock()[at] = Some(unpacked);
                }
                Err(error) => drop(failure.lock().get_or_insert(error)),
            }
        }
    };
    let workers = PARALLEL.min(missing.len()).min(std::thread::available_parallelism().map_or(1, usize::from));
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(work);
        }
        work();
    });
    if let Some(error) = failure.into_inner() {
        return Err(error);
    }
    Ok(results.into_inner().into_iter().map(|r| r.expect("invariant: without a failure all are done")).collect())
}

fn unpack_one(source: &LayerSource, target: &Path, limits: &Limits) -> Result<Unpacked, Error> {
    let diff_id = source.diff_id;
    let layer = |source| Error::Layer { diff_id, source };
    let Some(blob) = &source.blob else {
        return Err(Error::malformed(format!("layer {diff_id}"), "its blob is not there"));
    };
    // The root of an image that does not describe it is 0755, whatever our umask.
    let made = fs::create_dir_all(target).and_then(|()| fs::set_permissions(target, Permissions::from_mode(0o755)));
    made.map_err(Error::io("make directory", target))?;
    let file = File::open(blob).map_err(Error::io("open", blob))?;
    let stream = decompress(file).map_err(LayerError::Read).map_err(layer)?;
    let mut hashing = Hashing::new(stream);
    let unpacked = unpack_layer(&mut hashing, target, limits).map_err(layer)?;
    let (got, _, _) = hashing.finish();
    match got == diff_id {
        true => Ok(unpacked),
        false => Err(Error::DigestMismatch { want: diff_id, got }),
    }
}
