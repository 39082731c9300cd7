//! Expressions by people who mean harm: none takes long, much memory, the stack, or the server.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_cel::{Budget, Env, Error, Program, Type, Value};
use serde_json::json;

fn env() -> Env {
    Env::new().with("o", Type::Dyn)
}

fn run(text: &str) -> Result<(), Error> {
    let program = Program::compile(text, &env()).unwrap();
    let data = json!({"text": "a".repeat(1_000_000), "list": (0..100_000).collect::<Vec<i32>>()});
    let get = |_: usize, _: &mut Budget| Ok(Value::json(&data));
    program.run(&get, &mut Budget::default()).map(drop)
}

/// Threads of the server have stacks of this size.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new().stack_size(2 << 20).spawn(f).unwrap().join().unwrap();
}

#[test]
fn deep_texts_are_refused() {
    on_a_small_stack(|| {
        for n in [100_usize, 1000, 20_000] {
            for text in [
                "(".repeat(n) + "1" + &")".repeat(n),
                "[".repeat(n) + &"]".repeat(n),
                "{1:".repeat(n) + "1" + &"}".repeat(n),
                "!".repeat(n) + "(".repeat(n).as_str(),
                "-".repeat(n) + "o",
                "1+".repeat(n * 2) + "1",
                "o".to_owned() + &".a".repeat(n * 2),
                "o".to_owned() + &"[0]".repeat(n * 2),
                "true?".repeat(n) + "1" + &":1".repeat(n),
                "has(o.a".repeat(n) + &")".repeat(n),
                "o.map(x,".repeat(n) + "1" + &")".repeat(n),
                "'".to_owned() + &"\\".repeat(n),
                "o.?a".to_owned() + &".?a".repeat(n),
                "cel.bind(x,1,".repeat(n) + "x" + &")".repeat(n),
                "true &&".repeat(n) + "true",
            ] {
                // some are fine, none may do harm
                if let Ok(program) = Program::compile(&text, &env()) {
                    let data = json!({});
                    let get = |_: usize, _: &mut Budget| Ok(Value::json(&data));
                    let _ = program.run(&get, &mut Budget::default());
                }
            }
        }
        let deepest = "[".repeat(70) + &"]".repeat(70);
        Program::compile(&deepest, &env()).unwrap();
        let error = Program::compile(&("(".repeat(5000) + "1"), &env()).unwrap_err();
        assert!(error.to_string().contains("expression recursion limit exceeded"));
    });
}

#[test]
fn long_texts_are_refused() {
    let error = Program::compile(&"1".repeat(1 << 20), &env()).unwrap_err();
    assert!(error.to_string().contains("expression code point size exceeds limit: size: 1048576, limit 100000"));
    assert!(error.to_string().len() < 1000);
    let chain = "true && ".repeat(10_000) + "true";
    Program::compile(&chain, &env()).unwrap();
    let unknown = "x && ".repeat(10_000) + "x";
    assert_eq!(Program::compile(&unknown, &env()).unwrap_err().issues.len(), 20);
}

#[test]
fn what_costs_too_much_ends() {
    let doubling = "cel.bind(a, 'x'.replace('', '0123456789'), ".to_owned()
        + &"cel.bind(a, a.replace('', a), ".repeat(8)
        + "a.size() > 0"
        + &")".repeat(9);
    let lists =
        "cel.bind(a, [1, 2], ".to_owned() + &"cel.bind(a, a + a, ".repeat(40) + "a.size() > 0" + &")".repeat(41);
    for text in [
        "o.list.all(a, o.list.all(b, a != -b - 1))",
        "o.list.map(a, o.list.map(b, o.list.map(c, [a, b, c]))).size() > 0",
        "o.list.exists(a, o.list.exists(b, false)) || true",
        doubling.as_str(),
        lists.as_str(),
        "o.text.matches('(a{100}){10}b')",
        "o.text.matches('(x+x+)+y' + o.text)",
        "o.list.distinct().size() > 0",
        "lists.range(1000000000).size() > 0",
        "lists.range(300).map(x, o.text).join('').size() > 0",
        "'%s'.format([lists.range(300).map(x, o.text)]) == ''",
        "o.list.all(x, o.text.replace('a', 'bb').size() > 0)",
    ] {
        let error = run(text).unwrap_err();
        assert!(
            matches!(error, Error::TooExpensive | Error::BudgetSpent),
            "{}: {error}",
            text.get(..40).unwrap_or(text)
        );
    }
}

#[test]
fn a_request_has_a_budget_of_its_own() {
    let program = Program::compile("lists.range(900000).size() > 0", &env()).unwrap();
    let mut budget = Budget::default();
    let get = |_: usize, _: &mut Budget| Ok(Value::Null);
    for _ in 0..11 {
        program.run(&get, &mut budget).unwrap();
    }
    assert_eq!(program.run(&get, &mut budget).unwrap_err(), Error::BudgetSpent);
    assert_eq!(budget.left(), 0);
}

#[test]
fn patterns_do_no_harm() {
    for pattern in [
        "(((a{1000}){1000}){1000})",
        "a{1000000}",
        "(?x",
        "[",
        "\\\\p{Greek}",
        "(a|b|c",
        &"(".repeat(1000),
        &"a?".repeat(5000),
    ] {
        let _ = Program::compile(&format!("o.text.matches('{pattern}')"), &env());
    }
    let random = [
        "'", "\"", "\\", "`", "(", ")", "[", "]", "{", "}", "o", ".", "?", ":", "1", "0x", "e", "-", "in", "b'", "r\"",
        "\u{0}", "é", "//", "\n", ",",
    ];
    let mut state = 12345_u64;
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..12 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            text.push_str(random[(state >> 33) as usize % random.len()]);
        }
        let _ = Program::compile(&text, &env());
    }
}
