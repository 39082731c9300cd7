//! What is said of files that do not run.

use super::{compile, prepare};
use crate::machine_code::link;
use crate::{ModuleError, PrepareError, Profile, World, engine, inspect};

fn told(wasm: &[u8]) -> String {
    inspect(wasm).unwrap_err().to_string()
}

fn parse(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

/// A component that exports an empty instance of this name.
fn exporting(name: &str) -> Vec<u8> {
    parse(&format!(r#"(component (instance (export "{name}")))"#))
}

#[test]
fn worlds_are_known_by_their_exports() {
    assert_eq!(inspect(&parse(r#"(module (func (export "_start")))"#)).unwrap(), World::Preview1Command);
    assert_eq!(inspect(&exporting("wasi:cli/run@0.2.3")).unwrap(), World::CliCommand);
    assert_eq!(inspect(&exporting("wasi:http/incoming-handler@0.2.0")).unwrap(), World::HttpProxy);
}

#[test]
fn other_worlds_are_refused_by_what_they_export() {
    assert!(told(&exporting("wasi:http/handler@0.3.0")).contains("but wasi:http/handler@0.3.0"));
    assert!(told(&exporting("wasi:cli/run@0.3.0")).contains("wasi:cli/run@0.3.0"));
    assert!(told(&parse(r#"(module (func (export "_initialize")))"#)).contains("_initialize"));
    assert!(told(&parse(r#"(module (func (export "add")))"#)).contains("_start"));
    // An export of the right name within a component that is not exported itself does not count.
    let nested = parse(r#"(component (component (instance (export "wasi:cli/run@0.2.0"))))"#);
    assert!(matches!(inspect(&nested), Err(ModuleError::UnknownWorld(names)) if names.is_empty()));
}

#[test]
fn damaged_files_are_refused() {
    assert!(matches!(inspect(b""), Err(ModuleError::NotWasm)));
    assert!(matches!(inspect(b"\x7fELF"), Err(ModuleError::NotWasm)));
    assert!(matches!(inspect(b"\0asm\x63\0\0\0"), Err(ModuleError::UnknownVersion(_))));
    let whole = parse(r#"(module (memory 1) (func (export "_start") nop))"#);
    inspect(&whole).unwrap();
    for len in 4..whole.len() {
        // Between two sections a shorter file is a module, too, but one without what follows.
        match inspect(&whole[..len]).unwrap_err() {
            ModuleError::Truncated { len: told, .. } => assert_eq!(told, len),
            ModuleError::NotACommand(_) => {}
            ModuleError::Invalid(words) => assert!(words.contains("code section is absent"), "{words}"),
            err => panic!("{len}: {err}"),
        }
    }
}

#[test]
fn missing_imports_of_modules_are_named() {
    let text = r#"(module
        (import "env" "emscripten_sleep" (func))
        (import "wasi_snapshot_preview1" "fd_write" (func (param i32 i32 i32 i32) (result i32)))
        (import "wasi_snapshot_preview1" "fd_fly" (func))
        (func (export "_start")))"#;
    let err = prepare(text, |_| ()).err().unwrap().to_string();
    assert_eq!(err, "needs imports that are not provided: env.emscripten_sleep, wasi_snapshot_preview1.fd_fly");
}

#[test]
fn imports_of_another_type_are_told() {
    let text = r#"(module
        (import "wasi_snapshot_preview1" "proc_exit" (func (param i64)))
        (func (export "_start")))"#;
    let err = prepare(text, |_| ()).err().unwrap().to_string();
    assert!(err.contains("proc_exit"), "{err}");
}

/// A command that imports an instance of this name, with one function.
fn importing(name: &str, function: &str) -> Vec<u8> {
    parse(&format!(
        r#"(component
            (import "{name}" (instance {function}))
            (core module $m (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    ))
}

#[test]
fn missing_imports_of_components_are_named() {
    let engine = engine(Profile::Single).unwrap();
    let check = |wasm: &[u8]| link(&engine, compile(wasm), World::CliCommand).map(drop);
    let Err(PrepareError::Module(ModuleError::MissingImports(names))) =
        check(&importing("acme:rocket/launch@1.0.0", r#"(export "go" (func))"#))
    else {
        panic!("it was linked")
    };
    assert_eq!(names, ["acme:rocket/launch@1.0.0"]);
    let Err(PrepareError::Module(ModuleError::Link(words))) =
        check(&importing("wasi:cli/environment@0.2.0", r#"(export "fly" (func))"#))
    else {
        panic!("it was linked")
    };
    assert!(words.contains("wasi:cli/environment") && words.contains("fly"), "{words}");
    // Types alone need nobody who provides them.
    check(&importing("acme:rocket/types@1.0.0", r#"(type $t u32) (export "fuel" (type (eq $t)))"#)).unwrap();
}

#[test]
fn machine_code_of_another_kind_is_refused() {
    let wasm = parse(r#"(module (func (export "_start")))"#);
    let err = link(&engine(Profile::Single).unwrap(), compile(&wasm), World::CliCommand).map(drop).unwrap_err();
    assert!(matches!(err, PrepareError::MachineCode(_)), "{err}");
}
