//! What expressions mean, in tables: an expression over the variables below, and whether it holds or why not.
#![expect(clippy::unwrap_used, reason = "tests")]

use edge_cel::{Budget, Env, Error, Program, Type, Value};
use serde_json::{Value as Json, json};

fn data() -> Json {
    json!({
        "name": "web", "replicas": 3, "ratio": 1.5, "on": true, "nothing": null, "big": 18_446_744_073_709_551_615_u64,
        "labels": {"app": "web", "tier.x/y": "front"}, "ports": [80, 443], "empty": [],
        "containers": [{"name": "a", "image": "r.io/a:1"}, {"name": "b", "image": "docker.io/b"}],
        "a-b": 1,
    })
}

fn env() -> Env {
    Env::new().with("o", Type::Dyn).with("variables.x", Type::Int).with("s", Type::String)
}

fn run(text: &str) -> Result<Json, String> {
    let program = Program::compile(text, &env()).map_err(|e| e.to_string())?;
    let data = data();
    let get = |place: usize, _: &mut Budget| match place {
        0 => Ok(Value::json(&data)),
        1 => Ok(Value::Int(7)),
        _ => Err(Error::Failed("s is out".into())),
    };
    let value = program.run(&get, &mut Budget::default()).map_err(|e| e.to_string())?;
    Ok(value.to_json().unwrap_or_else(|| value.to_string().into()))
}

#[test]
fn expressions_that_hold() {
    for text in [
        // the language
        "1 + 2 * 3 == 7 && (1 + 2) * 3 == 9",
        "7 / 2 == 3 && -7 / 2 == -3 && -7 % 3 == -1",
        "1u + 2u == 3u",
        "0x1F == 31",
        "1.5e3 == 1500.0",
        "-9223372036854775808 < 0",
        "'a' + \"b\" == 'ab'",
        "r'\\d' == '\\\\d'",
        "'\\u00e9' == 'é'",
        "'''a\nb''' == 'a\\nb'",
        "b'\\xff' != b'a'",
        "size(b'abc') == 3",
        "true ? true : 1 / 0 == 1",
        "!false && !!true",
        "[1, 2] + [3] == [1, 2, 3]",
        "{'a': 1}.a == 1 && {'a': 1}['a'] == 1",
        "{1: 'x'}[1] == 'x'",
        "2 in [1, 2]",
        "'app' in o.labels",
        "!('x' in o.labels)",
        "1 < 2 && 2 <= 2 && 'a' < 'b'",
        "type(1) == int && type('') == string && type([]) == list",
        "type(type(1)) == type",
        "null == o.nothing",
        "dyn(1) == dyn(1.0)",
        "dyn(1) < dyn(1.5) && 1 < 2.0 && 2u > 1",
        "dyn([1]) == dyn([1.0])",
        "dyn(1) != dyn('1')",
        "o.replicas == 3 && o.ratio > 1.0 && o.big > 0.0",
        "o.labels['tier.x/y'] == 'front'",
        "o.`a-b` == 1",
        "o.ports[1] == 443",
        "variables.x == 7",
        "// a comment\n o.on",
        "has(o.name) && !has(o.nope) && has(o.labels.app)",
        "has(o.nothing)",
        "9007199254740993 != 9007199254740992",
        // one side that decides makes up for the other's error
        "true || o.nope == 1",
        "o.nope == 1 || true",
        "!(false && o.nope)",
        "!(o.nope && false)",
        "[1, 'x', 2].exists(i, i == 2)",
        "['x', 3].exists(i, i > 2)",
        // macros
        "o.ports.all(p, p > 0) && o.ports.exists(p, p == 80) && o.ports.exists_one(p, p == 80)",
        "o.empty.all(p, false)",
        "!o.empty.exists(p, true)",
        "o.ports.map(p, p * 2) == [160, 886]",
        "o.ports.map(p, p > 100, p * 2) == [886]",
        "o.ports.filter(p, p > 100) == [443]",
        "o.labels.all(k, k.size() > 2)",
        "o.containers.all(c, c.image.startsWith('r.io/') || c.name == 'b')",
        "o.containers.map(c, c.name).exists(n, n == 'a')",
        "[1, 2].map(a, [3, 4].map(b, a * b)) == [[3, 4], [6, 8]]",
        "o.labels.all(k, v, k != v) || o.labels.exists(k, v, v == 'web')",
        "[5, 6].all(i, v, v == i + 5)",
        "[5, 6].exists(i, v, i == 1 && v == 6)",
        "[5, 6].transformList(i, v, i + v) == [5, 7]",
        "[5, 6].transformMap(i, v, v * 2) == {0: 10, 1: 12}",
        "{'a': 1, 'b': 2}.transformMap(k, v, v > 1, v + 1) == {'b': 3}",
        "['a', 'b'].transformMapEntry(i, v, {v: i}) == {'a': 0, 'b': 1}",
        "cel.bind(x, 4, x * x) == 16",
        "cel.bind(x, [1, 2], x.all(y, y in x))",
        // optionals
        "o.?nope.orValue('d') == 'd' && o.?name.orValue('d') == 'web'",
        "o.?labels.app.value() == 'web'",
        "!o.?nope.?deeper.hasValue()",
        "o.ports[?0].value() == 80 && !o.ports[?9].hasValue()",
        "o[?'nope'].or(optional.of(1)).value() == 1",
        "optional.none().orValue(3) == 3",
        "optional.of(2).optMap(x, x + 1).value() == 3",
        "optional.of(2).optFlatMap(x, optional.none()) == optional.none()",
        "[?o.?nope, 1] == [1]",
        "{?'a': o.?nope, 'b': 2} == {'b': 2}",
        "!optional.ofNonZeroValue('').hasValue()",
        "optional.of(1).orValue(1 / 0) == 1",
        // text
        "'hello'.charAt(1) == 'e' && 'hello'.charAt(5) == ''",
        "'hello'.indexOf('l') == 2 && 'hello'.indexOf('l', 3) == 3 && 'x'.indexOf('y') == -1",
        "'hello'.lastIndexOf('l') == 3 && 'hello'.lastIndexOf('l', 2) == 2",
        "'ABc'.lowerAscii() == 'abc' && 'aé'.upperAscii() == 'Aé'",
        "'aaa'.replace('a', 'b') == 'bbb' && 'aaa'.replace('a', 'b', 2) == 'bba' && 'ab'.replace('', '-') == '-a-b-'",
        "'a,b,c'.split(',') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c'] && 'ab'.split('') == ['a', 'b']",
        "'a,b'.split(',', 0) == []",
        "['a', 'b'].join('-') == 'a-b' && ['a', 'b'].join() == 'ab'",
        "'hello'.substring(1, 3) == 'el' && 'hello'.substring(3) == 'lo'",
        "' a '.trim() == 'a'",
        "'abc'.reverse() == 'cba'",
        "strings.quote('a\"b\\n') == '\"a\\\\\"b\\\\n\"'",
        "'é'.size() == 1 && size('é') == 1",
        "'%s is %d of %.2f'.format(['x', 3, 1.0]) == 'x is 3 of 1.00'",
        "'%x %X %o %b %%'.format([255, 255, 8, 5]) == 'ff FF 10 101 %'",
        "'%s %s'.format([[1, 'a'], {'k': true}]) == '[1, a] {k: true}'",
        "'%e'.format([1052.032911275]) == '1.052033e+03'",
        "'foo123'.matches('^[a-z]+[0-9]+$') && !'x'.matches('y')",
        "matches('abc', 'b')",
        "'a1b22'.find('[0-9]+') == '1'",
        "'a1b22'.findAll('[0-9]+') == ['1', '22'] && 'a1b22'.findAll('[0-9]+', 1) == ['1']",
        "'abc'.contains('b') && 'abc'.endsWith('c')",
        // lists and sets
        "[1, 2, 3].sum() == 6 && [1.5, 2.5].sum() == 4.0",
        "[3, 1].min() == 1 && [3, 1].max() == 3",
        "[1, 2].isSorted() && ![2, 1].isSorted()",
        "[1, 2, 1].indexOf(1) == 0 && [1, 2, 1].lastIndexOf(1) == 2 && [1].indexOf(5) == -1",
        "[1, [2, [3]]].flatten() == [1, 2, [3]]",
        "[3, 1, 2].sort() == [1, 2, 3]",
        "[1, 1, 2].distinct() == [1, 2]",
        "[1, 2, 3].slice(1, 3) == [2, 3]",
        "lists.range(3) == [0, 1, 2]",
        "[1, 2].reverse() == [2, 1]",
        "[1].first().value() == 1 && ![].last().hasValue()",
        "sets.contains([1, 2], [2]) && sets.equivalent([1, 1], [1]) && sets.intersects([1], [1, 2]) && !sets.intersects([1], [])",
        // numbers
        "int('5') == 5 && int(5.9) == 5 && int(-5.9) == -5 && uint(5) == 5u && double('1.5') == 1.5",
        "string(1.0) == '1' && string(1.5) == '1.5' && string(true) == 'true'",
        "math.greatest(1, 3, 2) == 3 && math.least([4, 2]) == 2 && math.abs(-1) == 1 && math.ceil(1.2) == 2.0 && math.sign(-3) == -1",
        "math.bitAnd(6, 3) == 2 && math.bitShiftLeft(1, 4) == 16",
        // time
        "timestamp('2024-02-29T12:30:05.5Z').getFullYear() == 2024",
        "timestamp('2024-02-29T12:30:05.5Z').getMonth() == 1",
        "timestamp('2024-02-29T12:30:05.5Z').getDate() == 29 && timestamp('2024-02-29T12:30:05.5Z').getDayOfMonth() == 28",
        "timestamp('2024-02-29T12:30:05.5Z').getDayOfWeek() == 4 && timestamp('2024-02-29T12:30:05.5Z').getDayOfYear() == 59",
        "timestamp('2024-02-29T23:30:00Z').getHours('Europe/Berlin') == 0 && timestamp('2024-02-29T23:30:00Z').getHours('-02:00') == 21",
        "timestamp('2024-02-29T12:30:05.5Z').getMilliseconds() == 500",
        "duration('1h30m').getMinutes() == 90 && duration('1h').getSeconds() == 3600",
        "timestamp('2024-01-01T00:00:00Z') + duration('24h') == timestamp('2024-01-02T00:00:00Z')",
        "timestamp('2024-01-02T00:00:00Z') - timestamp('2024-01-01T00:00:00Z') == duration('86400s')",
        "string(duration('1m1.5s')) == '61.5s'",
        "duration('1s') < duration('2s')",
        "string(timestamp('2024-01-01T00:00:00Z')) == '2024-01-01T00:00:00Z'",
        // Kubernetes' libraries
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').compareTo(quantity('0.5')) == 0 && isQuantity('1k') && !isQuantity('x')",
        "quantity('1').add(quantity('2')).asInteger() == 3 && quantity('1').sub(2).sign() == -1 && !quantity('1500m').isInteger()",
        "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('300.1.1.1') && ip('::1').isLoopback() && ip.isCanonical('::1')",
        "cidr('10.0.0.0/8').containsIP('10.2.3.4') && cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.0.0.0/8').containsIP(ip('11.0.0.1'))",
        "cidr('10.1.2.3/8').masked() == cidr('10.0.0.0/8') && cidr('::/0').prefixLength() == 0 && string(cidr('10.0.0.0/8').ip()) == '10.0.0.0'",
        "isCIDR('10.0.0.0/8') && !isCIDR('10.0.0.0') && !isCIDR('10.0.0.0/33')",
        "url('https://a.io:8443/p?q=1&q=2').getHost() == 'a.io:8443' && url('https://a.io:8443/p').getPort() == '8443' && url('https://a.io/p').getScheme() == 'https'",
        "url('https://a.io/p?q=1&q=2').getQuery() == {'q': ['1', '2']} && isURL('/path') && !isURL('a b') && url('/path').getScheme() == ''",
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-rc.1').compareTo(semver('1.0.0')) == -1 && isSemver('v1.0', true) && !isSemver('v1.0')",
        "semver('1.2.3').major() == 1 && semver('1.2.3').patch() == 3",
        "!format.dns1123Label().validate('ok').hasValue() && format.dns1123Label().validate('Not Ok').value().size() > 0",
        "format.named('uuid').hasValue() && !format.named('x').hasValue()",
        "!format.dns1123LabelPrefix().validate('a-').hasValue()",
        "jsonpatch.escapeKey('a/b~c') == 'a~1b~0c'",
        "base64.encode(b'hi') == 'aGk=' && base64.decode('aGk=') == b'hi'",
    ] {
        assert_eq!(run(text), Ok(json!(true)), "{text}");
    }
}

#[test]
fn expressions_that_fail_when_they_run() {
    for (text, why) in [
        ("o.nope", "no such key: nope"),
        ("o.labels['x']", "no such key: x"),
        ("o.ports[2]", "index out of bounds: 2"),
        ("o.ports[-1]", "index out of bounds: -1"),
        ("1 / (o.replicas - 3)", "division by zero"),
        ("o.replicas % 0", "modulus by zero"),
        ("o.name.foo", "no such overload"),
        ("o.name + o.replicas", "no such overload"),
        ("9223372036854775807 + o.replicas", "integer overflow"),
        ("0u - 1u", "unsigned integer overflow"),
        ("-(-9223372036854775807 - 1)", "integer overflow"),
        ("o.nope && true", "no such key: nope"),
        ("o.name && true", "no such overload"),
        ("o.name ? 1 : 2", "no such overload"),
        ("s == ''", "s is out"),
        ("int('x')", "type conversion error from 'string' to 'int': \"x\""),
        ("optional.none().value()", "optional.none() dereference"),
        ("timestamp('2024-01-01')", "type conversion error from 'string' to 'timestamp': \"2024-01-01\""),
        ("'abc'.substring(2, 1)", "invalid substring range. start: 2, end: 1"),
        ("'abc'.charAt(9)", "index out of range: 9"),
        ("[].max()", "max called on empty list"),
        ("{'a': 1, 'a': 2}.a", "Failed with repeated key: a"),
        ("[1, 'a'].all(x, x > 0)", "no such overload"),
        ("timestamp('2024-01-01T00:00:00Z').getHours('Nowhere/X')", "unknown time zone Nowhere/X"),
        ("o.nothing.x", "no such key: x"),
        ("o.name.matches(o.name + '(')", "error parsing regexp:"),
        ("duration('x')", "type conversion error"),
    ] {
        let error = run(text).unwrap_err();
        assert!(error.starts_with(why), "{text}: {error}");
    }
}

#[test]
fn expressions_that_do_not_compile() {
    for (text, why) in [
        ("", "<input>:1:1: Syntax error: mismatched input '<EOF>' expecting"),
        ("1 +", "<input>:1:4: Syntax error: mismatched input '<EOF>'"),
        ("x", "<input>:1:1: undeclared reference to 'x' (in container '')"),
        ("o.foo()", "undeclared reference to 'foo'"),
        ("nope(1)", "undeclared reference to 'nope'"),
        ("variables.y", "undefined field 'y'"),
        ("1 + 'a'", "found no matching overload for '_+_' applied to '(int, string)'"),
        ("1 == 'a'", "found no matching overload for '_==_' applied to '(int, string)'"),
        ("1 && true", "found no matching overload for '_&&_' applied to '(int, bool)'"),
        ("!1", "found no matching overload for '!_' applied to '(int)'"),
        ("'a'.size(1)", "found no matching overload for 'size' applied to 'string.(int)'"),
        ("'a' in 'abc'", "found no matching overload for '@in' applied to '(string, string)'"),
        ("1.all(x, true)", "cannot be range of a comprehension"),
        ("[1].all(x.y, true)", "argument must be a simple name"),
        ("has(o)", "invalid argument to has() macro"),
        ("'a'.matches('(')", "error parsing regexp"),
        ("'abc", "Syntax error: unterminated string"),
        ("'\\q'", "Syntax error: invalid escape sequence"),
        ("1 2", "Syntax error: extraneous input '2' expecting <EOF>"),
        ("for", "reserved identifier: for"),
        ("9223372036854775808", "invalid int literal"),
        ("o = 1", "token recognition error at: '='"),
        ("true ? 1 : 'a'", "'_?_:_'"),
        ("s.foo", "type 'string' does not support field selection"),
        ("Object{}", "undeclared reference to 'Object'"),
        ("[1].all(x, x)", "'_&&_'"),
        ("1 < 'a'", "found no matching overload for '_<_' applied to '(int, string)'"),
    ] {
        let error = run(text).unwrap_err();
        assert!(error.contains(why), "{text}: {error}");
    }
    let error = run("1 +\n  x + y").unwrap_err();
    assert_eq!(
        error,
        "ERROR: <input>:2:3: undeclared reference to 'x' (in container '')\n |   x + y\n | ..^\n\
         ERROR: <input>:2:7: undeclared reference to 'y' (in container '')\n |   x + y\n | ......^"
    );
}

#[test]
fn what_must_be_true_or_false_is() {
    let env = env();
    assert!(Program::compile_as("1 > 0", &env, &[Type::Bool]).is_ok());
    assert!(Program::compile_as("o.x", &env, &[Type::Bool]).is_ok());
    let error = Program::compile_as("1", &env, &[Type::Bool]).unwrap_err();
    assert!(error.to_string().contains("must evaluate to bool"), "{error}");
    assert_eq!(*Program::compile("[1].map(x, string(x))", &env).unwrap().ty(), Type::list(Type::String));
    assert_eq!(*Program::compile("o.?x.orValue(1) + variables.x", &env).unwrap().ty(), Type::Int);
}

#[test]
fn known_types_are_checked_and_shape_the_data() {
    use edge_cel::ObjectType;
    use std::sync::Arc;
    let inner = ObjectType::new(
        "Spec",
        [("replicas".to_owned(), Type::Int), ("since".to_owned(), Type::Timestamp), ("a-b".to_owned(), Type::Double)],
    );
    let object = ObjectType::new(
        "Object",
        [("spec".to_owned(), Type::Object(Arc::new(inner))), ("tags".to_owned(), Type::map(Type::String))],
    );
    let ty = Type::Object(Arc::new(object));
    let env = Env::new().with("self", ty.clone());
    for (text, why) in [
        ("self.spec.replica", "undefined field 'replica'"),
        ("self.spec.replicas == 'a'", "no matching overload"),
        ("self.tags.x > 1", "no matching overload"),
    ] {
        assert!(Program::compile(text, &env).unwrap_err().to_string().contains(why), "{text}");
    }
    let data = json!({"spec": {"replicas": 2, "since": "2024-01-01T00:00:00Z", "a-b": 1}, "tags": {"x": "y"}});
    for text in [
        "self.spec.replicas == 2 && self.tags.x == 'y'",
        "self.spec.since.getFullYear() == 2024",
        "self.spec.a__dash__b == 1.0",
        "self.spec == self.spec",
    ] {
        let program = Program::compile_as(text, &env, &[Type::Bool]).unwrap();
        let get = |_: usize, _: &mut Budget| Ok(Value::from_json(&data, &ty));
        assert_eq!(program.run(&get, &mut Budget::default()).unwrap().as_bool(), Some(true), "{text}");
    }
}
