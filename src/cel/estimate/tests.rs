//! What expressions about devices cost at worst; those in schemas are in `rules`.
#![expect(clippy::unwrap_used, reason = "tests")]

use crate::{Program, devices};

fn cost(text: &str) -> u64 {
    Program::compile_estimated(text, devices::env(), devices::sizes()).unwrap().1
}

#[test]
fn devices_cost_what_they_cost_in_kubernetes() {
    const OF: &str = r#"device.attributes["dra.example.com"]"#;
    const CAPACITY: &str = r#"device.capacity["dra.example.com"]"#;
    for (text, want) in [
        ("true".to_owned(), 0),
        (r#""d" in device.attributes"#.to_owned(), 3),
        (r#"device.driver == """#.to_owned(), 2),
        (r#"device.driver == "dra.example.com""#.to_owned(), 4),
        ("device.allowMultipleAllocations == true".to_owned(), 3),
        (format!("{OF}.name"), 4),
        (format!(r#"{OF}["name"]"#), 4),
        (format!("{OF}.name > 0"), 5),
        (format!(r#"{OF}.name == "fish""#), 5),
        (format!(r#"cel.bind(dra, {OF}, dra.name)"#), 15),
        (format!(r#"{OF}.name.isGreaterThan(semver("0.0.1"))"#), 6),
        (format!(r#"{OF}.name.isGreaterThan(semver("v0.0.1", true)) && isSemver("v1.0.0", true)"#), 7),
        (format!(r#"{CAPACITY}.name.isGreaterThan(quantity("1Ki"))"#), 6),
        (format!(r#""name" in {CAPACITY} && {CAPACITY}.name.isGreaterThan(quantity("1Ki"))"#), 10),
        (format!(r#"!("name" in {CAPACITY}) || {CAPACITY}.name.isGreaterThan(quantity("1Ki"))"#), 11),
        (format!("{OF}.a && {OF}.b && {OF}.c"), 12),
        // each of 32 at most
        (format!("{OF}.names.size() == 2"), 6),
        (r#"device.attributes.exists_one(x, x == "dra.example.com")"#.to_owned(), 164),
        (format!(r#"{OF}.exists_one(x, x == "services")"#), 133),
        (r#"device.capacity.exists_one(x, x == "dra.example.com")"#.to_owned(), 164),
        (format!(r#"{CAPACITY}.exists_one(x, x == "memory")"#), 133),
        // of 64 characters or items at most
        (format!("1 in {OF}.names"), 4 + 64),
        (format!("{OF}.names.exists(x, x > 0)"), 5 + 6 * 64),
        (format!(r#"{OF}.names.all(x, x != "")"#), 5 + 4 * 64),
        (format!(r#"{OF}.names.all(x, x.isGreaterThan(semver("0.0.1")))"#), 5 + 6 * 64),
        (format!(r#"{OF}.services.split("example").size() >= 2"#), 19),
        (format!(r#"{OF}.services.matches("[^a]?sym")"#), 18),
    ] {
        assert_eq!(cost(&text), want, "{text}");
    }
}

#[test]
fn loops_in_loops_cost_too_much() {
    let mut text = "int('1'.find('[0-9]*')) < 100".to_owned();
    for i in 0..7 {
        text = format!("[1, 2, 3, 4, 5, 6, 7, 8, 9, 10].all(z{i}, {text})");
    }
    assert_eq!(cost(&text), 85_555_551);
    assert!(cost(&text) > devices::COST);
}

#[test]
fn nothing_overflows() {
    let huge = "lists.range(9223372036854775807)";
    for text in [
        format!("{huge}.all(x, {huge}.all(y, {huge}.all(z, x + y + z > 0)))"),
        format!("{huge}.map(x, string(x)).join('').matches('a+')"),
        format!("{huge}.sort() == {huge}.distinct()"),
    ] {
        assert!(cost(&text) > 1 << 60, "{text}: {}", cost(&text));
    }
}

#[test]
fn deep_expressions_fit_on_the_stack() {
    let nested =
        |open: &str, inner: &str, close: &str, n: usize| format!("{}{inner}{}", open.repeat(n), close.repeat(n));
    for (open, inner, close) in [
        ("[", "1", "]"),
        ("{'a': ", "1", "}"),
        ("size([", "1", "])"),
        ("[1].map(x, ", "1", ")"),
        ("cel.bind(x, 1, ", "x", ")"),
        ("(true ? ", "1", " : 2)"),
        ("(1 + ", "1", ")"),
    ] {
        // as deep as they may be
        let deepest = (1..200).rev().map(|n| nested(open, inner, close, n));
        let compiled =
            deepest.filter_map(|text| Program::compile_estimated(&text, devices::env(), devices::sizes()).ok());
        assert!(compiled.map(|(_, cost)| cost).next().is_some_and(|cost| cost < u64::MAX), "{open}");
    }
}
