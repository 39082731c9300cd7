//! Compiling in a process of its own: what it makes, what it survives, what it may not do. A program of its own, because the
//! same program is the worker.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_wasm::{COMPILE_WORKER, CompileError, CompileLimits, Compiled, Compiler, World, compile_worker};
use libtest_mimic::{Arguments, Trial};
use sha2::{Digest, Sha256};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const HELLO: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
    (memory (export "memory") 1)
    (func (export "_start") (call $exit (i32.const 3))))"#;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == COMPILE_WORKER) {
        return compile_worker(args);
    }
    let trials = [
        ("compiles_once_and_keeps_it", compiles_once_and_keeps_it as fn()),
        ("damage_on_disk_is_found_and_mended", damage_on_disk_is_found_and_mended),
        ("what_is_no_program_is_refused_in_words", what_is_no_program_is_refused_in_words),
        ("bombs_end_at_their_limits", bombs_end_at_their_limits),
        ("a_dropped_compilation_ends", a_dropped_compilation_ends),
        ("sweeping_keeps_what_is_in_use", sweeping_keeps_what_is_in_use),
        ("the_worker_can_do_nothing_else", the_worker_can_do_nothing_else),
    ];
    let trials = trials
        .into_iter()
        .map(|(name, test)| {
            Trial::test(name, move || {
                test();
                Ok(())
            })
        })
        .collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

/// A compiler on a cache directory of its own.
struct Bench {
    directory: tempfile::TempDir,
    limits: CompileLimits,
    compiler: Compiler,
}

fn bench(limits: CompileLimits) -> Bench {
    let directory = tempfile::tempdir().unwrap();
    let compiler = open(directory.path(), limits);
    Bench { directory, limits, compiler }
}

fn open(directory: &Path, limits: CompileLimits) -> Compiler {
    Compiler::open(&directory.join("cache"), &std::env::current_exe().unwrap(), limits).unwrap()
}

impl Bench {
    fn module(&self, bytes: &[u8]) -> (String, PathBuf) {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let path = self.directory.path().join(&digest);
        std::fs::write(&path, bytes).unwrap();
        (digest, path)
    }

    async fn compile(&self, bytes: &[u8]) -> Result<Compiled, CompileError> {
        let (digest, path) = self.module(bytes);
        self.compiler.compile(&digest, &path).await
    }

    /// As after a restart of edge.
    fn reopen(&mut self) {
        self.compiler = open(self.directory.path(), self.limits);
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.directory.path().join("cache")).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap().block_on(future)
}

fn hello() -> Vec<u8> {
    wat::parse_str(HELLO).unwrap()
}

/// One function that keeps the compiler busy for long.
fn slow(blocks: usize) -> Vec<u8> {
    let locals = "(local i64)".repeat(1000);
    let mut body = String::new();
    for i in 0..blocks {
        let (a, b, c) = (i * 7 % 1000, i * 13 % 1000, i * 31 % 1000);
        body += &format!(
            "(block (br_table 0 0 0 (i32.wrap_i64 (local.get {a})))) \
             (loop (local.set {a} (i64.add (local.get {b}) (local.get {c}))) (br_if 0 (i64.eqz (local.get {a}))))"
        );
    }
    wat::parse_str(format!(r#"(module (func (export "_start") {locals} {body}))"#)).unwrap()
}

fn compiles_once_and_keeps_it() {
    let mut bench = bench(CompileLimits::default());
    let module = hello();
    let (one, two) = run(async { tokio::join!(bench.compile(&module), bench.compile(&module)) });
    let one = one.unwrap();
    assert_eq!((one.world, &one), (World::Preview1Command, &two.unwrap()));
    let before = std::fs::metadata(&one.path).unwrap();
    assert_eq!(before.len(), one.bytes);
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    assert_eq!(before.permissions().mode() & 0o777, 0o444);
    let directory = std::fs::metadata(one.path.parent().unwrap()).unwrap();
    assert_eq!(directory.permissions().mode() & 0o777, 0o700, "nobody else gets to the file");
    bench.reopen();
    assert_eq!(run(bench.compile(&hello())).unwrap(), one);
    assert_eq!(std::fs::metadata(&one.path).unwrap().ino(), before.ino(), "compiled again");
    let engine = edge_wasm::engine(edge_wasm::Profile::Compile).unwrap();
    let key = edge_wasm::engine_key(&engine);
    assert!(one.path.to_str().unwrap().ends_with(&format!("-{key}.code")), "{}", one.path.display());
    assert_eq!(
        wasmtime::Engine::detect_precompiled_file(&one.path).unwrap(),
        Some(wasmtime::Precompiled::Module),
        "not what the engine loads"
    );
}

fn damage_on_disk_is_found_and_mended() {
    let mut bench = bench(CompileLimits::default());
    let good = run(bench.compile(&hello())).unwrap();
    let bytes = std::fs::read(&good.path).unwrap();
    let mut flipped = bytes.clone();
    flipped[bytes.len() / 2] ^= 1;
    for damaged in [&bytes[..bytes.len() / 2], &flipped, b""] {
        std::fs::write(&good.path, damaged).unwrap();
        bench.reopen();
        assert_eq!(run(bench.compile(&hello())).unwrap(), good);
        assert_eq!(std::fs::read(&good.path).unwrap(), bytes);
    }
    let description = good.path.with_extension("json");
    for damaged in ["", "{}", r#"{"version":99}"#] {
        std::fs::write(&description, damaged).unwrap();
        bench.reopen();
        assert_eq!(run(bench.compile(&hello())).unwrap(), good);
    }
    std::fs::write(bench.directory.path().join("cache/.tmpXYZ"), "half").unwrap();
    bench.reopen();
    assert_eq!(bench.files().len(), 2, "{:?}", bench.files());
    // One that is gone while edge runs is made again, too.
    run(async {
        bench.compile(&hello()).await.unwrap();
        std::fs::remove_file(&good.path).unwrap();
        assert_eq!(bench.compile(&hello()).await.unwrap(), good);
    });
}

fn what_is_no_program_is_refused_in_words() {
    let bench = bench(CompileLimits::default());
    let component = wat::parse_str("(component)").unwrap();
    let library = wat::parse_str(r#"(module (func (export "f")))"#).unwrap();
    let mistyped = wat::parse_str(r#"(module (func (export "_start") (i32.const 1)))"#).unwrap();
    let lacking =
        wat::parse_str(r#"(module (import "env" "launch_missiles" (func)) (func (export "_start")))"#).unwrap();
    let cases: [(&[u8], &str); 7] = [
        (b"", "not a WebAssembly module"),
        (b"#!/bin/sh\n", "not a WebAssembly module"),
        (&hello()[..20], "truncated"),
        (&mistyped, "values remaining on stack"),
        (&component, "exports neither"),
        (&library, "_start"),
        (&lacking, "env.launch_missiles"),
    ];
    run(async {
        for (bytes, words) in cases {
            let error = bench.compile(bytes).await.unwrap_err();
            assert!(matches!(error, CompileError::Invalid(_)) && error.to_string().contains(words), "{error}");
        }
    });
    assert!(bench.files().is_empty(), "{:?}", bench.files());
    let digest = "0".repeat(64);
    let missing = bench.directory.path().join("missing");
    assert!(matches!(run(bench.compiler.compile(&digest, &missing)), Err(CompileError::Io { .. })));
    assert!(matches!(run(bench.compiler.compile(&digest, bench.directory.path())), Err(CompileError::Invalid(_))));
    assert!(matches!(run(bench.compiler.compile("../../x", &missing)), Err(CompileError::Digest(_))));
}

fn bombs_end_at_their_limits() {
    let bomb = slow(30_000);
    let time = bench(CompileLimits { seconds: 1, ..CompileLimits::default() });
    // on a machine that is busy the clock may be faster than the processor, which says nothing about the module
    let tries = std::iter::repeat_with(|| run(time.compile(&bomb)).unwrap_err()).take(10);
    let mut errors = tries.skip_while(|error| matches!(error, CompileError::TimedOut { .. }));
    let error = errors.next().unwrap();
    assert!(matches!(error, CompileError::TooMuchTime { .. }), "{error:?}");
    // It is not tried again and again.
    let begun = std::time::Instant::now();
    assert_eq!(run(time.compile(&bomb)).unwrap_err().to_string(), error.to_string());
    assert!(begun.elapsed().as_millis() < 500, "tried again");
    let memory = bench(CompileLimits { memory: 100 << 20, ..CompileLimits::default() });
    let error = run(memory.compile(&bomb)).unwrap_err();
    assert!(matches!(error, CompileError::TooMuchMemory { .. }), "{error:?}");
    assert!(time.files().is_empty() && memory.files().is_empty());
    assert_eq!(run(time.compile(&hello())).unwrap().world, World::Preview1Command);
}

/// The status files of workers that this process has.
fn workers() -> Vec<(i32, String)> {
    let us = format!("PPid:\t{}\n", std::process::id());
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    let status = |pid: i32| Some((pid, std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?));
    processes.filter_map(status).filter(|(_, status)| status.contains(&us)).collect()
}

fn a_dropped_compilation_ends() {
    let bench = bench(CompileLimits::default());
    let bomb = slow(30_000);
    run(async {
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(700), bench.compile(&bomb)).await;
        assert!(waiting.is_err(), "the bomb is none: {waiting:?}");
        while !workers().is_empty() {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        bench.compile(&hello()).await.unwrap();
    });
    assert_eq!(bench.files().len(), 2, "{:?}", bench.files());
}

fn sweeping_keeps_what_is_in_use() {
    let mut bench = bench(CompileLimits::default());
    let other = wat::parse_str(r#"(module (func (export "_start") unreachable))"#).unwrap();
    let (one, two) = run(async { (bench.compile(&hello()).await.unwrap(), bench.compile(&other).await.unwrap()) });
    let (digest, _) = bench.module(&hello());
    let old = one.path.with_file_name(format!("{digest}-00000000deadbeef.code"));
    std::fs::write(&old, "code of another engine").unwrap();
    assert!(bench.compiler.disk_usage().unwrap() >= one.bytes + two.bytes);
    let freed = run(bench.compiler.sweep(HashSet::from([digest.clone()]))).unwrap();
    assert!(freed > two.bytes, "{freed}");
    assert!(one.path.exists() && !two.path.exists() && !old.exists());
    bench.reopen();
    run(bench.compiler.sweep(HashSet::new())).unwrap();
    assert!(bench.files().is_empty(), "{:?}", bench.files());
}

fn the_worker_can_do_nothing_else() {
    assert!(nix::unistd::geteuid().is_root(), "this test is about giving up root's rights and needs root");
    let bench = bench(CompileLimits::default());
    let bomb = slow(30_000);
    run(async {
        // The states of its threads, all of which there are by then. It ends with whoever waits for it.
        let look = async {
            loop {
                // Locked up it is before it reads.
                if let Some((pid, _)) = workers().into_iter().find(|(_, status)| status.contains("Seccomp:\t2")) {
                    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
                    let status = |thread: std::fs::DirEntry| std::fs::read_to_string(thread.path().join("status"));
                    return threads.map(|thread| status(thread.unwrap()).unwrap()).collect::<Vec<String>>();
                }
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let threads = tokio::select! {
            threads = look => threads,
            compiled = bench.compile(&bomb) => panic!("the bomb is none: {compiled:?}"),
        };
        let processors = std::thread::available_parallelism().unwrap().get().min(8);
        assert_eq!(threads.len(), if processors == 1 { 1 } else { 1 + processors });
        for status in threads {
            let line = |name: &str| status.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned();
            assert_eq!(line("Uid:"), "Uid:\t65534\t65534\t65534\t65534");
            assert_eq!(line("Gid:"), "Gid:\t65534\t65534\t65534\t65534");
            assert_eq!(line("Groups:").trim_end(), "Groups:");
            for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
                assert_eq!(line(set), format!("{set}\t0000000000000000"));
            }
            assert_eq!(line("NoNewPrivs:"), "NoNewPrivs:\t1");
            assert_eq!(line("Seccomp:"), "Seccomp:\t2");
        }
    });
}
