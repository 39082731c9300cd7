#![expect(clippy::unwrap_used, reason = "tests")]
use super::*;
use serde_json::json;

fn schema() -> Value {
    json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.metadata.name.size() < 10", "message": "a long name"}], "properties": {
        "spec": {"type": "object",
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.max", "messageExpression": "'min ' + string(self.min) + ' is above max'", "fieldPath": ".min"},
                {"rule": "!has(self.secret)", "reason": "FieldValueForbidden", "message": "no secrets"},
                {"rule": "self.a__dash__b != 'x'"},
            ],
            "properties": {
                "min": {"type": "integer", "x-kubernetes-validations": [{"rule": "self >= oldSelf", "message": "may only grow"}]},
                "max": {"type": "integer"}, "secret": {"type": "string"}, "a-b": {"type": "string", "default": ""},
                "since": {"type": "string", "format": "date-time", "x-kubernetes-validations": [{"rule": "self > timestamp('2020-01-01T00:00:00Z')"}]},
                "once": {"type": "string", "x-kubernetes-validations": [{"rule": "!oldSelf.hasValue() || oldSelf.value() == self", "optionalOldSelf": true}]},
                "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": {"type": "object",
                    "properties": {"name": {"type": "string"}, "port": {"type": "integer", "x-kubernetes-validations": [{"rule": "self == oldSelf", "message": "ports stay"}]}}}},
                "tags": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self.size() > 1"}]}},
                "size": {"x-kubernetes-int-or-string": true, "x-kubernetes-validations": [{"rule": "type(self) == string ? self.endsWith('%') : self > 0"}]},
            }},
    }})
}

fn object(spec: Value) -> Value {
    let mut whole = json!({"min": 1, "max": 2, "a-b": ""});
    whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
    json!({"apiVersion": "x/v1", "kind": "X", "metadata": {"name": "n"}, "spec": whole})
}

fn errors(new: &Value, old: Option<&Value>) -> String {
    let rules = Rules::compile(&schema(), &Path::root()).unwrap().unwrap();
    rules.validate(new, old).0.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

#[test]
fn objects_are_judged() {
    for (spec, old, want) in [
        (json!({}), None, ""),
        (json!({"min": 3}), None, "spec.min: Invalid value: \"object\": min 3 is above max"),
        (json!({"secret": "s"}), None, "spec: Forbidden: no secrets"),
        (json!({"a-b": "x"}), None, "spec: Invalid value: \"object\": failed rule: self.a__dash__b != 'x'"),
        (
            json!({"since": "2019-01-01T00:00:00Z"}),
            None,
            "spec.since: Invalid value: \"string\": failed rule: self > timestamp('2020-01-01T00:00:00Z')",
        ),
        (json!({"tags": {"k": "v"}}), None, "spec.tags[k]: Invalid value: \"string\": failed rule: self.size() > 1"),
        (json!({"size": "5%"}), None, ""),
        (json!({"size": 5}), None, ""),
        (
            json!({"size": "5"}),
            None,
            "spec.size: Invalid value: \"\": failed rule: type(self) == string ? self.endsWith('%') : self > 0",
        ),
        (json!({"size": null}), None, ""),
        // what was there before
        (json!({"min": 1}), Some(json!({"min": 2})), "spec.min: Invalid value: \"integer\": may only grow"),
        (json!({"min": 2}), Some(json!({"min": 1})), ""),
        (json!({"once": "a"}), None, ""),
        (
            json!({"once": "b"}),
            Some(json!({"once": "a"})),
            "spec.once: Invalid value: \"string\": failed rule: !oldSelf.hasValue() || oldSelf.value() == self",
        ),
        (
            json!({"ports": [{"name": "b", "port": 2}, {"name": "a", "port": 1}]}),
            Some(json!({"ports": [{"name": "a", "port": 1}]})),
            "",
        ),
        (
            json!({"ports": [{"name": "b", "port": 2}, {"name": "a", "port": 3}]}),
            Some(json!({"ports": [{"name": "a", "port": 1}]})),
            "spec.ports[1].port: Invalid value: \"integer\": ports stay",
        ),
        // what was wrong before and has not changed may stay
        (json!({"a-b": "x"}), Some(json!({"a-b": "x"})), ""),
        (json!({"tags": {"k": "v"}, "min": 2}), Some(json!({"tags": {"k": "v"}})), ""),
    ] {
        let old = old.map(object);
        assert_eq!(errors(&object(spec.clone()), old.as_ref()), want, "{spec} {old:?}");
    }
    let mut long = object(json!({}));
    long["metadata"]["name"] = "a-very-long-name".into();
    assert_eq!(errors(&long, None), "Invalid value: \"object\": a long name");
    // fields that rules need and that are not there
    let error = errors(&json!({"metadata": {"name": "n"}, "spec": {"min": 1}}), None);
    assert!(error.contains("no such key: max evaluating rule: self.min <= self.max"), "{error}");
}

#[test]
fn rules_that_cannot_work_are_refused() {
    let compile = |rule: Value| {
        let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"n": {"type": "integer"}}, "x-kubernetes-validations": [rule]}}});
        Rules::compile(&schema, &Path::new("schema"))
            .map(|_| ())
            .map_err(|e| e.0.iter().map(ToString::to_string).collect::<String>())
    };
    assert_eq!(compile(json!({"rule": "self.n > 0"})), Ok(()));
    for (rule, why) in [
        (
            json!({"rule": "self.nope"}),
            "schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.nope\": compilation failed: ERROR: <input>:1:5: undefined field 'nope'",
        ),
        (json!({"rule": "self.n"}), "cel expression must evaluate to a bool"),
        (json!({"rule": "self.n == 'a'"}), "found no matching overload for '_==_' applied to '(int, string)'"),
        (json!({"rule": "object.n == 1"}), "undeclared reference to 'object'"),
        (json!({"rule": ""}), "Required value: rule is not specified"),
        (
            json!({"rule": "true", "messageExpression": "self.n"}),
            "messageExpression: Invalid value: \"self.n\": messageExpression must evaluate to a string",
        ),
        (json!({"rule": "true", "reason": "Nope"}), "reason: Unsupported value"),
        (json!({"rule": "true", "fieldPath": ".nope"}), "fieldPath: Invalid value"),
        (json!({"rule": "true", "fieldPath": "n"}), "fieldPath: Invalid value"),
        (json!({"rule": "true", "message": "a\nb"}), "line breaks"),
    ] {
        let error = compile(rule.clone()).unwrap_err();
        assert!(error.contains(why), "{rule}: {error}");
    }
    let none = json!({"type": "object", "properties": {"spec": {"type": "object"}}});
    assert!(Rules::compile(&none, &Path::root()).unwrap().is_none(), "no rules, no work");
}

#[test]
fn a_request_has_one_budget() {
    let rule = json!([{"rule": "self.all(a, self.all(b, a != 'x' || b != 'y'))"}]);
    let schema = json!({"type": "object", "properties": {"all": {"type": "object", "additionalProperties":
        {"type": "array", "items": {"type": "string"}, "x-kubernetes-validations": rule}}}});
    let rules = Rules::compile(&schema, &Path::root()).unwrap().unwrap();
    let list = vec!["a"; 300];
    let all: serde_json::Map<String, Value> = (0..60).map(|i| (format!("k{i}"), json!(list))).collect();
    let errors = rules.validate(&json!({"all": all}), None);
    let last = errors.0.last().unwrap().to_string();
    assert!(last.contains("running out of cost budget"), "{last}");
}
