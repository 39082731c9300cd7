//! How commands end, and within which limits.

use std::time::Duration;

use super::{prepare, run};
use crate::{Outcome, Preopen, PrepareError, Shutdown};

/// A command of WASI 0.2 whose `run` has this body.
fn command(body: &str) -> String {
    format!(
        r#"(component
            (core module $m (memory 1) (func (export "run") (result i32) {body}))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance (export "wasi:cli/run@0.2.0") (export "run" (func $run))))"#
    )
}

/// A module of preview 1 whose `_start` has this body.
fn module(body: &str) -> String {
    format!(
        r#"(module
            (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
            (memory (export "memory") 1)
            (func (export "_start") {body}))"#
    )
}

#[test]
fn exit_codes_are_those_of_the_program() {
    assert_eq!(run(&module("")), Outcome::Exited(0));
    assert_eq!(run(&module("(call $exit (i32.const 3))")), Outcome::Exited(3));
    assert_eq!(run(&module("(call $exit (i32.const 200))")), Outcome::Exited(200));
    assert_eq!(run(&module("(call $exit (i32.const 256))")), Outcome::Exited(0));
    assert_eq!(run(&command("(i32.const 0)")), Outcome::Exited(0));
    assert_eq!(run(&command("(i32.const 1)")), Outcome::Exited(1));
}

#[test]
fn a_component_may_choose_its_exit_code() {
    let text = r#"(component
        (import "wasi:cli/exit@0.2.12" (instance $exit (export "exit-with-code" (func (param "status-code" u8)))))
        (core func $exit (canon lower (func $exit "exit-with-code")))
        (core module $m
            (import "host" "exit" (func $exit (param i32)))
            (func (export "run") (result i32) (call $exit (i32.const 42)) (i32.const 0)))
        (core instance $i (instantiate $m (with "host" (instance (export "exit" (func $exit))))))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance (export "wasi:cli/run@0.2.12") (export "run" (func $run))))"#;
    assert_eq!(run(text), Outcome::Exited(42));
}

#[test]
fn traps_are_told_in_words() {
    let Outcome::Trapped(words) = run(&module("unreachable")) else { panic!("no trap") };
    assert!(words.contains("unreachable"), "{words}");
    let Outcome::Trapped(words) = run(&command("(i32.load (i32.const -1))")) else { panic!("no trap") };
    assert!(words.contains("out of bounds memory access"), "{words}");
}

#[test]
fn a_program_that_goes_on_for_ever_ends_when_it_is_told_to() {
    for text in [module("(loop (br 0))"), command("(loop (br 0)) (i32.const 0)")] {
        let (handle, shutdown) = Shutdown::by_handle();
        let program = prepare(&text, |_| ()).unwrap();
        let running = std::thread::spawn(move || program.run(shutdown));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!running.is_finished());
        handle.end(143);
        assert_eq!(running.join().unwrap(), Outcome::Exited(143));
    }
}

#[test]
fn memory_grows_to_the_limit_and_not_beyond() {
    // Grows by a page until it is refused, and then ends with the number of pages, or by a trap.
    let grow = |at_last: &str| {
        module(&format!("(loop $more (br_if $more (i32.ne (memory.grow (i32.const 1)) (i32.const -1)))) {at_last}"))
    };
    let limited = |text: &str| {
        let (_handle, shutdown) = Shutdown::by_handle();
        prepare(text, |i| i.limits.memory = Some(10 * 65_536)).unwrap().run(shutdown)
    };
    // One that lives with the refusal ends as it wants to.
    assert_eq!(limited(&grow("(call $exit (memory.size))")), Outcome::Exited(10));
    let Outcome::OutOfMemory(words) = limited(&grow("unreachable")) else { panic!("not out of memory") };
    assert!(words.contains("655360"), "{words}");
}

#[test]
fn a_limit_below_what_the_program_begins_with_is_told_before_it_starts() {
    let text = r#"(module (memory 100) (func (export "_start")))"#;
    let Err(PrepareError::MemoryLimit { needs, limit }) = prepare(text, |i| i.limits.memory = Some(65_536)) else {
        panic!("it was prepared")
    };
    assert_eq!((needs, limit), (100 * 65_536, 65_536));
}

#[test]
fn a_directory_that_is_not_there_is_named() {
    let missing = Preopen { host: "/no/such/directory".into(), guest: "/".into(), read_only: false };
    let err = prepare(&module(""), |i| i.preopens.push(missing)).err().unwrap().to_string();
    assert!(err.contains("/no/such/directory"), "{err}");
}
