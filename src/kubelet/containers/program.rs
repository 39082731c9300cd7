//! The WebAssembly program of an image, as machine code.

use crate::context::Context;
use edge_image::{Image, ImageKind};
use edge_wasm::{CompileError, Compiled};

/// Why an image's program cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    #[error("its module is gone")]
    Gone,
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// The machine code of an image's program: out of the cache, mostly, since it was compiled when the image arrived.
pub(super) async fn compiled(cx: &Context, image: &Image, _: &[String]) -> Result<Compiled, ProgramError> {
    let ImageKind::WasmModule { module } = &image.kind else { return Err(ProgramError::Gone) };
    let path = cx.images.wasm_module(image).ok_or(ProgramError::Gone)?;
    Ok(cx.compiler.compile(&module.hex(), &path).await?)
}
