mod described;

use proptest::prelude::*;

use super::*;
use crate::run::OnDisconnect;

const RUN: &str = "01a2091c-cfe8-75ce-96d7-252e74adc8aa";

/// What a message comes to: the client's id and a word for the rest.
fn read(text: &str) -> (Option<String>, String) {
    let shown = |id: Option<ClientId>| id.map(|id| id.to_string());
    match parse(text) {
        Ok(Frame::Create { id, request }) => {
            assert!(request.stream && request.answer == Answer::Wait);
            (Some(id.to_string()), format!("create {}", request.prompt))
        }
        Ok(Frame::Cancel { id, run }) => (shown(id), format!("cancel {}", run.is_some())),
        Ok(Frame::Resume { id, after, .. }) => (shown(id), format!("resume {after}")),
        Err(Refused { id, error }) => {
            let message: Value = serde_json::from_str(&error.message(id.as_deref(), "request")).unwrap();
            assert_eq!((&message["type"], &message["requestId"]), (&json!("error"), &json!("request")));
            assert!(!message["error"].as_str().unwrap().is_empty());
            assert_eq!(message["retryable"], false, "a message that is wrong stays wrong");
            assert!(message["status"] == 400 || message["code"] == "run_not_found", "{message}");
            (shown(id), message["code"].as_str().unwrap().to_owned())
        }
    }
}

#[test]
fn messages_become_orders() {
    let check = |text: &str, id: Option<&str>, expect: &str| {
        assert_eq!(read(text), (id.map(str::to_owned), expect.to_owned()), "{text}");
    };
    check(r#"{"type":"run.create","id":"a","promptName":"p"}"#, Some("a"), "create p");
    check(
        r#"{"type":"run.create","id":"a","promptName":"p","stream":false,"variables":{"x":[1]}}"#,
        Some("a"),
        "create p",
    );
    check(r#"{"type":"run.cancel","id":"a"}"#, Some("a"), "cancel false");
    check(&format!(r#"{{"type":"run.cancel","runId":"{RUN}"}}"#), None, "cancel true");
    check(&format!(r#"{{"type":"run.cancel","runId":"{RUN}","id":"a"}}"#), Some("a"), "cancel true");
    check(&format!(r#"{{"type":"run.resume","runId":"{RUN}"}}"#), None, "resume 0");
    check(&format!(r#"{{"type":"run.resume","runId":"{RUN}","after":7,"id":"a"}}"#), Some("a"), "resume 7");
}

#[test]
fn anything_else_is_refused() {
    let check = |text: &str, id: Option<&str>, code: &str| {
        assert_eq!(read(text), (id.map(str::to_owned), code.to_owned()), "{text}");
    };
    for text in ["", "nonsense", "{", "{}{}", r#"{"id":"a","id":"b"}"#, &"[".repeat(10_000)] {
        check(text, None, "invalid_json");
    }
    for text in ["[]", "null", "1", r#""run.create""#] {
        check(text, None, "invalid_request");
    }
    check("{}", None, "unknown_type");
    check(r#"{"id":"a","type":"run.start"}"#, Some("a"), "unknown_type");
    check(r#"{"id":"a","type":7}"#, Some("a"), "unknown_type");
    check(r#"{"type":"run.create","promptName":"p"}"#, None, "missing_id");
    check(r#"{"type":"run.create","id":null,"promptName":"p"}"#, None, "missing_id");
    for id in ["7", "\"\"", "{}", r#""a\u0000""#, &format!("\"{}\"", "a".repeat(MAX_ID + 1))] {
        check(&format!(r#"{{"type":"run.create","id":{id},"promptName":"p"}}"#), None, "invalid_id");
    }
    check(r#"{"type":"run.create","id":"a"}"#, Some("a"), "invalid_request");
    check(r#"{"type":"run.create","id":"a","promptName":"p","prompt":1}"#, Some("a"), "invalid_request");
    check(r#"{"type":"run.cancel"}"#, None, "missing_id");
    check(r#"{"type":"run.cancel","id":"a","why":1}"#, Some("a"), "invalid_request");
    check(r#"{"type":"run.cancel","id":"a","runId":"x"}"#, Some("a"), "run_not_found");
    check(r#"{"type":"run.cancel","id":"a","runId":7}"#, Some("a"), "invalid_request");
    check(r#"{"type":"run.resume","id":"a"}"#, Some("a"), "invalid_request");
    for after in ["-1", "1.5", "\"1\"", "18446744073709551616"] {
        check(
            &format!(r#"{{"type":"run.resume","id":"a","runId":"{RUN}","after":{after}}}"#),
            Some("a"),
            "invalid_request",
        );
    }
}

#[test]
fn a_run_keeps_its_options() {
    let text = r#"{"type":"run.create","id":"a","promptName":"p","onDisconnect":"continue","timeoutMs":5}"#;
    let Ok(Frame::Create { request, .. }) = parse(text) else { panic!("refused") };
    assert_eq!(request.on_disconnect, Some(OnDisconnect::Continue));
    assert_eq!(request.timeout, Some(std::time::Duration::from_millis(5)));
}

/// JSON of any shape, with the words that mean something strewn in.
fn json_values() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "type",
        "id",
        "runId",
        "after",
        "promptName",
        "variables",
        "run.create",
        "run.cancel",
        "run.resume",
        RUN,
        "",
    ]);
    let text = prop_oneof![word.prop_map(str::to_owned), ".{0,20}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        text.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::btree_map(text.clone(), inner, 0..8).prop_map(Value::from_iter),
        ]
    })
}

proptest! {
    #![proptest_config(crate::property::cases(1_000))]

    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        read(&text);
    }

    #[test]
    fn any_json_is_read_or_refused(value in json_values()) {
        read(&value.to_string());
    }

    /// Objects that are nearly right: a type, and any members beside it.
    #[test]
    fn any_members_are_read_or_refused(
        name in prop::sample::select(vec!["run.create", "run.cancel", "run.resume"]),
        id in json_values(), run in json_values(), after in json_values(), prompt in json_values(), more in json_values(),
    ) {
        let mut message = json!({ "type": name, "id": id, "runId": run, "after": after, "promptName": prompt });
        if let Value::Object(more) = more {
            message.as_object_mut().unwrap().extend(more);
        }
        let (told, _) = read(&message.to_string());
        if let Some(told) = told {
            prop_assert_eq!(Some(told.as_str()), message["id"].as_str(), "an answer bears the client's own id");
        }
    }

    /// A message that is right, with one byte of it changed or cut off.
    #[test]
    fn a_broken_message_is_read_or_refused(at in 0_usize..60, byte in any::<char>(), cut in any::<bool>()) {
        let text = format!(r#"{{"type":"run.resume","runId":"{RUN}","after":7,"id":"a"}}"#);
        let mut characters: Vec<char> = text.chars().collect();
        if cut { characters.truncate(at) } else { characters[at] = byte }
        read(&characters.into_iter().collect::<String>());
    }
}
