use super::*;

fn parse(body: impl AsRef<[u8]>) -> Result<RunRequest, InvalidRequest> {
    RunRequest::parse(body.as_ref(), Answer::Wait)
}

fn check(body: impl AsRef<[u8]>, expect: &str) {
    let body = body.as_ref();
    let error = parse(body).unwrap_err();
    assert_eq!(error.to_string(), expect, "{}", String::from_utf8_lossy(body));
}

#[test]
fn the_contract_s_example_is_read() {
    let request = parse(
        r#"{
          "promptName": "Email de Bienvenue",
          "variables": { "nom_utilisateur": "Steph", "nom_service": "Prompt Manager" }
        }"#,
    )
    .unwrap();
    assert_eq!(request.prompt.as_str(), "Email de Bienvenue");
    assert_eq!((request.lane, request.on_disconnect()), (Lane::Interactive, OnDisconnect::Cancel));
    assert_eq!(Value::Object(request.variables), json!({"nom_utilisateur": "Steph", "nom_service": "Prompt Manager"}));
    assert_eq!((request.stream, request.cache, request.version, request.timeout), (false, None, None, None));
    assert!(request.metadata.is_empty() && request.webhook_url.is_none());
}

#[test]
fn every_field_is_read() {
    let request = parse(
        r#"{"promptName":"a","variables":{"n":[1,{"b":null}]},"stream":true,"version":3,"timeoutMs":1500,
            "priority":"batch","metadata":{"order":"17"},"cache":true,"webhookUrl":"https://example.com/h",
            "onDisconnect":"continue"}"#,
    )
    .unwrap();
    assert_eq!(request.version, Some(PromptVersion(3)));
    assert_eq!(request.timeout, Some(Duration::from_millis(1500)));
    assert_eq!(request.lane, Lane::Batch);
    assert_eq!(request.metadata, BTreeMap::from([("order".to_owned(), "17".to_owned())]));
    assert_eq!(request.on_disconnect(), OnDisconnect::Continue);
    assert_eq!(request.cache, Some(true));
    assert!(request.stream);
    assert_eq!(request.webhook_url.as_deref(), Some("https://example.com/h"));
}

#[test]
fn null_is_absence() {
    let request = parse(
        r#"{"promptName":"a","variables":null,"stream":null,"version":null,"timeoutMs":null,"priority":null,
            "metadata":null,"cache":null,"webhookUrl":null,"onDisconnect":null}"#,
    );
    assert_eq!(request, parse(r#"{"promptName":"a"}"#));
    check(r#"{"promptName":null}"#, "The request is not valid: 'promptName' is required and must be a string");
}

#[test]
fn text_that_is_no_json_object_is_refused() {
    check("", "The body is empty; a JSON object is expected");
    check(" \r\n", "The body is empty; a JSON object is expected");
    check("[]", "The body must be a JSON object, not an array");
    check("\"run\"", "The body must be a JSON object, not a string");
    check(b"{\"promptName\":\"\xff\"}", "The body is not UTF-8 (byte 15)");
    check("{\"promptName\":\n \"a\",}", "The body is not valid JSON: trailing comma at line 2 column 6");
    check("{\"promptName\":\"a\"", "The body is not valid JSON: EOF while parsing an object at line 1 column 17");
    check(
        r#"{"promptName":"a","promptName":"b"}"#,
        "The body is not valid JSON: a name occurs twice in one object at line 1 column 30",
    );
}

#[test]
fn wrong_types_are_named_with_what_was_expected_and_found() {
    let check = |fields: &str, expect: &str| {
        check(format!(r#"{{"promptName":"a",{fields}}}"#), &format!("The request is not valid: {expect}"));
    };
    check(r#""variables":["x"]"#, "'variables' must be an object, not an array");
    check(r#""variables":"x""#, "'variables' must be an object, not a string");
    check(r#""stream":"true""#, "'stream' must be a boolean, not a string");
    check(r#""stream":1"#, "'stream' must be a boolean, not a number");
    check(r#""cache":{}"#, "'cache' must be a boolean, not an object");
    check(r#""version":"3""#, "'version' must be an integer from 1 to 2147483647, not a string");
    check(r#""version":0"#, "'version' must be an integer from 1 to 2147483647, not 0");
    check(r#""version":1.5"#, "'version' must be an integer from 1 to 2147483647, not 1.5");
    check(r#""version":2147483648"#, "'version' must be an integer from 1 to 2147483647, not 2147483648");
    check(r#""timeoutMs":0"#, "'timeoutMs' must be an integer of at least 1, not 0");
    check(r#""timeoutMs":-1"#, "'timeoutMs' must be an integer of at least 1, not -1");
    check(r#""timeoutMs":true"#, "'timeoutMs' must be an integer of at least 1, not a boolean");
    check(r#""priority":"high""#, "'priority' must be 'interactive' or 'default' or 'batch', not 'high'");
    check(r#""priority":1"#, "'priority' must be 'interactive' or 'default' or 'batch', not a number");
    check(r#""onDisconnect":"stop""#, "'onDisconnect' must be 'cancel' or 'continue', not 'stop'");
    check(r#""webhookUrl":7"#, "'webhookUrl' must be a string, not a number");
    check(r#""metadata":{"a":1}"#, "'metadata.a' must be a string, not a number");
}

#[test]
fn all_problems_are_told_together() {
    let body = r#"{"promptname":"a","stream":0,"model":"x","variables":3}"#;
    check(
        body,
        "The request is not valid: 'promptName' is required and must be a string; 'variables' must be an object, not \
         a number; 'stream' must be a boolean, not a number; 'model' is not a known field; 'promptname' is not a known field",
    );
    let details = parse(body).unwrap_err().details().unwrap();
    assert_eq!(
        details,
        json!({"fields": [
            {"field": "promptName", "expected": "a string"},
            {"field": "variables", "expected": "an object", "found": "a number"},
            {"field": "stream", "expected": "a boolean", "found": "a number"},
            {"field": "model", "unknown": true},
            {"field": "promptname", "unknown": true},
        ]})
    );
}

#[test]
fn names_have_limits() {
    let name = |name: &str| parse(json!({ "promptName": name }).to_string());
    assert!(name(&"é".repeat(255)).is_ok());
    assert!(name(&"é".repeat(256)).is_err());
    assert!(name("").is_err());
    assert!(name("a\0").is_err());
    assert!(name("line\nbreak").is_err());
}

#[test]
fn metadata_has_limits() {
    let metadata = |value: Value| parse(json!({ "promptName": "a", "metadata": value }).to_string());
    let many = |count: usize| (0..count).map(|n| (n.to_string(), Value::from("v"))).collect::<Map<_, _>>();
    assert_eq!(metadata(Value::Object(many(16))).unwrap().metadata.len(), 16);
    assert!(metadata(Value::Object(many(17))).is_err());
    assert!(metadata(json!({ "k".repeat(64): "v".repeat(512) })).is_ok());
    assert!(metadata(json!({ "k".repeat(65): "" })).is_err());
    assert!(metadata(json!({ "": "v" })).is_err());
    assert!(metadata(json!({ "k": "v".repeat(513) })).is_err());
    assert!(metadata(json!({ "k": "a\0b" })).is_err());
}

#[test]
fn an_error_repeats_little_of_a_hostile_body() {
    let hostile: Map<_, _> = (0..10_000).map(|n| (format!("{n:0>500}\n"), Value::Null)).collect();
    let error = parse(Value::Object(hostile).to_string()).unwrap_err().to_string();
    assert!(error.len() < 3_000 && !error.contains('\n'), "{} bytes", error.len());
}
