//! The OpenAPI document as a judge of messages: whether a value is what one of its schemas describes, and nothing beside it.
//!
//! It knows the words that the document uses and refuses to judge by any other, so that no rule is passed over. Unit tests use it, too.

use std::{collections::BTreeSet, path::Path, sync::LazyLock};

use serde_json::{Map, Value};
use uuid::Uuid;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/openapi.json")).unwrap();
    serde_json::from_str(&text).unwrap()
});

/// Words that explain and rule nothing.
const REMARKS: [&str; 3] = ["description", "default", "example"];

/// A value must be what the schema of this name describes, and have no member that it does not speak of.
#[track_caller]
pub fn assert_is(name: &str, value: &Value) {
    if let Err(wrong) = whole(named(name), value) {
        panic!("{name}{wrong}: {value}");
    }
}

/// The schema of this name.
pub fn named(name: &str) -> &'static Value {
    referred(&format!("#/components/schemas/{name}"))
}

fn referred(reference: &str) -> &'static Value {
    let pointer = reference.strip_prefix('#').unwrap();
    DOCUMENT.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

/// A value with all its members.
fn whole(schema: &Value, value: &Value) -> Result<(), String> {
    let spoken_of = judge(schema, value)?;
    // Who describes no member takes any object.
    let Some((known, value)) = spoken_of.zip(value.as_object()) else { return Ok(()) };
    match value.keys().find(|name| !known.contains(name.as_str())) {
        Some(name) => Err(format!(".{name}: it is not described")),
        None => Ok(()),
    }
}

/// Whether the schema lets the value be; the members that it speaks of, if it speaks of any.
pub fn judge<'a>(schema: &'a Value, value: &Value) -> Result<Option<BTreeSet<&'a str>>, String> {
    let schema = schema.as_object().unwrap();
    let mut known: Option<BTreeSet<&str>> = None;
    for (word, rule) in schema {
        let more = match word.as_str() {
            "$ref" => judge(referred(rule.as_str().unwrap()), value)?,
            "allOf" => {
                let all: Result<Vec<_>, _> = rule.as_array().unwrap().iter().map(|one| judge(one, value)).collect();
                all?.into_iter().flatten().reduce(|mut one, other| {
                    one.extend(other);
                    one
                })
            }
            "oneOf" => {
                let judged: Vec<_> = rule.as_array().unwrap().iter().map(|one| judge(one, value)).collect();
                let mut fitting = judged.iter().filter_map(|one| one.as_ref().ok());
                match (fitting.next(), fitting.next()) {
                    (Some(one), None) => one.clone(),
                    (None, _) => return Err(format!(": none of {judged:?}")),
                    (Some(_), Some(_)) => return Err(": more than one of its kinds".to_owned()),
                }
            }
            "properties" => Some(properties(rule.as_object().unwrap(), value)?),
            _ => {
                let holds = holds(word, rule, schema, value)?;
                if !holds {
                    return Err(format!(": `{word}: {rule}` does not hold for {value}"));
                }
                None
            }
        };
        if let Some(more) = more {
            known.get_or_insert_default().extend(more);
        }
    }
    if schema.contains_key("additionalProperties") && schema["additionalProperties"] != false {
        // All of its members were looked at.
        return Ok(None);
    }
    Ok(known)
}

fn properties<'a>(rules: &'a Map<String, Value>, value: &Value) -> Result<BTreeSet<&'a str>, String> {
    for (name, rule) in rules {
        if let Some(value) = value.get(name) {
            whole(rule, value).map_err(|wrong| format!(".{name}{wrong}"))?;
        }
    }
    Ok(rules.keys().map(String::as_str).collect())
}

/// Rules about values of another type hold.
fn holds(word: &str, rule: &Value, schema: &Map<String, Value>, value: &Value) -> Result<bool, String> {
    let (text, object) = (value.as_str(), value.as_object());
    let length = text.map(|text| text.chars().count() as u64);
    Ok(match word {
        _ if REMARKS.contains(&word) => true,
        "type" => rule.as_array().map_or_else(|| is(rule, value), |types| types.iter().any(|one| is(one, value))),
        "enum" => rule.as_array().unwrap().contains(value),
        "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().unwrap()),
        "minLength" => length.is_none_or(|length| length >= rule.as_u64().unwrap()),
        "maxLength" => length.is_none_or(|length| length <= rule.as_u64().unwrap()),
        "pattern" => text.is_none_or(|text| matches(rule.as_str().unwrap(), text)),
        "format" => match rule.as_str().unwrap() {
            "uuid" => text.is_none_or(|text| text.len() == 36 && Uuid::parse_str(text).is_ok()),
            "date-time" => text.is_none_or(|text| chrono::DateTime::parse_from_rfc3339(text).is_ok()),
            "int32" => !value.is_number() || value.as_i64().is_some_and(|number| i32::try_from(number).is_ok()),
            "int64" => !value.is_number() || value.as_i64().is_some(),
            "double" => true,
            other => panic!("a format that nobody judges: {other}"),
        },
        "required" => object.is_none_or(|object| {
            rule.as_array().unwrap().iter().all(|name| object.contains_key(name.as_str().unwrap()))
        }),
        "maxProperties" => object.is_none_or(|object| object.len() as u64 <= rule.as_u64().unwrap()),
        "propertyNames" => {
            for name in object.into_iter().flat_map(Map::keys) {
                whole(rule, &Value::from(name.as_str())).map_err(|wrong| format!("'s name{wrong}"))?;
            }
            true
        }
        "additionalProperties" => {
            let listed = |name: &str| schema.get("properties").is_some_and(|listed| listed.get(name).is_some());
            for (name, value) in object.into_iter().flatten().filter(|(name, _)| !listed(name)) {
                if *rule == false {
                    return Err(format!(".{name}: it is not allowed"));
                }
                whole(rule, value).map_err(|wrong| format!(".{name}{wrong}"))?;
            }
            true
        }
        "items" => {
            for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                whole(rule, item).map_err(|wrong| format!("[{index}]{wrong}"))?;
            }
            true
        }
        other => panic!("a rule that nobody judges: {other}"),
    })
}

fn is(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        // As it is written: this product reads no `1.0` as a whole number.
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        other => panic!("a type that nobody judges: {other}"),
    }
}

/// The patterns of the document; they are few.
fn matches(pattern: &str, text: &str) -> bool {
    match pattern {
        r"^[^\u0000-\u001f\u007f-\u009f]+$" => !text.is_empty() && !text.chars().any(char::is_control),
        r"^[^\u0000]*$" => !text.contains('\0'),
        other => panic!("a pattern that nobody judges: {other}"),
    }
}

#[test]
fn a_value_is_what_is_described_or_it_is_not() {
    let schema = serde_json::json!({
        "type": "object",
        "required": ["id"],
        "properties": {
            "id": { "type": "string", "format": "uuid" },
            "name": { "type": ["string", "null"], "maxLength": 2, "pattern": r"^[^\u0000]*$" },
            "of": { "oneOf": [{ "type": "integer", "minimum": 1 }, { "type": "string", "enum": ["a"] }] },
            "more": { "type": "object", "additionalProperties": { "type": "boolean" }, "maxProperties": 1 },
            "any": { "type": "object" },
        },
    });
    let schema = serde_json::json!({ "allOf": [schema, { "type": "object", "properties": { "list": { "items": { "type": "number" } } } }] });
    let check = |more: Value, expect: bool| {
        let mut value = serde_json::json!({ "id": "01a2091c-cfe8-75ce-96d7-252e74adc8aa" });
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let judged = whole(&schema, &value);
        assert_eq!(judged.is_ok(), expect, "{judged:?} {value}");
    };
    use serde_json::json;
    for good in [
        json!({}),
        json!({ "name": "éé", "of": 1, "more": { "x": true }, "any": { "x": [1] }, "list": [1, 1.5] }),
        json!({ "name": null, "of": "a", "more": {}, "list": [] }),
    ] {
        check(good, true);
    }
    for bad in [
        json!({ "id": 1 }),
        json!({ "id": "01a2091ccfe875ce96d7252e74adc8aa" }),
        json!({ "name": "aaa" }),
        json!({ "name": "\0" }),
        json!({ "name": 1 }),
        json!({ "of": 0 }),
        json!({ "of": 1.0 }),
        json!({ "of": "b" }),
        json!({ "more": { "x": 1 } }),
        json!({ "more": { "x": true, "y": true } }),
        json!({ "any": [] }),
        json!({ "list": ["a"] }),
        json!({ "other": 1 }),
    ] {
        check(bad, false);
    }
    assert!(whole(&schema, &json!({})).is_err(), "what is required is missing");
}
