//! Images of containers: the pull policies, pull secrets, archives that arrive in the drop folder, garbage collection.

use crate::context::Context;
use crate::pods::Manager;
use crate::pods::record::{ImageRef, Problem};
use crate::pods::runtime_class;
use crate::pods::shared::PodShared;
use edge_client::{EventType, node_reference};
use edge_image::{
    ArchiveEvent, Choice, Digest, GarbagePolicy, Image, ImageKind, Keyring, PullOptions, Reference, error_chain,
};
use edge_wasm::{CompileError, Compiled};
use k8s_openapi::api::core::v1::{Container, ObjectReference, Pod};
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// How full the disk may get before unused images are removed, and how full it is afterwards, in percent.
const HIGH_PERCENT: u64 = 85;
const LOW_PERCENT: u64 = 80;
/// Images used that recently are never removed.
pub(crate) const LEAST_AGE: Duration = Duration::from_secs(120);
/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(300);

/// When an image is pulled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// The pull policy of a container; without one the tag decides.
pub(crate) fn policy(container: &Container, reference: &Reference) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        _ if reference.is_latest() => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

/// Names a container of a pod as the object of an event.
pub(crate) fn container_reference(pod: &Pod, container: &str, init: bool) -> ObjectReference {
    let list = if init { "initContainers" } else { "containers" };
    ObjectReference { field_path: Some(format!("spec.{list}{{{container}}}")), ..edge_client::object_reference(pod) }
}

/// What a container's status says about its image.
pub(crate) fn image_ref(image: &Image, spec_image: &str) -> ImageRef {
    let id = image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string());
    ImageRef { image: image.repo_tags.first().cloned().unwrap_or_else(|| spec_image.to_owned()), id }
}

/// Has the image of a container here, pulling it if the policy says so. Tells the story in events.
pub(crate) async fn ensure(
    shared: &PodShared,
    pod: &Pod,
    container: &Container,
    init: bool,
) -> Result<ImageRef, Problem> {
    let cx = &shared.cx;
    let name = container.image.clone().unwrap_or_default();
    let about = || container_reference(pod, &container.name, init);
    let tell = |kind, reason: &str, message: String| cx.recorder.event_ref(about(), kind, reason, message);
    let reference: Reference = name.parse().map_err(|error| {
        let message =
            format!("Failed to apply default image tag {name:?}: couldn't parse image name {name:?}: {error}");
        tell(EventType::Warning, "InspectFailed", message.clone());
        Problem::new("InvalidImageName", message)
    })?;
    let policy = policy(container, &reference);
    let choice = choice(cx, pod).await;
    let mut present = here(cx, &reference, choice);
    if present.is_none() && policy == Policy::IfNotPresent {
        // what lies in the drop folder at the start is not fetched from far away; the sender lives in the context
        let _ = cx.imports.subscribe().wait_for(|read| *read).await;
        present = here(cx, &reference, choice);
    }
    match (policy, present) {
        (Policy::IfNotPresent | Policy::Never, Some(image)) => {
            tell(EventType::Normal, "Pulled", format!("Container image {name:?} already present on machine"));
            cx.images.touch(image.id);
            Ok(image_ref(&image, &name))
        }
        (Policy::Never, None) => {
            let message = format!("Container image {name:?} is not present with pull policy of Never");
            tell(EventType::Warning, "ErrImageNeverPull", message.clone());
            Err(Problem::new("ErrImageNeverPull", message))
        }
        (Policy::Always | Policy::IfNotPresent, _) => {
            tell(EventType::Normal, "Pulling", format!("Pulling image {name:?}"));
            let begun = Instant::now();
            let pulled = tokio::select! {
                pulled = pull(shared, pod, &reference, choice) => pulled,
                image = brought(cx, &reference, choice), if policy == Policy::IfNotPresent => Ok(image),
            };
            match pulled {
                Ok(image) => {
                    // What is wrong with a module is told when its container is made.
                    if image.kind != ImageKind::Container {
                        let program = Program {
                            words: container.command.as_ref().and_then(|command| command.first()).cloned(),
                            working_dir: container.working_dir.clone(),
                            told_about: Some(about()),
                        };
                        let _ = compile(cx, &image, program).await;
                    }
                    let took = format!("{:.3}s", begun.elapsed().as_secs_f64());
                    let size = image.size;
                    tell(
                        EventType::Normal,
                        "Pulled",
                        format!(
                            "Successfully pulled image {name:?} in {took} ({took} including waiting). Image size: {size} bytes."
                        ),
                    );
                    cx.images.touch(image.id);
                    Ok(image_ref(&image, &name))
                }
                Err(cause) => {
                    tell(EventType::Warning, "Failed", format!("Failed to pull image {name:?}: {cause}"));
                    tell(EventType::Warning, "Failed", "Error: ErrImagePull".to_owned());
                    Err(Problem::new("ErrImagePull", cause))
                }
            }
        }
    }
}

/// Which image of an index a pod wants: one of a class for WebAssembly wants that.
async fn choice(cx: &Context, pod: &Pod) -> Choice {
    match runtime_class::handler(cx, pod).await {
        Ok(handler) => handler.choice(),
        // its sandbox is not made
        Err(_) => Choice::Native,
    }
}

/// The image, if it is on this node.
pub(crate) fn here(cx: &Context, reference: &Reference, choice: Choice) -> Option<Arc<Image>> {
    match choice {
        Choice::Native => cx.images.get_reference(reference),
        Choice::Wasm => cx.images.get_wasm(reference),
    }
}

/// The image, when an archive in the drop folder has brought it meanwhile: without a network a pull takes long to fail.
async fn brought(cx: &Context, reference: &Reference, choice: Choice) -> Arc<Image> {
    let mut imports = cx.imports.subscribe();
    loop {
        if let Some(image) = here(cx, reference, choice) {
            return image;
        }
        // the sender lives in the context
        let _ = imports.changed().await;
    }
}

async fn pull(shared: &PodShared, pod: &Pod, reference: &Reference, choice: Choice) -> Result<Arc<Image>, String> {
    let (cx, keyring) = (&shared.cx, keyring(shared, pod).await);
    let options = PullOptions { credentials: keyring.lookup(reference), choice, progress: None };
    cx.images.pull(reference, options).await.map_err(|error| error_chain(&error))
}

/// The credentials of the pod's pull secrets. (Admission has added those of its service account.)
async fn keyring(shared: &PodShared, pod: &Pod) -> Keyring {
    let mut keyring = Keyring::new();
    let (cx, namespace) = (&shared.cx, &shared.namespace);
    let references = pod.spec.as_ref().and_then(|s| s.image_pull_secrets.as_deref()).unwrap_or_default();
    for name in references.iter().map(|r| &r.name) {
        let found = match shared.objects.secret(name).await {
            Ok(Some(secret)) => {
                let get = |key: &str| secret.data.as_ref().and_then(|data| data.get(key));
                let json = get(".dockerconfigjson").or_else(|| get(".dockercfg"));
                json.map_or(Ok(()), |json| keyring.add(name, &json.0)).map_err(|error| error.to_string())
            }
            Ok(None) => Err("not found".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(cause) = found {
            let message = format!(
                "Unable to retrieve some image pull secrets ({name}); attempting to pull the image may not succeed."
            );
            tracing::debug!(secret = %name, namespace, cause, "pull secret not usable");
            cx.recorder.event(pod, EventType::Warning, "FailedToRetrieveImagePullSecret", message);
        }
    }
    keyring
}

/// Imports the archives of the drop folder (`<agent>/images`), and wakes the pods that wait for an image, for ever.
pub(crate) async fn follow_imports(cx: Arc<Context>, manager: Arc<Manager>) {
    let (tx, mut events) = mpsc::channel(16);
    let folder = cx.config.agent_dir.join("images");
    let watch = cx.images.watch_archives(&folder, tx);
    let tell = async {
        while let Some(event) = events.recv().await {
            match event {
                ArchiveEvent::Imported { path, images } => {
                    tracing::info!(archive = %path.display(), images = images.len(), "image archive imported");
                    compile_all(&cx, images);
                    cx.imports.send_modify(|_| {});
                    manager.image_arrived();
                }
                ArchiveEvent::Failed { path, error } => {
                    let error = error_chain(&error);
                    tracing::warn!(archive = %path.display(), error, "image archive not imported");
                    cx.recorder.event_ref(
                        node_reference(&cx.config.node_name),
                        EventType::Warning,
                        "ImageImportFailed",
                        error,
                    );
                }
                ArchiveEvent::Ready => {
                    cx.imports.send_replace(true);
                    // what another version of edge left
                    sweep_compiled(&cx).await;
                }
            }
        }
    };
    if let (Err(error), ()) = tokio::join!(watch, tell) {
        tracing::error!(folder = %folder.display(), error = error_chain(&error), "drop folder of images not watched");
        cx.imports.send_replace(true);
    }
}

/// Why an image's WebAssembly program cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("{}", error_chain(.0))]
    Find(#[from] edge_image::Error),
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// Which program of an image is wanted, and who is to know that it is being compiled.
#[derive(Default)]
pub(crate) struct Program {
    /// The first word of the container's command line, where that is not the image's.
    pub(crate) words: Option<String>,
    /// The container's working directory, where it is not the image's.
    pub(crate) working_dir: Option<String>,
    /// Whose events tell of it.
    pub(crate) told_about: Option<ObjectReference>,
}

/// The machine code of a WebAssembly image's program: out of the cache mostly, since it is compiled when the image arrives.
pub(crate) async fn compile(cx: &Context, image: &Arc<Image>, program: Program) -> Result<Compiled, ProgramError> {
    let Program { words, working_dir, told_about } = program;
    let found = cx.images.wasm_program(image.clone(), words, working_dir).await?;
    let name = image.repo_tags.first().or(image.repo_digests.first()).cloned().unwrap_or_else(|| image.id.to_string());
    let tell = |reason: &str, message: String| {
        if let Some(about) = &told_about {
            cx.recorder.event_ref(about.clone(), EventType::Normal, reason, message);
        }
    };
    let (begun, told) = (Instant::now(), AtomicBool::new(false));
    let begins = || {
        // it may have been somebody else who compiled, in vain
        if !told.swap(true, Ordering::Relaxed) {
            let size = std::fs::metadata(&found.path).map_or(0, |metadata| metadata.len());
            tell("Compiling", format!("Compiling the WebAssembly program of image {name:?} ({size} bytes)"));
        }
    };
    let compiled = cx.compiler.compile_telling(&found.digest.hex(), &found.path, begins).await;
    match &compiled {
        Ok(compiled) if told.load(Ordering::Relaxed) => {
            let (took, size) = (begun.elapsed().as_secs_f64(), compiled.bytes);
            let what = format!("Compiled the WebAssembly program of image {name:?} in {took:.3}s");
            tell("Compiled", format!("{what}. Machine code size: {size} bytes."));
        }
        Ok(_) => {}
        Err(error) => tracing::debug!(image = %image.id, %error, "WebAssembly program not compiled"),
    }
    Ok(compiled?)
}

/// Compiles the programs of new images one after the other, in the background: others need not wait for them.
fn compile_all(cx: &Arc<Context>, mut images: Vec<Arc<Image>>) {
    images.retain(|image| image.kind != ImageKind::Container);
    if images.is_empty() {
        return;
    }
    let cx = cx.clone();
    tokio::spawn(async move {
        let compile = async {
            for image in images {
                if let Err(error) = compile(&cx, &image, Program::default()).await {
                    let image = image.repo_tags.first().cloned().unwrap_or_else(|| image.id.to_string());
                    tracing::warn!(image, %error, "the WebAssembly program of an imported image will not run");
                }
            }
        };
        cx.stop.run_until_cancelled(compile).await;
    });
}

/// Removes machine code that no image needs.
pub(crate) async fn sweep_compiled(cx: &Context) {
    let in_use = cx.images.wasm_digests().iter().map(Digest::hex).collect();
    match cx.compiler.sweep(in_use).await {
        Ok(0) => {}
        Ok(bytes) => tracing::info!(bytes, "unused machine code removed"),
        Err(error) => tracing::warn!(%error, "unused machine code not removed"),
    }
}

/// Removes unused images when the disk gets full, for ever.
pub(crate) async fn collect_garbage(cx: Arc<Context>) {
    let mut tick = interval(LOOK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let usage = match cx.images.usage() {
            Ok(usage) => usage,
            Err(error) => {
                tracing::warn!(error = error_chain(&error), "disk usage of images unknown");
                continue;
            }
        };
        let Some(free_bytes) = to_free(usage.capacity_bytes, usage.available_bytes) else { continue };
        let policy = GarbagePolicy { keep: used_images(&cx), free_bytes, unused_for: LEAST_AGE };
        match cx.images.collect_garbage(policy).await {
            Ok(freed) => tracing::info!(images = freed.images.len(), bytes = freed.bytes, "unused images removed"),
            Err(error) => tracing::warn!(error = error_chain(&error), "unused images not removed"),
        }
        sweep_compiled(&cx).await;
    }
}

/// How many bytes to free on a disk that is fuller than it may be.
fn to_free(capacity: u64, available: u64) -> Option<u64> {
    let used = capacity.saturating_sub(available);
    let percent = |p: u64| (u128::from(capacity) * u128::from(p) / 100) as u64;
    (capacity > 0 && used > percent(HIGH_PERCENT)).then(|| used - percent(LOW_PERCENT))
}

/// The images of that id or name: of an index there may be two, one for pods that run WebAssembly.
pub(crate) fn named(cx: &Context, name: &str) -> impl Iterator<Item = Arc<Image>> + use<> {
    let image = cx.images.get(name);
    let wasm = name.parse().ok().and_then(|reference| cx.images.get_wasm(&reference));
    let wasm = wasm.filter(|wasm| image.as_ref().is_none_or(|image| image.id != wasm.id));
    image.into_iter().chain(wasm)
}

/// The images that pods of this node name.
pub(crate) fn used_images(cx: &Context) -> HashSet<Digest> {
    let selector = format!("spec.nodeName={}", cx.config.node_name);
    cx.informers.select::<Pod>(&selector).list().iter().flat_map(|pod| images_of(cx, pod)).collect()
}

/// The images that a pod names.
pub(crate) fn images_of(cx: &Context, pod: &Pod) -> Vec<Digest> {
    let names = crate::pods::record::spec_containers(pod).filter_map(|(_, c)| c.image.as_deref());
    names.flat_map(|name| named(cx, name)).map(|image| image.id).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn policies_follow_the_tag() {
        let of = |image: &str, policy_name: Option<&str>| {
            let container = Container { image_pull_policy: policy_name.map(str::to_owned), ..Container::default() };
            policy(&container, &image.parse().unwrap())
        };
        assert_eq!(of("busybox", None), Policy::Always);
        assert_eq!(of("busybox:latest", None), Policy::Always);
        assert_eq!(of("busybox:1", None), Policy::IfNotPresent);
        assert_eq!(of("busybox", Some("IfNotPresent")), Policy::IfNotPresent);
        assert_eq!(of("busybox:1", Some("Never")), Policy::Never);
    }

    #[test]
    fn images_are_removed_only_from_a_full_disk() {
        assert_eq!(to_free(1000, 151), None);
        assert_eq!(to_free(1000, 100), Some(100));
        assert_eq!(to_free(1000, 0), Some(200));
        assert_eq!(to_free(0, 0), None);
    }
}
