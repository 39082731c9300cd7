//! WebAssembly programs of the tests: compiled from `tests/wasm` on the spot, and packed in every form that users bring.

use super::images::{OciArchive, once};
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A core module for preview 1: `hello` or `greedy`.
pub(crate) fn module(name: &str) -> PathBuf {
    let source = sources().join(format!("{name}.c"));
    once(&format!("{name}.wasm"), &[&source], |to| clang(&[], &[&source], to))
}

/// The same program as [`module`], as a component of the world `wasi:cli/command`.
pub(crate) fn command(name: &str) -> PathBuf {
    use wasi_preview1_component_adapter_provider as adapter;
    let core = module(name);
    once(&format!("{name}.component.wasm"), &[&core], |to| {
        let name = adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
        encode(&fs::read(&core).unwrap(), name, adapter::WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER, to);
    })
}

/// A component of one of the worlds in `worlds.wit`: `http` or `net`.
pub(crate) fn component(name: &str) -> PathBuf {
    use wasi_preview1_component_adapter_provider as adapter;
    let (source, worlds) = (sources().join(format!("{name}.c")), sources().join("worlds.wit"));
    once(&format!("{name}.component.wasm"), &[&source, &worlds], |to| {
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (mut resolve, world) = resolve(&worlds, name);
        let mut files = wit_bindgen_core::Files::default();
        let mut generator = wit_bindgen_c::Opts::default().build();
        generator.generate(&mut resolve, world, &mut files).unwrap();
        for (name, content) in files.iter() {
            fs::write(directory.path().join(name), content).unwrap();
        }
        let core = directory.path().join("core.wasm");
        let generated = directory.path().join(format!("{name}.c"));
        let object = directory.path().join(format!("{name}_component_type.o"));
        let include = format!("-I{}", directory.path().display());
        clang(&["-mexec-model=reactor", &include], &[&source, &generated, &object], &core);
        let name = adapter::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
        encode(&fs::read(&core).unwrap(), name, adapter::WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER, to);
    })
}

/// Processes that run machine code of programs.
pub(crate) fn runners(cluster: &super::Cluster) -> Vec<i32> {
    let runs =
        |pid: &i32| fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains("/agent/wasm/"));
    // one process is in a cgroup of each hierarchy
    let all: std::collections::BTreeSet<i32> = cluster.processes().into_iter().filter(runs).collect();
    all.into_iter().collect()
}

/// A server is told by the kernel which pages an instance has written to, so that the next one begins with what it kept of them. The
/// kernel does so since 6.7.
pub(crate) fn assert_knows_its_pages(pid: i32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.trim().parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(7)) {
        println!("NOT TESTED: Linux {release} tells nobody of written pages");
        return;
    }
    let open: Vec<PathBuf> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok())
        .collect();
    assert!(open.iter().any(|file| file.ends_with("pagemap")), "{open:?}");
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/wasm")
}

fn clang(options: &[&str], sources: &[&Path], to: &Path) {
    let mut clang = Command::new("clang");
    clang.args(["--target=wasm32-wasi", "-Oz", "-Wall", "-Wl,--strip-all", "-o"]).arg(to).args(options).args(sources);
    let status = clang.status().expect("scripts/setup installs clang, lld and wasi-libc");
    assert!(status.success(), "compiling {sources:?} failed");
}

fn encode(core: &[u8], adapter_name: &str, adapter: &[u8], to: &Path) {
    let mut encoder = wit_component::ComponentEncoder::default().validate(true).module(core).unwrap();
    encoder = encoder.adapter(adapter_name, adapter).unwrap();
    fs::write(to, encoder.encode().unwrap()).unwrap();
}

/// The interfaces come with the crate that implements them; cargo knows where that is.
fn resolve(worlds: &Path, world: &str) -> (wit_parser::Resolve, wit_parser::WorldId) {
    let asked = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--offline", "--filter-platform", "wasm32-wasip1"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(asked.status.success(), "{}", String::from_utf8_lossy(&asked.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&asked.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let mut resolve = wit_parser::Resolve::default();
    for (name, place) in [("wasmtime-wasi-http", "wit"), ("wasmtime-wasi-config", "wit/deps/config")] {
        let package = packages.iter().find(|p| p["name"] == name).unwrap();
        resolve.push_dir(Path::new(package["manifest_path"].as_str().unwrap()).with_file_name(place)).unwrap();
    }
    let package = resolve.push_str(worlds, &fs::read_to_string(worlds).unwrap()).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    (resolve, world)
}

/// How a module is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// The CNCF artifact: the layer is the module.
    Artifact,
    /// As Spin writes it: the module, and further layers with files that are not for us.
    Spin,
    /// As buildx writes it for `wasi/wasm`: a root file system with the module.
    Buildx,
    /// `FROM scratch` for Linux, the entrypoint being the module.
    Scratch,
}

/// An archive of one module, tagged `tag`. Give `name` without `docker.io/library/`, which is how `kubectl` users write it.
pub(crate) fn archive(module: &Path, packing: Packing, tag: &str) -> PathBuf {
    let tag = format!("docker.io/library/{tag}");
    let name = format!("{}-{packing:?}.tar", tag.replace(['/', ':'], "-"));
    once(&name, &[module], |to| {
        let mut archive = OciArchive::default();
        archive.wasm(&fs::read(module).unwrap(), packing, &[&tag]);
        archive.write(to);
    })
}

impl OciArchive {
    /// Adds a module, packed in that way.
    pub(crate) fn wasm(&mut self, module: &[u8], packing: Packing, tags: &[&str]) {
        let (config, layers) = match packing {
            Packing::Artifact => (
                ("application/vnd.wasm.config.v0+json", json!({"architecture": "wasm", "os": "wasip1"})),
                vec![("application/wasm", module.to_vec())],
            ),
            Packing::Spin => (
                ("application/vnd.fermyon.spin.application.v1+config", json!({"trigger": {"type": "http"}})),
                vec![
                    ("application/vnd.wasm.content.layer.v1+wasm", module.to_vec()),
                    ("application/vnd.wasm.content.layer.v1+data", b"a file".to_vec()),
                ],
            ),
            Packing::Buildx | Packing::Scratch => {
                let platform = match packing {
                    Packing::Buildx => ("wasi", "wasm"),
                    _ => ("linux", super::images::architecture()),
                };
                let config = json!({"Entrypoint": ["/app.wasm"], "Env": ["FROM_IMAGE=yes"]});
                let layer =
                    super::images::layer(&[("app.wasm", 0o755, module), ("data/file", 0o644, b"of the image\n")]);
                self.image(&layer, &config, platform, tags);
                return;
            }
        };
        self.manifest(config, &layers, tags);
    }
}
