//! What runs the containers of a pod: the handler of its RuntimeClass, or what their images need when it has none.

use crate::context::Context;
use edge_image::Choice;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::node::v1::RuntimeClass;

/// The handlers of this node, as RuntimeClasses name them.
pub(crate) const HANDLERS: [&str; 3] = ["", WASM, WASM_DENSE];
const WASM: &str = "wasm";
const WASM_DENSE: &str = "wasm-dense";

/// What runs a pod's containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handler {
    /// Native programs and WebAssembly ones, each container as its image is.
    ByImage,
    /// WebAssembly programs only.
    Wasm,
    /// WebAssembly programs only, all in the process that runs those of other pods, too.
    WasmDense,
}

impl Handler {
    /// Which image of an index it runs.
    pub(crate) fn choice(self) -> Choice {
        match self {
            Self::ByImage => Choice::Native,
            Self::Wasm | Self::WasmDense => Choice::Wasm,
        }
    }
}

/// Why a pod's RuntimeClass is of no use; the texts are the kubelet's and containerd's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RuntimeClassError {
    #[error("RuntimeClass {0:?} not found")]
    NotFound(String),
    #[error("no runtime for {0:?} is configured")]
    NoHandler(String),
}

/// The handler of a pod. Where no server answers after a start, a class is taken to be called like its handler, as the built-in
/// ones are.
pub(crate) async fn handler(cx: &Context, pod: &Pod) -> Result<Handler, RuntimeClassError> {
    let name = pod.spec.as_ref().and_then(|s| s.runtime_class_name.as_deref()).unwrap_or_default();
    if name.is_empty() {
        return Ok(Handler::ByImage);
    }
    let classes = cx.informers.of::<RuntimeClass>();
    match cx.unless_alone(classes.synced()).await {
        Some(()) => match classes.get("", name) {
            Some(class) => named(&class.handler),
            None => Err(RuntimeClassError::NotFound(name.to_owned())),
        },
        None => named(name),
    }
}

fn named(handler: &str) -> Result<Handler, RuntimeClassError> {
    match handler {
        "" => Ok(Handler::ByImage),
        WASM => Ok(Handler::Wasm),
        WASM_DENSE => Ok(Handler::WasmDense),
        other => Err(RuntimeClassError::NoHandler(other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn every_handler_of_the_node_is_one() {
        assert!(HANDLERS.iter().all(|handler| named(handler).is_ok()));
        assert_eq!(named("kata").unwrap_err().to_string(), "no runtime for \"kata\" is configured");
    }
}
