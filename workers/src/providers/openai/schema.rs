//! Which JSON Schemas a provider can follow strictly.
//!
//! With `strict` the output is guaranteed to follow the schema, but a schema outside of the supported subset is refused
//! with a 400, so it is asked for only where it can be had:
//! <https://platform.openai.com/docs/guides/structured-outputs#supported-schemas>.

use serde_json::Value;

/// Keywords that strict mode refuses anywhere.
const UNSUPPORTED: [&str; 11] = [
    "allOf",
    "not",
    "dependentRequired",
    "dependentSchemas",
    "if",
    "then",
    "else",
    "oneOf",
    "patternProperties",
    "unevaluatedProperties",
    "propertyNames",
];

/// Whether the schema describes an object, and all objects in it are closed and have only required properties.
pub(super) fn can_be_strict(schema: &Value) -> bool {
    schema.get("type").and_then(Value::as_str) == Some("object") && is_closed(schema)
}

/// Judges a schema and all schemas in it.
fn is_closed(schema: &Value) -> bool {
    let Value::Object(schema) = schema else { return !schema.is_boolean() };
    if UNSUPPORTED.iter().any(|keyword| schema.contains_key(*keyword)) {
        return false;
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    if properties.is_some() || schema.get("type").is_some_and(is_object_type) {
        let required = schema.get("required").and_then(Value::as_array);
        let is_required =
            |name: &String| required.is_some_and(|names| names.iter().any(|other| other == name.as_str()));
        let all_required = properties.is_some_and(|properties| properties.keys().all(is_required));
        if !all_required || schema.get("additionalProperties") != Some(&Value::Bool(false)) {
            return false;
        }
    }
    let named =
        ["properties", "$defs", "definitions"].into_iter().filter_map(|keyword| schema.get(keyword)?.as_object());
    let listed = ["anyOf", "prefixItems"].into_iter().filter_map(|keyword| schema.get(keyword)?.as_array());
    named.flat_map(|schemas| schemas.values()).chain(listed.flatten()).chain(schema.get("items")).all(is_closed)
}

fn is_object_type(kind: &Value) -> bool {
    kind == "object" || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == "object"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_closed_schemas_are_strict() {
        let closed = |properties: Value| {
            let required: Vec<&String> = properties.as_object().unwrap().keys().collect();
            json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
        };
        assert!(can_be_strict(&closed(json!({}))));
        assert!(can_be_strict(&closed(json!({"a": {"type": ["string", "null"]}, "b": {"enum": [1, 2]}}))));
        assert!(can_be_strict(&closed(
            json!({"a": {"type": "array", "items": closed(json!({"b": {"type": "number"}}))}})
        )));
        // A property may bear the name of a keyword.
        assert!(can_be_strict(&closed(json!({"not": {"type": "string"}, "type": {"type": "string"}}))));

        assert!(!can_be_strict(&json!({})));
        assert!(!can_be_strict(&json!(true)));
        assert!(!can_be_strict(&json!({"type": "array", "items": {"type": "string"}})));
        assert!(!can_be_strict(&json!({"type": "object"})));
        assert!(!can_be_strict(&json!({"type": "object", "properties": {}, "required": []})), "open");
        let optional =
            json!({"type": "object", "properties": {"a": {}}, "required": [], "additionalProperties": false});
        assert!(!can_be_strict(&optional), "an optional property");
        for inner in
            [optional, json!({"oneOf": []}), json!({"not": {}}), json!({"type": ["object", "null"]}), json!(true)]
        {
            assert!(!can_be_strict(&closed(json!({"a": inner.clone()}))), "{inner}");
            assert!(!can_be_strict(&closed(json!({"a": {"type": "array", "items": inner.clone()}}))), "{inner}");
            assert!(!can_be_strict(&closed(json!({"a": {"anyOf": [{"type": "null"}, inner]}}))));
        }
    }
}
