//! What a file is, before it is compiled: reads only its structure, so it is quick and takes no memory.

use thiserror::Error;
use wasmparser::{ComponentExternalKind, Encoding, ExternalKind, Parser, Payload};

use crate::world::{CLI_RUN, HTTP_HANDLER, PREVIEW1, World};

/// Why a file is no program that runs here; the words are for its author.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// No WebAssembly at all.
    #[error("not a WebAssembly module: it does not begin with the bytes of one")]
    NotWasm,
    /// A binary format that is not known.
    #[error("a WebAssembly binary of a version that is not known: {0}")]
    UnknownVersion(String),
    /// The file ends before its contents do.
    #[error("the WebAssembly module is truncated: it ends at byte {len}, within what begins at byte {offset}")]
    Truncated {
        /// Bytes of the file.
        len: usize,
        /// Where that begins which the file does not hold to its end.
        offset: usize,
    },
    /// Damaged, or made for a proposal that is not known.
    #[error("not a valid WebAssembly module: {0}")]
    Invalid(String),
    /// A module that is no command.
    #[error("the module is no command: {0}")]
    NotACommand(&'static str),
    /// A component that exports nothing that runs.
    #[error(
        "the component exports neither {CLI_RUN} (a command) nor {HTTP_HANDLER} (an HTTP server), both of version 0.2{}",
        list(" but ", .0)
    )]
    UnknownWorld(Vec<String>),
    /// Imports that are not there.
    #[error("needs imports that are not provided: {}", .0.join(", "))]
    MissingImports(Vec<String>),
    /// Imports that are there, but not as they are expected.
    #[error("cannot be linked: {0}")]
    Link(String),
}

fn list(before: &str, names: &[String]) -> String {
    if names.is_empty() { String::new() } else { format!("{before}{}", names.join(", ")) }
}

/// What a module or component has to do with what is around it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    /// Whether it is a component, not a core module.
    pub component: bool,
    /// Names of the modules or interfaces that it imports, each once.
    pub imports: Vec<String>,
    /// Names of the functions that a module exports, or of the interfaces that a component does.
    pub exports: Vec<String>,
}

/// Reads the outline of a module or component.
///
/// # Errors
/// When it is none, or its structure is damaged.
pub fn outline(wasm: &[u8]) -> Result<Outline, ModuleError> {
    if !wasm.starts_with(b"\0asm") {
        return Err(ModuleError::NotWasm);
    }
    let mut depth = 0_usize;
    let mut outline = Outline::default();
    let damaged = |e: wasmparser::BinaryReaderError| parse_error(&e, wasm.len());
    let import = |imports: &mut Vec<String>, name: &str| {
        if !imports.iter().any(|known| known == name) {
            imports.push(name.to_owned());
        }
    };
    for payload in Parser::new(0).parse_all(wasm) {
        match payload.map_err(damaged)? {
            Payload::Version { encoding, .. } => {
                depth += 1;
                if depth == 1 {
                    outline.component = encoding == Encoding::Component;
                }
            }
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ImportSection(section) if depth == 1 => {
                for imported in section.into_imports() {
                    import(&mut outline.imports, imported.map_err(damaged)?.module);
                }
            }
            Payload::ComponentImportSection(section) if depth == 1 => {
                for imported in section {
                    import(&mut outline.imports, imported.map_err(damaged)?.name.name);
                }
            }
            Payload::ExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(damaged)?;
                    if export.kind == ExternalKind::Func {
                        outline.exports.push(export.name.to_owned());
                    }
                }
            }
            Payload::ComponentExportSection(section) if depth == 1 => {
                for export in section {
                    let export = export.map_err(damaged)?;
                    if export.kind == ComponentExternalKind::Instance {
                        outline.exports.push(export.name.name.to_owned());
                    }
                }
            }
            _ => {}
        }
    }
    Ok(outline)
}

/// Says what kind of program a module or component is.
///
/// # Errors
/// When it is none, is truncated, or nothing in it is known that could be run. What it imports is looked at after it is
/// compiled, by [`crate::check`].
pub fn inspect(wasm: &[u8]) -> Result<World, ModuleError> {
    let Outline { component, imports, exports } = outline(wasm)?;
    if component {
        let exported = |interface| exports.iter().any(|name| is_version_0_2(name, interface));
        return match () {
            () if exported(CLI_RUN) => Ok(World::CliCommand),
            () if exported(HTTP_HANDLER) => Ok(World::HttpProxy),
            () => Err(ModuleError::UnknownWorld(exports)),
        };
    }
    let exported = |name: &str| exports.iter().any(|f| f == name);
    match () {
        () if exported("_start") => Ok(World::Preview1Command),
        () if exported("_initialize") => {
            Err(ModuleError::NotACommand("it exports _initialize, as libraries do, but no _start"))
        }
        () if imports.iter().any(|module| module == PREVIEW1) => {
            Err(ModuleError::NotACommand("it uses WASI, but exports no _start"))
        }
        () => Err(ModuleError::NotACommand("it exports no _start (is it made for browsers?)")),
    }
}

/// Whether an export or import is an interface of WASI 0.2.
fn is_version_0_2(name: &str, interface: &str) -> bool {
    name.strip_prefix(interface).and_then(|rest| rest.strip_prefix('@')).is_some_and(|v| v.starts_with("0.2."))
}

fn parse_error(err: &wasmparser::BinaryReaderError, len: usize) -> ModuleError {
    let message = err.message();
    if message.contains("unexpected end") {
        ModuleError::Truncated { len, offset: err.offset() }
    } else if message.contains("unknown binary version") {
        ModuleError::UnknownVersion(message.to_owned())
    } else {
        ModuleError::Invalid(err.to_string())
    }
}
