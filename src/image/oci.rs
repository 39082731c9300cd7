//! The documents of an image (index, manifest, configuration) as OCI and Docker write them, and choosing among them.

use crate::digest::Digest;
use crate::error::Error;
use crate::image::{ImageConfig, ImageKind};
use crate::platform::{Choice, Platform};
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// Largest index, manifest or configuration; registries refuse larger ones too.
pub(crate) const MAX_DOCUMENT: u64 = 8 * 1024 * 1024;

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const MANIFEST_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];
/// Layers that are a module or component: of the CNCF's artifact, and of the older ones that wasm-to-oci and Spin write.
const WASM_LAYER_TYPES: [&str; 2] = ["application/wasm", "application/vnd.wasm.content.layer.v1+wasm"];

/// What a registry is asked to answer with.
pub(crate) fn accepted_manifests() -> String {
    [INDEX_TYPES, MANIFEST_TYPES].concat().join(", ")
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Whether it says that it is WebAssembly.
    pub(crate) fn is_wasm(&self) -> bool {
        self.platform.as_ref().is_some_and(Platform::is_wasm)
    }

    /// Attestations and the like, which look like images for an `unknown/unknown` platform.
    fn is_attestation(&self) -> bool {
        self.annotations.contains_key("vnd.docker.reference.type")
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Index {
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// The module of a WebAssembly artifact. Other layers beside it are files for other hosts (Spin's), which a module that is
    /// run as it is does not see.
    pub(crate) fn wasm_module(&self) -> Result<Option<&Descriptor>, Error> {
        let mut modules = self.layers.iter().filter(|layer| WASM_LAYER_TYPES.contains(&layer.media_type.as_str()));
        match (modules.next(), modules.count()) {
            (Some(_), others) if others > 0 => {
                let reason = format!("{} WebAssembly modules in one artifact; which one is to be run?", others + 1);
                Err(Error::malformed("manifest", reason))
            }
            (module, _) => Ok(module),
        }
    }

    /// Bytes of the configuration and all layers.
    pub(crate) fn content_size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// An index or a manifest: told apart by content, since media types are often missing or wrong in archives.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

impl Document {
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Shape {
            #[serde(rename = "schemaVersion", default)]
            schema_version: u32,
            manifests: Option<serde::de::IgnoredAny>,
            config: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = parse(what, bytes)?;
        if shape.schema_version == 1 {
            return Err(Error::malformed(what, "docker schema 1 manifests are not supported"));
        }
        match (shape.manifests, shape.config) {
            // Both at once is an attempt to be read differently by different readers.
            (Some(_), Some(_)) => Err(Error::malformed(what, "both an index and a manifest")),
            (Some(_), None) => Ok(Self::Index(parse(what, bytes)?)),
            (None, Some(_)) => Ok(Self::Manifest(parse(what, bytes)?)),
            (None, None) => Err(Error::malformed(what, "neither an index nor a manifest")),
        }
    }
}

/// The entries of an index that run on `host`, best first. Entries without a platform come last: only their
/// configuration tells.
pub(crate) fn candidates(index: &Index, host: &Platform, choice: Choice) -> Vec<Descriptor> {
    let ranked = index.manifests.iter().filter(|d| !d.is_attestation()).filter_map(|descriptor| {
        let rank = descriptor.platform.as_ref().map_or(Some(0), |platform| host.rank(platform, choice))?;
        Some((rank, descriptor.clone()))
    });
    let mut ranked: Vec<_> = ranked.collect();
    ranked.sort_by_key(|(rank, _)| std::cmp::Reverse(*rank));
    ranked.into_iter().map(|(_, descriptor)| descriptor).collect()
}

/// The error for an index of which nothing fits.
pub(crate) fn no_platform(index: &Index, host: &Platform) -> Error {
    let platforms = index.manifests.iter().filter(|d| !d.is_attestation()).filter_map(|d| d.platform.as_ref());
    Error::NoPlatform { platform: host.to_string(), offered: platforms.map(Platform::to_string).collect() }
}

/// An image's configuration file.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct ConfigFile {
    #[serde(flatten)]
    pub(crate) platform: Platform,
    #[serde(default, deserialize_with = "null_is_default")]
    config: RunConfig,
    #[serde(default, deserialize_with = "null_is_default")]
    rootfs: RootFs,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    #[serde(deserialize_with = "null_is_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    user: String,
    #[serde(deserialize_with = "null_is_default")]
    working_dir: String,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_is_default")]
    volumes: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    exposed_ports: BTreeMap<String, serde::de::IgnoredAny>,
    #[serde(deserialize_with = "null_is_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

impl ConfigFile {
    pub(crate) fn parse(what: &str, bytes: &[u8]) -> Result<Self, Error> {
        parse(what, bytes)
    }

    /// Refuses an image for another machine. One that does not say what it is for is taken at its word.
    pub(crate) fn check_platform(&self, host: &Platform) -> Result<(), Error> {
        let says_nothing = self.platform.os.is_empty() && self.platform.architecture.is_empty();
        if says_nothing || host.rank(&self.platform, Choice::Native).is_some() {
            return Ok(());
        }
        Err(Error::NoPlatform { platform: host.to_string(), offered: vec![self.platform.to_string()] })
    }

    pub(crate) fn diff_ids(&self) -> &[Digest] {
        &self.rootfs.diff_ids
    }

    pub(crate) fn kind(&self) -> ImageKind {
        if self.platform.is_wasm() { ImageKind::WasmRootfs { module: None } } else { ImageKind::Container }
    }

    pub(crate) fn image_config(&self) -> ImageConfig {
        let config = self.config.clone();
        ImageConfig {
            env: config.env,
            entrypoint: config.entrypoint,
            cmd: config.cmd,
            user: config.user,
            working_dir: config.working_dir,
            stop_signal: config.stop_signal.filter(|signal| !signal.is_empty()),
            volumes: config.volumes.into_keys().collect(),
            exposed_ports: config.exposed_ports.into_keys().collect(),
            labels: config.labels,
            architecture: self.platform.architecture.clone(),
            os: self.platform.os.clone(),
        }
    }
}

/// Parses a JSON document; `what` names it in the error.
pub(crate) fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::malformed(what, error))
}

/// Go writes `null` for an empty list or map.
pub(crate) fn null_is_default<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn nulls_of_go_are_empty() {
        let json = br#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Cmd":["sh"],"Volumes":{"/d":{}},
            "Labels":null,"StopSignal":""},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let config = ConfigFile::parse("config", json).unwrap();
        let image = config.image_config();
        assert_eq!((image.cmd, image.volumes, image.stop_signal), (vec!["sh".to_owned()], vec!["/d".to_owned()], None));
        assert_eq!(config.diff_ids(), []);
        assert!(ConfigFile::parse("config", br#"{"config":null,"rootfs":null}"#).unwrap().diff_ids().is_empty());
    }

    #[test]
    fn a_document_is_an_index_or_a_manifest_but_not_both() {
        let digest = Digest::of(b"");
        let descriptor = format!(r#"{{"digest":"{digest}","size":1}}"#);
        let manifest = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor}]}}"#);
        let both = format!(r#"{{"schemaVersion":2,"manifests":[],"config":{descriptor}}}"#);
        assert!(matches!(Document::parse("m", manifest.as_bytes()), Ok(Document::Manifest(_))));
        assert!(matches!(Document::parse("m", index.as_bytes()), Ok(Document::Index(_))));
        for bad in [both.as_str(), "{}", "[]", "", r#"{"schemaVersion":1,"config":{}}"#] {
            assert!(matches!(Document::parse("m", bad.as_bytes()), Err(Error::Malformed { .. })), "{bad}");
        }
    }

    #[test]
    fn the_right_platform_is_chosen_and_attestations_are_not() {
        let entry = |byte: &[u8], os: &str, architecture: &str| Descriptor {
            media_type: String::new(),
            digest: Digest::of(byte),
            size: 1,
            platform: Some(Platform { os: os.into(), architecture: architecture.into(), variant: None }),
            annotations: BTreeMap::new(),
        };
        let mut attestation = entry(b"3", "linux", "arm64");
        attestation.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let manifests = vec![
            entry(b"1", "linux", "amd64"),
            attestation,
            entry(b"2", "linux", "arm64"),
            entry(b"4", "wasi", "wasm"),
        ];
        let index = Index { manifests };
        let host = Platform { os: "linux".into(), architecture: "arm64".into(), variant: Some("v8".into()) };
        let chosen = |choice| candidates(&index, &host, choice).into_iter().map(|d| d.digest).collect::<Vec<_>>();
        assert_eq!(chosen(Choice::Native), [Digest::of(b"2"), Digest::of(b"4")]);
        assert_eq!(chosen(Choice::Wasm), [Digest::of(b"4"), Digest::of(b"2")]);
        let error = no_platform(&index, &host).to_string();
        assert!(error.contains("linux/arm64/v8") && error.contains("linux/amd64"), "{error}");
    }
}
