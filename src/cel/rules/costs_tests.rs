//! What rules cost at worst: the figures are Kubernetes'.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use serde_json::json;

/// What a rule for a part costs.
fn cost(schema: &Value, rule: &str) -> u64 {
    let ty = Shapes::default().of(schema);
    let env = Env::new().with("self", ty.clone()).with("oldSelf", ty);
    let size = sizes::of(schema, false).unwrap();
    Program::compile_estimated(rule, &env, Sizes::of_all(&size)).unwrap().1
}

fn named(kind: &str) -> Value {
    match kind {
        "int-or-string" => json!({"x-kubernetes-int-or-string": true}),
        "duration" | "date" | "date-time" | "byte" => json!({"type": "string", "format": kind}),
        "object" => {
            let text = json!({"type": "string"});
            json!({"type": "object", "required": ["required"], "properties": {"required": text, "optional": text}})
        }
        "map" => json!({"type": "object", "additionalProperties": {"type": "number"}}),
        "list" => json!({"type": "array", "items": {"type": "number"}}),
        kind => json!({"type": kind}),
    }
}

fn with(mut schema: Value, limit: &str, n: Option<u64>) -> Value {
    if let Some(n) = n {
        schema[limit] = n.into();
    }
    schema
}

fn list(of: Value, n: Option<u64>) -> Value {
    with(json!({"type": "array", "items": of}), "maxItems", n)
}

fn map(of: Value, n: Option<u64>) -> Value {
    with(json!({"type": "object", "additionalProperties": of}), "maxProperties", n)
}

fn text(n: Option<u64>) -> Value {
    with(named("string"), "maxLength", n)
}

#[test]
fn lists_and_maps_cost_what_fits_into_a_request() {
    let all = "self.all(x, true)";
    // of what, in a list; what is in a map
    for (kind, in_list, in_map) in [
        ("number", 4_718_591, 1_348_169),
        ("string", 3_145_727, 1_179_647),
        ("boolean", 1_887_437, 943_718),
        ("list", 3_145_727, 1_179_647),
        ("map", 3_145_727, 1_179_647),
        ("object", 555_128, 428_963),
        ("int-or-string", 4_718_591, 1_348_169),
        ("duration", 2_359_295, 1_048_577),
        ("date", 725_936, 524_288),
        ("date-time", 428_963, 349_526),
    ] {
        assert_eq!(cost(&list(named(kind), None), all), in_list, "{kind}");
        assert_eq!(cost(&map(named(kind), None), all), in_map, "{kind}");
        // or what a limit says
        for n in [0, 5, 10, 25] {
            assert_eq!(cost(&list(named(kind), Some(n)), all), 2 + 3 * n, "{kind}");
            assert_eq!(cost(&map(named(kind), Some(n)), all), 2 + 3 * n, "{kind}");
        }
    }
}

#[test]
fn rules_cost_what_they_cost_in_kubernetes() {
    let numbers = |n| list(named("number"), n);
    let of_maps = |n| list(named("map"), n);
    let texts = |n| list(text(n), n);
    let nested = |n| list(map(with(named("object"), "maxProperties", n), n), n);
    let choice = |n| with(json!({"type": "string", "enum": ["A", "B", "C", "LongValue"]}), "maxLength", n);
    let parts = |n: Option<u64>| {
        json!({"type": "object", "properties": {"str": text(n), "separator": text(n),
            "before": text(Some(2)), "after": text(Some(4))}})
    };
    let bytes = |n| with(named("byte"), "maxLength", n);
    // the rule, without and with a limit
    type Of<'f> = &'f dyn Fn(Option<u64>) -> Value;
    let cases: [(Of<'_>, &str, u64, u64, u64); 36] = [
        (&text, "self.contains('test')", 314_574, 10, 5),
        (&text, "self.startsWith('test')", 2, 15, 2),
        (&text, "self.endsWith('test')", 2, 30, 2),
        (&text, "size(self + \"hello\") > size(\"hello\")", 314_578, 4, 7),
        (&text, "self.matches(\"x\")", 314_574, 50, 22),
        (&text, "\"\".matches(\"(((((((((())))))))))[0-9]\")", 7, 10, 7),
        (&text, "self.matches(\"\")", 1, 100, 1),
        (&text, "self == \"x\"", 2, 0, 1),
        (&text, "self.find('[0-9]+') == ''", 629_147, 10, 11),
        (&text, "self.lowerAscii() == 'lower!'", 314_575, 10, 6),
        (&bytes, "self == b\"x\"", 2, 0, 1),
        (&choice, "self.contains('A')", 2, 1000, 401),
        (&numbers, "self[1] == 0.0", 2, 5000, 2),
        (&numbers, "self[3] == 0.0", 2, 0, 2),
        (&numbers, "self.all(x, x == 0.0)", 6_291_454, 3 * 1024 * 2048, 25_165_826),
        (&numbers, "self.all(x, self.all(y, true))", 7_421_698_377_883, 10, 352),
        (&|n| list(named("string"), n), "self[1] == self[1]", 314_577, 8, 314_577),
        (&|n| list(named("int-or-string"), n), "self[0] == 5", 3, 10, 3),
        (&|n| list(named("boolean"), n), "self[0] == false", 2, 25, 2),
        (&|n| list(named("object"), n), "self[0] == null", 2, 422, 2),
        (&|n| list(named("list"), n), "self[0][0] == -1.0", 3, 51, 3),
        (&of_maps, "self.all(x, x.y == 25.2)", 6_291_452, 12, 74),
        (&of_maps, "self[0].x > 2.0", 4, 3000, 4),
        (&|n| list(named("duration"), n), "self[0].getHours() == 2", 4, 525, 4),
        (&|n| list(named("date-time"), n), "self[2].getMinutes() == 45", 4, 99, 4),
        (&|n| map(text(n), n), "self.all(x, x.contains(self[x]))", 2_752_507, 10, 72),
        (&|n| map(named("number"), n), "self[\"x\"] == 0.0", 2, 0, 2),
        (&|n| map(named("integer"), n), "oldSelf.size() == self.size()", 5, 10, 5),
        (&|n| map(named("date-time"), n), "self[\"a\"] == self[\"b\"]", 8, 7, 8),
        (&|n| map(named("duration"), n), "self[\"c\"] == self[\"d\"]", 8, 42, 8),
        (&nested, "self.all(x, x[\"y\"].required == \"z\")", 7_340_027, 10, 72),
        (&texts, "self.join(' ') == 'aa bb'", 329_853_068_905, 10, 43),
        (&texts, "self.isSorted() == true", 329_854_432_052, 10, 52),
        (&parts, "self.str.replace(self.before, self.after) == 'does not matter'", 629_154, 4, 12),
        (&parts, "self.str.split(self.separator) == []", 629_160, 10, 22),
        (&|n| with(named("int-or-string"), "maxLength", n), "isQuantity(self)", 314_574, 20, 9),
    ];
    for (schema, rule, unbounded, n, bounded) in cases {
        if !rule.contains("self.all(y") {
            assert_eq!(cost(&schema(None), rule), unbounded, "{rule}");
        } else {
            assert!(cost(&schema(None), rule) > EACH_ENOUGH, "{rule}");
        }
        assert_eq!(cost(&schema(Some(n)), rule), bounded, "{rule} of {n}");
    }
}

/// Beyond every limit.
const EACH_ENOUGH: u64 = 1_000_000_000;

fn check(schema: &Value, is_unchanged: bool) -> String {
    let told = Rules::check(schema, &Path::new("schema"), is_unchanged);
    told.err().map(|e| e.0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")).unwrap_or_default()
}

/// A schema with `spec.list`, and a rule for each of its items.
fn of_items(max_items: Option<u64>, max_length: Option<u64>, rule: Value) -> Value {
    let mut item = text(max_length);
    item["x-kubernetes-validations"] = rule;
    json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"list": list(item, max_items)}}}})
}

#[test]
fn rules_that_cost_too_much_are_refused() {
    let rule = || json!([{"rule": "self.contains('keyword')"}]);
    let told = check(&of_items(None, None, rule()), false);
    let at = "schema.properties[spec].properties[list].items.x-kubernetes-validations[0].rule";
    let hint = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";
    let wanted = format!("{at}: Forbidden: estimated rule cost exceeds budget by factor of more than 100x {hint}");
    assert!(told.contains(&wanted), "{told}");
    assert!(
        told.contains(&format!(
            "{at}: Forbidden: contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema"
        )),
        "{told}"
    );
    let whole = "schema: Forbidden: x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema exceeds budget by factor of more than 100x";
    assert!(told.contains(whole), "{told}");
    assert_eq!(check(&of_items(Some(100), Some(64), rule()), false), "", "bounded");
    // the factor is told
    let told = check(&of_items(Some(1000), Some(25_000), rule()), false);
    assert!(told.contains("exceeds budget by factor of 1.000100x"), "{told}");
    let told = check(&of_items(Some(1000), Some(250_000), rule()), false);
    assert!(told.contains("exceeds budget by factor of 10.0x"), "{told}");
    // what has been accepted before is judged as a whole only
    assert_eq!(check(&of_items(Some(1000), Some(25_000), rule()), true), "");
    assert!(check(&of_items(None, None, rule()), true).contains("total for entire OpenAPIv3 schema"));
    // messages cost, too, each by itself
    let message = json!([{"rule": "true", "messageExpression": "self.matches('^a{1000}(b|c|d|e|f|g|h|i|j|k|l|m|n|o|p|q|r|s|t|u|v|w|x|y|z)*$') ? 'a' : 'b'"}]);
    let told = check(&of_items(None, None, message), false);
    assert!(!told.contains("estimated rule cost exceeds"), "{told}");
}

#[test]
fn the_most_expensive_rules_are_named() {
    let field = |n: u64| {
        let mut list = list(text(Some(n)), Some(1000));
        list["x-kubernetes-validations"] = json!([{"rule": "self.all(x, x.contains('keyword'))"}]);
        list
    };
    let fields: serde_json::Map<String, Value> = (0..12).map(|i| (format!("f{i:02}"), field(24_000 + i))).collect();
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": fields}}});
    // none is too expensive, all are
    let told = check(&schema, false);
    assert_eq!(told.lines().filter(|l| l.contains("contributed to")).count(), 4, "{told}");
    assert!(!told.contains("estimated rule cost exceeds"), "{told}");
}

#[test]
fn rules_about_what_was_there_before_need_to_find_it() {
    let rule = json!([{"rule": "self == oldSelf"}]);
    let told = check(&of_items(Some(10), Some(10), rule), false);
    assert!(
        told.contains("oldSelf cannot be used on the uncorrelatable portion of the schema within schema.properties[spec].properties[list]"),
        "{told}"
    );
    let mut schema = of_items(Some(10), Some(10), json!([{"rule": "self != ''", "optionalOldSelf": true}]));
    let told = check(&schema, false);
    assert!(
        told.contains("optionalOldSelf: Invalid value: true: may not be set if oldSelf is not used in rule"),
        "{told}"
    );
    schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name\n != ''"}]});
    assert!(check(&schema, false).contains("message must be specified if rule contains line breaks"));
}
